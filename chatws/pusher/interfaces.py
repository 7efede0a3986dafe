"""The interfaces between the WebSocket side of Pusher's protocol, its HTTP API and its webhooks.

The HTTP API calls a `PusherBackend`. The WebSocket side calls a `WebhookSink`. Each names an app in every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from chatws.pusher.apps import PusherApp

__all__ = ["ChannelInfo", "Member", "PusherBackend", "Trigger", "WebhookSink"]


@dataclass(frozen=True)
class Trigger:
    """An event that a backend sends.

    :ivar name: of the event, 1 to 200 characters, not reserved.
    :ivar channels: valid names of channels, each once.
    :ivar data: as the clients will get it. It often is JSON.
    :ivar socket_id: a connection that does not get the event, on whichever node; None for none.
    """

    name: str
    channels: tuple[str, ...]
    data: str
    socket_id: str | None = None


@dataclass(frozen=True)
class ChannelInfo:
    """The state of a channel over all nodes.

    :ivar occupied: whether a connection is subscribed.
    :ivar user_count: the members of a presence channel; None for any other channel.
    """

    occupied: bool
    user_count: int | None = None


@dataclass(frozen=True)
class Member:
    """A member of a presence channel.

    :ivar user_id: as text: the id 5 is "5".
    :ivar user_info: JSON; `null` if the application gives none.
    """

    user_id: str
    user_info: bytes = b"null"


class PusherBackend(Protocol):
    """What the HTTP API asks of the WebSocket side. The caller has checked signatures, names and sizes."""

    async def trigger(self, app: PusherApp, triggers: Sequence[Trigger]) -> None:
        """Store and deliver events, in this order, all or none.

        :raises Unavailable: the broker is unavailable.
        """
        ...

    def channels(self, app: PusherApp, prefix: str = "") -> Mapping[str, ChannelInfo]:
        """Return the channels with a subscriber on any node, by name.

        :param prefix: only channels whose names begin with it.
        """
        ...

    def channel(self, app: PusherApp, name: str) -> ChannelInfo:
        """Return the state of one channel, occupied or not."""
        ...

    def users(self, app: PusherApp, name: str) -> Sequence[str]:
        """Return the ids of the members of a presence channel over all nodes, sorted."""
        ...

    async def terminate(self, app: PusherApp, user_id: str) -> None:
        """Close the connections of a signed-in user on all nodes with 4009.

        :raises Unavailable: the broker is unavailable.
        """
        ...


class WebhookSink(Protocol):
    """What the WebSocket side reports. Its methods return at once and never raise.

    Each change is reported once over all nodes, by one of them.
    """

    def channel_occupied(self, app: PusherApp, channel: str) -> None:
        """Report the first subscription to a channel."""
        ...

    def channel_vacated(self, app: PusherApp, channel: str) -> None:
        """Report the end of the last one."""
        ...

    def member_added(self, app: PusherApp, channel: str, user_id: str) -> None:
        """Report a new member of a presence channel."""
        ...

    def member_removed(self, app: PusherApp, channel: str, user_id: str) -> None:
        """Report a member that has left."""
        ...

    def client_event(
        self, app: PusherApp, channel: str, event: str, data: str | None, socket_id: str, user_id: str | None
    ) -> None:
        """Report an event of a client.

        :param data: as other clients get it; None if it has none.
        :param user_id: the member that has sent it to a presence channel.
        """
        ...

    def cache_miss(self, app: PusherApp, channel: str) -> None:
        """Report a subscription to a cache channel without a cached event."""
        ...
