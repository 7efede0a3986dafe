"""What a broker is: an ordered log of events that one can publish to, read on from, and be told of.

The terms are Centrifuge's. Each accepted event that can be recovered gets the next **offset** (1, 2, 3 …, without a
gap); the **epoch** names the log, and is a new one whenever the log starts anew, so that "EPOCH:OFFSET" never means
two events. Transient events pass through without an offset. docs/protocol.md §4 is what is built on this.

An engine is **shared** when several processes (nodes) may have the same log open at the same time: then each of them
publishes into it, and each is told of everything, in the same order. Beside the log every engine keeps **leases**:
which node has which users online, and until when that counts if the node says no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec
from twisted.internet.defer import Deferred

from chatws.ids import Id

__all__ = ["EVERYONE", "NODES", "Audience", "Bounds", "Broker", "Draft", "Event", "Leased", "Listener"]

#: The channel of every authenticated connection.
EVERYONE = "*"
#: The channel of what nodes tell each other (chatws.chat.nodes); no browser listens to it.
NODES = "#nodes"


class Audience(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Who gets an event: whoever listens to one of `channels`, less the connections of `except_user_id`.

    Channels are `EVERYONE`, `user:ID` and `conversation:ID` (see chatws.chat.audience), and `NODES`.
    """

    channels: tuple[str, ...]
    except_user_id: Id | None = None


class Draft(msgspec.Struct, frozen=True, gc=False, array_like=True, omit_defaults=True):
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


class Event(msgspec.Struct, gc=False, array_like=True, omit_defaults=True):
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
#: Seconds for which agents are waited for after a restart: browsers come back one after the other.
RESTART_GRACE = 10.0


class Bounds(msgspec.Struct, frozen=True):
    """How much is kept for recovery; the oldest goes first. 0 means no limit of that kind.

    Trimming happens with each publish that stores something. The limits on events and size then hold (a shared engine
    may trim seconds later, and keeps more until then); events past their age may go a few at a time, so that no publish
    pays for many. None goes while nothing is stored: a page that slept through a quiet night can still prove that it
    missed nothing.

    :ivar events: a number of events.
    :ivar seconds: an age.
    :ivar size: bytes of `data`.
    """

    events: int = 100_000
    seconds: float = 3600.0
    size: int = 64 * 1024 * 1024


class Leased(NamedTuple):
    """What a call of `Broker.lease` found.

    :ivar changed: the users for whom it changed whether any node has them, each with whether one has them now. Each
        change is reported once, to the node whose call brought it about.
    :ivar held: how many users this node holds now. Other than the caller believes: its leases had run out meanwhile.
    :ivar online: how many users are held by any node.
    """

    changed: list[tuple[Id, bool]]
    held: int
    online: int


class Listener(Protocol):
    """Who is told of new events: the chat server of this process."""

    def deliver(self, events: Sequence[Event]) -> None:
        """New events, in offset order, each exactly once, transient ones in between as they were published.

        The first one told of follows the log's last one at `start`. A gap in the offsets, which only a shared engine
        leaves, says that the events in between had been trimmed before they could be read.

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
    fired and after `stop` was called everything but `start` and `stop` fails with `Unavailable`. An engine that is
    reached over a network answers or fails within its time-out, reconnects by itself, and then tells of everything
    that was published meanwhile.

    :ivar shared: whether other processes may have the log open too.
    :ivar epoch: the log's epoch, set once `start` has fired. Up to 32 of `[0-9A-Za-z_-]`. It changes, just before
        `Listener.reset` is called, when a shared log started anew.
    """

    epoch: str
    shared: bool

    def start(self, listener: Listener) -> Deferred[None]:
        """Open the log. Fires when events can be published and read.

        :raises OperatorError: through the Deferred, when it cannot be opened.
        """
        ...

    def publish(self, drafts: Sequence[Draft]) -> Deferred[list[Event]]:
        """Store the drafts in this order and tell the listener, as one step.

        Fires with one event per draft, in the same order, after all are in the log and the listener of this process
        has been given those that are no duplicates, and all that came before them. Engines that need not wait return a
        Deferred that has already fired. Publishes that overlap keep their order.

        :raises Unavailable: through the Deferred, when the log cannot be reached. An engine in this process has then
            stored none of these drafts. A shared one may have stored all of them or none, when its answer was lost: to
            publish again with the same keys is safe, and the listener is told of what was stored in any case.
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

        `(last + 1, last)` when nothing is stored, so `(1, 0)` for a new log. A shared engine asks the log itself, so
        that this also tells whether it can be reached.

        :raises Unavailable: through the Deferred, when the log cannot be reached.
        """
        ...

    def lease(self, node: str, tabs: Mapping[Id, int | None], seconds: float) -> Deferred[Leased]:
        """Say that `node` lives, and what has changed on it; take away what belongs to nodes that have not said so.

        :param node: a name that no other process uses, of up to 64 of `[0-9A-Za-z_-]`.
        :param tabs: the users that have come to this node, or whose number of tabs has changed: that number (0 within
            the grace after the last one); None for those that have left it.
        :param seconds: for how long the node's users count from now on, unless it calls again. All of them count as
            gone with the first call of any node after that.
        :raises Unavailable: through the Deferred, when the leases cannot be reached. Changes may have been made.
        """
        ...

    def online(self) -> Deferred[list[Id]]:
        """The users held by any node whose lease has not run out, in no order.

        An engine that is not shared but outlives its process counts who was online when that ended as held for
        `RESTART_GRACE` from `start` on.

        :raises Unavailable: through the Deferred, when the leases cannot be reached.
        """
        ...

    def stop(self) -> Deferred[None]:
        """Let go of files and connections. What was published is stored. Idempotent."""
        ...
