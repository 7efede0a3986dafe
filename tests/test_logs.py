"""Lines of JSON, lines about connections, and what a reload says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chatws.chat.journal import LINES, SECONDS, Journal, clean
from chatws.config import Config
from chatws.configure import Loaded
from chatws.errors import OperatorError
from chatws.logs import LONGEST, format_event, observer_for
from chatws.reload import RELOADABLE, Reloader, compare
from tests.fakes import FakeConnection


def line(**event: Any) -> dict[str, Any]:
    text = format_event({"log_time": 0.0, "log_level": LogLevel.warn, "log_namespace": "chatws.x", **event})
    assert "\n" not in text
    found: dict[str, Any] = json.loads(text)
    return found


# --- JSON -----------------------------------------------------------------------------------------------------------


def test_an_event_is_one_object_with_its_fields() -> None:
    assert line(log_format="{count} of {user}", count=3, user="Zoë", ratio=0.5, on=True, none=None) == {
        "time": "1970-01-01T00:00:00.000Z",
        "level": "warn",
        "logger": "chatws.x",
        "message": "3 of Zoë",
        "count": 3,
        "user": "Zoë",
        "ratio": 0.5,
        "on": True,
        "none": None,
    }


def test_line_breaks_and_half_characters_cannot_end_a_line() -> None:
    found = line(log_format="{text}", text='a\n{"level":"critical"}\r\u2028\ud800')
    assert found["text"].startswith('a\n{"level"')


def test_a_failure_is_one_field() -> None:
    try:
        raise ValueError("no good")
    except ValueError:
        found = line(log_format="it broke", log_failure=Failure())
    assert "ValueError: no good" in found["traceback"]
    assert found["message"] == "it broke"


def test_what_json_has_no_word_for_is_told_as_text() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    found = line(log_format="x", where=Path("/x"), nan=float("nan"), broken=Broken(), level=LogLevel.info)
    assert found["where"] == "PosixPath('/x')"
    assert found["nan"] == "nan"
    assert found["broken"] == "(cannot be shown)"
    assert found["level"] == "warn"


def test_long_texts_are_cut() -> None:
    found = line(log_format="{text}", text="x" * (LONGEST + 1))
    assert found["text"] == found["message"] == "x" * LONGEST + "…"


def test_events_of_the_old_logging_have_their_message() -> None:
    found = line(log_format="{log_text}", log_text="as of old", message=("as of old",), system="-", isError=0, time=1.0)
    assert found["message"] == "as of old"
    assert set(found) == {"time", "level", "logger", "message"}


def test_without_a_file_a_foreground_server_writes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    observer_for({"nodaemon": True, "logfile": None})({"log_format": "hello", "log_time": 0.0})
    assert json.loads(capsys.readouterr().out)["message"] == "hello"


def test_with_a_file_it_writes_there(tmp_path: Path) -> None:
    import signal

    before = signal.getsignal(signal.SIGUSR1)
    try:
        observer_for({"nodaemon": True, "logfile": str(tmp_path / "log")})({"log_format": "hello", "log_time": 0.0})
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert json.loads((tmp_path / "log").read_text())["message"] == "hello"


# --- connections ----------------------------------------------------------------------------------------------------


class JournalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.journal = Journal(self.clock)
        self.lines: list[str] = []
        self.connection = FakeConnection("203.0.113.9")

        def hear(event: Any) -> None:
            self.lines.append(formatEvent(event))

        globalLogPublisher.addObserver(hear)
        self.addCleanup(globalLogPublisher.removeObserver, hear)

    def test_a_line_says_which_connection_whose_and_from_where(self) -> None:
        self.journal.closed(self.connection, 5, 4903, "{banned}\x1b[2J")  # type: ignore[arg-type]
        number = self.connection.resource_id
        self.assertEqual(
            self.lines, [f"connection {number}, user 5, from 203.0.113.9: closed with 4903: {{banned}}?[2J"]
        )

    def test_a_flood_of_one_kind_is_summed_up_and_leaves_the_others_alone(self) -> None:
        for _ in range(LINES + 30):
            self.journal.rate_limited(self.connection, 5)  # type: ignore[arg-type]
        self.assertEqual(len(self.lines), LINES)
        self.journal.refused(self.connection, None, "auth_failed", "no")  # type: ignore[arg-type]
        self.assertEqual(len(self.lines), LINES + 1)
        self.clock.advance(SECONDS)
        self.journal.rate_limited(self.connection, 5)  # type: ignore[arg-type]
        self.assertIn("30 more", self.lines[-2])
        self.assertIn("rate limited", self.lines[-1])

    def test_breaches_of_the_protocol_are_one_kind_whatever_they_say(self) -> None:
        for number in range(LINES + 10):
            self.connection.ended = f"protocol error, opcode {number}"
            self.journal.ended(self.connection, None)  # type: ignore[arg-type]
        self.assertEqual(len(self.lines), LINES)


def test_texts_of_others_are_cut_and_obey_nobody() -> None:
    assert clean("a\nb\x1b[31m") == "a?b?[31m"
    assert clean("x" * 300) == "x" * 200 + "…"


# --- reload ---------------------------------------------------------------------------------------------------------


OLD = Config(secret=("o" * 32,))
SECRETS = (b"o" * 32,)


def test_what_can_be_changed_is_and_what_cannot_keeps_its_value() -> None:
    change = compare(OLD, SECRETS, None, replace(OLD, rate=5.0, port=9000, broker="sqlite:////x/user:password@log"))
    assert change.lines == (
        "rate: 20 → 5",
        "port has changed too: that takes a restart",
        "broker has changed too: that takes a restart",
    )
    assert change.config == replace(OLD, rate=5.0)


def test_every_reloadable_setting_exists() -> None:
    assert all(hasattr(OLD, name) for name in RELOADABLE)


def test_a_secret_is_told_of_and_never_told() -> None:
    change = compare(OLD, SECRETS, None, replace(OLD, secret=("n" * 32, "o" * 32)))
    assert change.ticket_secrets == (b"n" * 32, b"o" * 32)
    assert change.lines == ("the ticket secret has changed; 2 are good now",)


def test_without_its_secret_tickets_stay_as_they_are() -> None:
    change = compare(OLD, SECRETS, None, replace(OLD, secret=()))
    assert change.ticket_secrets == SECRETS
    assert change.lines == ("auth has changed too: that takes a restart",)


def test_a_push_secret_comes_changes_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "push"
    path.write_text("one")
    path.chmod(0o600)
    new = replace(OLD, push_secret_file=str(path))
    stay = "; backends that are connected stay"
    assert compare(OLD, SECRETS, None, new).lines == (f"the push secret is asked for now{stay}",)
    assert compare(new, SECRETS, b"one", new).lines == ()
    path.write_text("two")
    change = compare(new, SECRETS, b"one", new)
    assert change.push_secret == b"two"
    assert change.lines == (f"the push secret has changed{stay}",)
    assert compare(new, SECRETS, b"two", OLD).lines == (f"the push secret is no longer asked for{stay}",)


def test_relative_paths_count_from_where_the_server_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def load() -> Loaded:
        seen.append(Path.cwd())
        return Loaded(OLD, {})

    (tmp_path / "started").mkdir()
    monkeypatch.chdir(tmp_path / "started")
    reloader = Reloader(load, lambda config: ())
    monkeypatch.chdir(tmp_path)
    assert reloader.reload()
    assert seen == [tmp_path / "started"]
    assert Path.cwd() == tmp_path


def test_a_configuration_that_cannot_be_read_is_not_taken() -> None:
    def load() -> Loaded:
        raise OperatorError("port must be a number")

    taken: list[Config] = []
    assert not Reloader(load, lambda config: taken.append(config) or ()).reload()  # type: ignore[func-returns-value]
    assert not taken
