"""Small fakes for unit tests."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from chatws.chat.interfaces import Credentials, Identity
from chatws.ids import Id
from chatws.server.component import HttpRequest


class FakeConnection:
    """A connection that records what is sent to it."""

    _count = 0

    def __init__(self, remote_address: str = "127.0.0.1", http_request: HttpRequest | None = None) -> None:
        FakeConnection._count += 1
        self.resource_id = FakeConnection._count
        self.remote_address = remote_address
        self.http_request = http_request or HttpRequest("GET", "/ws")
        self.client: Any = None
        self.disconnect_reason = ""
        self.payloads: list[str] = []
        self._queue: deque[Any] = deque()  # streams, and what waits behind them
        self.writes = 0
        self.closed: tuple[int, str] | None = None
        self.dropped_unsent = False
        self.reading = True

    @property
    def is_open(self) -> bool:
        return self.closed is None

    @property
    def has_backlog(self) -> bool:
        return bool(self._queue)

    def send(self, message: str | bytes) -> None:
        if self.is_open:
            self.payloads.append(message if isinstance(message, str) else message.decode())

    def send_frames(self, frames: bytes) -> None:
        if self.is_open:
            if self._queue:
                self._queue.append(frames)
            else:
                self._write(frames)

    def _write(self, frames: bytes) -> None:
        self.writes += 1
        self.payloads.extend(text_payloads(frames))

    def stream(self, chunks: Iterator[bytes | None]) -> None:
        if self.is_open:
            self._queue.append(chunks)
            self.resume_stream()

    def cancel_stream(self, chunks: Iterator[bytes | None]) -> None:
        if chunks in self._queue:
            self._queue.remove(chunks)
            self.resume_stream()

    def resume_stream(self) -> None:
        while self.is_open and self._queue:
            head = self._queue[0]
            if isinstance(head, bytes):
                self._write(self._queue.popleft())
                continue
            for chunk in head:
                if chunk is None:
                    return
                self._write(chunk)
            if self._queue and self._queue[0] is head:
                self._queue.popleft()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self, code: int = 1000, reason: str = "", *, drop_unsent: bool = False) -> None:
        if self.closed is None:
            self.dropped_unsent = drop_unsent
            self.closed = (code, reason)

    def take(self) -> list[dict[str, Any]]:
        """Return the messages since the last call, decoded."""
        messages = [json.loads(payload) for payload in self.payloads]
        self.payloads.clear()
        return messages


class PendingChecks:
    """An authenticator and authorizer whose results the test supplies."""

    def __init__(self) -> None:
        self.pending: list[tuple[Any, Deferred[Any]]] = []
        self.forgotten: list[tuple[Id, Id | None]] = []

    def authenticate(self, credentials: Credentials) -> Deferred[Identity]:
        return self._start(credentials.user_id)

    def may_read(self, identity: Identity, conversation_id: Id) -> Deferred[bool]:
        return self._start((identity.user_id, conversation_id))

    def forget(self, user_id: Id, conversation_id: Id | None = None, *, is_contact: bool = False) -> None:
        self.forgotten.append((user_id, conversation_id))

    def _start(self, request: Any) -> Deferred[Any]:
        result: Deferred[Any] = Deferred()
        self.pending.append((request, result))
        return result


def send_all(deliveries: Sequence[tuple[Collection[Any], Sequence[bytes]]]) -> int:
    """Send deliveries to fake connections as chatws.server.fanout does: one write each, in order."""
    pending: dict[Any, list[bytes]] = {}
    for recipients, frames in deliveries:
        for connection in recipients:
            pending.setdefault(connection, []).extend(frames)
    for connection, frames in pending.items():
        connection.send_frames(b"".join(frames))
    return 0


def text_payloads(frames: bytes) -> list[str]:
    """Return the texts of unmasked single-frame text messages (RFC 6455 §5.2)."""
    texts = []
    while frames:
        first, length = frames[0], frames[1]
        assert first == 0x81
        size = {126: 2, 127: 8}.get(length, 0)
        if size:
            length = int.from_bytes(frames[2 : 2 + size], "big")
        texts.append(frames[2 + size : 2 + size + length].decode())
        frames = frames[2 + size + length :]
    return texts
