"""Everything that can be set, in one frozen object: names, defaults, units, and what 0 means.

A field `send_buffer` is `--send-buffer` on the command line, `send_buffer` in the TOML file and
`CHATWS_SEND_BUFFER` in the environment; flags go over environment over file (chatws.tap builds a `Config` from them,
`docs/configuration.md` is held to this table by a test).
"""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

__all__ = ["Config", "Setting", "settings"]


@dataclass(frozen=True, slots=True)
class Setting:
    """What is said of one field for people.

    :ivar unit: of the value: "seconds", "bytes", "events" …; empty for names and switches.
    :ivar zero: what 0 (or an empty value) means; empty where it has no special meaning.
    :ivar secret: never shown, not even by `--check`.
    """

    section: str
    help: str
    unit: str = ""
    zero: str = ""
    secret: bool = False


def _set(default: Any, section: str, help: str, *, unit: str = "", zero: str = "", secret: bool = False) -> Any:
    return field(default=default, metadata={"setting": Setting(section, help, unit, zero, secret)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one server, checked by `chatws.service.build` as a whole. Tuples are repeatable options."""

    # where it listens
    port: int = _set(8080, "listen", "TCP port for browsers", zero="any free port")
    interface: str = _set("127.0.0.1", "listen", "address that --port and no --listen binds")
    listen: tuple[str, ...] = _set((), "listen", "a Twisted endpoint string for browsers, instead of --port")
    push_port: int = _set(8081, "listen", "TCP port for backends, on 127.0.0.1", zero="any free port")
    push_listen: tuple[str, ...] = _set((), "listen", "a Twisted endpoint string for backends, instead of --push-port")

    # who may enter
    auth: tuple[str, ...] = _set(
        (), "auth", "ticket, callback, database or trust; the first that has an opinion decides",
        zero="ticket if there is a secret, else callback if there is a URL, else database if there is one, else trust",
    )  # fmt: skip
    secret_file: tuple[str, ...] = _set((), "auth", "file with the secret that signs tickets; two while it is rotated")
    secret: tuple[str, ...] = _set((), "auth", "the ticket secret itself, from the environment only", secret=True)
    ticket_audience: str = _set("", "auth", "the `aud` that tickets must carry", zero="not looked at")
    auth_url: str = _set("", "auth", "URL that says who a browser is, by its cookies")
    auth_timeout: float = _set(5.0, "auth", "how long an `auth` or `subscribe` waits for an answer", unit="seconds")
    auth_deadline: float = _set(
        10.0, "auth", "how long a connection may stay without `auth`", unit="seconds", zero="for ever"
    )
    auth_cache: float = _set(
        5.0, "auth", "how long an answer about a user or conversation is kept", unit="seconds", zero="not kept"
    )

    # the shop's database
    database: str = _set("", "database", "postgresql://… or sqlite:///path", zero="none", secret=True)
    database_file: str = _set("", "database", "file that holds the database URL", zero="none")
    database_pool: int = _set(5, "database", "connections to the database", unit="connections")
    user_query: str = _set(
        "SELECT id, name FROM users WHERE id = %(user_id)s AND status = 'active'",
        "database", "returns a row when the user exists and is active",
    )  # fmt: skip
    conversation_query: str = _set(
        "SELECT id FROM conversations WHERE id = %(conversation_id)s",
        "database", "returns a row when %(user_id)s may read %(conversation_id)s", zero="everybody may read everything",
    )  # fmt: skip
    heartbeat_query: str = _set("", "database", "run for %(user_id)s, %(last_activity)s of batched pings", zero="none")
    activity_query: str = _set(
        "", "database", "run for %(user_id)s, %(activity_type)s of batched activities", zero="none"
    )

    # the door
    allowed_origin: tuple[str, ...] = _set(
        (), "door", "an origin besides the page's own host, exactly: scheme://host[:port]"
    )
    trusted_proxy: tuple[str, ...] = _set(
        ("127.0.0.0/8", "::1/128"), "door", "address or network whose X-Forwarded-For and X-Real-IP count"
    )
    max_connections: int = _set(0, "door", "open WebSockets", unit="connections", zero="as many as files may be open")
    max_connections_per_ip: int = _set(0, "door", "open WebSockets of one address", unit="connections", zero="no limit")
    max_connections_per_user: int = _set(50, "door", "open WebSockets of one user", unit="connections", zero="no limit")
    handshake_timeout: float = _set(10.0, "door", "how long a request head may take", unit="seconds")
    max_head_size: int = _set(8192, "door", "size of a request head", unit="bytes")
    max_message_size: int = _set(65536, "door", "size of a browser's message, inflated", unit="bytes")
    max_fragments: int = _set(64, "door", "frames that one message may be cut into", unit="frames")
    rate: float = _set(20.0, "door", "messages a connection may send for long", unit="messages/s", zero="no limit")
    rate_burst: int = _set(100, "door", "messages it may send at once", unit="messages")
    max_subscriptions: int = _set(200, "door", "conversations of one connection", unit="conversations", zero="no limit")
    ping_interval: float = _set(
        30.0, "door", "between WebSocket pings of an idle connection", unit="seconds", zero="no pings"
    )
    ping_timeout: float = _set(20.0, "door", "without an answer to a ping", unit="seconds")
    send_buffer: int = _set(1048576, "door", "unsent bytes after which a reader counts as too slow", unit="bytes")
    compression: bool = _set(False, "door", "offer permessage-deflate")

    # what the chat does
    presence_grace: float = _set(
        3.0, "chat", "between an agent's last tab and `offline`", unit="seconds", zero="at once"
    )
    audience: tuple[str, ...] = _set(
        (), "chat", "EVENT=conversation, user, everyone or none: an event's default audience"
    )

    # backends
    push_secret_file: str = _set("", "push", "file with the secret that backends must send first", zero="no secret")
    max_line_size: int = _set(1048576, "push", "size of a backend's line", unit="bytes")

    # the log
    broker: str = _set("memory", "log", "memory, or sqlite:///path")
    durable: bool = _set(False, "log", "sqlite: write through to the disk with every batch")
    history_events: int = _set(100_000, "log", "events kept for recovery", unit="events", zero="no limit")
    history_seconds: float = _set(3600.0, "log", "age of events kept for recovery", unit="seconds", zero="no limit")
    history_bytes: int = _set(67_108_864, "log", "data of events kept for recovery", unit="bytes", zero="no limit")
    drain_seconds: float = _set(
        5.0, "log", "over which browsers are sent away at a restart", unit="seconds", zero="all at once"
    )

    # the demo
    demo: bool = _set(False, "demo", "serve the inbox demo on the browsers' port")
    demo_database: str = _set("", "demo", "SQLite file of the demo", zero="a temporary one")


def settings() -> dict[str, tuple[Setting, Any, Field[Any]]]:
    """Each field's description and default value, by field name, in the order above."""
    found: dict[str, tuple[Setting, Any, Field[Any]]] = {}
    for one in fields(Config):
        default = one.default if one.default is not MISSING else None
        found[one.name] = (one.metadata["setting"], default, one)
    return found
