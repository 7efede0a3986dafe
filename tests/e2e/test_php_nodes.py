"""Test the PHP helper with several nodes: a failing node costs its share of the time and loses no event."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.php import BOUND, FakePushApi, Php, php_server
from tests.e2e.process import free_port
from tests.e2e.wire import until
from tests.requirements import needs

pytestmark = needs("php-cli")

#: Timeouts for a call that must succeed although the first node is silent.
SHARED = {"answer_timeout_ms": 3000, "budget_ms": 12_000}

Responder = Callable[[dict[str, Any]], bytes | None]


def reject(code: str) -> Responder:
    return lambda line: json.dumps({"ok": False, "id": line["id"], "code": code, "message": "not now"}).encode() + b"\n"


def close(line: dict[str, Any]) -> bytes:
    raise EOFError


def addresses_of(*nodes: FakePushApi | str) -> str:
    return ",".join(node if isinstance(node, str) else node.address for node in nodes)


def unused_address() -> str:
    """Return an address without a listener."""
    return f"127.0.0.1:{free_port()}"


def test_node_that_refuses_connections_is_skipped_and_the_working_node_remembered() -> None:
    with FakePushApi() as node, Php(address=f"{unused_address()}, {unused_address()} ,{node.address}") as php:
        for _ in range(2):
            assert php.notifyAgentStatus(5, "away") is True
            assert php.log == []
        assert node.connections == 1
        assert len(node.lines) == 2


def test_unreachable_node_leaves_time_for_the_next() -> None:
    with FakePushApi(accept=False) as full, FakePushApi() as node, ExitStack() as clients:
        for _ in range(8):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.socket.getsockname())
        with Php(address=addresses_of(full, node), connect_timeout_ms=500) as php:
            assert php.notifyAgentStatus(5, "away") is True
            assert 150 < php.milliseconds < BOUND
            assert php.notifyAgentStatus(5, "away") is True
        assert node.connections == 1


@pytest.mark.parametrize("settings", [SHARED, {"answer_timeout_ms": 60_000, "budget_ms": 7000}])
def test_silent_node_leaves_time_for_the_next(settings: dict[str, int]) -> None:
    with (
        FakePushApi(lambda line: None) as silent,
        FakePushApi() as node,
        Php(address=addresses_of(silent, node), **settings) as php,
    ):
        assert php.notifyAgentStatus(5, "away") is True
        assert 150 < php.milliseconds < BOUND
        until(lambda: silent.lines, "the silent node to read the line")
        assert silent.ids == node.ids, "with the same key"
        assert php.notifyAgentStatus(5, "away") is True
        assert len(silent.lines) == 1


@pytest.mark.parametrize(
    "respond",
    [reject("unavailable"), reject("overloaded"), close, lambda line: b"HTTP/1.1 400 Bad Request\r\n\r\n"],
    ids=["unavailable", "overloaded", "closes", "other protocol"],
)
def test_node_that_cannot_accept_events_is_replaced_by_the_next(respond: Responder) -> None:
    with FakePushApi(respond) as failing, FakePushApi() as node, Php(address=addresses_of(failing, node)) as php:
        assert php.notifyAgentStatus(5, "away") is True
        assert php.log == []
        assert failing.ids == node.ids, "with the same key"
        assert php.onlineAgents() == []
        assert (len(failing.lines), len(node.lines)) == (1, 2)


def test_a_permanently_rejected_line_is_not_sent_to_the_next_node() -> None:
    for code in ("bad_secret", "no_audience"):
        with (
            FakePushApi(reject(code)) as first,
            FakePushApi() as second,
            Php(address=addresses_of(first, second)) as php,
        ):
            assert php.notifyUser(5, "note", {}) is False
            assert len(php.log) == 1
            assert second.connections == 0


def test_node_closed_within_a_batch_leaves_the_unacknowledged_lines_to_the_next() -> None:
    def first_twenty(line: dict[str, Any]) -> bytes:
        if len(first.lines) > 20:
            raise EOFError
        return json.dumps({"ok": True, "id": line["id"]}).encode() + b"\n"

    calls = [{"method": "notifyUser", "arguments": [1, "note", {"n": n}, f"key {n}"]} for n in range(100)]
    with (
        FakePushApi(first_twenty) as first,
        FakePushApi() as second,
        Php(address=addresses_of(first, second)) as php,
    ):
        assert php.batch(calls) is True
        assert [line["id"] for line in first.lines[:20] + second.lines] == [f"key {n}" for n in range(100)]


def test_failure_of_all_nodes_is_logged_in_one_line() -> None:
    refuses = unused_address()
    with FakePushApi(lambda line: None) as silent, Php(address=f"{silent.address},{refuses}", patient=False) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert php.log == [
            f"chatws: agent_status not delivered: no answer in time ({silent.address}); Connection refused ({refuses})"
        ]
        assert php.notifyAgentStatus(5, "away") is False
        assert "not tried, after: no answer in time" in php.log[0]
    with (
        FakePushApi(reject("unavailable")) as first,
        FakePushApi(reject("unavailable")) as second,
        Php(address=addresses_of(first, second)) as php,
    ):
        assert php.notifyAgentStatus(5, "away") is False
        assert php.log == ["chatws: agent_status not delivered: unavailable: not now"]
        assert (len(first.lines), len(second.lines)) == (1, 1)


def test_invalid_address_in_a_list_is_logged_at_each_call() -> None:
    with FakePushApi() as node:
        for bad in ("", "8081", "http://127.0.0.1:8081"):
            for addresses in (f"{node.address},{bad}", f"{bad},{node.address}"):
                with Php(address=addresses, pause_ms=0) as php:
                    for _ in range(2):
                        assert php.ping() is False
                        problem = f'invalid address "{bad}", expected HOST:PORT, tls://HOST:PORT or unix:/PATH'
                        assert php.log == [f"chatws: ping not delivered: {problem}"]
        assert node.connections == 0


def test_clients_of_a_process_share_the_working_node() -> None:
    with FakePushApi(lambda line: None) as silent, FakePushApi() as node:
        with Php(address=addresses_of(silent, node), helper=True, **SHARED) as php:
            assert php.notifyAgentStatus(5, "away") is True
            assert php.fresh("ping") is True
        assert silent.connections == 1


def test_request_with_a_spool_starts_with_the_node_that_worked(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with FakePushApi(lambda line: None) as silent, FakePushApi() as node:
        environment = {
            "CHATWS_PUSH_ADDRESS": addresses_of(silent, node),
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
        assert [path.name for path in spool.iterdir() if not path.name.startswith(".")] == []
