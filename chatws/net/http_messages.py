"""Requests and responses of the servers that read with h11, and the bodies of requests (RFC 9110)."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias
from urllib.parse import urlsplit

from chatws.errors import ClientError, ErrorCode

__all__ = ["RETRY_AFTER", "BodyReader", "HttpError", "HttpResponse", "HttpStats", "RequestHead", "too_large"]

#: Seconds in the `Retry-After` of a 503: a broker that was restarted is back by then.
RETRY_AFTER = 2

Headers: TypeAlias = Sequence[tuple[str, str]]


class RequestHead(NamedTuple):
    """The head of a request.

    :ivar target: the request target (RFC 9112 §3.2).
    :ivar headers: by name in lower case.
    """

    method: str
    target: str
    headers: dict[str, str]

    @property
    def media_type(self) -> str:
        """The media type of the body in lower case, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def encoding(self) -> str:
        """The content coding of the body in lower case, or an empty string."""
        return self.headers.get("content-encoding", "").strip().lower()

    @property
    def length(self) -> int:
        """The stated length of the body in bytes, or 0."""
        return int(self.headers.get("content-length") or "0")  # h11 has checked that it is a number

    @property
    def path(self) -> str:
        """The path of the target, as it was received, or an empty string."""
        try:
            return urlsplit(self.target).path
        except ValueError:  # a malformed host in an absolute URI
            return ""


class HttpResponse(NamedTuple):
    """A response with a body."""

    status: int
    body: bytes
    media_type: str = "application/json"
    headers: Headers = ()


class HttpError(Exception):
    """A request that is not executed.

    :ivar status: of the response.
    :ivar error: its body.
    :ivar headers: its additional headers.
    """

    def __init__(self, status: int, code: ErrorCode, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.error = ClientError(code, message)
        self.headers = headers


@dataclass(slots=True)
class HttpStats:
    """Counters since the start.

    :ivar connections: accepted connections.
    :ivar bytes: bytes read.
    :ivar responses: responses by status.
    """

    connections: int = 0
    bytes: int = 0
    responses: Counter[int] = field(default_factory=Counter)


class BodyReader:
    """Collects a body, and inflates a gzip body as it comes.

    :param max_size: bytes, also when inflated.
    """

    def __init__(self, head: RequestHead, max_size: int) -> None:
        self._max_size = max_size
        self._body = bytearray()
        self._received = 0
        self._inflater = _inflater() if head.encoding in ("gzip", "x-gzip") else None

    def feed(self, data: bytes) -> None:
        """Add received data.

        :raises HttpError: the body is too large, or is not gzip.
        """
        self._received += len(data)
        if self._received > self._max_size:
            raise too_large(self._max_size)
        if self._inflater is None:
            self._body += data
            return
        while data:
            if self._inflater.eof:  # a gzip file may have several members (RFC 1952 §2.2)
                self._inflater = _inflater()
            try:
                part = self._inflater.decompress(data, self._max_size - len(self._body) + 1)
            except zlib.error:
                raise HttpError(400, ErrorCode.BAD_JSON, "the body is not gzip") from None
            self._body += part
            if len(self._body) > self._max_size:
                raise too_large(self._max_size)
            data = self._inflater.unused_data if self._inflater.eof else b""

    def finish(self) -> bytes:
        """Return the body.

        :raises HttpError: a gzip body is truncated.
        """
        if self._inflater is not None and not self._inflater.eof:
            raise HttpError(400, ErrorCode.BAD_JSON, "the gzip body is truncated")
        return bytes(self._body)


def too_large(max_body: int) -> HttpError:
    """Return the error for a body of more than `max_body` bytes."""
    return HttpError(413, ErrorCode.LINE_TOO_LONG, f"the body may have at most {max_body} bytes, also when inflated")


class _Inflater(Protocol):
    """The parts of the object of `zlib.decompressobj` that a request body needs. Its class has no public name."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _inflater() -> _Inflater:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)  # 16: with a gzip header
