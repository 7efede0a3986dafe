"""Encoding of events in the history, of batches in Pub/Sub, and of the append script's arguments and reply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from chatws.brokers.interface import KEY_SECONDS, Audience, Event, NewEvent
from chatws.ids import Id

__all__ = [
    "AppendReply",
    "PublishedBatch",
    "StoredEvent",
    "decode_batch",
    "decode_reply",
    "decode_stored",
    "encode_new_events",
    "open_body",
]


class _EventBody(msgspec.Struct, array_like=True, gc=False):
    name: str
    channels: tuple[str, ...]
    except_user_id: Id | None
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_EventBody).decode


def encode_new_events(new_events: Sequence[NewEvent]) -> tuple[bytes, list[bytes]]:
    """Return the arguments of append.lua for the new_events: their kinds and sizes, and their bodies."""
    kinds = " ".join(map(_kind, new_events))
    bodies = [
        _encode(
            _EventBody(new_event.name, new_event.audience.channels, new_event.audience.except_user_id, new_event.data)
        )
        for new_event in new_events
    ]
    return kinds.encode(), bodies


def _kind(new_event: NewEvent) -> str:
    kind = f"{new_event.transient + 2 * (new_event.key is not None)}:{len(new_event.data)}"
    extra = math.ceil(new_event.key_seconds - KEY_SECONDS)
    return f"{kind}:{extra}" if extra > 0 else kind


def open_body(body: bytes | memoryview, offset: int, time: float) -> Event:
    """Return the event that `body` encodes."""
    event = _decode(body)
    return Event(offset, event.name, Audience(event.channels, event.except_user_id), event.data, time)


class AppendReply(msgspec.Struct, array_like=True, gc=False):
    """The reply of append.lua to a batch.

    :ivar seq: number of the batch, or of the last batch if this one had only duplicates.
    :ivar before: last offset of the history before it.
    :ivar more: whether there is more to trim.
    :ivar duplicates: index among the new events, offset and time of the first, in turn.
    """

    seq: int
    before: int
    time: float
    more: bool
    duplicates: list[float]


_decode_reply = msgspec.json.Decoder(AppendReply | None).decode


def decode_reply(answer: bytes) -> AppendReply | None:
    """Decode the reply. None means that the history is not the one that the caller knows."""
    reply: AppendReply | None = _decode_reply(answer)
    return reply


class _Header(msgspec.Struct, array_like=True, gc=False):
    epoch: str
    seq: int
    before: int
    time: float
    name: str
    entries: list[int]  # offset and length of each event's body, in turn. -1: the body is only in the history


_decode_header = msgspec.json.Decoder(_Header).decode


class PublishedBatch:
    """A batch that arrived through Pub/Sub.

    :ivar seq: number of the batch. A sync marker has the number of the batch before it.
    :ivar before: last offset of the history before the batch.
    :ivar last: last offset after it.
    :ivar name: its id, given by the sender.
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
        self.last = header.before + sum(1 for offset in header.entries[::2] if offset)
        self.size = len(bodies)

    @property
    def is_whole(self) -> bool:
        """Whether it has all bodies. If not, those of stored events have to be read from the history."""
        return -1 not in self._header.entries[1::2]

    def events(self, stored: dict[int, Event] | None = None) -> list[Event]:
        """Return the events of the batch.

        :param stored: events read from the history, by offset. An event that is missing there was trimmed, and is left
            out.
        """
        entries, time, start = self._header.entries, self._header.time, 0
        events: list[Event] = []
        for index in range(0, len(entries), 2):
            offset, length = entries[index], entries[index + 1]
            if length >= 0:
                events.append(open_body(self._bodies[start : start + length], offset, time))
                start += length
            elif stored is not None and offset in stored:
                events.append(stored[offset])
        return events


def decode_batch(payload: bytes) -> PublishedBatch:
    """Decode a message of Pub/Sub.

    :raises ValueError: it is no batch.
    """
    end = payload.index(b"\n")
    return PublishedBatch(_decode_header(payload[:end]), memoryview(payload)[end + 1 :])


class StoredEvent(NamedTuple):
    """An event of the history. `name` is the id of the batch that it was appended with."""

    event: Event
    name: str


def decode_stored(offset: bytes, header: bytes, body: bytes) -> StoredEvent:
    """Decode one entry of the reply of read.lua."""
    time, _, name = header.split(b" ")
    return StoredEvent(open_body(body, int(offset), float(time)), name.decode())
