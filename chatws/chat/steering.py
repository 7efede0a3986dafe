"""What backends, operators and other nodes do to browsers: send them away, or take a conversation from them.

An order for a user concerns their connections on every node: it is carried out here at once, and goes to the other
nodes through the log where that is shared (chatws.chat.nodes).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from twisted.internet.defer import Deferred, succeed

from chatws.brokers.contract import Broker, Draft
from chatws.chat import nodes
from chatws.chat.audience import user_channel
from chatws.chat.client import Client
from chatws.chat.effects import Close, Effect, Leave
from chatws.chat.gate import Gate
from chatws.chat.hub import Hub
from chatws.errors import CloseCode
from chatws.ids import Id
from chatws.server.component import Connection

__all__ = ["Steering"]

#: Seconds over which browsers are parted with that have to start over: they come back as evenly.
SPREAD = 5.0
#: Seconds between two batches of them.
TICK = 0.05


class Steering:
    """
    :param node: this node's name.
    :param carry_out: called with a client and the effects that its session has decided.
    :param clock: an IReactorTime.
    :ivar broker: where orders for other nodes go; to be set before anything is called.
    """

    broker: Broker

    def __init__(
        self,
        node: str,
        hub: Hub[Connection],
        gate: Gate,
        carry_out: Callable[[Client, list[Effect]], None],
        clock: Any,
    ) -> None:
        self._node = node
        self._hub = hub
        self._gate = gate
        self._carry_out = carry_out
        self._clock = clock
        self._parting: list[Any] = []

    def disconnect(self, user_id: Id, reason: str = "", ban: bool = False) -> Deferred[int]:
        """Close the user's connections; fires with how many they were on this node.

        :raises Unavailable: other nodes cannot be told. The connections of this one are closed.
        """
        return self._everywhere(
            self.disconnect_here(user_id, reason, ban), nodes.Disconnect(user_id, reason, ban, self._node)
        )

    def unsubscribe(self, user_id: Id, conversation_id: Id) -> Deferred[int]:
        """Take the conversation away from the user's connections; fires with how many had it on this node.

        :raises Unavailable: other nodes cannot be told. The connections of this one no longer have it.
        """
        return self._everywhere(
            self.unsubscribe_here(user_id, conversation_id), nodes.Unsubscribe(user_id, conversation_id, self._node)
        )

    def _everywhere(self, count: int, order: nodes.Order) -> Deferred[int]:
        if not self.broker.shared:
            return succeed(count)
        drafts: list[Draft] = [nodes.to_draft(order)]
        return self.broker.publish(drafts).addCallback(lambda events: count)

    def obey(self, order: nodes.Disconnect | nodes.Unsubscribe) -> None:
        """An order has come through the log: from another node or out of the database, or our own, carried out
        already."""
        if order.sender == self._node:
            return
        if isinstance(order, nodes.Disconnect):
            self.disconnect_here(order.user_id, order.reason, order.ban)
        else:
            self.unsubscribe_here(order.user_id, order.conversation_id)

    def disconnect_here(self, user_id: Id, reason: str, ban: bool) -> int:
        """Close the user's connections on this node, and tell how many they were."""
        found = self._clients_of(user_id)
        code = CloseCode.FORBIDDEN if ban else CloseCode.RECONNECT
        close = Close(code, reason or ("not allowed" if ban else "reconnect"))
        self._gate.send_away(user_id, close)
        for client in found:
            self._carry_out(client, client.session.close(*close))
        return len(found)

    def unsubscribe_here(self, user_id: Id, conversation_id: Id) -> int:
        """Take the conversation away from the user's connections on this node, and tell how many had it."""
        self._gate.take_away(user_id, conversation_id)
        had = 0
        for client in self._clients_of(user_id):
            effects = client.session.revoke(conversation_id)
            had += any(isinstance(effect, Leave) for effect in effects)
            self._carry_out(client, effects)
        return had

    def part_with(self, connections: Collection[Connection], reason: str) -> None:
        """Have these start over, because events are missing that they should have had: they get nothing more, and are
        closed (4000) one after the other. Their last ids are from before, so that they are told to `resync`."""
        waiting: list[tuple[Client, Effect]] = []
        for connection in list(connections):
            client: Client = connection.session
            effects = client.session.close(CloseCode.RECONNECT, reason)
            if effects:  # else it is closing already
                self._hub.remove(connection)
                self._carry_out(client, effects[:-1])
                waiting.append((client, effects[-1]))
        per_tick = -(-len(waiting) // round(SPREAD / TICK))

        def tick() -> None:
            batch = waiting[:per_tick]
            del waiting[:per_tick]
            if waiting:
                self._parting.append(self._clock.callLater(TICK, tick))
            for client, close in batch:
                self._carry_out(client, [close])

        self._parting = [call for call in self._parting if call.active()]
        tick()

    def stop(self) -> None:
        """Whoever was to be parted with is closed otherwise now."""
        for call in self._parting:
            if call.active():
                call.cancel()

    def connections_of(self, user_id: Id) -> list[Connection]:
        """The user's connections on this node, oldest first."""
        return sorted(self._hub.listeners(user_channel(user_id)), key=lambda one: one.resource_id)

    def _clients_of(self, user_id: Id) -> list[Client]:
        return [connection.session for connection in self._hub.listeners(user_channel(user_id))]
