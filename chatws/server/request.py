"""A strict parser of request heads: from bytes to `HttpRequest` (RFC 9112 §2 to §5)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from chatws.server.component import HttpRequest

__all__ = ["BadRequest", "Headers", "is_plausible_prefix", "parse_request_head", "split_host"]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_match_line = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\r\n").match
# no line folding, no white space before the colon, no control characters. Bytes above 127 are accepted
_match_fields = re.compile(rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*").fullmatch
_match_host = re.compile(r"([A-Za-z0-9._~%!$&'()*+,;=-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?", re.ASCII).fullmatch
# an incomplete request line
_match_prefix = re.compile(rb"(?:" + _TOKEN + rb"(?: [\x21-\x7e]*(?: [ -~]{0,16}\r?)?)?)?").fullmatch


class BadRequest(Exception):
    """A malformed request head.

    :ivar status: the HTTP status of the response.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class Headers(Mapping[str, str]):
    """Header fields by lower-case name. Values of a repeated field are joined (RFC 9110 §5.3).

    Only the bytes are kept for the life of a connection: as a dictionary, the fields would be the largest part of an
    idle connection. They are parsed at the first access, and again after `discard_parsed`.

    :param raw: field lines, each with a colon, without the end of the last line.
    """

    __slots__ = ("_parsed", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._parsed: dict[str, str] | None = None

    def _fields(self) -> dict[str, str]:
        fields = self._parsed
        if fields is None:
            fields = self._parsed = {}
            for line in self._raw.decode("latin-1").split("\r\n") if self._raw else ():
                name, _, value = line.partition(":")
                name, value = name.lower(), value.strip(" \t")
                if name in fields:
                    value = fields[name] + ("; " if name == "cookie" else ", ") + value
                fields[name] = value
        return fields

    def discard_parsed(self) -> None:
        """Free the parsed fields."""
        self._parsed = None

    def __getitem__(self, name: str) -> str:
        return self._fields()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields())

    def __len__(self) -> int:
        return len(self._fields())

    # `Mapping` would raise and catch a KeyError for each absent header

    def get(self, name: str, default: Any = None) -> Any:
        fields = self._parsed
        return (self._fields() if fields is None else fields).get(name, default)

    def __contains__(self, name: object) -> bool:
        fields = self._parsed
        return name in (self._fields() if fields is None else fields)

    def __repr__(self) -> str:
        return f"<Headers {', '.join(self)}>"  # without values, which may be secrets


def split_host(host: str) -> str | None:
    """Return the host of a `Host` header, lower-case and without the port, or None if the header is malformed."""
    match = _match_host(host)
    return match[1].lower() if match else None


def is_plausible_prefix(data: bytes) -> bool:
    """Return whether an incomplete head can still become valid. Otherwise the server need not wait for the rest."""
    if b"\n" not in data:
        # \r: the first half of an empty line before the request
        return data == b"\r" or _match_prefix(data) is not None
    return _match_line(data) is not None and b"\0" not in data


def parse_request_head(head: bytes) -> HttpRequest:
    """Parse a head, up to and including its empty line.

    :raises BadRequest: it breaks a rule that protects against request smuggling (RFC 9112 §11.2), or is not HTTP/1.
    """
    line = _match_line(head)
    if line is None:
        raise BadRequest(400, "this is not an HTTP request")
    method, target, major, minor = line.groups()
    if major != b"1":
        raise BadRequest(505, "this server supports only HTTP/1.1")
    raw = head[line.end() : -2]
    if _match_fields(raw) is None:
        raise BadRequest(400, "a header line is malformed")
    headers = Headers(raw[:-2])
    fields = headers._fields()
    if "host" not in fields:
        if minor != b"0":
            raise BadRequest(400, "the Host header is missing")
    elif fields["host"] and not _match_host(fields["host"]):
        # repeated ones, joined with a comma and a space, do not match either
        raise BadRequest(400, "the Host header is malformed or repeated")
    path, _, query = _origin_form(target).partition("?")
    if minor == b"0":
        fields.pop("upgrade", None)  # RFC 9110 §7.8: ignored in HTTP/1.0
    return HttpRequest(method.decode("ascii"), path, query, headers)


def _origin_form(target: bytes) -> str:
    """Return path and query of a request target (RFC 9112 §3.2), which may be an absolute URL."""
    text = target.decode("ascii")
    if "#" in text:
        raise BadRequest(400, "a request target has no fragment")
    if text.startswith("/") or text == "*":
        return text
    scheme, colon, rest = text.partition("://")
    if colon and scheme.lower() in ("http", "https", "ws", "wss"):
        slash = rest.find("/")
        return rest[slash:] if slash >= 0 else "/"
    raise BadRequest(400, "the request target is malformed")
