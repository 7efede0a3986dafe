"""The server's counters."""

from __future__ import annotations

__all__ = ["ServerStats"]


class ServerStats:
    """Plain integers, which the metrics exporter reads. Counts since the start of the process, except `*_now`.

    :ivar connections_now: open WebSockets.
    :ivar connections: WebSockets accepted.
    :ivar rejected: rejected requests, by reason.
    :ivar http_requests: ordinary HTTP requests answered from the resource tree.
    :ivar bytes_received: on WebSockets, including framing, without handshakes.
    :ivar bytes_sent: the same, counted when they are sent or queued.
    :ivar messages_received: complete messages given to the component.
    :ivar sends: writes. A fan-out counts one for each connection.
    :ivar slow_consumers: connections closed because their send queue was full.
    :ivar dead_peers: connections dropped because a ping was not answered.
    :ivar protocol_errors: connections failed because the peer broke the protocol (RFC 6455 §7.1.7).
    :ivar component_errors: exceptions raised by the component.
    """

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "component_errors",
        "connections",
        "connections_now",
        "dead_peers",
        "http_requests",
        "messages_received",
        "protocol_errors",
        "rejected",
        "sends",
        "slow_consumers",
    )

    def __init__(self) -> None:
        self.connections_now = 0
        self.connections = 0
        self.rejected: dict[str, int] = {}
        self.http_requests = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.messages_received = 0
        self.sends = 0
        self.slow_consumers = 0
        self.dead_peers = 0
        self.protocol_errors = 0
        self.component_errors = 0

    def count_rejection(self, reason: str) -> None:
        """Count one rejected request."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
