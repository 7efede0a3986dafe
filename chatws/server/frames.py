"""Unmasked frames, as a server sends them (RFC 6455 §5.2). Autobahn parses received frames.

`text_frames` is column code for the hot path. Its plain reference is `text_frame`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from operator import add
from struct import Struct

__all__ = ["binary_frame", "close_frame", "rest_of_frame", "split_frames", "text_frame", "text_frames"]

_MEDIUM = Struct("!BBH").pack
_LONG = Struct("!BBQ").pack
# headers of frames with up to 125 bytes, which need no length field
_SHORT_TEXT = [bytes((0x81, length)) for length in range(126)]
_SHORT_BINARY = [bytes((0x82, length)) for length in range(126)]


def text_frame(payload: bytes) -> bytes:
    """Return one text message in one frame.

    :param payload: valid UTF-8, which is not checked.
    """
    length = len(payload)
    if length < 126:
        return _SHORT_TEXT[length] + payload
    if length < 65536:
        return _MEDIUM(0x81, 126, length) + payload
    return _LONG(0x81, 127, length) + payload


def text_frames(payloads: Sequence[bytes]) -> list[bytes]:
    """Return `[*map(text_frame, payloads)]`, faster if all payloads have 126 to 65535 bytes, as most events have."""
    sizes = [*map(len, payloads)]
    if sizes and min(sizes) >= 126 and max(sizes) < 65536:
        return [*map(add, map(_MEDIUM, repeat(0x81), repeat(126), sizes), payloads)]
    return [*map(text_frame, payloads)]


def binary_frame(payload: bytes) -> bytes:
    """Return one binary message in one frame."""
    length = len(payload)
    if length < 126:
        return _SHORT_BINARY[length] + payload
    if length < 65536:
        return _MEDIUM(0x82, 126, length) + payload
    return _LONG(0x82, 127, length) + payload


def close_frame(code: int, reason: bytes = b"") -> bytes:
    """Return a close frame (RFC 6455 §5.5.1).

    :param reason: at most 123 bytes of UTF-8.
    """
    return bytes((0x88, 2 + len(reason))) + code.to_bytes(2, "big") + reason


def split_frames(frames: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield where each frame begins, where its payload begins, and where it ends.

    :param frames: complete frames, unmasked.
    """
    position = 0
    while position < len(frames):
        length = frames[position + 1]
        payload = position + 2
        if length == 126:
            payload += 2
            length = int.from_bytes(frames[payload - 2 : payload], "big")
        elif length == 127:
            payload += 8
            length = int.from_bytes(frames[payload - 8 : payload], "big")
        yield position, payload, payload + length
        position = payload + length


def rest_of_frame(frames: bytes, offset: int) -> int:
    """Return how many bytes after `offset` belong to a frame that begins before it. 0 at a boundary.

    :param frames: complete frames, unmasked.
    """
    if not offset:
        return 0
    return next(end for _, _, end in split_frames(frames) if end >= offset) - offset
