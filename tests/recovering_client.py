"""The browser library's bookkeeping for recovery (docs/protocol.md §4), in Python and without IO, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["RecoveringClient"]


@dataclass
class Channel:
    """What is known of one channel: the connection's own (None), or a conversation's."""

    #: everything up to here has been handled; None before the first answer
    through: str | None = None
    #: it has been asked for on this connection
    asked: bool = False
    #: on this connection it has been answered, and its replay is over
    live: bool = False
    #: of the replay under way: events to come, and the head when it began
    coming: int = 0
    head: str = ""


class RecoveringClient:
    """:ivar handled: (event, data, id) of each event a handler got, in order.
    :ivar resyncs: per channel, how often the page was told to reload.
    """

    def __init__(self, user_id: Any, conversations: tuple[Any, ...] = ()) -> None:
        self.user_id = user_id
        self.channels: dict[Any, Channel] = {None: Channel()}
        for conversation_id in conversations:
            self.channels[conversation_id] = Channel()
        self.handled: list[tuple[str, Any, str]] = []
        self.resyncs: list[Any] = []
        self.duplicates = 0
        self._position: str | None = None
        self._seen: set[str] = set()

    def open(self) -> list[dict[str, Any]]:
        """What to send on a new connection."""
        return [self._ask(conversation_id) for conversation_id in self.channels]

    def subscribe(self, conversation_id: Any) -> list[dict[str, Any]]:
        """What to send to subscribe, on an open connection: nothing when that was done already."""
        channel = self.channels.setdefault(conversation_id, Channel())
        return [] if channel.asked else [self._ask(conversation_id)]

    def unsubscribe(self, conversation_id: Any) -> dict[str, Any]:
        """What to send to unsubscribe."""
        del self.channels[conversation_id]
        return {"type": "unsubscribe", "conversation_id": conversation_id}

    def lost(self) -> None:
        """The connection has ended."""
        for channel in self.channels.values():
            if channel.live:
                channel.through = self._position
            channel.asked = channel.live = False
            channel.coming = 0

    def receive(self, message: dict[str, Any]) -> None:
        """One message of the server."""
        event, data = message.get("event"), message.get("data", {})
        if event == "authenticated":
            self._answered(None, data)
        elif event == "subscribed":
            if data["conversation_id"] in self.channels:
                self._answered(data["conversation_id"], data)
        elif "id" in message:
            self._event(message)

    def _ask(self, conversation_id: Any) -> dict[str, Any]:
        message = (
            {"type": "auth", "user_id": self.user_id}
            if conversation_id is None
            else {"type": "subscribe", "conversation_id": conversation_id}
        )
        channel = self.channels[conversation_id]
        channel.asked = True
        through = channel.through
        return message if through is None else {**message, "last_event_id": through}

    def _answered(self, conversation_id: Any, data: dict[str, Any]) -> None:
        channel = self.channels[conversation_id]
        channel.head, channel.coming = data["last_event_id"], 0
        if data.get("recovered") is False:
            self.resyncs.append(conversation_id)
        elif "recovered" in data:
            channel.coming = data["replayed"]
        if not channel.coming:
            self._establish(channel)

    def _establish(self, channel: Channel) -> None:
        channel.live = True
        self._advance(channel.head)
        if all(one.live for one in self.channels.values()):
            # What is beyond may still come: this node of several may be behind the one whose replay broke off.
            self._seen = {one for one in self._seen if _is_beyond(one, self._position)}

    def _advance(self, position: str) -> None:
        if (
            self._position is None
            or _epoch(self._position) != _epoch(position)
            or _offset(position) > _offset(self._position)
        ):
            self._position = position

    def _event(self, message: dict[str, Any]) -> None:
        position = message["id"]
        replaying = next((one for one in self.channels.values() if one.coming), None)
        if replaying is not None and _offset(position) <= _offset(replaying.head):
            if position in self._seen:
                self.duplicates += 1
            else:
                self._seen.add(position)
                self.handled.append((message["event"], message["data"], position))
            replaying.coming -= 1
            if not replaying.coming:
                self._establish(replaying)
            return
        self._advance(position)
        if position in self._seen:
            self.duplicates += 1
        else:
            self.handled.append((message["event"], message["data"], position))


def _is_beyond(one: str, position: str | None) -> bool:
    return position is not None and _epoch(one) == _epoch(position) and _offset(one) > _offset(position)


def _epoch(position: str) -> str:
    return position.rpartition(":")[0]


def _offset(position: str) -> int:
    return int(position.rpartition(":")[2])
