"""Commands between nodes. They pass through the broker in order with the events, and no client receives them.

A command is an event with the channel `NODES` as its audience, one of the names below, and JSON data. Commands that a
node must execute even after a lost connection are stored like any event. Presence updates are transient. PostgreSQL's
`chatws.revoke` and `chatws.disconnect` write the same commands.

Unknown names are ignored: during an upgrade newer nodes may send commands that older nodes do not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec
from msgspec.structs import replace
from twisted.logger import Logger

from chatws.brokers.interface import NODES, Audience, Event, NewEvent
from chatws.errors import ClientError
from chatws.ids import Id, parse_id

__all__ = [
    "PRESENCE_COMMANDS",
    "ClusterCommand",
    "ContactUpdate",
    "DisconnectCommand",
    "DisconnectContactCommand",
    "GroupsCommand",
    "HeartbeatRow",
    "HeartbeatUpdate",
    "NodeCommand",
    "NodeInfo",
    "PresenceCommand",
    "PresenceUpdate",
    "RebalanceCommand",
    "StatusUpdate",
    "UnsubscribeCommand",
    "UnsubscribeContactCommand",
    "UserCommand",
    "decode_command",
    "to_new_event",
]

log = Logger()

_NODES_AUDIENCE = Audience((NODES,))


class DisconnectCommand(msgspec.Struct, frozen=True, omit_defaults=True):
    """Close a user's connections.

    :ivar sender: the node that has applied the command already; empty if none has.
    """

    user_id: Id
    reason: str = ""
    ban: bool = False
    sender: str = ""


class UnsubscribeCommand(msgspec.Struct, frozen=True, omit_defaults=True):
    """End the subscriptions of a user's connections to a conversation.

    :ivar sender: the node that has applied the command already; empty if none has.
    """

    user_id: Id
    conversation_id: Id
    sender: str = ""


class DisconnectContactCommand(msgspec.Struct, frozen=True, omit_defaults=True):
    """Close a contact's connections. Has a name of its own: older nodes must not disconnect an agent with that id."""

    contact_id: Id
    reason: str = ""
    ban: bool = False
    sender: str = ""


class UnsubscribeContactCommand(msgspec.Struct, frozen=True, omit_defaults=True):
    """End the subscriptions of a contact's connections to a conversation."""

    contact_id: Id
    conversation_id: Id
    sender: str = ""


class GroupsCommand(msgspec.Struct, frozen=True, omit_defaults=True):
    """Replace the groups of an agent's connections."""

    user_id: Id
    groups: tuple[str, ...]
    sender: str = ""


class PresenceUpdate(msgspec.Struct, frozen=True, omit_defaults=True):
    """Agents that have come online or gone offline on any node.

    :ivar announce: each node tells its agents by `agent_status`. If False, such events follow for all nodes.
    """

    online: Sequence[Id] = ()
    offline: Sequence[Id] = ()
    announce: bool = False


class StatusUpdate(msgspec.Struct, frozen=True, omit_defaults=True):
    """An agent's status that has been set. Each node tells its agents, if it is a new one.

    :ivar connection_id: the connection that has set it, which is not told; empty for none.
    """

    user_id: Id
    status: str
    connection_id: str = ""


class ContactUpdate(msgspec.Struct, frozen=True, omit_defaults=True):
    """Contacts that have come online or gone offline. Each node tells the agents subscribed to their conversations.

    :ivar online: members of `CONTACT_SPACE`.
    :ivar offline: the same.
    :ivar since_ms: the time of the change.
    """

    online: Sequence[str] = ()
    offline: Sequence[str] = ()
    since_ms: int = 0


#: An agent of a `HeartbeatUpdate`.
HeartbeatRow: TypeAlias = tuple[Id, int, int, int]


class HeartbeatUpdate(msgspec.Struct, frozen=True):
    """What a node knows of its agents, for webhooks.

    :ivar agents: of each agent the id, when it was last active, when that was told, and when it was last connected, in
        milliseconds since 1970.
    """

    agents: Sequence[HeartbeatRow]


class NodeInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node announces of itself.

    :ivar id: the beginning of the ids of its connections, new for each process.
    :ivar name: the name of the node for people.
    :ivar address: of its WebSocket listeners.
    :ivar connections: its open WebSockets.
    :ivar uptime: seconds since its start.
    :ivar lag: the latest delay of its event loop, in seconds.
    :ivar offset: the last offset that it has read.
    :ivar is_draining: it accepts no WebSockets.
    :ivar settings: what must be equal on all nodes, as texts.
    :ivar is_leaving: the node ends.
    """

    id: str
    name: str
    address: str = ""
    version: str = ""
    connections: int = 0
    uptime: float = 0.0
    lag: float = 0.0
    offset: int = 0
    is_draining: bool = False
    settings: Mapping[str, str] = {}
    is_leaving: bool = False


class RebalanceCommand(msgspec.Struct, frozen=True, omit_defaults=True):
    """Close connections of one node, whose clients connect again.

    :ivar node: the id of the node.
    :ivar count: connections to close.
    :ivar seconds: the time over which they are closed.
    :ivar drain: whether the node accepts no more WebSockets from now on.
    """

    node: str
    count: int = 0
    seconds: float = 0.0
    drain: bool = False


#: A command that concerns the connections of one agent or contact.
UserCommand: TypeAlias = (
    DisconnectCommand | UnsubscribeCommand | DisconnectContactCommand | UnsubscribeContactCommand | GroupsCommand
)
#: Transient commands about presence. The broker's leases and data of members have the same state.
PresenceCommand: TypeAlias = PresenceUpdate | StatusUpdate | ContactUpdate
#: A command about nodes.
NodeCommand: TypeAlias = NodeInfo | RebalanceCommand
ClusterCommand: TypeAlias = UserCommand | PresenceCommand | HeartbeatUpdate | NodeCommand

PRESENCE_COMMANDS = (PresenceUpdate, StatusUpdate, ContactUpdate)

_COMMAND_TYPES: dict[str, type[ClusterCommand]] = {
    "disconnect": DisconnectCommand,
    "unsubscribe": UnsubscribeCommand,
    "disconnect_contact": DisconnectContactCommand,
    "unsubscribe_contact": UnsubscribeContactCommand,
    "groups": GroupsCommand,
    "presence": PresenceUpdate,
    "heartbeats": HeartbeatUpdate,
    "status": StatusUpdate,
    "contact_presence": ContactUpdate,
    "node": NodeInfo,
    "rebalance": RebalanceCommand,
}
_NAMES = {command_type: name for name, command_type in _COMMAND_TYPES.items()}
_DECODERS = {name: msgspec.json.Decoder(command_type) for name, command_type in _COMMAND_TYPES.items()}
_encode = msgspec.json.Encoder().encode


def to_new_event(command: ClusterCommand) -> NewEvent:
    """Return the event that carries a command."""
    transient = isinstance(command, (*PRESENCE_COMMANDS, HeartbeatUpdate, NodeInfo, RebalanceCommand))
    return NewEvent(_NAMES[type(command)], _NODES_AUDIENCE, _encode(command), transient=transient)


def decode_command(event: Event) -> ClusterCommand | None:
    """Return the command in an event, or None if this version does not know its name or cannot decode it."""
    decoder = _DECODERS.get(event.name)
    if decoder is None:
        return None
    try:
        command = decoder.decode(event.data)
        # SQL functions write ids as their callers do: 456 or "456".
        for field in ("user_id", "contact_id", "conversation_id"):
            id = getattr(command, field, None)
            if id is not None:
                command = replace(command, **{field: parse_id(id, field)})
        return command
    except (msgspec.ValidationError, msgspec.DecodeError, ClientError) as error:
        log.error("Ignoring invalid cluster command {event}: {reason}", event=event.name, reason=str(error))
        return None
