"""From one frame to many sockets: the hot path.

- All frames for one audience that came together are joined once, and the same `bytes` goes to every socket.
- When several audiences are addressed at once, each connection still gets one `send` with all that is its, in order;
  equal sequences are joined once.
- Where there are several to send to, the kernel is asked for all of it at once (chatws.server.io_uring): that spares
  each its entry into the kernel and its call of Python's. Else, and where the kernel permits no io_uring, each socket
  is sent to by itself, without the transport (chatws.server.writer says why). (`os.write` on the descriptor spares
  Python 0.1 µs, and costs the kernel more than that: it looks at the file and its inode besides the socket.)
- A connection that negotiated compression gets the frames deflated: once for all whose window is the same.

No component is called from here: a set of recipients does not change while it is being sent to.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Collection, Sequence
from itertools import chain
from operator import itemgetter, length_hint, mul
from typing import Any, TypeAlias

from twisted.logger import Logger

from chatws.server.io_uring import NOTHING, Ring
from chatws.server.recipients import Recipients, keys_of_each
from chatws.server.writer import Writer

__all__ = ["SEVERAL", "FanOut"]

log = Logger()

#: Connections, and the frames that each of them gets.
Runs: TypeAlias = Sequence[tuple[Collection[Any], Sequence[bytes]]]

#: So many sends cost less when they are asked for together (benchmarks/several.py).
SEVERAL = 16

_recipients_of, _frames_of = itemgetter(0), itemgetter(1)


class FanOut:
    """Sends frames to connections.

    :ivar ring: what asks the kernel for many sends at once. Without one they are asked for one by one.
    """

    def __init__(self, ring: Ring | None = None) -> None:
        self.ring = ring

    def use_io_uring(self) -> None:
        """Have a ring, if the kernel permits it. If not, the log says so."""
        try:
            self.ring = Ring()
        except OSError as error:
            log.info("events are sent one by one, as there is no io_uring: {reason}", reason=error.strerror)

    def send_all(self, runs: Runs) -> None:
        """Send each run's frames to each of its connections, in the order of the runs.

        :param runs: pairs of connections (`Recipients`, where they are several) and complete frames (`text_frame`).
            Connections that are no longer open are passed over.
        """
        if not all(map(_frames_of, runs)):
            runs = [run for run in runs if run[1]]
        total = sum(map(len, map(_recipients_of, runs)))
        ring = self.ring
        if ring is not None and total >= SEVERAL:
            keys = _keys(runs)
            if len(runs) > 1 and len(set(keys)) != total and _overlap(runs, total):
                runs = _regroup(runs)
                keys = _keys(runs)
            if _send_together(runs, keys, ring):
                if ring.failed is not None:
                    log.warn("events are sent one by one from now on: {error}", error=ring.failed)
                    self.ring = None
                return
        elif len(runs) > 1 and _overlap(runs, total):
            runs = _regroup(runs)
        _send_one_by_one(runs)


def _overlap(runs: Runs, total: int) -> bool:
    """Whether anybody is in two of them: not so where many conversations have few subscribers each, as usual."""
    return len(set().union(*map(_recipients_of, runs))) != total


def _keys(runs: Runs) -> array[int]:
    whose: list[Any] = [*map(_recipients_of, runs)]
    if {*map(type, whose)} == {Recipients}:
        return array("Q", b"".join(keys_of_each(whose)))
    return array("Q", [writer._key for writer in chain.from_iterable(whose)])


def _send_together(runs: Runs, keys: array[int], ring: Ring) -> bool:
    """:returns: False where there is too much of it. Then nothing has been sent."""
    if sum(map(len, chain.from_iterable(map(_frames_of, runs)))) > ring.ROOM:
        return False
    whose = [*map(_recipients_of, runs)]
    blobs = [*map(b"".join, map(_frames_of, runs))]
    counts = [*map(len, whose)]
    left = ring.send(keys, blobs, counts)
    stats = next(chain.from_iterable(whose)).stats  # all of them belong to one server
    stats.sends += len(keys)
    stats.bytes_sent += sum(map(mul, counts, map(len, blobs)))
    if not left:
        return True
    everybody = [(one, blob) for recipients, blob in zip(whose, blobs, strict=True) for one in recipients]
    for position, sent in left.items():
        connection, blob = everybody[position]
        if connection._key == NOTHING:
            stats.sends -= 1  # what counts itself
            stats.bytes_sent -= len(blob)
            connection.send_frames(blob)
        elif sent < 0:
            connection._send_failed(OSError(-sent, os.strerror(-sent)), blob)
        else:
            connection._hold_back(blob, sent)
    return True


def _send_one_by_one(runs: Runs) -> None:
    sends = sent_bytes = 0
    connection = None
    for recipients, frames in runs:
        # not before the turn of this run: much of it, as when a whole shop arrives, need not be in memory at once
        blob = b"".join(frames)
        size = len(blob)
        if type(recipients) is Recipients:
            _send_to_many(recipients, blob)
            continue
        sends += len(recipients)
        sent_bytes += len(recipients) * size
        for connection in recipients:
            direct = connection._socket
            if direct is None or connection._deflated is not None:
                sends -= 1  # what counts itself
                sent_bytes -= size
                if direct is None:
                    connection.send_frames(blob)
                else:
                    connection._write(connection._deflated(blob))
                continue
            try:
                sent = direct.send(blob)
            except OSError as error:
                connection._send_failed(error, blob)
                continue
            if sent != size:
                connection._hold_back(blob, sent)
    if connection is not None:
        stats = connection.stats  # all of them belong to one server
        stats.sends += sends
        stats.bytes_sent += sent_bytes


def _send_to_many(recipients: Recipients[Any], blob: bytes) -> None:
    size = len(blob)
    left = iter(recipients.sockets())
    directly = 0
    for direct in left:
        if direct is None:
            recipients[-1 - length_hint(left)].send_frames(blob)  # counts itself
            continue
        directly += 1
        try:
            sent = direct.send(blob)
        except OSError as error:
            recipients[-1 - length_hint(left)]._send_failed(error, blob)
            continue
        if sent != size:
            recipients[-1 - length_hint(left)]._hold_back(blob, sent)
    if directly:
        stats = recipients[0].stats
        stats.sends += directly
        stats.bytes_sent += directly * size


def _regroup(runs: Runs) -> list[tuple[list[Writer], list[bytes]]]:
    """The same runs with each connection in one of them: with all that is its, in order."""
    pending: dict[Writer, list[bytes]] = {}
    for recipients, frames in runs:
        blob = b"".join(frames)
        for connection in recipients:
            if connection in pending:
                pending[connection].append(blob)
            else:
                pending[connection] = [blob]
    together: dict[tuple[int, ...], tuple[list[Writer], list[bytes]]] = {}
    for connection, blobs in pending.items():
        key = tuple(map(id, blobs))
        if key in together:
            together[key][0].append(connection)
        else:
            together[key] = ([connection], blobs)
    return list(together.values())
