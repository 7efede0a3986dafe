"""`chatws.push.line_buffer`: complete and incomplete lines, and their size limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatws.errors import ErrorCode
from chatws.push.line_buffer import LineBuffer


@given(st.lists(st.binary(max_size=8).filter(lambda line: b"\n" not in line and not line.endswith(b"\r"))), st.data())
def test_feed_in_any_pieces_gives_the_same_lines(lines: list[bytes], data: st.DataObject) -> None:
    received = b"".join(line + data.draw(st.sampled_from([b"\n", b"\r\n"])) for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(received)))))
    buffer = LineBuffer(100)
    count = sum(buffer.feed(received[a:b]) for a, b in zip([0, *cuts], [*cuts, len(received)], strict=True))
    assert buffer.take() == lines
    assert count == len(lines)
    assert not buffer
    assert buffer.size == 0


def test_end_with_an_incomplete_line_adds_it_once() -> None:
    buffer = LineBuffer(100)
    assert buffer.feed(b"a\nb") == 1
    assert buffer.size == 2
    assert buffer.end() == 1
    assert buffer.end() == 0
    assert buffer.take() == [b"a", b"b"]


def test_overflows_with_a_line_of_the_maximum_size_and_its_end_is_false() -> None:
    buffer = LineBuffer(4)
    buffer.feed(b"1234\r")
    assert not buffer.overflows
    buffer.feed(b"\n12345\r")
    assert buffer.overflows
    assert buffer.take() == [b"1234"]
    error = buffer.too_long()
    assert error.code is ErrorCode.LINE_TOO_LONG
    assert "4 bytes" in str(error)


def test_put_back_precedes_lines_received_meanwhile() -> None:
    buffer = LineBuffer(100)
    buffer.feed(b"a\nb\n")
    lines = buffer.take()
    buffer.feed(b"c\nd")
    buffer.put_back(lines[1:])
    assert buffer.lines == [b"b", b"c"]
    buffer.discard_partial()
    assert buffer.end() == 0
    buffer.clear()
    assert not buffer
