"""chatws.clients.blocking.BlockingPushClient against a listener on real sockets; the client lives in a thread."""

from __future__ import annotations

import logging
import math
import select
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults
from twisted.internet.protocol import Factory, Protocol

from chatws.brokers.interface import Audience
from chatws.clients import blocking, protocol
from chatws.clients.blocking import BlockingPushClient, OnlineAgent, OnlineConnection, PushRejected, PushUnavailable
from chatws.clients.protocol import publish_line
from chatws.errors import Unavailable
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
    for item in made:
        item.close()


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
            assert push.agents()[0] == OnlineAgent(1, [OnlineConnection("c-1", "192.0.2.1")])
            assert push.disconnect_contact(7, "bye").connections == 2
            assert push.unsubscribe_contact(7, 6).connections == 1
            assert push.set_groups(1, ("sales",)).ok
            assert push.set_status(1, "away").ok
            assert push.agents()[0].status == "away"
            assert push.agents()[1].status == "online"
            push.publish("x", {}, to="everyone", except_contact_id=7, except_connection_id="n-1")
            answers, problem = push.send_lines([(b'{"event":"x","id":7,"ack":true,"data":{},"to":"everyone"}\n', 7)])
            assert ([answer and answer.ok for answer in answers], problem) == ([True], "")
            assert push.ping().ok

    await in_thread(use)
    first, second, *rest, excluding, spooled = server.target.done
    assert excluding.audience.channels[-2:] == ("!contact:7", "!connection:n-1")
    assert spooled.key == "7"
    assert first.data == b'{"conversation_id":1,"message":{"id":9,"content":"ol\xc3\xa1"}}'
    assert (second.data, second.audience, second.transient) == (
        b'{"raw": 1.50}',
        Audience(("user:1", "user:2"), 3),
        True,
    )
    assert rest == [
        ("disconnect", 5, "bye", True),
        ("unsubscribe", 5, 6),
        ("disconnect_contact", 7, "bye", False),
        ("unsubscribe_contact", 7, 6),
        ("groups", 1, ("sales",)),
        ("status", 1, "away"),
    ]
    assert server.factory.stats.connections == 1


@pytest_twisted.ensureDeferred
async def test_a_refusal_is_raised_and_not_tried_again(started: Any, client: Any) -> None:
    server = await started()
    push = client(server)
    with pytest.raises(PushRejected, match="no_audience") as caught:
        await in_thread(push.publish, "unheard_of", {})
    assert caught.value.code == "no_audience"
    with pytest.raises(PushRejected, match="reserved_event"):
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
    assert [new_event.key for new_event in server.target.done] == [str(at) for at in range(1000) if at != 500]
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
async def test_an_event_with_a_lost_response_is_published_once(started: Any, client: Any) -> None:
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
    assert len({new_event.key for new_event in server.target.published}) == 3
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
async def test_without_a_listener_publish_fails_within_the_deadline(
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
async def test_a_server_that_returns_within_the_deadline_gets_the_event(started: Any, client: Any) -> None:
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
async def test_another_program_on_the_port_is_an_error_within_the_deadline(
    started: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "time", Hasty())
    server = await started()
    for says in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[]\n", b"\xff\n", b"{}\n", b'{"ok":true,"id":"\xff"}\n'):
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
    assert len({new_event.key for new_event in server.target.published}) == 1
    while server.target.waiting:
        server.target.settle()


@pytest_twisted.ensureDeferred
async def test_every_connection_begins_with_the_secret(started: Any, client: Any) -> None:
    server = await started(secret=lambda: b"sesame")
    push = client(server, secret="sesame")
    assert (await in_thread(push.publish, "new_message", DATA)).ok
    await server.stop()
    await server.start()
    assert (await in_thread(push.publish, "new_message", DATA)).ok
    for wrong in ("wrong", None):
        refused = client(server, secret=wrong)
        with pytest.raises(PushRejected, match="bad_secret"):
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
    with pytest.raises(PushRejected, match="line_too_long"):
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
async def test_a_wait_for_another_thread_past_the_deadline_is_an_error(started: Any, client: Any) -> None:
    server = await started()
    push = client(server, deadline=0.2)
    with push._lock, pytest.raises(PushUnavailable, match="other threads"):
        await in_thread(push.publish, "new_message", DATA)
    push._deadline = 20.0  # that of one who wants an answer
    assert (await in_thread(push.publish, "new_message", DATA)).ok


FORKING = """
import os, sys, threading
from chatws.clients.blocking import BlockingPushClient
push = BlockingPushClient(sys.argv[1], timeout=20, connect_timeout=20, deadline=20)
publishing = threading.Thread(target=push.publish, args=("new_message", {"conversation_id": 1}))
publishing.start()
sys.stdin.readline()
if os.fork() == 0:
    os._exit(0 if push.ping().ok else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
publishing.join()
print(push.ping().ok)
"""


@pytest_twisted.ensureDeferred
async def test_forked_process_opens_its_own_connection_while_a_thread_of_its_parent_publishes(started: Any) -> None:
    server = await started()
    server.target.waiting = []
    command = [sys.executable, "-W", "ignore", "-c", FORKING, server.address]  # Python warns of threads and forks
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        await until(lambda: server.target.waiting)
        output = in_thread(process.communicate, "fork\n", timeout=30)
        await until(lambda: server.factory.stats.connections == 2)
        server.target.settle()
        assert (await output)[0].splitlines() == ["0", "True"]
    assert server.factory.stats.connections == 2
    assert len(server.target.published) == 1


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
    monkeypatch.setattr(protocol, "retry_pause", lambda attempt: math.inf)
    with pytest.raises(PushUnavailable, match="certificate"):
        await in_thread(client(server, tls=ssl.create_default_context()).ping)


def test_an_invalid_address_is_an_error() -> None:
    for bad in ("", "8081", "localhost", "localhost:http", "tcp:8081:x"):
        with pytest.raises(ValueError, match="host:port"):
            BlockingPushClient(bad)
    BlockingPushClient("[::1]:8081")


@pytest.mark.parametrize(
    "data",
    [b"", b"5", b"[]", b"null", b"{", b"{}{}", b'{},"to":"everyone","x":{}', b"{}}", b'{"a":"\xff"}', b"[" * 100_000],
)
def test_data_given_as_bytes_must_be_a_json_object(data: bytes) -> None:
    with pytest.raises(ValueError, match="data must be a JSON object"):
        publish_line("x", data, key=1)


def test_data_given_as_bytes_is_sent_unchanged() -> None:
    data = b'{ "b": 1.10,\n "a": "\xc3\xa9" }'
    assert data.replace(b"\n", b" ") in publish_line("x", data, key=1)
