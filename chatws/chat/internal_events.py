"""Publish the events that the server itself makes: `typing`, `agent_status`, and presence updates for other nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.interface import Audience, Broker, NewEvent
from chatws.chat import messages
from chatws.chat.actions import BroadcastTyping
from chatws.chat.audience import (
    AGENTS_AUDIENCE,
    CONTACTS_EXCLUDED,
    AudienceTable,
    contact_channel,
    conversation_channel,
    excluding,
)
from chatws.chat.chat_stats import ChatStats
from chatws.chat.cluster_commands import PresenceUpdate, to_new_event
from chatws.chat.presence.cluster import MemberChange
from chatws.errors import Unavailable

__all__ = ["InternalPublisher"]

log = Logger()


class InternalPublisher:
    """Publishes transient events. A failure is counted and the events are dropped: newer ones replace them.

    :param audiences: returns the current table of audiences, which a reload of the configuration replaces.
    :ivar broker: must be set before any method is called.
    """

    broker: Broker

    def __init__(self, audiences: Callable[[], AudienceTable], stats: ChatStats) -> None:
        self._audiences = audiences
        self._stats = stats

    def publish_typing(self, typing: BroadcastTyping) -> None:
        """Publish `typing` to the conversation's subscribers, except the user's own connections."""
        user_id, is_contact = typing.user_id, typing.is_contact
        data = messages.typing_data(typing.conversation_id, user_id, typing.is_typing, is_contact)
        channels = [conversation_channel(typing.conversation_id)]
        if typing.agents_only:
            channels.append(CONTACTS_EXCLUDED)
        if is_contact:
            channels.append(excluding(contact_channel(user_id)))
        audience = Audience((*channels,), None if is_contact else user_id)
        self._publish([NewEvent("typing", audience, data, transient=True)])

    def publish_presence(self, changes: Sequence[MemberChange]) -> None:
        """Publish changes of presence: a presence update to all nodes, and `agent_status` to all agents.

        Without a default audience for `agent_status`, only the nodes get the update, so that `presence` is correct.
        """
        online = [change.user_id for change in changes if change.is_online]
        offline = [change.user_id for change in changes if not change.is_online]
        new_events = [to_new_event(PresenceUpdate(online, offline))]
        if self._audiences().has_default("agent_status"):
            for user_id, is_online, _ in changes:
                audience = Audience(AGENTS_AUDIENCE.channels, user_id)
                data = messages.status_data(user_id, "online" if is_online else "offline")
                new_events.append(NewEvent("agent_status", audience, data, transient=True))
        self._publish(new_events)

    def _publish(self, new_events: Sequence[NewEvent]) -> None:
        def failed(failure: Failure) -> None:
            self._stats.internal_publish_failures += len(new_events)
            if not isinstance(failure.value, Unavailable):
                log.failure("Publishing the server's own events failed", failure)

        self.broker.publish(new_events).addErrback(failed)
