"""A WebSocket client for the command-line tools. It does not depend on chat."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from chatws.interfaces import Reactor

__all__ = ["WebSocketClient"]

#: Seconds between pings: below the 30 to 60 seconds after which proxies and NAT drop idle connections.
_PING_INTERVAL = 20
#: Seconds until the answer to a ping.
_PING_TIMEOUT = 10
#: Seconds that the closing handshake may take.
_CLOSE_TIMEOUT = 2


class WebSocketClient:
    """One connection to a server, from `connect` to `on_close`.

    :param url: ws:// or wss://. With wss://, the certificate must match the host.
    :param on_open: called when the handshake is complete.
    :param on_message: called with each text message. Binary messages are ignored.
    :param on_close: called once after each `connect`, when the connection is closed or could not be opened. It gets the
        received close code (RFC 6455 §7.4), or None, and the reason.
    """

    def __init__(
        self,
        url: str,
        *,
        reactor: Reactor,
        on_open: Callable[[], None],
        on_message: Callable[[str], None],
        on_close: Callable[[int | None, str], None],
    ) -> None:
        self._url = url
        self._reactor = reactor
        self.on_open = on_open
        self.on_message = on_message
        self._on_close = on_close
        self._protocol: _Protocol | None = None
        self._is_finished = False

    def connect(self, timeout: float = 10.0) -> None:
        """Open the connection.

        :param timeout: seconds until the connection is open, and again until the handshake is complete.
        """
        parts = urlsplit(self._url)
        is_secure = parts.scheme == "wss"
        host = parts.hostname or ""
        endpoint: Any = HostnameEndpoint(self._reactor, host, parts.port or (443 if is_secure else 80), timeout=timeout)
        if is_secure:
            endpoint = wrapClientTLS(optionsForClientTLS(host), endpoint)
        factory: Any = WebSocketClientFactory(self._url, reactor=self._reactor)  # type: ignore[no-untyped-call]
        factory.noisy = False
        factory.protocol = lambda: _Protocol(self)
        factory.setProtocolOptions(
            openHandshakeTimeout=timeout,
            closeHandshakeTimeout=_CLOSE_TIMEOUT,
            autoPingInterval=_PING_INTERVAL,
            autoPingTimeout=_PING_TIMEOUT,
            tcpNoDelay=True,
        )
        self._is_finished = False
        endpoint.connect(factory).addErrback(self._on_connect_error)

    @property
    def is_open(self) -> bool:
        """Whether `send` has an effect."""
        return self._protocol is not None

    def send(self, text: str) -> None:
        """Queue a text message. Ignored if not open."""
        if self._protocol is not None:
            self._protocol.sendMessage(text.encode())  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Begin the closing handshake with 1000. Ignored if not open."""
        if self._protocol is not None:
            self._protocol.sendClose(1000)

    def _on_connect_error(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, ConnectError) and not isinstance(error, ConnectingCancelledError):
            reason = (type(error).__doc__ or "").strip().rstrip(".").lower() or str(error)
        else:
            reason = str(error) or type(error).__name__
        self._finish(None, reason)

    def _on_handshake(self, protocol: _Protocol) -> None:
        self._protocol = protocol
        self.on_open()

    def _finish(self, code: int | None, reason: str) -> None:
        self._protocol = None
        if not self._is_finished:
            self._is_finished = True
            self._on_close(code, reason)


class _Protocol(WebSocketClientProtocol):
    def __init__(self, client: WebSocketClient) -> None:
        super().__init__()
        self._client = client

    def onOpen(self) -> None:
        self._client._on_handshake(self)

    def onMessage(self, payload: bytes, is_binary: bool) -> None:
        if not is_binary:
            self._client.on_message(payload.decode())

    def onClose(self, was_clean: bool, code: int | None, reason: str | None) -> None:
        if code == 1006:  # no close frame was received (RFC 6455 §7.1.5)
            code = None
            reason = _plain_reason(reason or "")
        self._client._finish(code, reason or "closed without a reason")


def _plain_reason(text: str) -> str:
    """Return the reason in Autobahn's "connection was closed uncleanly (…)"."""
    match = re.fullmatch(r'connection was closed uncleanly \("?(.*?)"?\)', text, re.DOTALL)
    reason = match[1] if match else text
    if "without previous WebSocket closing handshake" in reason or not reason:
        return "the connection was lost"
    return reason
