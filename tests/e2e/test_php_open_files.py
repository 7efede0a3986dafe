"""Test the PHP helper in a process with many open files: `stream_select` supports descriptors below 1,024 only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import self_signed
from tests.e2e.conftest import Server
from tests.e2e.php import PHP_DIRECTORY, FakePushApi, Php, run_php
from tests.e2e.process import free_port
from tests.requirements import needs

pytestmark = needs("php-cli")

#: More files than PHP's select(2) supports (FD_SETSIZE).
MANY = 1100
FILE_LIMIT = 4096


@contextmanager
def php_with_many_files(**settings: Any) -> Iterator[Php]:
    with Php(file_limit=FILE_LIMIT, **settings) as php:
        assert php.openFiles(MANY) == MANY
        yield php


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
def test_notifications_with_more_than_1024_open_files_arrive(
    chatws_server: Callable[..., Server], tmp_path: Path, kind: str
) -> None:
    settings: dict[str, Any] = {}
    if kind == "tcp":
        server = chatws_server()
        settings["address"] = f"127.0.0.1:{server.push_port}"
    elif kind == "unix":
        server = chatws_server("--push-listen", f"unix:{tmp_path}/push.sock:mode=600")
        settings["address"] = f"unix:{tmp_path}/push.sock"
    else:
        certificate = self_signed("chat.example")
        pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        pem.write_bytes(certificate.certificate)
        key.write_bytes(certificate.key)
        port = free_port()
        server = chatws_server("--push-listen", f"ssl:{port}:privateKey={key}:certKey={pem}:interface=127.0.0.1")
        settings = {"address": f"tls://127.0.0.1:{port}", "tls_ca": str(pem)}
    content = "ß漢😀\n" * 70_000  # 840 KB: more than a socket's buffer, so that writing has to wait
    with server.agent(1, 456) as browser, php_with_many_files(**settings) as php:
        assert php.ping() is True, php.log
        assert php.notifyNewMessage(456, {"content": content}) is True, php.log
        assert browser.expect("new_message")["data"]["message"]["content"] == content
        calls = [{"method": "notifyNewMessage", "arguments": [456, {"id": number}]} for number in range(1500)]
        assert php.batch(calls) is True, php.log
        assert [event["data"]["message"]["id"] for event in browser.settle()] == list(range(1500))
        assert php.onlineAgents() == [1]
        server.restart()
        assert php.ping() is True, "the closed connection was noticed"


def test_silent_server_with_more_than_1024_open_files_costs_no_cpu() -> None:
    with (
        FakePushApi(lambda line: None) as port,
        php_with_many_files(address=port.address, answer_timeout_ms=2000) as php,
    ):
        before = cpu_seconds(php.process.pid)
        assert php.ping() is False
        assert php.log == ["chatws: ping not delivered: no answer in time"]
        assert php.milliseconds >= 2000
        assert cpu_seconds(php.process.pid) - before < 1, "half of the time at most: it does not spin"


def test_stalled_tls_handshake_with_more_than_1024_open_files_ends_in_time() -> None:
    with FakePushApi(read=False) as port, php_with_many_files(address=f"tls://{port.address}", patient=False) as php:
        assert php.ping() is False
        assert php.log == ["chatws: ping not delivered: no answer in time"]


def test_server_that_does_not_read_with_more_than_1024_open_files_ends_in_time() -> None:
    settings = {"max_line_size": 100_000_000, "patient": False}
    with FakePushApi(read=False) as port, php_with_many_files(address=port.address, **settings) as php:
        assert php.notifyNewMessage(456, {"content": "x" * 20_000_000}) is False
        assert "no answer in time" in php.log[0]


def test_worker_without_free_descriptors_logs_it_and_continues(tmp_path: Path) -> None:
    """PHP ends a process that cannot open the file of a class, so all classes are loaded early."""
    settings = {"spool_dir": str(tmp_path), "pause_ms": 0, "token_secret": "a secret of at least 32 bytes, this"}
    with FakePushApi() as port, Php(address=port.address, file_limit=64, **settings) as php:
        assert php.ping() is True
        php.send("close")
        php.receive()
        assert 0 < php.openFiles(100) < 64
        assert php.ping() is False
        assert php.log == [f"chatws: ping not delivered: Too many open files ({port.address})"]
        assert php.notifyUser(1, "note", {}) is False
        assert "not spooled" in php.log[0]
        assert php.onlineAgents() == []
        assert php.flushSpool() == 0
        assert php.token(5).count(".") == 2


def test_client_when_constructed_loads_each_class_of_the_library() -> None:
    code = f"""
        require '{PHP_DIRECTORY}/autoload.php';
        new Chatws\\Client(Chatws\\Config::fromArray([]));
        echo implode("\n", array_filter(get_declared_classes(), fn ($name) => str_starts_with($name, 'Chatws')));
    """
    classes = {path.stem for path in (PHP_DIRECTORY / "src").glob("*.php")} - {"Webhook"}  # for receivers only
    assert sorted(run_php("-r", code).split()) == sorted(f"Chatws\\{name}" for name in classes)
