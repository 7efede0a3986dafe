"""WebSockets: the handshake's answer, messages, limits, pings, closing, and components that fail."""

from __future__ import annotations

from typing import Any

import pytest

from chatws.errors import CloseCode
from chatws.server.echo import EchoServer
from tests.server_wire import ACCEPT, BinaryRecorder, Recorder, ServerCase, Wire, frame, head


class OpeningTests(ServerCase):
    def test_the_answer_to_the_handshake_is_that_of_the_rfc(self) -> None:
        wire = self.wire()
        wire.send(head("/ws"))
        status, headers, rest = wire.response()
        assert (status, rest) == (101, b"")
        assert headers == {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-accept": ACCEPT}

    def test_both_paths_are_served_and_the_query_is_kept(self) -> None:
        _, connection = self.connect()
        assert (connection.http_request.path, connection.http_request.query) == ("/ws", "")
        wire = self.wire()
        wire.send(head("/?room=7&x=%20", Cookie="session=abc; a=b"))
        assert wire.response()[0] == 101
        request = self.component.connections[-1].http_request
        assert (request.method, request.path, request.query) == ("GET", "/", "room=7&x=%20")
        assert request.cookies == {"session": "abc", "a": "b"}
        assert request.headers["host"] == "chat.example:8080"

    def test_a_request_head_sent_byte_by_byte_is_accepted(self) -> None:
        wire = self.wire()
        for byte in head():
            wire.send(bytes([byte]))
        assert wire.response()[0] == 101

    def test_a_frame_sent_right_behind_the_head_is_not_lost(self) -> None:
        wire = self.wire()
        wire.send(head() + frame("early") + frame("too")[:3])
        assert wire.response()[0] == 101
        wire.send(frame("too")[3:])
        assert self.component.events == [("open", 1), ("message", 1, "early"), ("message", 1, "too")]

    def test_resource_ids_increase_and_connections_take_attributes(self) -> None:
        _, first = self.connect()
        _, second = self.connect()
        assert (first.resource_id, second.resource_id) == (1, 2)
        assert first.client is None
        first.nickname = "Ana"
        assert first.nickname == "Ana"
        assert not hasattr(second, "nickname")
        assert first.remote_address == "192.0.2.7"

    def test_messages_sent_in_on_open_follow_the_handshake(self) -> None:
        class Greeter(Recorder):
            def on_open(self, connection: Any) -> None:
                super().on_open(connection)
                connection.send("welcome")

        self.serve(Greeter())
        wire, _ = self.connect()
        assert wire.texts() == ["welcome"]


class MessageTests(ServerCase):
    def test_texts_of_every_length_are_echoed(self) -> None:
        self.serve(EchoComponent())
        wire, _ = self.connect()
        for length in (0, 1, 125, 126, 127, 65535, 65536):
            wire.send(frame("x" * length))
            assert wire.texts() == ["x" * length]

    def test_short_texts_of_one_read_are_delivered_separately(self) -> None:
        wire, _ = self.connect()
        long, empty, ping = frame("y" * 126), frame(""), frame("still there?", 9)
        wire.send(
            frame("a") + frame("b") + long + frame("c") + ping + frame("d") + empty + frame("e") + frame("f")[:-1]
        )
        texts = ["a", "b", "y" * 126, "c", "d", "", "e"]
        assert self.component.events == [("open", 1), *(("message", 1, text) for text in texts)]
        assert [payload for first, payload in wire.frames() if first == 0x8A] == [b"still there?"]
        wire.send(frame("f")[-1:])
        assert self.component.events[-1] == ("message", 1, "f")
        assert self.ws.stats.messages_received == 8

    def test_a_short_text_behind_one_at_which_the_component_closes_is_not_delivered(self) -> None:
        class Closer(Recorder):
            def on_message(self, connection: Any, message: str) -> None:
                super().on_message(connection, message)
                connection.close(4000, "enough")

        self.serve(Closer())
        wire, _ = self.connect()
        wire.send(frame("a") + frame("b"))
        assert self.component.events == [("open", 1), ("message", 1, "a")]

    def test_a_short_text_behind_one_at_which_the_component_aborts_is_not_delivered(self) -> None:
        class Aborter(Recorder):
            def on_message(self, connection: Any, message: str) -> None:
                super().on_message(connection, message)
                connection.abort()

        self.serve(Aborter())
        wire, _ = self.connect()
        wire.send(frame("a") + frame("b"))
        self.reactor.turn()
        assert self.component.events == [("open", 1), ("message", 1, "a"), ("close", 1)]

    def test_a_short_text_in_the_middle_of_a_message_in_fragments_is_a_protocol_error(self) -> None:
        wire, _ = self.connect()
        wire.send(frame("one", fin=False) + frame("two"))
        assert self.component.events == [("open", 1)]
        assert wire.closed_with()[0] == 1002

    def test_a_message_in_fragments_with_a_ping_between_is_one_message(self) -> None:
        wire, _ = self.connect()
        wire.send(frame("He", fin=False) + frame("are you there", opcode=9) + frame("llo", opcode=0))
        assert self.component.events[1:] == [("message", 1, "Hello")]
        assert wire.frames() == [(138, b"are you there")]

    def test_a_message_fragmented_within_a_character_is_delivered(self) -> None:
        wire, _ = self.connect()
        raw = "olá 👋".encode()
        for byte in frame(raw[:3], fin=False) + frame(raw[3:], opcode=0):
            wire.send(bytes([byte]))
        assert self.component.events[1:] == [("message", 1, "olá 👋")]

    def test_binary_messages_go_to_a_component_that_takes_them(self) -> None:
        self.serve(BinaryRecorder())
        wire, connection = self.connect()
        wire.send(frame(b"\x00\xff", opcode=2))
        assert self.component.events[1:] == [("binary", 1, b"\x00\xff")]
        connection.send(b"\x01\x02")
        assert wire.frames() == [(130, b"\x01\x02")]

    def test_binary_message_to_a_text_component_closes_with_1003(self) -> None:
        wire, _ = self.connect()
        wire.send(frame(b"\x00", opcode=2))
        assert wire.closed_with()[0] == 1003

    def test_nothing_is_sent_or_received_after_close(self) -> None:
        wire, connection = self.connect()
        connection.close(4000, "go")
        assert not connection.is_open
        connection.send("late")
        connection.send_frames(b"\x81\x00")
        connection.close(4001, "again")
        wire.send(frame("late too"))
        assert wire.closed_with() == (4000, "go")
        assert self.component.events == [("open", 1)]

    def test_stats_count_connections_messages_and_bytes(self) -> None:
        wire, connection = self.connect()
        wire.send(frame("hello"))
        connection.send("you")
        stats = self.ws.stats
        assert (stats.connections, stats.connections_now, stats.messages_received) == (1, 1, 1)
        assert (stats.bytes_received, stats.sends) == (len(frame("hello")), 2)


class EchoComponent(EchoServer, Recorder):
    on_open = Recorder.on_open


class LimitTests(ServerCase):
    def fails_with(self, data: bytes, code: int) -> None:
        """The peer's data closes its connection with `code`, and a bystander notices nothing."""
        bystander, other = self.connect()
        wire, _ = self.connect()
        self.component.events.clear()
        wire.send(data)
        assert wire.closed_with()[0] == code
        wire.send(frame(code.to_bytes(2, "big"), opcode=8))
        wire.read()
        assert wire.at_eof
        assert self.component.events == [("close", 2)]
        assert self.ws.stats.protocol_errors == 1
        other.send("still here")
        assert bystander.texts() == ["still here"]

    def test_an_unmasked_frame_is_a_protocol_error(self) -> None:
        self.fails_with(frame("hi", mask=None), 1002)

    def test_reserved_bits_are_a_protocol_error(self) -> None:
        self.fails_with(frame("hi", rsv=4), 1002)

    def test_a_reserved_opcode_is_a_protocol_error(self) -> None:
        self.fails_with(frame("hi", opcode=3), 1002)

    def test_continuation_without_a_message_is_a_protocol_error(self) -> None:
        self.fails_with(frame("hi", opcode=0), 1002)

    def test_a_message_within_a_message_is_a_protocol_error(self) -> None:
        self.fails_with(frame("a", fin=False) + frame("b"), 1002)

    def test_a_long_ping_is_a_protocol_error(self) -> None:
        self.fails_with(frame("x" * 126, opcode=9), 1002)

    def test_a_fragmented_ping_is_a_protocol_error(self) -> None:
        self.fails_with(frame("x", opcode=9, fin=False), 1002)

    def test_a_length_not_in_its_shortest_form_is_a_protocol_error(self) -> None:
        self.fails_with(b"\x81\xfe\x00\x05" + b"\0\0\0\0" + b"hello", 1002)

    def test_an_invalid_close_code_is_a_protocol_error(self) -> None:
        wire, _ = self.connect()
        wire.send(frame((1005).to_bytes(2, "big"), opcode=8))
        assert wire.closed_with()[0] == 1002
        assert wire.at_eof

    def test_invalid_utf_8_is_refused(self) -> None:
        self.fails_with(frame(b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80"), 1007)

    def test_utf_8_that_ends_within_a_character_is_refused(self) -> None:
        self.fails_with(frame(b"ol\xc3"), 1007)

    def test_a_message_past_the_limit_is_refused(self) -> None:
        self.fails_with(frame("x" * 65537), 1009)

    def test_a_length_beyond_the_limit_is_rejected_before_its_payload(self) -> None:
        _bystander, _ = self.connect()
        wire, _ = self.connect()
        wire.send(b"\x81\xff" + (1 << 40).to_bytes(8, "big") + b"\0\0\0\0")
        assert wire.closed_with()[0] == 1009

    def test_fragments_that_add_up_past_the_limit_are_refused(self) -> None:
        self.fails_with(frame("x" * 40000, fin=False) + frame("x" * 40000, opcode=0), 1009)

    def test_a_message_in_too_many_fragments_is_refused(self) -> None:
        self.serve(max_fragments=8)
        self.fails_with(frame("", fin=False) + frame("", opcode=0, fin=False) * 8, 1009)

    def test_message_with_the_maximum_of_fragments_is_accepted(self) -> None:
        self.serve(max_fragments=8)
        wire, _ = self.connect()
        message = frame("a", fin=False) + frame("b", opcode=0, fin=False) * 6 + frame("c", opcode=0)
        wire.send(message + message)
        assert self.component.events[1:] == [("message", 1, "abbbbbbc")] * 2

    def test_ten_thousand_tiny_fragments_cost_no_memory(self) -> None:
        wire, _ = self.connect()
        wire.send(frame("x", fin=False) + frame("x", opcode=0, fin=False) * 10_000)
        assert wire.closed_with()[0] == 1009
        assert len(wire.transport.protocol.message_data) < 100

    def test_a_flood_of_pings_is_refused(self) -> None:
        wire, _ = self.connect()
        wire.send(frame("", opcode=9) * 1100)
        result = wire.frames()
        assert result[-1][1][:2] == (4429).to_bytes(2, "big")
        assert result[:-1] == [(138, b"")] * 1000

    def test_garbage_after_the_failure_is_read_and_forgotten(self) -> None:
        wire, _ = self.connect()
        wire.send(frame("hi", mask=None))
        for _ in range(50):
            wire.send(b"\xff" * 8192)
        assert self.component.events[0] == ("open", 1)
        self.reactor.advance(6)
        wire.read()
        assert wire.at_eof


class ShortMessageTests(ServerCase):
    """Short text messages bypass Autobahn. Frames that only resemble one do not."""

    def test_all_lengths_and_any_mask(self) -> None:
        wire, _ = self.connect()
        texts = ["", "x", "é", "\x00", "y" * 124, "y" * 125, "y" * 126, "é" * 62 + "e"]
        for text in texts:
            for mask in (b"\0\0\0\0", b"\xff\1\x80\x7f"):
                wire.send(frame(text, mask=mask))
        assert self.component.events[1:] == [("message", 1, text) for text in texts for _ in range(2)]
        assert self.ws.stats.messages_received == 2 * len(texts)

    def test_a_message_within_a_fragmented_one_is_a_protocol_error(self) -> None:
        wire, _ = self.connect()
        wire.send(frame("begin", fin=False))
        wire.send(frame("another"))
        assert wire.closed_with()[0] == 1002

    def test_a_short_message_with_invalid_utf_8_closes_with_1007(self) -> None:
        for payload in (b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"cut \xe2\x82"):
            wire, _ = self.connect()
            wire.send(frame(payload))
            assert wire.closed_with()[0] == 1007

    def test_an_unmasked_short_message_closes_with_1002(self) -> None:
        wire, _ = self.connect()
        wire.send(frame("123456", mask=None))
        assert wire.closed_with()[0] == 1002

    def test_a_short_message_beyond_the_limit_closes_with_1009(self) -> None:
        self.serve(max_message_size=10)
        wire, _ = self.connect()
        wire.send(frame("x" * 10))
        wire.send(frame("x" * 11))
        assert wire.closed_with()[0] == 1009
        assert self.component.events[1:2] == [("message", 1, "x" * 10)]


class PingTests(ServerCase):
    def test_an_idle_connection_is_pinged_within_the_interval(self) -> None:
        wire, _ = self.connect()
        self.reactor.advance(30.5)
        assert wire.frames() == [(137, b"")]

    def test_a_peer_that_answers_pings_lives(self) -> None:
        wire, connection = self.connect()
        for _ in range(200):
            self.reactor.advance(1)
            for first, payload in wire.frames():
                assert first == 137
                wire.send(frame(payload, opcode=10))
        assert connection.is_open

    def test_a_pong_that_came_while_the_process_was_stopped_is_one(self) -> None:
        wire, connection = self.connect()
        for _ in range(10):
            while not (pings := wire.frames()):
                self.reactor.advance(1)
            wire.socket.send(frame(pings[0][1], opcode=10))
            self.reactor.stop(3600)
            self.reactor.turn()
            self.reactor.advance(1)
            assert connection.is_open
        self.reactor.advance(0.5)
        while not wire.frames():
            self.reactor.advance(1)
        self.reactor.stop(3600)
        self.reactor.turn()
        self.reactor.advance(0.25)
        self.reactor.turn()
        assert self.component.events[-1] == ("close", 1), "it has not answered"

    def test_a_pong_between_the_parts_of_a_message_or_in_two_reads_is_one(self) -> None:
        wire, _ = self.connect()
        pong = frame(b"", opcode=10)
        wire.send(frame("a", fin=False))
        wire.send(pong)
        wire.send(pong[:3])
        wire.send(pong[3:])
        wire.send(frame("b", opcode=0))
        assert self.component.events[1:] == [("message", 1, "ab")]

    def test_six_bytes_in_the_middle_of_a_frame_are_no_pong(self) -> None:
        wire, _ = self.connect()
        inner = b"\x8a\x80\1\2\3\4"
        payload = bytes(byte ^ b"\1\2\3\4"[index % 4] for index, byte in enumerate(inner))
        whole = frame(payload, opcode=2)
        wire.send(whole[: -len(inner)])
        wire.send(inner)
        assert whole.endswith(inner)
        assert wire.closed_with()[0] == 1003, "it was a binary message"

    def test_any_sign_of_life_counts_as_an_answer(self) -> None:
        wire, connection = self.connect()
        for _ in range(200):
            self.reactor.advance(1)
            if wire.frames():
                wire.send(frame("busy"))
        assert connection.is_open

    def test_a_peer_that_does_not_answer_is_dropped(self) -> None:
        _wire, connection = self.connect()
        self.reactor.advance(30.5)
        self.reactor.advance(19)
        assert connection.is_open
        self.reactor.advance(1.5)
        self.reactor.turn()
        assert not connection.is_open
        assert self.component.events == [("open", 1), ("close", 1)]
        assert self.ws.stats.dead_peers == 1

    def seconds_of_pings(self, wire: Wire, seconds: int, *, answer: bool) -> list[float]:
        """When pings came, from the first one's time on."""
        result = []
        for _ in range(4 * seconds):
            self.reactor.advance(0.25)
            self.reactor.turn()
            for _ in wire.frames():
                result.append(self.reactor.seconds())
                if answer:
                    wire.send(frame(b"", opcode=10))
        return [moment - result[0] for moment in result]

    def test_an_interval_below_the_time_out_is_kept(self) -> None:
        self.serve(ping_interval=5, ping_timeout=60)
        wire, connection = self.connect()
        pings = self.seconds_of_pings(wire, 300, answer=True)
        assert 55 <= len(pings) <= 60, pings
        assert connection.is_open

    def test_a_peer_that_answers_no_ping_is_dropped_at_the_first_timeout(self) -> None:
        self.serve(ping_interval=5, ping_timeout=12)
        wire, connection = self.connect()
        pings = self.seconds_of_pings(wire, 16, answer=False)
        assert [round(moment) for moment in pings] == [0, 5, 10]
        assert connection.is_open
        self.reactor.advance(2)
        self.reactor.turn()
        assert not connection.is_open
        assert self.ws.stats.dead_peers == 1

    def test_a_peer_that_answers_the_second_ping_gets_the_full_timeout_again(self) -> None:
        self.serve(ping_interval=5, ping_timeout=12)
        wire, connection = self.connect()
        self.seconds_of_pings(wire, 12, answer=False)
        wire.send(frame(b"", opcode=10))
        pings = self.seconds_of_pings(wire, 14, answer=False)
        assert len(pings) == 3
        assert connection.is_open

    def test_pings_are_spread_over_time(self) -> None:
        wires = [self.connect()[0] for _ in range(16)]
        self.reactor.advance(20)
        pinged = sum(bool(wire.frames()) for wire in wires)
        assert 2 <= pinged <= 14, pinged

    def test_ping_interval_of_zero_disables_pings(self) -> None:
        self.serve(ping_interval=0)
        _wire, _ = self.connect()
        assert len(self.ws.timer_wheel) == 0


class ClosingTests(ServerCase):
    def test_the_peers_close_is_answered_and_ends_the_connection(self) -> None:
        wire, _ = self.connect()
        wire.send(frame(b"\x03\xe8bye", opcode=8))
        assert wire.closed_with()[0] == 1000
        assert wire.at_eof
        assert self.component.events == [("open", 1), ("close", 1)]

    def test_our_close_ends_when_the_peer_answers(self) -> None:
        wire, connection = self.connect()
        connection.send("last words")
        connection.close(CloseCode.RESTARTING, "bye")
        assert self.component.events == [("open", 1)]
        result = wire.frames()
        assert result == [(129, b"last words"), (136, b"\x0f\xacbye")]
        wire.send(frame(b"\x0f\xac", opcode=8))
        assert wire.read() == b""
        assert wire.at_eof
        assert self.component.events == [("open", 1), ("close", 1)]

    def test_our_close_ends_after_a_while_when_the_peer_does_not_answer(self) -> None:
        wire, connection = self.connect()
        connection.close()
        self.reactor.advance(5.5)
        self.reactor.turn()
        wire.read()
        assert wire.at_eof
        assert self.component.events == [("open", 1), ("close", 1)]

    def test_a_peer_that_just_goes_is_noticed_once(self) -> None:
        wire, connection = self.connect()
        wire.close()
        assert self.component.events == [("open", 1), ("close", 1)]
        connection.send("anyone?")
        connection.close()
        connection.abort()

    def test_a_peer_that_does_not_read_the_close_reply_is_dropped(self) -> None:
        wire, connection = self.connect(send_buffer=4096)
        for _ in range(300):
            connection.send("x" * 1000)
        wire.send(frame(b"\x03\xe8", opcode=8))
        assert self.component.events == [("open", 1)]
        self.reactor.advance(5.5)
        self.reactor.turn()
        assert self.component.events == [("open", 1), ("close", 1)]

    def leave_by_storm(self, *, resets: bool) -> int:
        """150 go at once; how many are still counted in after one turn."""
        for _ in range(150):
            _, connection = self.connect()
            if resets:
                connection.send("unread")
            self.reactor.advance(0.01)
        self.reactor.advance(1)
        for wire in self.wires:
            wire.socket.close()
        self.reactor.turn(1)
        assert not any(connection.is_open for connection in self.component.connections)
        closed = [event[1] for event in self.component.events if event[0] == "close"]
        assert len(closed) == 100, "the rest comes a turn later"
        assert self.ws.stats.connections_now == self.admission.open_now
        counted = self.ws.stats.connections_now
        gone = self.ws.close_all()
        self.assertNoResult(gone)
        self.reactor.turn(1)
        closed = [event[1] for event in self.component.events if event[0] == "close"]
        assert sorted(closed) == list(range(1, 151))
        self.successResultOf(gone)
        return counted

    def test_many_simultaneous_closes_are_reported_in_batches_once_each(self) -> None:
        assert self.leave_by_storm(resets=False) == 50

    def test_many_simultaneous_resets_are_reported_in_batches_once_each(self) -> None:
        assert self.leave_by_storm(resets=True) == 0

    def test_a_storm_of_messages_is_served_in_portions_in_order_and_the_last_words_count(self) -> None:
        wires = [self.connect()[0] for _ in range(3)]
        self.reactor.advance(1)
        for _ in range(60):
            for wire in wires:
                wire.socket.send(frame("a" * 200))
            self.reactor.turn(1)
        wires[0].socket.send(frame("last"))
        wires[0].socket.close()
        self.reactor.turn()
        heard = [event for event in self.component.events if event[1] == 1]
        assert heard == [("open", 1), *[("message", 1, "a" * 200)] * 60, ("message", 1, "last"), ("close", 1)]
        assert len([event for event in self.component.events if event[0] == "message"]) == 181

    def test_a_peer_that_floods_is_not_read(self) -> None:
        wire, _ = self.connect()
        protocol = wire.transport.protocol
        self.ws._burst = 1000  # a storm goes on
        for _ in range(40):
            wire.socket.send(frame("a" * 1000))
        for selectable in list(self.reactor.readers):
            for _ in range(20):
                if selectable in self.reactor.readers:
                    selectable.doRead()
        assert len(protocol.data) <= 3 * 8192
        self.reactor.turn()
        assert len([event for event in self.component.events if event[0] == "message"]) == 40

    def test_abort_ends_at_once_but_not_from_within(self) -> None:
        _wire, connection = self.connect()
        connection.abort()
        assert not connection.is_open
        assert self.component.events == [("open", 1)]
        self.reactor.turn()
        assert self.component.events == [("open", 1), ("close", 1)]

    def test_a_long_reason_is_cut_at_a_character(self) -> None:
        wire, connection = self.connect()
        connection.close(4000, "é" * 100)
        assert wire.closed_with() == (4000, "é" * 61)

    def test_codes_of_the_protocols_own_are_refused(self) -> None:
        _, connection = self.connect()
        for code in (0, 999, 1001, 1005, 1011, 2999, 5000):
            with pytest.raises(ValueError, match=str(code)):
                connection.close(code)
        assert connection.is_open

    def test_close_during_on_open_succeeds(self) -> None:
        class Bouncer(Recorder):
            def on_open(self, connection: Any) -> None:
                super().on_open(connection)
                connection.close(4903, "no")

        self.serve(Bouncer())
        wire = self.wire()
        wire.send(head() + frame("let me in"))
        assert wire.response()[2] == b"\x88\x04\x13'no"
        assert self.component.events == [("open", 1)]

    def test_close_all_closes_all_connections_and_fires_when_done(self) -> None:
        polite, _ = self.connect()
        self.connect()
        gone = self.ws.close_all()
        assert polite.closed_with()[0] == 4012
        polite.send(frame(b"\x0f\xac", opcode=8))
        self.assertNoResult(gone)
        self.reactor.advance(2.5)
        self.reactor.turn()
        self.successResultOf(gone)
        self.successResultOf(self.ws.close_all())
        assert self.component.events[-2:] == [("close", 1), ("close", 2)]

    def test_the_peers_messages_after_our_close_are_not_delivered(self) -> None:
        class Once(Recorder):
            def on_message(self, connection: Any, text: str) -> None:
                super().on_message(connection, text)
                connection.close()

        self.serve(Once())
        wire, _ = self.connect()
        wire.send(frame("one") + frame("two"))
        assert self.component.events == [("open", 1), ("message", 1, "one")]


class FaultyComponentTests(ServerCase):
    def test_an_exception_reaches_on_error_of_its_connection_alone(self) -> None:
        class Faulty(Recorder):
            def on_message(self, connection: Any, text: str) -> None:
                if text == "bad":
                    raise LookupError(text)
                super().on_message(connection, text)

        self.serve(Faulty())
        wire, connection = self.connect()
        wire.send(frame("bad") + frame("good"))
        assert isinstance(self.component.errors[0], LookupError)
        assert self.component.events == [("open", 1), ("message", 1, "good")]
        assert connection.is_open
        assert self.ws.stats.component_errors == 1

    def test_an_exception_in_on_open_keeps_the_connection_and_its_on_close(self) -> None:
        class Faulty(Recorder):
            def on_open(self, connection: Any) -> None:
                super().on_open(connection)
                raise LookupError

        self.serve(Faulty())
        wire, _ = self.connect()
        wire.send(frame("hi"))
        wire.close()
        assert self.component.events == [("open", 1), ("message", 1, "hi"), ("close", 1)]
        assert len(self.component.errors) == 1

    def test_an_exception_while_closing_reaches_on_error(self) -> None:
        class Faulty(Recorder):
            def on_close(self, connection: Any) -> None:
                raise LookupError

        self.serve(Faulty())
        wire, _ = self.connect()
        wire.close()
        assert len(self.component.errors) == 1

    def test_an_on_error_that_fails_is_logged_and_closes_with_4500(self) -> None:
        class Faulty(Recorder):
            def on_message(self, connection: Any, text: str) -> None:
                raise LookupError

            def on_error(self, connection: Any, exception: Exception) -> None:
                raise ZeroDivisionError

        self.serve(Faulty())
        wire, _ = self.connect()
        wire.send(frame("hi"))
        assert wire.closed_with() == (4500, "internal error")
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
