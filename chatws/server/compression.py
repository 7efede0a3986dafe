"""permessage-deflate (RFC 7692), negotiated by Autobahn, without context takeover in either direction.

Without context takeover a connection keeps no compressor (some 300 KiB) and no decompressor (some 40 KiB) between
messages. One compressed frame serves all connections that negotiated the same window.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from autobahn.websocket.compress import PerMessageDeflate, PerMessageDeflateOffer, PerMessageDeflateOfferAccept

from chatws.server.frames import binary_frame, split_frames, text_frame

__all__ = ["Deflater", "Deflaters", "accept_deflate", "inflates_correctly", "negotiate"]

#: Bytes of the shortest payload that is compressed. For a shorter one, compression costs more time than it saves bytes.
MIN_COMPRESSED_PAYLOAD = 128
#: The first byte of a text and of a binary message in one frame (RFC 6455 §5.2), and the bit for "compressed".
_TEXT, _BINARY, _COMPRESSED = 0x81, 0x82, 0x40
#: WebKit of these versions offers permessage-deflate and fails on compressed frames: Safari 15.0 to 15.3, and every
#: browser on iOS 15.0 to 15.3, because all of them use the system's WebKit.
_is_broken_webkit = re.compile(r"Version/15\.[0-3](?![0-9]).* Safari/|\(iP[^)]* OS 15_[0-3](?![0-9])").search


def inflates_correctly(user_agent: str) -> bool:
    """Return whether a client with this `User-Agent` may get compressed frames."""
    return _is_broken_webkit(user_agent) is None


def accept_deflate(max_message_size: int) -> Callable[[Sequence[Any]], Any]:
    """Return the callback with which Autobahn selects an offer: the client's first one for permessage-deflate.

    :param max_message_size: bytes of a decompressed message.
    """

    def accept(offers: Sequence[Any]) -> Any:
        for offer in offers:
            if isinstance(offer, PerMessageDeflateOffer):
                return PerMessageDeflateOfferAccept(  # type: ignore[no-untyped-call]
                    offer,
                    request_no_context_takeover=True,
                    no_context_takeover=True,
                    max_message_size=max_message_size,
                )
        return None

    return accept


def negotiate(protocol: Any, header: str) -> tuple[str, int]:
    """Set up decompression on a protocol.

    :param header: the request's `Sec-WebSocket-Extensions`. Malformed offers are declined (RFC 7692 §7).
    :returns: the extension for the response, and the bits of the window to compress with. Or an empty text and 0.
    """
    offers = []
    for name, parameters in protocol._parseExtensionsHeader(header):
        if name == "permessage-deflate":
            try:
                offers.append(PerMessageDeflateOffer.parse(parameters))  # type: ignore[no-untyped-call]
            except Exception:  # Autobahn raises the bare class for a bad parameter
                continue
    accepted = protocol.perMessageCompressionAccept(offers)
    if accepted is None:
        return "", 0
    deflate = PerMessageDeflate.create_from_offer_accept(True, accepted)  # type: ignore[no-untyped-call]
    protocol._perMessageCompress = deflate
    extension: str = accepted.get_extension_string()
    if "server_no_context_takeover" not in extension:
        # the server never uses it, so the client need not keep its window
        extension += "; server_no_context_takeover"
    return extension, deflate.server_max_window_bits


class Deflater:
    """Compresses frames for all connections with the same window.

    It keeps the last result: a fan-out asks for the same frames once for each connection.

    :param window: bits of the window, 9 to 15.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._last_frames = self._last_result = b""

    def __call__(self, frames: bytes) -> bytes:
        if frames is not self._last_frames:
            self._last_result = b"".join(self._deflate(frames, *position) for position in split_frames(frames))
            self._last_frames = frames
        return self._last_result

    def _deflate(self, frames: bytes, start: int, payload: int, end: int) -> bytes:
        first = frames[start]
        if end - payload < MIN_COMPRESSED_PAYLOAD or first not in (_TEXT, _BINARY):
            return frames[start:end]
        # a window as large as the payload compresses as well as a larger one, which takes longer to set up
        window = min(self._window, max(9, (end - payload - 1).bit_length()))
        compressor = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -window, max(1, window - 7))
        # RFC 7692 §7.2.1: without the last four bytes
        data = (compressor.compress(frames[payload:end]) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        frame = text_frame(data) if first == _TEXT else binary_frame(data)
        return bytes((frame[0] | _COMPRESSED,)) + frame[1:]


class Deflaters(dict[int, Deflater]):
    """One `Deflater` for each window that has been negotiated, by its bits."""

    def __missing__(self, window: int) -> Deflater:
        self[window] = deflater = Deflater(window)
        return deflater
