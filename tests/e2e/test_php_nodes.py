"""The PHP helper with the addresses of several nodes: one that fails costs its share of the time, and no event."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.php import BOUND, FakePushPort, Php, php_server
from tests.e2e.process import free_port
from tests.e2e.wire import until
from tests.requirements import needs

pytestmark = needs("php-cli")

#: For a call that is to succeed though the first node is silent: what each of them gets is waited for.
SHARED = {"answer_timeout_ms": 3000, "budget_ms": 12_000}

Answer = Callable[[dict[str, Any]], bytes | None]


def no(code: str) -> Answer:
    return lambda line: json.dumps({"ok": False, "id": line["id"], "code": code, "message": "not now"}).encode() + b"\n"


def close(line: dict[str, Any]) -> bytes:
    raise EOFError


def list_of(*nodes: FakePushPort | str) -> str:
    return ",".join(node if isinstance(node, str) else node.address for node in nodes)


def nobody() -> str:
    """An address where nobody listens."""
    return f"127.0.0.1:{free_port()}"


def test_a_node_that_refuses_is_passed_over_and_the_one_that_worked_is_remembered() -> None:
    with FakePushPort() as node, Php(address=f"{nobody()}, {nobody()} ,{node.address}") as php:
        for _ in range(2):
            assert php.notifyAgentStatus(5, "away") is True
            assert php.log == []
        assert node.connections == 1
        assert len(node.lines) == 2


def test_a_node_that_cannot_be_reached_at_all_leaves_time_for_the_other() -> None:
    with FakePushPort(accept=False) as full, FakePushPort() as node, ExitStack() as others:
        for _ in range(8):
            one = others.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.socket.getsockname())
        with Php(address=list_of(full, node), connect_timeout_ms=500) as php:
            assert php.notifyAgentStatus(5, "away") is True
            assert 150 < php.milliseconds < BOUND
            assert php.notifyAgentStatus(5, "away") is True
        assert node.connections == 1


@pytest.mark.parametrize("settings", [SHARED, {"answer_timeout_ms": 60_000, "budget_ms": 7000}])
def test_a_node_that_is_silent_leaves_time_for_the_other(settings: dict[str, int]) -> None:
    with (
        FakePushPort(lambda line: None) as silent,
        FakePushPort() as node,
        Php(address=list_of(silent, node), **settings) as php,
    ):
        assert php.notifyAgentStatus(5, "away") is True
        assert 150 < php.milliseconds < BOUND
        until(lambda: silent.lines, "what was sent to the silent one to be read")
        assert silent.ids == node.ids, "with the same key"
        assert php.notifyAgentStatus(5, "away") is True
        assert len(silent.lines) == 1


@pytest.mark.parametrize(
    "answer",
    [no("unavailable"), no("overloaded"), close, lambda line: b"HTTP/1.1 400 Bad Request\r\n\r\n"],
    ids=["unavailable", "overloaded", "closes", "no push port"],
)
def test_a_node_of_no_use_is_left_for_the_other(answer: Answer) -> None:
    with FakePushPort(answer) as useless, FakePushPort() as node, Php(address=list_of(useless, node)) as php:
        assert php.notifyAgentStatus(5, "away") is True
        assert php.log == []
        assert useless.ids == node.ids, "with the same key"
        assert php.onlineAgents() == []
        assert (len(useless.lines), len(node.lines)) == (1, 2)


def test_what_stays_is_not_asked_elsewhere() -> None:
    for code in ("bad_secret", "no_audience"):
        with (
            FakePushPort(no(code)) as first,
            FakePushPort() as second,
            Php(address=list_of(first, second)) as php,
        ):
            assert php.notifyUser(5, "note", {}) is False
            assert len(php.log) == 1
            assert second.connections == 0


def test_a_node_killed_in_the_middle_of_a_batch_is_replaced_for_what_it_had_not_answered() -> None:
    def first_twenty(line: dict[str, Any]) -> bytes:
        if len(first.lines) > 20:
            raise EOFError
        return json.dumps({"ok": True, "id": line["id"]}).encode() + b"\n"

    calls = [{"method": "notifyUser", "arguments": [1, "note", {"n": n}, f"key {n}"]} for n in range(100)]
    with (
        FakePushPort(first_twenty) as first,
        FakePushPort() as second,
        Php(address=list_of(first, second)) as php,
    ):
        assert php.batch(calls) is True
        assert [line["id"] for line in first.lines[:20] + second.lines] == [f"key {n}" for n in range(100)]


def test_when_all_fail_one_line_says_how_each_did() -> None:
    refuses = nobody()
    with FakePushPort(lambda line: None) as silent, Php(address=f"{silent.address},{refuses}", patient=False) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert php.log == [
            f"chatws: agent_status not delivered: no answer in time ({silent.address}); Connection refused ({refuses})"
        ]
        assert php.notifyAgentStatus(5, "away") is False
        assert "not tried, after: no answer in time" in php.log[0]
    with (
        FakePushPort(no("unavailable")) as first,
        FakePushPort(no("unavailable")) as second,
        Php(address=list_of(first, second)) as php,
    ):
        assert php.notifyAgentStatus(5, "away") is False
        assert php.log == ["chatws: agent_status not delivered: unavailable: not now"]
        assert (len(first.lines), len(second.lines)) == (1, 1)


def test_one_bad_address_is_told_at_every_call() -> None:
    with FakePushPort() as node:
        for bad in ("", "8081", "http://127.0.0.1:8081"):
            for addresses in (f"{node.address},{bad}", f"{bad},{node.address}"):
                with Php(address=addresses, pause_ms=0) as php:
                    for _ in range(2):
                        assert php.ping() is False
                        said = f'"{bad}" is no address such as 127.0.0.1:8081 or unix:/path'
                        assert php.log == [f"chatws: ping not delivered: {said}"]
        assert node.connections == 0


def test_all_clients_of_a_process_go_to_the_one_that_worked() -> None:
    with FakePushPort(lambda line: None) as silent, FakePushPort() as node:
        with Php(address=list_of(silent, node), helper=True, **SHARED) as php:
            assert php.notifyAgentStatus(5, "away") is True
            assert php.fresh("ping") is True
        assert silent.connections == 1


def test_with_a_spool_the_next_request_begins_with_the_one_that_worked(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with FakePushPort(lambda line: None) as silent, FakePushPort() as node:
        environment = {
            "CHATWS_PUSH_ADDRESS": list_of(silent, node),
            "CHATWS_PUSH_ANSWER_TIMEOUT_MS": "2000",
            "CHATWS_PUSH_BUDGET_MS": "8000",
            "CHATWS_SPOOL_DIR": str(spool),
        }
        with php_server(tmp_path, **environment) as request:
            for _ in range(2):
                assert request()["results"] == [True, True, True]
        assert (silent.connections, node.connections) == (1, 2)
        assert (spool / ".address").read_text() == node.address
        (spool / ".address").write_text("another list's")
        with php_server(tmp_path, **environment) as request:
            assert request()["results"] == [True, True, True]
        assert silent.connections == 2
        assert [one.name for one in spool.iterdir() if not one.name.startswith(".")] == []
