"""What the two ends of a relayed log say to each other: msgpack arrays that begin with a number for their kind.

A worker (chatws.brokers.relay) asks, each question with a number; the process that holds the log
(chatws.brokers.exchange) answers, in whatever order it can, and tells of events in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from chatws.brokers.contract import Draft, Event
from chatws.ids import Id

__all__ = [
    "Answer",
    "AskBounds",
    "AskOnline",
    "Begin",
    "Begun",
    "Events",
    "FirstAndLast",
    "Found",
    "Lease",
    "LeaseMade",
    "Online",
    "Publish",
    "Published",
    "Question",
    "Read",
    "Refused",
    "Reset",
    "answers",
    "encode",
    "questions",
]


class Begin(msgspec.Struct, array_like=True, tag=1):
    """Tell me of events from now on. Answered with `Begun`."""

    number: int


class Publish(msgspec.Struct, array_like=True, tag=2):
    """Answered with `Published`."""

    number: int
    drafts: Sequence[Draft]


class Read(msgspec.Struct, array_like=True, tag=3):
    """Answered with `Found`."""

    number: int
    after: int
    limit: int


class AskBounds(msgspec.Struct, array_like=True, tag=4):
    """Answered with `FirstAndLast`."""

    number: int


class Lease(msgspec.Struct, array_like=True, tag=5):
    """Answered with `LeaseMade`."""

    number: int
    node: str
    tabs: dict[Id, int | None]
    seconds: float


class AskOnline(msgspec.Struct, array_like=True, tag=6):
    """Answered with `Online`."""

    number: int


Question: TypeAlias = Begin | Publish | Read | AskBounds | Lease | AskOnline


class Begun(msgspec.Struct, array_like=True, tag=1):
    """All that comes after this follows the log's last event at this moment."""

    number: int
    epoch: str


class Published(msgspec.Struct, array_like=True, tag=2, omit_defaults=True):
    """The drafts that are no duplicates are the last `Events` before this, in their order.

    :ivar duplicates: (index of the draft, offset and time of the event that was first).
    """

    number: int
    duplicates: Sequence[tuple[int, int, float]] = ()


class Found(msgspec.Struct, array_like=True, tag=3):
    number: int
    events: list[Event]


class FirstAndLast(msgspec.Struct, array_like=True, tag=4):
    number: int
    first: int
    last: int


class LeaseMade(msgspec.Struct, array_like=True, tag=5):
    number: int
    changed: list[tuple[Id, bool]]
    held: int
    online: int


class Online(msgspec.Struct, array_like=True, tag=6):
    number: int
    users: list[Id]


class Refused(msgspec.Struct, array_like=True, tag=7):
    """The question cannot be answered now; the sentence is for people."""

    number: int
    reason: str


class Events(msgspec.Struct, array_like=True, tag=8):
    """New in the log."""

    events: list[Event]


class Reset(msgspec.Struct, array_like=True, tag=9):
    """The log has started anew."""

    epoch: str


Answer: TypeAlias = Begun | Published | Found | FirstAndLast | LeaseMade | Online | Refused

encode = msgspec.msgpack.Encoder().encode
questions = msgspec.msgpack.Decoder(Question)
answers = msgspec.msgpack.Decoder(
    Begun | Published | Found | FirstAndLast | LeaseMade | Online | Refused | Events | Reset
)
