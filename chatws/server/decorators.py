"""Ratchet's decorators: components around a component, each of which lets through what it approves of.

The order is Ratchet's: `WsServer(OriginCheck(SessionProvider(Chat(), get_session), allowed=[...]))`. A decorator closes
whom it refuses with a code of its own, and its component never hears of that connection.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.errors import CloseCode, OperatorError
from chatws.server.admission import parse_origin

__all__ = ["IpBlackList", "OriginCheck", "SessionProvider"]

log = Logger()

#: Messages that may wait for a session.
_WAITING = 100


class _Decorator:
    """Passes on what comes for the connections that it has let in.

    A component without `on_binary` has none here either: `WsServer` looks whether there is one.
    """

    def __init__(self, component: Any) -> None:
        self.component = component
        #: those of which the component knows
        self.connections: set[Any] = set()
        if hasattr(component, "on_binary"):
            self.on_binary = self._on_binary

    def on_open(self, connection: Any) -> None:
        self._let_in(connection)

    def on_message(self, connection: Any, text: str) -> None:
        if connection in self.connections:
            self.component.on_message(connection, text)

    def _on_binary(self, connection: Any, data: bytes) -> None:
        if connection in self.connections:
            self.component.on_binary(connection, data)

    def on_close(self, connection: Any) -> None:
        if connection in self.connections:
            self.connections.discard(connection)
            self.component.on_close(connection)

    def on_error(self, connection: Any, exception: Exception) -> None:
        self.component.on_error(connection, exception)

    def _let_in(self, connection: Any) -> None:
        self.connections.add(connection)
        self.component.on_open(connection)


class OriginCheck(_Decorator):
    """Only pages of some origins. `HttpServer` comes before it, and refuses those of other hosts by itself.

    :param allowed: origins, each exactly: scheme://host[:port]. The page's own host is not among them by itself.
        Who sends no Origin is no browser, and is let in, as it could claim any.
    :raises OperatorError: one of them is no origin.
    """

    def __init__(self, component: Any, allowed: Iterable[str] = ()) -> None:
        super().__init__(component)
        self._allowed = set()
        for text in allowed:
            origin = parse_origin(text)
            if origin is None:
                raise OperatorError(f"allowed origin {text!r} is not of the form scheme://host or scheme://host:port")
            self._allowed.add(origin)

    def on_open(self, connection: Any) -> None:
        origin = connection.http_request.headers.get("origin")
        if origin is None or parse_origin(origin) in self._allowed:
            self._let_in(connection)
        else:
            connection.close(CloseCode.FORBIDDEN, "pages of this origin may not connect")


class IpBlackList(_Decorator):
    """Nobody from some addresses: those of the browsers, also behind a trusted proxy."""

    def __init__(self, component: Any) -> None:
        super().__init__(component)
        self._blocked: set[str] = set()

    def block(self, address: str) -> IpBlackList:
        """Let nobody in from this address, and send away who is there.

        :raises ValueError: it is no IP address.
        """
        address = _normal(address)
        self._blocked.add(address)
        for connection in [one for one in self.connections if one.remote_address == address]:
            connection.close(CloseCode.FORBIDDEN, "your address is blocked")
        return self

    def unblock(self, address: str) -> IpBlackList:
        """Let people in from it again. Not an error when it was not blocked.

        :raises ValueError: it is no IP address.
        """
        self._blocked.discard(_normal(address))
        return self

    def is_blocked(self, address: str) -> bool:
        """Whether nobody is let in from this address."""
        return _normal(address) in self._blocked

    @property
    def blocked(self) -> list[str]:
        """The addresses, sorted."""
        return sorted(self._blocked)

    def on_open(self, connection: Any) -> None:
        if connection.remote_address in self._blocked:
            connection.close(CloseCode.FORBIDDEN, "your address is blocked")
        else:
            self._let_in(connection)


def _normal(address: str) -> str:
    parsed = ipaddress.ip_address(address)
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


class SessionProvider(_Decorator):
    """Sets `connection.session_data` before the component hears of the connection.

    :param get_session: is given the connection, returns the session or a Deferred of it (or is an `async` function).
        If it fails, the connection is closed with 4500, and the reason is logged. Messages that come before it has
        answered wait; with more than 100 of them the connection is closed with 4429.
    """

    def __init__(self, component: Any, get_session: Callable[[Any], Any]) -> None:
        super().__init__(component)
        self._get_session = get_session
        self._waiting: dict[Any, list[tuple[str, Any]]] = {}

    def on_open(self, connection: Any) -> None:
        self._waiting[connection] = []
        asked: Deferred[Any] = maybeDeferred(self._get_session, connection)
        asked.addCallbacks(self._got, self._failed, callbackArgs=(connection,), errbackArgs=(connection,))
        asked.addErrback(self._component_failed, connection)

    def on_message(self, connection: Any, text: str) -> None:
        if connection in self._waiting:
            self._wait(connection, "on_message", text)
        else:
            super().on_message(connection, text)

    def _on_binary(self, connection: Any, data: bytes) -> None:
        if connection in self._waiting:
            self._wait(connection, "on_binary", data)
        else:
            super()._on_binary(connection, data)

    def on_close(self, connection: Any) -> None:
        self._waiting.pop(connection, None)
        super().on_close(connection)

    def _wait(self, connection: Any, method: str, message: Any) -> None:
        waiting = self._waiting[connection]
        if len(waiting) >= _WAITING:
            del self._waiting[connection]
            connection.close(CloseCode.TOO_MANY_ERRORS, "too many messages before the session was there")
        else:
            waiting.append((method, message))

    def _got(self, session: Any, connection: Any) -> None:
        waiting = self._waiting.pop(connection, None)
        if waiting is None or not connection.is_open:
            return  # it has gone meanwhile
        connection.session_data = session
        try:
            self._let_in(connection)
        except Exception as error:
            self.component.on_error(connection, error)
        for method, message in waiting:
            try:
                getattr(self.component, method)(connection, message)
            except Exception as error:
                self.component.on_error(connection, error)

    def _failed(self, failure: Failure, connection: Any) -> None:
        if self._waiting.pop(connection, None) is not None:
            log.failure("no session for {connection}", failure, connection=connection)
            connection.close(CloseCode.INTERNAL_ERROR, "internal error")

    def _component_failed(self, failure: Failure, connection: Any) -> None:
        log.failure("on_error failed, on {connection}", failure, connection=connection)
        connection.close(CloseCode.INTERNAL_ERROR, "internal error")
