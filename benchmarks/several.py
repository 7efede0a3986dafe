"""Measure from how many recipients on io_uring costs less: chatws.server.fanout.IO_URING_MIN_SENDS.

    python benchmarks/several.py [CONNECTIONS]

Each of CONNECTIONS sockets (512; more are not all in the processor's caches) is sent an event, in groups of so many,
by an `io_uring` and one by one in turn. Prints microseconds of processor time a send, the median of some rounds.
"""

from __future__ import annotations

import resource
import socket
import statistics
import sys
import time
from typing import Any

from chatws.server import fanout
from chatws.server.frame_writer import FrameWriter
from chatws.server.io_uring import Ring
from chatws.server.recipients import Recipients
from chatws.server.server_stats import ServerStats

ROUNDS = 15
GROUPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 48, 96)
EVENT = b"x" * 300


class Recipient(FrameWriter):
    """A connection that only sends."""

    is_open = True
    stats = ServerStats()

    def __init__(self, sock: socket.socket) -> None:
        self.transport = self._compress = self._send_queue = None
        self._assign_socket(sock)


def pairs(count: int) -> tuple[list[socket.socket], list[socket.socket]]:
    """Make connected sockets: ends to send on, and ends to read from."""
    senders, readers = [], []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(count):
            readers.append(socket.create_connection(listener.getsockname()))
            senders.append(listener.accept()[0])
            senders[-1].setblocking(False)
            senders[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return senders, readers


def cost(fan_out: fanout.FanOut, runs: list[Any], readers: list[socket.socket]) -> float:
    """Processor time of a send in µs."""
    for reader in readers:
        try:
            while reader.recv(65536, socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            continue
    start = time.thread_time_ns()
    for run in runs:
        fan_out.send_all(run)
    return (time.thread_time_ns() - start) / len(readers) / 1e3


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    senders, readers = pairs(int(sys.argv[1]) if len(sys.argv) > 1 else 512)
    connections = [Recipient(sender) for sender in senders]
    fanout.IO_URING_MIN_SENDS = 0
    ways = {"together": fanout.FanOut(Ring()), "one by one": fanout.FanOut()}
    for kind, size in (("of one audience", 0), ("of audiences of 3", 3)):
        for count in GROUPS:
            runs = []
            for first in range(0, len(connections), count):
                group = connections[first : first + count]
                step = size or count
                audiences = [Recipients(group[at : at + step]) for at in range(0, len(group), step)]
                runs.append([(audience, [EVENT]) for audience in audiences])
            costs: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way, fan_out in ways.items():
                    costs[way].append(cost(fan_out, runs, readers))
            together, single = (statistics.median(costs[way]) for way in ways)
            print(f"{count:3} {kind:18} together {together:6.2f}  one by one {single:6.2f}  {together / single:.2f}")


if __name__ == "__main__":
    main()
