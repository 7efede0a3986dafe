"""`twistd chatws --workers 2`: several processes that are one server to browsers, to backends and to the operator."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, WebSocketException

from tests.e2e.conftest import Server, twistd_command
from tests.e2e.process import clean_environment, free_port
from tests.e2e.test_operations import fetch, samples, value
from tests.e2e.wire import DEADLINE, Browser, until
from tests.recovering_client import RecoveringClient
from tests.redis import RedisServer, redis

__all__ = ["redis"]

Start = Callable[..., Server]

READY = "2 workers listen for browsers"


def start_workers(chatws_server: Start, *arguments: str, **environment: str) -> Server:
    server = chatws_server("--workers", "2", *arguments, **environment)
    server.expect_log(READY, 60)
    return server


def process_of(server: Server, worker: int) -> int:
    """The worker's process, by the last line that names it."""
    result = re.findall(rf"worker {worker} serves, as process (\d+)", server.log)
    return int(result[-1])


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def agents_on_both(server: Server, first: int, *conversations: Any) -> dict[str, Browser]:
    """By worker ("w0", "w1"), an agent whose browser is there. Users from `first` on; who is not needed leaves."""
    result: dict[str, Browser] = {}
    for user_id in range(first, first + 60):
        browser = server.browser()
        worker = browser.auth(user_id)["connection_id"].partition("-")[0]
        if worker in result:
            browser.close()
            continue
        result[worker] = browser
        for conversation in conversations:
            browser.subscribe(conversation)
        if len(result) == 2:
            return result
    raise AssertionError(f"sixty browsers went to {list(result)} alone")


class Page(threading.Thread):
    """A page that stays connected, comes back when it is cut off, and notes what its handlers got."""

    def __init__(self, server: Server, user_id: int, conversation_id: int) -> None:
        super().__init__()
        self.client = RecoveringClient(user_id, (conversation_id,))
        self.workers: list[str] = []
        self.codes: list[int | None] = []
        self.done = threading.Event()
        self._server = server
        self.start()

    @property
    def numbers(self) -> list[int]:
        return [data["n"] for event, data, _ in self.client.handled if event == "new_message"]

    def run(self) -> None:
        while not self.done.is_set():
            with suppress(OSError, WebSocketException), self._server.browser() as browser:
                self._stay(browser)

    def _stay(self, browser: Browser) -> None:
        for message in self.client.open():
            browser.send(message)
        try:
            while not self.done.is_set():
                with suppress(TimeoutError):
                    message = browser.receive(0.2)
                    if message.get("event") == "authenticated":
                        self.workers.append(message["data"]["connection_id"].partition("-")[0])
                    self.client.receive(message)
        except ConnectionClosed as closed:
            self.codes.append(closed.rcvd.code if closed.rcvd else None)
        finally:
            self.client.lost()


def test_workers_are_one_server(chatws_server: Start) -> None:
    metrics = free_port()
    server = start_workers(chatws_server, "--metrics-port", str(metrics), "--presence-grace", "0")
    lone, two = agents_on_both(server, 1, 456).values()
    left, right = agents_on_both(server, 101, 456).values()

    # pushes over separate connections reach both workers' browsers once and in order, through any worker
    def taken_by() -> dict[str, float]:
        name = "chatws_push_published_total"
        return {worker: samples(metrics).get((name, frozenset({("worker", worker)})), 0.0) for worker in "01"}

    sent = 0
    while sent < 10 or min(taken_by().values()) < 2:
        assert sent < 100
        with server.backend() as backend:
            backend.push("new_message", {"conversation_id": 456, "n": sent})
        sent += 1
    for browser in (lone, two, left, right):
        got = [browser.expect("new_message") for _ in range(sent)]
        assert [message["data"]["n"] for message in got] == list(range(sent))
        assert len({message["id"] for message in got}) == sent

    # an idempotency key, typing, presence
    with server.backend() as first, server.backend() as second:
        keyed = {"event": "new_message", "data": {"conversation_id": 456, "n": -1}, "id": "k"}
        known = first.request(keyed)
        assert second.request(keyed) == {**known, "delivered": 0, "duplicate": True}
    for browser in (lone, two, left, right):
        browser.expect("new_message", n=-1)
    lone.send({"type": "typing", "conversation_id": 456})
    assert two.expect("typing")["data"]["is_typing"] is True

    def online(browser: Browser) -> list[int]:
        browser.send({"type": "presence"})
        result: list[int] = browser.expect("presence")["data"]["online"]
        return result

    until(lambda: len(online(two)) == len(online(lone)) == 4, "all four agents to be online, on both workers")
    everybody = online(lone)
    assert online(two) == everybody

    # what a backend does to a user it does on the worker where that user is
    with server.backend() as backend:
        for user_id in everybody:
            backend.request({"op": "unsubscribe", "user_id": user_id, "conversation_id": 456})
        for browser in (lone, two, left, right):
            browser.expect("unsubscribed", conversation_id=456)
        for user_id in everybody[2:]:
            backend.request({"op": "disconnect", "user_id": user_id, "reason": "logged out"})
    assert (left.expect_close(), right.expect_close()) == ((4000, "logged out"), (4000, "logged out"))
    until(lambda: online(lone) == online(two) == everybody[:2], "two agents to be offline")

    # the operator sees one server
    assert fetch(metrics, "/healthz") == (200, "ok\n")
    until(lambda: fetch(metrics, "/readyz") == (200, "ready\n"), "both workers to be ready")

    def by_worker(name: str) -> list[float | None]:
        # one that takes too long to answer is left out
        result = samples(metrics)
        return [result.get((name, frozenset({("worker", worker)}))) for worker in "01"]

    until(lambda: by_worker("chatws_connections") == [1, 1], "disconnected browsers to be gone")
    until(lambda: by_worker("chatws_worker_up") == [1, 1], "both workers to answer")
    assert value(metrics, "process_open_fds", worker="supervisor") > 0
    assert {dict(labels).get("worker") for _, labels in samples(metrics)} == {"0", "1", "supervisor"}


def test_a_killed_worker_is_replaced_and_no_event_is_lost(chatws_server: Start, tmp_path: Path) -> None:
    metrics = free_port()
    settings = tmp_path / "chatws.toml"
    settings.write_text("max_subscriptions = 1\n")
    server = start_workers(
        chatws_server, "--metrics-port", str(metrics), "--config", str(settings), "--log-format", "json"
    )
    pages = [Page(server, number, 7) for number in range(1, 11)]
    try:
        until(lambda: all(page.workers for page in pages), "all pages to be in")
        sent = 0

        def push(count: int) -> None:
            # each over a connection of its own: when the worker that has it dies, it is tried again with its key
            nonlocal sent
            for _ in range(count):
                line = {"event": "new_message", "data": {"conversation_id": 7, "n": sent}, "id": f"n{sent}"}
                until(lambda line=line: _try(server, line), f"event {line['id']} to be taken")
                sent += 1

        push(20)
        for times, worker in enumerate((0, 1), 1):
            victim = process_of(server, worker)
            os.kill(victim, signal.SIGKILL)
            push(50)
            until(lambda victim=victim, worker=worker: process_of(server, worker) != victim, "its successor")
            until(lambda: fetch(metrics, "/readyz")[0] == 200, "both workers to be ready")
            assert sum(value(metrics, "chatws_worker_restarts_total", worker=item) for item in "01") == times
            push(20)
        for page in pages:
            until(lambda page=page: len(page.numbers) >= sent, "all events to be there")
            assert page.numbers == list(range(sent))
            assert page.client.resyncs == []
        assert {len(page.workers) for page in pages} <= {2, 3}, "whose worker was not killed stayed"

        # SIGHUP goes to all of them
        settings.write_text("max_subscriptions = 3\n")
        os.kill(server.pid, signal.SIGHUP)
        server.expect_log("max_subscriptions: 1 → 3")
        for browser in agents_on_both(server, 101).values():
            for conversation in (1, 2, 3):
                browser.subscribe(conversation)
            browser.close()

        workers = [process_of(server, worker) for worker in (0, 1)]
        for page in pages:
            page.done.set()
            page.join(DEADLINE)
        last = agents_on_both(server, 201)
        assert server.stop() == 0
        assert {browser.expect_close()[0] for browser in last.values()} == {4012}
        assert not any(is_alive(pid) for pid in workers)
    finally:
        for page in pages:
            page.done.set()
            page.join(DEADLINE)
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert len([line for line in lines if "was ended by SIGKILL; another one starts now" in line["message"]]) == 2
    listening = [line for line in lines if "listening for browsers" in line["message"]]
    assert [line["worker"] for line in listening[:2]] in ([0, 1], [1, 0])
    assert listening[0]["logger"] == "chatws.runtime.service"


@pytest.mark.long
@pytest.mark.long
def test_limit_of_a_user_holds_over_all_workers_and_forgets_a_killed_one(chatws_server: Start) -> None:
    limit = 12
    server = start_workers(chatws_server, "--max-connections-per-user", str(limit))
    open_now: list[tuple[Browser, str]] = []

    def fill() -> None:
        """Open connections of user 5 until one is too many."""
        while (entered := enter(server)) is not None:
            open_now.append(entered)
            assert len(open_now) <= limit

    fill()
    assert len(open_now) == limit
    killed = open_now[0][1]
    number = int(killed.removeprefix("w"))
    pid = process_of(server, number)
    os.kill(pid, signal.SIGKILL)
    until(lambda: process_of(server, number) != pid, "another worker", 60)
    open_now[:] = [(browser, worker) for browser, worker in open_now if worker != killed]
    assert len(open_now) < limit
    fill()
    assert len(open_now) == limit
    open_now.pop()[0].close()
    until(lambda: enter(server) is not None, "room for another connection")


def enter(server: Server) -> tuple[Browser, str] | None:
    """Open a connection of user 5, and name its worker. None if the server closes it with 4909."""
    browser = server.browser()
    browser.send({"type": "auth", "user_id": 5})
    with suppress(ConnectionClosed):
        return browser, browser.receive()["data"]["connection_id"].partition("-")[0]
    assert browser.expect_close()[0] == 4909
    return None


@pytest.mark.long
def test_a_frozen_worker_is_replaced_and_new_pages_are_served(chatws_server: Start) -> None:
    port = free_port()
    server = start_workers(chatws_server, "--worker-timeout", "3", "--metrics-port", str(port))
    agents = agents_on_both(server, 1, 7)
    victim = process_of(server, 0)
    os.kill(victim, signal.SIGSTOP)
    server.expect_log(f"worker 0, process {victim}, did not respond for 3 s: the supervisor kills it")
    server.expect_log("worker 0 was ended by SIGKILL; another one starts now")
    until(lambda: process_of(server, 0) != victim, "the successor to serve")
    assert not is_alive(victim)
    assert [value(port, "chatws_worker_hung_total", worker=worker) for worker in "01"] == [1, 0]
    agents["w1"].settle()  # the other worker's page is still connected
    for user_id in range(100, 120):  # pages on either worker
        server.browser().auth(user_id)


def _try(server: Server, line: dict[str, Any]) -> bool:
    try:
        with server.backend() as backend:
            return bool(backend.request(line)["ok"])
    except (OSError, AssertionError):
        return False


@pytest.mark.long
def test_when_the_supervisor_is_killed_the_workers_end_and_the_log_on_disk_has_everything(
    chatws_server: Start,
) -> None:
    server = start_workers(chatws_server, "--broker", "sqlite:///log.db", "--drain-timeout", "1")
    agents = agents_on_both(server, 1, 7)
    workers = [process_of(server, worker) for worker in (0, 1)]
    positions = {}
    with server.backend() as backend:
        for number in range(5):
            backend.push("new_message", {"conversation_id": 7, "n": number})
        for name, browser in agents.items():
            positions[name] = browser.expect("new_message", n=1)["id"]
        acknowledged = 5
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        with suppress(OSError, AssertionError):
            while backend.request({"event": "new_message", "data": {"conversation_id": 7, "n": acknowledged}})["ok"]:
                acknowledged += 1
    assert {browser.expect_close()[0] for browser in agents.values()} == {4012}
    server.start()  # at once: the ports are free, and so is the log
    until(lambda: not any(is_alive(pid) for pid in workers), "the old workers to end")
    until(lambda: server.log.count(READY) == 2, "the new workers")
    for user_id, position in enumerate(positions.values(), 1):
        with server.browser() as back:
            back.auth(user_id, last_event_id=position)
            assert back.subscribe(7, last_event_id=position)["recovered"] is True
            result = [item["data"]["n"] for item in back.settle() if item.get("event") == "new_message"]
            assert result[: acknowledged - 2] == list(range(2, acknowledged))


def test_a_log_that_processes_share_by_themselves_is_opened_by_each_worker(
    chatws_server: Start, redis: RedisServer
) -> None:
    server = start_workers(chatws_server, "--broker", redis.url_for("workers"))
    agents = agents_on_both(server, 1, 7)
    with server.backend() as backend:
        for number in range(20):
            backend.push("new_message", {"conversation_id": 7, "n": number})
    for browser in agents.values():
        assert [browser.expect("new_message")["data"]["n"] for _ in range(20)] == list(range(20))
    os.kill(process_of(server, 0), signal.SIGKILL)
    server.expect_log("worker 0 was ended by SIGKILL; another one starts now")


@pytest.mark.long
def test_as_a_daemon_it_ends_with_its_pidfile_and_its_workers(tmp_path: Path) -> None:
    port, push_port = free_port(), free_port()
    ports = ["--port", str(port), "--push-listen", "unix:push.sock"]
    done = subprocess.run(
        [*twistd_command(), "--pidfile", "pid", "--logfile", "log", "chatws", "--workers", "2", *ports],
        cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    log, pidfile = tmp_path / "log", tmp_path / "pid"
    try:
        until(lambda: READY in log.read_text(), "the workers")
        second = subprocess.run(
            [*twistd_command(), "-n", "--pidfile=", "chatws", "--workers", "2", "--port", str(port),
             "--push-port", str(push_port)],
            cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert second.returncode == 1
        (line,) = [line for line in second.stderr.splitlines() if line.startswith("twistd chatws: ")]
        assert f"port {port}" in line
        assert (tmp_path / "push.sock").is_socket()
    finally:
        os.kill(int(pidfile.read_text()), signal.SIGTERM)
        until(lambda: not pidfile.exists(), "the daemon to end")
    workers = [int(pid) for pid in re.findall(r"serves, as process (\d+)", log.read_text())]
    assert len(workers) == 2
    until(lambda: not any(is_alive(pid) for pid in workers), "the workers to be gone")
    assert not (tmp_path / "push.sock").exists()
    assert "Traceback" not in log.read_text()


def test_a_worker_s_start_error_is_one_line(tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = subprocess.run(
            [*twistd_command(), "-n", "--pidfile=", "chatws", "--workers", "2", *words],
            cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 78
        (line,) = done.stderr.splitlines()
        return line

    ports = ("--port", str(free_port()), "--push-port", str(free_port()))
    (tmp_path / "log.db").write_bytes(b"SQLite format 3\0 and nothing more")
    assert "log.db is damaged" in run(*ports, "--broker", "sqlite:///log.db")
    assert "--demo runs in one process" in run(*ports, "--demo")
