"""What a broker is: an ordered log of events that one can publish to, read on from, and be told of.

The terms are Centrifuge's. Each accepted event that can be recovered gets the next **offset** (1, 2, 3 …, without a
gap); the **epoch** names the log, and is a new one whenever the log starts anew, so that "EPOCH:OFFSET" never means
two events. Transient events pass through without an offset. docs/protocol.md §4 is what is built on this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec
from twisted.internet.defer import Deferred

from chatws.ids import Id

__all__ = ["EVERYONE", "Audience", "Bounds", "Broker", "Draft", "Event", "Listener"]

#: The channel of every authenticated connection.
EVERYONE = "*"


class Audience(NamedTuple):
    """Who gets an event: whoever listens to one of `channels`, less the connections of `except_user_id`.

    Channels are `EVERYONE`, `user:ID` and `conversation:ID` (see chatws.chat.audience).
    """

    channels: tuple[str, ...]
    except_user_id: Id | None = None


class Draft(msgspec.Struct, frozen=True, gc=False):
    """An event on its way into the log.

    :ivar data: the JSON object, UTF-8, as it will go out.
    :ivar key: idempotency key: within `KEY_SECONDS` a second draft with the same key is not published.
    :ivar transient: not kept for recovery, and without an offset.
    """

    name: str
    audience: Audience
    data: bytes
    key: str | None = None
    transient: bool = False


class Event(msgspec.Struct, gc=False):
    """An event that the log has accepted.

    :ivar offset: its place in the log, from 1; 0 for a transient event.
    :ivar time: when it was accepted, in seconds since 1970.
    :ivar duplicate: this is only the receipt for a draft whose key was known: `offset` and `time` are the first
        one's, and nothing was sent.
    :ivar delivered: to how many connections of this process it was handed; the listener sets it.
    """

    offset: int
    name: str
    audience: Audience
    data: bytes
    time: float
    duplicate: bool = False
    delivered: int = 0


#: For how many seconds an idempotency key is remembered (docs/protocol.md §3).
KEY_SECONDS = 600.0


class Bounds(msgspec.Struct, frozen=True):
    """How much is kept for recovery; the oldest goes first. 0 means no limit of that kind.

    Trimming happens with each publish that stores something. The limits on events and size then hold; events past
    their age may go a few at a time, so that no publish pays for many. None goes while nothing is stored: a page that
    slept through a quiet night can still prove that it missed nothing.

    :ivar events: a number of events.
    :ivar seconds: an age.
    :ivar size: bytes of `data`.
    """

    events: int = 100_000
    seconds: float = 3600.0
    size: int = 64 * 1024 * 1024


class Listener(Protocol):
    """Who is told of new events: the chat server of this process."""

    def deliver(self, events: Sequence[Event]) -> None:
        """New events, in offset order, each exactly once, transient ones in between as they were published.

        Sets `delivered`. Should not raise: what it raises is logged by the broker, and the events count as told. May
        call `publish`, whose Deferred then fires later: that batch is told of when this one has been dealt with.
        """
        ...

    def reset(self, epoch: str) -> None:
        """The log started anew under the broker's feet: what was kept of the old one is worth nothing now."""
        ...


class Broker(Protocol):
    """An engine. One instance serves one process, and is started once.

    Nothing but a programming error raises directly: every failure comes through the Deferred. Before `start` has
    fired and after `stop` was called everything but `start` and `stop` fails with `Unavailable`.

    :ivar epoch: the log's epoch, set once `start` has fired. Up to 32 of `[0-9A-Za-z_-]`.
    """

    epoch: str

    def start(self, listener: Listener) -> Deferred[None]:
        """Open the log. Fires when events can be published and read.

        :raises OperatorError: through the Deferred, when it cannot be opened.
        """
        ...

    def publish(self, drafts: Sequence[Draft]) -> Deferred[list[Event]]:
        """Store the drafts in this order and tell the listener, as one step.

        Fires with one event per draft, in the same order, after all are in the log and the listener of this process
        has been given those that are no duplicates. Engines that need not wait return a Deferred that has already
        fired.

        :raises Unavailable: through the Deferred, when the log cannot be reached. Then none of these drafts
            counts as accepted, and the listener is told of none.
        """
        ...

    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        """Up to `limit` events with offsets above `after`, in order, from the oldest stored on.

        Fewer than `limit` only at the log's end. A first offset above `after + 1` says that events have gone.

        :raises Unavailable: through the Deferred, when the log cannot be reached.
        """
        ...

    def bounds(self) -> Deferred[tuple[int, int]]:
        """`(first, last)`: the smallest offset still stored and the largest ever given out.

        `(last + 1, last)` when nothing is stored, so `(1, 0)` for a new log.
        """
        ...

    def note_presence(self, news: Sequence[tuple[Id, bool]]) -> None:
        """Remember which users are online (True) or no longer, for a process that starts when this one has ended.

        Returns at once and never raises: it is kept as well as can be, and nothing is acknowledged for it.
        """
        ...

    def online(self) -> Deferred[list[Id]]:
        """The users that `note_presence` left online, in no order. Empty where the engine does not outlive a process.

        :raises Unavailable: through the Deferred, when it cannot be read.
        """
        ...

    def stop(self) -> Deferred[None]:
        """Let go of files and connections. What was published is stored. Idempotent."""
        ...
