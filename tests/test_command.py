"""The command line of `chatws`: what it takes, and what it writes."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from chatws.cli.agents import table
from chatws.cli.bench import Measured, percentile
from chatws.cli.main import COMMANDS, main
from chatws.cli.output import Output, compact, count, printable
from chatws.cli.push import describe
from chatws.cli.spool import MAX_FILE, Spool, parse_line
from chatws.cli.tail import one_line, shown
from chatws.clients.blocking import OnlineAgent, OnlineConnection, PushError, PushResult, PushUnavailable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def usage(capsys: Any, *words: str) -> str:
    """The line that a wrong command line is answered with."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("\n") == 1
    return str(written.err)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_each_command_explains_itself_with_examples(name: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    page = capsys.readouterr().out
    assert f"usage: chatws {name}" in page
    assert f"  chatws {name} " in page
    assert "--json" in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("push", "x", "{}", "--to", "nobody"), "'nobody' must be one of conversation:5, agents-of:5"),
        (("push", "x", "{}", "--to", "users:5,,6"), "an id must have 1 to 128 characters"),
        (("push", "x", "{}", "--to", "everyone:5"), "must be one of"),
        (("push", "x"), "EVENT and JSON are missing"),
        (("push", "x", "{}", "--spool", "/tmp"), "neither an event nor its options"),
        (("token", "5", "--ttl", "0"), "0 is not between 1 and"),
        (("token", "5", "--ttl", "soon"), "'soon' is not a number"),
        (("tail", "--user", "5", "--url", "http://x/ws"), "is not a WebSocket URL"),
        (("tail", "--user", "5", "--url", "ws://x:port/"), "is not a WebSocket URL"),
        (("tail",), "required: --user"),
        (("kick",), "required: USER"),
        (("compare", "--new", "ws://x", "--user", "5"), "required: --legacy"),
        (("agents", "--pu", "x"), "unrecognized arguments: --pu"),
    ],
)
def test_a_wrong_command_line_is_answered_with_one_line(words: tuple[str, ...], says: str, capsys: Any) -> None:
    line = usage(capsys, *words)
    assert says in line
    assert line.endswith("--help\n")


@pytest.mark.parametrize(
    "address", ["nonsense", "127.0.0.1:99999", "127.0.0.1:0", "tls://127.0.0.1", "127.0.0.1:8081,", "unix:/x,8081"]
)
def test_an_invalid_push_address_is_one_line(address: str, capsys: Any) -> None:
    assert main(["agents", "--push", address]) == 1
    output = capsys.readouterr().err
    assert output.startswith("chatws agents: --push: ")
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PushResult(False, code="unavailable", message="no log").error(), "unavailable: no log; its /readyz says why"),
        (
            PushUnavailable("no response within 5 s: the server is silent"),
            "no response within 5 s: the server is silent; does chatws run, and is this ",
        ),
    ],
)
def test_a_rejection_is_distinguished_from_an_absent_server(
    error: PushError, says: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr("chatws.cli.agents.run", fail)
    assert main(["agents"]) == 1
    assert capsys.readouterr().err.startswith(f"chatws agents: {says}")


def test_a_world_readable_push_secret_is_rejected(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "secret"
    path.write_text("x" * 40)
    path.chmod(0o644)
    assert main(["agents", "--push-secret-file", str(path)]) == 1
    assert f"chmod 640 {path}" in capsys.readouterr().err


# output


def test_control_characters_of_events_are_escaped() -> None:
    assert printable("a\x1b[2J\x9b\u202eé\u2028") == "a\\u001b[2J\\u009b\\u202eé\\u2028"


def test_colours_and_progress_are_for_terminals() -> None:
    out, err = Terminal(), Terminal()
    output = Output(stdout=out, stderr=err)
    assert output.colour("red", "x") == "\x1b[31mx\x1b[0m"
    output.progress("half")
    output.line("found")
    assert err.getvalue() == "\rhalf\r    \r"
    assert Output(is_json=True, stdout=out, stderr=err).colour("red", "x") == "x"
    plain, quiet = io.StringIO(), io.StringIO()
    output = Output(stdout=plain, stderr=quiet)
    output.progress("half")
    output.line(output.colour("red", "found"))
    assert (plain.getvalue(), quiet.getvalue()) == ("found\n", "")


def test_half_a_surrogate_pair_can_be_shown() -> None:
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    Output(stdout=out).line("\ud800")
    out.seek(0)
    assert out.read() == "\\ud800\n"


def test_words() -> None:
    assert (count(1, "line"), count(2, "line"), count(0, "line")) == ("1 line", "2 lines", "0 lines")
    assert compact({"é": [1]}) == '{"é":[1]}'
    assert describe("x", PushResult(True, event_id="E:1", delivered=1)) == "x E:1 went to 1 connection"
    assert describe("x", PushResult(True, delivered=0)) == "x went to 0 connections"
    assert (
        describe("x", PushResult(True, event_id="E:1", duplicate=True))
        == "x E:1 had been sent before: nothing was sent"
    )


def test_table_of_an_agent_without_a_connection_has_its_line() -> None:
    connections = [OnlineConnection("a", "192.0.2.1"), OnlineConnection("b", "")]
    agents = [OnlineAgent(5, [], "away"), OnlineAgent("ana", connections)]
    assert table(agents).splitlines() == [
        "agent  status  connections  addresses",
        "5      away              0",
        "ana    online            2  192.0.2.1, unix",
        "2 agents, 2 connections",
    ]


def test_an_event_is_a_line_even_when_its_text_has_several() -> None:
    assert one_line('{"event":"x", "data":{}}', {"event": "x", "data": {}}) == '{"event":"x", "data":{}}'
    assert "\r" not in one_line('{"event":"x",\r"data":{}}', {"event": "x", "data": {}})
    result = shown({"event": "x", "data": {"conversation_id": "a\n"}}, Output())
    assert result.endswith(' x [a\\u000a] {"conversation_id":"a\\n"}')


# the spool


@pytest.mark.parametrize(
    ("text", "is_line"),
    [
        (b'{"event":"x","id":"a","ack":true,"data":{}}\n', True),
        (b'{"event":"x","id":7,"ack":true,"data":{}}\r\n', True),
        (b'{"event":"x","id":"a","ack":true}', True),  # the server's to refuse
        (b'{"event":"x","id":"a","ack":false}', False),
        (b'{"event":"x","id":"a"}', False),
        (b'{"event":"x","ack":true}', False),
        (b'{"event":"x","id":true,"ack":true}', False),
        (b'{"event":"x","id":null,"ack":true}', False),
        (b'{"op":"ping","id":"a","ack":true}', False),
        (b'{"event":"x","id":"a","ack":true}\n{"event":"x","id":"b","ack":true}\n', False),
        (b'["event"]', False),
        (b"", False),
        (b'{"event":"x","id":"\xff","ack":true}', False),
        (b'{"event":"x","id":"a","ack":true,"data":' + b"[" * 100_000, False),
    ],
)
def test_only_valid_spooled_lines_are_parsed(text: bytes, is_line: bool) -> None:
    line = parse_line("name", text)
    assert (line is not None) is is_line
    if line is not None:
        assert line.text == text.rstrip(b"\r\n") + b"\n"


@pytest.mark.parametrize("kind", ["fifo", "directory", "symlink", "symlink to nothing", "large file"])
def test_spool_entry_that_is_no_line_is_moved_and_the_next_one_is_read(tmp_path: Path, kind: str) -> None:
    entry = tmp_path / "1.json"
    good = b'{"event":"x","id":"a","ack":true}\n'
    match kind:
        case "fifo":
            os.mkfifo(entry)
        case "directory":
            entry.mkdir()
        case "symlink":
            (tmp_path / "target").write_bytes(good)
            entry.symlink_to(tmp_path / "target")
        case "symlink to nothing":
            entry.symlink_to(tmp_path / "nothing")
        case "large file":
            with entry.open("wb") as file:
                file.truncate(MAX_FILE + 1)
    (tmp_path / "2.json").write_bytes(good)
    warnings: list[str] = []
    spool = Spool(str(tmp_path), warnings.append)
    with spool.locked(1.0):
        assert [line.name for line in spool.read_batch()] == ["2.json"]
        assert [line.name for line in spool.read_batch()] == ["2.json"]
    assert len(warnings) == 1
    assert spool.names() == ["2.json"]
    assert os.listdir(tmp_path / "refused") == ["1.json"]


# bench


def test_percentiles() -> None:
    assert [percentile([1.0, 2.0, 3.0, 4.0], item) for item in (50, 99, 100, 0)] == [2.0, 4.0, 4.0, 1.0]
    assert percentile([], 50) == 0.0


def test_lost_events_are_reported() -> None:
    measured = Measured(2, 3, [0.001] * 5, 0.0, 1.0)
    assert measured.value()["lost"] == 1
    assert "1 LOST" in measured.text()
