"""What a command writes: results on stdout, errors, notes and progress on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

from chatws.runtime.streams import is_utf_8

__all__ = ["Output", "compact", "count", "printable"]

_COLOURS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36, "dim": 2, "bold": 1}


def compact(value: Any) -> str:
    """JSON on one line, as people can read it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _ascii_json(text: str) -> str:
    """Encode JSON in ASCII: other characters can only be in its strings, and become `\\u` escapes (RFC 8259 §7)."""
    return "".join(character if character.isascii() else json.dumps(character)[1:-1] for character in text)


def count(number: int, noun: str) -> str:
    """ "1 line", "2 lines"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """`text` without what a terminal would obey: other people wrote it."""
    return "".join(character if character.isprintable() else _escape(ord(character)) for character in text)


def _escape(code_point: int) -> str:
    return f"\\u{code_point:04x}" if code_point < 0x10000 else f"\\U{code_point:08x}"


class Output:
    """Writes the results and errors of a command.

    :param is_json: values as JSON lines, for programs.
    :param prog: whose errors they are: "chatws push".
    """

    def __init__(
        self, is_json: bool = False, prog: str = "chatws", stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.is_json = is_json
        self._prog = prog
        self._stdout = sys.stdout if stdout is None else stdout
        self._stderr = sys.stderr if stderr is None else stderr
        self._has_colours = not is_json and self._stdout.isatty()
        self._is_watched = self._stderr.isatty()
        self._width = 0

    def result(self, value: Any, text: str) -> None:
        """One result: `value` for programs, `text` for people, which may have lines."""
        self.line(compact(value) if self.is_json else text)

    def line(self, text: str) -> None:
        """Write this line to stdout at once."""
        self.clear()
        # half a surrogate pair cannot be written
        text = text.encode("utf-8", "backslashreplace").decode()
        print(_ascii_json(text) if self.is_json and not is_utf_8(self._stdout) else text, file=self._stdout, flush=True)

    def note(self, text: str) -> None:
        """Write a sentence beside the results to stderr."""
        self.clear()
        print(f"{self._prog}: {printable(text)}", file=self._stderr, flush=True)

    def error(self, message: str, code: str = "failed") -> None:
        """Why it was not done."""
        self.clear()
        if self.is_json:
            text = compact({"error": {"code": code, "message": message}})
            print(text if is_utf_8(self._stderr) else _ascii_json(text), file=self._stderr, flush=True)
        else:
            self.note(message)

    def progress(self, text: str) -> None:
        """Write the progress over the last one, if stderr is a terminal."""
        if self._is_watched:
            self._stderr.write("\r" + text.ljust(self._width))
            self._stderr.flush()
            self._width = len(text)

    def clear(self) -> None:
        """Take the progress away."""
        if self._width:
            self._stderr.write("\r" + " " * self._width + "\r")
            self._stderr.flush()
            self._width = 0

    def colour(self, name: str, text: str) -> str:
        """`text` in that colour, on a terminal."""
        return f"\x1b[{_COLOURS[name]}m{text}\x1b[0m" if self._has_colours else text
