"""Ratchet's layers: IoServer listens, HttpServer admits, WsServer frames, and a component gets the messages.

::

    from chatws.server import EchoServer, HttpServer, IoServer, WsServer

    IoServer.factory(HttpServer(WsServer(EchoServer())), 8080).run()

Nothing here knows of chat, and nothing outside imports Autobahn. Importing this package does not choose a reactor;
making a `WsServer` or `HttpServer` without being given one does.
"""

from chatws.server.admission import Admission
from chatws.server.component import Connection, HttpRequest, MessageComponent
from chatws.server.echo import EchoServer
from chatws.server.http_server import HttpServer
from chatws.server.io_server import IoServer, raise_file_limit
from chatws.server.stats import Stats
from chatws.server.wheel import Wheel
from chatws.server.ws_server import WsServer

__all__ = [
    "Admission",
    "Connection",
    "EchoServer",
    "HttpRequest",
    "HttpServer",
    "IoServer",
    "MessageComponent",
    "Stats",
    "Wheel",
    "WsServer",
    "raise_file_limit",
]
