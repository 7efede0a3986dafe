"""Serve the demo over HTTP: the page at `/`, its files under `/demo/`, and a JSON API under `/api/`.

Errors are `{"error": {"code": …, "message": …}}`. A request that changes data must be `application/json`, which a form
of another site cannot send.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import CACHED
from twisted.web.pages import notFound
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from chatws.demo.backend import DemoBackend
from chatws.demo.store import DemoError, StoreChange
from chatws.ids import MAX_ID_INTEGER

__all__ = ["MAX_BODY", "MAX_CONTENT", "root"]

#: Bytes of a request body: a message of `MAX_CONTENT` characters takes at most 16,000 in UTF-8.
MAX_BODY = 32 * 1024
#: Characters of a message; the page's text area has the same limit.
MAX_CONTENT = 4000

PAGE = Path(__file__).with_name("page")

#: The page loads files of this server only, runs no inline scripts, and sends forms to this server only.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

Number = Annotated[int, msgspec.Meta(ge=1, le=MAX_ID_INTEGER)]
Content = Annotated[str, msgspec.Meta(max_length=MAX_CONTENT)]


class SendBody(msgspec.Struct):
    agent_id: Number
    content: Content
    client_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None


class AssignBody(msgspec.Struct):
    """Body of `assign`. `agent_id`: the new assignee, or null for none. `by`: the agent who assigns."""

    agent_id: Number | None
    by: Number | None = None


class StatusBody(msgspec.Struct):
    by: Number | None = None


class ReadBody(msgspec.Struct):
    """Body of `read`. `message_id`: the last message that was read, by default the latest."""

    agent_id: Number
    message_id: Number | None = None


class CustomerBody(msgspec.Struct):
    """Body of `customer`. The demo chooses a missing conversation or content. `typing`: send typing first."""

    conversation_id: Number | None = None
    new: bool = False
    content: Content | None = None
    typing: bool = False


#: The file types of the page's directory that are served, with their media types.
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


def root(backend: DemoBackend) -> Resource:
    """Build the demo's resource tree. The server adds its own resources beside `demo` and `api`."""
    tree, files = Tree(), Tree()
    for path in sorted(PAGE.iterdir()):
        if path.suffix in TYPES:
            files.put(path.name, PageFile(path))
    tree.put("", PageFile(PAGE / "index.html"))
    tree.put("demo", files)
    tree.put("api", Api(backend))
    return tree


class Tree(Resource):
    """A directory: its children, and 404 for other paths."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def put(self, name: str, child: Any) -> None:
        self.putChild(name.encode(), child)

    def getChild(self, path: bytes, request: Any) -> Any:
        return notFound()

    def render(self, request: Any) -> bytes | int:
        return _render_error(request, 404, "Not found.")


class PageFile(Tree):
    """One file of the page.

    Browsers validate it on every use (RFC 9110 §13.1.2), so that an upgraded server never serves an old page.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def render(self, request: Any) -> bytes | int:
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader("Allow", "GET, HEAD")
            return _render_error(request, 405, "Only GET and HEAD are allowed.")
        content = self._path.read_bytes()
        for name, value in SECURITY_HEADERS.items():
            request.setHeader(name, value)
        request.setHeader("Content-Type", f"{TYPES[self._path.suffix]}; charset=utf-8")
        request.setHeader("Cache-Control", "no-cache")
        if request.setETag(b'"' + hashlib.sha256(content).hexdigest()[:32].encode() + b'"') is CACHED:
            return b""
        request.setHeader("Content-Length", str(len(content)))
        return content


def _render_error(request: Any, status: int, message: str) -> bytes:
    request.setResponseCode(status)
    request.setHeader("Content-Type", "text/plain; charset=utf-8")
    return f"{message}\n".encode()


T = TypeVar("T")
Response = tuple[int, Any]
Handler = Callable[..., Awaitable[Response]]


class Api(Resource):
    """Everything under `/api/`."""

    isLeaf = True
    _log = Logger()

    def __init__(self, backend: DemoBackend) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._backend = backend
        conversation = r"conversations/([0-9]{1,15})"
        table: list[tuple[str, str, Handler]] = [
            ("GET", "agents", self._agents),
            ("GET", "conversations", self._conversations),
            ("GET", f"{conversation}/messages", self._messages),
            ("POST", f"{conversation}/messages", self._send),
            ("POST", f"{conversation}/assign", self._assign),
            ("POST", f"{conversation}/close", self._close),
            ("POST", f"{conversation}/reopen", self._reopen),
            ("POST", f"{conversation}/read", self._read),
            ("POST", "customer", self._customer),
        ]
        self._routes = [(method, re.compile(pattern), handler) for method, pattern, handler in table]

    def render(self, request: Any) -> int:
        closed: list[Failure] = []
        request.notifyFinish().addErrback(closed.append)

        def write(response: Response) -> None:
            if closed:
                return  # the change is stored even if the client has disconnected
            status, body = response
            text = msgspec.json.encode(body)
            request.setResponseCode(status)
            request.setHeader("Content-Type", "application/json; charset=utf-8")
            request.setHeader("Cache-Control", "no-store")
            request.setHeader("X-Content-Type-Options", "nosniff")
            request.setHeader("Content-Length", str(len(text)))
            request.write(text)
            request.finish()

        responding = Deferred.fromCoroutine(self._respond(request))
        responding.addCallback(write)
        responding.addErrback(lambda failure: self._log.failure("cannot write an API response", failure=failure))
        return NOT_DONE_YET

    async def _respond(self, request: Any) -> Response:
        """Return the handler's response, or an error response."""
        try:
            handler, arguments = self._route(request)
            return await handler(request, *arguments)
        except DemoError as error:
            return error.status, _error(error.code, str(error))
        except Exception:
            self._log.failure("the demo's API failed: {url_path}", url_path=request.path)
            return 500, _error("internal_error", "internal error, see the server's log")

    def _route(self, request: Any) -> tuple[Handler, list[int]]:
        path = b"/".join(request.postpath or ()).decode("utf-8", "replace")
        method = request.method.decode("ascii", "replace")
        allowed = []
        for route_method, pattern, handler in self._routes:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if method == route_method or (method == "HEAD" and route_method == "GET"):
                return handler, [int(number) for number in match.groups()]
            allowed.append(route_method)
        if not allowed:
            raise DemoError(404, "not_found", "this path does not exist")
        request.setHeader("Allow", ", ".join(allowed))
        raise DemoError(405, "method_not_allowed", f"this path allows {' and '.join(allowed)}")

    # Handlers

    async def _agents(self, request: Any) -> Response:
        return 200, {"instance": self._backend.instance, "agents": await self._backend.agents()}

    async def _conversations(self, request: Any) -> Response:
        agent_id = _query_number(request, b"agent_id")
        return 200, {"conversations": await self._backend.conversations(agent_id)}

    async def _messages(self, request: Any, conversation_id: int) -> Response:
        conversation, messages, reads = await self._backend.messages(conversation_id)
        return 200, {"conversation": conversation, "messages": messages, "reads": reads}

    async def _send(self, request: Any, conversation_id: int) -> Response:
        body = _body(request, SendBody)
        content = _content(body.content)
        change = await self._backend.send(conversation_id, body.agent_id, content, body.client_id)
        return 200 if change.repeated else 201, _changed(change)

    async def _assign(self, request: Any, conversation_id: int) -> Response:
        body = _body(request, AssignBody)
        return 200, _changed(await self._backend.assign(conversation_id, body.agent_id, body.by))

    async def _close(self, request: Any, conversation_id: int) -> Response:
        body = _body(request, StatusBody)
        return 200, _changed(await self._backend.set_status(conversation_id, "closed", body.by))

    async def _reopen(self, request: Any, conversation_id: int) -> Response:
        body = _body(request, StatusBody)
        return 200, _changed(await self._backend.set_status(conversation_id, "open", body.by))

    async def _read(self, request: Any, conversation_id: int) -> Response:
        body = _body(request, ReadBody)
        return 200, {"conversation": await self._backend.mark_read(conversation_id, body.agent_id, body.message_id)}

    async def _customer(self, request: Any) -> Response:
        body = _body(request, CustomerBody)
        if body.new and body.conversation_id is not None:
            raise DemoError(400, "bad_request", "`new` and `conversation_id` exclude each other")
        content = None if body.content is None else _content(body.content)
        change = await self._backend.customer_writes(
            body.conversation_id, new=body.new, content=content, typing=body.typing
        )
        return 201, _changed(change)


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _changed(change: StoreChange) -> dict[str, Any]:
    return {"conversation": change.conversation, "message": change.message}


def _body(request: Any, shape: type[T]) -> T:
    """Parse the request's JSON body. An empty body counts as `{}`.

    :raises DemoError: 400, 413 or 415. The message of 400 names the invalid field.
    """
    content_type = (request.getHeader("content-type") or "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise DemoError(415, "bad_content_type", "Content-Type must be application/json")
    raw = request.content.read(MAX_BODY + 1)
    if len(raw) > MAX_BODY:
        raise DemoError(413, "too_large", f"the body is longer than {MAX_BODY} bytes")
    try:
        return msgspec.json.decode(raw or b"{}", type=shape)
    except msgspec.ValidationError as error:
        raise DemoError(400, "bad_request", str(error)) from None
    except (msgspec.DecodeError, RecursionError):
        raise DemoError(400, "bad_json", "the body must be one JSON object in UTF-8") from None


def _content(text: str) -> str:
    """Return a message's text without surrounding white space and control characters, except line breaks and tabs."""
    content = "".join(character for character in text if character >= " " or character in "\n\t").strip()
    if not content:
        raise DemoError(400, "bad_request", "`content` must not be empty")
    return content


def _query_number(request: Any, name: bytes) -> int | None:
    values = request.args.get(name)
    if not values:
        return None
    if re.fullmatch(rb"[0-9]{1,15}", values[0]) is None:
        raise DemoError(400, "bad_request", f"`{name.decode()}` must be an integer")
    return int(values[0])
