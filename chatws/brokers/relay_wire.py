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


class _Numbered(msgspec.Struct, array_like=True):
    """A question, or the answer to the question of that number."""

    number: int


class Begin(_Numbered, tag=1):
    """Tell me of events from now on. Answered with `Begun`."""


class Publish(_Numbered, tag=2):
    """Answered with `Published`."""

    drafts: Sequence[Draft]


class Read(_Numbered, tag=3):
    """Answered with `Found`."""

    after: int
    limit: int


class AskBounds(_Numbered, tag=4):
    """Answered with `FirstAndLast`."""


class Lease(_Numbered, tag=5):
    """Answered with `LeaseMade`."""

    node: str
    tabs: dict[Id, int | None]
    seconds: float


class AskOnline(_Numbered, tag=6):
    """Answered with `Online`."""


Question: TypeAlias = Begin | Publish | Read | AskBounds | Lease | AskOnline


class Begun(_Numbered, tag=1):
    """All that comes after this follows the log's last event at this moment."""

    epoch: str


class Published(_Numbered, tag=2, omit_defaults=True):
    """The drafts that are no duplicates are the last `Events` before this, in their order.

    :ivar duplicates: (index of the draft, offset and time of the event that was first).
    """

    duplicates: Sequence[tuple[int, int, float]] = ()


class Found(_Numbered, tag=3):
    events: list[Event]


class FirstAndLast(_Numbered, tag=4):
    first: int
    last: int


class LeaseMade(_Numbered, tag=5):
    changed: list[tuple[Id, bool]]
    held: int
    online: int


class Online(_Numbered, tag=6):
    users: list[Id]


class Refused(_Numbered, tag=7):
    """The question cannot be answered now; the sentence is for people."""

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
