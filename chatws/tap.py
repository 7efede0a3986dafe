"""`twistd chatws`: the command line, and the service that it asks for.

Twisted would answer a bad option with the whole help and a bad port with a traceback; here either is one line on
stderr and exit status 1.
"""

from __future__ import annotations

import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

from twisted.application.service import Service
from twisted.python import usage

import chatws
from chatws import startup
from chatws.auth.build import default_methods
from chatws.config import SECTIONS, Config, Setting, settings
from chatws.configure import Loaded, environment_name, flag_name, load, suggestion
from chatws.errors import OperatorError
from chatws.reload import Reloader, on_sighup

__all__ = ["Options", "describe", "makeService"]

_INTRODUCTION = """\
A WebSocket server for customer-service chat. With no option at all it listens for browsers on
ws://127.0.0.1:8080/ws and for the lines of backends on 127.0.0.1:8081, and takes every browser's word for who it is.
"""

_SOURCES = """\
Each option is also a key of the TOML file (--send-buffer is `send_buffer`) and a variable of the environment
(CHATWS_SEND_BUFFER). Options go over the environment, the environment over the file. A list is an option said several
times, a TOML array, or a variable's words parted by commas or spaces. A switch is turned off by --no-….
"""

_EXAMPLES = """\
Examples:
  See it work: the demo's page on http://localhost:8080/
      twistd -n chatws --demo
  Behind nginx, tickets signed by the application, events kept over a restart
      twistd -n chatws --secret-file /etc/chatws/secret --broker sqlite:////var/lib/chatws/log.db
  As a daemon, for a page that logs in with the application's session cookie
      twistd --pidfile /run/chatws.pid --logfile /var/log/chatws.log chatws --auth-url http://127.0.0.1/whoami
  TLS for browsers, a Unix socket for backends
      twistd -n chatws --secret-file secret --listen ssl:443:privateKey=key.pem:certKey=cert.pem \\
          --push-listen unix:/run/chatws/push.sock:mode=660
  What would run, and from where each setting comes
      twistd chatws --config chatws.toml --check

twistd's own options (-n to stay in the foreground, --pidfile, --logfile, --uid …) stand before `chatws`:
see `twistd --help`.
"""


class Options(usage.Options):
    """The command line: an option for every row of `chatws.config.settings`, and a few besides.

    :ivar loaded: the configuration, once `parseOptions` has returned.
    """

    synopsis = "[options]"
    longdesc = _INTRODUCTION

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.given: dict[str, list[str]] = {}
        self.loaded: Loaded | None = None

    def opt_config(self, path: str) -> None:
        """a TOML file with settings"""
        self["config"] = path

    def opt_check(self) -> None:
        """say what would run, or what is wrong, and exit"""
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
        """Read the command line, the environment and the file into `loaded`. Leaves with one line when it cannot."""
        words = list(sys.argv[1:] if options is None else options)
        try:
            super().parseOptions(words)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            _leave(_in_plain_words(str(error), words))

    def postOptions(self) -> None:
        try:
            self.loaded = load(self.given, os.environ, self.get("config"))
            if self.get("check"):
                from twisted.internet import reactor

                from chatws import service

                warnings = startup.check(self.loaded.config, reactor)
                # built and thrown away: what a part refuses is to be known here too
                service.build(self.loaded.config, reactor)
                _show(describe(self.loaded, warnings))
        except OperatorError as error:
            _leave(str(error))

    def getUsage(self, width: int | None = None) -> str:
        return "\n" + help_page(width or int(os.environ.get("COLUMNS", "80")))


def _add_options() -> None:
    """Give `Options` the methods that `usage.Options` looks for, one a setting."""

    def valued(name: str) -> Callable[[Options, str], None]:
        def option(self: Options, value: str) -> None:
            self.given.setdefault(name, []).append(value)

        return option

    def switch(name: str, value: str) -> Callable[[Options], None]:
        def option(self: Options) -> None:
            self.given.setdefault(name, []).append(value)

        return option

    def refused(name: str) -> Callable[[Options, str], None]:
        def option(self: Options, value: str) -> None:
            # said, because getopt would take it for the beginning of --secret-file
            raise usage.UsageError(
                f"{flag_name(name)} is no option, for every user of a machine can see its command lines: "
                f"use {environment_name(name)} in the environment, or {flag_name(name)}-file"
            )

        return option

    for name, (setting, default, _) in settings().items():
        if setting.environment_only:
            setattr(Options, f"opt_{name}", refused(name))
            continue
        methods: dict[str, Callable[..., None]] = {f"opt_{name}": valued(name)}
        if isinstance(default, bool):
            methods = {f"opt_{name}": switch(name, "true"), f"opt_no_{name}": switch(name, "false")}
        for method_name, method in methods.items():
            method.__doc__ = setting.help
            setattr(Options, method_name, method)


_add_options()


def makeService(options: Options) -> Service:
    """The service tree that the options ask for. Called before `twistd` becomes a daemon: what fails here is still
    seen on the terminal."""
    from twisted.internet import reactor

    from chatws import service
    from chatws.workers.supervisor import Supervisor

    assert options.loaded is not None
    try:
        for note in options.loaded.notes:
            startup.log.warn("{note}", note=note)
        config = options.loaded.config
        # with workers it is built and thrown away: what a part refuses is to be known here too
        root: service.ChatwsService | Supervisor = service.build(config, reactor)
        startup.try_ports(config)
        if config.workers > 1:
            twistd: Mapping[str, Any] = options.parent or {}
            root = Supervisor(config, reactor, twistd.get("reactor") or "")
        root.twistd = options.parent
    except OperatorError as error:
        _leave(str(error))
    startup.end_cleanly_on_sigterm(reactor)
    reloader = Reloader(lambda: load(options.given, os.environ, options.get("config")), root.reconfigure)
    on_sighup(reactor, reloader.reload)
    return root


def _show(text: str) -> NoReturn:
    """Print it and leave, also where nobody reads on: `twistd chatws --help | head`."""
    try:
        print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # for the interpreter, which flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _leave(message: str) -> NoReturn:
    sys.exit(f"twistd chatws: {message}")


def _in_plain_words(message: str, words: Sequence[str]) -> str:
    """getopt's sentences, with the nearest option for one that does not exist."""
    if message.startswith("option ") and message.endswith(" not recognized"):
        wrong = message.split()[1]
        known = [f"--{option.rstrip('=')}" for option in Options().longOpt]
        return f"there is no option {wrong}{suggestion(wrong, known)}"
    return message


# --- for people -----------------------------------------------------------------------------------------------------


def help_page(width: int) -> str:
    """What `--help` says after the synopsis."""
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
    if default or (number and not setting.zero):
        notes.append(f"default {shown_default(default)}{_unit(setting)}")
    if setting.zero:
        empty = "0" if number else '""' if default else "without"
        notes.append(f"{'default ' if number and not default else ''}{empty}: {setting.zero}")
    repeat = "; repeatable" if isinstance(default, tuple) and not setting.environment_only else ""
    note = "; ".join(notes)
    return _two_columns(f"{left}={value}", f"{setting.help}{repeat}" + (f" ({note})" if note else ""), width)


def _unit(setting: Setting) -> str:
    return f" {setting.unit}" if setting.unit in ("seconds", "bytes", "messages a second") else ""


def shown_default(default: Any) -> str:
    """A default as it would be written on the command line; empty for none."""
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


def describe(loaded: Loaded, warnings: Sequence[str]) -> str:
    """What `--check` says: what would run, each setting with where it comes from, and the warnings."""
    config = loaded.config
    lines = [
        f"chatws {chatws.__version__} would run:",
        *(f"  browsers  {one}" for one in startup.browser_endpoints(config)),
        *(f"  backends  {one}" for one in startup.push_endpoints(config)),
        f"  auth      {', '.join(default_methods(config))}",
        f"  database  {without_secrets(startup.database_url(config)) or 'none'}",
        f"  events    {without_secrets(config.broker)}",
        *([f"  workers   {config.workers} processes and a supervisor"] if config.workers > 1 else []),
        *(["  the demo"] if config.demo else []),
    ]
    table = settings()
    rows = [
        (f"{name} = {_shown(config, name, table[name][0])}", str(origin)) for name, origin in loaded.origins.items()
    ]
    # the longest queries need not push all the others' origins out of sight
    column = min(60, max(len(left) for left, _ in rows)) + 2
    for title, is_default in (("set:", False), ("by default:", True)):
        chosen = [
            row
            for row, origin in zip(rows, loaded.origins.values(), strict=True)
            if (origin.kind == "default") is is_default
        ]
        if chosen:
            lines.append(title)
            lines += [f"  {left}" if is_default else f"  {left.ljust(column)}{right}" for left, right in chosen]
    notes = [*loaded.notes, *warnings]
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
        return "[" + ", ".join(f'"{without_secrets(one)}"' for one in value) + "]"
    return f'"{without_secrets(value)}"' if isinstance(value, str) else shown_default(value)


def without_secrets(text: str) -> str:
    """A URL without user, password and parameters; any other text as it is."""
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return "(not shown)"
    host = parts.netloc.rpartition("@")[2]
    # an @ further on: the password has a / or a # in it, and what seems to be the host is its beginning
    if "@" in parts.path + parts.query + parts.fragment:
        return "(not shown)"
    return f"{parts.scheme}://{host}{parts.path}"
