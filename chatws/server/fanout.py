"""From one frame to many sockets. Hot path: column code.

- All frames for one audience that arrived together are joined once. Every socket gets the same `bytes`.
- If several audiences are addressed at once, each connection still gets one `send` with all its frames, in order. Equal
  sequences are joined once.
- From `IO_URING_MIN_SENDS` sends on, one system call asks the kernel for all of them (`chatws.server.io_uring`). That
  saves one system call and one Python call for each. Otherwise, or if the kernel permits no io_uring, each socket is
  sent to without its transport (`chatws.server.frame_writer` explains why). `os.write` on the descriptor would save
  0.1 µs of Python and cost more in the kernel, which looks up the file and its inode besides the socket.
- More than `MAX_SENDS_AT_ONCE` sends are a broadcast, which is sent in steps (chatws.server.broadcasts).
- A connection that negotiated compression gets compressed frames. They are compressed once for each window size.

Nothing here calls a component, so the recipients do not change while frames are being sent.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from operator import itemgetter, length_hint, mul
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatws.server.broadcasts import Broadcasts
from chatws.server.frame_writer import FrameWriter
from chatws.server.io_uring import NULL_KEY, Ring
from chatws.server.recipients import Recipients, RecipientsExcept, collect_keys

__all__ = ["IO_URING_MIN_SENDS", "FanOut"]

log = Logger()

#: Groups of connections, each with the frames that all its connections get.
DeliveryGroups: TypeAlias = Sequence[tuple[Collection[Any], Sequence[bytes]]]

#: From this many sends on, one `io_uring_enter` costs less than one `send` each (measured by benchmarks/several.py).
IO_URING_MIN_SENDS = 16

#: Sends in one turn of the reactor: some 2 ms of work. More are sent in steps.
MAX_SENDS_AT_ONCE = 400
#: Connections of a group that is sent at once even if the groups before it have been that many sends: a broadcast to
#: few connections would cost more than it saves.
MIN_BROADCAST = 32

_recipients_of, _frames_of = itemgetter(0), itemgetter(1)


class FanOut:
    """Sends frames to connections.

    :param submit: runs a function in steps, until it returns False. None: everything is sent at once.
    :ivar broadcasts: the broadcasts in progress, or None. `WsServer` needs them too.
    :ivar ring: submits many sends in one system call. None: one system call for each send.
    """

    def __init__(self, ring: Ring | None = None, submit: Callable[[Callable[[], bool]], object] | None = None) -> None:
        self.ring = ring
        self.broadcasts = None if submit is None else Broadcasts(self._send_now, submit)

    def use_io_uring(self) -> None:
        """Create a ring if the kernel permits it. Otherwise log why not."""
        try:
            self.ring = Ring()
        except OSError as error:
            log.info("io_uring is unavailable, each event is sent by one call: {reason}", reason=error.strerror)

    def when_ready(self) -> Deferred[None] | None:
        """Return None if publishers may go on, and else a Deferred that fires when they may."""
        return None if self.broadcasts is None else self.broadcasts.when_ready()

    def send_all(self, groups: DeliveryGroups) -> int:
        """Send each group's frames to each of its connections, in the order of the groups.

        :param groups: pairs of connections (`Recipients` if there are several) and complete frames (`text_frame`).
            Connections that are no longer open are skipped.
        :returns: number of connections that get their frames later, in steps.
        """
        if not all(map(_frames_of, groups)):
            groups = [group for group in groups if group[1]]
        total = sum(map(len, map(_recipients_of, groups)))
        broadcasts = self.broadcasts
        if broadcasts is not None:
            if total > MAX_SENDS_AT_ONCE:
                return self._send_in_steps(groups, broadcasts)
            if broadcasts.active:
                self._send_after_waiting(groups, broadcasts)
                return 0
        self._send_now(groups, total)
        return 0

    def _send_in_steps(self, groups: DeliveryGroups, broadcasts: Broadcasts) -> int:
        """Send what is short work at once, and the rest as broadcasts."""
        short: list[tuple[Collection[Any], Sequence[bytes]]] = []
        sends = later = 0
        for group in groups:
            recipients, frames = group
            count = len(recipients)
            if count < MIN_BROADCAST or sends + count <= MAX_SENDS_AT_ONCE:
                sends += count
                short.append(group)
                continue
            # a connection may be in both, in this order
            self._send_after_waiting(short, broadcasts)
            short = []
            payload = b"".join(frames)
            if isinstance(recipients, RecipientsExcept):
                broadcasts.add(recipients.recipients, payload, recipients.excluded)
            else:
                broadcasts.add(recipients, payload)
            later += count
        self._send_after_waiting(short, broadcasts)
        broadcasts.start()
        return later

    def _send_after_waiting(self, groups: DeliveryGroups, broadcasts: Broadcasts) -> None:
        """Send at once, in one write with what waits for the same connections."""
        if broadcasts.active:
            waiting = broadcasts.take(dict.fromkeys(chain.from_iterable(map(_recipients_of, groups))))
            groups = [*waiting, *groups]
        if groups:
            self._send_now(groups)

    def _send_now(self, groups: DeliveryGroups, total: int | None = None) -> None:
        """Send without regard to broadcasts.

        :param total: the sum of the groups' sizes.
        """
        if total is None:
            total = sum(map(len, map(_recipients_of, groups)))
        ring = self.ring
        if ring is not None and total >= IO_URING_MIN_SENDS:
            keys = _keys(groups)
            if len(groups) > 1 and len(set(keys)) != total and _overlap(groups, total):
                groups = _regroup(groups)
                keys = _keys(groups)
            if _send_batched(groups, keys, ring):
                if ring.error is not None:
                    log.warn(
                        "io_uring failed, each event is sent by one call from now on: {reason}", reason=str(ring.error)
                    )
                    self.ring = None
                return
        elif len(groups) > 1 and _overlap(groups, total):
            groups = _regroup(groups)
        _send_one_by_one(groups)


def _overlap(groups: DeliveryGroups, total: int) -> bool:
    """Return whether a connection is in two groups. Usually none is: conversations have few subscribers each.

    :param total: the sum of the groups' sizes.
    """
    return len(set().union(*map(_recipients_of, groups))) != total


def _keys(groups: DeliveryGroups) -> array[int]:
    """Return the `Ring` key of each connection of each group, in order."""
    recipient_lists: list[Any] = [*map(_recipients_of, groups)]
    if {*map(type, recipient_lists)} == {Recipients}:
        return array("Q", b"".join(collect_keys(recipient_lists)))
    return array("Q", [connection._key for connection in chain.from_iterable(recipient_lists)])


def _send_batched(groups: DeliveryGroups, keys: array[int], ring: Ring) -> bool:
    """Do what `_send_one_by_one` does, in one system call.

    :returns: False if there is too much data. Then nothing has been sent.
    """
    if sum(map(len, chain.from_iterable(map(_frames_of, groups)))) > ring.MAX_PAYLOAD:
        return False
    recipient_lists = [*map(_recipients_of, groups)]
    payloads = [*map(b"".join, map(_frames_of, groups))]
    counts = [*map(len, recipient_lists)]
    incomplete = ring.send(keys, payloads, counts)
    stats = next(chain.from_iterable(recipient_lists)).stats  # all connections belong to one server
    stats.sends += len(keys)
    stats.bytes_sent += sum(map(mul, counts, map(len, payloads)))
    if not incomplete:
        return True
    sends = [
        (connection, payload)
        for recipients, payload in zip(recipient_lists, payloads, strict=True)
        for connection in recipients
    ]
    for index, result in incomplete.items():
        connection, payload = sends[index]
        if connection._key == NULL_KEY:
            stats.sends -= 1  # `send_frames` counts it
            stats.bytes_sent -= len(payload)
            connection.send_frames(payload)
        elif result < 0:
            connection._on_send_error(OSError(-result, os.strerror(-result)), payload)
        else:
            connection._enqueue_rest(payload, result)
    return True


def _send_one_by_one(groups: DeliveryGroups) -> None:
    sends = sent_bytes = 0
    connection = None
    for recipients, frames in groups:
        # joined one group at a time: with thousands of groups not all payloads need memory at once
        payload = b"".join(frames)
        size = len(payload)
        if type(recipients) is Recipients:
            _send_to_many(recipients, payload)
            continue
        sends += len(recipients)
        sent_bytes += len(recipients) * size
        for connection in recipients:
            sock = connection._socket
            if sock is None or connection._compress is not None:
                sends -= 1  # `send_frames` and `_write` count it
                sent_bytes -= size
                if sock is None:
                    connection.send_frames(payload)
                else:
                    connection._write(connection._compress(payload))
                continue
            try:
                sent = sock.send(payload)
            except OSError as error:
                connection._on_send_error(error, payload)
                continue
            if sent != size:
                connection._enqueue_rest(payload, sent)
    if connection is not None:
        stats = connection.stats  # all connections belong to one server
        stats.sends += sends
        stats.bytes_sent += sent_bytes


def _send_to_many(recipients: Recipients[Any], payload: bytes) -> None:
    size = len(payload)
    sockets = iter(recipients.sockets())
    sends = 0
    for sock in sockets:
        # `recipients[-1 - length_hint(sockets)]` is the connection of `sock`: only failures need it
        if sock is None:
            recipients[-1 - length_hint(sockets)].send_frames(payload)  # counts itself
            continue
        sends += 1
        try:
            sent = sock.send(payload)
        except OSError as error:
            recipients[-1 - length_hint(sockets)]._on_send_error(error, payload)
            continue
        if sent != size:
            recipients[-1 - length_hint(sockets)]._enqueue_rest(payload, sent)
    if sends:
        stats = recipients[0].stats
        stats.sends += sends
        stats.bytes_sent += sends * size


def _regroup(groups: DeliveryGroups) -> list[tuple[list[FrameWriter], list[bytes]]]:
    """Return equal groups in which each connection occurs once, with all its payloads in order."""
    payloads_by_connection: dict[FrameWriter, list[bytes]] = {}
    for recipients, frames in groups:
        payload = b"".join(frames)
        for connection in recipients:
            if connection in payloads_by_connection:
                payloads_by_connection[connection].append(payload)
            else:
                payloads_by_connection[connection] = [payload]
    regrouped: dict[tuple[int, ...], tuple[list[FrameWriter], list[bytes]]] = {}
    for connection, payloads in payloads_by_connection.items():
        key = tuple(map(id, payloads))
        if key in regrouped:
            regrouped[key][0].append(connection)
        else:
            regrouped[key] = ([connection], payloads)
    return list(regrouped.values())
