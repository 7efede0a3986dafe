"""Publish the events that the server itself makes: `typing`, and presence updates for all nodes."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.interface import Audience, Broker, NewEvent
from chatws.chat import messages
from chatws.chat.actions import BroadcastTyping
from chatws.chat.audience import CONTACTS_EXCLUDED, contact_channel, conversation_channel, excluding
from chatws.chat.chat_stats import ChatStats
from chatws.errors import Unavailable

__all__ = ["InternalPublisher"]

log = Logger()


class InternalPublisher:
    """Publishes transient events. A failure is counted and the events are dropped: newer ones replace them.

    :ivar broker: must be set before any method is called.
    """

    broker: Broker

    def __init__(self, stats: ChatStats) -> None:
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
        self.publish([NewEvent("typing", audience, data, transient=True)])

    def publish(self, new_events: Sequence[NewEvent]) -> None:
        """Publish events that the server has made."""

        def failed(failure: Failure) -> None:
            self._stats.internal_publish_failures += len(new_events)
            if not isinstance(failure.value, Unavailable):
                log.failure("Publishing the server's own events failed", failure)

        self.broker.publish(new_events).addErrback(failed)
