"""Blocking clients for tests against a real server: a browser's WebSocket, a backend's line socket.

Every wait has a deadline and nothing sleeps: "nothing came" is shown by a `ping` whose `pong` is the next message.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

__all__ = ["DEADLINE", "Backend", "Browser", "until"]

#: Seconds after which a wait has failed. A busy machine may need long, and a passing test never waits that long.
DEADLINE = 20.0

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, deadline: float = DEADLINE) -> T:
    """Poll `condition` until it is true, and return its value.

    :param what: for the failure's message: "the agent to go offline".
    """
    end = time.monotonic() + deadline
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline:g} s in vain for {what}")
        time.sleep(0.02)


class Browser:
    """A page's WebSocket.

    :ivar received: every message so far, parsed, in order.
    :ivar texts: the same messages as they came, for tests of the bytes.
    """

    def __init__(self, url: str, *, origin: str | None = None, headers: dict[str, str] | None = None, **options: Any):
        """Connect to `url` ("ws://127.0.0.1:8080/ws"). `options` go to `websockets.sync.client.connect`."""
        options.setdefault("compression", None)
        options.setdefault("ping_interval", None)
        options.setdefault("open_timeout", DEADLINE)
        options.setdefault("close_timeout", 5)
        options.setdefault("max_size", None)
        opening: Any = connect(url, origin=origin, additional_headers=headers, proxy=None, **options)  # type: ignore[arg-type]
        # entered by hand, because it lives as long as this object
        self.socket: ClientConnection = opening.__enter__()
        self.received: list[dict[str, Any]] = []
        self.texts: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def send(self, message: dict[str, Any]) -> None:
        """Send one JSON text message."""
        self.socket.send(json.dumps(message))

    def send_text(self, text: str | bytes) -> None:
        """Send one message: `str` as text, `bytes` as binary."""
        self.socket.send(text)

    def receive(self, deadline: float = DEADLINE) -> dict[str, Any]:
        """The next message of any kind. Raises `TimeoutError` and `websockets.exceptions.ConnectionClosed`."""
        text = self.socket.recv(timeout=deadline)
        assert isinstance(text, str), f"a binary message: {text!r}"
        message: dict[str, Any] = json.loads(text)
        self.texts.append(text)
        self.received.append(message)
        return message

    def expect(self, event: str, deadline: float = DEADLINE, **data: Any) -> dict[str, Any]:
        """The next message with this `event` (or `type`) and with these values in `data`. Skips others.

        :returns: the whole message.
        """
        end = time.monotonic() + deadline
        passed: list[dict[str, Any]] = []
        while True:
            try:
                message = self.receive(max(0.001, end - time.monotonic()))
            except TimeoutError:
                raise AssertionError(f"no {event} {data or ''} within {deadline:g} s, only {passed}") from None
            except ConnectionClosed as closed:
                raise AssertionError(f"closed ({closed.rcvd}) before {event} {data or ''}, after {passed}") from None
            body = message.get("data", message)
            if event in (message.get("event"), message.get("type")) and all(
                body.get(key) == value for key, value in data.items()
            ):
                return message
            passed.append(message)

    def settle(self) -> list[dict[str, Any]]:
        """Messages received so far: sends a `ping`, and returns the messages before its `pong`.

        The server answers in order, so whatever it had sent to this connection before is in the list.
        """
        before = len(self.received)
        self.send({"type": "ping"})
        while self.receive() != {"type": "pong"}:
            pass
        return self.received[before:-1]

    def auth(self, user_id: Any, **more: Any) -> dict[str, Any]:
        """Authenticate and return the data of `authenticated`."""
        self.send({"type": "auth", "user_id": user_id, **more})
        result: dict[str, Any] = self.expect("authenticated")["data"]
        return result

    def subscribe(self, conversation_id: Any, **more: Any) -> dict[str, Any]:
        """Subscribe and return the data of `subscribed`."""
        self.send({"type": "subscribe", "conversation_id": conversation_id, **more})
        result: dict[str, Any] = self.expect("subscribed")["data"]
        return result

    def expect_close(self, deadline: float = DEADLINE) -> tuple[int, str]:
        """Read until the server closes. Returns the close code and the reason."""
        end = time.monotonic() + deadline
        while True:
            try:
                self.receive(max(0.001, end - time.monotonic()))
            except TimeoutError:
                raise AssertionError(f"not closed within {deadline:g} s") from None
            except ConnectionClosed as closed:
                if closed.rcvd is None:
                    return 1006, ""
                return closed.rcvd.code, closed.rcvd.reason

    def close(self) -> None:
        """Close with 1000 and wait until the server has agreed."""
        self.socket.close()

    def drop(self) -> None:
        """Abort the TCP connection without a close frame, as a crashed browser does."""
        self.socket.socket.shutdown(socket.SHUT_RDWR)


class Backend:
    """A backend's TCP or Unix socket with JSON lines in both directions."""

    def __init__(self, address: int | str | tuple[str, int]) -> None:
        """:param address: a port on 127.0.0.1, `(host, port)`, or the path of a Unix socket."""
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(DEADLINE)
            self.socket.connect(address)
        else:
            where = ("127.0.0.1", address) if isinstance(address, int) else address
            self.socket = socket.create_connection(where, timeout=DEADLINE)
        self._reader = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def send(self, *lines: dict[str, Any]) -> None:
        """Send each object as a line, all in one write."""
        self.send_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    def send_bytes(self, data: bytes) -> None:
        """Send these bytes."""
        self.socket.sendall(data)

    def read_line(self) -> dict[str, Any]:
        """The next response line, parsed."""
        line = self._reader.readline()
        assert line.endswith(b"\n"), f"the server closed after {line!r}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def read_to_end(self) -> bytes:
        """Everything until the server closes."""
        return self._reader.read()

    def request(self, line: dict[str, Any]) -> dict[str, Any]:
        """Send one line and return its response. A publish gets `"ack":true`."""
        self.send(line if "op" in line else {"ack": True, **line})
        return self.read_line()

    def push(self, event: str, data: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Publish with an acknowledgement, which must be `ok`."""
        answer = self.request({"event": event, "data": data, **more})
        assert answer["ok"], answer
        return answer

    def half_close(self) -> None:
        """Close the sending side. Responses still arrive."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._reader.close()
        self.socket.close()
