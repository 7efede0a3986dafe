"""Test the PHP helper's spool: undelivered lines are stored and sent once."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server
from tests.e2e.php import FakePushApi, Php
from tests.e2e.process import clean_environment, free_port
from tests.e2e.wire import until
from tests.requirements import needs

pytestmark = needs("php-cli")


def spooled(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.json"))


def put(directory: Path, count: int) -> list[str]:
    """Write a spool as php/README.md defines it, without the helper. Return the keys."""
    directory.mkdir(exist_ok=True)
    keys = [f"key-{number}" for number in range(count)]
    for number, key in enumerate(keys):
        line = {"event": "note", "id": key, "ack": True, "to": {"user_id": 1}, "data": {"n": number}}
        (directory / f"{1_700_000_000_000_000 + number}-{number:012x}.json").write_text(json.dumps(line) + "\n")
    return keys


def refuse_some(line: dict[str, Any]) -> bytes:
    ok = line.get("id") not in ("key-1", "key-3")
    response = {"ok": ok, "id": line["id"], **({} if ok else {"code": "bad_message", "message": "no"})}
    return json.dumps(response).encode() + b"\n"


def test_undelivered_event_is_spooled_as_its_line(tmp_path: Path) -> None:
    spool = tmp_path / "made" / "when needed"
    with Php(address=f"127.0.0.1:{free_port()}", spool_dir=str(spool)) as php:
        assert php.notifyNewMessage(456, {"id": 1, "content": "é\n"}) is False
        assert php.log[0].endswith("; spooled")
        assert php.notifyUser(5, "paid", {}, "order-77") is False
    first, second = spooled(spool)
    assert first.stat().st_mode & 0o007 == 0, "other users cannot read the messages"
    text = first.read_text()
    assert text.endswith("}\n")
    assert text.count("\n") == 1
    line = json.loads(text)
    assert line == {
        "event": "new_message",
        "id": line["id"],
        "ack": True,
        "data": {"conversation_id": 456, "message": {"id": 1, "content": "é\n"}},
    }
    assert json.loads(second.read_text())["id"] == "order-77"
    assert [path.name for path in spool.iterdir() if path not in (first, second)] == []


def test_line_without_later_use_is_not_spooled(tmp_path: Path) -> None:
    with Php(address=f"127.0.0.1:{free_port()}", spool_dir=str(tmp_path)) as php:
        assert php.notifyTyping(456, 7, True) is False
        assert php.publish("cursor", {}, "everyone", None, None, True) is False
        assert php.disconnectUser(5) is False
        assert php.unsubscribeUser(5, 456) is False
        assert php.onlineAgents() == []
    assert list(tmp_path.iterdir()) == []


def test_next_request_sends_the_spool_first_and_in_order(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    server = chatws_server(start=False)
    settings = {"address": f"127.0.0.1:{server.push_port}", "spool_dir": str(spool)}
    with Php(**settings) as php:
        for number in range(5):
            assert php.notifyUser(1, "note", {"n": number}) is False
    assert len(spooled(spool)) == 5
    server.start()
    with server.agent(1) as browser, Php(**settings) as php:
        assert php.notifyUser(1, "note", {"n": 5}) is True
        assert [event["data"]["n"] for event in browser.settle()] == [0, 1, 2, 3, 4, 5]
        assert spooled(spool) == []


def test_flush_spool_sends_all_lines(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    server = chatws_server()
    put(tmp_path, 1200)
    with server.agent(1) as browser, Php(address=f"127.0.0.1:{server.push_port}", spool_dir=str(tmp_path)) as php:
        assert php.flushSpool() == 0
        assert [event["data"]["n"] for event in browser.settle()] == list(range(1200))
        assert php.flushSpool() == 0
        server.stop()
        put(tmp_path, 3)
        assert php.flushSpool() == 3
        assert "the spool was not sent" in php.log[0]


@pytest.mark.long
def test_concurrent_processes_send_each_line_once(tmp_path: Path) -> None:
    """A process that got no answer in time sends the line again. Its key makes that one event."""
    keys = put(tmp_path, 2000)

    def slowly(line: dict[str, Any]) -> bytes:
        time.sleep(0.0002)  # so that the processes overlap
        return json.dumps({"ok": True, "id": line["id"]}).encode() + b"\n"

    with FakePushApi(slowly) as port:
        settings = {"address": port.address, "spool_dir": str(tmp_path), "budget_ms": 20_000}
        workers = [Php(**settings) for _ in range(4)]
        problems: list[str] = []
        try:
            # Each sends its own line and the lines of the spool.
            while spooled(tmp_path):
                for worker in workers:
                    worker.send("notifyAgentStatus", 5, "away")
                for worker in workers:
                    assert worker.receive() is True
                    problems += worker.log
        finally:
            for worker in workers:
                worker.close()
        sent = [key for key in port.ids if str(key).startswith("key-")]
        assert set(sent) == set(keys)
        assert problems or len(sent) == len(keys), "a line was sent twice, and no process had a reason"


def test_push_command_sends_the_spool_of_php(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    server = chatws_server(start=False)
    address = f"127.0.0.1:{server.push_port}"
    with Php(address=address, spool_dir=str(spool)) as php:
        for number in range(3):
            assert php.notifyUser(1, "note", {"n": number}) is False
        assert php.publish("never_heard_of", {}) is False
        server.start()
        with server.agent(1) as browser:
            done = subprocess.run(
                [sys.executable, "-m", "chatws.cli", "push", "--spool", str(spool), "--push", address],
                env=clean_environment(),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 1, "one line was rejected"
            assert [event["data"]["n"] for event in browser.settle()] == [0, 1, 2]
        assert spooled(spool) == []
        assert len(spooled(spool / "refused")) == 1
        assert php.flushSpool() == 0


def test_spool_locked_by_another_program_is_left_alone(tmp_path: Path) -> None:
    put(tmp_path, 3)
    with FakePushApi() as port, Php(address=port.address, spool_dir=str(tmp_path)) as php:
        with (tmp_path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert php.notifyAgentStatus(5, "away") is True, "it does not wait"
            assert len(port.lines) == 1
        assert php.notifyAgentStatus(5, "away") is True
        assert len(port.lines) == 5
        assert spooled(tmp_path) == []


def test_a_permanently_rejected_spooled_line_is_moved_to_refused(tmp_path: Path) -> None:
    put(tmp_path, 5)
    with FakePushApi(refuse_some) as port, Php(address=port.address, spool_dir=str(tmp_path)) as php:
        assert php.notifyAgentStatus(5, "away") is True, "the own line was accepted"
        assert php.log == ["chatws: note from the spool was rejected: bad_message: no"] * 2
        assert spooled(tmp_path) == []
        rejected = spooled(tmp_path / "refused")
        assert [json.loads(path.read_text())["id"] for path in rejected] == ["key-1", "key-3"]
        assert php.notifyAgentStatus(5, "away") is True
        assert len(port.lines) == 7


@pytest.mark.parametrize("kind", ["fifo", "directory", "symlink", "large file"])
def test_spool_entry_that_is_no_regular_file_is_moved_and_the_request_goes_on(tmp_path: Path, kind: str) -> None:
    with FakePushApi() as api:
        keys = put(tmp_path / "spool", 1)
        entry = tmp_path / "spool" / "1.json"
        match kind:
            case "fifo":
                os.mkfifo(entry)
            case "directory":
                entry.mkdir()
            case "symlink":
                entry.symlink_to("/dev/zero")
            case "large file":
                with entry.open("wb") as file:
                    file.truncate(200 * 1024 * 1024)
        with Php(address=api.address, spool_dir=str(tmp_path / "spool")) as php:
            assert php.flushSpool() == 0
        assert api.ids == keys
    assert os.listdir(tmp_path / "spool" / "refused") == ["1.json"]


def test_invalid_spool_files_are_moved_to_refused_and_other_files_kept(tmp_path: Path) -> None:
    put(tmp_path, 2)
    bad = {
        "0-empty.json": "",
        "1-cut.json": '{"event":"note","id":"x","ack":tr',
        "2-two.json": '{"event":"note","id":"x","ack":true,"data":{}}\n' * 2,
        "3-no-id.json": '{"event":"note","ack":true,"data":{}}\n',
        "4-no-ack.json": '{"event":"note","id":"z","data":{}}\n',
        "5-op.json": '{"op":"disconnect","id":"x","ack":true,"user_id":1}\n',
    }
    for name, text in bad.items():
        (tmp_path / name).write_text(text)
    (tmp_path / ".half.tmp").write_text("{")
    (tmp_path / ".long-forgotten.tmp").write_text("{")
    os.utime(tmp_path / ".long-forgotten.tmp", (1, 1))
    (tmp_path / "README").write_text("a note of the operator's")
    with FakePushApi() as port, Php(address=port.address, spool_dir=str(tmp_path)) as php:
        assert php.flushSpool() == 0
        assert port.ids == ["key-0", "key-1"]
        assert len(php.log) == len(bad)
    assert sorted(path.name for path in spooled(tmp_path / "refused")) == sorted(bad)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".half.tmp", ".lock", "README", "refused"]


def test_unwritable_spool_is_logged(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Php(address=f"127.0.0.1:{free_port()}", spool_dir=str(tmp_path / "file" / "spool")) as php:
        assert php.notifyUser(1, "note", {}) is False
        assert "1 not spooled: cannot create" in php.log[0]


def test_full_spool_rejects_further_lines(tmp_path: Path) -> None:
    with Php(address=f"127.0.0.1:{free_port()}", spool_dir=str(tmp_path), spool_max_files=3) as php:
        assert php.batch([{"method": "notifyUser", "arguments": [1, "note", [n]]} for n in range(5)]) is False
        assert php.log[0].endswith("; 2 not spooled: the spool is full: it holds 3 files (spool_max_files)")
        assert php.notifyUser(1, "note", {}) is False
        assert "1 not spooled" in php.log[0]
    assert len(spooled(tmp_path)) == 3


def test_lines_with_a_wrong_secret_are_spooled_and_sent_later(
    chatws_server: Callable[..., Server], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("right")
    secret.chmod(0o600)
    server = chatws_server("--push-secret-file", str(secret))
    settings = {"address": f"127.0.0.1:{server.push_port}", "spool_dir": str(tmp_path / "spool")}
    with server.agent(1) as browser:
        with Php(secret="wrong", **settings) as php:
            assert php.notifyUser(1, "note", {"n": 0}) is False
        with Php(secret="right", **settings) as php:
            assert php.notifyUser(1, "note", {"n": 1}) is True
        assert [event["data"]["n"] for event in browser.settle()] == [0, 1]


@pytest.mark.long
def test_server_killed_while_publishing_loses_and_repeats_no_event(
    chatws_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Two PHP processes publish while the server is killed twice. Its history is on disk."""
    server = chatws_server("--broker", f"sqlite:///{tmp_path}/log.db")
    spool = tmp_path / "spool"
    settings = {"address": f"127.0.0.1:{server.push_port}", "spool_dir": str(spool), "pause_ms": 50}
    browser = server.agent(1, 456)
    seen: list[dict[str, Any]] = []
    written = 0
    workers = [Php(**settings), Php(**settings)]
    try:
        for _ in range(2):
            for turn in range(30):
                for worker in workers:
                    numbers = range(written, written + 5)
                    written += 5
                    worker.send(
                        "batch", [{"method": "notifyNewMessage", "arguments": [456, {"n": n}]} for n in numbers]
                    )
                if turn == 15:
                    server.stop(signal.SIGKILL)
                for worker in workers:
                    worker.receive()
                if turn == 25:
                    assert spooled(spool)
                    server.start()
            browser.expect_close()
            seen += [event for event in browser.received if event.get("event") == "new_message"]
            browser = server.browser()
            browser.auth(1, last_event_id=seen[-1]["id"])
            assert browser.subscribe(456, last_event_id=seen[-1]["id"])["recovered"] is True
        until(lambda: [worker.flushSpool() for worker in workers] == [0, 0], "the spool to be sent")
    finally:
        for worker in workers:
            worker.close()
    browser.settle()
    seen += [event for event in browser.received if event.get("event") == "new_message"]
    assert sorted(event["data"]["message"]["n"] for event in seen) == list(range(written))
    assert spooled(spool) == []
