"""What the server counts. Plain integers: whoever exports them reads them when asked."""

from __future__ import annotations

__all__ = ["Stats"]


class Stats:
    """Counts since the start of the process, but for those that end in `_now`.

    :ivar connections_now: open WebSockets.
    :ivar connections: WebSockets accepted.
    :ivar refused: requests turned away, by reason.
    :ivar http_requests: ordinary HTTP requests answered from the resource tree.
    :ivar bytes_received: on WebSockets, framing included, handshakes not.
    :ivar bytes_sent: the same, counted when they are handed over or queued.
    :ivar messages_received: whole messages given to the component.
    :ivar sends: writes asked for: one for each connection that a fan-out reaches.
    :ivar slow_consumers: connections closed because they did not read.
    :ivar dead_peers: connections dropped because a ping stayed unanswered.
    :ivar protocol_errors: connections failed for what the peer sent (RFC 6455 §7.1.7).
    :ivar component_errors: exceptions that came out of the component.
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
        "refused",
        "sends",
        "slow_consumers",
    )

    def __init__(self) -> None:
        self.connections_now = 0
        self.connections = 0
        self.refused: dict[str, int] = {}
        self.http_requests = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.messages_received = 0
        self.sends = 0
        self.slow_consumers = 0
        self.dead_peers = 0
        self.protocol_errors = 0
        self.component_errors = 0

    def refuse(self, reason: str) -> None:
        """Count one refusal."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
