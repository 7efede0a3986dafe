"""permessage-deflate (RFC 7692), negotiated by Autobahn's parts, without context takeover in either direction.

Without context takeover no compressor or inflater need be kept between messages (some 300 and 40 KiB a connection),
and one deflated frame is the same for all who negotiated the same window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autobahn.websocket.compress import PerMessageDeflate, PerMessageDeflateOffer, PerMessageDeflateOfferAccept

__all__ = ["accept_deflate", "negotiate"]


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


def negotiate(protocol: Any, header: str) -> str:
    """Set up compression on a protocol.

    :param header: the request's `Sec-WebSocket-Extensions`. What cannot be parsed counts as not offered.
    :returns: the extension as it goes into the response, or the empty string.
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
        return ""
    protocol._perMessageCompress = PerMessageDeflate.create_from_offer_accept(True, accepted)  # type: ignore[no-untyped-call]
    extension: str = accepted.get_extension_string()
    if "server_no_context_takeover" not in extension:
        # we do without in any case, and a client that knows need not keep its window either
        extension += "; server_no_context_takeover"
    return extension
