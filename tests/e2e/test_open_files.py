"""A server that may have 256 files open, and peers that take more than that and then do nothing."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.certificates import self_signed
from tests.e2e.conftest import Server
from tests.e2e.process import free_port
from tests.e2e.raw import Raw, head
from tests.e2e.wire import DEADLINE, Backend, until

FILES = 256
#: What the server admits of these: a quarter is its own, a quarter for newcomers.
ADMITTED = 128
#: Of which so many are kept for browsers whatever backends hold, and the other way round.
GUARANTEED = 16
CROWD = 300
SECRET = "a secret that is long enough to be one"


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))


class Served:
    """One such server, with a backend and a page that were there before."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.server = server
        self.metrics_port = int(server.arguments[server.arguments.index("--metrics-port") + 1])
        self._stack = stack
        self.backend = stack.enter_context(server.backend())
        self.page = stack.enter_context(server.agent(1, 7))

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        try:
            with urlopen(f"http://127.0.0.1:{port or self.server.port}{path}", timeout=DEADLINE) as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        text = self.get("/metrics", self.metrics_port)[1]
        (value,) = (line.split()[-1] for line in text.splitlines() if line.startswith(name + " "))
        return float(value)

    def sockets(self, kind: str) -> float:
        return self.metric(f'chatws_sockets{{kind="{kind}"}}')

    def goes_on(self, number: int) -> None:
        """Health, a push of the backend that was there, and its arrival at the page that was there."""
        assert self.get("/healthz") == (200, "ok\n")
        assert self.get("/readyz") == (200, "ready\n")
        assert self.get("/healthz", self.metrics_port) == (200, "ok\n")
        assert self.backend.push("new_message", {"conversation_id": 7, "message": {"id": number}})["delivered"] == 1
        self.page.expect("new_message", message={"id": number})

    def is_as_before(self) -> None:
        """When the crowd has left, newcomers of each kind are served."""
        until(lambda: self.sockets("websocket") == 1 and self.sockets("backend") == 1, "the crowd to be counted out")
        with self.server.agent(2, 7) as other, self.server.backend() as backend:
            assert backend.push("new_message", {"conversation_id": 7, "message": {"id": 999}})["delivered"] == 2
            other.expect("new_message", message={"id": 999})

    def log_is_bounded(self) -> None:
        lines = self.server.log.splitlines()
        assert not [line for line in lines if "EMFILE" in line or "Traceback" in line]
        assert len(lines) < 40, f"{len(lines)} lines for {CROWD} connections"


@pytest.fixture
def served(chatws_server: Callable[..., Server]) -> Iterator[Callable[..., Served]]:
    with ExitStack() as stack:

        def start(*arguments: str) -> Served:
            server = chatws_server("--metrics-port", str(free_port()), *arguments, start=False)
            server.options["preexec_fn"] = few_files
            server.start()
            server.expect_log(f"up to {FILES} open files")
            return Served(server, stack)

        yield start


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)


def test_idle_backends_leave_files_for_browsers_health_and_pushes(served: Callable[..., Served]) -> None:
    here = served()
    with ExitStack() as crowd:
        idle = [crowd.enter_context(connect(here.server.push_port)) for _ in range(CROWD)]
        # the kernel accepts for the server, so the last one's answer shows that all have been seen
        answer = json.loads(idle[-1].makefile().readline())
        assert answer == {"ok": False, "code": "overloaded", "message": answer["message"]}
        assert idle[-1].recv(1) == b"", "and then it is closed"
        here.goes_on(1)
        assert here.sockets("backend") >= ADMITTED - GUARANTEED - 1
        with ExitStack() as browsers:
            for number in range(GUARANTEED - 1):
                browsers.enter_context(Raw(here.server.port).upgrade().enter(number + 10))
            with Raw(here.server.port) as raw:
                status, whole = raw.ask(head())
            assert status == 503
            assert b"Retry-After" in whole
            here.goes_on(2)
    here.is_as_before()
    here.log_is_bounded()
    assert here.metric('chatws_push_errors_total{code="overloaded"}') >= CROWD - ADMITTED


def test_idle_browsers_leave_files_for_backends_and_health(served: Callable[..., Served]) -> None:
    here = served("--auth-deadline", "0")
    with ExitStack() as crowd:
        statuses = []
        for _ in range(CROWD):
            raw = crowd.enter_context(Raw(here.server.port))
            raw.send(head())
            statuses.append(raw.receive()[9:12])
        assert set(statuses) == {b"101", b"503"}
        # one page and one backend were there before
        assert statuses.count(b"101") == ADMITTED - GUARANTEED - 1
        here.goes_on(1)
        with ExitStack() as backends:
            for number in range(GUARANTEED - 1):
                backend = backends.enter_context(Backend(here.server.push_port))
                assert backend.push("new_message", {"conversation_id": 7, "message": {"id": 100 + number}})["ok"]
            with Backend(here.server.push_port) as one_more:
                assert one_more.read_line()["code"] == "overloaded"
    here.is_as_before()
    here.log_is_bounded()
    assert here.metric('chatws_rejected_total{reason="full"}') == statuses.count(b"503")


@pytest.mark.parametrize(
    "output",
    [
        pytest.param(b"", id="silent"),
        pytest.param(b"GET /ws HTTP/1.1\r\nHost: x\r\n", id="half a head"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", id="a body that does not come"),
    ],
)
def test_idle_http_connections_are_closed_for_new_requests(served: Callable[..., Served], output: bytes) -> None:
    here = served("--handshake-timeout", "600")
    with ExitStack() as crowd:
        idle = []
        for number in range(CROWD):
            connection = crowd.enter_context(connect(here.server.port))
            connection.sendall(output)
            idle.append(connection)
            if number % 100 == 99:
                here.goes_on(number)
        with here.server.agent(3, 7), here.server.backend() as backend:
            assert backend.request({"op": "ping"})["ok"]
        assert here.metric('chatws_evicted_total{kind="http"}') >= CROWD - FILES
        if output.startswith(b"GET"):
            assert idle[0].recv(12) == b"HTTP/1.1 503"
        else:
            assert here.sockets("http") <= ADMITTED + ADMITTED // 4
    here.is_as_before()
    here.log_is_bounded()


def test_idle_connections_to_the_metrics_port_keep_out_neither_metrics_nor_browsers(
    served: Callable[..., Served],
) -> None:
    here = served()
    with ExitStack() as crowd:
        for _ in range(CROWD):
            crowd.enter_context(connect(here.metrics_port))
        here.goes_on(1)
        assert here.metric('chatws_evicted_total{kind="metrics"}') >= CROWD - FILES
        with here.server.agent(3):
            here.goes_on(2)
    here.is_as_before()
    here.log_is_bounded()


def test_backends_that_do_not_authenticate_keep_out_none_that_does(
    served: Callable[..., Served], tmp_path: Any
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    here = served("--push-secret-file", str(secret))
    with ExitStack() as crowd:
        assert here.backend.request({"op": "auth", "secret": SECRET})["ok"]
        for _ in range(CROWD):
            crowd.enter_context(connect(here.server.push_port))
        here.goes_on(1)
        with here.server.backend() as late:
            assert late.request({"op": "auth", "secret": SECRET})["ok"]
            assert late.push("new_message", {"conversation_id": 7, "message": {"id": 5}})["delivered"] == 1
        assert here.metric('chatws_evicted_total{kind="backend"}') >= CROWD - FILES
    here.log_is_bounded()


@pytest.mark.long
def test_a_crowd_at_the_supervisor_s_metrics_port_leaves_files_for_a_new_worker(
    chatws_server: Callable[..., Server],
) -> None:
    port = free_port()
    server = chatws_server("--workers", "2", "--metrics-port", str(port), start=False)
    server.options["preexec_fn"] = few_files
    server.start()
    until(lambda: len(re.findall("serves, as process", server.log)) == 2, "both workers")
    with ExitStack() as crowd:
        for _ in range(CROWD):
            crowd.enter_context(connect(port))
        (first, *_) = re.findall(r"serves, as process (\d+)", server.log)
        os.kill(int(first), signal.SIGKILL)
        until(lambda: len(re.findall("serves, as process", server.log)) == 3, "another worker")
        with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=DEADLINE) as response:
            assert response.status == 200
    assert "EMFILE" not in server.log


def test_idle_connections_to_a_tls_listener_keep_out_no_handshake(
    chatws_server: Callable[..., Server], tmp_path: Path
) -> None:
    pair = self_signed()
    pem = tmp_path / "server.pem"
    pem.write_bytes(pair.both)
    pem.chmod(0o600)
    port = free_port()
    server = chatws_server("--listen", f"ssl:{port}:privateKey={pem}:interface=127.0.0.1", start=False)
    server.options["preexec_fn"] = few_files
    server.start()
    with ExitStack() as crowd:
        for _ in range(CROWD):
            crowd.enter_context(connect(port))
        with urlopen(f"https://127.0.0.1:{port}/healthz", timeout=DEADLINE, context=pair.trusted()) as response:
            assert response.status == 200
        with server.backend() as backend:
            assert backend.request({"op": "ping"})["ok"]
    server.expect_log("closed the oldest http connection")
    assert "EMFILE" not in server.log
