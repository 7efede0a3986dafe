"""Backends that know two nodes on one log in Redis: whatever becomes of the first, each event arrives once.

The same journey for each push client, the real one: PHP, blocking Python, Twisted.
"""

from __future__ import annotations

import http.client
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from chatws.clients.blocking import BlockingPushClient
from chatws.clients.twisted import PushClient
from tests.e2e.conftest import Server
from tests.e2e.php import FakePushApi, Php
from tests.e2e.process import free_port
from tests.e2e.test_command import chatws
from tests.e2e.wire import DEADLINE, Browser, until
from tests.push_wire import in_thread
from tests.redis import RedisServer, redis
from tests.requirements import needs

__all__ = ["redis"]

Push = Callable[[range], "Deferred[Any]"]

#: Of a pipeline: as many lines as the node takes, and as many answers as come back, before it is killed.
LINES, TAKEN, ANSWERED = 100, 60, 20


def event(n: int) -> dict[str, Any]:
    return {"event": "note", "data": {"n": n}, "to": {"user_id": 1}, "key": f"key {n}"}


@asynccontextmanager
async def client(kind: str, *addresses: str, seconds: float) -> AsyncIterator[Push]:
    """`push(range(3))` pushes three notes at once; fires when all are acknowledged, fails when one is not.

    :param seconds: how patient it is: the defaults are short for a busy machine.
    """
    together = ",".join(addresses)
    if kind == "php":
        times = {"answer_timeout_ms": seconds * 1000, "budget_ms": seconds * 2000}

        def push(php: Php, numbers: range) -> None:
            arguments = [[1, "note", {"n": n}, f"key {n}"] for n in numbers]
            assert php.batch([{"method": "notifyUser", "arguments": argument} for argument in arguments]) is True, (
                php.log
            )

        with Php(address=together, **times) as php:
            yield lambda numbers: in_thread(push, php, numbers)
        return
    times = {"timeout": seconds, "deadline": 2 * seconds}
    if kind == "blocking":
        with BlockingPushClient(together, **times) as blocking:
            yield lambda numbers: in_thread(blocking.publish_many, [event(n) for n in numbers]).addCallback(all_good)
    else:
        twisted = PushClient(together, **times)
        yield lambda numbers: gatherResults([twisted.publish(**event(n)) for n in numbers]).addCallback(all_good)
        await twisted.close()


def all_good(answers: list[Any]) -> None:
    assert [answer for answer in answers if not answer.ok] == []


class Relay:
    """Stands before a TCP port. `cut` ends it with all its connections, `restore` begins it again, on the same port."""

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self._target = port
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def restore(self) -> None:
        listening = socket.create_server(("127.0.0.1", self.port))
        self._open.append(listening)
        self._run(self._accept, listening)

    def cut(self) -> None:
        with self._lock:
            closing, self._open = self._open, []
        for item in closing:
            with suppress(OSError):  # closed by the other side
                item.shutdown(socket.SHUT_RDWR)
            item.close()

    def __enter__(self) -> Relay:
        self.restore()
        return self

    def __exit__(self, *exception: object) -> None:
        self.cut()
        for thread in self._threads:
            thread.join(DEADLINE)

    def _run(self, do: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=do, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near = listening.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._target))
                with self._lock:
                    self._open += [near, far]
                self._connected(near, far)

    def _connected(self, near: socket.socket, far: socket.socket) -> None:
        self._run(self._pump, near, far)
        self._run(self._pump, far, near)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class KilledInTheMiddle(Relay):
    """Before a push port: lets the node take `TAKEN` lines and give `ANSWERED` answers, then kills it."""

    def __init__(self, node: Server) -> None:
        super().__init__(node.push_port)
        self._node = node

    def _connected(self, near: socket.socket, far: socket.socket) -> None:
        self._run(self._meet_the_end, near, far)

    def _meet_the_end(self, near: socket.socket, far: socket.socket) -> None:
        with near.makefile("rb") as lines, far.makefile("rb") as answers:
            for _ in range(TAKEN):
                far.sendall(lines.readline())
            for at in range(TAKEN):
                answer = answers.readline()
                assert b'"ok":true' in answer
                if at < ANSWERED:
                    near.sendall(answer)
            self._node.stop(signal.SIGKILL)
        self.cut()


def notes(browser: Browser, *, until_n: int) -> list[int]:
    """All that have come, and come before that one."""
    browser.expect("note", n=until_n)
    browser.settle()
    return [item["data"]["n"] for item in browser.received if item.get("event") == "note"]


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.long
@needs("redis-server")
@pytest.mark.parametrize("kind", [pytest.param("php", marks=needs("php-cli")), "blocking", "twisted"])
@pytest_twisted.ensureDeferred
async def test_each_event_arrives_once_after_any_fault_of_the_first_node(
    kind: str, redis: RedisServer, chatws_server: Callable[..., Server]
) -> None:
    log = redis.url_for(f"backends {kind}").removeprefix(redis.url)
    with ExitStack() as stack:
        way = stack.enter_context(Relay(redis.port))
        metrics_port = free_port()
        first = chatws_server("--broker", f"redis://{way.address}{log}", "--metrics-port", str(metrics_port))
        second = chatws_server("--broker", f"{redis.url}{log}")
        addresses = [f"127.0.0.1:{node.push_port}" for node in (first, second)]
        near_second = stack.enter_context(second.agent(1))

        with KilledInTheMiddle(first) as dying:
            async with client(kind, dying.address, addresses[1], seconds=10) as push:
                await push(range(LINES))
        assert notes(near_second, until_n=LINES - 1) == list(range(LINES)), "once, and in order"
        assert first.process is None

        async with client(kind, *addresses, seconds=10) as push:
            await push(range(100, 103))
            first.start()
            near_first = stack.enter_context(first.agent(1))
            await push(range(103, 105))
        assert notes(near_second, until_n=104) == list(range(105))

        # It takes connections, or the kernel does, and lines, which it will read later.
        first.process.send_signal(signal.SIGSTOP)
        async with client(kind, *addresses, seconds=2) as push:
            await push(range(105, 107))
        assert notes(near_second, until_n=106) == list(range(107))
        first.process.send_signal(signal.SIGCONT)
        lines = re.compile(r"^chatws_push_lines_total 2(\.0)?$", re.MULTILINE)
        until(lambda: lines.search(get(metrics_port, "/metrics")[1]), "the node to read what came while it was frozen")

        way.cut()
        async with client(kind, *addresses, seconds=2) as push:
            await push(range(107, 109))
        assert notes(near_second, until_n=108) == list(range(109))
        way.restore()
        until(lambda: get(first.port, "/readyz")[0] == 200, "the node to reach Redis again")
        async with client(kind, *addresses, seconds=10) as push:
            await push(range(109, 110))
        assert notes(near_second, until_n=109) == list(range(110))
        assert notes(near_first, until_n=109) == list(range(103, 110))


@pytest.mark.long
def test_the_commands_pass_over_a_node_that_is_away(chatws_server: Callable[..., Server]) -> None:
    server = chatws_server()
    node = f"127.0.0.1:{server.push_port}"
    push = ("push", "note", "{}", "--to", "user:1")
    bench = ("bench", "--url", server.ws_url, "--connections", "3", "--messages", "3")
    with server.agent(1) as browser, FakePushApi(lambda line: None) as silent:
        for words in (push, ("agents",), bench):
            done = chatws(*words, "--push", f"127.0.0.1:{free_port()},{node}", "--timeout", "5")
            assert (done.returncode, done.stderr) == (0, ""), words
        done = chatws(*push, "--timeout", "8", CHATWS_PUSH_ADDRESS=f"{silent.address},{node}")
        assert (done.returncode, len(silent.lines)) == (0, 1), done.stderr
        done = chatws("kick", "1", "--push", f"unix:/nowhere, {node}")
        assert done.returncode == 0, done.stderr
        assert browser.expect_close()[0] == 4000
        assert [item["event"] for item in browser.received].count("note") == 2
