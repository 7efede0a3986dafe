"""chatws.push.client.BlockingPushClient against a listener on real sockets; the client lives in a thread."""

from __future__ import annotations

import logging
import math
import select
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults
from twisted.internet.protocol import Factory, Protocol

from chatws.brokers.contract import Audience
from chatws.errors import Unavailable
from chatws.push import blocking
from chatws.push.client import Agent, AgentConnection, BlockingPushClient, PushRefused, PushUnavailable
from tests.certificates import self_signed
from tests.push_wire import PushServer, in_thread, started, until

__all__ = ["started"]

DATA = {"conversation_id": 1, "message": {"id": 9, "content": "olá"}}


class Hasty:
    """Stands for the module `time`: every sleep is over at once, and counts as time that has passed."""

    def __init__(self) -> None:
        self.slept = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.slept

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


@pytest.fixture
def client() -> Iterator[Any]:
    """Makes patient clients, and closes them."""
    made = []

    def make(server: PushServer, **options: Any) -> BlockingPushClient:
        made.append(
            BlockingPushClient(server.address, **{"timeout": 5.0, "connect_timeout": 5.0, "deadline": 20.0, **options})
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest_twisted.ensureDeferred
async def test_each_method(started: Any, client: Any) -> None:
    server = await started()
    server.target.online_ids = ["x", 2, 1]

    def use() -> None:
        with client(server) as push:
            answer = push.publish("new_message", DATA, key="k")
            assert (answer.ok, answer.id, answer.event_id, answer.delivered) == (True, "k", "E:1", 1)
            answer = push.publish("new_message", DATA, key="k")
            assert (answer.duplicate, answer.event_id) == (True, "E:1")
            push.publish("x", b'{"raw":\n1.50}', to={"user_ids": [1, "2"]}, except_user_id=3, transient=True)
            assert push.disconnect(5, "bye", ban=True).connections == 2
            assert push.unsubscribe(5, "6").connections == 1
            assert push.online() == [1, 2, "x"]
            assert push.agents()[0] == Agent(1, [AgentConnection("c-1", "192.0.2.1")])
            answers, problem = push.send_lines([(b'{"event":"x","id":7,"ack":true,"data":{},"to":"everyone"}\n', 7)])
            assert ([answer and answer.ok for answer in answers], problem) == ([True], "")
            assert push.ping().ok

    await in_thread(use)
    first, second, *rest, spooled = server.target.done
    assert spooled.key == "7"
    assert first.data == b'{"conversation_id":1,"message":{"id":9,"content":"ol\xc3\xa1"}}'
    assert (second.data, second.audience, second.transient) == (
        b'{"raw": 1.50}',
        Audience(("user:1", "user:2"), 3),
        True,
    )
    assert rest == [("disconnect", 5, "bye", True), ("unsubscribe", 5, 6)]
    assert server.factory.stats.connections == 1


@pytest_twisted.ensureDeferred
async def test_a_refusal_is_raised_and_not_tried_again(started: Any, client: Any) -> None:
    server = await started()
    push = client(server)
    with pytest.raises(PushRefused, match="no_audience") as caught:
        await in_thread(push.publish, "unheard_of", {})
    assert caught.value.code == "no_audience"
    with pytest.raises(PushRefused, match="reserved_event"):
        await in_thread(push.publish, "error", {}, to="everyone")
    with pytest.raises(TypeError):
        await in_thread(push.publish, "x", {"a": object()})
    assert server.factory.stats.lines == 2
    assert (await in_thread(push.ping)).ok


@pytest_twisted.ensureDeferred
async def test_many_are_pipelined_and_answered_in_order(started: Any, client: Any) -> None:
    server = await started()
    publishes = [{"event": "new_message", "data": {"conversation_id": at}, "key": at} for at in range(1000)]
    publishes[500] = {"event": "unheard_of", "data": {}, "key": 500}
    answers = await in_thread(client(server).publish_many, publishes)
    assert [answer.id for answer in answers] == list(range(1000))
    assert [at for at, answer in enumerate(answers) if not answer.ok] == [500]
    assert answers[500].code == "no_audience"
    assert [draft.key for draft in server.target.done] == [str(at) for at in range(1000) if at != 500]
    assert len(server.target.batches) <= 60  # windows, whatever TCP made of them
    assert await in_thread(client(server).publish_many, []) == []


@pytest_twisted.ensureDeferred
async def test_a_server_that_was_restarted_is_noticed(started: Any, client: Any) -> None:
    server = await started()
    push = client(server)
    for ack in (True, False, True):
        await in_thread(push.publish, "new_message", DATA, ack=ack)
        await until(lambda: server.factory.stats.published == 1)
        await server.stop()
        await until(lambda: select.select([push._socket], [], [], 0)[0])  # its end has come to the client's side
        await server.start()
    await in_thread(push.publish, "new_message", DATA)
    assert len(server.target.done) == 4


@pytest_twisted.ensureDeferred
async def test_what_was_done_before_the_answer_got_lost_is_not_done_twice(started: Any, client: Any) -> None:
    server = await started()
    server.target.waiting = []
    publishing = in_thread(client(server).publish, "new_message", DATA)
    await until(lambda: server.target.waiting)
    for connection in list(server.factory.connections):
        connection.abort()
    await until(lambda: len(server.target.waiting) == 2)
    server.target.settle()
    server.target.settle()
    answer = await publishing
    assert (answer.ok, answer.duplicate, answer.event_id) == (True, True, "E:1")
    first, second = server.target.published
    assert first.key == second.key != ""
    assert len(server.target.done) == 1


@pytest_twisted.ensureDeferred
async def test_unavailable_is_tried_again_until_it_works(started: Any, client: Any) -> None:
    server = await started()
    server.target.failing = Unavailable("the log cannot be reached")
    publishing = in_thread(client(server).publish_many, [{"event": "new_message", "data": DATA}] * 3)
    await until(lambda: len(server.target.batches) >= 3)
    server.target.failing = None
    assert [answer.ok for answer in await publishing] == [True] * 3
    assert len({draft.key for draft in server.target.published}) == 3
    assert server.factory.stats.connections == 1


@pytest_twisted.ensureDeferred
async def test_unavailable_for_too_long_is_raised(started: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "time", Hasty())
    server = await started()
    server.target.failing = Unavailable("the log cannot be reached")
    with pytest.raises(PushUnavailable) as caught:
        await in_thread(client(server).publish, "new_message", DATA)
    assert str(caught.value) == "unavailable: the log cannot be reached"
    assert caught.value.code == "unavailable"


@pytest_twisted.ensureDeferred
async def test_while_nobody_listens_it_fails_within_the_deadline(
    started: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = Hasty()
    monkeypatch.setattr(blocking, "time", hasty)
    server = await started()
    await server.stop()
    push = client(server, deadline=20.0)
    with pytest.raises(PushUnavailable) as caught:
        await in_thread(push.publish, "new_message", DATA)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert 0 < hasty.slept <= 20
    await server.start()
    assert (await in_thread(push.ping)).ok


class Deaf(Protocol):
    """Accepts, and then closes, says nothing, or talks nonsense."""

    connections = 0
    says: bytes | None = b""

    def connectionMade(self) -> None:
        Deaf.connections += 1
        if self.says is not None:
            self.transport.write(self.says)
            self.transport.loseConnection()


def deaf(says: bytes | None) -> Factory:
    Deaf.connections = 0
    return Factory.forProtocol(type("OneDeaf", (Deaf,), {"says": says}))


@pytest_twisted.ensureDeferred
async def test_a_server_that_comes_back_in_time_gets_it(started: Any, client: Any) -> None:
    server = await started()
    await server.stop()
    await server.start(deaf(says=b""))
    publishing = in_thread(client(server).publish, "new_message", DATA)
    await until(lambda: Deaf.connections >= 3)
    await server.stop()
    await server.start()
    assert (await publishing).ok
    assert len(server.target.done) == 1


@pytest_twisted.ensureDeferred
async def test_somebody_else_on_the_port_is_an_error_within_the_deadline(
    started: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "time", Hasty())
    server = await started()
    for says in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[]\n", b"\xff\n", b"{}\n"):
        await server.stop()
        await server.start(deaf(says))
        with pytest.raises(PushUnavailable):
            await in_thread(client(server).publish, "new_message", DATA)
        assert Deaf.connections >= 2


@pytest_twisted.ensureDeferred
async def test_silence_is_met_with_another_connection_and_then_an_error(
    started: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "time", Hasty())
    server = await started()
    server.target.waiting = []
    push = client(server, timeout=0.1, deadline=5.0)
    with pytest.raises(PushUnavailable, match=r"timed out|deadline"):
        await in_thread(push.publish, "new_message", DATA)
    assert server.factory.stats.connections >= 2
    assert len({draft.key for draft in server.target.published}) == 1
    while server.target.waiting:
        server.target.settle()


@pytest_twisted.ensureDeferred
async def test_the_secret_is_said_first_on_every_connection(started: Any, client: Any) -> None:
    server = await started(secret=lambda: b"sesame")
    push = client(server, secret="sesame")
    assert (await in_thread(push.publish, "new_message", DATA)).ok
    await server.stop()
    await server.start()
    assert (await in_thread(push.publish, "new_message", DATA)).ok
    for wrong in ("wrong", None):
        refused = client(server, secret=wrong)
        with pytest.raises(PushRefused, match="bad_secret"):
            await in_thread(refused.publish, "new_message", DATA)
    assert server.factory.stats.errors == {"bad_secret": 2}


@pytest_twisted.ensureDeferred
async def test_a_refusal_without_ack_is_logged_later(
    started: Any, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = await started()
    push = client(server)
    caplog.set_level(logging.WARNING)
    assert (await in_thread(push.publish, "unheard_of", {}, ack=False)).ok
    assert (await in_thread(push.publish, "new_message", DATA)).event_id == "E:1"
    assert "no_audience" in caplog.text
    assert (await in_thread(push.ping)).ok


@pytest_twisted.ensureDeferred
async def test_a_line_that_is_too_long_is_refused_and_the_next_goes_through(started: Any, client: Any) -> None:
    server = await started(max_line_size=1000)
    push = client(server)
    with pytest.raises(PushRefused, match="line_too_long"):
        await in_thread(push.publish, "x", {"a": "x" * 1000}, to="everyone")
    many = [{"event": "new_message", "data": DATA}, {"event": "x", "data": {"a": "x" * 1000}}] * 2
    answers = await in_thread(push.publish_many, many)
    assert [answer.code for answer in answers] == ["", "line_too_long"] * 2
    assert len(server.target.done) == 2


@pytest_twisted.ensureDeferred
async def test_threads_may_share_a_client(started: Any, client: Any) -> None:
    server = await started()
    push = client(server)

    def publish(thread: int) -> list[Any]:
        return [push.publish("new_message", DATA, key=f"{thread}-{at}").id for at in range(20)]

    ids = await gatherResults([in_thread(publish, thread) for thread in range(5)])
    assert ids == [[f"{thread}-{at}" for at in range(20)] for thread in range(5)]
    assert len(server.target.done) == 100
    assert server.factory.stats.connections == 1


@pytest_twisted.ensureDeferred
async def test_who_waits_for_another_thread_too_long_is_told(started: Any, client: Any) -> None:
    server = await started()
    push = client(server, deadline=0.2)
    with push._lock, pytest.raises(PushUnavailable, match="other threads"):
        await in_thread(push.publish, "new_message", DATA)
    push._deadline = 20.0  # that of one who wants an answer
    assert (await in_thread(push.publish, "new_message", DATA)).ok


@pytest_twisted.ensureDeferred
async def test_a_forked_process_opens_a_connection_of_its_own(started: Any, client: Any) -> None:
    server = await started()
    push = client(server)
    await in_thread(push.ping)
    parents, push._socket = push._socket, push._socket.dup()  # as a fork would leave it
    push._process = -1
    push._lock.acquire()
    assert (await in_thread(push.ping)).ok
    assert server.factory.stats.connections == 2
    assert push._socket.getsockname() != parents.getsockname()
    parents.close()


@pytest_twisted.ensureDeferred
async def test_unix_sockets_and_tls(started: Any, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await started(path=str(tmp_path / "push.sock"))
    assert (await in_thread(client(server).publish, "new_message", DATA)).ok
    certificate = self_signed()
    server = await started(certificate=certificate)
    push = client(server, tls=certificate.trusted())
    assert (await in_thread(push.publish, "new_message", DATA)).ok
    assert (await in_thread(push.publish, "new_message", DATA)).ok
    assert server.factory.stats.connections == 1
    # no try that what is left of the deadline is too short for
    monkeypatch.setattr(blocking, "backoff", lambda attempt: math.inf)
    with pytest.raises(PushUnavailable, match="certificate"):
        await in_thread(client(server, tls=ssl.create_default_context()).ping)


def test_an_address_must_be_one() -> None:
    for bad in ("", "8081", "localhost", "localhost:http", "tcp:8081:x"):
        with pytest.raises(ValueError, match="host:port"):
            BlockingPushClient(bad)
    BlockingPushClient("[::1]:8081")
