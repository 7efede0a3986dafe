"""An agent's page, without the page: authenticates, subscribes, reconnects, and recovers what it missed."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from chatws.errors import ConfigError
from chatws.ids import Id
from chatws.interfaces import Reactor
from chatws.runtime.backoff import backoff

__all__ = ["AgentClient", "AgentSettings", "auth_message", "closed_because", "parse_message", "subscribe_message"]

#: Seconds: the first and the longest pause before another attempt.
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 10.0
#: Ids remembered, so that what is replayed twice is shown once.
_REMEMBERED = 10_000


class AgentTransport(Protocol):
    """`chatws.server.websocket_client.WebSocketClient`, as far as it is needed here."""

    def connect(self) -> None: ...
    def send(self, text: str) -> None: ...
    def close(self) -> None: ...


class AgentSettings:
    """Who the agent is, and what it listens to."""

    def __init__(self, url: str, user_id: Id, token: str | None = None, conversations: Sequence[Id] = ()) -> None:
        self.url = url
        self.user_id = user_id
        self.token = token
        self.conversations = list(dict.fromkeys(conversations))


def auth_message(settings: AgentSettings, last_event_id: str | None = None) -> str:
    """`auth`, as in docs/protocol.md §1."""
    message: dict[str, Any] = {"type": "auth", "user_id": settings.user_id}
    if settings.token:
        message["token"] = settings.token
    return _with_position(message, last_event_id)


def subscribe_message(conversation_id: Id, last_event_id: str | None = None) -> str:
    """`subscribe`, as in docs/protocol.md §1."""
    return _with_position({"type": "subscribe", "conversation_id": conversation_id}, last_event_id)


def _with_position(message: dict[str, Any], last_event_id: str | None) -> str:
    if last_event_id:
        message["last_event_id"] = last_event_id
    return json.dumps(message)


def parse_message(text: str) -> dict[str, Any] | None:
    """Parse a message of the server. Return None if it is not a JSON object."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def closed_because(code: int | None, reason: str) -> str:
    """Why a connection has ended, for people."""
    return f"{reason} ({code})" if code else reason


def _offset(event_id: str) -> tuple[str, int]:
    epoch, _, offset = event_id.rpartition(":")
    return epoch, int(offset) if offset.isascii() and offset.isdigit() else 0


class AgentClient:
    """Connects as an agent, subscribes, and recovers after a reconnect.

    :param on_event: an event has come: its text, and the same parsed.
    :param on_note: something that a person should know, in a sentence.
    :param on_end: it is over, and cannot be begun again: why.

    What is seen only counts as seen, for a recovery, once everything missed before has come: after a reconnect the
    replays of the conversations follow each other. A `presence` behind the `subscribe`s is answered after them all.
    """

    def __init__(
        self,
        settings: AgentSettings,
        reactor: Reactor,
        *,
        on_event: Callable[[str, dict[str, Any]], None],
        on_note: Callable[[str], None],
        on_end: Callable[[Exception], None],
        transport: Callable[[AgentClient], AgentTransport] | None = None,
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._on_event = on_event
        self._on_note = on_note
        self._on_end = on_end
        self._transport = (transport or _web_socket)(self)
        self._position: str | None = None
        self._newest: str | None = None
        self._is_ready = False
        self._was_ready = False
        self._is_over = False
        self._attempts = 0
        self._refusal = ""
        self._seen: set[str] = set()
        self._seen_order: deque[str] = deque()

    @property
    def settings(self) -> AgentSettings:
        """Who it is."""
        return self._settings

    @property
    def reactor(self) -> Any:
        """Whose time it is."""
        return self._reactor

    def start(self) -> None:
        """Connect."""
        self._transport.connect()

    def stop(self) -> None:
        """Whatever happens from now on is of no interest."""
        self._is_over = True

    # what the transport calls

    def opened(self) -> None:
        """Authenticate and subscribe on a new connection."""
        self._newest = None
        send = self._transport.send
        send(auth_message(self._settings, self._position))
        for conversation_id in self._settings.conversations:
            send(subscribe_message(conversation_id, self._position))
        send('{"type":"presence"}')

    def received(self, text: str) -> None:
        """Process a message."""
        if self._is_over:
            return
        try:
            self._received(text)
        except Exception as error:  # stdout may be gone
            self._on_end(error)

    def closed(self, code: int | None, reason: str) -> None:
        """Reconnect or end, after a connection was lost or could not be opened."""
        if self._is_over:
            return
        self._is_ready = False
        why = self._refusal or closed_because(code, reason)
        if not self._was_ready:
            self._on_end(ConfigError(f"cannot be {self._settings.user_id} at {self._settings.url}: {why}"))
        elif code is not None and 4900 <= code <= 4999:
            self._on_end(ConfigError(f"disconnected for good: {closed_because(code, reason)}"))
        else:
            pause = backoff(self._attempts, _FIRST_PAUSE, _LONGEST_PAUSE)
            if self._attempts == 0:
                self._on_note(f"the connection is gone: {why}; trying again")
            self._attempts += 1
            self._reactor.callLater(pause, self._transport.connect)

    def _received(self, text: str) -> None:
        message = parse_message(text)
        if message is None:
            self._on_note(f"no JSON object: {text[:200]}")
            return
        data = message.get("data")
        data = data if isinstance(data, dict) else {}
        match message.get("event"):
            case "authenticated" | "subscribed":
                self._reached(data.get("last_event_id"))
                if data.get("recovered") is False:
                    where = data.get("conversation_id")
                    self._on_note("events may be missing" + ("" if where is None else f" of conversation {where}"))
            case "presence":
                self._ready()
            case "unsubscribed":
                self._on_note(f"conversation {data.get('conversation_id')} was taken away")
            case "error":
                self._refused(data)
            case str():
                event_id = message.get("id")
                if isinstance(event_id, str):
                    if event_id in self._seen:
                        return
                    self._remember(event_id)
                    self._reached(event_id)
                self._on_event(text, message)

    def _ready(self) -> None:
        if not self._is_ready:
            self._is_ready = True
            self._position = self._newest or self._position
            self._on_note("connected again" if self._was_ready else f"connected to {self._settings.url}")
            self._was_ready = True
            self._attempts = 0

    def _refused(self, data: dict[str, Any]) -> None:
        code, sentence = data.get("code"), data.get("message")
        if code in ("auth_failed", "unauthenticated"):
            self._refusal = self._refusal or f"{code}: {sentence}"
        else:
            self._on_note(f"refused, {code}: {sentence}")

    def _reached(self, event_id: object) -> None:
        if not isinstance(event_id, str):
            return
        epoch, offset = _offset(event_id)
        if self._newest is None or _offset(self._newest)[0] != epoch or _offset(self._newest)[1] < offset:
            self._newest = event_id
        if self._is_ready:
            self._position = self._newest

    def _remember(self, event_id: str) -> None:
        self._seen.add(event_id)
        self._seen_order.append(event_id)
        if len(self._seen_order) > _REMEMBERED:
            self._seen.discard(self._seen_order.popleft())


def _web_socket(agent: AgentClient) -> AgentTransport:
    # takes its time, and most commands need none
    from chatws.server.websocket_client import WebSocketClient

    return WebSocketClient(
        agent.settings.url,
        reactor=agent.reactor,
        on_open=agent.opened,
        on_message=agent.received,
        on_close=agent.closed,
    )
