"""The bot's page: shows what the backend says. The standard library does."""

import hashlib
import html
import json
import os
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST, PORT = os.environ["HOST"], int(os.environ["PORT"])
BACKEND_URL = os.environ["BACKEND_URL"]
BOT_TOKEN = os.environ["BOT_TOKEN"]
SESSION_SECRET = os.environ["SESSION_SECRET"]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/health":
            self.answer("ok")
            return
        headers = {"Authorization": f"Bearer {BOT_TOKEN}"}
        with urllib.request.urlopen(urllib.request.Request(f"{BACKEND_URL}/message", headers=headers)) as answer:
            message = json.load(answer)["message"]
        self.answer(f"<h1>{html.escape(message)}</h1>")

    def answer(self, text):
        body = text.encode()
        session = hashlib.sha256(f"{SESSION_SECRET}{self.client_address}".encode()).hexdigest()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", f"session={session}; HttpOnly")
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer((HOST, PORT), Handler).serve_forever()
