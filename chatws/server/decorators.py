"""Ratchet's decorators: components around a component, which filter its connections.

The order is Ratchet's: `WsServer(OriginCheck(SessionProvider(Chat(), get_session), allowed=[...]))`. A decorator closes
a connection that it rejects, and its component is never called for that connection.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.errors import CloseCode
from chatws.server.component import Connection
from chatws.server.origins import parse_allowed_origin, parse_origin

__all__ = ["IpBlackList", "OriginCheck", "SessionProvider"]

log = Logger()

#: Messages of one connection that may wait for its session: more than a page sends until it is authenticated.
_MAX_QUEUED_MESSAGES = 100


class _Decorator:
    """Passes the calls for accepted connections on to a component.

    It has `on_binary` only if the component has it, because `WsServer` checks for it.

    :ivar connections: the accepted connections.
    """

    def __init__(self, component: Any) -> None:
        self.component = component
        self.connections: set[Connection] = set()
        if hasattr(component, "on_binary"):
            self.on_binary = self._on_binary

    def on_open(self, connection: Connection) -> None:
        self._accept(connection)

    def on_message(self, connection: Connection, text: str) -> None:
        if connection in self.connections:
            self.component.on_message(connection, text)

    def _on_binary(self, connection: Connection, data: bytes) -> None:
        if connection in self.connections:
            self.component.on_binary(connection, data)

    def on_close(self, connection: Connection) -> None:
        if connection in self.connections:
            self.connections.discard(connection)
            self.component.on_close(connection)

    def on_error(self, connection: Connection, exception: Exception) -> None:
        self.component.on_error(connection, exception)

    def _accept(self, connection: Connection) -> None:
        self.connections.add(connection)
        self.component.on_open(connection)


class OriginCheck(_Decorator):
    """Accepts only pages of some origins.

    `HttpServer` checks origins before it, and rejects other hosts' pages itself (see `Admission`).

    :param allowed: exact origins: scheme://host[:port]. The page's own host is not included.
        A request without `Origin` is accepted: it does not come from a browser, and could send any origin.
    :raises ConfigError: an origin is malformed.
    """

    def __init__(self, component: Any, allowed: Iterable[str] = ()) -> None:
        super().__init__(component)
        self._allowed = {parse_allowed_origin(text, "OriginCheck") for text in allowed}

    def on_open(self, connection: Connection) -> None:
        origin = connection.http_request.headers.get("origin")
        if origin is None or parse_origin(origin) in self._allowed:
            self._accept(connection)
        else:
            connection.close(CloseCode.FORBIDDEN, "pages of this origin may not connect")


class IpBlackList(_Decorator):
    """Rejects some client addresses, also those behind a trusted proxy."""

    def __init__(self, component: Any) -> None:
        super().__init__(component)
        self._blocked: set[str] = set()

    def block(self, address: str) -> IpBlackList:
        """Reject this address, and close its open connections.

        :raises ValueError: `address` is not an IP address.
        """
        address = _normalize(address)
        self._blocked.add(address)
        for connection in list(self.connections):
            if connection.remote_address == address:
                connection.close(CloseCode.FORBIDDEN, "your address is blocked")
        return self

    def unblock(self, address: str) -> IpBlackList:
        """Accept this address again. Ignored if it is not blocked.

        :raises ValueError: `address` is not an IP address.
        """
        self._blocked.discard(_normalize(address))
        return self

    def is_blocked(self, address: str) -> bool:
        """Return whether this address is rejected."""
        return _normalize(address) in self._blocked

    @property
    def blocked(self) -> list[str]:
        """The rejected addresses, sorted."""
        return sorted(self._blocked)

    def on_open(self, connection: Connection) -> None:
        if connection.remote_address in self._blocked:
            connection.close(CloseCode.FORBIDDEN, "your address is blocked")
        else:
            self._accept(connection)


def _normalize(address: str) -> str:
    parsed = ipaddress.ip_address(address)
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


class SessionProvider(_Decorator):
    """Sets `connection.session_data` before it calls the component's `on_open`.

    Messages that arrive before the session wait. More than 100 of them close the connection with 4429.

    :param get_session: gets the connection, and returns the session or a Deferred of it. May be an `async` function. If
        it fails, the connection is closed with 4500 and the reason is logged.
    """

    def __init__(self, component: Any, get_session: Callable[[Connection], Any]) -> None:
        super().__init__(component)
        self._get_session = get_session
        self._queued: dict[Connection, list[tuple[str, Any]]] = {}

    def on_open(self, connection: Connection) -> None:
        self._queued[connection] = []
        result: Deferred[Any] = maybeDeferred(self._get_session, connection)
        result.addCallbacks(
            self._on_session, self._on_session_error, callbackArgs=(connection,), errbackArgs=(connection,)
        )
        result.addErrback(self._on_component_error, connection)

    def on_message(self, connection: Connection, text: str) -> None:
        if connection in self._queued:
            self._queue_message(connection, "on_message", text)
        else:
            super().on_message(connection, text)

    def _on_binary(self, connection: Connection, data: bytes) -> None:
        if connection in self._queued:
            self._queue_message(connection, "on_binary", data)
        else:
            super()._on_binary(connection, data)

    def on_close(self, connection: Connection) -> None:
        self._queued.pop(connection, None)
        super().on_close(connection)

    def _queue_message(self, connection: Connection, method: str, message: Any) -> None:
        messages = self._queued[connection]
        if len(messages) >= _MAX_QUEUED_MESSAGES:
            del self._queued[connection]
            connection.close(CloseCode.TOO_MANY_ERRORS, "too many messages before the session was loaded")
        else:
            messages.append((method, message))

    def _on_session(self, session: Any, connection: Connection) -> None:
        messages = self._queued.pop(connection, None)
        if messages is None or not connection.is_open:
            return  # closed meanwhile
        component_view: Any = connection  # components set attributes of their own
        component_view.session_data = session
        try:
            self._accept(connection)
        except Exception as error:
            self.component.on_error(connection, error)
        for method, message in messages:
            try:
                getattr(self.component, method)(connection, message)
            except Exception as error:
                self.component.on_error(connection, error)

    def _on_session_error(self, failure: Failure, connection: Connection) -> None:
        if self._queued.pop(connection, None) is not None:
            log.failure("get_session failed for {connection_id}", failure, connection_id=str(connection.resource_id))
            connection.close(CloseCode.INTERNAL_ERROR, "internal error")

    def _on_component_error(self, failure: Failure, connection: Connection) -> None:
        log.failure("on_error failed on {connection_id}", failure, connection_id=str(connection.resource_id))
        connection.close(CloseCode.INTERNAL_ERROR, "internal error")
