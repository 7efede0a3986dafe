"""The contract of brokers: an ordered history of events that nodes publish to, read from and receive from.

The terms are Centrifuge's. Each accepted event that can be recovered gets the next **offset** (1, 2, 3 …, without a
gap). The **epoch** names the history. A history that is reset gets a new epoch, so "EPOCH:OFFSET" never means two
events. Transient events pass through without an offset. docs/protocol.md §4 builds on this.

An engine is **shared** when several processes (nodes) may have the same history open. Each of them publishes into it,
and each receives every event, in the same order.

Every engine also keeps presence, apart from the history. A **space** is a set of members: the agents online, or the
contacts in conversations. Each node holds a **lease** of the members that it serves. They count as offline if the node
does not renew it in time. A member may have data that outlives the leases. Spaces are independent of each other. A node
of a version that does not know a space neither reads nor renews it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec
from twisted.internet.defer import Deferred

from chatws.brokers.webhook_queue import NewWebhook, WebhookReply, WebhookRequest
from chatws.ids import Id

__all__ = [
    "AGENTS",
    "AGENT_SPACE",
    "CONTACTS",
    "CONTACT_SPACE",
    "EXCLUDE",
    "MAX_MEMBER_DATA",
    "NODES",
    "Audience",
    "Broker",
    "Event",
    "EventHandler",
    "LeaseResult",
    "MemberData",
    "NewEvent",
    "Retention",
]

#: The channel of all agents. Nodes of versions without contacts read it as all authenticated connections.
AGENTS = "*"
#: The channel of all contacts.
CONTACTS = "#contacts"
#: Begins the name of a channel whose connections do not get the event.
EXCLUDE = "!"
#: The channel of commands between nodes (chatws.chat.cluster_commands). No client receives it.
NODES = "#nodes"
#: Seconds for which an idempotency key is remembered (docs/protocol.md §3).
KEY_SECONDS = 600.0
#: The space of the agents online. Nodes of every version hold a lease of it.
AGENT_SPACE = "agents"
#: The space of the contacts that are subscribed to a conversation. Nodes that know contacts hold a lease of it.
CONTACT_SPACE = "contacts"
#: Bytes of a member's data: bounds what an engine stores for each member.
MAX_MEMBER_DATA = 1024


class Audience(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The recipients of an event: the subscribers of `channels`, without the connections of agent `except_user_id`.

    Channels are `AGENTS`, `CONTACTS`, `NODES`, and those of chatws.chat.audience such as `user:ID`. One that begins
    with `EXCLUDE` names connections that do not get the event. Nodes that do not know it find no subscribers for it.
    """

    channels: tuple[str, ...]
    except_user_id: Id | None = None


class NewEvent(msgspec.Struct, frozen=True, gc=False, array_like=True, omit_defaults=True):
    """An event to be published.

    :ivar data: the JSON object, UTF-8, as it will be delivered.
    :ivar key: idempotency key: within `key_seconds` a second event with the same key is not published.
    :ivar transient: not kept for recovery, and without an offset.
    :ivar key_seconds: at least `KEY_SECONDS`.
    """

    name: str
    audience: Audience
    data: bytes
    key: str | None = None
    transient: bool = False
    key_seconds: float = KEY_SECONDS


class Event(msgspec.Struct, gc=False, array_like=True, omit_defaults=True):
    """An event that the history has accepted.

    :ivar offset: its number in the history, from 1. 0 for a transient event.
    :ivar time: when it was accepted, in seconds since 1970.
    :ivar duplicate: the receipt for a new event whose key was known. `offset` and `time` are those of the first event,
        and nothing was delivered.
    :ivar delivered: number of connections of this process that it was sent to. The event handler sets it.
    """

    offset: int
    name: str
    audience: Audience
    data: bytes
    time: float
    duplicate: bool = False
    delivered: int = 0


#: Seconds for which agents count as online after a restart, because their browsers reconnect one after the other.
RESTART_GRACE = 10.0


class Retention(msgspec.Struct, frozen=True):
    """Limits of what is kept for recovery. The oldest events are dropped first. 0 means no limit of that kind.

    Each publish that stores an event trims. The limits on events and size hold after it. A shared engine may trim
    seconds later, and keeps more until then. Events past their age may be dropped a few at a time, to bound the cost of
    a publish. Nothing is dropped while nothing is stored: after a quiet night a page can still prove that it missed
    nothing.

    :ivar events: a number of events.
    :ivar seconds: an age.
    :ivar size: bytes of `data`.
    """

    events: int = 100_000
    seconds: float = 3600.0
    size: int = 64 * 1024 * 1024


class LeaseResult(NamedTuple):
    """The result of `Broker.lease`.

    :ivar changed: members that came online or went offline on the whole, each with whether it is online now. Each
        change is reported once, to the node whose call caused it.
    :ivar held: number of members that this node holds now. It differs from the caller's if the lease had expired.
    :ivar online: number of members that any node holds.
    """

    changed: list[tuple[Id, bool]]
    held: int
    online: int


class MemberData(NamedTuple):
    """A member's data.

    :ivar data: text of up to `MAX_MEMBER_DATA` bytes in UTF-8.
    :ivar expires_at: seconds since 1970.
    """

    data: str
    expires_at: float


class EventHandler(Protocol):
    """Receives new events: the chat server of this process."""

    def deliver(self, events: Sequence[Event]) -> None:
        """Handle new events: in offset order, each exactly once, transient ones in between as they were published.

        The first event follows the last one of the history at `start`. A gap in the offsets, which only a shared engine
        leaves, means that the events in between were trimmed before this node could read them.

        Sets `delivered`. Should not raise: the broker logs an exception and counts the events as delivered. May call
        `publish`, whose Deferred then fires later: that batch is delivered after the present one.
        """
        ...

    def reset(self, epoch: str) -> None:
        """Forget the events of the previous epoch: the history was reset, and `epoch` begins."""
        ...


class Broker(Protocol):
    """An engine. One instance serves one process, and is started once.

    Every failure but a programming error comes through the Deferred. Before `start` has fired and after `stop` was
    called, everything but `start` and `stop` fails with `Unavailable`. An engine that is reached over a network
    responds or fails within its time-out, reconnects by itself, and then delivers everything that was published
    meanwhile.

    :ivar shared: whether other processes may have the history open, too.
    :ivar epoch: of the history, set once `start` has fired. Up to 32 of `[0-9A-Za-z_-]`. It changes, just before
        `EventHandler.reset` is called, when a shared history was reset.
    """

    @property
    def epoch(self) -> str: ...

    @property
    def shared(self) -> bool: ...

    def start(self, listener: EventHandler) -> Deferred[None]:
        """Open the history. Fires when events can be published and read.

        :param listener: receives all events from now on.
        :raises ConfigError: through the Deferred: the history cannot be opened.
        """
        ...

    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        """Store new events in this order, and deliver them to the event handler, as one step.

        Fires with one event per new event, in the same order. By then all are stored, and the event handler of this
        process has received those that are no duplicates, and all events before them. Engines that need not wait return
        a Deferred that has fired. Publishes that overlap keep their order.

        :raises Unavailable: through the Deferred: the history is unavailable. An engine in this process has then stored
            none of the new events. A shared engine may have stored all of them or none, if its reply was lost. To
            publish again with the same keys is safe, and the event handler receives what was stored in any case.
        """
        ...

    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        """Return up to `limit` events with offsets above `after`, in order, from the oldest stored one on.

        Fewer than `limit` only at the end of the history. A first offset above `after + 1` means that events were
        dropped.

        :raises Unavailable: through the Deferred: the history is unavailable.
        """
        ...

    def offset_range(self) -> Deferred[tuple[int, int]]:
        """Return `(first, last)`: the smallest offset still stored and the largest ever assigned.

        `(last + 1, last)` when nothing is stored, so `(1, 0)` for a new history. A shared engine asks its server, so
        this also shows whether the server is available.

        :raises Unavailable: through the Deferred: the history is unavailable.
        """
        ...

    def lease(
        self,
        node: str,
        connection_counts: Mapping[Id, int | None],
        seconds: float,
        space: str = AGENT_SPACE,
    ) -> Deferred[LeaseResult]:
        """Renew the lease of `node`, store its changes, and remove the members of nodes whose lease has expired.

        The cost depends on the changes, and not on the number of members.

        If webhooks are configured, the changes are also appended to the queue of webhooks, in the same step.

        :param node: a name that no other process uses, of up to 64 of `[0-9A-Za-z_-]`.
        :param connection_counts: the members that came to this node or whose number of connections changed, with that
            number (0 within the grace after the last one), and None for members that left.
        :param seconds: how long the node's members count from now on, unless it calls again. The first call of any node
            after that removes them.
        :param space: of up to 32 of `[0-9A-Za-z_-]`.
        :raises Unavailable: through the Deferred: the leases are unavailable. Changes may have been made.
        """
        ...

    def online(self, space: str = AGENT_SPACE) -> Deferred[list[Id]]:
        """Return the members held by any node whose lease has not expired, in no order.

        An engine that is not shared but survives its process counts the members that were online at its end as held
        for `RESTART_GRACE` from `start` on.

        :raises Unavailable: through the Deferred: the leases are unavailable.
        """
        ...

    def add_webhooks(self, webhooks: Sequence[NewWebhook], *, reset: bool = False) -> Deferred[None]:
        """Append events to the queue of webhooks.

        :param reset: the receiver is also to get the whole state (`presence_reset`).
        :raises Unavailable: through the Deferred: the queue is unavailable.
        """
        ...

    def exchange_webhooks(self, request: WebhookRequest) -> Deferred[WebhookReply]:
        """Remove what the receiver has acknowledged, become or remain the sender, and return what comes next.

        :raises Unavailable: through the Deferred: the queue is unavailable, or webhooks are not configured.
        """
        ...

    def nodes_without(self, space: str) -> Deferred[list[str]]:
        """Return the nodes that hold a lease of `AGENT_SPACE` and none of `space`: those of earlier versions.

        :raises Unavailable: through the Deferred: the leases are unavailable.
        """
        ...

    def set_data(self, space: str, member: Id, data: str | None, seconds: float) -> Deferred[bool]:
        """Store a member's data, also of one that is offline.

        :param data: text of up to `MAX_MEMBER_DATA` bytes in UTF-8, or None to remove it.
        :param seconds: how long it is kept, unless it is stored again.
        :return: whether the data was another one before. Of several nodes that store the same, one gets True.
        :raises Unavailable: through the Deferred: the data is unavailable. It may have been stored.
        """
        ...

    def data(self, space: str) -> Deferred[dict[Id, MemberData]]:
        """Return the data of all members that have some, unless it has expired.

        :raises Unavailable: through the Deferred: the data is unavailable.
        """
        ...

    def stop(self) -> Deferred[None]:
        """Close files and connections. What was published is stored. Idempotent."""
        ...
