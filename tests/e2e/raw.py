"""A client for bytes that no browser would send, over a TCP socket."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tests.e2e.wire import DEADLINE
from tests.server_wire import frame, head, split_frames

__all__ = ["Raw", "frame", "head", "rss"]


def rss(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    with open(f"/proc/{pid}/status") as status:
        (line,) = (line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


class Raw:
    """One TCP connection to the WebSocket port.

    :param source: the address it comes from, any of 127.0.0.0/8.
    :param receive_buffer: size of the receive buffer in bytes, small for a client that does not read.
    """

    def __init__(self, port: int, *, source: str = "127.0.0.1", receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(DEADLINE)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.bind((source, 0))
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.at_eof = False
        self._frames: list[tuple[int, bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    # bytes

    def send(self, data: bytes) -> bool:
        """Send bytes.

        :returns: False if the server has closed the connection.
        """
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self, timeout: float = DEADLINE) -> bytes:
        """The next bytes, empty at the end. Raises `TimeoutError`."""
        self.socket.settimeout(timeout)
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        finally:
            self.socket.settimeout(DEADLINE)
        self.at_eof = not data
        return data

    def read_to_end(self) -> bytes:
        """Everything until the server closes."""
        data = self.buffer
        self.buffer = b""
        while not self.at_eof:
            data += self.receive()
        return data

    # HTTP

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request whose response ends the connection.

        :returns: the status, and all bytes received.
        """
        self.send(request)
        answer = self.read_to_end()
        assert answer.startswith(b"HTTP/1.1 "), answer
        return int(answer[9:12]), answer

    def upgrade(self, **fields: str | None) -> Self:
        """Open a WebSocket; `fields` are header fields with `_` for `-`."""
        self.send(head(**fields))
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.receive()
            assert not self.at_eof, self.buffer
        top, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        assert top.startswith(b"HTTP/1.1 101 "), top
        return self

    # frames

    def next_frame(self) -> tuple[int, bytes]:
        """The first byte and the payload of the next frame."""
        while not self._frames:
            self._frames, self.buffer = split_frames(self.buffer)
            if not self._frames:
                self.buffer += self.receive()
                assert not self.at_eof, f"ended after {self.buffer[:200]!r}"
        return self._frames.pop(0)

    def next_text(self) -> dict[str, Any]:
        """The next message. Pings are answered: on a busy machine a test may be long enough for some."""
        first, payload = self.next_frame()
        while first == 0x89:
            self.send(frame(payload, 10))
            first, payload = self.next_frame()
        assert first == 0x81, (first, payload)
        result: dict[str, Any] = json.loads(payload)
        return result

    def expect(self, event: str, **data: Any) -> dict[str, Any]:
        """The data of the next message with this `event` or `type` and these values. Skips others."""
        while True:
            message = self.next_text()
            body: dict[str, Any] = message.get("data", message)
            if event in (message.get("event"), message.get("type")) and data.items() <= body.items():
                return body

    def closed_with(self) -> tuple[int, str]:
        """Skip messages up to the close frame, answer it, and wait for the end of the connection.

        :returns: code and reason.
        """
        first, payload = self.next_frame()
        while first != 0x88:
            first, payload = self.next_frame()
        assert not self._frames, "something follows the close frame"
        if self.send(frame(payload[:2], 8)):
            with suppress(OSError):
                # after an incomplete frame the server reads no more frames
                self.socket.shutdown(socket.SHUT_WR)
        end = time.monotonic() + DEADLINE
        while not self.at_eof:
            self.receive(end - time.monotonic())
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    # the chat

    def say(self, *messages: dict[str, Any] | str) -> bool:
        """Send text messages in one write."""
        texts = (message if isinstance(message, str) else json.dumps(message) for message in messages)
        return self.send(b"".join(frame(text) for text in texts))

    def enter(self, user_id: Any, *conversations: Any, **more: Any) -> Self:
        """Send `auth`, and `subscribe` for each conversation."""
        self.say({"type": "auth", "user_id": user_id, **more})
        self.expect("authenticated")
        for conversation in conversations:
            self.say({"type": "subscribe", "conversation_id": conversation})
            self.expect("subscribed")
        return self

    def error(self) -> str:
        """The code of the next message, which is an `error`."""
        message = self.next_text()
        assert message["event"] == "error", message
        code: str = message["data"]["code"]
        return code

    def pong(self) -> bool:
        """Whether the connection is still served."""
        self.say({"type": "ping"})
        return bool(self.expect("pong"))
