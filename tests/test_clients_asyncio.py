"""chatws.clients.asyncio.AsyncPushClient against a listener on real sockets; its event loop runs in a thread."""

from __future__ import annotations

import asyncio
import gc
import logging
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from chatws.brokers.interface import Audience
from chatws.clients.asyncio import AsyncPushClient, OnlineAgent, OnlineConnection, PushRejected, PushUnavailable
from chatws.errors import Unavailable
from tests.certificates import self_signed
from tests.e2e.process import free_port
from tests.push_wire import in_thread, started, until

__all__ = ["started"]

DATA = {"conversation_id": 1, "message": {"id": 9, "content": "olá"}}
PATIENT = {"timeout": 5.0, "connect_timeout": 5.0, "deadline": 20.0}


def use(address: str, function: Callable[[AsyncPushClient], Awaitable[Any]], **options: Any) -> Deferred[Any]:
    """Run `function` with a client in an event loop of its own, in a thread."""

    async def main() -> Any:
        async with AsyncPushClient(address, **{**PATIENT, **options}) as push:
            return await function(push)

    return in_thread(lambda: asyncio.run(main()))


class WebServer(Protocol):
    """A server of another kind."""

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


class Silent(Protocol):
    """A server that reads and never answers."""

    def dataReceived(self, data: bytes) -> None:
        pass


@pytest_twisted.ensureDeferred
async def test_each_method_executes_its_line(started: Any) -> None:
    server = await started()
    server.target.online_ids = ["x", 2, 1]

    async def calls(push: AsyncPushClient) -> None:
        result = await push.publish("new_message", DATA, key="k")
        assert (result.ok, result.id, result.event_id, result.delivered) == (True, "k", "E:1", 1)
        assert (await push.publish("new_message", DATA, key="k")).duplicate
        await push.publish("x", b'{"raw":\n1.50}', to={"user_ids": [1, "2"]}, except_user_id=3, transient=True)
        assert (await push.publish("new_message", DATA, ack=False)).ok
        assert (await push.disconnect(5, "bye", ban=True)).connections == 2
        assert (await push.unsubscribe(5, "6")).connections == 1
        assert await push.online() == [1, 2, "x"]
        assert (await push.agents())[0] == OnlineAgent(1, [OnlineConnection("c-1", "192.0.2.1")])
        assert (await push.disconnect_contact(7, "bye")).connections == 2
        assert (await push.unsubscribe_contact(7, 6)).connections == 1
        assert (await push.set_groups(1, ["sales"])).ok
        assert (await push.set_status(1, "away")).ok
        assert [agent.status for agent in await push.agents()] == ["away", "online", "online"]
        await push.publish("x", {}, to="everyone", except_contact_id=7, except_connection_id="n-1")
        assert (await push.ping()).ok

    await use(server.address, calls)
    assert server.target.published[-1].audience.channels[-2:] == ("!contact:7", "!connection:n-1")
    assert server.target.done[-5:-1] == [
        ("disconnect_contact", 7, "bye", False),
        ("unsubscribe_contact", 7, 6),
        ("groups", 1, ("sales",)),
        ("status", 1, "away"),
    ]
    assert server.target.published[2].audience == Audience(("user:1", "user:2"), 3)
    assert server.factory.stats.connections == 1


@pytest_twisted.ensureDeferred
async def test_publish_many_larger_than_the_buffers_keeps_the_order(started: Any) -> None:
    server = await started()

    async def calls(push: AsyncPushClient) -> Any:
        data = {**DATA, "x": "x" * 10_000}
        return await push.publish_many([{"event": "new_message", "data": data, "key": key} for key in range(1500)])

    results = await use(server.address, calls)
    assert [result.id for result in results] == list(range(1500))
    assert [event.key for event in server.target.published] == [str(key) for key in range(1500)]


@pytest_twisted.ensureDeferred
async def test_tasks_share_one_connection_without_waiting_for_each_other(started: Any) -> None:
    server = await started()
    server.target.waiting = []
    calling = use(
        server.address,
        lambda push: asyncio.gather(*(push.publish("new_message", DATA, key=key) for key in range(50))),
    )
    await until(lambda: sum(len(drafts) for _, drafts in server.target.waiting) == 50)
    while server.target.waiting:
        server.target.settle()
    results = await calling
    assert [result.id for result in results] == list(range(50))
    assert server.factory.stats.connections == 1


@pytest_twisted.ensureDeferred
async def test_connection_lost_before_the_response_sends_the_same_key_again(started: Any) -> None:
    server = await started()
    server.target.waiting = []
    calling = use(server.address, lambda push: push.publish("new_message", DATA))
    await until(lambda: server.target.waiting)
    server.target.settle()  # stored, but the response is lost
    await server.stop()
    server.target.waiting = None
    await server.start()
    result = await calling
    assert result.ok
    assert len({event.key for event in server.target.published}) == 1
    assert len(server.target.done) == 1


@pytest_twisted.ensureDeferred
async def test_rejected_event_raises_with_its_code_and_others_succeed(started: Any) -> None:
    server = await started()

    async def calls(push: AsyncPushClient) -> Any:
        outcomes = await asyncio.gather(
            push.publish("unknown", {}), push.publish("new_message", DATA), return_exceptions=True
        )
        with pytest.raises(TypeError):
            await push.publish("new_message", {"x": object()})
        return outcomes

    error, result = await use(server.address, calls)
    assert isinstance(error, PushRejected)
    assert error.code == "no_audience"
    assert result.ok


@pytest_twisted.ensureDeferred
async def test_wrong_secret_is_rejected_and_the_right_one_accepted(started: Any) -> None:
    server = await started(secret=lambda: b"right")
    assert (await use(server.address, lambda push: push.ping(), secret="right")).ok
    with pytest.raises(PushRejected, match="bad_secret"):
        await use(server.address, lambda push: push.ping(), secret="wrong")


@pytest_twisted.ensureDeferred
async def test_unavailable_is_retried_until_the_broker_is_back(started: Any) -> None:
    server = await started()
    server.target.failing = Unavailable("down")
    calling = use(server.address, lambda push: push.publish("new_message", DATA))
    await until(lambda: len(server.target.batches) > 2)
    server.target.failing = None
    assert (await calling).ok
    assert len({event.key for event in server.target.published}) == 1


@pytest_twisted.ensureDeferred
async def test_unavailable_until_the_deadline_raises_its_code(started: Any) -> None:
    server = await started()
    server.target.failing = Unavailable("down")
    with pytest.raises(PushUnavailable) as raised:
        await use(server.address, lambda push: push.publish("new_message", DATA), deadline=0.3)
    assert raised.value.code == "unavailable"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("first", ["closed", "silent", "unavailable"])
async def test_next_address_is_used_if_the_first_one_fails(started: Any, first: str) -> None:
    good = await started()
    bad = f"127.0.0.1:{free_port()}"
    if first != "closed":
        other = await started()
        bad = other.address
        if first == "silent":
            await other.stop()
            await other.start(Factory.forProtocol(Silent))
        else:
            other.target.failing = Unavailable("down")

    async def calls(push: AsyncPushClient) -> None:
        for _ in range(3):
            await push.publish("new_message", DATA)

    await use(f"{bad},{good.address}", calls, timeout=0.5)
    assert len(good.target.done) == 3
    assert good.factory.stats.connections == 1  # the client keeps to the node that works


@pytest_twisted.ensureDeferred
async def test_silent_server_raises_at_the_deadline_and_names_each_address(started: Any) -> None:
    server = await started()
    await server.stop()
    await server.start(Factory.forProtocol(Silent))
    closed = f"127.0.0.1:{free_port()}"
    with pytest.raises(PushUnavailable, match="the server is silent") as raised:
        await use(f"{server.address},{closed}", lambda push: push.ping(), timeout=0.1, deadline=1.0)
    assert closed in str(raised.value)


@pytest_twisted.ensureDeferred
async def test_peer_that_is_no_chatws_server_is_named_so(started: Any) -> None:
    server = await started()
    await server.stop()
    await server.start(Factory.forProtocol(WebServer))
    with pytest.raises(PushUnavailable, match="the peer is not a chatws server"):
        await use(server.address, lambda push: push.ping(), deadline=0.5)


@pytest_twisted.ensureDeferred
async def test_cancelled_call_does_not_take_the_response_of_another(started: Any) -> None:
    server = await started()
    server.target.waiting = []
    cancelled: list[bool] = []

    async def calls(push: AsyncPushClient) -> Any:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await push.publish("new_message", DATA, key="first")
        cancelled.append(True)
        return await push.publish("new_message", DATA, key="second")

    calling = use(server.address, calls)
    await until(lambda: cancelled and len(server.target.waiting) == 2)
    server.target.settle()
    server.target.settle()
    assert (await calling).id == "second"
    assert server.factory.stats.connections == 1


@pytest_twisted.ensureDeferred
async def test_too_many_pending_requests_raise_at_once(started: Any) -> None:
    server = await started()
    server.target.waiting = []

    async def calls(push: AsyncPushClient) -> Any:
        tasks = [asyncio.create_task(push.publish("new_message", DATA)) for _ in range(3)]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return [task.exception() for task in done], len(pending)

    (error,), pending = await use(server.address, calls, max_pending=2)
    assert (type(error), pending) == (PushUnavailable, 2)


@pytest_twisted.ensureDeferred
async def test_event_loops_share_a_client_and_are_not_kept_alive(started: Any) -> None:
    server = await started()

    def run() -> int:
        push = AsyncPushClient(server.address, **PATIENT)
        for _ in range(5):  # as async_to_sync does: a new loop for each call
            asyncio.run(push.publish("new_message", DATA))  # type: ignore[arg-type]
        gc.collect()
        return len(push._slots)

    assert await in_thread(run) == 0
    assert len(server.target.done) == 5


@pytest_twisted.ensureDeferred
async def test_idle_connection_that_the_server_closed_is_replaced(started: Any) -> None:
    server = await started()
    turns: list[str] = []

    async def calls(push: AsyncPushClient) -> None:
        await push.ping()
        turns.append("first")
        while "restarted" not in turns:
            await asyncio.sleep(0.01)
        await push.ping()

    calling = use(server.address, calls)
    await until(lambda: turns)
    await server.stop()
    await server.start()
    turns.append("restarted")
    await calling
    assert server.factory.stats.connections == 1


@pytest_twisted.ensureDeferred
async def test_rejection_without_ack_is_logged(started: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = await started()

    async def calls(push: AsyncPushClient) -> None:
        await push.publish("unknown", {}, key="k", ack=False)
        await push.ping()

    with caplog.at_level(logging.WARNING):
        await use(server.address, calls)
    assert "no_audience" in caplog.text


@pytest_twisted.ensureDeferred
async def test_tls_and_unix_sockets(started: Any, tmp_path: Path) -> None:
    certificate = self_signed()
    server = await started(certificate=certificate)
    (tmp_path / "root.pem").write_bytes(certificate.certificate)
    context = ssl.create_default_context(cafile=str(tmp_path / "root.pem"))
    assert (await use(f"tls://{server.address}", lambda push: push.ping(), tls=context)).ok
    with pytest.raises(PushUnavailable, match="certificate"):
        await use(f"tls://{server.address}", lambda push: push.ping(), deadline=1.0)
    unix = await started(path=str(tmp_path / "push.sock"))
    assert (await use(unix.address, lambda push: push.ping())).ok


def run_script(directory: Path, code: str, address: str) -> Deferred[str]:
    """Run a program in a process of its own, and return its output."""
    script = directory / "program.py"
    script.write_text(code)

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-X", "dev", str(script), address], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return in_thread(run)


@pytest_twisted.ensureDeferred
async def test_django_async_views_push_under_wsgi_and_asgi(started: Any, tmp_path: Path) -> None:
    server = await started()
    code = """
import asyncio, sys
import django
from django.conf import settings
from django.http import JsonResponse
from django.test import AsyncClient, Client
from django.urls import path
from chatws.clients.asyncio import AsyncPushClient

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
django.setup()
push = AsyncPushClient(sys.argv[1], deadline=20)

async def send(request):
    result = await push.publish("new_message", {"conversation_id": 1})
    return JsonResponse({"id": result.event_id})

urlpatterns = [path("", send)]

async def asgi():
    for response in await asyncio.gather(*(AsyncClient().get("/") for _ in range(3))):
        print(response.json()["id"])
    await push.close()

for _ in range(3):
    print(Client().get("/").json()["id"])
asyncio.run(asgi())
"""
    output = await run_script(tmp_path, code, server.address)
    assert sorted(output.split()) == [f"E:{number}" for number in range(1, 7)]


@pytest_twisted.ensureDeferred
@pytest.mark.long
async def test_fastapi_endpoints_push(started: Any, tmp_path: Path) -> None:
    server = await started()
    code = """
import asyncio, contextlib, json, sys
from fastapi import FastAPI
from chatws.clients.asyncio import AsyncPushClient

push = AsyncPushClient(sys.argv[1], deadline=20)
app = FastAPI()

@app.post("/messages")
async def send():
    return {"id": (await push.publish("new_message", {"conversation_id": 1})).event_id}

async def request():
    sent = []
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message):
        sent.append(message)
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": "/messages", "raw_path": b"/messages", "query_string": b"", "root_path": "", "headers": []}
    await app(scope, receive, send)
    print(json.loads(sent[1]["body"])["id"])

async def main():
    await asyncio.gather(*(request() for _ in range(3)))
    await push.close()

asyncio.run(main())
"""
    output = await run_script(tmp_path, code, server.address)
    assert sorted(output.split()) == ["E:1", "E:2", "E:3"]
    assert server.factory.stats.connections == 1
