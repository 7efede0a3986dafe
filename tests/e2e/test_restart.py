"""A restart that nobody notices (SIGTERM), and what is there after one that everybody would (SIGKILL)."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.e2e.conftest import Server
from tests.e2e.wire import DEADLINE, Browser, until

Start = Callable[..., Server]
SQLITE = ("--broker", "sqlite:///log.db")


def test_the_lines_sent_before_the_end_are_answered_and_kept(chatws_server: Start) -> None:
    server = chatws_server(*SQLITE, "--drain-timeout", "0")
    count = 3000
    with server.backend() as backend:
        assert backend.request({"op": "ping"})["ok"]
        line = {"event": "new_message", "data": {"conversation_id": 1}, "ack": True}
        backend.send(*[{**line, "data": {"conversation_id": 1, "n": number}} for number in range(count)])
        assert server.stop() == 0
        answers = [json.loads(answer) for answer in backend.read_to_end().splitlines()]
    assert [answer["ok"] for answer in answers] == [True] * count
    epoch = answers[-1]["event_id"].partition(":")[0]
    server.start()
    with server.browser() as browser:
        browser.auth(1)
        browser.send({"type": "subscribe", "conversation_id": 1, "last_event_id": f"{epoch}:0"})
        assert browser.expect("subscribed")["data"]["recovered"] is True
        assert [browser.receive()["data"]["n"] for _ in range(count)] == list(range(count))


def test_a_drain_closes_browsers_one_by_one_with_4012(chatws_server: Start) -> None:
    server = chatws_server("--drain-timeout", "6")
    browsers = [server.agent(number) for number in range(10)]
    closed: list[tuple[float, int]] = []

    def wait(browser: Browser) -> None:
        code, _ = browser.expect_close()
        closed.append((time.monotonic(), code))

    waiting = [threading.Thread(target=wait, args=(browser,)) for browser in browsers]
    for item in waiting:
        item.start()
    assert server.stop() == 0
    for item in waiting:
        item.join()
    assert [code for _, code in closed] == [4012] * 10
    # not at once: the first and the last are far apart, and no two thirds go together, though we may have been stopped
    # for some of the time ourselves
    moments = sorted(moment for moment, _ in closed)
    assert moments[-1] - moments[0] > 1.0
    assert moments[6] - moments[0] > 0.3


def test_a_draining_server_rejects_new_connections(chatws_server: Start) -> None:
    server = chatws_server("--drain-timeout", "5")
    browsers = [server.agent(number) for number in range(2)]
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    until(lambda: _is_refused(server.port) and _is_refused(server.push_port), "both ports to be closed")
    assert server.process.poll() is None
    assert {browser.expect_close()[0] for browser in browsers} == {4012}


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_a_history_on_disk_recovers_missed_events_once(chatws_server: Start, signal_number: int) -> None:
    server = chatws_server(*SQLITE, "--drain-timeout", "0")
    browser = server.agent(1, 456)
    with server.backend() as backend:
        seen = backend.push("new_message", {"conversation_id": 456, "n": 1})["event_id"]
        browser.expect("new_message", n=1)
        browser.drop()
        backend.push("new_message", {"conversation_id": 456, "n": 2})
    server.restart(signal_number)
    with server.backend() as backend:
        backend.push("new_message", {"conversation_id": 456, "n": 3})
    with server.browser() as back:
        assert back.auth(1, last_event_id=seen)["recovered"] is True
        answer = back.subscribe(456, last_event_id=seen)
        assert (answer["recovered"], answer["replayed"]) == (True, 2)
        assert [item["data"]["n"] for item in back.settle()] == [2, 3]


def test_a_history_in_memory_makes_the_page_resync(chatws_server: Start) -> None:
    server = chatws_server("--drain-timeout", "0")
    with server.browser() as browser:
        position = browser.auth(1)["last_event_id"]
    server.restart()
    with server.browser() as back:
        answer = back.auth(1, last_event_id=position)
        assert answer["recovered"] is False
        assert answer["last_event_id"].partition(":")[0] != position.partition(":")[0]
        assert back.subscribe(456, last_event_id=position)["recovered"] is False


def test_an_idempotency_key_holds_across_connections_and_restarts(chatws_server: Start) -> None:
    server = chatws_server(*SQLITE, "--drain-timeout", "0")
    line = {"event": "new_message", "data": {"conversation_id": 456}, "id": "order-77-paid"}
    with server.backend() as backend:
        first = backend.request(line)
    with server.backend() as backend:
        again = backend.request(line)
    server.restart(signal.SIGKILL)
    with server.agent(1, 456) as browser, server.backend() as backend:
        after = backend.request(line)
        assert browser.settle() == []
    assert "duplicate" not in first
    for answer in (again, after):
        assert (answer["ok"], answer["duplicate"], answer["event_id"]) == (True, True, first["event_id"])


def test_agents_back_within_the_grace_are_not_announced(chatws_server: Start) -> None:
    server = chatws_server(*SQLITE, "--drain-timeout", "0", "--presence-grace", "60")
    for number in (1, 2):
        server.agent(number)
    with server.backend() as backend:
        assert backend.request({"op": "presence"})["online"] == [1, 2]
    server.restart()
    watcher = server.agent(1)
    server.agent(2)
    assert [item for item in watcher.settle() if item["event"] == "agent_status"] == []
    with server.backend() as backend:
        assert backend.request({"op": "presence"})["online"] == [1, 2]
        # a third is news: what is announced would have been seen
        server.agent(3)
    watcher.expect("agent_status", agent_id=3, status="online")


def test_a_durable_log_is_written_through_and_recovered_from(chatws_server: Start) -> None:
    server = chatws_server(*SQLITE, "--sqlite-synchronous", "full", "--drain-timeout", "0")
    with server.agent(1, 456) as browser:
        with server.backend() as backend:
            seen = backend.push("new_message", {"conversation_id": 456, "n": 1})
            assert seen["delivered"] == 1
        browser.expect("new_message", n=1)
    server.restart(signal.SIGKILL)
    with server.browser() as back:
        back.auth(1)
        epoch = seen["event_id"].partition(":")[0]
        back.subscribe(456, last_event_id=f"{epoch}:0")
        assert back.expect("new_message")["data"]["n"] == 1
