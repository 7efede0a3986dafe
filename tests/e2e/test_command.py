"""The command `chatws` against a real server: each subcommand, and how each fails."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.e2e.conftest import Server
from tests.e2e.php import PHP_DIRECTORY
from tests.e2e.process import clean_environment, free_port
from tests.e2e.wire import DEADLINE, until
from tests.requirements import needs

SECRET = "0123456789abcdef0123456789abcdef"
MESSAGE = {"conversation_id": 456, "message": {"id": 9, "content": "olá"}}
START = Callable[..., Server]


def command(*words: str, **environment: str) -> list[str]:
    return [sys.executable, "-m", "chatws.cli", *words]


def chatws(*words: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*words), input=stdin, capture_output=True, env=clean_environment(**environment), timeout=60
    )
    return subprocess.CompletedProcess(words, done.returncode, done.stdout.decode(), done.stderr.decode())


def towards(server: Server, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """The command, told where the server's push port is."""
    return chatws(*words, CHATWS_PUSH_ADDRESS=f"127.0.0.1:{server.push_port}", **more)


def values(done: subprocess.CompletedProcess[str]) -> list[Any]:
    """What a successful `--json` printed."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


class Background:
    """A command that goes on: its lines as they come."""

    def __init__(self, *words: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(PYTHONUNBUFFERED="1", **environment),
            text=True,
            encoding="utf-8",
        )
        self.out: list[str] = []
        self.err: list[str] = []
        pairs = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self.readers = [threading.Thread(target=self._read, args=pair) for pair in pairs]
        for reader in self.readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))

    def expect_note(self, text: str) -> None:
        until(lambda: any(text in line for line in self.err) or self.process.poll() is not None, f"{text!r}")
        assert any(text in line for line in self.err), self.err

    def expect_lines(self, number: int) -> list[str]:
        until(lambda: len(self.out) >= number, f"{number} lines, beyond {self.out}, {self.err}")
        return self.out

    def end(self, signal_number: int | None = signal.SIGTERM) -> int:
        if signal_number is not None and self.process.poll() is None:
            self.process.send_signal(signal_number)
        status = self.process.wait(DEADLINE)
        for reader in self.readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return status


@pytest.fixture
def background() -> Iterator[Callable[..., Background]]:
    started: list[Background] = []

    def start(*words: str, **environment: str) -> Background:
        started.append(Background(*words, **environment))
        return started[-1]

    yield start
    for item in started:
        if item.process.poll() is None:
            item.process.kill()
        item.end(None) if item.readers[0].is_alive() else None


def spooled(directory: Path, number: int, line: dict[str, Any] | bytes) -> Path:
    """A file as the PHP helper writes it."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{1700000000000000 + number:016d}-{number:012x}.json"
    path.write_bytes(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
    return path


# push


def test_push_reaches_the_audience_and_prints_its_size(server: Server) -> None:
    agent, other = server.agent(5, 456), server.agent(6)
    done = towards(server, "push", "new_message", json.dumps(MESSAGE))
    assert (done.returncode, done.stderr) == (0, "")
    assert agent.expect("new_message")["data"] == MESSAGE
    assert done.stdout.startswith("new_message ")
    assert done.stdout.endswith(" went to 1 connection\n")
    (answer,) = values(towards(server, "push", "note", "-", "--to", "users:5,6", "--json", stdin=b'{"n":\n1.50}'))
    assert answer["delivered"] == 2
    assert agent.expect("note")["data"] == {"n": 1.5}
    assert '"data":{"n": 1.50}' in agent.texts[-1]
    towards(server, "push", "note", "{}", "--to", "everyone", "--except-user", "5", "--transient")
    assert "id" in other.expect("note")
    assert "id" not in other.expect("note")
    assert [item for item in agent.settle() if item.get("event") == "note"] == []


def test_push_sends_a_key_once(server: Server) -> None:
    push = ("push", "paid", "{}", "--to", "everyone", "--id", "order-77", "--json")
    first, second = values(towards(server, *push)) + values(towards(server, *push))
    assert (first["duplicate"], second["duplicate"]) == (False, True)
    assert first["event_id"] == second["event_id"]


def test_push_with_a_secret_and_without(chatws_server: START, tmp_path: Path) -> None:
    secret = tmp_path / "push-secret"
    secret.write_text("the push secret\n")
    secret.chmod(0o600)
    server = chatws_server("--push-secret-file", str(secret))
    push = ("push", "x", "{}", "--to", "everyone")
    assert towards(server, *push, "--push-secret-file", str(secret)).returncode == 0
    assert towards(server, *push, CHATWS_PUSH_SECRET="the push secret").returncode == 0
    refused = towards(server, *push, CHATWS_PUSH_SECRET="another")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("chatws push: refused, bad_secret")
    assert "--push-secret-file" in refused.stderr
    without = towards(server, *push)
    assert without.returncode == 1
    assert without.stderr.count("\n") == 1
    assert "--push-secret-file" in without.stderr


def test_push_over_a_unix_socket(chatws_server: START, tmp_path: Path) -> None:
    path = tmp_path / "push.sock"
    chatws_server("--push-listen", f"unix:{path}:mode=600")
    assert chatws("push", "x", "{}", "--to", "everyone", "--push", f"unix:{path}").returncode == 0


@pytest.mark.parametrize("words", [("push", "x", "{}", "--to", "everyone"), ("agents",), ("kick", "5"), ("bench",)])
def test_commands_without_a_server_print_one_line(words: tuple[str, ...]) -> None:
    port = free_port()
    more = ("--url", f"ws://127.0.0.1:{port}/ws") if words == ("bench",) else ()
    done = chatws(*words, *more, "--push", f"127.0.0.1:{port}", "--timeout", "0.3")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"chatws {words[0]}: no ")


def test_commands_with_json_output_print_errors_as_json() -> None:
    done = chatws("agents", "--json", "--push", f"127.0.0.1:{free_port()}", "--timeout", "0.3")
    assert done.returncode == 1
    assert json.loads(done.stderr)["error"]["code"] == "unavailable"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("push", "x", "{nonsense"), "the JSON is invalid"),
        (("push", "x", "[1]"), "must be a JSON object"),
        (("push", "x", ""), "the JSON is missing"),
        (("push", "unheard_of", "{}"), "say to whom with --to"),
        (("push", "authenticated", "{}", "--to", "everyone"), "reserved_event"),
    ],
)
def test_push_rejects_an_invalid_event(server: Server, words: tuple[str, ...], says: str) -> None:
    done = towards(server, *words)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


# push --spool


def test_the_spool_is_sent_in_order_and_emptied(server: Server, tmp_path: Path) -> None:
    agent = server.agent(5)
    spool = tmp_path / "spool"
    for number in range(250):
        data = {"n": number}
        spooled(spool, number, {"event": "x", "id": f"k{number}", "ack": True, "to": "everyone", "data": data})
    (spool / ".half-written.tmp").write_bytes(b'{"event"')
    (spool / "README").write_text("nobody's line")
    (result,) = values(towards(server, "push", "--spool", str(spool), "--json"))
    assert result == {"sent": 250, "refused": 0, "waiting": 0}
    assert sorted(path.name for path in spool.iterdir()) == [".half-written.tmp", ".lock", "README"]
    assert (spool / ".lock").stat().st_mode & 0o777 == 0o660
    assert [item["data"]["n"] for item in agent.settle() if item.get("event") == "x"] == list(range(250))


def test_rejected_lines_of_the_spool_are_moved_to_refused(server: Server, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    good = {"event": "x", "id": "good", "ack": True, "to": "everyone", "data": {}}
    refused = [
        spooled(spool, 1, {**good, "event": "authenticated", "id": "reserved"}),
        spooled(spool, 2, b"no json\n"),
        spooled(spool, 3, {**good, "ack": False}),
        spooled(spool, 5, b'{"event":"x","id":"bytes","ack":true,"to":"everyone","data":{"a":"\xff"}}\n'),
        spooled(spool, 6, {**good, "id": ""}),
    ]
    spooled(spool, 4, good)
    done = towards(server, "push", "--spool", str(spool))
    assert done.returncode == 1
    assert done.stdout == "1 line sent, 5 refused, 0 waiting\n"
    assert sorted(path.name for path in (spool / "refused").iterdir()) == [item.name for item in refused]
    assert "reserved_event" in done.stderr
    assert [path.name for path in spool.glob("*.json")] == []


def test_without_a_server_the_spool_keeps_everything(chatws_server: START, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    path = spooled(spool, 1, {"event": "x", "id": "k", "ack": True, "to": "everyone", "data": {}})
    server = chatws_server(start=False)
    done = towards(server, "push", "--spool", str(spool), "--timeout", "0.3")
    assert done.returncode == 1
    assert "1 line still waiting: " in done.stderr
    assert path.exists()
    server.start()
    assert towards(server, "push", "--spool", str(spool)).stdout == "1 line sent, 0 refused, 0 waiting\n"


def test_a_wrong_secret_leaves_the_spool_as_it_is(chatws_server: START, tmp_path: Path) -> None:
    secret = tmp_path / "push-secret"
    secret.write_text("the push secret\n")
    secret.chmod(0o600)
    server = chatws_server("--push-secret-file", str(secret))
    path = spooled(tmp_path / "spool", 1, {"event": "x", "id": "k", "ack": True, "to": "everyone", "data": {}})
    done = towards(server, "push", "--spool", str(path.parent), CHATWS_PUSH_SECRET="another")
    assert done.returncode == 1
    assert "bad_secret" in done.stderr
    assert path.exists()


def test_the_spool_is_sent_by_one_at_a_time(server: Server, tmp_path: Path) -> None:
    path = spooled(tmp_path / "spool", 1, {"event": "x", "id": "k", "ack": True, "to": "everyone", "data": {}})
    with (path.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = towards(server, "push", "--spool", str(path.parent), "--timeout", "0.3")
        assert done.returncode == 1
        assert "another process is sending" in done.stderr
        assert path.exists()
    assert towards(server, "push", "--spool", str(path.parent)).returncode == 0


def test_push_with_an_absent_spool_names_the_directory(tmp_path: Path) -> None:
    assert "there is no directory" in chatws("push", "--spool", str(tmp_path / "absent")).stderr


@needs("php-cli")
def test_push_sends_the_lines_that_php_spooled(chatws_server: START, tmp_path: Path) -> None:
    server = chatws_server(start=False)
    spool = tmp_path / "spool"
    code = f"""
        require '{PHP_DIRECTORY}/autoload.php';
        $chat = new Chatws\\Client(Chatws\\Config::fromArray([
            'address' => '127.0.0.1:{server.push_port}', 'spool_dir' => '{spool}', 'logger' => fn () => null,
            'pause_ms' => 0,
        ]));
        var_dump($chat->notifyNewMessage(456, ['id' => 9, 'content' => 'olá']));
        var_dump($chat->notifyUser(5, 'paid', ['price' => 1.5]));
    """
    done = subprocess.run(["php", "-r", code], capture_output=True, timeout=60, check=True, env=clean_environment())
    assert done.stdout.split() == [b"bool(false)"] * 2
    assert len(list(spool.glob("*.json"))) == 2
    server.start()
    agent = server.agent(5, 456)
    assert towards(server, "push", "--spool", str(spool)).stdout == "2 lines sent, 0 refused, 0 waiting\n"
    assert agent.expect("new_message")["data"]["message"]["content"] == "olá"
    assert agent.expect("paid")["data"] == {"price": 1.5}


# token


def test_token_with_conversations_permits_only_these(chatws_server: START, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    server = chatws_server("--secret-file", str(secret))
    token = chatws("token", "5", "--conversations", "1,2", "--secret-file", str(secret))
    assert (token.returncode, token.stderr) == (0, "")
    browser = server.browser()
    assert browser.auth(5, token=token.stdout.strip())["user_id"] == 5
    browser.subscribe(2)
    browser.send({"type": "subscribe", "conversation_id": 3})
    browser.expect("error", code="forbidden")


def test_token_with_ttl_and_audience_has_these_claims() -> None:
    (value,) = values(chatws("token", "ana", "--ttl", "60", "--audience", "chat", "--json", CHATWS_SECRET=SECRET))
    claims = jwt.decode(value["token"], SECRET, algorithms=["HS256"], audience="chat")
    assert claims == {"sub": "ana", "exp": value["expires_at"], "aud": "chat"}


@pytest.mark.parametrize(
    ("environment", "says"),
    [({}, "--secret-file FILE, or set CHATWS_SECRET"), ({"CHATWS_SECRET": "short"}, "at least 32 bytes")],
)
def test_token_without_a_valid_secret_is_one_line(environment: dict[str, str], says: str) -> None:
    done = chatws("token", "5", **environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert says in done.stderr


# agents, kick


def test_agents_lists_agents_with_connections_and_addresses(server: Server) -> None:
    assert towards(server, "agents").stdout == "no agent is online\n"
    browser = server.browser()
    first = browser.auth(5)["connection_id"]
    server.agent(5)
    server.agent("ana")
    with server.backend() as backend:
        assert backend.request({"op": "status", "user_id": "ana", "status": "away"})["ok"]
    lines = towards(server, "agents").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["agent", "status", "connections", "addresses"],
        ["5", "online", "2", "127.0.0.1", "(2)"],
        ["ana", "away", "1", "127.0.0.1"],
        ["2", "agents,", "3", "connections"],
    ]
    (result,) = values(towards(server, "agents", "--json"))
    assert result["online"] == [5, "ana"]
    assert [agent["status"] for agent in result["agents"]] == ["online", "away"]
    assert result["agents"][0]["connections"][0] == {"id": first, "address": "127.0.0.1"}
    with server.backend() as backend:
        response = backend.request({"op": "presence"})
        assert response == {"ok": True, "online": [5, "ana"], "status": {"ana": "away"}}


def test_kick_closes_the_connections(server: Server) -> None:
    agent, banned = server.agent(5), server.agent(6)
    assert towards(server, "kick", "5", "--reason", "out").stdout == "user 5: closed 1 connection\n"
    assert agent.expect_close() == (4000, "out")
    assert values(towards(server, "kick", "6", "--ban", "--json")) == [{"user_id": 6, "closed": 1}]
    assert banned.expect_close()[0] == 4903
    assert towards(server, "kick", "7").stdout == "user 7: no connection\n"


# check


def test_chatws_check_and_twistd_check_print_the_same(tmp_path: Path, chatws_server: START) -> None:
    config = tmp_path / "chatws.toml"
    config.write_text("port = 8123\n")
    done = chatws("check", str(config))
    assert (done.returncode, done.stderr) == (0, "")
    server = chatws_server(start=False)
    twistd = [*server.command()[:1], "chatws", "--config", str(config), "--check"]
    theirs = subprocess.run(twistd, capture_output=True, text=True, env=clean_environment(), cwd=tmp_path, timeout=60)
    assert done.stdout == theirs.stdout
    (result,) = values(chatws("check", str(config), "--json"))
    assert result["browsers"] == ["tcp:8123:interface=127.0.0.1"]


def test_check_tells_a_wrong_configuration_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "chatws.toml"
    config.write_text("prot = 8123\n")
    done = chatws("check", str(config))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "port" in done.stderr
    assert chatws("check", str(tmp_path / "absent.toml")).returncode == 1


# tail


def test_tail_prints_the_events_of_an_agent(server: Server, background: Callable[..., Background]) -> None:
    tail = background("tail", "--url", server.ws_url, "--user", "5", "--conversation", "456")
    tail.expect_note("connected")
    with server.backend() as backend:
        backend.push("new_message", {**MESSAGE, "message": {"content": "\x1b[31m\x9b red"}})
        backend.push("paid", {"order": 77}, to={"user_id": 5})
    first, second = tail.expect_lines(2)
    assert first.split()[1:3] == ["new_message", "[456]"]
    assert "\x1b" not in first
    assert "\x9b" not in first
    assert second.endswith(' paid {"order":77}')
    assert tail.end() == 0


def test_tail_recovers_missed_events(
    chatws_server: START, background: Callable[..., Background], tmp_path: Path
) -> None:
    server = chatws_server("--broker", f"sqlite:///{tmp_path / 'log.db'}")
    tail = background(
        "tail", "--url", server.ws_url, "--user", "5", "--conversation", "1", "--conversation", "2", "--json"
    )
    tail.expect_note("connected")
    with server.backend() as backend:
        backend.push("new_message", {"conversation_id": 1, "message": {"id": 1}})
    tail.expect_lines(1)
    with server.backend() as backend:
        backend.request({"op": "disconnect", "user_id": 5})
        for number in (2, 3):
            backend.push("new_message", {"conversation_id": number - 1, "message": {"id": number}})
    tail.expect_note("connected again")
    server.stop()
    tail.expect_note("trying again")
    server.start()
    until(lambda: sum("connected again" in line for line in tail.err) == 2, "a second return")
    with server.backend() as backend:
        backend.push("new_message", {"conversation_id": 2, "message": {"id": 4}})
    seen = [json.loads(line) for line in tail.expect_lines(4)]
    assert [item["data"]["message"]["id"] for item in seen] == [1, 2, 3, 4]
    assert not any("missing" in line for line in tail.err)


def test_tail_ends_after_so_many_events(server: Server, background: Callable[..., Background]) -> None:
    tail = background("tail", "--url", server.ws_url, "--user", "5", "--count", "1", "--json")
    tail.expect_note("connected")
    with server.backend() as backend:
        backend.push("x", {"n": 1}, to={"user_id": 5})
        backend.push("x", {"n": 2}, to={"user_id": 5})
    assert tail.end(None) == 0
    assert [json.loads(line)["data"] for line in tail.out] == [{"n": 1}]


@pytest.mark.long
def test_tail_without_a_server_or_a_valid_token_fails_in_one_line(chatws_server: START) -> None:
    nobody = chatws("tail", "--user", "5", "--url", f"ws://127.0.0.1:{free_port()}/ws")
    assert (nobody.returncode, nobody.stdout, nobody.stderr.count("\n")) == (1, "", 1)
    assert "refused" in nobody.stderr
    server = chatws_server(CHATWS_SECRET=SECRET)
    done = chatws("tail", "--user", "5", "--url", server.ws_url, CHATWS_TOKEN="x.y.z")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "auth_failed: the token is malformed" in done.stderr
    wrong_path = chatws("tail", "--user", "5", "--url", server.ws_url.replace("/ws", "/elsewhere"))
    assert wrong_path.returncode == 1
    assert "404" in wrong_path.stderr


def test_tail_stops_when_its_reader_does(server: Server) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        command("tail", "--url", server.ws_url, "--user", "5"),
        stdout=writing,
        stderr=subprocess.PIPE,
        env=clean_environment(),
        text=True,
    )
    os.close(writing)
    try:
        assert process.stderr is not None
        assert "connected" in process.stderr.readline()
        with server.backend() as backend:
            backend.push("x", {}, to={"user_id": 5})
        assert process.wait(DEADLINE) == 1
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


# bench


@pytest.mark.long
def test_bench_measures(chatws_server: START) -> None:
    server = chatws_server(CHATWS_SECRET=SECRET)
    bench = ("bench", "--url", server.ws_url, "--connections", "30", "--messages", "20", "--rate", "0")
    (result,) = values(towards(server, *bench, "--json", CHATWS_SECRET=SECRET))
    assert (result["deliveries"], result["lost"], result["connections"]) == (600, 0, 30)
    assert 0 < result["p50_ms"] <= result["p99_ms"] <= result["max_ms"]
    without = towards(server, *bench)
    assert (without.returncode, without.stderr.count("\n")) == (1, 1)
    assert "auth_failed" in without.stderr


# comparison


def compare_words(legacy: Server, new: Server, *more: str, window: str = "20") -> tuple[str, ...]:
    urls = ("--legacy", f"ws://127.0.0.1:{legacy.port}", "--new", new.ws_url)
    return ("compare", *urls, "--user", "5", "--conversation", "456", "--window", window, "--json", *more)


@pytest.mark.long
def test_compare_finds_two_equal_servers_equal(
    server: Server, chatws_server: START, background: Callable[..., Background]
) -> None:
    legacy, new = server, chatws_server()
    comparison = background(*compare_words(legacy, new, "--seconds", "4"))
    comparison.expect_note("watching both")
    with legacy.backend() as old, new.backend() as young:
        for backend in (old, young):
            order = (1, 2) if backend is old else (2, 1)
            for number in order:
                backend.push("new_message", {"conversation_id": 456, "message": {"id": number}})
    assert comparison.end(None) == 0
    assert json.loads(comparison.out[-1]) == {"same": 2, "differences": 0}


@pytest.mark.long
def test_compare_reports_missing_extra_and_different_events(
    server: Server, chatws_server: START, background: Callable[..., Background]
) -> None:
    legacy, new = server, chatws_server()
    comparison = background(*compare_words(legacy, new, "--seconds", "4", "--ignore", "noise", window="5"))
    comparison.expect_note("watching both")
    with legacy.backend() as old, new.backend() as young:
        old.push("noise", {}, to="everyone")
        old.push("gone", {"n": 1}, to="everyone")
        young.push("new_message", {"conversation_id": 456, "message": {"id": "1"}})
        old.push("new_message", {"conversation_id": 456, "message": {"id": 1}})
        young.push("added", {}, to={"user_id": 5})
        for backend in (old, young):
            backend.push("same", {}, to="everyone")
    assert comparison.end(None) == 1
    *result, summary = [json.loads(line) for line in comparison.out]
    assert sorted((item["kind"], item["event"]) for item in result) == [
        ("different", "new_message"),
        ("extra", "added"),
        ("missing", "gone"),
    ]
    different = next(item for item in result if item["kind"] == "different")
    assert (different["legacy"]["message"], different["new"]["message"]) == ({"id": 1}, {"id": "1"})
    assert summary == {"same": 1, "differences": 3}


def test_an_interrupt_ends_compare_with_its_report(server: Server, background: Callable[..., Background]) -> None:
    comparison = background(*compare_words(server, server))
    comparison.expect_note("watching both")
    assert comparison.end(signal.SIGINT) == 0
    assert json.loads(comparison.out[-1]) == {"same": 0, "differences": 0}


def test_compare_fails_when_a_server_is_not_there(server: Server) -> None:
    done = chatws(
        "compare", "--legacy", f"ws://127.0.0.1:{free_port()}", "--new", server.ws_url, "--user", "5", "--seconds", "5"
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--legacy" in done.stderr
