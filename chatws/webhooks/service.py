"""The webhooks of one server: connects the sender, the client and what agents do with the chat."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Protocol

from chatws.auth.auth_url import check_auth_url
from chatws.brokers.interface import CONTACT_SPACE, Broker
from chatws.chat.cluster_commands import HeartbeatRow
from chatws.chat.interfaces import ActivitySink
from chatws.chat.presence.changes import PresenceListener
from chatws.chat.presence.contacts import parse_contact_member
from chatws.chat.presence.service import PresenceService
from chatws.ids import Id
from chatws.interfaces import Reactor
from chatws.webhooks.activity import WebhookActivity
from chatws.webhooks.client import WebhookClient
from chatws.webhooks.sender import WebhookSender
from chatws.webhooks.settings import WebhookConfig, WebhookFiles, make_settings

__all__ = ["Webhooks"]


class WebhookChat(Protocol):
    """The chat: `chatws.chat.server.ChatServer`."""

    node: str
    presence_listeners: list[PresenceListener]

    @property
    def presence(self) -> PresenceService:
        """Agents online and their statuses."""
        ...

    def use_webhooks(self, activity: ActivitySink, on_heartbeats: Callable[[Sequence[HeartbeatRow]], None]) -> None:
        """Pass on what agents do."""
        ...


class Webhooks:
    """All of it.

    :param sink: receives heartbeats and activities, too.
    :ivar sender: sends.
    """

    def __init__(
        self, config: WebhookConfig, chat: WebhookChat, broker: Broker, sink: ActivitySink, reactor: Reactor
    ) -> None:
        self._chat = chat
        self._broker = broker
        self._files = WebhookFiles(config)
        self.client = WebhookClient(
            check_auth_url(config.webhook_url, "--webhook-url"),
            timeout=config.webhook_timeout,
            secrets=self._files.secrets,
            headers=self._files.headers,
            policy=self._files.policy,
            reactor=reactor,
            wall_clock=time.time,
        )
        self.sender = WebhookSender(broker, self.client, self, make_settings(config), node=chat.node, reactor=reactor)
        self._activity = WebhookActivity(
            sink,
            broker,
            interval=config.webhook_heartbeat,
            reports_activities="activity" in config.webhook_events,
            wake=self.sender.wake,
            clock=reactor,
            wall_clock=time.time,
        )
        chat.use_webhooks(self._activity, self._activity.receive)
        chat.presence_listeners.append(self._activity.changed)

    def start(self) -> None:
        """Begin to send. The broker has started."""
        self._activity.start()
        self.sender.start()

    def reload(self, config: WebhookConfig) -> bool:
        """Read the secrets and headers again, and return whether they have changed.

        :raises ConfigError: a file cannot be read, or is invalid. Nothing has changed.
        """
        return self._files.read(config)

    async def stop(self) -> None:
        """Stop sending. The broker has not stopped."""
        self._activity.stop()
        await self.sender.stop()
        await self.client.stop()

    # What the sender asks for

    def status(self, user_id: Id) -> str:
        """See `chatws.webhooks.batches.Agents`."""
        return self._chat.presence.statuses.get(user_id)

    def statuses(self) -> Mapping[str, str]:
        """See `chatws.webhooks.sender.ServerState`."""
        return self._chat.presence.online_statuses()

    async def contacts(self) -> Sequence[tuple[Id, Id]]:
        """See `chatws.webhooks.sender.ServerState`."""
        members = [parse_contact_member(member) for member in await self._broker.online(CONTACT_SPACE)]
        return [(contact_id, conversation_id) for conversation_id, contact_id in members]

    def last_active(self, user_id: Id) -> int | None:
        """See `chatws.webhooks.batches.Agents`."""
        return self._activity.last_active(user_id)

    def last_seen(self, user_id: Id) -> int | None:
        """See `chatws.webhooks.batches.Agents`."""
        return self._activity.last_seen(user_id)

    def forget(self, online: Set[Id]) -> None:
        """See `chatws.webhooks.sender.ServerState`."""
        self._activity.forget(online)
