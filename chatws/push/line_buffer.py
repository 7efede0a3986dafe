"""The lines of one connection that were received and not yet processed."""

from __future__ import annotations

from chatws.errors import ErrorCode
from chatws.push.protocol import LineError

__all__ = ["LineBuffer"]


class LineBuffer:
    """Splits a stream of bytes into lines that end with "\\n" or "\\r\\n", and keeps them in order.

    :ivar max_line: bytes of a line without its end. It may change at any time.
    :ivar lines: complete lines. Longer ones than `max_line` are kept, so that the lines before them are answered.
    """

    __slots__ = ("_partial", "lines", "max_line")

    def __init__(self, max_line: int) -> None:
        self.max_line = max_line
        self.lines: list[bytes] = []
        self._partial = bytearray()  # a line whose end has not arrived

    def __bool__(self) -> bool:
        return bool(self.lines or self._partial)

    @property
    def size(self) -> int:
        """Bytes of all lines."""
        return sum(map(len, self.lines)) + len(self._partial)

    @property
    def overflows(self) -> bool:
        """Whether the incomplete line is too long. Its last byte may be the "\\r" of its end."""
        return len(self._partial) > self.max_line + 1

    def feed(self, data: bytes) -> int:
        """Add received data, and return the number of lines that it completes."""
        count = 0
        if b"\n" in data:
            if self._partial:
                data = bytes(self._partial) + data
                self._partial.clear()
            if b"\r\n" in data:
                data = data.replace(b"\r\n", b"\n")
            lines = data.split(b"\n")
            data = lines.pop()
            count = len(lines)
            self.lines = self.lines + lines if self.lines else lines
        if data:
            self._partial += data
        return count

    def end(self) -> int:
        """Take the incomplete line as a complete one, at the end of input. Return the number of lines added."""
        if not self._partial:
            return 0
        self.lines.append(bytes(self._partial))
        self._partial.clear()
        return 1

    def take(self) -> list[bytes]:
        """Remove and return the complete lines."""
        lines, self.lines = self.lines, []
        return lines

    def put_back(self, lines: list[bytes]) -> None:
        """Put lines that were taken before all others."""
        self.lines = lines + self.lines

    def discard_partial(self) -> None:
        """Discard the incomplete line."""
        self._partial.clear()

    def clear(self) -> None:
        """Discard all lines."""
        self.lines.clear()
        self._partial.clear()

    def too_long(self) -> LineError:
        """Return the error for a line that exceeds `max_line`."""
        return LineError(ErrorCode.LINE_TOO_LONG, f"the line exceeds {self.max_line} bytes")
