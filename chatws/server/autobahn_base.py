"""Autobahn's server protocol with its state as attributes of the class.

Autobahn's `_connectionMade` copies some 25 options and as many initial values into every instance. With ten thousand
connections that is the largest part of their memory. Here they are attributes of the class, with one subclass for each
server (`make_protocol_class`). An instance has only the attributes that differ.

This module and `chatws.server.ws_protocol` use private attributes of Autobahn. `tests/test_private_api.py` lists them
and fails if a new version lacks one.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeVar

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import TrafficStats
from autobahn.websocket.utf8validator import Utf8Validator
from twisted.logger import Logger

__all__ = ["AutobahnBase", "make_protocol_class"]

log = Logger()

#: Bytes of the longest payload with a one-byte length field (RFC 6455 §5.2).
_MAX_SHORT_PAYLOAD = 125


class _NullLogger:
    """Drops what Autobahn logs, except errors. It logs each mistake of a peer, so any peer could fill the disk."""

    def _ignore(self, *arguments: object, **fields: object) -> None:
        pass

    debug = info = warn = trace = _ignore

    def error(self, message: str, *arguments: object, **fields: Any) -> None:
        log.error(message, **fields)


class AutobahnBase(WebSocketServerProtocol):
    """`WebSocketServerProtocol`, without what its constructor and `_connectionMade` set on every instance.

    :cvar max_short_text: bytes of a text message that `WsProtocol` parses by itself, 125 or less.
    """

    log = _NullLogger()
    max_short_text: int

    state = WebSocketServerProtocol.STATE_CONNECTING
    send_state = WebSocketServerProtocol.SEND_STATE_GROUND
    data = b""
    current_frame: Any = None
    current_frame_masker: Any = None
    control_frame_data: Any = None
    inside_message = False
    message_data: Any = None
    frame_data: Any = None
    send_queue: Any = ()
    triggered = False
    trackedTimings: Any = None
    wasMaxFramePayloadSizeExceeded = False
    wasMaxMessagePayloadSizeExceeded = False
    closedByMe = False
    failedByMe = False
    droppedByMe = False
    wasClean = False
    wasNotCleanReason: Any = None
    wasServerConnectionDropTimeout = False
    wasOpenHandshakeTimeout = False
    wasCloseHandshakeTimeout = False
    wasServingFlashSocketPolicyFile = False
    localCloseCode: Any = None
    localCloseReason: Any = None
    remoteCloseCode: Any = None
    remoteCloseReason: Any = None
    openHandshakeTimeoutCall = None
    closeHandshakeTimeoutCall = None
    autoPingTimeoutCall = None
    autoPingPending = None
    autoPingPendingCall = None
    autoPingPendingSeq = 0
    autoPingPendingSent = None
    websocket_version = 13
    _perMessageCompress: Any = None

    def __init__(self) -> None:
        # Autobahn's makes two futures and a description of the transport, which nothing reads
        pass

    @cached_property
    def utf8validator(self) -> Utf8Validator:  # type: ignore[override]  # an attribute of each instance there
        """Autobahn's validator, created at its first use: most connections send only short texts."""
        return Utf8Validator()  # type: ignore[no-untyped-call]


ProtocolClass = TypeVar("ProtocolClass", bound=type[AutobahnBase])


def make_protocol_class(base: ProtocolClass, server: Any, factory: WebSocketServerFactory) -> ProtocolClass:
    """Make the protocol class of one server, with the factory's options as attributes.

    :param base: the class to derive from.
    :param server: the `WsServer`, which becomes the attribute `server`.
    """
    options = {name: getattr(factory, name) for name in WebSocketServerProtocol.CONFIG_ATTRS}
    # a function, which would become a method
    options["perMessageCompressionAccept"] = staticmethod(options["perMessageCompressionAccept"])
    attributes = {
        "CONFIG_ATTRS": (),
        "factory": factory,
        "server": server,
        # Autobahn counts into it, and nothing reads it: one for all connections
        "trafficStats": TrafficStats(),  # type: ignore[no-untyped-call]
        "max_short_text": min(options["maxMessagePayloadSize"] or _MAX_SHORT_PAYLOAD, _MAX_SHORT_PAYLOAD),
    }
    return type(base.__name__, (base,), {**options, **attributes})  # type: ignore[return-value]
