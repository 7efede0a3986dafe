"""Connections that a proxy closes after a fixed time are noticed, once."""

from __future__ import annotations

import socket
import struct

import pytest
from twisted.internet.task import Clock

from chatws.server.idle_limits import SAMPLE, IdleLimitWatch
from tests.log_lines import logged_at
from tests.server_wire import ServerCase, frame


def watch_ends(durations: list[float], pause: float) -> list[str]:
    """The warnings for connections that end one after the other, `pause` seconds apart, after these durations."""
    clock = Clock()
    clock.advance(10_000)
    watch = IdleLimitWatch(clock, 30.0)
    with logged_at() as lines:
        for duration in durations:
            clock.advance(pause)
            watch.ended(clock.seconds() - duration)
    return lines


def test_connections_that_end_after_equal_times_are_warned_about_once() -> None:
    lines = watch_ends([20.3, 20.0, 20.9, 300.0, 20.4, 20.1] * 40, 1.0)
    assert len(lines) == 1
    assert lines[0].startswith("a proxy closes connections after 20 s: ")
    assert "more than twice ping_interval (30 s)" in lines[0]


@pytest.mark.parametrize(
    ("durations", "pause"),
    [
        pytest.param([20.0] * (SAMPLE - 1), 1.0, id="too-few"),
        pytest.param([1.0] * 200, 1.0, id="reloaded-pages"),
        pytest.param([float(number * 7 % 300 + 5) for number in range(400)], 1.0, id="different"),
        pytest.param([600.0] * 5000, 0.001, id="all-at-once-as-when-a-proxy-restarts"),
    ],
)
def test_other_connections_are_not_warned_about(durations: list[float], pause: float) -> None:
    assert watch_ends(durations, pause) == []


class EndsOfConnections(ServerCase):
    """Which ends of real sockets count."""

    def test_ends_without_a_close_frame_by_fin_or_reset_count_and_others_do_not(self) -> None:
        self.serve(ping_interval=0)
        with logged_at() as lines:
            for number in range(2 * SAMPLE):
                closed, _ = self.connect()
                wire, _ = self.connect()
                self.reactor.advance(20)
                if number % 2:  # RST instead of FIN
                    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                wire.close()
                closed.send(frame(b"\x03\xe8", 8))
                closed.close()
                if lines:
                    break
        assert len(lines) == 1
        assert number == SAMPLE - 1
        assert f"{SAMPLE} of the last {SAMPLE} connections" in lines[0]
