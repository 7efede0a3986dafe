"""The ordinary HTTP that stands beside the WebSockets, by twisted.web: health, the client library, and what a given
resource tree adds.

Every answer ends its connection. A proxy that pools its connections (nginx with `keepalive`) would otherwise send an
upgrade down one that has been given to twisted.web, which knows nothing of WebSockets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.resource import Resource

__all__ = ["CLIENT_PATH", "Front", "Page", "PlainSite", "Ready"]

log = Logger()

#: Where pages in the field load the client library from.
CLIENT_PATH = b"/assets/js/websocket-client.js"
#: What does not work, by the name of the part, with a sentence each; nothing: all does.
Ready: TypeAlias = "Deferred[Mapping[str, str]]"
_CLIENT_FILE = Path(__file__).parent.parent / "static" / "websocket-client.js"


def _text(request: Any, status: int, body: str) -> bytes:
    request.setResponseCode(status, HTTPStatus(status).phrase.encode("ascii"))
    request.setHeader(b"content-type", b"text/plain; charset=utf-8")
    request.setHeader(b"x-content-type-options", b"nosniff")
    request.setHeader(b"cache-control", b"no-store")
    return body.encode("utf-8")


class Page(Resource):
    """Answers GET and HEAD; other methods get 405 with Allow."""

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
        request.setHeader(b"allow", b"GET, HEAD")
        return _text(request, 405, "only GET and HEAD are answered here\n")

    def render_GET(self, request: Any) -> bytes:
        raise NotImplementedError


class _Health(Page):
    def render_GET(self, request: Any) -> bytes:
        return _text(request, 200, "ok\n")


class _Readiness(Page):
    """200 when everything that is needed answers, else 503 and what does not, a line each."""

    def __init__(self, ready: Callable[[], Ready]) -> None:
        super().__init__()
        self._ready = ready

    def render(self, request: Any) -> Any:
        if request.method not in (b"GET", b"HEAD"):
            return super().render(request)
        gone: list[object] = []
        request.notifyFinish().addErrback(gone.append)

        def answer(problems: Mapping[str, str]) -> None:
            if not gone:
                lines = [f"{part}: {problem}\n" for part, problem in problems.items()]
                request.write(_text(request, 503 if lines else 200, "".join(lines) or "ready\n"))
                request.finish()

        def failed(failure: Failure) -> None:
            log.failure("/readyz cannot be answered", failure)
            answer({"server": "internal error"})

        self._ready().addCallbacks(answer, failed)
        return server.NOT_DONE_YET


class _NotFound(Page):
    def render(self, request: Any) -> bytes:
        return _text(request, 404, "there is nothing here\n")


class _UpgradeRequired(Page):
    """A WebSocket's address, asked for without one (RFC 9110 §15.5.22)."""

    def render_GET(self, request: Any) -> bytes:
        request.setHeader(b"upgrade", b"websocket")
        path = request.path.decode("ascii", "replace")
        return _text(
            request,
            426,
            "This is a WebSocket endpoint (RFC 6455). Connect to it from a page with\n\n"
            f'    new WebSocket("ws://" + location.host + "{path}")\n\n'
            f"or load {CLIENT_PATH.decode()} and call wsClient.connect(userId).\n"
            "Behind a reverse proxy: it has to pass on the Upgrade and Connection headers. For nginx:\n\n"
            "    proxy_http_version 1.1;\n"
            "    proxy_set_header Upgrade $http_upgrade;\n"
            '    proxy_set_header Connection "upgrade";\n'
            "    proxy_set_header Host $host;\n",
        )


class _Script(Page):
    """One JavaScript file, read again when it has changed."""

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
            return _text(request, 404, "the file is missing from this installation\n")
        request.setHeader(b"content-type", b"text/javascript; charset=utf-8")
        request.setHeader(b"x-content-type-options", b"nosniff")
        # for a while without asking; then a conditional request costs a few bytes
        request.setHeader(b"cache-control", b"public, max-age=300")
        request.setETag(self._etag)
        if request.setLastModified(changed) is http.CACHED or request.setETag(self._etag) is http.CACHED:
            return b""
        return self._content


class Front(Resource):
    """The root: what is the server's own first, then the given tree.

    :param inner: a resource tree. A page of its own at `/` is shown to whoever asks there without an upgrade.
    :param paths: the WebSockets' paths.
    :param ready: answers `/readyz`; without it there is none.
    :param pages: more of the server's own, by path.
    """

    def __init__(
        self,
        inner: Any,
        paths: tuple[str, ...],
        ready: Callable[[], Ready] | None = None,
        pages: Mapping[bytes, Resource] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inner = inner
        self._nothing = _NotFound()
        upgrade = _UpgradeRequired()
        self._own: dict[bytes, Resource] = {path.encode("ascii"): upgrade for path in paths}
        self._own[b"/healthz"] = _Health()
        if ready is not None:
            self._own[b"/readyz"] = _Readiness(ready)
        if paths:
            self._own[CLIENT_PATH] = _Script(_CLIENT_FILE)
        self._own.update(pages or {})
        if inner is not None and (inner.isLeaf or b"" in inner.listStaticNames()):
            self._own.pop(b"/", None)

    def getChildWithDefault(self, path: bytes, request: Any) -> Any:
        request.setHeader(b"server", b"chatws")  # and not twisted.web's exact version
        own = self._own.get(b"/" + b"/".join([path, *request.postpath]))
        if own is not None:
            request.prepath += request.postpath
            request.postpath = []
            return own
        if self._inner is None:
            return self._nothing
        if self._inner.isLeaf:
            request.postpath.insert(0, request.prepath.pop())
            return self._inner
        if path not in self._inner.listStaticNames() and type(self._inner).getChild is Resource.getChild:
            return self._nothing
        return self._inner.getChildWithDefault(path, request)

    def render(self, request: Any) -> bytes:
        return _text(request, 404, "there is nothing here\n")  # `OPTIONS *` and the like


class _Channel(http.HTTPChannel):
    def checkPersistence(self, request: Any, version: bytes) -> bool:
        request.responseHeaders.setRawHeaders(b"connection", [b"close"])
        return False


class PlainSite(server.Site):
    """A `Site` that is never started: there is no access log.

    :param timeout: seconds that a connection may be idle.
    """

    noisy = False
    protocol = _Channel  # type: ignore[assignment]

    def __init__(self, resource: Any, timeout: float, reactor: Any) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            resource, timeout=timeout, reactor=reactor, parsePOSTFormSubmission=False
        )

    def log(self, request: Any) -> None:
        pass
