"""Test failures of the PHP helper: it returns in time, logs the reason, and never throws.

The PHP side (tests/php/worker.php) turns every warning into an exception, and an exception fails the test.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server
from tests.e2e.php import BOUND, SCRIPTS, FakePushApi, Php, php_server, run_php
from tests.e2e.process import free_port
from tests.e2e.wire import until
from tests.requirements import needs

pytestmark = needs("php-cli")


def yes(line: dict[str, Any]) -> bytes:
    return json.dumps({"ok": True, "id": line.get("id")}).encode() + b"\n"


# --- No server


def test_call_without_a_server_returns_false_at_once() -> None:
    port = free_port()
    with Php(address=f"127.0.0.1:{port}") as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert php.log == [f"chatws: agent_status not delivered: Connection refused (127.0.0.1:{port})"]
        assert php.milliseconds < BOUND


def test_call_soon_after_a_failure_is_not_attempted() -> None:
    with FakePushApi(lambda line: None) as port, Php(address=port.address, pause_ms=60_000, patient=False) as php:
        assert php.ping() is False
        until(lambda: port.lines, "the port to read the line")
        assert php.notifyAgentStatus(5, "away") is False
        assert "not tried, after: no answer in time" in php.log[0]
        assert php.onlineAgents() == []
        assert "not tried" in php.lastError()
        assert (port.connections, len(port.lines)) == (1, 1)


def test_call_with_a_full_accept_queue_ends_at_the_connect_timeout() -> None:
    with FakePushApi(accept=False) as port, ExitStack() as clients:
        address = port.socket.getsockname()
        for _ in range(8):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        with Php(address=port.address, patient=False) as php:
            assert php.notifyAgentStatus(5, "away") is False
            assert "timed out" in php.log[0]
            assert 150 < php.milliseconds < BOUND


@pytest.mark.parametrize(
    "address", ["", "8081", "localhost", "127.0.0.1:", "tcp:8081", "http://127.0.0.1:8081", "unix:", "127.0.0.1:99999"]
)
def test_call_with_an_invalid_address_is_logged(address: str) -> None:
    with Php(address=address or "no address", connect_timeout_ms=100) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert "agent_status not delivered" in php.log[0]
        assert php.milliseconds < BOUND


def test_call_with_a_missing_unix_socket_is_logged(tmp_path: Path) -> None:
    with Php(address=f"unix:{tmp_path}/push.sock") as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert "No such file or directory" in php.log[0]


# --- Slow servers


def test_call_to_a_silent_server_ends_at_the_answer_timeout() -> None:
    with FakePushApi(lambda line: None) as port, Php(address=port.address, patient=False) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert php.log == ["chatws: agent_status not delivered: no answer in time"]
        assert 400 < php.milliseconds < BOUND
        until(lambda: port.lines, "the port to read the line")
        assert len(port.lines) == 1, "a line is not repeated after a timeout"


def test_large_message_to_a_server_that_does_not_read_ends_in_time() -> None:
    settings = {"max_line_size": 100_000_000, "patient": False}
    with FakePushApi(read=False) as port, Php(address=port.address, **settings) as php:
        assert php.notifyNewMessage(456, {"content": "x" * 20_000_000}) is False
        assert "no answer in time" in php.log[0]
        assert php.milliseconds < BOUND


def test_response_bytes_without_a_line_end_count_as_no_progress() -> None:
    stop = []

    def trickle(line: dict[str, Any]) -> bytes | None:
        while not stop and not select.select([], [], [], 0.05)[0]:
            for connection in port.open_connections():
                connection.sendall(b" ")
        return None

    with FakePushApi(trickle) as port, Php(address=port.address, patient=False) as php:
        try:
            assert php.notifyAgentStatus(5, "away") is False
            assert php.milliseconds < BOUND
        finally:
            stop.append(True)


def test_late_response_is_not_assigned_to_another_line() -> None:
    first = []

    def respond(line: dict[str, Any]) -> bytes | None:
        if not first:
            first.append(line)
            return None
        if len(first) == 1 and line.get("event") == "second":
            first.append(line)
            return b'{"ok":true,"id":"of another line"}\n'
        return yes(line)

    with FakePushApi(respond) as port, Php(address=port.address, pause_ms=0, answer_timeout_ms=2000) as php:
        assert php.notifyUser(1, "first", {}) is False
        assert php.notifyUser(1, "second", {}) is False
        assert "the response does not belong to the line" in php.log[0]
        assert php.notifyUser(1, "third", {}) is True
        assert port.connections == 3


def test_budget_shorter_than_the_timeouts_limits_the_call() -> None:
    settings = {"answer_timeout_ms": 60_000, "budget_ms": 100}
    with FakePushApi(lambda line: None) as port, Php(address=port.address, **settings) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert php.milliseconds < BOUND


def test_calls_of_a_request_share_one_connection_and_the_next_request_opens_another(tmp_path: Path) -> None:
    with FakePushApi() as port, php_server(tmp_path, CHATWS_PUSH_ADDRESS=port.address) as request:
        assert request()["results"] == [True, True, True]
        assert port.connections == 1
        assert request()["results"] == [True, True, True]
        assert port.connections == 2


def test_calls_of_a_request_share_one_budget(tmp_path: Path) -> None:
    with (
        FakePushApi(lambda line: None) as port,
        php_server(tmp_path, patient=False, CHATWS_PUSH_ADDRESS=port.address, CHATWS_PUSH_PAUSE_MS="0") as request,
    ):
        for _ in range(2):
            outcome = request()
            assert outcome["results"] == [False, False, False]
            assert 500 < outcome["ms"] < BOUND, "700 ms for all three, though each could wait 500"


# --- Unexpected responses


@pytest.mark.parametrize(
    "response",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\n", b"[]\n", b'{"ok":"yes"}\n', b'{"ok":1}\n', b"\xff\xfe\n", b"null\n"],
)
def test_server_of_another_protocol_is_detected(response: bytes) -> None:
    with FakePushApi(lambda line: response) as port, Php(address=port.address) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert "not the push API of chatws" in php.log[0]


def test_response_without_an_end_is_aborted() -> None:
    with FakePushApi(lambda line: b"x" * 20_000_000) as port, Php(address=port.address, answer_timeout_ms=9000) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert php.milliseconds < BOUND


def test_line_rejected_as_unavailable_is_retried_once() -> None:
    seen: list[Any] = []

    def respond(line: dict[str, Any]) -> bytes:
        seen.append(line["id"])
        if len(seen) == 1:
            return json.dumps({"ok": False, "id": line["id"], "code": "unavailable", "message": "?"}).encode() + b"\n"
        return yes(line)

    with FakePushApi(respond) as port, Php(address=port.address) as php:
        assert php.notifyAgentStatus(5, "away") is True
        assert len(seen) == 2
        assert seen[0] == seen[1], "with the same key"
        assert port.connections == 1


def test_line_rejected_as_overloaded_twice_is_logged_with_the_message() -> None:
    def respond(line: dict[str, Any]) -> bytes:
        no = {"ok": False, "id": line["id"], "code": "overloaded", "message": "ask\nlater\x1b[31m"}
        return json.dumps(no).encode() + b"\n"

    with FakePushApi(respond) as port, Php(address=port.address) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert php.log == ["chatws: agent_status not delivered: overloaded: ask later [31m"]
        assert len(port.lines) == 2


def test_connection_closed_without_a_response_is_replaced_once() -> None:
    def close_on_first(line: dict[str, Any]) -> bytes:
        if port.connections == 1:
            raise EOFError
        return yes(line)

    with FakePushApi(close_on_first) as port, Php(address=port.address) as php:
        assert php.notifyAgentStatus(5, "away") is True
        assert len(set(port.ids)) == 1
        assert port.connections == 2

    def close(line: dict[str, Any]) -> bytes:
        raise EOFError

    with FakePushApi(close) as port, Php(address=port.address) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert php.log == ["chatws: agent_status not delivered: the server closed the connection"]
        assert port.connections == 2


def test_logger_that_throws_does_not_fail_the_call() -> None:
    with Php(address=f"127.0.0.1:{free_port()}", logger="broken") as php:
        assert php.notifyAgentStatus(5, "away") is False


def test_failure_is_logged_to_psr_3_or_error_log(tmp_path: Path) -> None:
    code = f"""
        require '{SCRIPTS.parents[1]}/php/autoload.php';
        $logger = new class {{
            public function warning(string $message, array $context): void {{ echo "$message\n", key($context), "\n"; }}
        }};
        $settings = ['address' => '127.0.0.1:{free_port()}', 'pause_ms' => 0];
        (new Chatws\\Client(Chatws\\Config::fromArray(['logger' => $logger] + $settings)))->notifyUser(5, 'note', []);
        (new Chatws\\Client(Chatws\\Config::fromArray($settings)))->notifyUser(5, 'note', []);
    """
    log = tmp_path / "php.log"
    out = run_php("-d", f"error_log={log}", "-r", code).splitlines()
    assert out[0].startswith("chatws: note not delivered: Connection refused")
    assert out[1] == "ids"
    assert "chatws: note not delivered: Connection refused" in log.read_text()


def test_invalid_settings_are_logged_and_replaced_by_the_defaults() -> None:
    environment = {"CHATWS_PUSH_BUDGET_MS": "soon", "CHATWS_PUSH_SECRET_FILE": "/nowhere/secret"}
    with FakePushApi() as port, Php(environment=environment, address=port.address, answer_timeout_ms=0) as php:
        assert php.ping() is True
        assert php.log == [
            "chatws: secret_file: cannot read /nowhere/secret, or it is empty",
            "chatws: answer_timeout_ms must be an integer of at least 1; using the default, 500",
            "chatws: budget_ms must be an integer of at least 1; using the default, 700",
        ]


# --- The push secret


def test_push_secret_of_the_server_is_required(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("open sesame, Ä\n")
    secret.chmod(0o640)
    server = chatws_server("--push-secret-file", str(secret))
    address = f"127.0.0.1:{server.push_port}"
    with server.agent(1) as browser:
        with Php(environment={"CHATWS_PUSH_ADDRESS": address, "CHATWS_PUSH_SECRET": "open sesame, Ä"}) as php:
            assert php.notifyUser(1, "note", {"by": "variable"}) is True
            assert php.notifyUser(1, "note", {"by": "variable, again"}) is True
        with Php(environment={"CHATWS_PUSH_ADDRESS": address, "CHATWS_PUSH_SECRET_FILE": str(secret)}) as php:
            big = "x" * 900_000  # in one write with the secret
            assert php.notifyUser(1, "note", {"by": "file", "big": big}) is True
        for settings in ({"secret": "wrong"}, {}):
            with Php(address=address, **settings) as php:
                assert php.notifyUser(1, "note", {"by": "nobody"}) is False
                assert php.log == ["chatws: note not delivered: the push secret is wrong or missing"]
                assert php.onlineAgents() == []
                assert php.token(1) is False
        assert [event["data"]["by"] for event in browser.settle()] == ["variable", "variable, again", "file"]


def test_push_secret_for_a_server_without_one_is_accepted(server: Server) -> None:
    with Php(address=f"127.0.0.1:{server.push_port}", secret="whatever") as php, server.agent(1) as browser:
        assert php.notifyUser(1, "note", {}) is True
        browser.expect("note")


# --- Long-lived workers


def test_worker_after_a_restart_of_the_server_reconnects(chatws_server: Callable[..., Server]) -> None:
    server = chatws_server()
    with Php(address=f"127.0.0.1:{server.push_port}", pause_ms=0) as php:
        assert php.ping() is True
        server.restart()
        with server.agent(1) as browser:
            assert php.notifyUser(1, "note", {}) is True, "the dead connection was noticed before anything was sent"
            browser.expect("note")
        server.stop()
        assert php.notifyUser(1, "note", {}) is False
        server.start()
        with server.agent(1) as browser:
            assert php.notifyUser(1, "note", {}) is True
            browser.expect("note")


def test_forked_child_opens_its_own_connection(server: Server) -> None:
    with server.agent(1) as browser:
        run_php(str(SCRIPTS / "fork.php"), f"127.0.0.1:{server.push_port}")
        senders = [event["data"]["from"] for event in browser.settle()]
        assert len(senders) == len(set(senders)) == 42
