"""Lines of JSON, lines about connections, and what a reload says."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

import chatws
from chatws.chat.connection_log import LINES, SECONDS, ConnectionLog, sanitize
from chatws.config.loader import LoadedConfig
from chatws.config.reload import RELOADABLE, Reloader, diff_config
from chatws.config.schema import Config
from chatws.errors import ConfigError
from chatws.runtime.log_levels import check_levels, is_debugged, is_logged, use_levels
from chatws.runtime.logging import LONGEST, format_event
from tests.fakes import FakeConnection


def line(**event: Any) -> dict[str, Any]:
    text = format_event({"log_time": 0.0, "log_level": LogLevel.warn, "log_namespace": "chatws.x", **event})
    assert "\n" not in text
    result: dict[str, Any] = json.loads(text)
    return result


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
    result = line(log_format="{text}", text='a\n{"level":"critical"}\r\u2028\ud800')
    assert result["text"].startswith('a\n{"level"')


def test_a_failure_is_one_json_field() -> None:
    try:
        raise ValueError("no good")
    except ValueError:
        result = line(log_format="it broke", log_failure=Failure())
    assert "ValueError: no good" in result["traceback"]
    assert result["message"] == "it broke"


def test_values_without_a_json_form_are_logged_as_text() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    result = line(log_format="x", where=Path("/x"), nan=float("nan"), broken=Broken(), level=LogLevel.info)
    assert result["where"] == "PosixPath('/x')"
    assert result["nan"] == "nan"
    assert result["broken"] == "(cannot be shown)"
    assert result["level"] == "warn"


def test_long_texts_are_cut() -> None:
    result = line(log_format="{text}", text="x" * (LONGEST + 1))
    assert result["text"] == result["message"] == "x" * LONGEST + "…"


def test_events_of_the_old_logging_have_their_message() -> None:
    result = line(
        log_format="{log_text}", log_text="as of old", message=("as of old",), system="-", isError=0, time=1.0
    )
    assert result["message"] == "as of old"
    assert set(result) == {"time", "level", "logger", "message"}


def test_the_node_is_in_each_line_of_json() -> None:
    text = format_event({"log_time": 0.0, "log_level": LogLevel.info, "log_format": "x"}, node="web1")
    assert json.loads(text)["node"] == "web1"


# --- levels ---------------------------------------------------------------------------------------------------------


def logged(namespace: str) -> list[str]:
    """The levels that are written for a module."""
    levels = [LogLevel.debug, LogLevel.info, LogLevel.warn, LogLevel.error, LogLevel.critical]
    return [level.name for level in levels if is_logged({"log_level": level, "log_namespace": namespace})]


class LevelTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.addCleanup(use_levels, Config().log_level)

    def test_a_module_has_the_level_of_its_longest_prefix(self) -> None:
        use_levels("warn, chatws.push=debug,chatws.push.handler=error")
        self.assertEqual(logged("chatws.chat.server"), ["warn", "error", "critical"])
        self.assertEqual(logged("chatws.push.connection.PushConnection")[0], "debug")
        self.assertEqual(logged("chatws.push.handler"), ["error", "critical"])
        self.assertEqual(logged("chatws.pusher"), ["warn", "error", "critical"])
        self.assertTrue(is_debugged("chatws.push.connection"))
        use_levels("chatws.chat=debug")
        self.assertFalse(is_debugged("chatws.push.connection"))
        self.assertEqual(logged("chatws.push")[0], "info", "without a level of its own, and none for all")

    def test_a_line_without_level_or_module_is_info(self) -> None:
        self.assertTrue(is_logged({}))
        use_levels("warn")
        self.assertFalse(is_logged({}))

    def test_invalid_levels_are_rejected_with_the_part_that_is_wrong(self) -> None:
        for text, wrong in (
            ("verbose", '"verbose"'),
            ("info,chatws=", '"chatws="'),
            ("chatws.push:debug", '"chatws.push:debug"'),
            ("=debug", '"=debug"'),
            ("a b=debug", '"a b=debug"'),
            ("info,warn", "two levels for all modules"),
            ("x=info,x=warn", "two levels for x"),
        ):
            with self.assertRaises(ConfigError) as raised:
                check_levels(text)
            self.assertIn(wrong, str(raised.exception))


# --- fields ---------------------------------------------------------------------------------------------------------

OPERATIONS = Path(__file__).parents[1] / "docs" / "operations.md"
LOGGING_METHODS = ("debug", "info", "warn", "error", "critical", "failure", "emit")


def fields_in_code() -> set[str]:
    """The names of the fields that log lines of chatws have."""
    names: set[str] = set()
    for path in Path(chatws.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "_log_fields":  # fields that several lines share
                keys = (key for part in ast.walk(node) if isinstance(part, ast.Dict) for key in part.keys)
                names |= {key.value for key in keys if isinstance(key, ast.Constant)}
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            method, owner = node.func.attr, ast.unparse(node.func.value)
            if method == "_write" or (method in LOGGING_METHODS and "log" in owner.lower()):
                names |= {keyword.arg for keyword in node.keywords if keyword.arg is not None}
    return names - {"failure"}  # a parameter of `Logger.failure`


def test_each_field_of_log_lines_is_documented_once() -> None:
    table = OPERATIONS.read_text("utf-8").partition("<!-- log fields -->")[2].partition("<!-- end -->")[0]
    cells = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    documented = [name.strip() for names, _ in cells for name in names.replace("`", "").split(",")]
    assert len(documented) == len(set(documented))
    assert set(documented) == fields_in_code()
    assert {kind.strip() for _, kind in cells} <= {"text", "number"}


# --- connections ----------------------------------------------------------------------------------------------------


class JournalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.connection_log = ConnectionLog(self.clock, lambda connection: f"n1-{connection.resource_id}")
        self.lines: list[str] = []
        self.connection = FakeConnection("203.0.113.9")

        def hear(event: Any) -> None:
            self.lines.append(formatEvent(event))

        globalLogPublisher.addObserver(hear)
        self.addCleanup(globalLogPublisher.removeObserver, hear)

    def test_a_log_line_names_connection_user_and_address(self) -> None:
        self.connection_log.closed(self.connection, 5, 4903, "{banned}\x1b[2J")  # type: ignore[arg-type]
        number = self.connection.resource_id
        self.assertEqual(
            self.lines, [f"connection n1-{number}, user 5, from 203.0.113.9: closed with 4903: {{banned}}?[2J"]
        )

    def test_a_flood_of_one_kind_is_summed_up_and_leaves_the_others_alone(self) -> None:
        for _ in range(LINES + 30):
            self.connection_log.rate_limited(self.connection, 5)  # type: ignore[arg-type]
        self.assertEqual(len(self.lines), LINES)
        self.connection_log.auth_failed(self.connection, None, "auth_failed", "no")  # type: ignore[arg-type]
        self.assertEqual(len(self.lines), LINES + 1)
        self.clock.advance(SECONDS)
        self.connection_log.rate_limited(self.connection, 5)  # type: ignore[arg-type]
        self.assertIn("30 more", self.lines[-2])
        self.assertIn("rate limited", self.lines[-1])

    def test_protocol_errors_share_one_throttle_key(self) -> None:
        for number in range(LINES + 10):
            self.connection.disconnect_reason = f"protocol error, opcode {number}"
            self.connection_log.ended_abnormally(self.connection, None)  # type: ignore[arg-type]
        self.assertEqual(len(self.lines), LINES)


def test_foreign_texts_are_truncated_and_stripped_of_control_characters() -> None:
    assert sanitize("a\nb\x1b[31m") == "a?b?[31m"
    assert sanitize("x" * 300) == "x" * 200 + "…"


# --- reload ---------------------------------------------------------------------------------------------------------


OLD = Config(secret=("o" * 32,))
SECRETS = (b"o" * 32,)


def test_diff_config_changes_only_reloadable_settings() -> None:
    change = diff_config(
        OLD, SECRETS, None, replace(OLD, message_rate=5.0, port=9000, broker="sqlite:////x/user:password@log")
    )
    assert change.lines == (
        "message_rate: 20 → 5",
        "port has changed: this needs a restart",
        "broker has changed: this needs a restart",
    )
    assert change.config == replace(OLD, message_rate=5.0)


def test_every_reloadable_setting_exists() -> None:
    assert all(hasattr(OLD, name) for name in RELOADABLE)


def test_diff_config_with_a_new_token_secret_does_not_show_it() -> None:
    change = diff_config(OLD, SECRETS, None, replace(OLD, secret=("n" * 32, "o" * 32)))
    assert change.token_secrets == (b"n" * 32, b"o" * 32)
    assert change.lines == ("the token secret has changed: 2 are valid now",)


def test_diff_config_without_the_token_secret_keeps_the_old_one() -> None:
    change = diff_config(OLD, SECRETS, None, replace(OLD, secret=()))
    assert change.token_secrets == SECRETS
    assert change.lines == ("auth_methods has changed: this needs a restart",)


def test_diff_config_with_a_new_changed_or_removed_push_secret_reports_it(tmp_path: Path) -> None:
    path = tmp_path / "push"
    path.write_text("one")
    path.chmod(0o600)
    new = replace(OLD, push_secret_file=str(path))
    stay = ": connected backends stay connected"
    assert diff_config(OLD, SECRETS, None, new).lines == (f"the push secret is set now{stay}",)
    assert diff_config(new, SECRETS, b"one", new).lines == ()
    path.write_text("two")
    change = diff_config(new, SECRETS, b"one", new)
    assert change.push_secret == b"two"
    assert change.lines == (f"the push secret has changed{stay}",)
    assert diff_config(new, SECRETS, b"two", OLD).lines == (f"the push secret is removed{stay}",)


def test_relative_paths_count_from_where_the_server_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def load() -> LoadedConfig:
        seen.append(Path.cwd())
        return LoadedConfig(OLD, {})

    (tmp_path / "started").mkdir()
    monkeypatch.chdir(tmp_path / "started")
    reloader = Reloader(load, lambda config: ())
    monkeypatch.chdir(tmp_path)
    assert reloader.reload()
    assert seen == [tmp_path / "started"]
    assert Path.cwd() == tmp_path


def test_a_configuration_that_cannot_be_read_is_not_taken() -> None:
    def load() -> LoadedConfig:
        raise ConfigError("port must be a number")

    taken: list[Config] = []
    assert not Reloader(load, lambda config: taken.append(config) or ()).reload()  # type: ignore[func-returns-value]
    assert not taken
