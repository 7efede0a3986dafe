"""The channels of a connection: it enters and leaves them with `auth`, subscriptions and changes of its groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chatws.brokers.interface import AGENTS, CONTACTS
from chatws.chat import actions, messages
from chatws.chat.actions import Action
from chatws.chat.audience import (
    contact_channel,
    conversation_channel,
    conversation_contacts_channel,
    group_channel,
    user_channel,
)
from chatws.chat.client import Client
from chatws.chat.hub import Hub
from chatws.chat.presence.contacts import contact_member
from chatws.chat.presence.service import PresenceService
from chatws.chat.recovery import Recovery
from chatws.chat.timers import ConnectionTimers
from chatws.errors import CloseCode
from chatws.ids import Id
from chatws.runtime.connection_counts import ConnectionCounts
from chatws.server.component import Connection
from chatws.server.frames import text_frame

__all__ = ["Subscriptions"]


class Subscriptions:
    """Executes the actions that change the channels of a connection.

    :param max_connections_per_user: connections of an agent on this machine; 0 for no limit.
    :param max_connections_per_contact: connections of a contact on this machine; 0 for no limit.
    :param max_contacts_per_ip: connections of contacts from one address to this machine; 0 for no limit.
    :param counts: counts the connections of each user, and of contacts from each address.
    :param connection_id: returns the id of a connection for its client.
    """

    def __init__(
        self,
        hub: Hub[Connection],
        recovery: Recovery,
        presence: PresenceService,
        timers: ConnectionTimers,
        connection_id: Callable[[Connection], str],
        *,
        max_connections_per_user: int,
        max_connections_per_contact: int,
        max_contacts_per_ip: int,
        counts: ConnectionCounts,
    ) -> None:
        self.max_connections_per_user = max_connections_per_user
        self.max_connections_per_contact = max_connections_per_contact
        self.max_contacts_per_ip = max_contacts_per_ip
        self._counts = counts
        self._hub = hub
        self._recovery = recovery
        self._presence = presence
        self._timers = timers
        self._connection_id = connection_id

    def accept_auth(self, client: Client, action: actions.AcceptAuth) -> list[Action] | None:
        """Enter the channels of the user. Return the actions that close the connection if it is one too many."""
        connection, identity = client.connection, action.identity
        user_id = identity.user_id
        if identity.is_contact:
            channels: tuple[str, ...] = (contact_channel(user_id), CONTACTS)
        else:
            channels = (user_channel(user_id), AGENTS, *map(group_channel, identity.groups or ()))
        if not action.renewed:
            excess = self._count(client, channels[0], is_contact=identity.is_contact)
            if excess:
                client.session.identity = None
                return client.session.close(CloseCode.TOO_MANY_CONNECTIONS, excess)
            if not identity.is_contact:
                self._presence.agents.local.enter(user_id)
        self._leave_groups(client, channels)
        self._timers.set_expiry(client, identity)
        connection_id = self._connection_id(connection)

        def reply(position: str, replayed: int | None, lost: bool) -> bytes:
            if identity.is_contact:
                available = self._presence.available()
                return messages.authenticated(identity, connection_id, position, replayed, lost, available=available)
            status = self._presence.statuses.get(user_id)
            return messages.authenticated(identity, connection_id, position, replayed, lost, status)

        self._recovery.enter(client, channels, action.last_event_id, reply)
        return None

    def _count(self, client: Client, user: str, *, is_contact: bool) -> str:
        """Count the connection of a user. Return which limit it exceeds, and do not count it then."""
        limits = [(user, self.max_connections_per_user, "one user")]
        if is_contact:
            limits = [(user, self.max_connections_per_contact, "one user")]
            address = client.connection.remote_address
            if address:
                limits.append((f"contacts:{address}", self.max_contacts_per_ip, "contacts from one address"))
        for key, limit, name in limits:
            if 0 < limit <= self._counts.total(key):
                return f"more than {limit} connections of {name}"
        client.counted = tuple(key for key, _, _ in limits)
        for key in client.counted:
            self._counts.add(key)
        return ""

    def change_groups(self, client: Client, action: actions.ChangeGroups) -> None:
        """Replace the channels of the agent's groups."""
        channels = tuple(map(group_channel, action.groups))
        self._leave_groups(client, channels)
        for channel in channels:
            self._hub.add(channel, client.connection)
        client.connection.send_frames(text_frame(messages.groups(action.groups)))

    def _leave_groups(self, client: Client, channels: Sequence[str]) -> None:
        """Remove the connection from the channels of all groups that are not among `channels`."""
        for channel in self._hub.channels_of(client.connection):
            if channel.startswith("group:") and channel not in channels:
                self._recovery.leave(client, channel)

    def add(self, client: Client, action: actions.AddSubscription) -> None:
        """Enter the channels of a conversation, and send what the client has missed of it."""
        conversation_id = action.conversation_id

        def reply(position: str, replayed: int | None, lost: bool) -> bytes:
            contacts = () if client.is_contact else self._presence.contacts.contacts_of(conversation_id)
            return messages.subscribed(conversation_id, position, replayed, lost, contacts)

        channels: tuple[str, ...] = (conversation_channel(conversation_id),)
        conversations = client.session.conversations
        if client.is_contact:
            channels = (*channels, conversation_contacts_channel(conversation_id))
            if conversation_id in conversations:
                self._contact_came(client, conversation_id)
        self._recovery.enter(client, channels, action.last_event_id, reply, lambda: conversation_id in conversations)

    def remove(self, client: Client, action: actions.RemoveSubscription) -> None:
        """Leave the channels of a conversation."""
        self._recovery.leave(client, conversation_channel(action.conversation_id))
        if client.is_contact:
            self._recovery.leave(client, conversation_contacts_channel(action.conversation_id))
            self._contact_left(client, action.conversation_id)
        client.connection.send_frames(text_frame(messages.unsubscribed(action.conversation_id)))

    def end(self, client: Client) -> None:
        """Note that the connection has closed: its user may be offline now."""
        counted, client.counted = client.counted, ()
        for key in counted:
            self._counts.remove(key)
        if client.user_id is not None:
            self._presence.agents.local.leave(client.user_id)
        for conversation_id in tuple(client.present_in or ()):
            self._contact_left(client, conversation_id)

    def _contact_came(self, client: Client, conversation_id: Id) -> None:
        """Count the connection among those of its contact in the conversation, once."""
        identity = client.session.identity
        if client.present_in is None:
            client.present_in = {}
        if identity is not None and conversation_id not in client.present_in:
            member = client.present_in[conversation_id] = contact_member(conversation_id, identity.user_id)
            self._presence.contacts.local.enter(member)

    def _contact_left(self, client: Client, conversation_id: Id) -> None:
        member = None if client.present_in is None else client.present_in.pop(conversation_id, None)
        if member is not None:
            self._presence.contacts.local.leave(member)
