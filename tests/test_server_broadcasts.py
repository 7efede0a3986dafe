"""Broadcasts in steps: limits, backpressure, and what a step costs. tests/test_broadcasts_model.py has the order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chatws.server import broadcasts, fanout
from chatws.server.fanout import FanOut
from chatws.server.frames import text_frame
from chatws.server.recipients import CHUNK, Recipients
from tests.server_wire import ServerCase, Wire


class BroadcastCase(ServerCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(fanout, "MAX_SENDS_AT_ONCE", 2)
        self.patch(fanout, "MIN_BROADCAST", 2)
        self.jobs: list[Callable[[], bool]] = []
        self.fan_out = FanOut(submit=self.jobs.append)
        assert self.fan_out.broadcasts is not None
        self.broadcasts = self.fan_out.broadcasts

    def serve(self, component: Any = None, **ws: Any) -> None:
        super().serve(component, broadcasts=self.broadcasts, **ws)

    def room(self, count: int, **options: Any) -> tuple[list[Wire], Recipients[Any]]:
        wires, connections = zip(*[self.connect(**options) for _ in range(count)], strict=True)
        return list(wires), Recipients(connections)

    def send(self, room: Any, *texts: str) -> int:
        return self.fan_out.send_all([(room, [text_frame(text.encode()) for text in texts])])

    def run_steps(self) -> int:
        """Run all steps, and return their number."""
        steps = 0
        while self.jobs:
            steps += 1
            if not self.jobs[0]():
                self.jobs.pop(0)
        return steps


class BroadcastTests(BroadcastCase):
    def test_few_recipients_are_sent_to_at_once(self) -> None:
        wires, room = self.room(2)
        assert self.send(room, "a", "b") == 0
        assert [wire.texts() for wire in wires] == [["a", "b"]] * 2
        assert self.jobs == []

    def test_step_sends_to_one_chunk_and_no_more_bytes_than_its_limit(self) -> None:
        _, room = self.room(3)
        for connection in room:
            connection._socket = Sink()
        many = Recipients([*room] * CHUNK)  # a connection may be there more than once: only the steps are counted
        assert self.send(many, "a") == 3 * CHUNK
        assert self.run_steps() == 3
        self.send(room, "x" * broadcasts.STEP_BYTES)
        assert self.run_steps() == 3, "one connection each"

    def test_events_that_come_meanwhile_join_the_broadcast_in_one_write(self) -> None:
        wires, room = self.room(3)
        self.send(room, "a")
        self.send(room, "b")
        self.send(room, "c")
        sends = self.ws.stats.sends
        assert len(self.jobs) == 1
        assert self.run_steps() == 1
        assert self.ws.stats.sends == sends + 3
        assert [wire.texts() for wire in wires] == [["a", "b", "c"]] * 3

    def test_broadcast_that_is_always_joined_goes_on_and_drops_what_all_have_got(self) -> None:
        self.patch(broadcasts, "STEP_BYTES", 1)
        wires, room = self.room(3)
        got: list[list[str]] = [[], [], []]
        for number in range(20):
            self.send(room, str(number))
            (broadcast,) = self.broadcasts.active.values()
            assert len(broadcast.entries) <= 6
            self.jobs[0]()
            for texts, wire in zip(got, wires, strict=True):
                texts += wire.texts()
        assert min(map(len, got)) >= 17
        self.run_steps()
        assert [texts + wire.texts() for texts, wire in zip(got, wires, strict=True)] == [[*map(str, range(20))]] * 3

    def test_stream_follows_a_broadcast(self) -> None:
        wires, room = self.room(3)
        self.send(room, "a")
        room[2].stream(iter([text_frame(b"b")]))
        assert wires[2].texts() == ["a", "b"]
        self.run_steps()

    def test_close_frame_follows_a_broadcast_and_a_drop_discards_it(self) -> None:
        wires, room = self.room(4)
        self.send(room, "a")
        room[3].close(4012, "restart")
        room[2].close(4903, "banned", drop_unsent=True)
        assert [first for first, _ in wires[3].frames()] == [0x81, 0x88]
        assert [first for first, _ in wires[2].frames()] == [0x88]
        self.run_steps()
        assert wires[2].frames() == wires[3].frames() == []
        assert wires[0].texts() == ["a"]

    def test_slow_consumer_is_closed_by_its_own_queue_and_not_by_the_waiting_broadcast(self) -> None:
        self.serve(send_buffer=50_000)
        wires, room = self.room(3, send_buffer=4096)
        for _ in range(8):
            self.send(room, "x" * 10_000)
        assert all(connection.is_open for connection in room)
        self.run_steps()
        for wire in wires[:2]:
            assert len(wire.texts()) == 8
        self.send(room, "x" * 10_000)
        self.run_steps()
        for _ in range(10):
            self.send(room, "x" * 10_000)
            for wire in wires[:2]:
                wire.texts()
            self.run_steps()
        assert [connection.is_open for connection in room] == [True, True, False]
        assert self.ws.stats.slow_consumers == 1

    def test_lost_connection_does_not_stop_the_broadcast(self) -> None:
        wires, room = self.room(3)
        self.send(room, "a")
        wires[0].close()
        self.run_steps()
        assert [wire.texts() for wire in wires[1:]] == [["a"]] * 2

    def test_failed_step_is_logged_and_the_broadcast_goes_on(self) -> None:
        wires, room = self.room(3)
        self.patch(broadcasts, "STEP_BYTES", 1)
        self.send(room, "a")
        send = self.broadcasts._send
        self.broadcasts._send = lambda groups: 1 // 0  # type: ignore[assignment, return-value]
        self.jobs[0]()
        self.broadcasts._send = send
        self.run_steps()
        assert [wire.texts() for wire in wires] == [[], ["a"], ["a"]]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_publishers_wait_while_much_is_unsent(self) -> None:
        _, room = self.room(3)
        self.patch(broadcasts, "MAX_BACKLOG", 100)
        self.send(room, "x" * 20)
        assert self.fan_out.when_ready() is None
        self.send(room, "x" * 20)
        ready = self.fan_out.when_ready()
        assert ready is not None
        self.assertNoResult(ready)
        self.run_steps()
        self.successResultOf(ready)
        assert self.fan_out.when_ready() is None
        assert self.broadcasts.unsent == 0

    def test_too_much_is_sent_at_once(self) -> None:
        wires, room = self.room(3)
        self.patch(broadcasts, "MAX_FRAMES", 50)
        self.send(room, "x" * 20)
        self.send(room, "x" * 20)
        assert [len(wire.texts()) for wire in wires] == [0] * 3
        self.send(room, "x" * 20)
        assert [len(wire.texts()) for wire in wires] == [3] * 3
        self.run_steps()
        assert [len(wire.texts()) for wire in wires] == [0] * 3
        assert self.broadcasts.unsent == 0

    def test_too_many_broadcasts_end_the_first_one(self) -> None:
        wires, room = self.room(3)
        self.patch(broadcasts, "MAX_BROADCASTS", 2)
        for text in "abc":
            self.send([*room], text)
        assert len(self.broadcasts.active) == 2
        assert [wire.texts() for wire in wires] == [["a", "b"]] * 3
        self.run_steps()
        assert [wire.texts() for wire in wires] == [["c"]] * 3


class Sink:
    """A socket that takes everything."""

    def send(self, data: bytes) -> int:
        return len(data)
