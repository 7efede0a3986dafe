"""Several components on one port, by path: Ratchet's `Router` and `App`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from chatws.interfaces import Reactor, TcpTransport
from chatws.server.admission import Admission
from chatws.server.component import HttpRequest
from chatws.server.handshake import HttpRejection
from chatws.server.http_server import HttpServer
from chatws.server.io_server import IoServer
from chatws.server.ws_server import WsServer

__all__ = ["App", "Router"]


class Router:
    """Selects one of several `WsServer`s by the path of the request.

    ::

        router = Router({"/chat": WsServer(Chat()), "/echo": WsServer(EchoServer())})
        IoServer.factory(HttpServer(router, paths=router.paths), 8080).run()

    :param routes: servers by the complete path of the request, without the query.
    :raises ValueError: `routes` is empty, or a path does not begin with a slash.
    """

    def __init__(self, routes: Mapping[str, WsServer]) -> None:
        if not routes:
            raise ValueError("a router needs at least one route")
        wrong = [path for path in routes if not path.startswith("/")]
        if wrong:
            raise ValueError(f"a path begins with a slash: {wrong[0]!r}")
        self.routes = dict(routes)
        first = next(iter(self.routes.values()))
        self.timer_wheel = first.timer_wheel
        self.stats = first.stats
        self.run_or_defer = first.run_or_defer

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all routes, for `HttpServer`."""
        return tuple(self.routes)

    def check(self, request: HttpRequest) -> HttpRejection | None:
        """Return why a request is invalid, or None; see `WsServer.check`."""
        server = self.routes.get(request.path)
        if server is None:
            return HttpRejection(404, "path", "there is no WebSocket here; connect to " + " or ".join(self.routes))
        return server.check(request)

    def upgrade(
        self, transport: TcpTransport, request: HttpRequest, address: str, rest: bytes, admission: Admission | None
    ) -> Any:
        """Turn an HTTP connection into a WebSocket; see `WsServer.upgrade`."""
        return self.routes[request.path].upgrade(transport, request, address, rest, admission)

    def start(self, protocol: Any, request: HttpRequest, rest: bytes) -> None:
        """Answer the handshake; see `WsServer.start`."""
        self.routes[request.path].start(protocol, request, rest)

    def close_all(self, *arguments: Any, **named: Any) -> Deferred[None]:
        """Close the connections of all servers; see `WsServer.close_all`."""
        servers = set(self.routes.values())
        return gatherResults([server.close_all(*arguments, **named) for server in servers]).addCallback(lambda _: None)


class App:
    """Serves several components on one port: `App(port=8080).route("/chat", Chat()).run()`.

    :param address: the address to listen on.
    :param options: options of each `WsServer`, such as `max_message_size` and `ping_interval`.
    """

    def __init__(
        self, port: int = 8080, address: str = "127.0.0.1", *, reactor: Reactor | None = None, **options: Any
    ) -> None:
        self.port = port
        self.address = address
        self._reactor = reactor
        self._options = options
        self._routes: dict[str, WsServer] = {}
        self._allowed: set[str] = set()

    def route(self, path: str, component: Any, allowed: Iterable[str] = ()) -> App:
        """Open WebSockets on `path` for `component`.

        :param allowed: origins besides the page's own host that may open a WebSocket. They apply to all paths. For a
            restriction to one path, put an `OriginCheck` around the component.
        :raises ValueError: the path has a component already, or does not begin with a slash.
        """
        if path in self._routes:
            raise ValueError(f"there is a component on {path!r} already")
        if not path.startswith("/"):
            raise ValueError(f"a path begins with a slash: {path!r}")
        first = next(iter(self._routes.values()), None)
        shared: dict[str, Any] = {"timer_wheel": first.timer_wheel, "stats": first.stats} if first else {}
        self._routes[path] = WsServer(component, reactor=self._reactor, **shared, **self._options)
        self._allowed.update(allowed)
        return self

    def server(self) -> IoServer:
        """Return the server, which has not been started.

        :raises ValueError: there is no route.
        :raises ConfigError: an allowed origin is malformed.
        """
        router = Router(self._routes)
        admission = Admission(allowed_origins=self._allowed)
        http = HttpServer(router, paths=router.paths, admission=admission, reactor=self._reactor)  # type: ignore[arg-type]
        return IoServer.factory(http, self.port, self.address, reactor=self._reactor)

    def run(self) -> None:
        """Serve until a signal comes; see `IoServer.run`."""
        self.server().run()
