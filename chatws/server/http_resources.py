"""Ordinary HTTP beside the WebSockets, by twisted.web: health checks, the client library, and a given resource tree.

Every response closes its connection. Otherwise a proxy that pools its connections (nginx with `keepalive`) could send
an upgrade on a connection that twisted.web has, which does not support WebSockets.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.resource import Resource

from chatws.interfaces import ListeningPort, Reactor
from chatws.runtime.file_budget import METRICS, FileBudget
from chatws.server.request import split_host

__all__ = [
    "CLIENT_PATH",
    "ECHO_PATH",
    "GetResource",
    "NoKeepAliveSite",
    "ReadinessReport",
    "RootResource",
    "is_local_host",
    "monitoring_site",
]

log = Logger()

#: The path from which existing pages load the client library.
CLIENT_PATH = b"/assets/js/websocket-client.js"
#: The problems by the name of the component, a sentence each. Empty: the server is ready.
ReadinessReport: TypeAlias = "Deferred[Mapping[str, str]]"
#: The path of the file that recovers missed events for Laravel Echo and pusher-js.
ECHO_PATH = b"/assets/js/chatws-echo.js"
_CLIENT_FILE = Path(__file__).parent.parent / "static" / "websocket-client.js"
_ECHO_FILE = _CLIENT_FILE.with_name("chatws-echo.js")


def is_local_host(host: str) -> bool:
    """Return whether a `Host` header is an IP address or `localhost`.

    A page that uses DNS rebinding has a name of its own there, which resolves to this machine.
    """
    name = split_host(host)
    if name is None:
        return False
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761 §6.3
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _plain_text(request: Any, status: int, body: str) -> bytes:
    request.setResponseCode(status, HTTPStatus(status).phrase.encode("ascii"))
    request.setHeader(b"content-type", b"text/plain; charset=utf-8")
    request.setHeader(b"x-content-type-options", b"nosniff")
    request.setHeader(b"cache-control", b"no-store")
    return body.encode("utf-8")


class GetResource(Resource):
    """Answers GET and HEAD. Other methods get 405 with Allow.

    OPTIONS (RFC 9110 §9.3.7), the default method of HAProxy's health check, gets a response without a body.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def render(self, request: Any) -> bytes:
        if request.method in (b"GET", b"HEAD"):
            body = self.render_GET(request)
            if request.method == b"HEAD":
                request.setHeader(b"content-length", str(len(body)).encode("ascii"))
                return b""
            return body
        request.setHeader(b"allow", b"GET, HEAD, OPTIONS")
        if request.method == b"OPTIONS":
            request.setResponseCode(204, b"No Content")
            return b""
        return _plain_text(request, 405, "only GET and HEAD are allowed here\n")

    def render_GET(self, request: Any) -> bytes:
        raise NotImplementedError


class _Health(GetResource):
    def render_GET(self, request: Any) -> bytes:
        return _plain_text(request, 200, "ok\n")


class _Readiness(GetResource):
    """Answers 200 if the server is ready, otherwise 503 with one line for each problem.

    OPTIONS gets the same status, for health checks.
    """

    def __init__(self, ready: Callable[[], ReadinessReport]) -> None:
        super().__init__()
        self._ready = ready

    def render(self, request: Any) -> Any:
        if request.method not in (b"GET", b"HEAD", b"OPTIONS"):
            return super().render(request)
        disconnected: list[object] = []
        request.notifyFinish().addErrback(disconnected.append)

        def respond(problems: Mapping[str, str]) -> None:
            if not disconnected:
                lines = [f"{part}: {problem}\n" for part, problem in problems.items()]
                request.write(_plain_text(request, 503 if lines else 200, "".join(lines) or "ready\n"))
                request.finish()

        def failed(failure: Failure) -> None:
            log.failure("the readiness check for /readyz failed", failure)
            respond({"server": "internal error"})

        self._ready().addCallbacks(respond, failed)
        return server.NOT_DONE_YET


class _Misdirected(GetResource):
    """Answers a request for a host that the resource is not meant for with 421 (RFC 9110 §15.5.20)."""

    def render(self, request: Any) -> bytes:
        return _plain_text(request, 421, "this host is not served here; see allowed_origins\n")


class _NotFound(GetResource):
    def render(self, request: Any) -> bytes:
        return _plain_text(request, 404, "not found\n")


class _UpgradeRequired(GetResource):
    """Answers an ordinary request for the path of a WebSocket with 426 (RFC 9110 §15.5.22).

    With `?origin=…` it answers whether pages of that origin may connect. A browser does not tell a page why a WebSocket
    was rejected, so the client library asks here. Any page may ask: any client can try an origin in any case.

    :param allows_origin: returns for an origin and a `Host` header whether pages of that origin may connect.
    """

    def __init__(self, allows_origin: Callable[[str, str], bool]) -> None:
        super().__init__()
        self._allows_origin = allows_origin

    def render_GET(self, request: Any) -> bytes:
        if b"origin" in request.args:
            origin = request.args[b"origin"][0].decode("utf-8", "replace")
            host = (request.getHeader(b"host") or b"").decode("latin-1")
            request.setHeader(b"access-control-allow-origin", b"*")
            request.setHeader(b"cache-control", b"no-store")
            request.setHeader(b"content-type", b"application/json")
            return json.dumps({"allowed": self._allows_origin(origin, host)}).encode("ascii")
        request.setHeader(b"upgrade", b"websocket")
        path = request.path.decode("ascii", "replace")
        return _plain_text(
            request,
            426,
            "This is a WebSocket endpoint (RFC 6455). Connect to it from a page with\n\n"
            f'    new WebSocket("ws://" + location.host + "{path}")\n\n'
            f"or load {CLIENT_PATH.decode()} and call wsClient.connect(userId).\n"
            "A reverse proxy must forward the Upgrade and Connection headers. For nginx:\n\n"
            "    proxy_http_version 1.1;\n"
            "    proxy_set_header Upgrade $http_upgrade;\n"
            '    proxy_set_header Connection "upgrade";\n'
            "    proxy_set_header Host $host;\n",
        )


class _Script(GetResource):
    """One JavaScript file. It is read again after a change."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._changed: float | None = None
        self._content = self._etag = b""

    def render_GET(self, request: Any) -> bytes:
        try:
            changed = self._path.stat().st_mtime
            if changed != self._changed:
                self._content = self._path.read_bytes()
                self._etag = b'"' + hashlib.sha256(self._content).hexdigest()[:20].encode("ascii") + b'"'
                self._changed = changed
        except OSError:
            return _plain_text(request, 404, "the file is missing from this installation\n")
        request.setHeader(b"content-type", b"text/javascript; charset=utf-8")
        # a page of another origin may import it as a module
        request.setHeader(b"access-control-allow-origin", b"*")
        request.setHeader(b"x-content-type-options", b"nosniff")
        # cached for five minutes. After that, a conditional request costs a few bytes (RFC 9110 §13)
        request.setHeader(b"cache-control", b"public, max-age=300")
        request.setETag(self._etag)
        if request.setLastModified(changed) is http.CACHED or request.setETag(self._etag) is http.CACHED:
            return b""
        return self._content


class _BearerResource(GetResource):
    """Passes requests with the bearer token to another resource. Others get 401 (RFC 6750 §3).

    :param secret: the token.
    """

    def __init__(self, inner: Resource, secret: bytes) -> None:
        super().__init__()
        self._inner = inner
        self._expected = b"Bearer " + secret

    def render(self, request: Any) -> Any:
        if hmac.compare_digest(request.getHeader(b"authorization") or b"", self._expected):
            return self._inner.render(request)  # type: ignore[no-untyped-call]
        request.setHeader(b"www-authenticate", b"Bearer")
        return _plain_text(request, 401, "the bearer token is missing or wrong; see metrics_secret_file\n")


class RootResource(Resource):
    """The root resource: the server's own resources take precedence over the given tree.

    :param inner: a resource tree. If it has a resource for `/`, that answers ordinary requests for `/`.
    :param paths: paths of WebSockets.
    :param ready: returns the problems that `/readyz` reports. None: there is no `/readyz`.
    :param pages: more of the server's own resources, by path.
    :param allows_origin: returns for an origin and a `Host` header whether pages of that origin may connect.
    :param allows_host: returns whether `inner` and `pages` answer requests with this `Host` header (DNS rebinding).
    """

    def __init__(
        self,
        inner: Any,
        paths: tuple[str, ...],
        ready: Callable[[], ReadinessReport] | None = None,
        pages: Mapping[bytes, Resource] | None = None,
        allows_origin: Callable[[str, str], bool] = lambda origin, host: True,
        allows_host: Callable[[str], bool] = lambda host: True,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inner = inner
        self._not_found = _NotFound()
        self._misdirected = _Misdirected()
        self._allows_host = allows_host
        self._pages = frozenset(pages or ())
        self._upgrade = _UpgradeRequired(allows_origin)
        self._own: dict[bytes, Resource] = {path.encode("ascii"): self._upgrade for path in paths}
        self._own[b"/healthz"] = _Health()
        if ready is not None:
            self._own[b"/readyz"] = _Readiness(ready)
        if paths:
            self._own[CLIENT_PATH] = _Script(_CLIENT_FILE)
            self._own[ECHO_PATH] = _Script(_ECHO_FILE)
        self._own.update(pages or {})
        if inner is not None and (inner.isLeaf or b"" in inner.listStaticNames()):
            self._own.pop(b"/", None)

    def getChildWithDefault(self, path: bytes, request: Any) -> Any:
        request.setHeader(b"server", b"chatws")  # without twisted.web's version
        full_path = b"/" + b"/".join([path, *request.postpath])
        own = self._own.get(full_path)
        if own is None or full_path in self._pages:
            host = request.getHeader(b"host")  # HTTP/1.0, without one, is no browser
            if host is not None and not self._allows_host(host.decode("latin-1")):
                return self._misdirected
        if own is None and request.method == b"OPTIONS" and path == b"" and not request.postpath:
            own = self._upgrade  # even if the tree has a resource for `/`
        if own is not None:
            request.prepath += request.postpath
            request.postpath = []
            return own
        if self._inner is None:
            return self._not_found
        if self._inner.isLeaf:
            request.postpath.insert(0, request.prepath.pop())
            return self._inner
        if path not in self._inner.listStaticNames() and type(self._inner).getChild is Resource.getChild:
            return self._not_found
        return self._inner.getChildWithDefault(path, request)

    def render(self, request: Any) -> bytes:
        return _plain_text(request, 404, "not found\n")  # `OPTIONS *`, for example


class _Channel(http.HTTPChannel):
    def connectionMade(self) -> None:
        super().connectionMade()  # type: ignore[no-untyped-call]
        if self.factory.budget is not None:
            self.factory.budget.arrive(self, METRICS)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.factory.budget is not None:
            self.factory.budget.depart(self)
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        # the decoder of an unfinished body refers to this channel, a cycle that reference counts never free
        self._transferDecoder = None

    def evict(self) -> bool:
        """Drop the connection: its file is needed; see `chatws.runtime.file_budget.Newcomer`."""
        transport: Any = self.transport
        transport.abortConnection()
        return True

    def timeoutConnection(self) -> None:
        """Close an idle connection. Twisted would log a line for each."""
        self.loseConnection()  # type: ignore[no-untyped-call]

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        request.responseHeaders.setRawHeaders(b"connection", [b"close"])
        return False


class NoKeepAliveSite(server.Site):
    """A `Site` without keep-alive and without an access log.

    :param timeout: seconds that a connection may be idle.
    :param budget: counts the connections, as `METRICS`. None: the caller counts them.

    :ivar ports: the listening ports, set by their owner.
    """

    noisy = False
    protocol = _Channel  # type: ignore[assignment]

    def __init__(self, resource: Any, timeout: float, reactor: Reactor, budget: FileBudget | None = None) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            resource, timeout=timeout, reactor=reactor, parsePOSTFormSubmission=False
        )
        self.budget = budget
        self.ports: list[ListeningPort] = []

    def buildProtocol(self, addr: Any) -> Any:
        if self.budget is not None:
            self.budget.limit_accepts(self.ports)
        return super().buildProtocol(addr)  # type: ignore[no-untyped-call]

    def log(self, request: Any) -> None:
        pass


def monitoring_site(
    metrics: Resource,
    ready: Callable[[], ReadinessReport],
    reactor: Reactor,
    budget: FileBudget,
    secret: bytes | None,
) -> NoKeepAliveSite:
    """Make the site of a metrics listener: /metrics, /healthz, /readyz.

    :param secret: the bearer token for /metrics. Without it, only requests for this machine are answered, because a
        page could send them by DNS rebinding. With it, a page does not know the token.
    """
    if secret is None:
        root = RootResource(None, (), ready, {b"/metrics": metrics}, allows_host=is_local_host)
    else:
        root = RootResource(None, (), ready, {b"/metrics": _BearerResource(metrics, secret)})
    return NoKeepAliveSite(root, 30.0, reactor, budget)
