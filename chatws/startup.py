"""What has to be true before a server starts, and how one ends that cannot.

`check` is the one place where the settings are held against each other and against the machine. It opens nothing
that it does not close, so that `--check`, a daemon's parent and a test may all call it.
"""

from __future__ import annotations

import atexit
import ipaddress
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from chatws.auth import secrets
from chatws.auth.build import default_methods
from chatws.config import Config
from chatws.configure import suggestion
from chatws.endpoints import make_endpoint, parse_endpoint, tcp_endpoint, try_to_listen
from chatws.errors import OperatorError

__all__ = [
    "AUTH_METHODS",
    "browser_endpoints",
    "check",
    "database_url",
    "end_cleanly_on_sigterm",
    "fail",
    "log_is_local",
    "metrics_endpoint",
    "push_endpoints",
    "read_secret_file",
    "try_ports",
]

log = Logger()

AUTH_METHODS = ("ticket", "callback", "database", "trust")
LOG_FORMATS = ("text", "json")
REDIS_SCHEMES = ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel")
BROKER_SCHEMES = ("sqlite", "postgresql", "postgres", *REDIS_SCHEMES)
#: Kinds of endpoints that --workers can share.
SHAREABLE = ("tcp", "tcp6", "ssl", "unix", "systemd")
_SQLITE_MAGIC = b"SQLite format 3\0"


def browser_endpoints(config: Config) -> tuple[str, ...]:
    """The endpoint strings for browsers."""
    return config.listen or (tcp_endpoint(config.port, config.interface),)


def push_endpoints(config: Config) -> tuple[str, ...]:
    """The endpoint strings for backends."""
    return config.push_listen or (tcp_endpoint(config.push_port, "127.0.0.1"),)


def metrics_endpoint(config: Config) -> tuple[str, ...]:
    """The endpoint string for metrics, if there is one: never reachable from elsewhere."""
    return (tcp_endpoint(config.metrics_port, "127.0.0.1"),) if config.metrics_port else ()


def log_is_local(config: Config) -> bool:
    """Whether one process only can have the event log open: then its workers get to it through that one."""
    return config.broker.partition(":")[0] in ("memory", "sqlite")


def read_secret_file(path: str, setting: str) -> str:
    """The secret in a file, without the white space around it.

    :param setting: who asks, for the error: "--push-secret-file".
    :raises OperatorError: the file cannot be read, is empty, is not UTF-8, or other users of the machine may read it.
    """
    try:
        return secrets.read_secret_file(path, setting).decode()
    except UnicodeDecodeError:
        raise OperatorError(f"{setting}: {path} is not UTF-8") from None


def database_url(config: Config) -> str:
    """The database's URL, from the setting or its file; empty without one.

    :raises OperatorError: the file cannot be read.
    """
    if config.database_file:
        return config.database or read_secret_file(config.database_file, "--database-file")
    return config.database


def try_ports(config: Config) -> None:
    """See whether every address can be bound, before anything is started (see `chatws.endpoints.try_to_listen`).

    :raises OperatorError: one cannot.
    """
    browsers = "--listen" if config.listen else "--port"
    backends = "--push-listen" if config.push_listen else "--push-port"
    try_to_listen(
        [
            *((description, browsers) for description in browser_endpoints(config)),
            *((description, backends) for description in push_endpoints(config)),
            *((description, "--metrics-port") for description in metrics_endpoint(config)),
        ]
    )


def check(config: Config, reactor: Any, *, running: bool = False) -> list[str]:
    """Hold the settings against each other and against the machine; neither starts nor changes anything.

    :param reactor: for the endpoint strings, some of which want one to be parsed.
    :param running: the server runs in this process, and SQLite files are not looked into: to close one again would take
        from the process every lock it has on that file (POSIX, fcntl).
    :returns: warnings, a sentence each, to be logged at start.
    :raises OperatorError: they do not go together; one line that says what to change.
    """
    warnings: list[str] = []
    for description in browser_endpoints(config):
        make_endpoint(reactor, description, "--listen" if config.listen else "--interface")
    for description in push_endpoints(config):
        make_endpoint(reactor, description, "--push-listen" if config.push_listen else "--push-port")
    _check_auth(config, warnings)
    _check_push(config)
    _check_stores(config, look_inside=not running)
    _check_door(config, warnings)
    _check_workers(config)
    if config.log_format not in LOG_FORMATS:
        raise OperatorError(f'--log-format must be {" or ".join(LOG_FORMATS)}, not "{config.log_format}"')
    return warnings


def _check_auth(config: Config, warnings: list[str]) -> None:
    for method in config.auth:
        if method not in AUTH_METHODS:
            known = ", ".join(AUTH_METHODS)
            raise OperatorError(f'--auth: "{method}" is none of {known}{suggestion(method, AUTH_METHODS)}')
    methods = default_methods(config)
    if len(set(methods)) < len(methods):
        raise OperatorError("--auth names a method twice")
    if config.secret and config.secret_file:
        raise OperatorError("CHATWS_SECRET and --secret-file exclude each other: leave one out")
    has_secret = bool(secrets.load_secrets(config))
    if "ticket" in methods and not has_secret:
        raise OperatorError("--auth ticket needs the secret: --secret-file FILE, or CHATWS_SECRET in the environment")
    if "callback" in methods and not config.auth_url:
        raise OperatorError("--auth callback needs the URL to ask: --auth-url URL")
    if config.auth_url:
        parts = urlsplit(config.auth_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OperatorError(f'--auth-url must be an http:// or https:// URL, not "{config.auth_url}"')
    if "database" in methods and not (config.database or config.database_file):
        raise OperatorError("--auth database needs the database: --database URL, or --database-file FILE")
    unused = [("a ticket secret", "ticket", has_secret), ("--auth-url", "callback", bool(config.auth_url))]
    warnings += [
        f"{what} is given, but --auth does not name {one}" for what, one, has in unused if has and one not in methods
    ]
    if config.demo and not {"trust", "database"}.intersection(methods):
        raise OperatorError("--demo has neither tickets nor cookies to show: it needs --auth trust")
    if "trust" in methods:
        _check_trust(config, warnings)
    elif "database" in methods:
        warnings.append("--auth database looks whether a user exists; it does not prove who is calling")


def _check_trust(config: Config, warnings: list[str]) -> None:
    for description in browser_endpoints(config):
        if "trust" not in config.auth and not parse_endpoint(description).is_local:
            source = f'--listen "{description}"' if config.listen else f"--interface {config.interface or '(all)'}"
            raise OperatorError(
                f"{source} lets others in, who may say they are anybody: configure tickets, a callback or a database, "
                "or say --auth trust in so many words"
            )
    warnings.append("--auth trust takes every browser's word for who it is")


def _check_push(config: Config) -> None:
    if config.push_secret_file:
        read_secret_file(config.push_secret_file, "--push-secret-file")
        return
    for description in push_endpoints(config):
        if not parse_endpoint(description).is_local:
            raise OperatorError(f'--push-listen "{description}" is open to others: it needs a --push-secret-file')


def _check_stores(config: Config, look_inside: bool) -> None:
    if config.database and config.database_file:
        raise OperatorError("--database and --database-file exclude each other: leave one out")
    url = database_url(config)
    source = "--database-file" if config.database_file else "--database"
    if url.startswith("sqlite:"):
        _check_sqlite(url, source, look_inside)
    elif url and urlsplit(url).scheme not in ("postgresql", "postgres"):
        raise OperatorError(f"{source}: the URL must begin with postgresql:// or sqlite:///")
    if config.broker.startswith("sqlite:"):
        _check_sqlite(config.broker, "--broker", look_inside)
    elif config.broker != "memory" and config.broker.partition(":")[0] not in BROKER_SCHEMES:
        raise OperatorError("--broker must be memory, sqlite:///path, postgresql://… or redis://…")
    elif config.durable:
        raise OperatorError("--durable needs --broker sqlite:///path: nothing else is written through")
    if config.broker_listen and config.broker_poll:
        raise OperatorError("--broker-listen and --broker-poll exclude each other: leave one out")
    if (config.broker_listen or config.broker_poll) and not config.broker.startswith(("postgresql:", "postgres:")):
        raise OperatorError("--broker-listen and --broker-poll go with --broker postgresql://… only")
    if config.demo_database:
        if not config.demo:
            raise OperatorError("--demo-database needs --demo")
        _check_sqlite(f"sqlite:///{config.demo_database}", "--demo-database", look_inside)


def _check_sqlite(url: str, source: str, look_inside: bool) -> None:
    path = Path(url.removeprefix("sqlite:///"))
    if not url.startswith("sqlite:///") or str(path) in (".", ":memory:"):
        raise OperatorError(f'{source} must be sqlite:///path, not "{url}"')
    if not path.parent.is_dir():
        raise OperatorError(f"{source}: there is no directory {path.parent}")
    try:
        if look_inside and path.exists():
            with path.open("rb") as file:
                magic = file.read(len(_SQLITE_MAGIC))
            if magic not in (b"", _SQLITE_MAGIC):
                raise OperatorError(f"{source}: {path} is no SQLite file")
    except OSError as error:
        raise OperatorError(f"{source}: cannot read {path}: {error.strerror}") from None
    # SQLite keeps its journal beside the file
    for one in (path, path.parent):
        if one.exists() and not os.access(one, os.W_OK):
            raise OperatorError(f"{source}: {one} cannot be written to")


def _check_door(config: Config, warnings: list[str]) -> None:
    for network in config.trusted_proxy:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise OperatorError(f"--trusted-proxy: {error}") from None
    for origin in config.allowed_origin:
        try:
            parts = urlsplit(origin)
            exact = parts.scheme and parts.hostname and f"{parts.scheme}://{parts.netloc}" == origin
            exact = exact and (parts.port or True) and not parts.username and "*" not in origin
        except ValueError:
            exact = False
        if not exact:
            raise OperatorError(f'--allowed-origin must be scheme://host or scheme://host:port, not "{origin}"')
    if config.max_head_size < 1024:
        warnings.append("--max-head-size is so small that a browser's cookies may not fit")


def _check_workers(config: Config) -> None:
    if config.workers < 2:
        return
    if config.demo:
        raise OperatorError("--demo runs in one process: leave --workers out")
    if 0 < config.max_connections < config.workers:
        raise OperatorError("--max-connections is shared out to the workers: it must be no less than --workers")
    for descriptions, source in ((config.listen, "--listen"), (config.push_listen, "--push-listen")):
        for description in descriptions:
            if parse_endpoint(description).kind not in SHAREABLE:
                raise OperatorError(
                    f'{source} "{description}" cannot be shared by workers, only {", ".join(SHAREABLE)} can'
                )


# --- the end --------------------------------------------------------------------------------------------------------


def fail(reactor: Any, message: str) -> None:
    """End a server that runs already, because it cannot do its work: one line on stderr, exit status 1.

    For what shows only after the start, when a daemon's terminal is gone: then the line is in the log alone.
    """
    log.critical("{message}", message=message)
    if sys.__stderr__ is not None:
        print(f"twistd chatws: {message}", file=sys.__stderr__, flush=True)

    def leave() -> None:
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                stream.flush()
        os._exit(1)

    # twistd gives no way to choose its exit status; its pidfile and log are done with by then
    atexit.register(leave)
    reactor.callWhenRunning(_stop, reactor)


def end_cleanly_on_sigterm(reactor: Any) -> None:
    """Let SIGTERM stop the reactor with exit status 0; by itself twistd ends by killing itself with the signal."""

    def stop(number: int, frame: FrameType | None) -> None:
        reactor.callFromThread(_stop, reactor)

    # the reactor sets handlers of its own when it begins to run
    reactor.callWhenRunning(signal.signal, signal.SIGTERM, stop)


def _stop(reactor: Any) -> None:
    # a second signal, or a failure while it stops, is no error
    with suppress(ReactorNotRunning):
        reactor.stop()
