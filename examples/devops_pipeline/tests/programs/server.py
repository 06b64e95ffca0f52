"""Serves its folder's files where it is told to; keeps what it was told, and ignores being asked to end, where it is told so."""

import http.server
import json
import os
import signal
import sys

if "--keep-environment" in sys.argv:
    with open("seen.json", "w") as file:
        json.dump(dict(os.environ), file)
if "--stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
where = (os.environ["HOST"], int(os.environ["PORT"]))
http.server.ThreadingHTTPServer(where, http.server.SimpleHTTPRequestHandler).serve_forever()
