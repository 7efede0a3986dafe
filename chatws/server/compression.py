"""permessage-deflate (RFC 7692), negotiated by Autobahn's parts, without context takeover in either direction.

Without context takeover no compressor or inflater need be kept between messages (some 300 and 40 KiB a connection),
and one deflated frame is the same for all who negotiated the same window.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

from autobahn.websocket.compress import PerMessageDeflate, PerMessageDeflateOffer, PerMessageDeflateOfferAccept

from chatws.server.frames import binary_frame, split_frames, text_frame

__all__ = ["Deflater", "Deflaters", "accept_deflate", "negotiate"]

#: Bytes of a payload below which compressing costs more than it saves.
WORTHWHILE = 128


def accept_deflate(max_message_size: int) -> Callable[[Sequence[Any]], Any]:
    """What Autobahn asks which of a client's offers to accept: the first for permessage-deflate.

    :param max_message_size: bytes that a message may inflate to.
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

    :param header: the request's `Sec-WebSocket-Extensions`. What cannot be parsed counts as not offered.
    :returns: the extension as it goes into the response, and the window to compress with, in bits; or nothing and 0.
    """
    offers = []
    for name, parameters in protocol._parseExtensionsHeader(header):
        if name == "permessage-deflate":
            try:
                offers.append(PerMessageDeflateOffer.parse(parameters))  # type: ignore[no-untyped-call]
            except Exception:  # Autobahn raises the bare class for a bad parameter: this offer is declined
                continue
    accepted = protocol.perMessageCompressionAccept(offers)
    if accepted is None:
        return "", 0
    deflate = PerMessageDeflate.create_from_offer_accept(True, accepted)  # type: ignore[no-untyped-call]
    protocol._perMessageCompress = deflate
    extension: str = accepted.get_extension_string()
    if "server_no_context_takeover" not in extension:
        # we do without in any case, and a client that knows need not keep its window either
        extension += "; server_no_context_takeover"
    return extension, deflate.server_max_window_bits


class Deflater:
    """Makes compressed frames of plain ones, for all connections with the same window.

    What it was last given, and what it made of it, is remembered: a fan-out asks again and again for the same.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._plain = self._deflated = b""

    def __call__(self, frames: bytes) -> bytes:
        if frames is not self._plain:
            self._deflated = b"".join(self._deflate(frames, *place) for place in split_frames(frames))
            self._plain = frames
        return self._deflated

    def _deflate(self, frames: bytes, start: int, payload: int, end: int) -> bytes:
        first = frames[start]
        if end - payload < WORTHWHILE or first not in (0x81, 0x82):
            return frames[start:end]
        # a window that holds the payload is as good as a larger one, which takes several times as long to set up
        window = min(self._window, max(9, (end - payload - 1).bit_length()))
        deflate = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -window, max(1, window - 7))
        # RFC 7692 §7.2.1: the four last bytes are left off
        data = (deflate.compress(frames[payload:end]) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
        frame = text_frame(data) if first == 0x81 else binary_frame(data)
        return bytes((frame[0] | 0x40,)) + frame[1:]


class Deflaters(dict[int, Deflater]):
    """One for each window that was negotiated."""

    def __missing__(self, window: int) -> Deflater:
        self[window] = deflater = Deflater(window)
        return deflater
