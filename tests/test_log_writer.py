"""Where log lines go, and what becomes of them when the output blocks, fails or cannot express them."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import LogLevel, formatEvent, globalLogPublisher

from chatws.errors import ConfigError
from chatws.runtime import log_writer
from chatws.runtime.log_writer import FileOutput, LogLine, LogWriter, StreamOutput, dropped_lines
from chatws.runtime.logging import open_log
from tests.e2e.wire import until

EVENT = {"log_format": "{text}", "log_time": 0.0, "log_level": LogLevel.warn, "log_namespace": "chatws.x"}
#: Beyond Latin-1, beyond the BMP, and half a surrogate pair.
TEXT = "olá Ж 😀 \ud800"


class Gate:
    """An output that blocks until it is opened, and fails while `error` is set."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.error: OSError | None = None
        self.lines: list[str] = []
        self.reopened_after: list[int] = []

    def write(self, lines: Sequence[LogLine]) -> None:
        self.entered.set()
        assert self.open.wait(20)
        if self.error is not None:
            raise self.error
        self.lines += [line.data.decode() for line in lines]

    def reopen(self) -> None:
        self.reopened_after.append(len(self.lines))


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What is logged meanwhile."""
    result: list[str] = []

    def hear(event: Any) -> None:
        result.append(formatEvent(event))

    globalLogPublisher.addObserver(hear)
    yield result
    globalLogPublisher.removeObserver(hear)


def test_a_blocked_output_blocks_no_writer_and_counts_dropped_lines(gate: Gate, notes: list[str]) -> None:
    writer = LogWriter(gate, limit=1000)
    before = dropped_lines()
    writer.start()
    writer.write("first\n")
    assert gate.entered.wait(20)  # from here on nothing can be written
    for number in range(1000):
        writer.write(f"{number:09}\n")
    assert dropped_lines() - before == 900
    gate.open.set()
    until(lambda: notes, "the number of lines that were dropped")
    assert notes == ["900 log lines were dropped: the log output was blocked"]
    writer.write("again\n")
    writer.finish()
    assert gate.lines == ["first\n", *(f"{number:09}\n" for number in range(100)), "again\n"]


def test_lines_are_dropped_until_the_queue_is_half_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    class Steps:
        """An output that writes a batch for each permit."""

        encoding = "utf-8"

        def __init__(self) -> None:
            self.permits = threading.Semaphore(0)
            self.batches: list[int] = []

        def write(self, lines: Sequence[LogLine]) -> None:
            self.batches.append(len(lines))
            assert self.permits.acquire(timeout=20)

        def reopen(self) -> None:
            raise AssertionError("nobody asked for it")

    monkeypatch.setattr(log_writer, "BATCH", 40)
    steps = Steps()
    writer = LogWriter(steps, limit=100)
    writer.start()
    before = dropped_lines()
    for _ in range(11):
        writer.write("123456789\n")
        until(lambda: steps.batches, "the first line to be written")  # the other ten wait behind it
    assert dropped_lines() == before
    for batches, dropped in ((1, 1), (2, 2), (3, 2)):  # ten lines wait, six, two
        until(lambda batches=batches: len(steps.batches) == batches, "a batch")
        writer.write("123456789\n")
        assert dropped_lines() - before == dropped
        steps.permits.release()
    assert steps.batches[:3] == [1, 4, 4]
    steps.permits.release(10)
    writer.finish()


def test_a_line_longer_than_the_bound_is_written_all_the_same(gate: Gate) -> None:
    gate.open.set()
    writer = LogWriter(gate, limit=10)
    writer.write("x" * 100)
    writer.finish()
    assert gate.lines == ["x" * 100]


def test_a_failing_output_is_retried_and_its_losses_are_logged(gate: Gate, notes: list[str]) -> None:
    writer = LogWriter(gate)
    gate.error = OSError(28, "No space left on device")
    gate.open.set()
    before = dropped_lines()
    writer.start()
    for number in range(3):
        writer.write(f"lost {number}\n")
        until(lambda number=number: dropped_lines() == before + number + 1, "the line to be lost")  # type: ignore[misc]
    assert notes == []  # it would be lost too
    gate.error = None
    writer.write("kept\n")
    until(lambda: notes, "the losses to be said")
    assert notes == ["3 log lines were dropped: the log output failed (No space left on device)"]
    writer.finish()
    assert gate.lines == ["kept\n"]


def test_the_end_waits_for_the_output_but_not_for_ever(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "FINISH_TIMEOUT", 0.2)
    writer = LogWriter(gate)
    writer.write("held\n")
    writer.finish()
    assert gate.lines == []
    writer.write("held too\n")  # the time is up: it does not wait again


def test_lines_are_written_when_the_interpreter_starts_no_thread_any_more(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.12 and later, in functions of `atexit`: a server that could not start has no thread yet."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    gate.open.set()
    writer = LogWriter(gate)
    writer.write("old\n")
    writer.reopen()
    writer.write("new\n")
    writer.finish()
    writer.write("after the end\n")
    assert gate.lines == ["old\n", "new\n", "after the end\n"]
    assert gate.reopened_after == [1]


def test_the_file_is_opened_again_behind_the_lines_that_wait(gate: Gate) -> None:
    writer = LogWriter(gate)
    for item in ("old\n", "older\n"):
        writer.write(item)
    writer.reopen()
    writer.write("new\n")
    gate.open.set()
    writer.finish()
    assert gate.reopened_after == [2]
    assert gate.lines == ["old\n", "older\n", "new\n"]


def test_a_file_that_was_moved_away_is_opened_again(tmp_path: Path) -> None:
    log, moved = tmp_path / "log", tmp_path / "log.1"
    log.write_text("before\n")
    writer = LogWriter(FileOutput(str(log)))
    writer.write("old\n")
    log.rename(moved)
    writer.reopen()
    writer.write("new\n")
    writer.finish()
    assert (moved.read_text(), log.read_text()) == ("before\nold\n", "new\n")


def test_reopen_that_fails_keeps_the_old_file(tmp_path: Path, notes: list[str]) -> None:
    (tmp_path / "logs").mkdir()
    writer = LogWriter(FileOutput(str(tmp_path / "logs" / "log")))
    (tmp_path / "logs").rename(tmp_path / "gone")
    writer.reopen()
    writer.write("kept\n")
    writer.finish()
    assert (tmp_path / "gone" / "log").read_text() == "kept\n"
    (note,) = notes
    assert note.startswith(f"cannot reopen the log {tmp_path}/logs/log: No such file or directory; ")


def test_a_named_pipe_without_a_reader_blocks_no_writer(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = LogWriter(FileOutput(str(path)))
    writer.write("hello\n")
    reader = os.open(path, os.O_RDONLY)
    writer.finish()
    assert os.read(reader, 100) == b"hello\n"
    os.close(reader)


# --- encodings ------------------------------------------------------------------------------------------------------


def stream(encoding: str) -> tuple[io.TextIOWrapper, io.BytesIO]:
    """A standard stream in memory, and its bytes."""
    buffer = io.BytesIO()
    return io.TextIOWrapper(buffer, encoding=encoding, errors="strict"), buffer


@pytest.mark.parametrize(
    ("encoding", "output"),
    [
        ("utf-8", "olá Ж 😀 \\ud800".encode()),
        ("iso-8859-1", b"ol\xe1 \\u0416 \\U0001f600 \\ud800"),
        ("ascii", b"ol\\xe1 \\u0416 \\U0001f600 \\ud800"),
    ],
)
def test_text_is_written_in_every_encoding(encoding: str, output: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper, buffer = stream(encoding)
    monkeypatch.setattr("sys.stdout", wrapper)
    log = open_log({"nodaemon": True}, "text")
    log({**EVENT, "text": TEXT})
    log.writer.finish()
    assert output in buffer.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "ascii", "utf-16"])
def test_json_stays_json_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper, buffer = stream(encoding)
    monkeypatch.setattr("sys.stdout", wrapper)
    log = open_log({"nodaemon": True}, "json")
    log({**EVENT, "text": TEXT[:-1]})
    log.writer.finish()
    line = buffer.getvalue().decode(encoding)
    assert json.loads(line)["text"] == TEXT[:-1]
    assert encoding == "utf-8" or line.isascii()


def test_a_log_file_is_utf_8_and_takes_everything(tmp_path: Path) -> None:
    for log_format in ("text", "json"):
        log = open_log({"nodaemon": True, "logfile": str(tmp_path / log_format)}, log_format)
        log({**EVENT, "text": TEXT})
        log.writer.finish()
        assert "olá Ж 😀" in (tmp_path / log_format).read_text("utf-8")


def test_syslog_gets_a_message_a_line_with_the_level_s_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    import syslog

    output: list[tuple[int, str]] = []
    monkeypatch.setattr(syslog, "openlog", lambda prefix: output.append((-1, prefix)))
    monkeypatch.setattr(syslog, "syslog", lambda priority, line: output.append((priority, line)))
    log = open_log({"nodaemon": True, "syslog": True, "prefix": "chat"}, "text")
    log({**EVENT, "text": "one\ntwo\0 \ud800"})
    log.writer.finish()
    assert output == [(-1, "chat"), (4, "[chatws.x#warn] one"), (4, "\ttwo? \\ud800")]
    log = open_log({"nodaemon": True, "syslog": True}, "json")
    log({**EVENT, "text": "hello", "log_level": LogLevel.error})
    log.writer.finish()
    assert (output[-1][0], json.loads(output[-1][1])["message"]) == (3, "hello")


def test_a_process_without_standard_output_logs_to_nowhere() -> None:
    writer = LogWriter(StreamOutput(None))
    writer.write("hello\n")
    writer.finish()


# --- twistd's options -----------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--logfile: cannot open .*/none/log: No such file or directory"):
        open_log({"logfile": str(tmp_path / "none" / "log")}, "text")
