"""Tells a secret to its log and ends."""

import os
import sys

print("cannot use", os.environ["API_KEY"])
sys.exit(3)
