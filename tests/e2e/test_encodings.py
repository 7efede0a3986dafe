"""Output in locales that cannot express it: C, ISO-8859-1, and standard streams with an encoding of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Server, twistd_command
from tests.e2e.process import clean_environment
from tests.e2e.wire import until
from tests.variants import others_long

Start = Callable[..., Server]

#: Python does not help itself in the first: it neither chooses another locale nor UTF-8 (PEP 538, PEP 540).
LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ISO-8859-1": {"PYTHONIOENCODING": "iso-8859-1"},
    "ASCII, strict": {"PYTHONIOENCODING": "ascii:strict"},
    "UTF-8": {"PYTHONIOENCODING": "utf-8"},
}
ENCODINGS = {"C": "ascii", "ISO-8859-1": "iso-8859-1", "ASCII, strict": "ascii", "UTF-8": "utf-8"}

locales = pytest.mark.parametrize("locale", others_long(LOCALES))
#: In Latin-1, in no Latin-1, and beyond the BMP.
WORDS = "olá Ж 😀"


def escaped(text: str, locale: str) -> str:
    """`text` as it is written in that locale."""
    encoding = ENCODINGS[locale]
    return text.encode(encoding, "backslashreplace").decode(encoding)


def run(words: list[str], locale: str, directory: Path) -> subprocess.CompletedProcess[bytes]:
    environment = {**clean_environment(), **LOCALES[locale]}
    for name in ("PYTHONIOENCODING", "PYTHONUTF8"):
        if name not in LOCALES[locale]:
            environment.pop(name, None)
    return subprocess.run(words, cwd=directory, env=environment, capture_output=True, timeout=60, check=False)


def chatws(*words: str) -> list[str]:
    return [sys.executable, "-m", "chatws.cli", *words]


@locales
@pytest.mark.parametrize(
    "words",
    [
        [*twistd_command(), "chatws", "--help"],
        [*twistd_command(), "chatws", "--check"],
        chatws("--help"),
        chatws("tail", "--help"),
        chatws("push", "--help"),
        chatws("bench", "--help"),
    ],
    ids=lambda words: " ".join(words[-2:]),
)
def test_the_pages_for_people_are_written(words: list[str], locale: str, tmp_path: Path) -> None:
    done = run(words, locale, tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(ENCODINGS[locale])


@locales
def test_an_operator_s_error_is_one_line(locale: str, tmp_path: Path) -> None:
    for words in (
        [*twistd_command(), "chatws", "--broker", WORDS],
        chatws("check", WORDS),
        chatws("agents", "--push", WORDS),
    ):
        done = run(words, locale, tmp_path)
        assert done.returncode == (78 if words[-2] == "--broker" else 1)
        (line,) = done.stderr.splitlines()
        assert line.startswith((b"twistd chatws: ", b"chatws "))


@locales
def test_the_agents_online_are_listed(locale: str, server: Server, tmp_path: Path) -> None:
    address = ["--push", f"127.0.0.1:{server.push_port}"]
    with server.agent(WORDS):
        for_people = run(chatws("agents", *address), locale, tmp_path)
        for_programs = run(chatws("agents", *address, "--json"), locale, tmp_path)
    assert (for_people.returncode, for_people.stderr) == (0, b"")
    assert escaped(WORDS, locale) in for_people.stdout.decode(ENCODINGS[locale])
    # JSON is for programs, which expect UTF-8
    assert json.loads(for_programs.stdout)["online"] == [WORDS]


@locales
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_tail_prints_events_in_any_locale(options: list[str], locale: str, server: Server, tmp_path: Path) -> None:
    environment = {**clean_environment(), **LOCALES[locale]}
    words = chatws("tail", "--user", "5", "--conversation", "456", "--url", server.ws_url, "--count", "1", *options)
    tail = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    data = {"conversation_id": 456, "message": {"id": 1, "content": WORDS}}
    with server.backend() as backend:
        until(lambda: backend.push("new_message", data)["delivered"], "tail to subscribe")
    output, complaints = tail.communicate(timeout=60)
    assert tail.returncode == 0, complaints
    assert b"Traceback" not in complaints
    if options:
        assert json.loads(output)["data"]["message"]["content"] == WORDS
    else:
        assert escaped(WORDS, locale) in output.decode(ENCODINGS[locale])


@locales
@pytest.mark.parametrize("log_format", others_long(["text", "json"]))
@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "workers"])
def test_no_line_of_the_log_is_lost(
    workers: tuple[str, ...], log_format: str, locale: str, chatws_server: Start, tmp_path: Path
) -> None:
    settings = tmp_path / "chatws.toml"
    settings.write_text("max_subscriptions = 1\n")
    server = chatws_server(
        "--config", str(settings), "--log-format", log_format, *workers, start=False, **LOCALES[locale]
    )
    server.start()
    # "1 → 2" with an arrow, and an error that quotes the file
    settings.write_text("max_subscriptions = 2\n")
    os.kill(server.pid, signal.SIGHUP)
    expected = "max_subscriptions: 1 → 2"
    until(lambda: any(expected in line for line in messages(server, log_format, locale, expected)), expected)
    settings.write_text(f'broker = "{WORDS}"\n')
    os.kill(server.pid, signal.SIGHUP)
    until(lambda: "the old one stays" in server.log, "the refusal")


def messages(server: Server, log_format: str, locale: str, expected: str) -> list[str]:
    """The log's lines, decoded with the known encoding and with escapes resolved."""
    data = server.log_path.read_bytes()
    if log_format == "json":
        return [json.loads(line)["message"] for line in data.splitlines() if line.startswith(b"{")]
    text = data.decode(ENCODINGS[locale])
    return [line.replace(escaped(expected, locale), expected) for line in text.splitlines()]


@locales
def test_a_late_start_error_is_printed_in_any_locale(locale: str, tmp_path: Path) -> None:
    # found when the log is opened: by then the reactor runs
    path = tmp_path / WORDS
    path.mkdir()
    (path / "log.db").mkdir()
    words = [*twistd_command(), "-n", "--pidfile=", "chatws", "--port", "0", "--push-port", "0"]
    done = run([*words, "--broker", f"sqlite:///{path}/log.db"], locale, tmp_path)
    assert done.returncode == 78
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"twistd chatws: " in done.stderr
