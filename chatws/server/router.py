"""Several components on one port, by path: Ratchet's `Router` and `App`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from chatws.server.admission import Admission
from chatws.server.component import HttpRequest
from chatws.server.handshake import Refusal
from chatws.server.http_server import HttpServer
from chatws.server.io_server import IoServer
from chatws.server.ws_server import WsServer

__all__ = ["App", "Router"]


class Router:
    """Stands between `HttpServer` and several `WsServer`s.

    ::

        router = Router({"/chat": WsServer(Chat()), "/echo": WsServer(EchoServer())})
        IoServer.factory(HttpServer(router, paths=router.paths), 8080).run()

    :param routes: by path, which has to be the whole path of the request, without the query.
    :raises ValueError: there is none, or a path does not begin with a slash.
    """

    def __init__(self, routes: Mapping[str, WsServer]) -> None:
        if not routes:
            raise ValueError("a router needs a route")
        wrong = [path for path in routes if not path.startswith("/")]
        if wrong:
            raise ValueError(f"a path begins with a slash: {wrong[0]!r}")
        self.routes = dict(routes)
        first = next(iter(self.routes.values()))
        self.wheel = first.wheel
        self.stats = first.stats
        self.when_there_is_time = first.when_there_is_time

    @property
    def paths(self) -> tuple[str, ...]:
        """For `HttpServer`."""
        return tuple(self.routes)

    def check(self, request: HttpRequest) -> Refusal | None:
        """See `WsServer.check`."""
        server = self.routes.get(request.path)
        if server is None:
            return Refusal(404, "path", "there is no WebSocket here; connect to " + " or ".join(self.routes))
        return server.check(request)

    def upgrade(self, transport: Any, request: HttpRequest, address: str, rest: bytes, gate: Admission | None) -> Any:
        """See `WsServer.upgrade`."""
        return self.routes[request.path].upgrade(transport, request, address, rest, gate)

    def start(self, protocol: Any, request: HttpRequest, rest: bytes) -> None:
        """See `WsServer.start`."""
        self.routes[request.path].start(protocol, request, rest)

    def close_all(self, *arguments: Any, **named: Any) -> Deferred[None]:
        """See `WsServer.close_all`: all of all of them."""
        servers = set(self.routes.values())
        return gatherResults([one.close_all(*arguments, **named) for one in servers]).addCallback(lambda _: None)


class App:
    """`App(port=8080).route("/chat", Chat()).run()`.

    :param address: where it listens.
    :param options: further ones of each `WsServer`: `max_message_size`, `ping_interval` …
    """

    def __init__(self, port: int = 8080, address: str = "127.0.0.1", *, reactor: Any = None, **options: Any) -> None:
        self.port = port
        self.address = address
        self._reactor = reactor
        self._options = options
        self._routes: dict[str, WsServer] = {}
        self._allowed: set[str] = set()

    def route(self, path: str, component: Any, allowed: Iterable[str] = ()) -> App:
        """Open WebSockets on `path` for `component`.

        :param allowed: origins besides the page's own host that may open one, on whichever path: which of them
            belongs to which path is for an `OriginCheck` around the component to say.
        :raises ValueError: the path is taken, or does not begin with a slash.
        """
        if path in self._routes:
            raise ValueError(f"there is a component on {path!r} already")
        if not path.startswith("/"):
            raise ValueError(f"a path begins with a slash: {path!r}")
        first = next(iter(self._routes.values()), None)
        shared: dict[str, Any] = {"wheel": first.wheel, "stats": first.stats} if first else {}
        self._routes[path] = WsServer(component, reactor=self._reactor, **shared, **self._options)
        self._allowed.update(allowed)
        return self

    def server(self) -> IoServer:
        """The server, not yet started.

        :raises ValueError: there is no route.
        :raises OperatorError: an allowed origin is none.
        """
        router = Router(self._routes)
        admission = Admission(allowed_origins=self._allowed)
        http = HttpServer(router, paths=router.paths, admission=admission, reactor=self._reactor)  # type: ignore[arg-type]
        return IoServer.factory(http, self.port, self.address, reactor=self._reactor)

    def run(self) -> None:
        """Serve until a signal comes; see `IoServer.run`."""
        self.server().run()
