"""Decode text files and variables written on other systems: byte order marks, UTF-16, CRLF."""

from __future__ import annotations

import codecs
from collections.abc import Mapping

from chatws.errors import ConfigError

__all__ = ["decode_text", "describe_encoding", "describe_mark", "own_variables"]

#: The byte order mark in `os.environ`, in locales with UTF-8, ASCII and ISO-8859-1.
_MARKS = ("\ufeff", codecs.BOM_UTF8.decode("ascii", "surrogateescape"), codecs.BOM_UTF8.decode("latin-1"))
_PREFIX = "CHATWS_"


def describe_mark(data: bytes) -> str:
    """Return the rest of a sentence about the byte order mark of a file; empty if it has none."""
    if data.startswith(codecs.BOM_UTF8):
        return "begins with a byte order mark: save it as UTF-8 without BOM"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "is UTF-16: save it as UTF-8 without BOM"
    return ""


def describe_encoding(data: bytes) -> str:
    """Return the rest of a sentence about why a file is not plain UTF-8 text; empty if it is."""
    mark = describe_mark(data)
    if mark:
        return mark
    if b"\0" in data:
        return "is UTF-16 or binary: save it as UTF-8"
    try:
        data.decode()
    except UnicodeDecodeError:
        return "is not UTF-8"
    return ""


def decode_text(data: bytes, name: str) -> str:
    """Decode the text of a file, without a byte order mark.

    :param name: the name of the file, for the error.
    :raises ConfigError: the file is not UTF-8.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    problem = describe_encoding(data)
    if problem:
        raise ConfigError(f"{name} {problem}")
    return data.decode()


def own_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables `CHATWS_…`, without carriage returns and byte order marks.

    With `docker run --env-file`, a file with CRLF leaves a carriage return at the end of each value, and a byte order
    mark is part of the first name.
    """
    variables: dict[str, str] = {}
    for name, value in environment.items():
        plain = name
        for mark in _MARKS:
            plain = plain.removeprefix(mark)
        if plain.startswith(_PREFIX) and (plain == name or plain not in environment):
            variables[plain] = value.rstrip("\r")
    return variables
