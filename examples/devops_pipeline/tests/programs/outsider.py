"""Lives and listens nowhere, but has a program without our mark take its port; keeps that one's number."""

import os
import subprocess
import sys
import threading

command = [sys.executable, "-m", "http.server", os.environ["PORT"], "--bind", os.environ["HOST"]]
stranger = subprocess.Popen(command, env={})
with open("stranger", "w") as file:
    file.write(str(stranger.pid))
threading.Event().wait()
