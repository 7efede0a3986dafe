"""Changes of presence, once per cluster, for components that report them (webhooks).

`ChatServer.presence_listeners` is a list of callables. Each is called with the changes of a batch, in order. A change
is passed to the listeners of one node only: the node whose report to the broker caused it. If a node dies, the node
that finds its lease expired passes on that its agents and contacts are offline. A reload within the grace is no change.

Listeners are called in the reactor's thread, return at once and do not raise. A change that happens while the broker is
unavailable is passed on when the broker is available again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TypeAlias

import msgspec

from chatws.ids import Id

__all__ = ["ONLINE", "ChangeKind", "PresenceChange", "PresenceListener"]

#: The status of an agent who has set none.
ONLINE = "online"


class ChangeKind(StrEnum):
    """The kinds of changes. The values are the names of the webhooks' events (docs/protocol.md)."""

    AGENT_ONLINE = "agent_online"
    AGENT_OFFLINE = "agent_offline"
    AGENT_STATUS = "agent_status"
    CONTACT_ONLINE = "contact_online"
    CONTACT_OFFLINE = "contact_offline"


class PresenceChange(msgspec.Struct, frozen=True):
    """A change of one agent, or of one contact in one conversation.

    :ivar id: the agent or the contact.
    :ivar time_ms: when it was detected, in milliseconds since 1970.
    :ivar status: of an agent that is online.
    :ivar conversation_id: of a contact.
    :ivar last_seen_ms: of an agent that is offline: when the last connection ended. If a node died, it is the latest
        time at which that node has renewed its lease, approximately.
    """

    kind: ChangeKind
    id: Id
    time_ms: int
    status: str = ONLINE
    conversation_id: Id | None = None
    last_seen_ms: int | None = None


#: Receives the changes of a batch.
PresenceListener: TypeAlias = Callable[[Sequence[PresenceChange]], None]
