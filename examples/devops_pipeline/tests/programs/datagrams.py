"""Takes datagrams where it is told to, and answers none."""

import os
import socket

listener = socket.socket(type=socket.SOCK_DGRAM)
listener.bind((os.environ["HOST"], int(os.environ["PORT"])))
while True:
    listener.recv(1024)
