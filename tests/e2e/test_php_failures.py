"""The PHP helper when things go wrong: it comes back in time, says why, and never throws.

The PHP side (tests/php/worker.php) throws at every warning, and a test fails when anything is thrown.
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
from tests.e2e.php import BOUND, SCRIPTS, FakePushPort, Php, php_server, run_php
from tests.e2e.process import free_port
from tests.e2e.wire import until
from tests.requirements import needs

pytestmark = needs("php-cli")


def yes(line: dict[str, Any]) -> bytes:
    return json.dumps({"ok": True, "id": line.get("id")}).encode() + b"\n"


# --- absent


def test_without_a_server_a_call_is_false_at_once_and_logged() -> None:
    port = free_port()
    with Php(address=f"127.0.0.1:{port}") as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert php.log == [f"chatws: agent_status not delivered: Connection refused (127.0.0.1:{port})"]
        assert php.milliseconds < BOUND


def test_for_a_while_after_a_failure_nothing_is_tried() -> None:
    with FakePushPort(lambda line: None) as port, Php(address=port.address, pause_ms=60_000, patient=False) as php:
        assert php.ping() is False
        until(lambda: port.lines, "what was sent to be read")
        assert php.notifyAgentStatus(5, "away") is False
        assert "not tried, after: no answer in time" in php.log[0]
        assert php.onlineAgents() == []
        assert "not tried" in php.lastError()
        assert (port.connections, len(port.lines)) == (1, 1)


def test_a_queue_that_is_full_costs_the_connect_time_out() -> None:
    with FakePushPort(accept=False) as port, ExitStack() as others:
        where = port.socket.getsockname()
        for _ in range(8):
            one = others.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(where)
        with Php(address=port.address, patient=False) as php:
            assert php.notifyAgentStatus(5, "away") is False
            assert "timed out" in php.log[0]
            assert 150 < php.milliseconds < BOUND


@pytest.mark.parametrize(
    "address", ["", "8081", "localhost", "127.0.0.1:", "tcp:8081", "http://127.0.0.1:8081", "unix:", "127.0.0.1:99999"]
)
def test_an_address_that_is_none_is_logged_at_each_call(address: str) -> None:
    with Php(address=address or "no address", connect_timeout_ms=100) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert "agent_status not delivered" in php.log[0]
        assert php.milliseconds < BOUND


def test_a_unix_socket_that_is_not_there_is_logged(tmp_path: Path) -> None:
    with Php(address=f"unix:{tmp_path}/push.sock") as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert "No such file or directory" in php.log[0]


# --- slow


def test_a_server_that_never_answers_costs_the_answer_time_out() -> None:
    with FakePushPort(lambda line: None) as port, Php(address=port.address, patient=False) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert php.log == ["chatws: agent_status not delivered: no answer in time"]
        assert 400 < php.milliseconds < BOUND
        until(lambda: port.lines, "what was sent to be read")
        assert len(port.lines) == 1, "nothing is repeated to a server that is slow"


def test_a_server_that_does_not_read_cannot_hold_a_big_message_up() -> None:
    settings = {"max_line_size": 100_000_000, "patient": False}
    with FakePushPort(read=False) as port, Php(address=port.address, **settings) as php:
        assert php.notifyNewMessage(456, {"content": "x" * 20_000_000}) is False
        assert "no answer in time" in php.log[0]
        assert php.milliseconds < BOUND


def test_bytes_without_an_answer_are_no_progress() -> None:
    stop = []

    def trickle(line: dict[str, Any]) -> bytes | None:
        while not stop and not select.select([], [], [], 0.05)[0]:
            for one in list(port._open):
                one.sendall(b" ")
        return None

    with FakePushPort(trickle) as port, Php(address=port.address, patient=False) as php:
        try:
            assert php.notifyAgentStatus(5, "away") is False
            assert php.milliseconds < BOUND
        finally:
            stop.append(True)


def test_late_answers_are_not_taken_for_those_to_other_lines() -> None:
    first = []

    def answer(line: dict[str, Any]) -> bytes | None:
        if not first:
            first.append(line)
            return None
        if len(first) == 1 and line.get("event") == "second":
            first.append(line)
            return b'{"ok":true,"id":"somebody else\'s"}\n'
        return yes(line)

    with FakePushPort(answer) as port, Php(address=port.address, pause_ms=0, answer_timeout_ms=2000) as php:
        assert php.notifyUser(1, "first", {}) is False
        assert php.notifyUser(1, "second", {}) is False
        assert "not asked" in php.log[0]
        assert php.notifyUser(1, "third", {}) is True
        assert port.connections == 3


def test_a_budget_below_the_time_outs_goes_over_them() -> None:
    settings = {"answer_timeout_ms": 60_000, "budget_ms": 100}
    with FakePushPort(lambda line: None) as port, Php(address=port.address, **settings) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert php.milliseconds < BOUND


def test_all_calls_of_a_request_share_one_connection_and_the_next_request_has_its_own(tmp_path: Path) -> None:
    with FakePushPort() as port, php_server(tmp_path, CHATWS_PUSH_ADDRESS=port.address) as request:
        assert request()["results"] == [True, True, True]
        assert port.connections == 1
        assert request()["results"] == [True, True, True]
        assert port.connections == 2


def test_all_calls_of_a_request_share_one_budget(tmp_path: Path) -> None:
    with (
        FakePushPort(lambda line: None) as port,
        php_server(tmp_path, patient=False, CHATWS_PUSH_ADDRESS=port.address, CHATWS_PUSH_PAUSE_MS="0") as request,
    ):
        for _ in range(2):
            answer = request()
            assert answer["results"] == [False, False, False]
            assert 500 < answer["ms"] < BOUND, "700 ms for all three, though each could wait 500"


# --- strange


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\n", b"[]\n", b'{"ok":"yes"}\n', b'{"ok":1}\n', b"\xff\xfe\n", b"null\n"],
)
def test_what_is_no_push_port_is_found_out(answer: bytes) -> None:
    with FakePushPort(lambda line: answer) as port, Php(address=port.address) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert "no push port of chatws" in php.log[0]


def test_an_answer_without_an_end_is_given_up() -> None:
    with FakePushPort(lambda line: b"x" * 20_000_000) as port, Php(address=port.address, answer_timeout_ms=9000) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert php.milliseconds < BOUND


def test_a_no_that_may_become_a_yes_is_tried_once_more() -> None:
    seen: list[Any] = []

    def answer(line: dict[str, Any]) -> bytes:
        seen.append(line["id"])
        if len(seen) == 1:
            return json.dumps({"ok": False, "id": line["id"], "code": "unavailable", "message": "?"}).encode() + b"\n"
        return yes(line)

    with FakePushPort(answer) as port, Php(address=port.address) as php:
        assert php.notifyAgentStatus(5, "away") is True
        assert len(seen) == 2
        assert seen[0] == seen[1], "with the same key"
        assert port.connections == 1


def test_a_no_that_stays_is_logged_with_its_words() -> None:
    def answer(line: dict[str, Any]) -> bytes:
        no = {"ok": False, "id": line["id"], "code": "overloaded", "message": "ask\nlater\x1b[31m"}
        return json.dumps(no).encode() + b"\n"

    with FakePushPort(answer) as port, Php(address=port.address) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert php.log == ["chatws: agent_status not delivered: overloaded: ask later [31m"]
        assert len(port.lines) == 2


def test_a_connection_closed_without_an_answer_is_replaced_once() -> None:
    def close_on_first(line: dict[str, Any]) -> bytes:
        if port.connections == 1:
            raise EOFError
        return yes(line)

    with FakePushPort(close_on_first) as port, Php(address=port.address) as php:
        assert php.notifyAgentStatus(5, "away") is True
        assert len(set(port.ids)) == 1
        assert port.connections == 2

    def close(line: dict[str, Any]) -> bytes:
        raise EOFError

    with FakePushPort(close) as port, Php(address=port.address) as php:
        assert php.notifyAgentStatus(5, "away") is False
        assert php.log == ["chatws: agent_status not delivered: the server closed the connection"]
        assert port.connections == 2


def test_a_log_that_throws_does_not_throw_at_the_caller() -> None:
    with Php(address=f"127.0.0.1:{free_port()}", logger="broken") as php:
        assert php.notifyAgentStatus(5, "away") is False


def test_failures_go_to_a_psr_3_logger_or_to_php_s_own_log(tmp_path: Path) -> None:
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


def test_settings_that_are_none_are_logged_and_the_defaults_taken() -> None:
    environment = {"CHATWS_PUSH_BUDGET_MS": "soon", "CHATWS_PUSH_SECRET_FILE": "/nowhere/secret"}
    with FakePushPort() as port, Php(environment=environment, address=port.address, answer_timeout_ms=0) as php:
        assert php.ping() is True
        assert php.log == [
            "chatws: secret_file: /nowhere/secret cannot be read, or is empty",
            "chatws: answer_timeout_ms must be a number from 1; 500 is taken",
            "chatws: budget_ms must be a number from 1; 700 is taken",
        ]


# --- the secret


def test_the_secret_opens_the_door_and_no_other_does(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
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
            big = "x" * 900_000  # behind the secret, in one go
            assert php.notifyUser(1, "note", {"by": "file", "big": big}) is True
        for settings in ({"secret": "wrong"}, {}):
            with Php(address=address, **settings) as php:
                assert php.notifyUser(1, "note", {"by": "nobody"}) is False
                assert php.log == ["chatws: note not delivered: the push secret is wrong, or missing"]
                assert php.onlineAgents() == []
                assert php.ticket(1) is False
        assert [one["data"]["by"] for one in browser.settle()] == ["variable", "variable, again", "file"]


def test_a_secret_where_none_is_asked_for_does_no_harm(server: Server) -> None:
    with Php(address=f"127.0.0.1:{server.push_port}", secret="whatever") as php, server.agent(1) as browser:
        assert php.notifyUser(1, "note", {}) is True
        browser.expect("note")


# --- workers that live for days


def test_a_worker_lives_through_a_restart_of_the_server(chatws_server: Callable[..., Server]) -> None:
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


def test_a_forked_child_opens_its_own_connection(server: Server) -> None:
    with server.agent(1) as browser:
        run_php(str(SCRIPTS / "fork.php"), f"127.0.0.1:{server.push_port}")
        found = [one["data"]["from"] for one in browser.settle()]
        assert len(found) == len(set(found)) == 42
