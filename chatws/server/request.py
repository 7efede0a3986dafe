"""A request head, from bytes to `HttpRequest`, once and strictly (RFC 9112 §2 to §5)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import repeat
from operator import itemgetter
from typing import Any

from chatws.server.component import HttpRequest

__all__ = ["BadHead", "Headers", "may_begin", "parse_head", "plain", "split_host"]

_first_of, _last_of = itemgetter(0), itemgetter(2)
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_match_line = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\r\n").match
# no line folding, no white space before the colon, no control characters; bytes above 127 are let through unread
_match_fields = re.compile(rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*").fullmatch
_match_host = re.compile(r"([A-Za-z0-9._~%!$&'()*+,;=-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?", re.ASCII).fullmatch
# how a first line may begin while the rest of it is not there yet
_match_start = re.compile(rb"(?:" + _TOKEN + rb"(?: [\x21-\x7e]*(?: [ -~]{0,16}\r?)?)?)?").fullmatch


class BadHead(Exception):
    """A request head that is none.

    :ivar status: the HTTP status that says so.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class Headers(Mapping[str, str]):
    """Header fields by lower-case name, the values of a repeated one joined.

    What is kept of them for the life of a connection is the bytes; they are parsed when somebody asks, and again
    after `forget`. As a dictionary they would be the largest part of an idle connection.

    :param raw: field lines, each known to have a colon, without the end of the last line.
    """

    __slots__ = ("_found", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._found: dict[str, str] | None = None

    def _fields(self) -> dict[str, str]:
        found = self._found
        if found is None:
            found = self._found = {}
            if not self._raw:
                return found
            parts = [*map(str.partition, self._raw.decode("latin-1").split("\r\n"), repeat(":"))]
            names = [*map(str.lower, map(_first_of, parts))]
            values = [*map(str.strip, map(_last_of, parts), repeat(" \t"))]
            found.update(zip(names, values, strict=True))
            if len(found) != len(names):
                _join_repeated(found, names, values)
        return found

    def forget(self) -> None:
        """Let go of what was parsed."""
        self._found = None

    def __getitem__(self, name: str) -> str:
        return self._fields()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields())

    def __len__(self) -> int:
        return len(self._fields())

    # the base class's ways to these two go through a KeyError for each absent header

    def get(self, name: str, default: Any = None) -> Any:
        return self._fields().get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._fields()

    def __repr__(self) -> str:
        return f"<Headers {', '.join(self)}>"  # values may be secrets


def _join_repeated(found: dict[str, str], names: list[str], values: list[str]) -> None:
    found.clear()
    for name, value in zip(names, values, strict=True):
        if name in found:
            value = found[name] + ("; " if name == "cookie" else ", ") + value
        found[name] = value


def plain(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The same header fields, as a dictionary where it is one: for whoever looks up several."""
    return headers._fields() if type(headers) is Headers else headers


def split_host(host: str) -> str | None:
    """The host of a `Host` header, lower-case and without the port, or None when it is none."""
    match = _match_host(host)
    return match[1].lower() if match else None


def may_begin(data: bytes) -> bool:
    """Whether an incomplete head can still become one: who speaks something else need not wait for the timeout."""
    if b"\n" not in data:
        return _match_start(data) is not None
    return _match_line(data) is not None and b"\0" not in data


def parse_head(head: bytes) -> HttpRequest:
    """Parse a head up to and including its empty line.

    :raises BadHead: it breaks a rule that a server must not be lenient about.
    """
    line = _match_line(head)
    if line is None:
        raise BadHead(400, "this is no HTTP request")
    method, target, major, minor = line.groups()
    if major != b"1":
        raise BadHead(505, "HTTP/1.1 is spoken here")
    raw = head[line.end() : -2]
    if _match_fields(raw) is None:
        raise BadHead(400, "a header line is malformed")
    headers = Headers(raw[:-2])
    found = headers._fields()
    if "host" not in found:
        if minor != b"0":
            raise BadHead(400, "the Host header is missing")
    elif found["host"] and not _match_host(found["host"]):
        # a repeated one too: joined with a comma and a space it is none
        raise BadHead(400, "the Host header is malformed or repeated")
    path, _, query = _origin_form(target).partition("?")
    if minor == b"0":
        found.pop("upgrade", None)  # RFC 9110 §7.8: ignored in HTTP/1.0
    return HttpRequest(method.decode("ascii"), path, query, headers)


def _origin_form(target: bytes) -> str:
    text = target.decode("ascii")
    if "#" in text:
        raise BadHead(400, "a request target has no fragment")
    if text.startswith("/") or text == "*":
        return text
    scheme, colon, rest = text.partition("://")
    if colon and scheme.lower() in ("http", "https", "ws", "wss"):
        slash = rest.find("/")
        return rest[slash:] if slash >= 0 else "/"
    raise BadHead(400, "the request target is malformed")
