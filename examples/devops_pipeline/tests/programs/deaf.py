"""Lives, and listens nowhere."""

import threading

threading.Event().wait()
