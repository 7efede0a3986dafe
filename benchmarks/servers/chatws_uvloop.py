"""chatws on asyncio with uvloop: chatws_uvloop.py PORT PUSH_PORT. Twisted takes any asyncio loop that it is handed."""

import sys

import uvloop
from twisted.internet import asyncioreactor

asyncioreactor.install(uvloop.new_event_loop())

from twisted.scripts.twistd import run  # noqa: E402

port, push, *options = sys.argv[1:]
sys.argv = ["twistd", "-n", "--pidfile=", "chatws", f"--port={port}", f"--push-port={push}", *options]
run()
