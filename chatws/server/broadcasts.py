"""Events for many connections, sent in short steps (docs/adr/0022-large-work.md).

A broadcast has the recipients of one audience and the frames that are to be sent to them. A step sends to one chunk of
the recipients. Events for the same recipients that arrive meanwhile join the broadcast: each recipient gets all that
waits for it in one write.

Order: whatever is sent to a connection takes along what waits for it (`Broadcasts.take`), in one write and before it.
So a small event does not wait for a broadcast, and each connection gets its events in the order in which they came.
Frames are numbered, because a connection may be in several broadcasts.

Nothing is stored for a single recipient, unless it got its frames before its chunk was due (`_Broadcast.early`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence, Set
from operator import itemgetter
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatws.server.recipients import CHUNK, Recipients

__all__ = ["Broadcasts"]

log = Logger()

#: Bytes that one step sends at most, to several recipients: the kernel copies them in less than a millisecond.
STEP_BYTES = 1 << 20
#: Bytes to be sent above which publishers wait: some 50 ms of work, so that backends are not slowed down before the
#: server is busy.
MAX_BACKLOG = 64 << 20
#: Bytes of frames above which the server sends at once, because other nodes' events do not wait for this node.
MAX_FRAMES = 64 << 20
#: Broadcasts in progress. Every write looks into each of them.
MAX_BROADCASTS = 64

#: A frame's number, the frames of one delivery, and recipients of the broadcast that do not get them.
_Entry = tuple[int, bytes, Set[Any]]

_number_of, _frames_of, _excluded_of = itemgetter(0), itemgetter(1), itemgetter(2)


class _Broadcast:
    """Frames that are being sent to the same recipients.

    :ivar entries: the frames, in order.
    :ivar first: the index of the first of `entries` since the broadcast began. All indices count from there.
    :ivar sent: for each chunk of the recipients, the index of the first entry that it has not got.
    :ivar early: the same for connections that are ahead of their chunk.
    :ivar cursor: the chunk that is due. The chunks take turns.
    :ivar partly: how many connections of this chunk have had their turn, if it is sent in several steps.
    :ivar goal: the index up to which all of them have got the entries.
    :ivar size: bytes of `entries`.
    :ivar behind: number of chunks that have not got everything.
    """

    __slots__ = (
        "behind",
        "chunks",
        "cursor",
        "early",
        "entries",
        "first",
        "goal",
        "partly",
        "recipients",
        "sent",
        "size",
    )

    def __init__(self, recipients: Recipients[Any]) -> None:
        self.recipients = recipients
        self.chunks = recipients.chunks()
        self.entries: list[_Entry] = []
        self.first = 0
        self.sent = [0] * len(self.chunks)
        self.early: dict[Any, int] = {}
        self.cursor = self.partly = self.goal = self.behind = self.size = 0

    @property
    def end(self) -> int:
        """The index after the last entry."""
        return self.first + len(self.entries)

    def add(self, entry: _Entry) -> None:
        """Send an entry too."""
        self.entries.append(entry)
        self.size += len(entry[1])
        self.behind = len(self.chunks)

    def due(self) -> list[_Entry]:
        """Return the entries that the chunk that is due has not got, without those that came since its first step."""
        if not self.partly:
            self.goal = self.end
        return self.entries[self.sent[self.cursor] - self.first : self.goal - self.first]

    def take(self, connection: Any) -> list[_Entry]:
        """Return the entries that a connection has not got, and count them as sent."""
        position = self.recipients.positions().get(connection)
        if position is None:
            return []
        start = max(self.sent[position // CHUNK], self.early.get(connection, 0))
        if start == self.end:
            return []
        self.early[connection] = self.end
        return [entry for entry in self.entries[start - self.first :] if connection not in entry[2]]

    def advance(self) -> None:
        """Count the chunk that is due as sent. The next one is due."""
        self.sent[self.cursor] = self.goal
        self.behind -= self.goal == self.end
        self.partly = 0
        self.cursor += 1
        if self.cursor == len(self.chunks):
            self.cursor = 0
            first = min(self.sent)
            self.size -= sum(map(len, map(_frames_of, self.entries[: first - self.first])))
            del self.entries[: first - self.first]
            self.first = first


class Broadcasts:
    """The broadcasts in progress.

    :param send: sends groups of connections and frames at once.
    :param submit: runs a function in steps, until it returns False.
    :ivar active: the broadcasts in progress, by the identity of their recipients, in the order of their turns.
    :ivar unsent: bytes that are still to be sent.
    """

    def __init__(
        self,
        send: Callable[[Sequence[tuple[Collection[Any], Sequence[bytes]]]], None],
        submit: Callable[[Callable[[], bool]], object],
    ) -> None:
        self.active: dict[int, _Broadcast] = {}
        self.unsent = 0
        self._send = send
        self._submit = submit
        self._number = 0
        self._is_submitted = False
        self._waiting: list[Deferred[None]] = []

    def add(self, recipients: Collection[Any], frames: bytes, excluded: Set[Any] = frozenset()) -> None:
        """Send frames to connections in steps, which `start` begins.

        :param recipients: connections, each once. They may be closed.
        :param excluded: recipients that do not get these frames.
        """
        broadcast = self.active.get(id(recipients))
        if broadcast is None:
            while len(self.active) >= MAX_BROADCASTS:
                self._step()
            if not isinstance(recipients, Recipients):
                recipients = Recipients(recipients)
            broadcast = self.active[id(recipients)] = _Broadcast(recipients)
        self._number += 1
        broadcast.add((self._number, frames, excluded))
        self.unsent += len(frames) * len(recipients)
        while sum([broadcast.size for broadcast in self.active.values()]) > MAX_FRAMES:
            self._step()

    def start(self) -> None:
        """Begin to send what has been added."""
        if self.active and not self._is_submitted:
            self._is_submitted = True
            self._submit(self.step)

    def take(self, connections: Iterable[Any]) -> list[tuple[list[Any], list[bytes]]]:
        """Return what waits for connections, in order, and count it as sent. The caller sends it now.

        :returns: groups of connections, and the frames that each connection of the group gets.
        """
        groups: dict[tuple[int, ...], tuple[list[Any], list[bytes]]] = {}
        for connection in connections:
            entries = self._take(connection)
            if entries:
                key = tuple(map(_number_of, entries))
                if key in groups:
                    groups[key][0].append(connection)
                else:
                    groups[key] = ([connection], [*map(_frames_of, entries)])
        return list(groups.values())

    def take_frames(self, connection: Any) -> bytes:
        """Return what waits for a connection, and count it as sent. The caller sends it now, or drops it."""
        return b"".join(map(_frames_of, self._take(connection)))

    def _take(self, connection: Any) -> list[_Entry]:
        found = [entries for entries in [broadcast.take(connection) for broadcast in self.active.values()] if entries]
        if len(found) < 2:
            return found[0] if found else []
        return sorted([entry for entries in found for entry in entries], key=_number_of)

    def when_ready(self) -> Deferred[None] | None:
        """Return None if publishers may go on, and else a Deferred that fires when they may."""
        if self.unsent <= MAX_BACKLOG:
            return None
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def step(self) -> bool:
        """Send to some connections, and return whether more are to follow."""
        try:
            if self.active:  # else everything has been sent at once meanwhile
                self._step()
        except Exception:
            log.failure("a step of a broadcast failed")
        if self._waiting and self.unsent <= MAX_BACKLOG:
            waiting, self._waiting = self._waiting, []
            for deferred in waiting:
                deferred.callback(None)
        self._is_submitted = bool(self.active)
        return self._is_submitted

    def _step(self) -> None:
        """Send to the next chunk of the first broadcast, or to a part of it, and move the broadcast to the end."""
        key, broadcast = next(iter(self.active.items()))
        chunk, entries = broadcast.chunks[broadcast.cursor], broadcast.due()
        frames = [*map(_frames_of, entries)]
        size = sum(map(len, frames))
        start, end = broadcast.partly, len(chunk)
        groups: Sequence[tuple[Collection[Any], Sequence[bytes]]] = [(chunk, frames)]
        if start or end * size > STEP_BYTES or not self._is_alike(broadcast, chunk, entries):
            end = min(start + max(1, STEP_BYTES // max(size, 1)), end)
            groups = self.take(chunk[start:end])
        broadcast.partly = end
        if end == len(chunk):
            broadcast.advance()
            self.unsent -= size * len(chunk)
        del self.active[key]
        if broadcast.behind:
            self.active[key] = broadcast
        if groups:
            self._send(groups)

    def _is_alike(self, broadcast: _Broadcast, chunk: Recipients[Any], entries: list[_Entry]) -> bool:
        """Return whether all of a chunk's connections wait for exactly these entries."""
        early = broadcast.early
        return (
            (not early or early.keys().isdisjoint(chunk))
            and all(entry[2].isdisjoint(chunk) for entry in entries)
            and all(
                other is broadcast or other.recipients.positions().keys().isdisjoint(chunk)
                for other in self.active.values()
            )
        )
