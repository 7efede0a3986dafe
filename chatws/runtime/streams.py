"""Standard output and error, whatever the locale."""

from __future__ import annotations

import io
import os
import sys

__all__ = ["is_utf_8", "never_fail_to_encode"]


def never_fail_to_encode() -> None:
    """From now on, write what the encoding of standard output or error cannot express as an escape (`\\u0416`).

    In a locale such as C or ISO-8859-1 Python would raise UnicodeEncodeError instead. A stream that was closed before
    the start becomes one to nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_utf_8(stream: object) -> bool:
    """Whether this stream takes every character. One without an encoding, in memory, does."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return str(encoding).lower().replace("_", "-") in ("utf-8", "utf8")
