"""The command line: its options, its help, `--check`, and one line for whatever is wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.application.service import IService, IServiceMaker
from twisted.internet import reactor
from twisted.plugin import getPlugins

import chatws
from chatws.cli.twistd import Options, help_page, makeService, without_secrets
from chatws.config.names import environment_name, flag_name
from chatws.config.schema import Config, settings


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CHATWS_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        first.listen(1)
        yield first.getsockname()[1]


def parsed(*words: str) -> Config:
    options = Options()
    options.parseOptions(words)
    assert options.loaded is not None
    return options.loaded.config


def ended(start: Callable[[], object]) -> tuple[str, Any]:
    """The one line that a start prints before it ends, and its exit status."""
    with pytest.raises(SystemExit) as left, redirect_stderr(StringIO()) as printed:
        start()
    (line,) = printed.getvalue().splitlines()
    return line, left.value.code


def complaint(*words: str) -> str:
    """The line about a configuration error."""
    line, status = ended(lambda: parsed(*words))
    assert status == 78
    return line


def check(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        parsed(*words, "--check")
    assert left.value.code == 0
    return capsys.readouterr().out


# --- options --------------------------------------------------------------------------------------------------------


def test_the_plugin_is_found() -> None:
    makers = {maker.tapname: maker for maker in getPlugins(IServiceMaker)}
    assert makers["chatws"].module == "chatws.cli.twistd"


def test_no_options_are_the_defaults() -> None:
    assert parsed() == Config()


def test_each_setting_has_an_option_except_the_secret() -> None:
    for name, (setting, default, _) in settings().items():
        option = flag_name(name)
        if setting.environment_only:
            assert f"{option} is not an option" in complaint(option, "x")
        elif isinstance(default, bool):
            assert getattr(parsed(option), name) is True
            assert getattr(parsed(option, flag_name(f"no_{name}")), name) is False
        elif setting.choices:
            for choice in setting.choices:
                assert getattr(parsed(option, choice), name) == choice
            assert (
                complaint(option, "/a") == f'twistd chatws: {option} must be {" or ".join(setting.choices)}, not "/a"'
            )
        elif name == "pusher_apps":
            assert getattr(parsed(option, '{"id": "1"}'), name) == ('{"id": "1"}',)
        elif isinstance(default, tuple) and name != "audience":
            assert getattr(parsed(option, "/a", option, "/b"), name) == ("/a", "/b")
        elif isinstance(default, int | float):
            assert getattr(parsed(option, "7"), name) == 7
        elif name != "audience":
            assert getattr(parsed(f"{option}=/a"), name) == "/a"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--drain-seconds", "5"), "--drain-seconds is now --drain-timeout"),
        (("--presence-lease=5",), "--presence-lease is now --presence-ttl"),
        (("--ticket-audience", "x"), "--ticket-audience is now --token-audience"),
        (("--durable",), "--durable is now --sqlite-synchronous full"),
        (("--push-queue", "5"), "--push-queue has been removed: clients repeat an unacknowledged push with its key"),
    ],
)
def test_a_former_flag_is_one_line_with_the_new_name(words: tuple[str, ...], line: str) -> None:
    assert complaint(*words) == f"twistd chatws: {line}"


def test_an_unknown_variable_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATWS_AUTH", "trust")
    assert complaint() == "twistd chatws: CHATWS_AUTH is now CHATWS_AUTH_METHODS"


def test_the_environment_and_a_file_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chatws.toml").write_text('[chat.audience]\npaid = "everyone"\n')
    monkeypatch.setenv("CHATWS_MESSAGE_RATE", "5")
    assert parsed("--config", str(tmp_path / "chatws.toml")) == Config(message_rate=5.0, audience=("paid=everyone",))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--prot", "1"], "twistd chatws: there is no option --prot; did you mean --port?"),
        (["--no-demos"], "twistd chatws: there is no option --no-demos; did you mean --no-demo?"),
        (["--port"], "twistd chatws: option --port requires argument"),
        (["--demo=yes"], "twistd chatws: option --demo must not have an argument"),
        (["--port", "http"], 'twistd chatws: --port must be a whole number from 0 to 65535, not "http"'),
        (["start"], 'twistd chatws: only options are expected, not "start"'),
        (["--config", "/nowhere"], "twistd chatws: cannot read /nowhere: No such file or directory"),
        (["--check", "--listen", "tpc:1"], "twistd chatws: --listen"),
        (["--check", "--interface", "0.0.0.0"], "twistd chatws: --interface 0.0.0.0 is reachable from other hosts"),
    ],
)
def test_a_wrong_command_line_is_one_line(words: list[str], line: str) -> None:
    assert complaint(*words).startswith(line)


# --- help -----------------------------------------------------------------------------------------------------------


def test_help_names_every_option_and_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parsed("--help")
    assert left.value.code == 0
    page = capsys.readouterr().out
    words = " ".join(page.split())
    for name, (setting, default, _) in settings().items():
        assert (environment_name(name) if setting.environment_only else flag_name(name)) in page
        assert " ".join(setting.help.split()) in words
        if setting.zero_meaning:
            assert " ".join(setting.zero_meaning.split()) in words
        if not isinstance(default, bool) and default:
            assert str(default if not isinstance(default, tuple) else default[0]).removesuffix(".0") in words
    assert "Examples:" in page


@pytest.mark.parametrize("page", ["--help", "--check"])
def test_a_closed_pipe_on_the_output_is_no_traceback(page: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", f"from chatws.cli.twistd import Options; Options().parseOptions([{page!r}])"]
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("columns", [20, 80, 300])
def test_help_fits_the_terminal(columns: int) -> None:
    listed, _, examples = help_page(columns).partition("Examples:")
    assert max(map(len, listed.splitlines())) < max(60, min(columns, 100))
    assert max(map(len, examples.splitlines())) <= 120


def test_the_version_is_chatws_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parsed("--version")
    assert left.value.code == 0
    assert capsys.readouterr().out == f"chatws {chatws.__version__}\n"


# --- check ----------------------------------------------------------------------------------------------------------


def test_check_prints_the_settings_with_their_sources(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "chatws.toml"
    file.write_text("[limits]\nmessage_rate = 5\n")
    monkeypatch.setenv("CHATWS_PUSH_PORT", "9999")
    report = check(capsys, "--config", str(file), "--port", "9000", "--demo")
    lines = [" ".join(line.split()) for line in report.splitlines()]
    for expected in (
        f"chatws {chatws.__version__} would run:",
        "browsers tcp:9000:interface=127.0.0.1",
        "backends tcp:9999:interface=127.0.0.1",
        "auth trust",
        "database none",
        "events memory",
        "port = 9000 --port",
        "push_port = 9999 CHATWS_PUSH_PORT",
        f"message_rate = 5 message_rate in {file}",
        "demo = true --demo",
        'interface = "127.0.0.1"',
        "--auth trust accepts any user_id: clients are not authenticated",
    ):
        assert expected in lines


def test_check_names_every_setting_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = check(capsys)
    for name in settings():
        assert report.count(f"\n  {name} = ") == 1


def test_check_shows_no_secret(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATWS_SECRET", "hunter2" * 5)
    monkeypatch.setenv("CHATWS_DATABASE", "postgresql://chat:hunter2@db:5433/shop?password=hunter2")
    report = check(capsys, "--auth-url", "http://app/whoami?key=hunter2", "--auth", "token")
    assert "hunter2" not in report
    assert "database  postgresql://db:5433/shop" in report
    assert "secret = (not shown)" in report


def test_check_shows_no_secret_of_the_database_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "database"
    path.write_text("postgresql://chat:hunter2@/shop\n")
    path.chmod(0o600)
    report = check(capsys, "--database-file", str(path))
    assert "hunter2" not in report
    assert "auth      database" in report


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("memory", "memory"),
        ("sqlite:////var/lib/log.db", "sqlite:////var/lib/log.db"),
        ("postgresql://u:p@h/d?sslmode=require", "postgresql://h/d"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("http://h:port/", "(not shown)"),
        ("postgresql://u:12/3@h/d", "(not shown)"),
        ("postgresql://u:12#3@h/d", "(not shown)"),
    ],
)
def test_urls_are_printed_without_secrets(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_check_binds_nothing(capsys: pytest.CaptureFixture[str], taken: int) -> None:
    check(capsys, "--port", str(taken))


# --- the service ----------------------------------------------------------------------------------------------------


def options_for(*words: str) -> Options:
    options = Options()
    options.parseOptions(words)
    return options


@pytest.fixture
def _same_signals() -> Iterator[None]:
    """What handles signals afterwards is what did before."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("_same_signals")
def test_the_options_become_a_service() -> None:
    assert IService.providedBy(makeService(options_for("--port", "0", "--push-port", "0")))


@pytest.mark.usefixtures("_same_signals")
@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("more", [(), ("--workers", "2")], ids=["stand-alone", "supervisor"])
async def test_make_service_in_a_running_reactor_schedules_nothing(more: tuple[str, ...]) -> None:
    before = set(reactor.getDelayedCalls())
    makeService(options_for("--port", "0", "--push-port", "0", *more))
    assert set(reactor.getDelayedCalls()) <= before


@pytest.mark.parametrize("option", ["--port", "--push-port"])
def test_a_port_in_use_is_one_line_before_anything_is_started(option: str, taken: int) -> None:
    options = options_for("--port", "0", "--push-port", "0", option, str(taken))
    assert ended(lambda: makeService(options)) == (
        f"twistd chatws: {option}: cannot listen on 127.0.0.1 port {taken}: Address already in use: "
        "stop the other server, or choose another port",
        1,
    )


def test_settings_that_do_not_go_together_are_one_line() -> None:
    line, status = ended(lambda: makeService(options_for("--sqlite-synchronous", "full")))
    assert line.startswith("twistd chatws: --sqlite-synchronous needs --broker")
    assert status == 78
