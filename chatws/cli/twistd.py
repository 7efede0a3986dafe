"""`twistd chatws`: the command line, and the service that it describes.

Twisted would print the whole help for a bad option and a traceback for a bad port. This module prints one line on
stderr and exits with status 78 (EX_CONFIG), or with 1 if a later start may succeed (`chatws.errors.StartError`).
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from twisted.application.service import Service
from twisted.logger import Logger
from twisted.python import usage

import chatws
from chatws.auth.factory import default_methods
from chatws.config import validate
from chatws.config.loader import LoadedConfig, load
from chatws.config.names import describe_former_flag, environment_name, flag_name, suggestion
from chatws.config.reload import Reloader
from chatws.config.schema import SECTIONS, Config, Setting, settings
from chatws.errors import ConfigError
from chatws.runtime.log_levels import use_levels
from chatws.runtime.logging import open_log
from chatws.runtime.node import node_name
from chatws.runtime.signals import process_signals
from chatws.runtime.start_report import StartReport
from chatws.runtime.streams import never_fail_to_encode
from chatws.runtime.twistd_options import check_pidfile, check_twistd_options

if TYPE_CHECKING:
    from chatws.database.query_check import QueryStep

__all__ = ["Options", "describe", "makeService"]

_log = Logger()

_INTRODUCTION = """\
A WebSocket server for customer-service chat. Without options it listens for browsers on ws://127.0.0.1:8080/ws and
for backends on 127.0.0.1:8081, and accepts any user_id without authentication.
"""

_SOURCES = """\
Each option is also a key of the TOML file (--send-buffer is `send_buffer`) and an environment variable
(CHATWS_SEND_BUFFER). Options override the environment, and the environment overrides the file. --listen also overrides
a port in the file. For a list, repeat the option, use a TOML array, or separate the variable's words by commas or
spaces. --no-… turns a switch off.
"""

_EXAMPLES = """\
Examples:
  Try the demo on http://localhost:8080/
      twistd -n chatws --demo
  Behind nginx, with tokens signed by the application and events kept over a restart
      twistd -n chatws --secret-file /etc/chatws/secret --broker sqlite:////var/lib/chatws/log.db
  As a daemon, for a page that logs in with the application's session cookie
      twistd --pidfile /run/chatws.pid --logfile /var/log/chatws.log chatws --auth-url http://127.0.0.1/whoami
  TLS for browsers, a Unix socket for backends
      twistd -n chatws --secret-file secret --listen ssl:443:privateKey=key.pem:certKey=fullchain.pem \\
          --push-listen unix:/run/chatws/push.sock:mode=660
  Print what would run and the source of each setting
      twistd chatws --config chatws.toml --check

twistd's own options (-n to stay in the foreground, --pidfile, --logfile, --uid …) come before `chatws`:
see `twistd --help`.
"""


class Options(usage.Options):
    """The command line: an option for every row of `chatws.config.schema.settings`, and a few others.

    :ivar loaded: the configuration, once `parseOptions` has returned.
    """

    synopsis = "[options]"
    longdesc = _INTRODUCTION

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.given: dict[str, list[str]] = {}
        self.loaded: LoadedConfig | None = None

    def opt_config(self, path: str) -> None:
        """a TOML file with settings"""
        self["config"] = path

    def opt_check(self) -> None:
        """print what would run, or what is wrong, and exit"""
        self["check"] = True

    def opt_version(self) -> None:
        """print the version and exit"""
        print(f"chatws {chatws.__version__}")
        sys.exit(0)

    def opt_help(self) -> None:
        """print this page and exit"""
        _show(str(self))

    def parseArgs(self, *words: str) -> None:
        if words:
            raise usage.UsageError(f'only options are expected, not "{words[0]}"')

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the command line, the environment and the file into `loaded`. On an error, print one line and exit."""
        never_fail_to_encode()
        words = list(sys.argv[1:] if options is None else options)
        try:
            super().parseOptions(words)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            _exit_with_error(_explain_usage_error(str(error), words), ConfigError.exit_status)

    def postOptions(self) -> None:
        try:
            self.loaded = load(self.given, os.environ, self.get("config"))
            twistd: Mapping[str, Any] = self.parent or {}
            check_twistd_options(twistd, starting=not self.get("check"))
            if not self.get("check"):
                # twistd checks it right after this, with another message
                check_pidfile(twistd)
            else:
                from twisted.internet import reactor

                from chatws.runtime import service

                warnings = validate.check(self.loaded.config, reactor)
                # built and discarded: components check their settings too
                service.build(self.loaded.config, reactor)
                queries = validate.check_queries(self.loaded.config)
                warnings += queries.warnings
                _show(describe(self.loaded, warnings, queries.steps))
        except ConfigError as error:
            _exit_with_error(str(error), error.exit_status)

    def getUsage(self, width: int | None = None) -> str:
        return "\n" + help_page(width or shutil.get_terminal_size().columns)


def _add_options() -> None:
    """Give `Options` the method that `usage.Options` expects for each setting."""

    def valued(name: str) -> Callable[[Options, str], None]:
        def option(self: Options, value: str) -> None:
            self.given.setdefault(name, []).append(value)

        return option

    def switch(name: str, value: str) -> Callable[[Options], None]:
        def option(self: Options) -> None:
            self.given.setdefault(name, []).append(value)

        return option

    def rejected(name: str) -> Callable[[Options, str], None]:
        def option(self: Options, value: str) -> None:
            # defined, because getopt would take it for an abbreviation of --secret-file
            raise usage.UsageError(
                f"{flag_name(name)} is not an option, because every user of a machine can see its command lines: "
                f"use {environment_name(name)} in the environment, or {flag_name(name)}-file"
            )

        return option

    for name, (setting, default, _) in settings().items():
        if setting.environment_only:
            setattr(Options, f"opt_{name}", rejected(name))
            continue
        methods: dict[str, Callable[..., None]] = {f"opt_{flag_name(name)[2:].replace('-', '_')}": valued(name)}
        if isinstance(default, bool):
            methods = {f"opt_{name}": switch(name, "true"), f"opt_no_{name}": switch(name, "false")}
        for method_name, method in methods.items():
            method.__doc__ = setting.help
            setattr(Options, method_name, method)


_add_options()


def makeService(options: Options) -> Service:
    """Make the service tree that the options describe.

    `twistd` calls it before it becomes a daemon, so errors are still seen on the terminal.
    """
    from twisted.internet import reactor

    from chatws.runtime import service
    from chatws.runtime.clock import ClockWatch, use_monotonic_clock
    from chatws.runtime.resolver import use_own_threads
    from chatws.runtime.root_service import RootService
    from chatws.runtime.systemd import SystemdNotifier

    use_monotonic_clock(reactor)
    use_own_threads(reactor)

    assert options.loaded is not None
    twistd: Mapping[str, Any] = options.parent or {}
    try:
        for warning in options.loaded.warnings:
            _log.warn("{warning}", warning=warning)
        for sentence in options.loaded.replaced:
            _log.info("{sentence}", sentence=sentence)
        config = options.loaded.config
        use_levels(config.log_level)
        # with workers it is built and discarded: components check their settings too
        root: RootService = service.build(config, reactor)
        validate.try_ports(config)
        validate.try_stores(config)
        if config.workers > 1:
            from chatws.workers.supervisor import Supervisor

            root = Supervisor(config, reactor, twistd.get("reactor") or "")
        root.start_report = StartReport(options.parent or {})
        # --logger is an observer of the operator's own
        log = None if twistd.get("logger") else open_log(twistd, config.log_format, node_name(config))
    except ConfigError as error:
        _exit_with_error(str(error), error.exit_status)
    root.clock_watch = ClockWatch(reactor)
    root.systemd = SystemdNotifier(os.environ, reactor)
    if log is not None:
        log.writer.run_in(reactor)
        root.log_observer = log
    reloader = Reloader(lambda: load(options.given, os.environ, options.get("config")), root.reconfigure)
    process_signals.attach(reactor, reloader.reload, log.writer.reopen if log is not None else None)
    return root


def _show(text: str) -> NoReturn:
    """Print `text` and exit, also if the reader has closed the pipe: `twistd chatws --help | head`."""
    try:
        print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes stdout again when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _exit_with_error(message: str, status: int) -> NoReturn:
    print(f"twistd chatws: {message}", file=sys.stderr)
    sys.exit(status)


def _explain_usage_error(message: str, words: Sequence[str]) -> str:
    """Return getopt's message. For an unknown option, name its new name or the most similar option."""
    if message.startswith("option ") and message.endswith(" not recognized"):
        wrong = message.split()[1]
        former = describe_former_flag(wrong)
        if former:
            return former
        known = [f"--{option.rstrip('=')}" for option in Options().longOpt]
        return f"there is no option {wrong}{suggestion(wrong, known)}"
    return message


# --- texts -----------------------------------------------------------------------------------------------------------


def help_page(width: int) -> str:
    """Return the text of `--help` after the synopsis."""
    width = max(60, min(width, 100)) - 1
    blocks = [textwrap.fill(_INTRODUCTION, width), "\n".join(_own_options(width))]
    table = settings()
    for section, title in SECTIONS.items():
        rows = [
            _option(name, setting, default, width)
            for name, (setting, default, _) in table.items()
            if setting.section == section
        ]
        blocks.append("\n".join([f"{title}:", *rows]))
    return "\n\n".join([*blocks, textwrap.fill(_SOURCES, width), _EXAMPLES])


def _own_options(width: int) -> Iterator[str]:
    yield "General:"
    for name, value in (("config", "=FILE"), ("check", ""), ("version", ""), ("help", "")):
        yield _two_columns(f"--{name}{value}", inspect.getdoc(getattr(Options, f"opt_{name}")) or "", width)


def _option(name: str, setting: Setting, default: Any, width: int) -> str:
    left = environment_name(name) if setting.environment_only else flag_name(name)
    if isinstance(default, bool):
        return _two_columns(left, f"{setting.help} (default {'on' if default else 'off'})", width)
    number = isinstance(default, int | float)
    amount = setting.unit if setting.unit in ("seconds", "bytes") else "N" if number else ""
    value = setting.value or amount.upper() or "TEXT"
    notes = []
    if default or (number and not setting.zero_meaning):
        notes.append(f"default {shown_default(default)}{_unit(setting)}")
    if setting.zero_meaning:
        empty = "0" if number else '""' if default else "without"
        notes.append(f"{'default ' if number and not default else ''}{empty}: {setting.zero_meaning}")
    repeat = "; repeatable" if isinstance(default, tuple) and not setting.environment_only else ""
    note = "; ".join(notes)
    return _two_columns(f"{left}={value}", f"{setting.help}{repeat}" + (f" ({note})" if note else ""), width)


def _unit(setting: Setting) -> str:
    return f" {setting.unit}" if setting.unit in ("seconds", "bytes", "messages a second") else ""


def shown_default(default: Any) -> str:
    """Format a default as on the command line, empty for none."""
    if isinstance(default, tuple):
        return ", ".join(default)
    if isinstance(default, float):
        return f"{default:g}"
    return str(default)


def _two_columns(left: str, right: str, width: int) -> str:
    margin = 30
    lines = textwrap.wrap(right, width - margin, break_long_words=False, break_on_hyphens=False)
    head = f"  {left}"
    if len(head) < margin - 1:
        first = head.ljust(margin) + (lines.pop(0) if lines else "")
        return "\n".join([first.rstrip(), *(" " * margin + line for line in lines)])
    return "\n".join([head, *(" " * margin + line for line in lines)])


def describe(loaded: LoadedConfig, warnings: Sequence[str], queries: Sequence[QueryStep]) -> str:
    """Return the output of `--check`: what would run, the queries, each setting with its source, and the warnings."""
    config = loaded.config
    lines = [
        f"chatws {chatws.__version__} would run:",
        *(f"  browsers  {endpoint}" for endpoint in validate.browser_endpoints(config)),
        *(f"  backends  {endpoint}" for endpoint in validate.push_endpoints(config)),
        *(f"  HTTP API  {endpoint}" for endpoint in validate.api_endpoints(config)),
        f"  auth      {', '.join(default_methods(config))}",
        f"  database  {without_secrets(validate.database_url(config)) or 'none'}",
        f"  events    {without_secrets(config.broker)}",
        *([f"  workers   {config.workers} processes and a supervisor"] if config.workers > 1 else []),
        *(["  the demo"] if config.demo else []),
        *(["queries:"] if queries else []),
        *(f"  {step.name:20}{step.result:40}{1000 * step.seconds:8.1f} ms" for step in queries),
    ]
    table = settings()
    rows = [
        (f"{name} = {_shown(config, name, table[name][0])}", str(source)) for name, source in loaded.sources.items()
    ]
    # a long query must not move the sources of all other settings out of sight
    column = min(60, max(len(left) for left, _ in rows)) + 2
    for title, is_default in (("set:", False), ("by default:", True)):
        chosen = [
            row
            for row, source in zip(rows, loaded.sources.values(), strict=True)
            if (source.kind == "default") is is_default
        ]
        if chosen:
            lines.append(title)
            lines += [f"  {left}" if is_default else f"  {left.ljust(column)}{right}" for left, right in chosen]
    if loaded.replaced:
        lines.append("replaced:")
        lines += [f"  {sentence}" for sentence in loaded.replaced]
    notes = [*loaded.warnings, *warnings]
    if notes:
        lines.append("warnings:")
        lines += [f"  {note}" for note in notes]
    return "\n".join(lines)


def _shown(config: Config, name: str, setting: Setting) -> str:
    value = getattr(config, name)
    if setting.secret and value:
        return without_secrets(value) if isinstance(value, str) and "://" in value else "(not shown)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{without_secrets(item)}"' for item in value) + "]"
    return f'"{without_secrets(value)}"' if isinstance(value, str) else shown_default(value)


def without_secrets(text: str) -> str:
    """Return a URL without user, password and parameters, and any other text as it is."""
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return "(not shown)"
    host = parts.netloc.rpartition("@")[2]
    # with an @ after the host, the password contains / or #, and the apparent host is its beginning
    if "@" in parts.path + parts.query + parts.fragment:
        return "(not shown)"
    return f"{parts.scheme}://{host}{parts.path}"
