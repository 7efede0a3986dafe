"""Frames, fan-out, and readers who are slow."""

from __future__ import annotations

import gc
import random
from array import array
from collections.abc import Iterator
from itertools import islice
from typing import Any

from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from chatws.server import fanout
from chatws.server.fanout import FanOut
from chatws.server.frames import binary_frame, close_frame, rest_of_frame, text_frame
from chatws.server.io_uring import NULL_KEY, Ring
from chatws.server.recipients import Recipients, collect_keys
from chatws.server.send_queue import CHUNK_SIZE
from tests.requirements import needs_io_uring
from tests.server_wire import Recorder, ServerCase, frame, head, split_frames

MARK = "e" * 1000


class FrameTests(SynchronousTestCase):
    def test_lengths_are_written_in_the_shortest_form(self) -> None:
        for length, header in (
            (0, b"\x81\x00"),
            (125, b"\x81\x7d"),
            (126, b"\x81\x7e\x00\x7e"),
            (65535, b"\x81\x7e\xff\xff"),
            (65536, b"\x81\x7f" + (65536).to_bytes(8, "big")),
        ):
            payload = b"x" * length
            assert text_frame(payload) == header + payload
            assert binary_frame(payload) == b"\x82" + header[1:] + payload

    def test_a_close_frame_holds_code_and_reason(self) -> None:
        assert close_frame(4001, b"slow") == b"\x88\x06\x0f\xa1slow"

    def test_the_rest_of_a_frame_is_found_at_every_offset(self) -> None:
        frames = [text_frame(b"x" * length) for length in (0, 5, 125, 126, 300, 65535, 65536)]
        blob = b"".join(frames)
        boundaries = [0]
        for single in frames:
            boundaries.append(boundaries[-1] + len(single))
        for offset in (*range(900), *(random.Random(1).randrange(len(blob)) for _ in range(200)), *boundaries):
            expected = next(boundary for boundary in boundaries if boundary >= offset)
            assert rest_of_frame(blob, offset) == expected - offset


class CountingSocket:
    """Stands before a socket and counts."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.sends: list[bytes] = []

    def send(self, data: bytes) -> int:
        self.sends.append(data)
        return self.inner.send(data)


class CountingRing(Ring):
    """Counts for each socket, and how often the kernel was asked."""

    asked = 0

    def __init__(self) -> None:
        self.sends: dict[int, list[bytes]] = {}
        super().__init__()
        self.sends.clear()
        self.asked = 0

    def send(self, keys: Any, blobs: Any, counts: Any) -> dict[int, int]:
        left = iter(keys)
        for blob, count in zip(blobs, counts, strict=True):
            for key in islice(left, count):
                self.sends.setdefault(key, []).append(blob)
        return super().send(keys, blobs, counts)

    def _enter(self, count: int) -> int:
        self.asked += 1
        return super()._enter(count)


class FanOutCase(ServerCase):
    def setUp(self) -> None:
        super().setUp()
        self.fan_out = FanOut()

    def send_all(self, groups: Any) -> None:
        self.fan_out.send_all(groups)

    def count(self, connections: list[Any]) -> list[list[bytes]]:
        """What is sent to each from now on."""
        for connection in connections:
            connection._socket = CountingSocket(connection._socket)
        return [connection._socket.sends for connection in connections]


class ManyMixin:
    """The same connections come in the same `Recipients` each time, as from a hub."""

    def send_all(self, groups: Any) -> None:
        known: dict[Any, Recipients[Any]] = self.__dict__.setdefault("known", {})
        super().send_all(
            [(known.setdefault(tuple(connections), Recipients(connections)), frames) for connections, frames in groups]
        )


@needs_io_uring
class RingMixin:
    """The kernel is asked for all sends at once."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(fanout, "IO_URING_MIN_SENDS", 1)
        self.fan_out.ring = self.ring = CountingRing()

    def tearDown(self) -> None:
        super().tearDown()
        assert self.ring.error is None
        assert self.fan_out.ring is self.ring
        assert bool(self.ring.asked) == bool(self.ring.sends)

    def count(self, connections: list[Any]) -> list[list[bytes]]:
        return [self.ring.sends.setdefault(connection._key, []) for connection in connections]


class SendAllTests(FanOutCase):
    def room(self, size: int) -> tuple[list[Any], list[Any]]:
        pairs = [self.connect() for _ in range(size)]
        return [wire for wire, _ in pairs], [connection for _, connection in pairs]

    def test_one_group_is_one_send_of_the_same_bytes_object_to_each_connection(self) -> None:
        _, connections = self.room(3)
        sends = self.count(connections)
        frame = text_frame(b"one")
        self.send_all([(connections, [frame])])
        assert sends == [[frame]] * 3
        assert all(own[0] is frame for own in sends)
        self.send_all([(connections, [frame, text_frame(b"two")])])
        assert all(len(own) == 2 for own in sends)
        assert sends[0][1] is sends[2][1]
        assert not self.reactor.writers, "the reactor is not asked to write"

    def test_several_groups_are_one_send_to_each_connection_in_the_order_of_the_groups(self) -> None:
        wires, connections = self.room(4)
        sends = self.count(connections)
        first, second, third, _ = connections
        frames = {name: text_frame(name.encode()) for name in "abcd"}
        self.send_all(
            [
                ([first, second], [frames["a"]]),
                ([second, third], [frames["b"], frames["c"]]),
                ([first, second, third], [frames["d"]]),
            ]
        )
        assert [wire.texts() for wire in wires] == [["a", "d"], ["a", "b", "c", "d"], ["b", "c", "d"], []]
        assert [len(own) for own in sends] == [1, 1, 1, 0]

    def test_random_groups_are_sent_as_by_a_plain_loop(self) -> None:
        wires, connections = self.room(6)
        source = random.Random(6)
        for _ in range(100):
            groups = []
            expected: dict[Any, list[str]] = {connection: [] for connection in connections}
            for number in range(source.randrange(5)):
                recipients = source.sample(connections, source.randrange(6))
                texts = [f"{number} {position}" for position in range(source.randrange(4))]
                groups.append((recipients, [text_frame(text.encode()) for text in texts]))
                for connection in recipients:
                    expected[connection] += texts
            self.send_all(groups)
            assert [wire.texts() for wire in wires] == list(expected.values())

    def test_equal_sequences_are_joined_once(self) -> None:
        _, connections = self.room(3)
        sends = self.count(connections)
        self.send_all([(connections, [text_frame(b"a")]), (connections, [text_frame(b"b")])])
        assert sends[0][0] is sends[1][0] is sends[2][0]

    def test_closed_connections_are_skipped(self) -> None:
        wires, connections = self.room(3)
        connections[1].close()
        self.send_all([(connections, [text_frame(b"a")])])
        assert [wires[0].texts(), wires[2].texts()] == [["a"], ["a"]]
        wires[1].close()
        self.send_all([(connections, [text_frame(b"b")]), (connections, [])])
        assert wires[0].texts() == ["b"]

    def test_a_closed_socket_does_not_affect_others(self) -> None:
        wires, connections = self.room(3)
        wires[1].socket.close()  # and the reactor has not noticed
        self.send_all([(connections, [text_frame(b"a")])])
        self.send_all([(connections, [text_frame(b"b")])])
        assert [wires[0].texts(), wires[2].texts()] == [["a", "b"]] * 2
        self.reactor.turn()
        assert self.component.events[-1] == ("close", 2)

    def test_no_connections_or_no_frames_send_nothing(self) -> None:
        _, connections = self.room(1)
        sends = self.count(connections)
        self.send_all([])
        self.send_all([([], [text_frame(b"a")])])
        self.send_all([(connections, [])])
        assert sends == [[]]
        self.send_all([(connections, [text_frame(b"a")])])
        assert sends == [[text_frame(b"a")]]

    def test_delivery_allocates_little_and_schedules_nothing(self) -> None:
        _, connections = self.room(50)
        frame = text_frame(b"x" * 250)
        room = dict.fromkeys(connections)
        self.send_all([(room, [frame])])
        calls: list[str] = []
        for name in ("addWriter", "removeWriter", "addReader", "removeReader", "callLater"):
            self.patch(self.reactor, name, lambda *_, name=name: calls.append(name))
        gc.collect()
        gc.disable()
        try:
            before = len(gc.get_objects())
            for _ in range(20):
                self.send_all([(room, [frame])])
            assert len(gc.get_objects()) - before < 10
        finally:
            gc.enable()
        assert calls == []

    def test_counters_count_each_delivery_once(self) -> None:
        _, connections = self.room(4)
        connections[3].close()
        frame = text_frame(b"x")
        before = self.ws.stats.bytes_sent, self.ws.stats.sends
        self.send_all([(connections, [frame])])
        assert (self.ws.stats.bytes_sent, self.ws.stats.sends) == (before[0] + 3 * len(frame), before[1] + 3)


class SlowReaderTests(FanOutCase):
    """A send buffer of the kernel's smallest size makes slow readers cheap."""

    def fill(self, connection: Any, count: int) -> None:
        for number in range(count):
            connection.send(f"{number:05} {MARK}")

    def test_unsent_data_is_sent_in_order_when_the_peer_reads(self) -> None:
        wire, connection = self.connect(send_buffer=4096)
        self.fill(connection, 300)
        assert connection.unsent > 0
        assert connection.is_open
        texts = wire.texts()
        assert [text[:5] for text in texts] == [f"{number:05}" for number in range(300)]
        assert connection.unsent == 0
        assert self.reactor.writers == set()
        connection.send("direct again")
        assert connection._send_queue is None
        assert wire.texts() == ["direct again"]

    def test_transport_holds_at_most_one_chunk(self) -> None:
        _, connection = self.connect(send_buffer=4096)
        self.fill(connection, 600)
        transport = connection.transport
        held = len(transport.dataBuffer) + transport._tempDataLen
        assert 0 < held <= CHUNK_SIZE

    def test_events_and_replies_keep_their_order_in_the_send_queue(self) -> None:
        wire, connection = self.connect(send_buffer=4096)
        other_wire, other = self.connect()
        expected = []
        for number in range(200):
            if number % 2:
                self.send_all([([other, connection], [text_frame(f"{number:05} {MARK}".encode())])])
                other_wire.read()
            else:
                connection.send(f"{number:05} {MARK}")
            expected.append(f"{number:05}")
        assert [text[:5] for text in wire.texts()] == expected

    def test_pongs_are_queued_behind_frames_and_do_not_split_them(self) -> None:
        wire, connection = self.connect(send_buffer=4096)
        self.fill(connection, 100)
        wire.send(frame("are you there", opcode=9))
        result = wire.frames()
        assert result[-1] == (0x8A, b"are you there")
        assert len(result) == 101

    def test_send_queue_over_its_limit_closes_with_4001_and_frees_the_memory(self) -> None:
        self.serve(send_buffer=200_000)
        wire, connection = self.connect(send_buffer=4096)
        bystander_wire, bystander = self.connect()
        self.fill(connection, 150)
        assert connection.is_open
        self.fill(connection, 150)
        assert not connection.is_open
        assert connection.unsent < CHUNK_SIZE + 2000, "only what the transport holds, and the rest of a frame"
        assert self.ws.stats.slow_consumers == 1
        self.fill(connection, 100)
        assert connection.unsent < CHUNK_SIZE + 2000
        bystander.send("fine")
        assert bystander_wire.texts() == ["fine"]
        # it reads on after all, and what comes is whole
        result = wire.frames()
        assert wire.received == b""
        assert [payload[:5] for _, payload in result[:-1]] == [b"%05d" % number for number in range(len(result) - 1)]
        assert result[-1][0] == 0x88
        assert result[-1][1][:2] == (4001).to_bytes(2, "big")
        wire.send(frame(result[-1][1][:2], opcode=8))
        wire.read()
        assert wire.at_eof
        assert self.component.events[-1] == ("close", 1)

    def test_a_peer_that_stops_reading_is_dropped(self) -> None:
        self.serve(send_buffer=200_000)
        _, connection = self.connect(send_buffer=4096)
        self.fill(connection, 300)
        assert not connection.is_open
        self.reactor.advance(5.5)
        self.reactor.turn()
        assert self.component.events == [("open", 1), ("close", 1)]

    def test_a_message_larger_than_send_buffer_reaches_a_reading_peer(self) -> None:
        self.serve(send_buffer=10_000)
        wire, connection = self.connect(send_buffer=4096)
        big = "x" * 500_000
        connection.send(big)
        assert connection.is_open
        assert wire.texts() == [big]

    def test_a_close_frame_follows_earlier_messages(self) -> None:
        wire, connection = self.connect(send_buffer=4096)
        self.fill(connection, 100)
        connection.close(4012, "restart")
        result = wire.frames()
        assert len(result) == 101
        assert result[-1] == (0x88, b"\x0f\xacrestart")

    def test_close_with_an_unread_queue_ends_after_a_timeout(self) -> None:
        _, connection = self.connect(send_buffer=4096)
        self.fill(connection, 100)
        connection.close(4012)
        self.reactor.advance(5.5)
        self.reactor.turn()
        assert self.component.events[-1] == ("close", 1)

    def test_the_peer_s_close_discards_unsent_data(self) -> None:
        wire, connection = self.connect(send_buffer=4096)
        self.fill(connection, 500)
        wire.send(frame(b"\x03\xe8", opcode=8))
        assert connection.unsent < CHUNK_SIZE + 2000
        result = wire.frames()
        assert result[-1] == (0x88, b"\x03\xe8")
        assert len(result) < 200
        assert wire.at_eof

    def test_lost_connection_releases_its_send_queue(self) -> None:
        wire, connection = self.connect(send_buffer=4096)
        self.fill(connection, 100)
        wire.close()
        assert connection.unsent == 0
        assert self.component.events[-1] == ("close", 1)

    def test_a_slow_but_reading_peer_is_not_dropped(self) -> None:
        wire, connection = self.connect(send_buffer=4096)
        self.fill(connection, 900)
        for _ in range(100):
            self.reactor.advance(1)
            wire.frames(8000)  # its pong would have to wait until it has read all before the ping
        assert connection.is_open

    def test_slow_peers_share_the_memory_of_queued_frames(self) -> None:
        connections = [self.connect(send_buffer=4096)[1] for _ in range(20)]
        frame = text_frame(b"x" * 200_000)
        for _ in range(3):
            self.send_all([(connections, [frame])])
        for connection in connections:
            waiting = [item for item in connection._send_queue.queue if isinstance(item, bytes)]
            assert len(waiting) == 2
            assert all(item is frame for item in waiting)


class StreamTests(ServerCase):
    def chunks(self, count: int, asked: list[int]) -> Iterator[bytes]:
        for number in range(count):
            asked.append(number)
            yield b"".join(text_frame(f"{number}.{part} {MARK}".encode()) for part in range(10))

    def test_a_stream_is_made_as_it_is_read_and_does_not_count_against_the_send_buffer(self) -> None:
        self.serve(send_buffer=50_000)
        wire, connection = self.connect(send_buffer=4096)
        asked: list[int] = []
        connection.stream(self.chunks(500, asked))
        connection.send("behind")
        assert len(asked) < 20
        assert connection.is_open
        texts = wire.texts()
        assert len(asked) == 500
        assert [text.split(" ")[0] for text in texts[:-1]] == [f"{n}.{p}" for n in range(500) for p in range(10)]
        assert texts[-1] == "behind"
        assert connection.unsent == 0

    def test_a_short_stream_to_a_reading_peer_is_sent_at_once(self) -> None:
        wire, connection = self.connect()
        connection.stream(iter([text_frame(b"a"), b"", text_frame(b"b")]))
        connection.stream(iter([]))
        connection.send("c")
        assert wire.texts() == ["a", "b", "c"]
        assert connection._send_queue is None

    def test_streams_follow_each_other(self) -> None:
        wire, connection = self.connect(send_buffer=4096)
        asked: list[int] = []
        connection.stream(self.chunks(30, asked))
        connection.stream(iter([text_frame(b"second")]))
        connection.send("third")
        assert wire.texts()[-2:] == ["second", "third"]

    def test_messages_behind_a_stream_count_against_send_buffer(self) -> None:
        self.serve(send_buffer=50_000)
        wire, connection = self.connect(send_buffer=4096)
        asked: list[int] = []
        connection.stream(self.chunks(500, asked))
        for _ in range(60):
            connection.send(MARK)
        assert not connection.is_open
        result = wire.frames()
        assert result[-1][1][:2] == (4001).to_bytes(2, "big")
        assert len(asked) < 20

    def test_a_failing_stream_reaches_on_error_and_later_messages_are_sent(self) -> None:
        def failing() -> Iterator[bytes]:
            yield text_frame(b"one")
            raise LookupError

        wire, connection = self.connect()
        connection.stream(failing())
        connection.send("two")
        assert wire.texts() == ["one", "two"]
        assert isinstance(self.component.errors[0], LookupError)

    def test_a_stream_may_close_its_connection(self) -> None:
        wire, connection = self.connect()

        def closing() -> Iterator[bytes]:
            yield text_frame(b"one")
            connection.close(4000, "enough")
            yield text_frame(b"two")

        connection.stream(closing())
        result = wire.frames()
        assert result[0] == (0x81, b"one")
        assert result[-1] == (0x88, b"\x0f\xa0enough")

    def test_a_stream_may_send_on_its_connection(self) -> None:
        wire, connection = self.connect()

        def sending() -> Iterator[bytes]:
            connection.send("aside")
            yield text_frame(b"one")
            connection.send("aside too")

        connection.stream(sending())
        assert wire.texts() == ["one", "aside", "aside too"]

    def test_a_stream_to_a_closed_connection_is_not_started(self) -> None:
        wire, connection = self.connect()
        wire.close()
        asked: list[int] = []
        connection.stream(self.chunks(3, asked))
        assert asked == []


class OtherTransportTests(ServerCase):
    """TLS and the like: a transport that is written to, and tells when to pause."""

    def open(self, component: Any = None, **options: Any) -> tuple[StringTransport, Any]:
        self.serve(component or Recorder(), **options)
        self.pipe = StringTransport()
        self.visitor = self.http.buildProtocol(None)
        self.visitor.makeConnection(self.pipe)
        self.visitor.dataReceived(head())
        assert b" 101 " in self.pipe.value()
        self.pipe.clear()
        return self.pipe, self.component.connections[0]

    def tearDown(self) -> None:
        self.visitor.connectionLost()
        super().tearDown()

    def frames(self) -> list[tuple[int, bytes]]:
        result, rest = split_frames(self.pipe.value())
        assert rest == b""
        return result

    def test_messages_are_written(self) -> None:
        _, connection = self.open()
        connection.send("a")
        FanOut().send_all([([connection], [text_frame(b"b")])])
        assert self.frames() == [(0x81, b"a"), (0x81, b"b")]

    def test_a_paused_connection_sends_everything_after_resuming(self) -> None:
        pipe, connection = self.open()
        pipe.producer.pauseProducing()
        for number in range(300):
            connection.send(f"{number} {MARK}")
        connection.stream(iter([text_frame(b"streamed")]))
        assert pipe.value() == b""
        assert connection.unsent > 300_000
        pipe.producer.resumeProducing()
        assert len(self.frames()) == 301
        connection.send("after")
        assert self.frames()[-1] == (0x81, b"after")
        assert connection.unsent == 0

    def test_more_than_the_send_buffer_closes_with_4001(self) -> None:
        pipe, connection = self.open(send_buffer=10_000)
        pipe.producer.pauseProducing()
        for _ in range(20):
            connection.send(MARK)
        assert not connection.is_open
        pipe.producer.resumeProducing()
        assert self.frames()[0][1][:2] == (4001).to_bytes(2, "big")
        self.reactor.advance(5.5)
        assert pipe.disconnected

    def test_producer_is_unregistered_before_the_connection_closes(self) -> None:
        pipe, _ = self.open()
        self.visitor.dataReceived(frame(b"\x03\xe8", opcode=8))
        assert pipe.producer is None
        assert pipe.disconnecting
        assert not pipe.disconnected
        assert self.frames() == [(0x88, b"\x03\xe8")]

    def test_close_on_a_paused_transport_waits_until_it_resumes(self) -> None:
        pipe, connection = self.open()
        pipe.producer.pauseProducing()
        connection.send("last")
        connection.close(4000)
        self.visitor.dataReceived(frame(b"\x0f\xa0", opcode=8))
        assert not pipe.disconnecting
        pipe.producer.resumeProducing()
        assert [first for first, _ in self.frames()] == [0x81, 0x88]
        assert pipe.disconnecting
        assert pipe.producer is None

    def test_a_stream_pauses_with_the_transport(self) -> None:
        asked: list[int] = []

        def chunks() -> Iterator[bytes]:
            for number in range(10):
                asked.append(number)
                if number == 3:
                    self.pipe.producer.pauseProducing()
                yield text_frame(b"x" * CHUNK_SIZE)

        pipe, connection = self.open()
        connection.stream(chunks())
        assert len(asked) == 4
        pipe.producer.resumeProducing()
        assert len(asked) == 10
        assert len(self.frames()) == 10


class SendToManyTests(ManyMixin, SendAllTests):
    pass


class SendTogetherTests(RingMixin, SendAllTests):
    pass


class SendToManyTogetherTests(ManyMixin, RingMixin, SendAllTests):
    pass


class CollectKeysTests(FanOutCase):
    def test_keys_of_many_lists_are_those_of_each_before_and_after_a_socket_changes(self) -> None:
        connections = [self.connect()[1] for _ in range(6)]
        lists = [Recipients(connections[:3]), Recipients(connections[2:]), Recipients(connections[:1])]

        def expected() -> list[bytes]:
            return [array("Q", [connection._key for connection in members]).tobytes() for members in lists]

        for _ in range(2):  # the second time from the cache
            assert collect_keys(lists) == expected()
        connections[2].abort()
        assert expected()[0][16:] == array("Q", [NULL_KEY]).tobytes()
        for _ in range(2):
            assert collect_keys(lists) == expected()
        assert collect_keys([]) == []


class SlowReadersAmongManyTests(ManyMixin, SlowReaderTests):
    def test_a_connection_that_falls_behind_is_sent_individually_until_drained(self) -> None:
        slow, connection = self.connect(send_buffer=4096)
        wire, other = self.connect()
        room = Recipients([connection, other])
        expected = [f"{number:05} {MARK}" for number in range(50)]
        for text in expected:
            self.fan_out.send_all([(room, [text_frame(text.encode())])])
        assert (room.sockets(), [*array("Q", room.keys())]) == ((None, other._socket), [NULL_KEY, other._key])
        assert connection.unsent > 0
        assert (wire.texts(), slow.texts()) == (expected, expected)
        assert connection._socket is not None
        assert room.sockets() == (connection._socket, other._socket)
        assert [*array("Q", room.keys())] == [connection._key, other._key]
        self.fan_out.send_all([(room, [text_frame(b"direct again")])])
        assert (slow.texts(), connection._send_queue) == (["direct again"], None)


class SlowReadersTogetherTests(RingMixin, SlowReaderTests):
    pass


class SlowReadersAmongManyTogetherTests(RingMixin, SlowReadersAmongManyTests):
    pass


class TogetherTests(RingMixin, FanOutCase):
    def log(self) -> list[str]:
        """What is logged from now on."""
        lines: list[str] = []

        def observe(event: LogEvent) -> None:
            lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lines

    def test_io_uring_is_used_or_its_absence_is_logged(self) -> None:
        log = self.log()
        able = FanOut()
        able.use_io_uring()
        assert isinstance(able.ring, Ring)
        assert log == []

        def refuses(*_: Any) -> int:
            raise PermissionError(1, "Operation not permitted")

        self.patch(Ring, "_call", refuses)
        unable = FanOut()
        unable.use_io_uring()
        assert unable.ring is None
        assert log == ["io_uring is unavailable, each event is sent by one call: Operation not permitted"]

    def test_many_sends_take_one_system_call(self) -> None:
        pairs = [self.connect() for _ in range(20)]
        groups = [[connection for _, connection in pairs[start::5]] for start in range(5)]
        self.send_all([(group, [text_frame(b"%d" % number)]) for number, group in enumerate(groups)])
        assert [wire.texts() for wire, _ in pairs] == [[str(number % 5)] for number in range(20)]
        assert self.ring.asked == 1

    def test_few_recipients_are_sent_without_io_uring(self) -> None:
        self.patch(fanout, "IO_URING_MIN_SENDS", 3)
        pairs = [self.connect() for _ in range(3)]
        connections = [connection for _, connection in pairs]
        self.send_all([(connections[:2], [text_frame(b"two")])])
        assert self.ring.asked == 0
        self.send_all([(connections, [text_frame(b"three")])])
        assert self.ring.asked == 1
        assert [wire.texts() for wire, _ in pairs] == [["two", "three"], ["two", "three"], ["three"]]

    def test_data_over_the_maximum_payload_is_sent_without_io_uring(self) -> None:
        pairs = [self.connect() for _ in range(2)]
        size = Ring.MAX_PAYLOAD // 2
        self.send_all([([connection], [text_frame(b"x" * size)]) for _, connection in pairs])
        assert self.ring.asked == 0
        assert [[len(text) for text in wire.texts()] for wire, _ in pairs] == [[size]] * 2
        self.send_all([([connection], [text_frame(b"x" * (size - 10))]) for _, connection in pairs])
        assert self.ring.asked == 1
        assert [[len(text) for text in wire.texts()] for wire, _ in pairs] == [[size - 10]] * 2

    def test_a_reused_descriptor_gets_no_frame_of_its_predecessor(self) -> None:
        wire, connection = self.connect()
        stays, other = self.connect()
        room = Recipients([connection, other])
        self.fan_out.send_all([(room, [text_frame(b"a")])])
        number = connection._socket.fileno()
        wire.close()
        newcomer, new = self.connect()
        assert new._socket.fileno() == number, "the kernel gives the lowest number that is free"
        self.fan_out.send_all([(room, [text_frame(b"b")])])
        assert (newcomer.texts(), stays.texts()) == ([], ["a", "b"])

    def test_a_failing_io_uring_falls_back_to_single_sends(self) -> None:
        pairs = [self.connect() for _ in range(3)]
        connections = [connection for _, connection in pairs]

        def fails(*_: Any) -> int:
            raise PermissionError(1, "Operation not permitted")

        broken = CountingRing()
        broken._call = fails
        self.fan_out.ring = broken
        log = self.log()
        for text in (b"a", b"b"):
            self.send_all([(connections, [text_frame(text)])])
        assert [wire.texts() for wire, _ in pairs] == [["a", "b"]] * 3
        assert self.fan_out.ring is None
        assert log == ["io_uring failed, each event is sent by one call from now on: [Errno 1] Operation not permitted"]
        self.fan_out.ring = self.ring
