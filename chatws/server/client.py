"""A WebSocket client, for the tools that watch a server. It knows nothing of chat."""

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

__all__ = ["WebSocketClient"]

#: Seconds between pings, and until the answer to one.
_PING_INTERVAL = 20
_PING_TIMEOUT = 10


class WebSocketClient:
    """One connection to a server, from `connect` until `on_close`.

    :param url: ws:// or wss://; for the latter the certificate is checked against the host.
    :param on_open: the handshake is done.
    :param on_message: a text message has come. Binary ones are passed over.
    :param on_close: it is over, with the close code that came (RFC 6455 §7.4; None where there was none, or no
        connection at all) and the reason. Called once after each `connect`.
    """

    def __init__(
        self,
        url: str,
        *,
        reactor: Any,
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
        self._is_over = False

    def connect(self, timeout: float = 10.0) -> None:
        """:param timeout: seconds until the connection and until the handshake's end."""
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
            closeHandshakeTimeout=2,
            autoPingInterval=_PING_INTERVAL,
            autoPingTimeout=_PING_TIMEOUT,
            tcpNoDelay=True,
        )
        self._is_over = False
        endpoint.connect(factory).addErrback(self._not_connected)

    @property
    def is_open(self) -> bool:
        """Whether `send` has any effect."""
        return self._protocol is not None

    def send(self, text: str) -> None:
        """Queue a text message. Ignored while there is no connection."""
        if self._protocol is not None:
            self._protocol.sendMessage(text.encode())  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Begin the closing handshake with 1000."""
        if self._protocol is not None:
            self._protocol.sendClose(1000)

    def _not_connected(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, ConnectError) and not isinstance(error, ConnectingCancelledError):
            reason = (type(error).__doc__ or "").strip().rstrip(".").lower() or str(error)
        else:
            reason = str(error) or type(error).__name__
        self._over(None, reason)

    def _opened(self, protocol: _Protocol) -> None:
        self._protocol = protocol
        self.on_open()

    def _over(self, code: int | None, reason: str) -> None:
        self._protocol = None
        if not self._is_over:
            self._is_over = True
            self._on_close(code, reason)


class _Protocol(WebSocketClientProtocol):
    def __init__(self, client: WebSocketClient) -> None:
        super().__init__()
        self._client = client

    def onOpen(self) -> None:
        self._client._opened(self)

    def onMessage(self, payload: bytes, is_binary: bool) -> None:
        if not is_binary:
            self._client.on_message(payload.decode())

    def onClose(self, was_clean: bool, code: int | None, reason: str | None) -> None:
        if code == 1006:  # Autobahn's own word for an end without a close frame
            code = None
            reason = _reason(reason or "")
        self._client._over(code, reason or "closed without a reason")


def _reason(words: str) -> str:
    """What is behind Autobahn's "connection was closed uncleanly (…)"."""
    found = re.fullmatch(r'connection was closed uncleanly \("?(.*?)"?\)', words, re.DOTALL)
    reason = found[1] if found else words
    if "without previous WebSocket closing handshake" in reason or not reason:
        return "the connection was lost"
    return reason
