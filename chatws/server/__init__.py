"""The WebSocket server: Ratchet's layers, in Python on Twisted and Autobahn.

::

    from chatws.server import EchoServer, HttpServer, IoServer, WsServer

    IoServer.factory(HttpServer(WsServer(EchoServer())), 8080).run()

The layers, from the socket to the application:

1. `IoServer` (io_server.py) listens on ports and accepts connections.
2. `HttpServer` (http_server.py) reads the request head (request.py). `Admission` checks the origin and the limits of
   connections. twisted.web answers ordinary requests (http_resources.py).
3. `WsServer` (ws_server.py) answers the handshake (handshake.py) and creates a `WsProtocol` (ws_protocol.py), which
   parses frames with Autobahn.
4. A `MessageComponent` (component.py) gets `on_open`, `on_message` and `on_close`. It is the application, or a
   decorator around one (decorators.py). `Router` (router.py) serves several components on one port.

The life of a connection:

- Accepted, it is an `_HttpConnection` with a deadline for its request head.
- Once admitted and upgraded, it is a `WsConnection` (connection.py) with a `WsProtocol`. Its pings and deadlines are
  in the server's `TimerWheel` (timer_wheel.py).
- It sends directly to its socket (frame_writer.py). If the peer reads slowly, data waits in a `SendQueue`
  (send_queue.py). If too much waits, the connection is closed with 4001.
- It ends with a closing handshake, an abort, or a broken socket. `on_close` follows in each case, once.

An event for many connections goes through `FanOut` (fanout.py), which sends it with as few system calls as possible
(recipients.py, io_uring.py). It is the hot path.

Nothing here depends on chat, and only this package imports Autobahn. Importing the package does not install a reactor.
Creating a `WsServer` or `HttpServer` without a reactor does.
"""

from chatws.server.admission import Admission
from chatws.server.component import Connection, HttpRequest, MessageComponent
from chatws.server.echo import EchoServer
from chatws.server.http_server import HttpServer
from chatws.server.io_server import IoServer, raise_file_limit
from chatws.server.server_stats import ServerStats
from chatws.server.timer_wheel import TimerWheel
from chatws.server.ws_server import WsServer

__all__ = [
    "Admission",
    "Connection",
    "EchoServer",
    "HttpRequest",
    "HttpServer",
    "IoServer",
    "MessageComponent",
    "ServerStats",
    "TimerWheel",
    "WsServer",
    "raise_file_limit",
]
