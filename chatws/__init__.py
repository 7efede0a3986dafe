"""chatws: a real-time WebSocket server for customer-service chat.

The public names are loaded when first used: `import chatws` neither chooses a reactor nor loads Autobahn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatws.chat.server import ChatServer
    from chatws.server.component import Connection, MessageComponent
    from chatws.server.decorators import IpBlackList, OriginCheck, SessionProvider
    from chatws.server.echo import EchoServer
    from chatws.server.http_server import HttpServer
    from chatws.server.io_server import IoServer
    from chatws.server.router import App, Router
    from chatws.server.ws_server import WsServer

__all__ = [
    "App",
    "ChatServer",
    "Connection",
    "EchoServer",
    "HttpServer",
    "IoServer",
    "IpBlackList",
    "MessageComponent",
    "OriginCheck",
    "Router",
    "SessionProvider",
    "WsServer",
]

__version__ = "0.1.0"

_HOMES = {
    "App": "chatws.server.router",
    "ChatServer": "chatws.chat.server",
    "Connection": "chatws.server.component",
    "EchoServer": "chatws.server.echo",
    "HttpServer": "chatws.server.http_server",
    "IoServer": "chatws.server.io_server",
    "IpBlackList": "chatws.server.decorators",
    "MessageComponent": "chatws.server.component",
    "OriginCheck": "chatws.server.decorators",
    "Router": "chatws.server.router",
    "SessionProvider": "chatws.server.decorators",
    "WsServer": "chatws.server.ws_server",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
