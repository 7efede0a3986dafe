"""Disconnect users, end subscriptions and force clients to resync, for backends, operators and other nodes.

A command for a user concerns the user's connections on every node. This node applies it at once. If the broker is
shared, it also publishes the command to the other nodes (chatws.chat.cluster_commands).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from twisted.internet.defer import Deferred, succeed

from chatws.brokers.interface import Broker, NewEvent
from chatws.chat import cluster_commands
from chatws.chat.actions import Action, Close, RemoveSubscription
from chatws.chat.audience import contact_channel, user_channel
from chatws.chat.auth_flow import AuthFlow
from chatws.chat.client import Client
from chatws.chat.contacts import ContactDelivery
from chatws.chat.hub import Hub
from chatws.errors import CloseCode
from chatws.ids import Id
from chatws.interfaces import Clock, TimerHandle
from chatws.server.component import Connection

__all__ = ["RESYNC_SPREAD", "ConnectionAdmin"]

#: Seconds over which connections are closed in a forced resync. Their clients reconnect at the same pace, which
#: limits 5,000 connections to a thousand handshakes and queries a second.
RESYNC_SPREAD = 5.0
#: Seconds between two batches of them: 100 batches, each short enough not to delay other connections.
RESYNC_INTERVAL = 0.05


class ConnectionAdmin:
    """Applies commands to the connections of this node, and publishes them to the other nodes.

    :param node: this node's name.
    :param hub: finds an agent's connections.
    :param contacts: has the connections of contacts; None if contacts are off.
    :param execute: executes the actions of a client's session.
    :param entering: returns the authenticated clients of a user that are not in the hub yet.
    :param clock: schedules the batches of a forced resync.
    :ivar broker: publishes commands for other nodes. Must be set before any method is called.
    """

    broker: Broker

    def __init__(
        self,
        node: str,
        hub: Hub[Connection],
        contacts: ContactDelivery | None,
        auth_flow: AuthFlow,
        execute: Callable[[Client, list[Action]], None],
        entering: Callable[[Id, bool], list[Client]],
        clock: Clock,
    ) -> None:
        self._node = node
        self._hub = hub
        self._contacts = contacts
        self._auth_flow = auth_flow
        self._execute = execute
        self._entering = entering
        self._clock = clock
        self._resync_timers: list[TimerHandle] = []

    def disconnect(
        self, user_id: Id, reason: str = "", ban: bool = False, *, is_contact: bool = False
    ) -> Deferred[int]:
        """Close the connections of an agent or a contact on all nodes.

        :param reason: the reason in the close frame; a default one if empty.
        :param ban: close with 4903, after which clients do not reconnect, and not with 4000.
        :return: fires with the number of connections closed on this node.
        :raises Unavailable: The other nodes cannot be reached. This node's connections are closed.
        """
        count = self.disconnect_local(user_id, reason, ban, is_contact)
        if is_contact:
            return self._publish(count, cluster_commands.DisconnectContactCommand(user_id, reason, ban, self._node))
        return self._publish(count, cluster_commands.DisconnectCommand(user_id, reason, ban, self._node))

    def unsubscribe(self, user_id: Id, conversation_id: Id, *, is_contact: bool = False) -> Deferred[int]:
        """End the subscriptions of an agent's or a contact's connections to a conversation, on all nodes.

        :return: fires with the number of subscriptions ended on this node.
        :raises Unavailable: The other nodes cannot be reached. This node's subscriptions are ended.
        """
        count = self.unsubscribe_local(user_id, conversation_id, is_contact)
        command_type = cluster_commands.UnsubscribeContactCommand if is_contact else cluster_commands.UnsubscribeCommand
        return self._publish(count, command_type(user_id, conversation_id, self._node))

    def set_groups(self, user_id: Id, groups: tuple[str, ...]) -> Deferred[int]:
        """Replace the groups of the agent's connections on all nodes, and check the agent's subscriptions again.

        :return: fires with the number of connections on this node.
        :raises Unavailable: The other nodes cannot be reached. This node's connections have the new groups.
        """
        count = self.set_groups_local(user_id, groups)
        return self._publish(count, cluster_commands.GroupsCommand(user_id, groups, self._node))

    def _publish(self, count: int, command: cluster_commands.ClusterCommand) -> Deferred[int]:
        if not self.broker.shared:
            return succeed(count)
        commands: list[NewEvent] = [cluster_commands.to_new_event(command)]
        return self.broker.publish(commands).addCallback(lambda events: count)

    def apply_command(self, command: cluster_commands.UserCommand) -> None:
        """Apply a command from the event history. This node's own commands have been applied before."""
        if command.sender == self._node:
            return
        match command:
            case cluster_commands.DisconnectCommand():
                self.disconnect_local(command.user_id, command.reason, command.ban)
            case cluster_commands.DisconnectContactCommand():
                self.disconnect_local(command.contact_id, command.reason, command.ban, is_contact=True)
            case cluster_commands.UnsubscribeCommand():
                self.unsubscribe_local(command.user_id, command.conversation_id)
            case cluster_commands.UnsubscribeContactCommand():
                self.unsubscribe_local(command.contact_id, command.conversation_id, is_contact=True)
            case cluster_commands.GroupsCommand():
                self.set_groups_local(command.user_id, command.groups)

    def disconnect_local(self, user_id: Id, reason: str, ban: bool, is_contact: bool = False) -> int:
        """Close the connections of an agent or a contact on this node, and return their number."""
        clients = self._clients_of(user_id, is_contact)
        code = CloseCode.FORBIDDEN if ban else CloseCode.RECONNECT
        close = Close(code, reason or ("not allowed" if ban else "reconnect"), drop_unsent=True)
        self._auth_flow.invalidate_user(user_id, is_contact, close)
        for client in clients:
            self._execute(client, client.session.close(*close))
        return len(clients)

    def unsubscribe_local(self, user_id: Id, conversation_id: Id, is_contact: bool = False) -> int:
        """End the subscriptions of an agent's or a contact's connections on this node, and return their number."""
        self._auth_flow.invalidate_permission(user_id, is_contact, conversation_id)
        count = 0
        for client in self._clients_of(user_id, is_contact):
            actions = client.session.revoke(conversation_id)
            count += any(isinstance(action, RemoveSubscription) for action in actions)
            self._execute(client, actions)
        return count

    def set_groups_local(self, user_id: Id, groups: tuple[str, ...]) -> int:
        """Replace the groups of the agent's connections on this node, and return their number."""
        self._auth_flow.invalidate_permission(user_id, False)
        clients = self._clients_of(user_id)
        for client in clients:
            self._execute(client, client.session.set_groups(groups))
            self._auth_flow.check_again(client)
        return len(clients)

    def force_resync(self, connections: Collection[Connection], reason: str) -> None:
        """Close the connections with 4000, because events that they should have received are missing.

        They receive nothing more at once. The close frames are spread over `RESYNC_SPREAD` seconds. The last event
        ids of these clients are older than the gap, so that they resync when they reconnect.
        """
        pending: list[tuple[Client, Action]] = []
        for connection in list(connections):
            client: Client = connection.client
            actions = client.session.close(CloseCode.RECONNECT, reason)
            if actions:  # empty if the session is closed already
                self._hub_of(client).remove(connection)
                self._execute(client, actions[:-1])
                pending.append((client, actions[-1]))
        batch_size = -(-len(pending) // round(RESYNC_SPREAD / RESYNC_INTERVAL))

        def close_batch() -> None:
            batch = pending[:batch_size]
            del pending[:batch_size]
            if pending:
                self._resync_timers.append(self._clock.callLater(RESYNC_INTERVAL, close_batch))
            for client, close in batch:
                self._execute(client, [close])

        self._resync_timers = [timer for timer in self._resync_timers if timer.active()]
        close_batch()

    def stop(self) -> None:
        """Cancel the remaining batches of a forced resync. Shutdown closes those connections."""
        for timer in self._resync_timers:
            if timer.active():
                timer.cancel()

    def connections_of(self, user_id: Id) -> list[Connection]:
        """Return the agent's connections on this node, oldest first."""
        connections = self._hub.subscribers(user_channel(user_id))
        return sorted(connections, key=lambda connection: connection.resource_id)

    def _clients_of(self, user_id: Id, is_contact: bool = False) -> list[Client]:
        connections: Collection[Connection] = ()
        if not is_contact:
            connections = self._hub.subscribers(user_channel(user_id))
        elif self._contacts is not None:
            connections = self._contacts.hub.subscribers(contact_channel(user_id))
        return [*(connection.client for connection in connections), *self._entering(user_id, is_contact)]

    def _hub_of(self, client: Client) -> Hub[Connection]:
        return self._contacts.hub if self._contacts is not None and client.is_contact else self._hub
