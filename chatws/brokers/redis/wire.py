"""Bytes: of an event in the log, of a batch that goes through Pub/Sub, of what the append script answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from chatws.brokers.contract import Audience, Draft, Event
from chatws.ids import Id

__all__ = ["Batch", "Reply", "Stored", "decode_batch", "decode_reply", "decode_stored", "encode_drafts", "open_body"]


class _Body(msgspec.Struct, array_like=True, gc=False):
    name: str
    channels: tuple[str, ...]
    except_user_id: Id | None
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Body).decode


def encode_drafts(drafts: Sequence[Draft]) -> tuple[bytes, list[bytes]]:
    """What append.lua takes for the drafts: their kinds and sizes, and their bodies."""
    kinds = " ".join(f"{draft.transient + 2 * (draft.key is not None)}:{len(draft.data)}" for draft in drafts)
    bodies = [
        _encode(_Body(draft.name, draft.audience.channels, draft.audience.except_user_id, draft.data))
        for draft in drafts
    ]
    return kinds.encode(), bodies


def open_body(body: bytes | memoryview, offset: int, time: float) -> Event:
    """An event from its body."""
    found = _decode(body)
    return Event(offset, found.name, Audience(found.channels, found.except_user_id), found.data, time)


class Reply(msgspec.Struct, array_like=True, gc=False):
    """What append.lua made of a batch.

    :ivar seq: the batch's place among all batches; the last one's, when there were only duplicates.
    :ivar before: the log's last offset before it.
    :ivar more: whether there is more to trim.
    :ivar duplicates: index among the drafts, offset and time of the first, in turn.
    """

    seq: int
    before: int
    time: float
    more: bool
    duplicates: list[float]


_decode_reply = msgspec.json.Decoder(Reply | None).decode


def decode_reply(answer: bytes) -> Reply | None:
    """None: the log is another one than the caller knows."""
    reply: Reply | None = _decode_reply(answer)
    return reply


class _Header(msgspec.Struct, array_like=True, gc=False):
    epoch: str
    seq: int
    before: int
    time: float
    name: str
    places: list[int]


_decode_header = msgspec.json.Decoder(_Header).decode


class Batch:
    """A batch as Pub/Sub brings it.

    :ivar seq: its place among all batches; the last one's, for a greeting.
    :ivar before: the log's last offset before it, and :ivar last: after it.
    :ivar name: which the sender gave it.
    :ivar size: bytes.
    """

    __slots__ = ("_bodies", "_header", "before", "epoch", "last", "name", "seq", "size")

    def __init__(self, header: _Header, bodies: memoryview) -> None:
        self._header = header
        self._bodies = bodies
        self.epoch = header.epoch
        self.seq = header.seq
        self.before = header.before
        self.name = header.name
        self.last = header.before + sum(1 for offset in header.places[::2] if offset)
        self.size = len(bodies)

    @property
    def is_whole(self) -> bool:
        """Whether all bodies are in it; if not, those of stored events have to be read from the log."""
        return -1 not in self._header.places[1::2]

    def events(self, stored: dict[int, Event] | None = None) -> list[Event]:
        """
        :param stored: what was read from the log, by offset. What is not there has been trimmed, and is left out.
        """
        places, time, start = self._header.places, self._header.time, 0
        found: list[Event] = []
        for index in range(0, len(places), 2):
            offset, length = places[index], places[index + 1]
            if length >= 0:
                found.append(open_body(self._bodies[start : start + length], offset, time))
                start += length
            elif stored is not None and offset in stored:
                found.append(stored[offset])
        return found


def decode_batch(payload: bytes) -> Batch:
    """
    :raises ValueError: this is no batch.
    """
    end = payload.index(b"\n")
    return Batch(_decode_header(payload[:end]), memoryview(payload)[end + 1 :])


class Stored(NamedTuple):
    """An event as the log has it. `name`: of the batch it came with."""

    event: Event
    name: str


def decode_stored(offset: bytes, header: bytes, body: bytes) -> Stored:
    """An entry of what read.lua returns."""
    time, _, name = header.split(b" ")
    return Stored(open_body(body, int(offset), float(time)), name.decode())
