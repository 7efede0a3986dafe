"""Check the settings before a server starts.

`check` compares the settings with each other and with the machine. It closes everything that it opens, so that
`--check`, a daemon's parent and a test may all call it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from chatws.auth import secrets
from chatws.auth.auth_url import check_auth_url
from chatws.auth.factory import NO_TOKEN_KEY, default_methods, query_tests
from chatws.auth.jwks import is_unprotected
from chatws.auth.public_keys import load_key_files
from chatws.brokers.interface import Retention
from chatws.brokers.sqlite.store import SqliteStore
from chatws.config.names import suggestion
from chatws.config.schema import Config
from chatws.config.text_files import decode_text
from chatws.database.factory import require_pymysql
from chatws.errors import CloseCode, ConfigError, StartError
from chatws.interfaces import Reactor
from chatws.net.endpoints import parse_endpoint, tcp_endpoint
from chatws.net.listeners import make_listener, try_to_listen
from chatws.outbox.dialects import check_prefix
from chatws.pusher.apps import load_apps
from chatws.runtime.log_levels import check_levels
from chatws.server.origins import FILE, NULL, parse_allowed_origin
from chatws.webhooks.settings import check_webhooks

if TYPE_CHECKING:
    from chatws.database.query_check import QueryReport

__all__ = [
    "AUTH_METHODS",
    "broker_is_local",
    "browser_endpoints",
    "check",
    "check_queries",
    "database_url",
    "metrics_endpoints",
    "metrics_secret",
    "metrics_source",
    "push_endpoints",
    "read_secret_file",
    "try_ports",
    "try_stores",
]

AUTH_METHODS = ("token", "callback", "database", "trust")
#: Most old pages reconnect after any code but 1000. The others reconnect after 1000 only, and poll after other codes.
DRAIN_CLOSE_CODES = (int(CloseCode.RESTARTING), int(CloseCode.NORMAL))
REDIS_SCHEMES = ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel")
BROKER_SCHEMES = ("sqlite", "postgresql", "postgres", *REDIS_SCHEMES)
#: Kinds of endpoints that --workers can share.
SHAREABLE = ("tcp", "tcp6", "ssl", "unix", "systemd")
_SQLITE_MAGIC = b"SQLite format 3\0"


def browser_endpoints(config: Config) -> tuple[str, ...]:
    """Return the endpoint strings for WebSocket clients."""
    return config.listen or (tcp_endpoint(config.port, config.interface),)


def push_endpoints(config: Config) -> tuple[str, ...]:
    """Return the endpoint strings for backends."""
    return config.push_listen or (tcp_endpoint(config.push_port, "127.0.0.1"),)


def api_endpoints(config: Config) -> tuple[str, ...]:
    """Return the endpoint strings of the HTTP API; empty if it is off."""
    return config.api_listen or ((tcp_endpoint(config.api_port, "127.0.0.1"),) if config.api_port else ())


def api_source(config: Config) -> str:
    """Return the setting that holds the endpoint strings of the HTTP API."""
    return "--api-listen" if config.api_listen else "--api-port"


def metrics_endpoints(config: Config) -> tuple[str, ...]:
    """Return the endpoint strings for metrics; empty if metrics are off."""
    return config.metrics_listen or ((tcp_endpoint(config.metrics_port, "127.0.0.1"),) if config.metrics_port else ())


def metrics_source(config: Config) -> str:
    """Return the setting that holds the endpoint strings for metrics."""
    return "--metrics-listen" if config.metrics_listen else "--metrics-port"


def metrics_secret(config: Config) -> bytes | None:
    """Return the secret for /metrics, or None.

    :raises ConfigError: its file cannot be read.
    """
    path, allow = config.metrics_secret_file, config.allow_world_readable_secrets
    return read_secret_file(path, "--metrics-secret-file", allow_world_readable=allow).encode() if path else None


def broker_is_local(config: Config) -> bool:
    """Return whether only one process can open the broker. Workers then use it through their supervisor."""
    return config.broker.partition(":")[0] in ("memory", "sqlite")


def read_secret_file(path: str, setting: str, *, allow_world_readable: bool = False) -> str:
    """Read the secret in a file, without the white space around it.

    :param setting: the setting that names the file, for the error: "--push-secret-file".
    :param allow_world_readable: see `chatws.auth.secrets.read_secret_file`.
    :raises ConfigError: the file cannot be read, is empty, is not UTF-8, or every user of the machine can read it.
    """
    return decode_text(
        secrets.read_secret_file(path, setting, allow_world_readable=allow_world_readable), f"{setting}: {path}"
    )


def database_url(config: Config) -> str:
    """Return the database's URL, from the setting or its file; empty without a database.

    :raises ConfigError: the file cannot be read.
    """
    if config.database_file:
        allow = config.allow_world_readable_secrets
        return config.database or read_secret_file(config.database_file, "--database-file", allow_world_readable=allow)
    return config.database


def try_ports(config: Config) -> None:
    """Check that every address can be bound (`chatws.net.listeners.try_to_listen`).

    :raises ConfigError: an address cannot be bound.
    """
    browsers = "--listen" if config.listen else "--port"
    backends = "--push-listen" if config.push_listen else "--push-port"
    try_to_listen(
        [
            *((description, browsers) for description in browser_endpoints(config)),
            *((description, backends) for description in push_endpoints(config)),
            *((description, api_source(config)) for description in api_endpoints(config)),
            *((description, metrics_source(config)) for description in metrics_endpoints(config)),
        ]
    )


def check(config: Config, reactor: Reactor, *, running: bool = False) -> list[str]:
    """Compare the settings with each other and with the machine. Nothing is started or changed.

    :param reactor: for the endpoint strings: Twisted needs one to parse some kinds.
    :param running: whether the server runs in this process. SQLite files are not opened then, because closing a file
        releases all locks of the process on it (POSIX, fcntl).
    :returns: warnings, a sentence each, to be logged at start.
    :raises ConfigError: a setting is invalid, or conflicts with another one. One line says what to change.
    """
    warnings: list[str] = []
    check_levels(config.log_level)
    for description in browser_endpoints(config):
        make_listener(reactor, description, "--listen" if config.listen else "--interface")
    for description in push_endpoints(config):
        make_listener(reactor, description, "--push-listen" if config.push_listen else "--push-port")
    for description in api_endpoints(config):
        make_listener(reactor, description, api_source(config))
    for description in metrics_endpoints(config):
        make_listener(reactor, description, metrics_source(config))
        if not parse_endpoint(description).is_local and not config.metrics_secret_file:
            raise ConfigError(
                f'--metrics-listen "{description}" is reachable from other hosts: set --metrics-secret-file'
            )
    metrics_secret(config)
    _check_auth(config, warnings)
    _check_push(config)
    warnings += check_webhooks(config)
    load_apps(config)
    _check_stores(config, look_inside=not running)
    _check_http(config, warnings)
    _check_workers(config)
    if config.drain_close_code not in DRAIN_CLOSE_CODES:
        raise ConfigError(
            f"--drain-close-code must be {' or '.join(map(str, DRAIN_CLOSE_CODES))}, not {config.drain_close_code}"
        )
    return warnings


def check_queries(config: Config) -> QueryReport:
    """Execute the configured queries on the application's database, if there is one. Nothing is written.

    :raises ConfigError: a query fails.
    """
    from chatws.database import query_check

    url = database_url(config)
    if not url:
        return query_check.QueryReport([], [])
    report = query_check.check_queries(url, query_tests(config), config.auth_timeout)
    if config.outbox and report.steps:
        from chatws.outbox.check import check_outbox

        began = time.monotonic()
        check_outbox(url, config.table_prefix, config.auth_timeout)
        step = query_check.QueryStep("outbox", "its tables and lock are right", time.monotonic() - began)
        report.steps.append(step)
    return report


def _check_auth(config: Config, warnings: list[str]) -> None:
    for method in config.auth_methods:
        if method == "ticket":
            raise ConfigError("--auth: ticket is now token")
        if method not in AUTH_METHODS:
            known = ", ".join(AUTH_METHODS)
            raise ConfigError(f'--auth: "{method}" is not one of {known}{suggestion(method, AUTH_METHODS)}')
    methods = default_methods(config)
    if len(set(methods)) < len(methods):
        raise ConfigError("--auth has a method twice: leave one out")
    if config.secret and config.secret_files:
        raise ConfigError("CHATWS_SECRET and --secret-file exclude each other: leave one out")
    if config.token_key_files and config.jwks_url:
        raise ConfigError("--token-key-file and --jwks-url exclude each other: leave one out")
    has_secret, has_public_key = bool(secrets.load_secrets(config)), bool(load_key_files(config) or config.jwks_url)
    if "token" in methods and not (has_secret or has_public_key):
        raise ConfigError(NO_TOKEN_KEY)
    if config.jwks_url:
        check_auth_url(config.jwks_url, "--jwks-url")
        if is_unprotected(config.jwks_url):
            warnings.append(
                "--jwks-url is not https: a machine on the way could replace the keys, and authenticate as any user"
            )
    if "callback" in methods and not config.auth_url:
        raise ConfigError("--auth callback needs the URL of the application: --auth-url URL")
    if config.auth_url:
        check_auth_url(config.auth_url)
    if "database" in methods and not (config.database or config.database_file):
        raise ConfigError("--auth database needs the database: --database URL, or --database-file FILE")
    unused = [
        ("a token secret", "token", has_secret),
        ("a public key of tokens", "token", has_public_key),
        ("--auth-url", "callback", bool(config.auth_url)),
    ]
    warnings += [
        f"{source} is set, but --auth does not have {method}"
        for source, method, is_set in unused
        if is_set and method not in methods
    ]
    if config.demo and not {"trust", "database"}.intersection(methods):
        raise ConfigError("--demo needs --auth trust or --auth database: its page has no token and no session")
    if config.demo:
        for description in push_endpoints(config):
            endpoint = parse_endpoint(description)
            if endpoint.kind == "ssl" or endpoint.is_proxied:
                raise ConfigError(
                    f'--push-listen "{description}": the demo pushes plain lines: leave ssl: and haproxy: out'
                )
    _check_contacts(config, methods, warnings)
    if "trust" in methods:
        _check_trust(config, warnings)
    elif "database" in methods:
        warnings.append("--auth database only checks that the user exists; clients are not authenticated")


def _check_contacts(config: Config, methods: tuple[str, ...], warnings: list[str]) -> None:
    both = set(config.agent_roles).intersection(config.contact_roles)
    if both:
        raise ConfigError(f'--agent-role and --contact-role both have "{min(both)}": a role is either')
    if config.default_role and config.default_role not in (*config.agent_roles, *config.contact_roles):
        raise ConfigError(f'--default-role: "{config.default_role}" is not one of --agent-role and --contact-role')
    if not config.contacts:
        return
    if "trust" in methods:
        raise ConfigError("--contacts excludes --auth trust: a customer could claim to be any agent")
    if "database" in methods:
        warnings.append("--auth database with --contacts: a customer who sends an agent's user_id is that agent")
    for assignment in config.audience:
        event, _, kind = assignment.partition("=")
        if kind == "everyone":
            warnings.append(f"[audience] {event} = everyone reaches contacts: agents leaves them out")


def _check_trust(config: Config, warnings: list[str]) -> None:
    for description in browser_endpoints(config):
        if "trust" not in config.auth_methods and not parse_endpoint(description).is_local:
            source = f'--listen "{description}"' if config.listen else f"--interface {config.interface or '(all)'}"
            raise ConfigError(
                f"{source} is reachable from other hosts, but no authentication is configured: set --auth, or "
                "--auth trust to accept any user_id"
            )
    warnings.append("--auth trust accepts any user_id: clients are not authenticated")


def _check_push(config: Config) -> None:
    if config.push_secret_file:
        allow = config.allow_world_readable_secrets
        read_secret_file(config.push_secret_file, "--push-secret-file", allow_world_readable=allow)
        return
    for description in push_endpoints(config):
        if not parse_endpoint(description).is_local:
            raise ConfigError(f'--push-listen "{description}" is reachable from other hosts: set --push-secret-file')
    for description in api_endpoints(config):
        if not parse_endpoint(description).is_local:
            raise ConfigError(f'--api-listen "{description}" is reachable from other hosts: set --push-secret-file')


def _check_stores(config: Config, look_inside: bool) -> None:
    if config.database and config.database_file:
        raise ConfigError("--database and --database-file exclude each other: leave one out")
    url = database_url(config)
    source = "--database-file" if config.database_file else "--database"
    if url.startswith("sqlite:"):
        _check_sqlite(url, source, look_inside)
    elif url.startswith(("mysql:", "mariadb:")):
        _check_mysql(url, source)
    elif url and urlsplit(url).scheme not in ("postgresql", "postgres"):
        raise ConfigError(f"{source}: the URL must begin with postgresql://, mysql://, mariadb:// or sqlite:///")
    check_prefix(config.table_prefix)
    if config.outbox and not url:
        raise ConfigError("--outbox needs the application's database: --database URL, or --database-file FILE")
    if config.broker.startswith("sqlite:"):
        _check_sqlite(config.broker, "--broker", look_inside)
    elif config.broker != "memory" and config.broker.partition(":")[0] not in BROKER_SCHEMES:
        raise ConfigError("--broker must be memory, sqlite:///path, postgresql://… or redis://…")
    elif config.sqlite_synchronous != "normal":
        raise ConfigError("--sqlite-synchronous needs --broker sqlite:///path")
    if config.broker_listen and config.broker_poll:
        raise ConfigError("--broker-listen and --broker-poll exclude each other: leave one out")
    if (config.broker_listen or config.broker_poll) and not config.broker.startswith(("postgresql:", "postgres:")):
        raise ConfigError("--broker-listen and --broker-poll go with --broker postgresql://… only")
    if config.demo_database:
        if not config.demo:
            raise ConfigError("--demo-database needs --demo")
        _check_sqlite(f"sqlite:///{config.demo_database}", "--demo-database", look_inside)


def _check_mysql(url: str, source: str) -> None:
    require_pymysql()
    from chatws.database.mysql_options import mysql_options

    try:
        mysql_options(url)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _check_sqlite(url: str, source: str, look_inside: bool) -> None:
    path = Path(url.removeprefix("sqlite:///"))
    if not url.startswith("sqlite:///") or str(path) in (".", ":memory:"):
        raise ConfigError(f'{source} must be sqlite:///path, not "{url}"')
    if not path.parent.is_dir():
        raise ConfigError(f"{source}: there is no directory {path.parent}")
    try:
        if look_inside and path.exists():
            with path.open("rb") as file:
                magic = file.read(len(_SQLITE_MAGIC))
            if magic not in (b"", _SQLITE_MAGIC):
                raise ConfigError(f"{source}: {path} is not a SQLite file")
    except OSError as error:
        raise ConfigError(f"{source}: cannot read {path}: {error.strerror}") from None
    # SQLite creates its journal in the same directory
    for required in (path, path.parent):
        if required.exists() and not os.access(required, os.W_OK):
            raise ConfigError(f"{source}: {required} is not writable for this user")


def _check_http(config: Config, warnings: list[str]) -> None:
    for network in config.trusted_proxies:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ConfigError(f"--trusted-proxy: {error}") from None
    for text in config.allowed_origins:
        origin = parse_allowed_origin(text, "--allowed-origin")
        if origin in (NULL, FILE):
            pages = "sandboxed frames of every site" if origin is NULL else "every HTML file that a user opens"
            warnings.append(f'--allowed-origin "{text}" accepts {pages}: see "Origins" in docs/security.md')
    if config.max_head_size < 1024:
        warnings.append("--max-head-size is below 1024 bytes: requests with cookies may be rejected")


def _check_workers(config: Config) -> None:
    if config.workers < 2:
        return
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigError("--workers needs Unix sockets, which this system lacks: leave --workers out")
    if config.demo:
        raise ConfigError("--demo runs in one process: leave --workers out")
    if 0 < config.max_connections < config.workers:
        raise ConfigError("--max-connections is divided among the workers: it must be at least --workers")
    for descriptions, source in (
        (config.listen, "--listen"),
        (config.push_listen, "--push-listen"),
        (config.api_listen, "--api-listen"),
    ):
        for description in descriptions:
            if parse_endpoint(description).kind not in SHAREABLE:
                raise ConfigError(
                    f'{source} "{description}" cannot be shared by workers, only {", ".join(SHAREABLE)} can'
                )


def try_stores(config: Config) -> None:
    """Open each existing SQLite file as the server does, and close it again.

    twistd calls this before it becomes a daemon and loses its terminal and exit status. A process in which a server
    runs must not call it: closing a file releases all locks of the process on it (POSIX, fcntl).

    :raises ConfigError: a file is in use by another process, or is damaged.
    """
    if config.broker.startswith("sqlite:"):
        path = os.path.abspath(config.broker.removeprefix("sqlite:///"))
        SqliteStore(path, Retention(), sync_commits=True, boot=None).check()
    url = database_url(config)
    if url.startswith("sqlite:"):
        source = "--database-file" if config.database_file else "--database"
        _try_sqlite(url.removeprefix("sqlite:///"), source, config.auth_timeout)
    if config.demo_database:
        _try_sqlite(config.demo_database, "--demo-database", config.auth_timeout)


def _try_sqlite(path: str, source: str, timeout: float) -> None:
    """Check that an application's file can be read. Its processes may lock it for `timeout` seconds."""
    if not os.path.exists(path):
        return
    try:
        uri = f"file:{quote(os.path.abspath(path))}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=timeout)) as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StartError(f"{source}: {path} is in use by another process, which has locked it") from None
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise ConfigError(f"{source}: {path} is damaged ({error}); restore it from a backup") from None
        raise ConfigError(f"{source}: cannot read {path}: {error}") from None
