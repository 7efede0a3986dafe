"""The recovery state of the browser library (docs/protocol.md §4), in Python and without I/O, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["RecoveringClient"]


@dataclass
class Channel:
    """The state of one channel: the connection's own (None), or a conversation's."""

    #: the position up to which all events have been handled; None before the first reply
    through: str | None = None
    #: whether this connection has requested it
    requested: bool = False
    #: whether this connection has got the reply and the whole replay
    live: bool = False
    #: of the replay in progress: the number of pending events, and the last position when it began
    pending: int = 0
    head: str = ""


class RecoveringClient:
    """A client that subscribes and recovers.

    :ivar handled: (event, data, id) of each event that a handler got, in order.
    :ivar resyncs: the channels whose recovery failed, once for each failure.
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
        """Return the messages to send on a new connection."""
        return [self._request(conversation_id) for conversation_id in self.channels]

    def subscribe(self, conversation_id: Any) -> list[dict[str, Any]]:
        """Return the messages to send to subscribe on an open connection: none if it is subscribed."""
        channel = self.channels.setdefault(conversation_id, Channel())
        return [] if channel.requested else [self._request(conversation_id)]

    def unsubscribe(self, conversation_id: Any) -> dict[str, Any]:
        """Return the message to send to unsubscribe."""
        del self.channels[conversation_id]
        return {"type": "unsubscribe", "conversation_id": conversation_id}

    def lost(self) -> None:
        """Handle the end of the connection."""
        for channel in self.channels.values():
            if channel.live:
                channel.through = self._position
            channel.requested = channel.live = False
            channel.pending = 0

    def receive(self, message: dict[str, Any]) -> None:
        """Handle a message of the server."""
        event, data = message.get("event"), message.get("data", {})
        if event == "authenticated":
            self._on_reply(None, data)
        elif event == "subscribed":
            if data["conversation_id"] in self.channels:
                self._on_reply(data["conversation_id"], data)
        elif "id" in message:
            self._event(message)

    def _request(self, conversation_id: Any) -> dict[str, Any]:
        message = (
            {"type": "auth", "user_id": self.user_id}
            if conversation_id is None
            else {"type": "subscribe", "conversation_id": conversation_id}
        )
        channel = self.channels[conversation_id]
        channel.requested = True
        through = channel.through
        return message if through is None else {**message, "last_event_id": through}

    def _on_reply(self, conversation_id: Any, data: dict[str, Any]) -> None:
        channel = self.channels[conversation_id]
        channel.head, channel.pending = data["last_event_id"], 0
        if data.get("recovered") is False:
            self.resyncs.append(conversation_id)
        elif "recovered" in data:
            channel.pending = data["replayed"]
        if not channel.pending:
            self._establish(channel)

    def _establish(self, channel: Channel) -> None:
        channel.live = True
        self._advance(channel.head)
        if all(channel.live for channel in self.channels.values()):
            # Newer events may come again: this node may be behind the one whose replay was interrupted.
            self._seen = {event_id for event_id in self._seen if _is_beyond(event_id, self._position)}

    def _advance(self, position: str) -> None:
        if (
            self._position is None
            or _epoch(self._position) != _epoch(position)
            or _offset(position) > _offset(self._position)
        ):
            self._position = position

    def _event(self, message: dict[str, Any]) -> None:
        position = message["id"]
        replaying = next((channel for channel in self.channels.values() if channel.pending), None)
        if replaying is not None and _offset(position) <= _offset(replaying.head):
            if position in self._seen:
                self.duplicates += 1
            else:
                self._seen.add(position)
                self.handled.append((message["event"], message["data"], position))
            replaying.pending -= 1
            if not replaying.pending:
                self._establish(replaying)
            return
        self._advance(position)
        if position in self._seen:
            self.duplicates += 1
        else:
            self.handled.append((message["event"], message["data"], position))


def _is_beyond(event_id: str, position: str | None) -> bool:
    return position is not None and _epoch(event_id) == _epoch(position) and _offset(event_id) > _offset(position)


def _epoch(position: str) -> str:
    return position.rpartition(":")[0]


def _offset(position: str) -> int:
    return int(position.rpartition(":")[2])
