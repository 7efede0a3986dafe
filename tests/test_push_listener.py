"""chatws.push.listener over a transport in memory: what is done, in which order, and what is answered."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.interface import Audience, NewEvent
from chatws.errors import ErrorCode, Unavailable
from chatws.push import connection as push_connection
from chatws.push.connection import (
    BATCH_LINES,
    CLOSE_TIMEOUT,
    EVENT_WEIGHT,
    MAX_AUTH_LINE,
    MAX_PENDING_BYTES,
    MAX_READ,
)
from chatws.push.factory import DRAIN_INTERVAL, QUIET_CHECKS
from chatws.push.listener import PushFactory
from chatws.runtime.file_budget import FileBudget
from tests.fakes_push import FakeTarget

PUBLISH = b'{"event":"new_message","data":{"conversation_id":1},"ack":true}\n'
SILENT = b'{"event":"new_message","data":{"conversation_id":1}}\n'
DRAFT = NewEvent("new_message", Audience(("conversation:1",)), b'{"conversation_id":1}')
PING = b'{"op":"ping"}\n'
OK = {"ok": True}


class Backend:
    """The other side of a connection."""

    def __init__(self, factory: PushFactory) -> None:
        self.protocol = factory.buildProtocol(None)
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)
        self.gone = False

    def say(self, *lines: bytes) -> None:
        self.protocol.dataReceived(b"".join(lines))

    def fin(self) -> None:
        self.protocol.readConnectionLost()

    def lose(self, reason: type[Exception] = ConnectionDone) -> None:
        self.gone = True
        self.protocol.connectionLost(Failure(reason()))

    def answers(self) -> list[dict[str, Any]]:
        """Since the last call."""
        written = self.transport.value()
        self.transport.clear()
        assert written.endswith(b"\n") or not written
        return [json.loads(line) for line in written.splitlines()]

    def codes(self) -> list[str | None]:
        """Those of the answers since the last call; None for a positive one."""
        return [answer.get("code") for answer in self.answers()]

    @property
    def is_closing(self) -> bool:
        return self.transport.disconnecting

    @property
    def is_read(self) -> bool:
        return self.transport.producerState == "producing"


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.target = FakeTarget()
        self.backends: list[Backend] = []
        self.listen()

    def tearDown(self) -> None:
        for backend in self.backends:
            if not backend.gone:
                backend.lose()
        assert self.clock.getDelayedCalls() == []
        assert self.factory.connections == set()

    def listen(self, **options: Any) -> None:
        self.factory = PushFactory(self.target, reactor=self.clock, **options)

    def connect(self) -> Backend:
        self.backends.append(Backend(self.factory))
        return self.backends[-1]


class ReadingOnTests(Case):
    """What has come while a read was dealt with is taken in the same turn of the reactor."""

    def setUp(self) -> None:
        super().setUp()
        self.come = b""  # what the socket holds
        self.patch(push_connection, "read_now", self.read)

    def read(self, transport: Any, size: int) -> bytes:
        assert transport is self.backends[0].transport
        data, self.come = self.come[:size], self.come[size:]
        return data

    def test_one_turn_reads_at_most_max_read(self) -> None:
        backend = self.connect()
        count = MAX_READ // len(SILENT) + 10
        self.come = SILENT * count
        backend.say(SILENT)
        assert len(self.target.published) == MAX_READ // len(SILENT)
        backend.say(self.read(backend.transport, MAX_READ))
        assert len(self.target.published) == count + 1

    def test_a_backend_that_does_not_read_responses_is_not_read(self) -> None:
        backend = self.connect()
        self.come = SILENT
        backend.protocol.pauseProducing()
        backend.say(SILENT)
        assert not backend.is_read
        backend.protocol.resumeProducing()
        assert self.target.published == [DRAFT]
        assert self.come == SILENT

    def test_lines_after_a_rejected_first_line_are_not_processed(self) -> None:
        backend = self.connect()
        self.come = SILENT
        backend.say(b"GET / HTTP/1.1\n")
        assert backend.codes() == ["bad_json"]
        assert self.target.published == []
        assert self.come == SILENT


class AnswerTests(Case):
    def test_publish_with_ack_is_acknowledged(self) -> None:
        backend = self.connect()
        self.target.delivered = 3
        backend.say(PUBLISH[:-2] + b',"id":"order-77"}\n')
        assert backend.answers() == [{"ok": True, "id": "order-77", "event_id": "E:1", "delivered": 3}]

    def test_publish_without_ack_gets_no_response(self) -> None:
        backend = self.connect()
        backend.say(SILENT)
        assert backend.answers() == []
        assert self.target.published == [DRAFT]

    def test_publish_with_a_known_id_is_acknowledged_as_a_duplicate(self) -> None:
        backend = self.connect()
        for _ in range(2):
            backend.say(PUBLISH[:-2] + b',"id":7}\n')
        assert backend.answers() == [
            {"ok": True, "id": 7, "event_id": "E:1", "delivered": 1},
            {"ok": True, "id": 7, "event_id": "E:1", "delivered": 0, "duplicate": True},
        ]
        assert self.factory.stats.published == 1

    def test_a_transient_event_has_no_event_id(self) -> None:
        backend = self.connect()
        backend.say(b'{"event":"x","data":{},"to":"everyone","transient":true,"ack":true}\n')
        assert backend.answers() == [{"ok": True, "delivered": 1}]

    def test_every_op_gets_a_response(self) -> None:
        backend = self.connect()
        self.target.online_ids = ["b", 10, 9, "a"]
        backend.say(
            b'{"op":"disconnect","user_id":5,"reason":"logged out","id":1}\n',
            b'{"op":"disconnect","user_id":"6","ban":true}\n',
            b'{"op":"unsubscribe","user_id":5,"conversation_id":456}\n',
            b'{"op":"presence","id":"p"}\n',
            PING,
            b'{"op":"auth","secret":"none is needed"}\n',
        )
        assert self.target.done == [
            ("disconnect", 5, "logged out", False),
            ("disconnect", 6, "", True),
            ("unsubscribe", 5, 456),
        ]
        assert backend.answers() == [
            {"ok": True, "id": 1, "connections": 2},
            {"ok": True, "connections": 2},
            {"ok": True, "connections": 1},
            {"ok": True, "id": "p", "online": [9, 10, "a", "b"]},
            OK,
            OK,
        ]

    def test_bad_line_gets_an_error_and_is_skipped(self) -> None:
        backend = self.connect()
        backend.say(PUBLISH, b"nonsense\n", b'{"event":"x y","data":{},"id":5}\n', b'{"op":"quit"}\n', PUBLISH)
        answers = backend.answers()
        assert [answer.get("code") for answer in answers] == [None, "bad_json", "bad_message", "unknown_type", None]
        assert answers[2]["id"] == 5
        assert not backend.is_closing
        assert self.target.published == [DRAFT, DRAFT]

    def test_event_without_an_audience_gets_an_error_with_or_without_ack(self) -> None:
        backend = self.connect()
        backend.say(b'{"event":"x","data":{},"id":1}\n', b'{"event":"new_message","data":{}}\n', SILENT)
        assert backend.codes() == ["no_audience", "bad_message"]
        assert self.target.published == [DRAFT]

    def test_events_of_a_failed_publish_all_get_an_error(self) -> None:
        backend = self.connect()
        self.target.failing = Unavailable("the log cannot be reached")
        backend.say(SILENT, b"{}\n", PUBLISH)
        refused = {"ok": False, "code": "unavailable", "message": "the log cannot be reached"}
        answers = backend.answers()
        assert [answers[0], answers[2]] == [refused, refused]
        assert answers[1]["code"] == "bad_message"
        self.target.failing = None
        backend.say(PUBLISH)
        assert backend.codes() == [None]
        assert self.factory.stats.errors == {"unavailable": 2, "bad_message": 1}
        assert self.factory.stats.published == 1

    def test_an_internal_error_is_logged_and_answered_without_details(self) -> None:
        backend = self.connect()
        self.target.failing = ZeroDivisionError("secret details")
        backend.say(SILENT)
        assert backend.answers() == [{"ok": False, "code": "unavailable", "message": "internal error"}]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        self.target.failing = None
        self.target.publish = lambda new_events: 1 / 0  # type: ignore[assignment,method-assign,return-value]
        backend.say(PUBLISH)
        assert backend.codes() == ["unavailable"]
        self.target.online = lambda: 1 / 0  # type: ignore[assignment,method-assign,return-value]
        backend.say(b'{"op":"presence"}\n')
        assert backend.codes() == ["unavailable"]
        self.target.audiences.new_event = lambda *arguments: 1 / 0  # type: ignore[assignment,method-assign]
        backend.say(SILENT)
        assert backend.codes() == ["unavailable"]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 3
        backend.say(PING)
        assert backend.answers() == [OK]

    def test_broker_with_too_few_results_causes_an_internal_error(self) -> None:
        backend = self.connect()
        self.target.accept = lambda new_events: []  # type: ignore[assignment,method-assign]
        backend.say(PUBLISH)
        assert backend.codes() == ["unavailable"]
        assert len(self.flushLoggedErrors(IndexError)) == 1

    def test_numbers_out_of_range_are_invalid_ids(self) -> None:
        backend = self.connect()
        for number in (b"9" * 5000, b"1e999"):
            backend.say(b'{"event":"new_message","data":{"conversation_id":' + number + b"}}\n")
            assert backend.codes() == ["bad_message"]

    def test_too_deep_nesting_is_bad_json_at_any_depth(self) -> None:
        backend = self.connect()
        backend.say(b'{"op":"ping"}\n')
        assert backend.codes() == [None]
        deepest = b'{"event":"new_message","ack":true,"data":{"conversation_id":456,"a":%b%b}}\n'

        def outcome(depth: int) -> str:
            backend.say(deepest % (b"[" * depth, b"]" * depth))
            (answer,) = backend.answers()
            return str(answer.get("message", "published"))

        too_deep = bisect_left(range(100_000), True, key=lambda depth: outcome(depth) != "published")
        seen = {*map(outcome, range(too_deep - 20, too_deep + 20))}
        assert seen == {"published", "the line is nested too deeply"}


class BatchTests(Case):
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.target.batches]

    def test_the_lines_of_one_read_are_one_batch(self) -> None:
        backend = self.connect()
        backend.say(PUBLISH, SILENT, b"bad\n", PUBLISH, PUBLISH[:10])
        assert self.sizes() == [3]
        backend.say(PUBLISH[10:])
        assert self.sizes() == [3, 1]

    def test_an_op_finishes_the_batch_before_it(self) -> None:
        backend = self.connect()
        backend.say(SILENT, SILENT, b'{"op":"disconnect","user_id":5}\n', SILENT)
        assert self.target.done == [DRAFT, DRAFT, ("disconnect", 5, "", False), DRAFT]
        assert self.sizes() == [2, 1]

    def test_batch_has_a_maximum_size(self) -> None:
        backend = self.connect()
        backend.say(SILENT * (2 * BATCH_LINES + 1))
        assert self.sizes() == [BATCH_LINES, BATCH_LINES, 1]


class LaterTests(Case):
    """A broker that takes its time."""

    def setUp(self) -> None:
        super().setUp()
        self.target.waiting = []

    def test_responses_keep_the_order_of_the_lines(self) -> None:
        backend = self.connect()
        for id in (b"1", b"2", b"3"):
            backend.say(PUBLISH[:-2] + b',"id":' + id + b"}\n")
        backend.say(b"bad\n")
        self.target.settle(2)
        self.target.settle(1)
        assert backend.answers() == []
        self.target.settle()
        answers = backend.answers()
        assert [answer.get("id") for answer in answers] == [1, 2, 3, None]
        assert [answer["ok"] for answer in answers] == [True, True, True, False]

    def test_error_of_a_later_line_keeps_its_place(self) -> None:
        backend = self.connect()
        backend.say(PUBLISH)
        backend.say(SILENT)
        self.target.waiting.pop()[0].errback(Unavailable("no"))
        self.target.settle()
        assert backend.codes() == [None, "unavailable"]

    def test_fast_batch_is_acknowledged_after_the_slow_one_before_it(self) -> None:
        backend = self.connect()
        backend.say(PUBLISH[:-2] + b',"id":"slow"}\n')
        waiting, self.target.waiting = self.target.waiting, None
        backend.say(PUBLISH[:-2] + b',"id":"quick"}\n')
        assert backend.answers() == []
        self.target.waiting = waiting
        self.target.settle()
        assert [answer["id"] for answer in backend.answers()] == ["slow", "quick"]

    def test_an_op_runs_after_earlier_and_before_later_lines(self) -> None:
        backend = self.connect()
        backend.say(PUBLISH, b'{"op":"disconnect","user_id":5}\n', PUBLISH)
        backend.say(PUBLISH)
        assert len(self.target.batches) == 1
        assert not backend.is_read
        self.target.settle()
        assert self.target.done == [DRAFT, ("disconnect", 5, "", False)]
        assert [len(batch) for batch in self.target.batches] == [1, 2]
        assert backend.is_read
        self.target.settle()
        assert [sorted(answer) for answer in backend.answers()] == [
            ["delivered", "event_id", "ok"],
            ["connections", "ok"],
            ["delivered", "event_id", "ok"],
            ["delivered", "event_id", "ok"],
        ]

    def test_asynchronous_op_blocks_later_lines(self) -> None:
        backend = self.connect()
        later: Deferred[int] = Deferred()
        self.target.unsubscribe = lambda user_id, conversation_id, is_contact: later  # type: ignore[method-assign,assignment]
        backend.say(b'{"op":"unsubscribe","user_id":5,"conversation_id":1}\n', PUBLISH)
        assert self.target.batches == []
        assert not backend.is_read
        later.callback(4)
        assert backend.answers() == [{"ok": True, "connections": 4}]
        assert len(self.target.batches) == 1
        self.target.settle()

    def test_reading_pauses_while_too_many_events_are_pending(self) -> None:
        backend = self.connect()
        weight = len(DRAFT.data) + EVENT_WEIGHT
        backend.say(SILENT * (MAX_PENDING_BYTES // weight + BATCH_LINES))
        assert not backend.is_read
        under_way = sum(len(new_events) for _, new_events in self.target.waiting) * weight
        assert MAX_PENDING_BYTES < under_way <= MAX_PENDING_BYTES + BATCH_LINES * weight
        while self.target.waiting:
            self.target.settle()
        assert backend.is_read
        assert len(self.target.done) == MAX_PENDING_BYTES // weight + BATCH_LINES

    def test_no_line_that_was_read_is_dropped_when_the_connection_is_lost(self) -> None:
        backend = self.connect()
        backend.say(SILENT, PING, SILENT, b'{"op":"disconnect","user_id":5}\n', SILENT, b'{"event":"new')
        backend.lose(ConnectionLost)
        assert len(self.factory.connections) == 1
        while self.target.waiting:
            self.target.settle()
        assert self.target.done == [DRAFT, DRAFT, ("disconnect", 5, "", False), DRAFT]


class FramingTests(Case):
    def test_either_line_end_and_empty_lines(self) -> None:
        backend = self.connect()
        backend.say(b"\n\r\n", PUBLISH[:-1] + b"\r\n", b"\n", PING)
        assert backend.codes() == [None, None]

    def test_a_line_may_have_the_largest_size_and_no_byte_more(self) -> None:
        self.listen(max_line_size=100)
        longest = PUBLISH[:-1].ljust(100)
        for line in (longest + b"\n", longest + b"\r\n"):
            for cut in (1, 50, 99, 100, 101):
                backend = self.connect()
                backend.say(line[:cut])
                backend.say(line[cut:])
                assert backend.codes() == [None], (line, cut)
                backend.say(b" " + line)
                assert backend.codes() == ["line_too_long"]
                assert backend.is_closing

    def test_lines_before_a_too_long_line_count_and_those_after_do_not(self) -> None:
        self.listen(max_line_size=100)
        backend = self.connect()
        backend.say(PUBLISH, b"x" * 101 + b"\n", PUBLISH)
        assert backend.codes() == [None, "line_too_long"]
        backend.say(PUBLISH)
        assert len(self.target.published) == 1

    def test_incomplete_line_over_the_limit_is_rejected(self) -> None:
        backend = self.connect()
        backend.say(PING)
        for _ in range(1024 // 64 + 1):
            backend.say(b"x" * 65536)
            assert backend.protocol.buffered_bytes <= 1024 * 1024 + 65536
        assert backend.codes() == [None, "line_too_long"]
        assert backend.protocol.buffered_bytes == 0

    def test_error_for_a_line_too_long_follows_earlier_responses(self) -> None:
        self.listen(max_line_size=100)
        self.target.waiting = []
        for tail in (b"x" * 102, b"x" * 101 + b"\n" + PUBLISH):
            backend = self.connect()
            backend.say(PUBLISH, tail)
            assert (backend.codes(), backend.is_closing) == ([], False)
            self.target.settle()
            assert (backend.codes(), backend.is_closing) == ([None, "line_too_long"], True)
        assert len(self.target.published) == 2

    SCRIPT = (
        PUBLISH[:-2] + b',"id":"a"}\r\n' + b"\n" + '{"event":"x","data":{"ã":"€"},"to":"everyone"}\n'.encode()
    ) + b'bad\n{"op":"disconnect","user_id":5}\n' + PUBLISH + PING + b"[]\n" + SILENT  # fmt: skip

    def run_script(self, segments: list[bytes]) -> tuple[list[object], list[dict[str, Any]]]:
        self.target = FakeTarget()
        self.listen()
        backend = self.connect()
        for segment in segments:
            backend.say(segment)
        backend.fin()
        assert backend.is_closing
        answers = backend.answers()
        backend.lose()
        return self.target.done, answers

    def test_lines_split_anywhere_have_the_same_effect(self) -> None:
        expected = self.run_script([self.SCRIPT])
        assert [type(item) for item in expected[0]] == [NewEvent, NewEvent, tuple, NewEvent, NewEvent]
        assert [answer.get("code") for answer in expected[1]] == [None, "bad_json", None, None, None, "bad_json"]
        for cut in range(len(self.SCRIPT) + 1):
            assert self.run_script([self.SCRIPT[:cut], self.SCRIPT[cut:]]) == expected, cut
        assert self.run_script([self.SCRIPT[at : at + 1] for at in range(len(self.SCRIPT))]) == expected

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(0, len(SCRIPT)), max_size=20))
    def test_lines_in_any_number_of_pieces_give_the_same_responses(self, cuts: list[int]) -> None:
        cuts = [0, *sorted(cuts), len(self.SCRIPT)]
        segments = [self.SCRIPT[start:end] for start, end in pairwise(cuts)]
        assert self.run_script(segments) == self.run_script([self.SCRIPT])


class FirstLineTests(Case):
    HTTP = b"POST / HTTP/1.1\r\nHost: 127.0.0.1:8081\r\nContent-Type: text/plain\r\n\r\n" + PUBLISH

    def test_http_request_is_rejected_before_its_body(self) -> None:
        for cut in range(1, len(self.HTTP)):
            backend = self.connect()
            backend.say(self.HTTP[:cut])
            backend.say(self.HTTP[cut:])
            assert backend.codes() == ["bad_json"]
            assert backend.is_closing
            backend.lose()
        assert self.target.published == []

    def test_a_first_line_that_is_no_object_closes_the_connection(self) -> None:
        for first in (b"\r\n\r\nGET / HTTP/1.1\r\n", b"[]\n", b"null\n", b'"{}"\n', b"\xff\n", b"\x16\x03\x01\n"):
            backend = self.connect()
            backend.say(first, PUBLISH)
            assert backend.codes() == ["bad_json"]
            assert backend.is_closing
        assert self.target.published == []

    def test_first_line_that_is_an_invalid_object_leaves_the_connection_open(self) -> None:
        for first in (b"{}\n", b'{"op":"quit"}\n', b'{"event":"error","data":{}}\n'):
            backend = self.connect()
            backend.say(first, PING)
            assert len(backend.codes()) == 2
            assert not backend.is_closing

    def test_a_later_http_request_does_not_close_the_connection(self) -> None:
        backend = self.connect()
        backend.say(PING, self.HTTP)
        assert not backend.is_closing


class SecretTests(Case):
    GOOD = b'{"op":"auth","secret":"s\xc3\xa9same"}\n'

    def setUp(self) -> None:
        super().setUp()
        self.secret: bytes | None = "sésame".encode()
        self.listen(secret=lambda: self.secret)

    def test_lines_behind_the_right_secret_count_even_in_the_same_segment(self) -> None:
        backend = self.connect()
        backend.say(self.GOOD, PUBLISH)
        assert backend.codes() == [None, None]
        assert not backend.is_closing

    def test_a_wrong_secret_closes(self) -> None:
        for secret in ("", "sesame", "sésame ", "x" * 2000):
            backend = self.connect()
            backend.say(json.dumps({"op": "auth", "secret": secret, "id": 1}).encode() + b"\n", self.GOOD, PUBLISH)
            answers = backend.answers()
            assert [(answer["id"], answer["code"]) for answer in answers] == [(1, "bad_secret")]
            assert secret == "" or secret not in answers[0]["message"]
            assert backend.is_closing
            backend.say(self.GOOD, PUBLISH)
        assert self.target.published == []

    def test_first_line_other_than_auth_closes(self) -> None:
        for first in (PUBLISH, PING, b"{}\n", b'{"op":"auth"}\n', b'{"op":"disconnect","user_id":5}\n'):
            backend = self.connect()
            backend.say(first, self.GOOD, PUBLISH)
            assert backend.codes() == ["bad_secret"], first
            assert backend.is_closing
        backend = self.connect()
        backend.say(FirstLineTests.HTTP)
        assert backend.codes() == ["bad_json"]
        assert self.target.done == []

    def test_a_rejected_backend_is_logged_with_its_address(self) -> None:
        with capturedLogs() as logged:
            backend = self.connect()
            backend.say(PING)
        assert backend.is_closing
        lines = [text for text in map(formatEvent, logged) if "rejected" in text]
        assert [re.sub(r":[0-9]+: ", ":PORT: ", text) for text in lines] == [
            "rejected a backend at 192.168.1.1:PORT: bad_secret: the first line must be op auth with the secret"
            " (1 with this code so far)"
        ]

    def test_a_thousand_rejected_backends_are_one_log_line_a_minute(self) -> None:
        def rejected() -> int:
            with capturedLogs() as logged:
                for _ in range(1000):
                    backend = self.connect()
                    backend.say(PING)
                    backend.lose()
            return sum("rejected" in formatEvent(event) for event in logged)

        assert rejected() == 1
        assert rejected() == 0
        self.clock.advance(60)
        assert rejected() == 1

    def test_without_a_secret_in_time_the_connection_is_closed(self) -> None:
        silent, good = self.connect(), self.connect()
        silent.say(b'{"op":"auth"')
        good.say(self.GOOD)
        good.answers()
        self.clock.advance(9.9)
        assert not silent.is_closing
        self.clock.advance(0.2)
        assert silent.codes() == ["bad_secret"]
        assert silent.is_closing
        assert not good.is_closing

    def test_a_long_line_before_auth_closes_the_connection(self) -> None:
        backend = self.connect()
        backend.say(b"x" * (MAX_AUTH_LINE + 2))
        assert backend.codes() == ["line_too_long"]
        assert backend.is_closing
        backend = self.connect()
        backend.say(self.GOOD, b'{"event":"x","to":"everyone","ack":true,"data":{"a":"' + b"x" * MAX_AUTH_LINE)
        backend.say(b"x" * MAX_AUTH_LINE + b'"}}\n')
        assert backend.codes() == [None, None]

    def test_the_secret_can_be_changed_while_the_server_runs(self) -> None:
        old = self.connect()
        old.say(self.GOOD)
        self.secret = b"new"
        backend = self.connect()
        backend.say(self.GOOD)
        assert backend.codes() == ["bad_secret"]
        backend = self.connect()
        backend.say(b'{"op":"auth","secret":"new"}\n')
        assert backend.codes() == [None]
        old.say(PING)
        assert old.codes() == [None, None]
        old.say(self.GOOD, PING)
        assert old.codes() == ["bad_secret"]

    def test_an_unreadable_secret_rejects_every_backend(self) -> None:
        self.listen(secret=lambda: 1 / 0)  # type: ignore[arg-type,return-value]
        backend = self.connect()
        backend.say(b'{"op":"auth","secret":""}\n')
        assert backend.codes() == ["bad_secret"]
        assert self.flushLoggedErrors(ZeroDivisionError)
        self.listen(secret=lambda: b"")
        backend = self.connect()
        backend.say(b'{"op":"auth","secret":""}\n')
        assert backend.codes() == ["bad_secret"]


class BackpressureTests(Case):
    """The transport's part is played by the test: it asks its producer to pause."""

    def test_reading_pauses_while_responses_are_unsent(self) -> None:
        backend = self.connect()
        assert (backend.transport.producer, backend.transport.streaming) == (backend.protocol, True)
        backend.protocol.pauseProducing()
        backend.say(PING)  # was under way in the reactor
        assert not backend.is_read
        assert backend.answers() == []
        backend.protocol.resumeProducing()
        assert backend.answers() == [OK]
        assert backend.is_read

    def test_processing_of_one_read_stops_while_too_many_responses_are_unsent(self) -> None:
        backend = self.connect()
        self.target.online_ids = list(range(1000))
        write = backend.transport.write

        def fill(data: bytes) -> None:
            write(data)
            if len(backend.transport.value()) > 65536:
                backend.protocol.pauseProducing()

        backend.transport.write = fill  # type: ignore[method-assign]
        backend.say(b'{"op":"presence"}\n' * 300, b"{}\n" * 2000)
        seen = 0
        for _ in range(320):
            written = len(backend.transport.value())
            assert written < 200_000
            seen += len(backend.answers())
            if seen == 2300:
                break
            assert not backend.is_read
            backend.protocol.resumeProducing()
        assert seen == 2300

    def test_lines_are_processed_although_responses_are_not_read(self) -> None:
        backend = self.connect()
        backend.protocol.pauseProducing()
        backend.say(SILENT, PING, SILENT)
        assert self.target.done == []
        backend.lose(ConnectionLost)
        assert self.target.done == [DRAFT, DRAFT]


class EndTests(Case):
    def test_fin_closes_after_the_responses_are_sent(self) -> None:
        self.target.waiting = []
        backend = self.connect()
        backend.say(PUBLISH, PING, PUBLISH)
        backend.fin()
        assert not backend.is_closing
        self.target.settle()
        assert not backend.is_closing
        self.target.settle()
        assert backend.codes() == [None, None, None]
        assert backend.is_closing
        assert backend.transport.producer is None  # with one, a transport never closes

    def test_fin_without_pending_lines_closes(self) -> None:
        backend = self.connect()
        backend.fin()
        assert backend.is_closing

    def test_the_last_line_counts_without_a_newline(self) -> None:
        backend = self.connect()
        backend.say(PUBLISH[:-1])
        backend.fin()
        assert backend.codes() == [None]

    def test_a_truncated_last_line_is_bad_json(self) -> None:
        for cut in range(1, len(PUBLISH) - 1):
            backend = self.connect()
            backend.say(PING, PUBLISH[:cut])
            backend.fin()
            assert backend.codes() == [None, "bad_json"]
        assert self.target.published == []

    def test_clean_close_without_half_close_processes_the_last_line(self) -> None:
        backend = self.connect()
        backend.say(SILENT, SILENT[:-1])
        backend.lose(ConnectionDone)
        assert len(self.target.published) == 2

    def test_reset_discards_an_incomplete_line(self) -> None:
        backend = self.connect()
        backend.say(SILENT, SILENT[:-1])
        backend.lose(ConnectionLost)
        assert len(self.target.published) == 1

    def test_peer_that_does_not_read_its_last_responses_is_aborted(self) -> None:
        backend = self.connect()
        backend.say(PING)
        backend.fin()
        self.clock.advance(CLOSE_TIMEOUT - 0.1)
        assert not backend.transport.disconnected
        self.clock.advance(0.2)
        assert backend.transport.disconnected


class DrainTests(Case):
    def drain(self, seconds: float = 2.0) -> list[None]:
        fired: list[None] = []
        self.factory.drain(seconds).addCallback(fired.append)
        return fired

    def tick(self, times: int) -> None:
        for _ in range(times):
            self.clock.advance(DRAIN_INTERVAL)

    def test_drain_without_connections_fires_immediately(self) -> None:
        assert self.drain() == [None]

    def test_drain_closes_a_quiet_connection_after_a_few_checks(self) -> None:
        backend = self.connect()
        backend.say(PING)
        fired = self.drain()
        self.tick(QUIET_CHECKS - 1)
        assert not backend.is_closing
        self.tick(1)
        assert backend.is_closing
        assert fired == []
        backend.lose()
        assert fired == [None]

    def test_a_drain_processes_lines_that_still_arrive(self) -> None:
        backend = self.connect()
        self.drain()
        for _ in range(10):
            self.tick(QUIET_CHECKS - 1)
            backend.say(PUBLISH)
        assert backend.codes() == [None] * 10
        self.tick(QUIET_CHECKS - 1)
        backend.say(PUBLISH[:5])
        self.tick(20)
        assert not backend.is_closing
        backend.say(PUBLISH[5:])
        self.tick(QUIET_CHECKS + 1)
        assert backend.codes() == [None]
        assert backend.is_closing

    def test_drain_waits_for_pending_events(self) -> None:
        self.target.waiting = []
        backend = self.connect()
        backend.say(PUBLISH, PING)
        fired = self.drain()
        self.tick(20)
        assert not backend.is_closing
        self.target.settle()
        self.tick(QUIET_CHECKS + 1)
        assert backend.is_closing
        assert backend.codes() == [None, None]
        backend.lose()
        assert fired == [None]

    def test_drain_closes_a_connection_that_is_never_quiet(self) -> None:
        backend = self.connect()
        self.drain(1.0)
        for _ in range(100):
            self.tick(1)
            backend.say(PING)
        assert backend.is_closing
        count = len(backend.answers())
        backend.say(PING)
        assert (99 <= count <= 101, backend.answers()) == (True, [])

    def test_a_drain_aborts_a_backend_that_does_not_read(self) -> None:
        backend = self.connect()
        backend.protocol.pauseProducing()
        backend.say(SILENT, PING)
        fired = self.drain(1.0)
        self.tick(201)
        assert backend.transport.disconnected
        assert fired == []
        backend.lose(ConnectionLost)
        assert fired == [None]
        assert self.target.done == [DRAFT]

    def test_drain_ends_even_if_the_broker_never_responds(self) -> None:
        self.target.waiting = []
        backend = self.connect()
        backend.say(SILENT)
        fired = self.drain(1.0)
        self.tick(205)
        backend.lose(ConnectionLost)
        self.tick(90)
        assert fired == []
        self.tick(10)
        assert fired == [None]
        self.target.settle()

    def test_a_reactor_that_was_blocked_does_not_skip_a_stage(self) -> None:
        backend = self.connect()
        backend.protocol.pauseProducing()
        backend.say(SILENT, PING)
        fired = self.drain(1.0)
        self.clock.advance(60)
        assert not backend.transport.disconnected
        self.clock.advance(60)
        assert backend.transport.disconnected
        assert fired == []
        backend.lose(ConnectionLost)
        assert fired == [None]
        assert self.target.done == [DRAFT]

    def test_a_connection_during_a_drain_is_drained_too(self) -> None:
        first = self.connect()
        fired = self.drain()
        second = self.connect()
        second.say(PUBLISH)
        self.tick(QUIET_CHECKS + 2)
        assert (first.is_closing, second.is_closing) == (True, True)
        first.lose()
        assert fired == []
        second.lose()
        assert fired == [None]


class LimitTests(Case):
    def test_connection_over_the_file_budget_gets_an_error_and_is_closed(self) -> None:
        self.listen(budget=FileBudget(limit=lambda: 8))
        backends = [self.connect() for _ in range(5)]
        assert [backend.codes() for backend in backends] == [[], [], [], [], ["overloaded"]]
        backends[4].lose()
        backends[0].lose()
        assert self.connect().codes() == []
        assert self.factory.budget.sockets() == {"backend": 4}

    def test_a_connection_beyond_the_limit_is_answered_and_closed(self) -> None:
        self.listen(max_connections=2)
        first, second, third = self.connect(), self.connect(), self.connect()
        third.say(PUBLISH)
        assert third.codes() == ["overloaded"]
        assert third.is_closing
        third.lose()
        first.lose()
        fourth = self.connect()
        for backend in (second, fourth):
            backend.say(PUBLISH)
            assert backend.codes() == [None]

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(st.binary(max_size=100) | st.sampled_from([PUBLISH, SILENT, PING, b"{", b"}\n", b'"\r\n', b"[" * 99])),
        st.booleans(),
        st.booleans(),
    )
    def test_arbitrary_lines_are_answered_or_processed(self, segments: list[bytes], later: bool, known: bool) -> None:
        self.target = FakeTarget()
        self.target.waiting = [] if later else None
        self.listen(max_line_size=150)
        backend = self.connect()
        backend.say(PING if known else b"")
        for segment in segments:
            backend.say(segment)
        backend.fin()
        while self.target.waiting:
            self.target.settle()
        assert backend.is_closing
        refused = sum(not answer["ok"] for answer in backend.answers())
        assert refused == sum(self.factory.stats.errors.values())
        backend.lose()
        assert self.flushLoggedErrors() == []


class StatsTests(Case):
    def test_lines_connections_and_errors_are_counted(self) -> None:
        backend = self.connect()
        output = PUBLISH + b"bad\n" + PING + SILENT[:-1]
        backend.say(output)
        backend.fin()
        stats = self.factory.stats
        assert (stats.connections, stats.lines, stats.bytes, stats.published) == (1, 4, len(output), 2)
        assert stats.errors == {ErrorCode.BAD_JSON.value: 1}
