"""The HTTP API for backends (docs/protocol.md §7): what a request means, and the response to it.

`HttpApi` decides from the head of a request whether its body is read, and executes the items of the body with the
handler of the lines. `chatws.net.http_connection` has the sockets.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from chatws.brokers.interface import NewEvent
from chatws.errors import ClientError, ErrorCode
from chatws.interfaces import Clock
from chatws.net.http_messages import RETRY_AFTER, HttpError, HttpResponse, RequestHead, too_large
from chatws.push.handler import CommandHandler
from chatws.push.operations import AuthOp, Op
from chatws.push.protocol import LineError, PublishLine, parse_line
from chatws.push.responses import ErrorResponse, Response, encode_responses

__all__ = ["HttpApi"]

JSON, LINES = "application/json", "application/x-ndjson"
#: Items of one request. Each has a response, which may be longer than the item.
MAX_ITEMS = 20_000
#: Items that are executed before other connections are served.
BATCH_ITEMS = 1024
#: JSON's white space (RFC 8259 §2). Python's `strip` removes more.
_WHITE_SPACE = b" \t\r\n"
_encode = msgspec.json.Encoder().encode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_TEMPORARY = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.OVERLOADED})


class HttpApi:
    """Checks requests and executes them.

    :param handler: executes the items.
    :param secret: returns the secret that requests must have, or None.
    :param max_body: bytes of a body, also when inflated.
    :param max_item: bytes of one item.
    :param clock: lets other connections run between batches.
    """

    def __init__(
        self,
        handler: CommandHandler,
        secret: Callable[[], bytes | None],
        *,
        max_body: int,
        max_item: int,
        clock: Clock,
    ) -> None:
        self._handler = handler
        self._secret = secret
        self._clock = clock
        self.max_body = max_body
        self.max_item = max_item

    def check_head(self, head: RequestHead) -> None:
        """Check everything that the head tells.

        :raises HttpError: the request is rejected, and its body is not needed.
        """
        headers = head.headers
        if "origin" in headers:
            raise HttpError(403, ErrorCode.FORBIDDEN, "this API is for backends: requests with an Origin are rejected")
        secret = self._secret()
        if secret is not None and not _has_secret(headers.get("authorization", ""), secret):
            raise HttpError(
                401,
                ErrorCode.BAD_SECRET,
                "the header Authorization must be Bearer and the push secret",
                [("WWW-Authenticate", "Bearer")],
            )
        if head.path != "/push":
            raise HttpError(404, ErrorCode.UNSUPPORTED, "unknown path: the path is /push")
        if head.method != "POST":
            raise HttpError(405, ErrorCode.UNSUPPORTED, "the method must be POST", [("Allow", "POST")])
        if head.media_type not in (JSON, LINES):
            raise HttpError(415, ErrorCode.UNSUPPORTED, f"the header Content-Type must be {JSON} or {LINES}")
        if head.encoding not in ("", "identity", "gzip", "x-gzip"):
            raise HttpError(
                415, ErrorCode.UNSUPPORTED, "Content-Encoding must be gzip or absent", [("Accept-Encoding", "gzip")]
            )
        if head.length > self.max_body:
            raise too_large(self.max_body)

    def error_response(self, error: HttpError) -> HttpResponse:
        """Return the response for an error, and count it."""
        return HttpResponse(
            error.status, _encode(self._handler.error_response(error.error)), headers=tuple(error.headers)
        )

    async def respond(self, head: RequestHead, body: bytes) -> HttpResponse:
        """Execute a request whose head is accepted. Never fails because of the request."""
        try:
            if head.media_type == LINES:
                lines = [line.removesuffix(b"\r") for line in body.split(b"\n")]
                responses = await self._execute(self._bounded([line for line in lines if line]))
                return _batch_response(responses, encode_responses(responses), LINES)
            text = body.strip(_WHITE_SPACE)
            if text.startswith(b"["):
                responses = await self._execute(self._bounded(_split_array(text)))
                return _batch_response(responses, _encode(responses), JSON)
        except HttpError as error:
            return self.error_response(error)
        return _single_response((await self._execute([text]))[0])

    def _bounded(self, items: list[bytes]) -> list[bytes]:
        if len(items) > MAX_ITEMS:
            raise HttpError(413, ErrorCode.LINE_TOO_LONG, f"a request may have at most {MAX_ITEMS} items")
        return items

    async def _execute(self, items: Iterable[bytes]) -> list[Response]:
        """Execute items in order. Consecutive publishes are batches, and an `op` waits for those before it."""
        handler = self._handler
        responses: list[Response] = []
        requests: list[PublishLine | ErrorResponse] = []
        new_events: list[NewEvent] = []
        for item in items:
            try:
                request = self._parse(item)
                if isinstance(request, PublishLine):
                    new_events.append(handler.to_new_event(request))
                    requests.append(request)
            except LineError as error:
                requests.append(handler.error_response(error, error.request_id))
                continue
            except ClientError as error:  # of `to_new_event`
                requests.append(handler.error_response(error, cast(PublishLine, request).request_id))
                continue
            if not isinstance(request, PublishLine):
                responses += await self._publish(requests, new_events)
                responses.append(await handler.execute(request))
                requests, new_events = [], []
            if len(requests) >= BATCH_ITEMS:
                responses += await self._publish(requests, new_events)
                requests, new_events = [], []
                await deferLater(self._clock, 0)  # type: ignore[arg-type]  # annotated with zope's IReactorTime
        responses += await self._publish(requests, new_events)
        return responses

    def _parse(self, item: bytes) -> PublishLine | Op:
        if len(item) > self.max_item:
            raise LineError(ErrorCode.LINE_TOO_LONG, f"an item may have at most {self.max_item} bytes")
        request = parse_line(item)
        if isinstance(request, AuthOp):
            raise LineError(
                ErrorCode.BAD_MESSAGE, "op auth is for lines: send the header Authorization", request.request_id
            )
        return msgspec.structs.replace(request, ack=True) if isinstance(request, PublishLine) else request

    async def _publish(
        self, requests: list[PublishLine | ErrorResponse], new_events: list[NewEvent]
    ) -> Sequence[Response]:
        if not new_events:
            return cast("list[ErrorResponse]", requests)
        responses = self._handler.publish(requests, new_events)
        return await responses if isinstance(responses, Deferred) else responses


def _has_secret(authorization: str, secret: bytes) -> bool:
    scheme, _, given = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), secret)


def _split_array(text: bytes) -> list[bytes]:
    try:
        return [bytes(item) for item in _decode_array(text)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise HttpError(400, ErrorCode.BAD_JSON, "the body is not valid JSON") from None


def _single_response(response: Response) -> HttpResponse:
    if isinstance(response, ErrorResponse):
        if response.code in _TEMPORARY:
            return HttpResponse(503, _encode(response), headers=_retry_after())
        return HttpResponse(400, _encode(response))
    return HttpResponse(200, _encode(response))


def _batch_response(responses: Sequence[Response], body: bytes, media_type: str) -> HttpResponse:
    failed = sum(not response.ok for response in responses)
    headers = [("Chatws-Failed", str(failed))] if failed else []
    is_temporary = any(isinstance(response, ErrorResponse) and response.code in _TEMPORARY for response in responses)
    if is_temporary and failed == len(responses):
        return HttpResponse(503, body, media_type, [*headers, *_retry_after()])
    return HttpResponse(200, body, media_type, headers)


def _retry_after() -> list[tuple[str, str]]:
    return [("Retry-After", str(RETRY_AFTER))]
