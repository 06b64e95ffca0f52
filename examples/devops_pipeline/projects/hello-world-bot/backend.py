"""The bot's backend: answers messages. The standard library does."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# No defaults: a backend that is told no port must not take one.
HOST, PORT = os.environ["HOST"], int(os.environ["PORT"])
GREETING = os.environ["GREETING"]
BOT_TOKEN = os.environ["BOT_TOKEN"]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/health":
            self.answer(200, {"status": "ok"})
        elif self.path != "/message":
            self.answer(404, {"error": "there is /message and /health"})
        elif self.headers["Authorization"] != f"Bearer {BOT_TOKEN}":
            self.answer(401, {"error": "the bot's token is missing"})
        else:
            self.answer(200, {"message": GREETING})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer((HOST, PORT), Handler).serve_forever()
