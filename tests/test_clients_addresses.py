"""Both Python push clients with the addresses of several nodes: one that fails costs nothing and doubles nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.clients import blocking, protocol
from chatws.clients.addresses import Address, parse_addresses
from chatws.clients.blocking import BlockingPushClient, PushRejected, PushResult, PushUnavailable
from chatws.clients.twisted import PushClient
from chatws.clients.twisted_connection import make_endpoints
from chatws.errors import Unavailable
from chatws.runtime.backoff import backoff
from tests.certificates import self_signed
from tests.push_wire import PushServer, in_thread, reactor, until
from tests.test_clients_blocking import Hasty
from tests.test_clients_twisted import Attempt

DATA = {"conversation_id": 1}
#: What clients are given where nothing is waited for in vain.
PATIENT: dict[str, Any] = {"connect_timeout": 5.0, "timeout": 5.0, "deadline": 20.0}

Publish = Callable[..., "Deferred[list[PushResult]]"]


def events(*keys: object) -> list[dict[str, Any]]:
    return [{"event": "new_message", "data": DATA, "key": key} for key in keys]


@pytest.fixture(params=["blocking", "twisted"])
def client(request: Any) -> Iterator[Any]:
    """`publish = client(addresses, **options)` publishes a list of events, over either client."""
    closing: list[Callable[[], Any]] = []

    def make(*servers: PushServer, **options: Any) -> Publish:
        addresses = ",".join(server.address for server in servers)
        if request.param == "blocking":
            made = BlockingPushClient(addresses, **{**PATIENT, **options})
            closing.append(made.close)
            return lambda publishes: in_thread(made.publish_many, publishes)
        twisted = PushClient(addresses, **{**PATIENT, **options})
        closing.append(lambda: pytest_twisted.blockon(twisted.close()))
        return lambda publishes: gatherResults([twisted.publish(**publishe) for publishe in publishes])

    yield make
    for close in closing:
        close()


@pytest.fixture
def nodes() -> Iterator[tuple[PushServer, PushServer]]:
    """Two that know each other's keys, as nodes on one log do. Both are listening."""
    calls = set(reactor.getDelayedCalls())
    first, second = PushServer(), PushServer()
    second.target.keys, second.target.done = first.target.keys, first.target.done
    for server in (first, second):
        pytest_twisted.blockon(Deferred.fromCoroutine(server.start()))
    yield first, second
    for server in (first, second):
        pytest_twisted.blockon(Deferred.fromCoroutine(server.stop()))
    assert set(reactor.getDelayedCalls()) <= calls


def published(server: PushServer) -> list[str]:
    """The keys of what was published, in order."""
    return [new_event.key for new_event in server.target.done]


@pytest_twisted.ensureDeferred
async def test_a_node_that_refuses_is_passed_over_until_it_is_the_last_that_is_left(nodes: Any, client: Any) -> None:
    first, second = nodes
    await first.stop()
    publish = client(first, second)
    assert [answer.ok for answer in await publish(events("a", "b"))] == [True, True]
    await first.start()
    await publish(events("c"))
    assert first.factory.stats.connections == 0, "what worked is taken again"
    await second.stop()
    await publish(events("d"))
    assert first.factory.stats.lines == 1
    assert published(second) == ["a", "b", "c", "d"]


@pytest_twisted.ensureDeferred
async def test_a_node_that_is_silent_leaves_the_other_its_share_of_the_time(nodes: Any, client: Any) -> None:
    first, second = nodes
    silent: list[Protocol] = []

    class Silent(Protocol):
        def connectionMade(self) -> None:
            silent.append(self)

    await first.stop()
    await first.start(Factory.forProtocol(Silent))
    publish = client(first, second, timeout=60.0, deadline=4.0)
    assert [answer.ok for answer in await publish(events("a", "b"))] == [True, True]
    await publish(events("c"))
    assert len(silent) == 1
    assert published(second) == ["a", "b", "c"]
    for item in silent:
        item.transport.abortConnection()


@pytest.mark.parametrize("code", ["unavailable", "overloaded"])
@pytest_twisted.ensureDeferred
async def test_a_node_that_cannot_take_it_now_is_left_for_another(nodes: Any, client: Any, code: str) -> None:
    first, second = nodes
    if code == "unavailable":
        first.target.failing = Unavailable("the log cannot be reached")
    else:
        await first.stop()
        overloaded = json.dumps({"ok": False, "code": "overloaded", "message": "too many connections"}).encode()

        class Overloaded(Protocol):
            def connectionMade(self) -> None:
                self.transport.write(overloaded + b"\n")
                self.transport.loseConnection()

        await first.start(Factory.forProtocol(Overloaded))
    publish = client(first, second)
    answers = await publish(events("a", "b", "c"))
    assert [(answer.id, answer.ok) for answer in answers] == [("a", True), ("b", True), ("c", True)]
    assert published(second) == ["a", "b", "c"]
    assert second.factory.stats.connections == 1


@pytest_twisted.ensureDeferred
async def test_an_event_accepted_by_a_killed_node_is_not_published_twice(nodes: Any, client: Any) -> None:
    first, second = nodes
    publish = client(first, second, deadline=20.0)
    await publish(events("before"))
    first.target.waiting = []  # the next are taken, and their answers lost
    keys = [str(at) for at in range(60)]
    publishing = publish(events(*keys))
    await until(lambda: first.target.waiting)
    for _, new_events in first.target.waiting:
        first.target.accept(new_events)
    await first.stop()
    while first.target.waiting:
        first.target.settle()
    answers = await publishing
    assert [answer.id for answer in answers] == keys
    assert all(answer.ok for answer in answers)
    assert any(answer.duplicate for answer in answers)
    assert published(second) == ["before", *keys]


@pytest_twisted.ensureDeferred
async def test_without_a_reachable_node_the_error_names_each_address(
    nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "time", Hasty())
    first, second = nodes
    for server in nodes:
        await server.stop()
    with BlockingPushClient(f"{first.address},{second.address}", **PATIENT) as push:
        with pytest.raises(PushUnavailable) as caught:
            await in_thread(push.publish, "new_message", DATA)
        for server in nodes:
            assert f"{server.address}: [Errno" in str(caught.value)
        await second.start()
        assert (await in_thread(push.ping)).ok


@pytest_twisted.ensureDeferred
async def test_a_wrong_secret_is_not_tried_elsewhere(nodes: Any) -> None:
    strict = PushServer(secret=lambda: b"sesame")
    await strict.start()
    push = BlockingPushClient(f"{strict.address},{nodes[0].address}", secret="wrong", **PATIENT)
    with push, pytest.raises(PushRejected, match="bad_secret"):
        await in_thread(push.ping)
    await strict.stop()
    assert nodes[0].factory.stats.connections == 0


@pytest_twisted.ensureDeferred
async def test_tls_is_for_the_addresses_that_say_so(nodes: Any, tmp_path: Path) -> None:
    certificate = self_signed()
    far = PushServer(certificate=certificate)
    near = PushServer(path=str(tmp_path / "push.sock"))
    for server in (far, near):
        await server.start()
    with BlockingPushClient(f"{near.address}, tls://{far.address}", tls=certificate.trusted(), **PATIENT) as push:
        assert (await in_thread(push.ping)).ok
        assert near.factory.stats.lines == 1
        await near.stop()
        assert (await in_thread(push.ping)).ok
        assert far.factory.stats.lines == 1
    await far.stop()


def test_addresses_are_parted_by_commas() -> None:
    result = parse_addresses("10.0.0.1:8081, [::1]:8082,tls://chat.example:8443,unix:/run/push.sock")
    assert result == [
        Address("10.0.0.1:8081", "10.0.0.1", 8081),
        Address("[::1]:8082", "::1", 8082),
        Address("tls://chat.example:8443", "chat.example", 8443, True),
        Address("unix:/run/push.sock", "/run/push.sock", None),
    ]


@pytest.mark.parametrize("bad", ["", "8081", "localhost:http", "127.0.0.1:0", "127.0.0.1:99999"])
def test_one_bad_address_is_an_error_wherever_it_stands(bad: str) -> None:
    for addresses in (bad, f"{bad},127.0.0.1:8081", f"127.0.0.1:8081,{bad}"):
        with pytest.raises(ValueError, match=r"a push address is host:port or unix:/path, not|not between 1 and 65535"):
            BlockingPushClient(addresses)
        with pytest.raises(ValueError, match=r"."):
            PushClient(addresses)


def test_twisted_s_own_descriptions_and_endpoints_may_stand_beside_plain_addresses() -> None:
    own = UNIXClientEndpoint(reactor, "/own.sock")
    texts = make_endpoints("tcp:10.0.0.1:8081, 10.0.0.2:8081,[::1]:8081,unix:/push.sock", reactor)
    assert [type(text) for text in texts] == [
        TCP4ClientEndpoint,
        HostnameEndpoint,
        HostnameEndpoint,
        UNIXClientEndpoint,
    ]
    assert [str(text) for text in texts[1:3]] == ["<HostnameEndpoint 10.0.0.2:8081>", "<HostnameEndpoint [::1]:8081>"]
    listed = make_endpoints([own, "unix:/with,comma.sock"], reactor)
    assert (listed[0], listed[1]._path) == (own, "/with,comma.sock")
    assert make_endpoints(own, reactor) == [own]
    with pytest.raises(ValueError, match="the list of endpoints is empty"):
        PushClient([], reactor=reactor)


class InMemoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.lines: list[tuple[str, Attempt]] = []
        self.patch(protocol, "backoff", partial(backoff, jitter=lambda: 1.0))

    def tearDown(self) -> None:
        assert self.clock.getDelayedCalls() == []

    def make(self, names: str = "AB", **options: Any) -> PushClient:
        test = self

        class FakeEndpoint:
            def __init__(self, name: str) -> None:
                self.name = name

            def connect(self, factory: Any) -> Deferred[Any]:
                line = Attempt(factory)
                test.lines.append((self.name, line))
                return line.waiting

        return PushClient([FakeEndpoint(name) for name in names], reactor=self.clock, **options)  # type: ignore[misc]

    def connect(self) -> Attempt:
        """The connection under way comes about."""
        self.clock.advance(0)
        line = self.lines[-1][1]
        line.accept()
        return line

    def names(self) -> str:
        return "".join(name for name, _ in self.lines)

    def test_the_client_pauses_after_all_addresses_failed(self) -> None:
        publishing = self.make("ABC", deadline=1.0).publish("new_message", DATA)
        times: list[float] = []
        while not publishing.called:
            (call, *_) = sorted(self.clock.getDelayedCalls(), key=lambda item: item.getTime())
            self.clock.advance(call.getTime() - self.clock.seconds())
            if len(self.lines) > len(times):
                times.append(round(self.clock.seconds(), 3))
                self.lines[-1][1].refuse()
        assert self.names() == "ABC" * 5
        assert times == [at for at in (0, 0.05, 0.15, 0.35, 0.75) for _ in "ABC"]
        self.failureResultOf(publishing, PushUnavailable)
        self.clock.advance(10)

    def test_a_lost_connection_with_pending_events_tries_the_next_address(self) -> None:
        client = self.make()
        first = client.publish("new_message", DATA, key="a")
        line = self.connect()
        output = line.sent()
        line.lose()
        line = self.connect()
        assert (self.names(), line.sent()) == ("AB", output)
        line.answer(id="a")
        assert self.successResultOf(first).ok
        line.lose()
        second = client.publish("new_message", DATA, key="b")
        line = self.connect()
        assert self.names() == "ABB"
        line.answer(id="b")
        assert self.successResultOf(second).ok
        line.lose()

    def test_unavailable_takes_all_that_is_open_elsewhere_in_order(self) -> None:
        client = self.make()
        keys = ("a", "b", "c")
        publishing = [client.publish("new_message", DATA, key=key) for key in keys]
        line = self.connect()
        line.answer(id="a")
        line.answer(ok=False, id="b", code="unavailable", message="no log")
        assert line.transport.disconnected
        line.sent()
        without = client.publish("new_message", DATA, key="d", ack=False)
        assert line.sent() == [], "it would be lost"
        self.assertNoResult(without)
        line.lose()
        line = self.connect()
        assert self.names() == "AB"
        assert [element["id"] for element in line.sent()] == ["b", "c", "d"]
        for key in ("b", "c"):
            line.answer(id=key)
        assert [self.successResultOf(item).id for item in (*publishing, without)] == ["a", "b", "c", "d"]
        line.lose()

    def test_unavailable_addresses_are_tried_in_turn_with_pauses(self) -> None:
        publishing = self.make(deadline=5.0).publish("new_message", DATA, key="a")
        for pause in (0, 0, 0.05, 0, 0.1, 0):
            self.clock.advance(pause)
            line = self.connect()
            line.answer(ok=False, id="a", code="unavailable", message="no log")
            line.lose()
        assert self.names() == "ABABAB"
        self.clock.advance(0.2)
        line = self.connect()
        line.answer(id="a")
        assert self.successResultOf(publishing).ok
        line.lose()

    def test_the_times_allowed_are_a_share_of_the_deadline_at_most(self) -> None:
        publishing = self.make(connect_timeout=60.0, timeout=60.0, deadline=6.0).publish("new_message", DATA, key="a")
        self.clock.advance(0)
        self.clock.advance(3.0)
        assert self.lines[0][1].cancelled
        line = self.connect()
        assert self.names() == "AB"
        line.answer(id="a")
        assert self.successResultOf(publishing).ok
        silent = self.make(timeout=60.0, deadline=6.0)
        publishing = silent.publish("new_message", DATA, key="b")
        other = self.connect()
        self.clock.advance(3.0)
        assert other.transport.disconnected
        other.lose()
        last = self.connect()
        assert self.names() == "ABAB"
        last.answer(id="b")
        assert self.successResultOf(publishing).ok
        for item in (line, last):
            item.lose()
