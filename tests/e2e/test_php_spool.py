"""The PHP helper's spool: what cannot be delivered is kept, and sent once."""

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

from tests.e2e.conftest import Server
from tests.e2e.php import FakePushPort, Php
from tests.e2e.process import clean_environment, free_port
from tests.e2e.wire import until
from tests.requirements import needs

pytestmark = needs("php-cli")


def spooled(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.json"))


def put(directory: Path, count: int) -> list[str]:
    """Make a spool as php/README.md defines it, without the helper. Returns the keys."""
    directory.mkdir(exist_ok=True)
    keys = [f"key-{number}" for number in range(count)]
    for number, key in enumerate(keys):
        line = {"event": "note", "id": key, "ack": True, "to": {"user_id": 1}, "data": {"n": number}}
        (directory / f"{1_700_000_000_000_000 + number}-{number:012x}.json").write_text(json.dumps(line) + "\n")
    return keys


def refuse_some(line: dict[str, Any]) -> bytes:
    ok = line.get("id") not in ("key-1", "key-3")
    answer = {"ok": ok, "id": line["id"], **({} if ok else {"code": "bad_message", "message": "no"})}
    return json.dumps(answer).encode() + b"\n"


def test_what_cannot_be_delivered_is_kept_as_the_line_it_would_have_been(tmp_path: Path) -> None:
    spool = tmp_path / "made" / "when needed"
    with Php(address=f"127.0.0.1:{free_port()}", spool_dir=str(spool)) as php:
        assert php.notifyNewMessage(456, {"id": 1, "content": "é\n"}) is False
        assert php.log[0].endswith("; spooled")
        assert php.notifyUser(5, "paid", {}, "order-77") is False
    first, second = spooled(spool)
    assert first.stat().st_mode & 0o007 == 0, "messages are nobody else's business"
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
    assert [one.name for one in spool.iterdir() if one not in (first, second)] == []


def test_what_is_of_no_use_later_is_not_kept(tmp_path: Path) -> None:
    with Php(address=f"127.0.0.1:{free_port()}", spool_dir=str(tmp_path)) as php:
        assert php.notifyTyping(456, 7, True) is False
        assert php.publish("cursor", {}, "everyone", None, None, True) is False
        assert php.disconnectUser(5) is False
        assert php.unsubscribeUser(5, 456) is False
        assert php.onlineAgents() == []
    assert list(tmp_path.iterdir()) == []


def test_the_next_request_sends_what_was_kept_first_and_in_order(
    chatws_server: Callable[..., Server], tmp_path: Path
) -> None:
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
        assert [one["data"]["n"] for one in browser.settle()] == [0, 1, 2, 3, 4, 5]
        assert spooled(spool) == []


def test_the_spool_can_be_sent_by_itself(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    server = chatws_server()
    put(tmp_path, 1200)
    with server.agent(1) as browser, Php(address=f"127.0.0.1:{server.push_port}", spool_dir=str(tmp_path)) as php:
        assert php.flushSpool() == 0
        assert [one["data"]["n"] for one in browser.settle()] == list(range(1200))
        assert php.flushSpool() == 0
        server.stop()
        put(tmp_path, 3)
        assert php.flushSpool() == 3
        assert "the spool was not sent" in php.log[0]


def test_processes_at_once_send_each_line_once(tmp_path: Path) -> None:
    keys = put(tmp_path, 2000)

    def slowly(line: dict[str, Any]) -> bytes:
        time.sleep(0.0002)  # so that they meet
        return json.dumps({"ok": True, "id": line["id"]}).encode() + b"\n"

    with FakePushPort(slowly) as port:
        settings = {"address": port.address, "spool_dir": str(tmp_path), "budget_ms": 20_000}
        workers = [Php(**settings) for _ in range(4)]
        try:
            # each sends a line of its own, and what it finds
            while spooled(tmp_path):
                for worker in workers:
                    worker.send("notifyAgentStatus", 5, "away")
                assert [worker.receive() for worker in workers] == [True] * 4
        finally:
            for worker in workers:
                worker.close()
        assert sorted(one for one in port.ids if str(one).startswith("key-")) == sorted(keys)


def test_the_command_sends_what_php_has_kept(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
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
                [sys.executable, "-m", "chatws.command", "push", "--spool", str(spool), "--push", address],
                env=clean_environment(),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 1, "one was refused"
            assert [one["data"]["n"] for one in browser.settle()] == [0, 1, 2]
        assert spooled(spool) == []
        assert len(spooled(spool / "refused")) == 1
        assert php.flushSpool() == 0


def test_the_lock_of_another_program_is_respected(tmp_path: Path) -> None:
    put(tmp_path, 3)
    with FakePushPort() as port, Php(address=port.address, spool_dir=str(tmp_path)) as php:
        with (tmp_path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert php.notifyAgentStatus(5, "away") is True, "it does not wait"
            assert len(port.lines) == 1
        assert php.notifyAgentStatus(5, "away") is True
        assert len(port.lines) == 5
        assert spooled(tmp_path) == []


def test_what_the_server_refuses_for_good_is_put_aside(tmp_path: Path) -> None:
    put(tmp_path, 5)
    with FakePushPort(refuse_some) as port, Php(address=port.address, spool_dir=str(tmp_path)) as php:
        assert php.notifyAgentStatus(5, "away") is True, "its own line went well"
        assert php.log == ["chatws: note from the spool was refused: bad_message: no"] * 2
        assert spooled(tmp_path) == []
        aside = spooled(tmp_path / "refused")
        assert [json.loads(one.read_text())["id"] for one in aside] == ["key-1", "key-3"]
        assert php.notifyAgentStatus(5, "away") is True
        assert len(port.lines) == 7


def test_files_that_hold_no_line_are_put_aside_and_others_left_alone(tmp_path: Path) -> None:
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
    with FakePushPort() as port, Php(address=port.address, spool_dir=str(tmp_path)) as php:
        assert php.flushSpool() == 0
        assert port.ids == ["key-0", "key-1"]
        assert len(php.log) == len(bad)
    assert sorted(one.name for one in spooled(tmp_path / "refused")) == sorted(bad)
    assert sorted(one.name for one in tmp_path.iterdir()) == [".half.tmp", ".lock", "README", "refused"]


def test_a_spool_that_cannot_be_written_is_logged(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Php(address=f"127.0.0.1:{free_port()}", spool_dir=str(tmp_path / "file" / "spool")) as php:
        assert php.notifyUser(1, "note", {}) is False
        assert "1 not spooled: cannot make" in php.log[0]


def test_the_spool_has_a_limit(tmp_path: Path) -> None:
    with Php(address=f"127.0.0.1:{free_port()}", spool_dir=str(tmp_path), spool_max_files=3) as php:
        assert php.batch([{"method": "notifyUser", "arguments": [1, "note", [n]]} for n in range(5)]) is False
        assert php.log[0].endswith("; 2 not spooled: 3 files wait there already")
        assert php.notifyUser(1, "note", {}) is False
        assert "1 not spooled" in php.log[0]
    assert len(spooled(tmp_path)) == 3


def test_a_wrong_secret_loses_nothing(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
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
        assert [one["data"]["n"] for one in browser.settle()] == [0, 1]


def test_a_server_killed_in_the_middle_loses_nothing_and_repeats_nothing(
    chatws_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Two PHP processes write to it all the time; it is killed twice, and keeps its log on disk."""
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
            seen += [one for one in browser.received if one.get("event") == "new_message"]
            browser = server.browser()
            browser.auth(1, last_event_id=seen[-1]["id"])
            assert browser.subscribe(456, last_event_id=seen[-1]["id"])["recovered"] is True
        until(lambda: [worker.flushSpool() for worker in workers] == [0, 0], "the spool to be sent")
    finally:
        for worker in workers:
            worker.close()
    browser.settle()
    seen += [one for one in browser.received if one.get("event") == "new_message"]
    assert sorted(one["data"]["message"]["n"] for one in seen) == list(range(written))
    assert spooled(spool) == []
