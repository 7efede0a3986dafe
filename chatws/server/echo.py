"""A minimal application."""

from __future__ import annotations

from twisted.logger import Logger

from chatws.errors import CloseCode
from chatws.server.component import Connection

__all__ = ["EchoServer"]

log = Logger()


class EchoServer:
    """Sends every message back."""

    def on_open(self, connection: Connection) -> None:
        pass

    def on_message(self, connection: Connection, text: str) -> None:
        connection.send(text)

    def on_binary(self, connection: Connection, data: bytes) -> None:
        connection.send(data)

    def on_close(self, connection: Connection) -> None:
        pass

    def on_error(self, connection: Connection, exception: Exception) -> None:
        log.error(
            "closing {connection_id}: {reason}", connection_id=str(connection.resource_id), reason=repr(exception)
        )
        connection.close(CloseCode.INTERNAL_ERROR, "internal error")
