"""Everything that can be set, in one frozen object: names, defaults, units, and what 0 means.

A field `send_buffer` is `--send-buffer` on the command line, `send_buffer` in the TOML file and
`CHATWS_SEND_BUFFER` in the environment; flags go over environment over file (chatws.configure builds a `Config` from
them, `docs/configuration.md` is held to this table by a test).
"""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

__all__ = ["SECTIONS", "Config", "Setting", "settings"]

#: The sections' names in the TOML file, and their titles for people.
SECTIONS = {
    "listen": "Where it listens",
    "auth": "Who may enter",
    "database": "The application's database",
    "door": "Limits at the browsers' door",
    "chat": "What the chat does",
    "push": "The backends' door",
    "log": "The event log, for recovery",
    "operations": "Operations",
    "demo": "The demo",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What is said of one field for people.

    :ivar section: a key of `SECTIONS`.
    :ivar unit: of the value: "seconds", "bytes", "events" …; empty for names and switches.
    :ivar zero: what 0 (or an empty value) means. A number for which nothing is said here must be above 0.
    :ivar secret: never shown, not even by `--check`.
    :ivar value: what stands for the value in `--help`; the unit, or TEXT, unless given.
    :ivar highest: the largest number allowed, or None.
    :ivar path: it names a file, and is taken relative to where chatws was started.
    :ivar environment_only: neither a flag nor a key of the file: command lines and files are read by others.
    """

    section: str
    help: str
    unit: str = ""
    zero: str = ""
    secret: bool = False
    value: str = ""
    highest: int | None = None
    path: bool = False
    environment_only: bool = False


def _set(default: Any, section: str, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"setting": Setting(section, help, **more)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one server, checked by `chatws.service.build` as a whole. Tuples are repeatable options."""

    # where it listens
    port: int = _set(8080, "listen", "TCP port for browsers", zero="any free port", highest=65535)
    interface: str = _set(
        "127.0.0.1", "listen", "the address that --port binds", value="ADDRESS", zero="every IPv4 address"
    )
    listen: tuple[str, ...] = _set(
        (), "listen", "a Twisted endpoint string for browsers, instead of --port", value="ENDPOINT"
    )
    push_port: int = _set(
        8081, "listen", "TCP port for backends, on 127.0.0.1", zero="any free port", highest=65535
    )  # fmt: skip
    push_listen: tuple[str, ...] = _set(
        (), "listen", "a Twisted endpoint string for backends, instead of --push-port", value="ENDPOINT"
    )

    # who may enter
    auth: tuple[str, ...] = _set(
        (), "auth", "ticket, callback, database or trust; the first that has an opinion decides", value="METHOD",
        zero="ticket if there is a secret, else callback if there is a URL, else database if there is one, else trust",
    )  # fmt: skip
    secret_file: tuple[str, ...] = _set(
        (), "auth", "file with the secret that signs tickets; two while it is rotated", value="FILE", path=True
    )
    secret: tuple[str, ...] = _set(
        (), "auth", "the ticket secret itself; CHATWS_SECRET_OLD holds the one before, while it is rotated",
        secret=True, environment_only=True,
    )  # fmt: skip
    ticket_audience: str = _set("", "auth", "the `aud` that tickets must carry", zero="not looked at")
    auth_url: str = _set("", "auth", "URL that says who a browser is, by its cookies", value="URL", zero="none")
    auth_timeout: float = _set(5.0, "auth", "how long an `auth` or `subscribe` waits for an answer", unit="seconds")
    auth_deadline: float = _set(
        10.0, "auth", "how long a connection may stay without `auth`", unit="seconds", zero="for ever"
    )
    auth_cache: float = _set(
        5.0, "auth", "how long an answer about a user or conversation is kept", unit="seconds", zero="not kept"
    )

    # the shop's database
    database: str = _set(
        "", "database", "postgresql://… or sqlite:///path", value="URL", zero="none", secret=True
    )  # fmt: skip
    database_file: str = _set("", "database", "file that holds the database URL", value="FILE", zero="none", path=True)
    database_pool: int = _set(5, "database", "connections to the database", unit="connections")
    user_query: str = _set(
        "SELECT id, name FROM users WHERE id = %(user_id)s AND status = 'active'",
        "database", "returns a row when the user exists and is active", value="SQL",
    )  # fmt: skip
    conversation_query: str = _set(
        "SELECT id FROM conversations WHERE id = %(conversation_id)s",
        "database", "returns a row when %(user_id)s may read %(conversation_id)s", value="SQL",
        zero="everybody may read everything",
    )  # fmt: skip
    heartbeat_query: str = _set(
        "", "database", "run for %(user_id)s, %(last_activity)s of batched pings", value="SQL", zero="none"
    )
    activity_query: str = _set(
        "", "database", "run for %(user_id)s, %(activity_type)s of batched activities", value="SQL", zero="none"
    )

    # the door
    allowed_origin: tuple[str, ...] = _set(
        (), "door", "an origin besides the page's own host, exactly: scheme://host[:port]", value="ORIGIN"
    )
    trusted_proxy: tuple[str, ...] = _set(
        ("127.0.0.0/8", "::1/128"), "door", "address or network whose X-Forwarded-For and X-Real-IP count",
        value="NETWORK", zero="nobody's",
    )  # fmt: skip
    max_connections: int = _set(
        0, "door", "how many WebSockets may be open", unit="connections", zero="as many as files may be open"
    )
    max_connections_per_ip: int = _set(
        0, "door", "how many of them from one address", unit="connections", zero="no limit"
    )
    max_connections_per_user: int = _set(
        50, "door", "how many of them of one user", unit="connections", zero="no limit"
    )
    handshake_timeout: float = _set(10.0, "door", "how long a request head may take", unit="seconds")
    max_head_size: int = _set(8192, "door", "largest request head", unit="bytes")
    max_message_size: int = _set(65536, "door", "largest message of a browser, inflated", unit="bytes")
    max_fragments: int = _set(64, "door", "frames that one message may be cut into", unit="frames")
    rate: float = _set(
        20.0, "door", "messages that a connection may send for long", unit="messages a second", zero="no limit"
    )
    rate_burst: int = _set(100, "door", "messages it may send at once", unit="messages")
    max_subscriptions: int = _set(
        200, "door", "how many conversations a connection may subscribe to", unit="conversations", zero="no limit"
    )
    ping_interval: float = _set(
        30.0, "door", "time between WebSocket pings of an idle connection", unit="seconds", zero="no pings"
    )
    ping_timeout: float = _set(
        20.0, "door", "how long a ping may stay unanswered until the peer counts as gone", unit="seconds"
    )
    send_buffer: int = _set(1048576, "door", "unsent bytes after which a reader counts as too slow", unit="bytes")
    compression: bool = _set(False, "door", "offer permessage-deflate")

    # what the chat does
    presence_grace: float = _set(
        3.0, "chat", "time between the end of an agent's last tab and `offline`", unit="seconds", zero="at once"
    )
    presence_lease: float = _set(
        15.0, "chat", "time after which a node that says nothing more has its agents taken offline", unit="seconds"
    )
    audience: tuple[str, ...] = _set(
        (), "chat", "EVENT=conversation, user, everyone or none: an event's default audience", value="EVENT=WHO"
    )

    # backends
    push_secret_file: str = _set(
        "", "push", "file with the secret that backends must send first", value="FILE", zero="no secret", path=True
    )
    max_line_size: int = _set(1048576, "push", "longest line of a backend", unit="bytes")
    push_queue: int = _set(
        0, "push", "events held while the event log cannot be reached", unit="events", zero="they are refused"
    )

    # the log
    broker: str = _set("memory", "log", "memory, sqlite:///path, postgresql://… or redis://…", value="BROKER")
    broker_timeout: float = _set(
        5.0, "log", "how long PostgreSQL or Redis may take to answer until it counts as unreachable", unit="seconds"
    )
    broker_listen: str = _set(
        "", "log", "PostgreSQL: another URL for LISTEN, past a connection pooler", value="URL", zero="the broker's",
    )  # fmt: skip
    broker_poll: float = _set(
        0.0, "log", "PostgreSQL: time between two looks for new events, instead of LISTEN", unit="seconds",
        zero="LISTEN",
    )  # fmt: skip
    durable: bool = _set(False, "log", "sqlite: write through to the disk with every batch")
    history_events: int = _set(100_000, "log", "events kept for recovery", unit="events", zero="no limit")
    history_seconds: float = _set(3600.0, "log", "age of events kept for recovery", unit="seconds", zero="no limit")
    history_bytes: int = _set(67_108_864, "log", "data of events kept for recovery", unit="bytes", zero="no limit")
    drain_seconds: float = _set(
        5.0, "log", "time over which browsers are sent away at the end", unit="seconds", zero="all at once"
    )

    # operations
    workers: int = _set(
        0, "operations", "processes that share the ports, under a supervisor", unit="processes",
        zero="one process without a supervisor, as with 1",
    )  # fmt: skip
    io_uring: bool = _set(True, "operations", "send to many with one system call, where the kernel permits")
    metrics_port: int = _set(
        0, "operations", "TCP port on 127.0.0.1 for /metrics, /healthz and /readyz", zero="off", highest=65535
    )
    log_format: str = _set("text", "operations", "text, or json: one object a line", value="FORMAT")

    # the demo
    demo: bool = _set(False, "demo", "serve the inbox demo on the browsers' port")
    demo_database: str = _set("", "demo", "SQLite file of the demo", value="FILE", zero="a temporary one", path=True)


def settings() -> dict[str, tuple[Setting, Any, Field[Any]]]:
    """Each field's description and default value, by field name, in the order above."""
    found: dict[str, tuple[Setting, Any, Field[Any]]] = {}
    for one in fields(Config):
        default = one.default if one.default is not MISSING else None
        found[one.name] = (one.metadata["setting"], default, one)
    return found
