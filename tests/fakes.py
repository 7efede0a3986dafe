"""Small stand-ins for what a unit test does not want for real."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from chatws.server.component import HttpRequest


class FakeConnection:
    """A connection that keeps what it is told."""

    _count = 0

    def __init__(self, remote_address: str = "127.0.0.1", http_request: HttpRequest | None = None) -> None:
        FakeConnection._count += 1
        self.resource_id = FakeConnection._count
        self.remote_address = remote_address
        self.http_request = http_request or HttpRequest("GET", "/ws")
        self.session: Any = None
        self.ended = ""
        self.payloads: list[str] = []
        self.writes = 0
        self.closed: tuple[int, str] | None = None

    @property
    def is_open(self) -> bool:
        return self.closed is None

    def send(self, message: str | bytes) -> None:
        if self.is_open:
            self.payloads.append(message if isinstance(message, str) else message.decode())

    def send_frames(self, frames: bytes) -> None:
        if self.is_open:
            self.writes += 1
            self.payloads.extend(text_payloads(frames))

    def stream(self, chunks: Iterator[bytes]) -> None:
        for chunk in chunks:
            self.send_frames(chunk)

    def close(self, code: int = 1000, reason: str = "") -> None:
        if self.closed is None:
            self.closed = (code, reason)

    def take(self) -> list[dict[str, Any]]:
        """The messages since the last call, decoded."""
        found = [json.loads(one) for one in self.payloads]
        self.payloads.clear()
        return found


def send_all(runs: Sequence[tuple[Collection[Any], list[bytes]]]) -> None:
    """What chatws.server.fanout.send_all does, for fake connections: one write each, in the order of the runs."""
    pending: dict[Any, list[bytes]] = {}
    for recipients, frames in runs:
        for connection in recipients:
            pending.setdefault(connection, []).extend(frames)
    for connection, frames in pending.items():
        connection.send_frames(b"".join(frames))


def text_payloads(frames: bytes) -> list[str]:
    """The texts of unmasked single-frame text messages (RFC 6455 §5.2)."""
    found = []
    while frames:
        first, length = frames[0], frames[1]
        assert first == 0x81
        size = {126: 2, 127: 8}.get(length, 0)
        if size:
            length = int.from_bytes(frames[2 : 2 + size], "big")
        found.append(frames[2 + size : 2 + size + length].decode())
        frames = frames[2 + size + length :]
    return found
