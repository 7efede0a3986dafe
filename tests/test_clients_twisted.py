"""chatws.clients.twisted.PushClient: over transports in memory, and against a listener that is killed and restarted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chatws.clients import protocol
from chatws.clients.protocol import OnlineAgent
from chatws.clients.twisted import PushClient, PushRejected, PushResult, PushUnavailable
from chatws.runtime.backoff import backoff
from tests.push_wire import PushServer, reactor, until

DATA = {"conversation_id": 1}


class Attempt:
    """One attempt to connect, and the connection that came of it."""

    def __init__(self, factory: Any) -> None:
        self.factory = factory
        self.cancelled = False
        self.waiting: Deferred[Any] = Deferred(self.cancel)
        self.transport = StringTransport()
        self.protocol: Any = None

    def cancel(self, deferred: Deferred[Any]) -> None:
        self.cancelled = True

    def accept(self) -> None:
        self.protocol = self.factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)
        self.waiting.callback(self.protocol)

    def refuse(self) -> None:
        self.waiting.errback(ConnectionRefusedError())

    def sent(self) -> list[dict[str, Any]]:
        """Since the last call."""
        output = [json.loads(line) for line in self.transport.value().splitlines()]
        self.transport.clear()
        return output

    def answer(self, **fields: Any) -> None:
        self.protocol.dataReceived(json.dumps({"ok": True, **fields}).encode() + b"\n")

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))


class InMemoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.lines: list[Attempt] = []
        self.patch(protocol, "backoff", partial(backoff, jitter=lambda: 1.0))
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.client = self.make()

    def tearDown(self) -> None:
        assert self.clock.getDelayedCalls() == []

    def make(self, **options: Any) -> PushClient:
        class FakeEndpoint:
            @staticmethod
            def connect(factory: Any) -> Deferred[Any]:
                self.lines.append(Attempt(factory))
                return self.lines[-1].waiting

        return PushClient(FakeEndpoint(), reactor=self.clock, **options)  # type: ignore[arg-type]

    def publish(self, key: object = None, **options: Any) -> Deferred[PushResult]:
        return self.client.publish("new_message", DATA, key=key, **options)  # type: ignore[arg-type]

    def connected(self, key: object = "k") -> tuple[Attempt, Deferred[PushResult]]:
        """A publish that has been sent."""
        publishing = self.publish(key)
        self.clock.advance(0)
        line = self.lines[-1]
        line.accept()
        return line, publishing

    def test_lines_are_sent_as_soon_as_there_is_a_connection_and_then_at_once(self) -> None:
        first, second = self.publish("a"), self.publish("b", to="everyone", except_user_id=3, transient=True)
        self.clock.advance(0)
        (line,) = self.lines
        line.accept()
        third = self.client.disconnect(5, "bye", ban=True)
        left, two, three = line.sent()
        assert left == {"event": "new_message", "data": DATA, "id": "a", "ack": True}
        assert two == {**left, "id": "b", "to": "everyone", "except_user_id": 3, "transient": True}
        assert three == {"op": "disconnect", "id": three["id"], "user_id": 5, "reason": "bye", "ban": True}
        line.answer(id="a", event_id="E:1", delivered=2)
        line.answer(id="b", duplicate=True)
        line.answer(id=three["id"], connections=4)
        assert self.successResultOf(first) == PushResult(True, "a", "E:1", 2)
        assert self.successResultOf(second).duplicate
        assert self.successResultOf(third).connections == 4
        assert len(self.lines) == 1
        line.lose()

    def test_every_publish_has_a_key_of_its_own(self) -> None:
        line, first = self.connected(None)
        second = self.publish()
        keys = [element["id"] for element in line.sent()]
        assert len(set(keys)) == 2
        for key in keys:
            line.answer(id=key)
        assert [self.successResultOf(item).id for item in (first, second)] == keys
        line.lose()

    def test_unanswered_events_are_sent_again_on_the_next_connection(self) -> None:
        line, first = self.connected("a")
        second, third = self.publish("b"), self.publish("c")
        output = line.sent()
        line.answer(id="a")
        line.lose()
        self.clock.advance(0)
        assert len(self.lines) == 2
        self.lines[1].accept()
        assert self.lines[1].sent() == output[1:]
        self.lines[1].answer(id="b")
        self.lines[1].answer(id="c")
        for item in (first, second, third):
            assert self.successResultOf(item).ok
        self.lines[1].lose()
        self.clock.advance(10)
        assert len(self.lines) == 2  # idle, it does not connect

    def test_attempts_grow_apart_until_one_works(self) -> None:
        publishing = self.publish("k")
        times = []
        while not publishing.called:
            (call,) = [item for item in self.clock.getDelayedCalls() if item.func.__name__ in ("_connect", "_expire")][
                :1
            ]
            self.clock.advance(call.getTime() - self.clock.seconds())
            if len(self.lines) > len(times):
                times.append(self.clock.seconds())
                self.lines[-1].refuse()
        pauses = [round(late - early, 3) for early, late in pairwise(times)]
        assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
        error = self.failureResultOf(publishing, PushUnavailable).value
        assert isinstance(error.__cause__, ConnectionRefusedError)
        self.clock.advance(1)  # the last timer finds nobody waiting
        assert len(self.lines) == len(times)

    def test_a_slow_connection_attempt_is_cancelled(self) -> None:
        publishing = self.publish()
        self.clock.advance(0)
        self.clock.advance(1.0)
        assert self.lines[0].cancelled
        self.clock.advance(0.05)
        self.lines[1].accept()
        self.lines[1].answer(id=self.lines[1].sent()[0]["id"])
        assert self.successResultOf(publishing).ok
        self.lines[1].lose()

    def test_without_an_answer_it_fails_at_the_deadline_and_is_not_sent_again(self) -> None:
        self.client = self.make(timeout=60, deadline=5)
        line, publishing = self.connected("k")
        self.clock.advance(4.9)
        self.assertNoResult(publishing)
        self.clock.advance(0.2)
        self.failureResultOf(publishing, PushUnavailable)
        line.answer(id="k")  # too late, and nobody minds
        later = self.publish("l")
        line.answer(id="l")
        assert self.successResultOf(later).ok
        line.lose()
        self.clock.advance(0)
        assert len(self.lines) == 1

    def test_a_silent_connection_is_replaced(self) -> None:
        line, publishing = self.connected("k")
        self.clock.advance(1.5)
        second = self.publish("l")
        self.clock.advance(0.4)
        line.answer(id="k")  # a sign of life
        self.clock.advance(1.9)
        assert not line.transport.disconnected
        self.clock.advance(0.2)
        assert line.transport.disconnected
        line.lose()
        self.clock.advance(0)
        self.lines[1].accept()
        self.lines[1].answer(id="l")
        assert self.successResultOf(publishing).ok
        assert self.successResultOf(second).ok
        self.clock.advance(60)
        assert not self.lines[1].transport.disconnected  # nothing is due: silence is no sign
        self.lines[1].lose()

    def test_a_refusal_is_final(self) -> None:
        line, publishing = self.connected("k")
        line.answer(ok=False, id="k", code="no_audience", message="say who")
        error = self.failureResultOf(publishing, PushRejected).value
        assert (error.code, error.message) == ("no_audience", "say who")
        line.lose()

    def test_unavailable_is_tried_again_with_growing_pauses_until_the_deadline(self) -> None:
        for code in ("unavailable", "overloaded"):
            line, publishing = self.connected("k")
            (first,) = line.sent()
            for pause in (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0):
                line.answer(ok=False, id="k", code=code, message="not now")
                self.clock.advance(pause - 0.001)
                assert line.sent() == []
                self.clock.advance(0.002)
                assert line.sent() == [first]
            line.answer(ok=False, id="k", code=code, message="not now")
            self.clock.advance(1.0)
            assert "not now" in str(self.failureResultOf(publishing, PushUnavailable).value)
            line.lose()

    def test_a_pause_outlives_a_connection(self) -> None:
        line, first = self.connected("a")
        second = self.publish("b")
        line.answer(id="a")
        line.answer(ok=False, id="b", code="unavailable")
        line.lose()
        self.clock.advance(0)
        self.lines[1].accept()
        assert self.lines[1].sent() == []
        self.clock.advance(0.05)
        assert [item["id"] for item in self.lines[1].sent()] == ["b"]
        self.lines[1].answer(id="b")
        assert self.successResultOf(gatherResults([first, second]))
        self.lines[1].lose()

    def test_an_answer_without_an_id_belongs_to_the_oldest_request(self) -> None:
        line, first = self.connected("a")
        second = self.publish("b")
        line.answer(ok=False, code="line_too_long", message="1 MiB")
        self.failureResultOf(first, PushRejected)
        line.lose()
        self.clock.advance(0)
        self.lines[1].accept()
        assert [item["id"] for item in self.lines[1].sent()] == ["b"]
        self.lines[1].answer(id="b")
        assert self.successResultOf(second).ok
        self.lines[1].lose()

    def test_two_publishes_with_one_key_get_an_answer_each(self) -> None:
        line, first = self.connected(7)
        second = self.publish(7)
        line.answer(id=7, delivered=1)
        line.answer(id=7, duplicate=True)
        assert (self.successResultOf(first).duplicate, self.successResultOf(second).duplicate) == (False, True)
        line.lose()

    def test_without_ack_it_is_done_when_it_is_sent_and_a_refusal_is_logged(self) -> None:
        publishing = self.publish("k", ack=False)
        self.assertNoResult(publishing)
        self.clock.advance(0)
        (line,) = self.lines
        line.accept()
        assert self.successResultOf(publishing) == PushResult(True, "k")
        assert "ack" not in line.sent()[0]
        self.clock.advance(60)
        assert not line.transport.disconnected
        line.answer(ok=False, id="k", code="no_audience", message="say who")
        assert [event["code"] for event in self.events if "code" in event] == ["no_audience"]
        line.lose()

    def test_a_cancelled_request_is_not_sent_again(self) -> None:
        line, first = self.connected("a")
        second = self.publish("b")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        line.answer(id="a")
        line.lose()
        self.clock.advance(0)
        self.lines[1].accept()
        assert [item["id"] for item in self.lines[1].sent()] == ["b"]
        self.lines[1].answer(id="b")
        assert self.successResultOf(second).ok
        self.lines[1].lose()

    def test_a_request_beyond_the_limit_fails_at_once(self) -> None:
        self.client = self.make(max_pending=2)
        line, first = self.connected("a")
        second, third = self.publish("b"), self.publish("c")
        self.failureResultOf(third, PushUnavailable)
        line.answer(id="a")
        line.answer(id="b")
        assert self.successResultOf(gatherResults([first, second]))
        line.lose()

    def test_while_the_server_does_not_read_nothing_is_written(self) -> None:
        line, first = self.connected("a")
        line.sent()
        line.protocol.pauseProducing()
        second, third = self.publish("b"), self.publish("c", ack=False)
        assert line.sent() == []
        self.assertNoResult(third)
        line.protocol.resumeProducing()
        assert [item["id"] for item in line.sent()] == ["b", "c"]
        assert self.successResultOf(third).ok
        line.protocol.pauseProducing()
        line.answer(id="a")
        line.answer(id="b")
        assert self.successResultOf(gatherResults([first, second]))
        fourth = self.publish("d", ack=False)
        self.clock.advance(2)
        assert line.transport.disconnected  # nor does it say anything
        line.lose()
        self.clock.advance(0)
        self.lines[1].accept()
        assert self.successResultOf(fourth).ok
        self.lines[1].lose()

    def test_the_secret_goes_first_on_each_connection(self) -> None:
        self.client = self.make(secret=b"sesame")
        line, first = self.connected("a")
        auth = {"op": "auth", "id": "auth", "secret": "sesame"}
        assert [item.get("id") for item in line.sent()] == ["auth", "a"]
        line.lose()
        self.clock.advance(0.05)
        line = self.lines[1]
        line.accept()
        assert line.sent()[0] == auth
        line.answer(id="auth")
        line.answer(id="a")
        assert self.successResultOf(first).ok
        line.lose()

    def test_a_wrong_secret_fails_pending_events_without_a_retry(self) -> None:
        self.client = self.make(secret="wrong")
        line, first = self.connected("a")
        second = self.publish("b")
        line.answer(ok=False, id="auth", code="bad_secret", message="the secret is wrong")
        for item in (first, second):
            assert self.failureResultOf(item, PushRejected).value.code == "bad_secret"
        assert line.transport.disconnected
        line.lose()
        assert len(self.lines) == 1
        (logged,) = [event for event in self.events if event.get("code") == "bad_secret"]
        assert "wrong" not in logged["log_format"]

    def test_a_server_with_too_many_connections_is_tried_again(self) -> None:
        self.client = self.make(secret="s")
        line, publishing = self.connected("a")
        line.answer(ok=False, code="overloaded", message="too many")
        line.lose()
        self.clock.advance(0.05)
        self.lines[1].accept()
        self.lines[1].answer(id="auth")
        self.lines[1].answer(id="a")
        assert self.successResultOf(publishing).ok
        self.lines[1].lose()

    def test_garbage_is_no_answer(self) -> None:
        line, publishing = self.connected("a")
        line.protocol.dataReceived(b"HTTP/1.1 400 Bad Request\r\n")
        assert line.transport.disconnected
        line.lose()
        self.clock.advance(5)
        self.failureResultOf(publishing, PushUnavailable)
        self.lines[1].refuse()
        self.clock.advance(5)

    def test_close_fails_unanswered_and_later_events(self) -> None:
        line, first = self.connected("a")
        closed = self.client.close()
        self.failureResultOf(first, PushUnavailable)
        self.failureResultOf(self.publish("b"), PushUnavailable)
        assert line.transport.disconnecting
        self.assertNoResult(closed)
        line.lose()
        self.successResultOf(closed)
        self.successResultOf(self.client.close())

    def test_close_aborts_a_server_that_does_not_close(self) -> None:
        line, first = self.connected("a")
        closed = self.client.close()
        self.failureResultOf(first, PushUnavailable)
        self.clock.advance(2)
        assert line.transport.disconnected
        line.lose()
        self.successResultOf(closed)

    def test_closing_while_it_connects_or_waits_to_or_is_idle(self) -> None:
        self.successResultOf(self.client.close())
        for client, advance in ((self.make(), None), (self.make(), 0)):
            self.client = client
            first = self.publish()
            if advance is not None:
                self.clock.advance(advance)
            closed = client.close()
            self.failureResultOf(first, PushUnavailable)
            self.successResultOf(closed)
            assert self.clock.getDelayedCalls() == []

    def test_an_endpoint_that_raises_is_one_that_cannot_be_reached(self) -> None:
        class FakeEndpoint:
            @staticmethod
            def connect(factory: Any) -> Deferred[Any]:
                raise LookupError("nothing to connect to")

        self.client = PushClient(FakeEndpoint(), reactor=self.clock)  # type: ignore[arg-type]
        publishing = self.publish()
        for _ in range(10):
            self.clock.advance(1)
        self.failureResultOf(publishing, PushUnavailable)

    def test_online_and_ping_return_the_responses(self) -> None:
        line, publishing = self.connected("a")
        line.answer(id="a")
        asked, pinged = self.client.online(), self.client.ping()
        _, question, ping = line.sent()
        assert (question["op"], ping["op"]) == ("presence", "ping")
        line.answer(id=question["id"], online=[1, "b"])
        line.answer(id=ping["id"])
        assert self.successResultOf(asked) == [1, "b"]
        assert self.successResultOf(pinged).ok
        assert self.successResultOf(publishing).ok
        line.lose()

    def test_agents_returns_each_agent_with_its_status(self) -> None:
        line, publishing = self.connected("a")
        line.answer(id="a")
        agents = self.client.agents()
        question = line.sent()[-1]
        assert (question["op"], question["detail"]) == ("presence", True)
        listed = [{"user_id": 5, "connections": []}, {"user_id": "ana", "connections": []}]
        line.answer(id=question["id"], online=[5, "ana"], status={"5": "away"}, agents=listed)
        assert self.successResultOf(agents) == [OnlineAgent(5, [], "away"), OnlineAgent("ana", [])]
        self.successResultOf(publishing)
        line.lose()

    def test_lines_about_contacts_groups_and_statuses_have_their_fields(self) -> None:
        line, publishing = self.connected("a")
        line.answer(id="a")
        calls = [
            self.client.disconnect_contact(7, "bye", ban=True),
            self.client.unsubscribe_contact(7, 456),
            self.client.set_status(5, "away"),
            self.client.set_groups(5, ["sales"]),
            self.client.publish("x", {}, to="everyone", except_contact_id=7, except_connection_id="n-1"),
        ]
        expected: list[dict[str, Any]] = [
            {"op": "disconnect", "contact_id": 7, "reason": "bye", "ban": True},
            {"op": "unsubscribe", "contact_id": 7, "conversation_id": 456},
            {"op": "status", "user_id": 5, "status": "away"},
            {"op": "groups", "user_id": 5, "groups": ["sales"]},
            {"event": "x", "except_contact_id": 7, "except_connection_id": "n-1"},
        ]
        for sent, fields in zip(line.sent()[-5:], expected, strict=True):
            assert sent.items() >= fields.items()
            line.answer(id=sent["id"])
        assert all(self.successResultOf(call).ok for call in calls)
        self.successResultOf(publishing)
        line.lose()


@pytest.fixture
def server() -> Iterator[PushServer]:
    calls = set(reactor.getDelayedCalls())
    server = PushServer()
    pytest_twisted.blockon(Deferred.fromCoroutine(server.start()))
    yield server
    pytest_twisted.blockon(Deferred.fromCoroutine(server.stop()))
    assert set(reactor.getDelayedCalls()) <= calls


@pytest_twisted.ensureDeferred
async def test_through_kills_and_restarts_each_event_is_published_once(server: PushServer) -> None:
    client = PushClient(f"tcp:127.0.0.1:{server.port}", deadline=30)
    publishing = []
    for at in range(500):
        publishing.append(client.publish("new_message", {"conversation_id": at}, key=at))
        if at % 100 == 50:
            await until(lambda at=at: len(server.target.done) > at - 30)
            server.target.waiting = []  # the next ones are taken, and their answers lost
        if at % 100 == 90:
            await until(lambda: server.target.waiting)
            await server.stop()
            while server.target.waiting:
                server.target.settle()
            server.target.waiting = None
            await server.start()
    answers = await gatherResults(publishing)
    assert [answer.id for answer in answers] == list(range(500))
    assert any(answer.duplicate for answer in answers)
    assert sorted(int(new_event.key) for new_event in server.target.done) == list(range(500))
    await client.close()


@pytest_twisted.ensureDeferred
async def test_over_a_unix_socket(tmp_path: Path) -> None:
    server = PushServer(path=str(tmp_path / "push.sock"))
    await server.start()
    client = PushClient(f"unix:{tmp_path}/push.sock")
    assert (await client.publish("new_message", DATA)).event_id == "E:1"
    await client.close()
    await server.stop()
