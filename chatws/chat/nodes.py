"""What nodes tell each other: orders that go through the log like events, in order with them, and to no browser.

An order has the channel `NODES` as its audience, one of the names below, and JSON data. Orders that must reach a node
that is cut off at the moment are stored like any event, and carried out when it reads on; what has passed by then is
sent as a transient event. PostgreSQL's `chatws.revoke` and `chatws.disconnect` write the same orders.

Unknown names are left alone: during an upgrade newer nodes may say more than older ones understand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec
from msgspec.structs import replace
from twisted.logger import Logger

from chatws.brokers.contract import NODES, Audience, Draft, Event
from chatws.errors import ClientError
from chatws.ids import Id, parse_id

__all__ = ["Disconnect", "Order", "Status", "Unsubscribe", "order_of", "to_draft"]

log = Logger()

_TO_NODES = Audience((NODES,))


class Disconnect(msgspec.Struct, frozen=True, omit_defaults=True):
    """Close a user's connections. `sender`: the node that has done so already; empty for none."""

    user_id: Id
    reason: str = ""
    ban: bool = False
    sender: str = ""


class Unsubscribe(msgspec.Struct, frozen=True, omit_defaults=True):
    """Take a conversation away from a user's connections. `sender`: as above."""

    user_id: Id
    conversation_id: Id
    sender: str = ""


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """Agents that are now online, or no longer, on any node: the news that browsers get as `agent_status`."""

    online: Sequence[Id] = ()
    offline: Sequence[Id] = ()


Order: TypeAlias = Disconnect | Unsubscribe | Status

_NAMES: dict[str, type[Order]] = {"disconnect": Disconnect, "unsubscribe": Unsubscribe, "presence": Status}
_NAME_OF = {kind: name for name, kind in _NAMES.items()}
_DECODERS = {name: msgspec.json.Decoder(kind) for name, kind in _NAMES.items()}
_encode = msgspec.json.Encoder().encode


def to_draft(order: Order) -> Draft:
    """The order as it goes into the log."""
    return Draft(_NAME_OF[type(order)], _TO_NODES, _encode(order), transient=isinstance(order, Status))


def order_of(event: Event) -> Order | None:
    """The order in an event, or None for one that this version does not understand."""
    decoder = _DECODERS.get(event.name)
    if decoder is None:
        return None
    try:
        order = decoder.decode(event.data)
        # what comes out of a database may spell ids otherwise
        if not isinstance(order, Status):
            order = replace(order, user_id=parse_id(order.user_id, "user_id"))
        if isinstance(order, Unsubscribe):
            order = replace(order, conversation_id=parse_id(order.conversation_id, "conversation_id"))
        return order
    except (msgspec.ValidationError, msgspec.DecodeError, ClientError) as error:
        log.error("an order in the log cannot be understood: {reason}", reason=str(error))
        return None
