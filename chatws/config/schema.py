"""All settings of a server in one frozen object: names, defaults, units, and the meaning of 0.

A field `send_buffer` is `--send-buffer` on the command line, `send_buffer` in the TOML file and `CHATWS_SEND_BUFFER`
in the environment. Flags override the environment, and the environment overrides the file. `chatws.config.loader`
builds a `Config` from the three. A test compares the tables of `docs/configuration.md` with this module.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

__all__ = ["SECTIONS", "Config", "Setting", "settings"]

#: The tables of the TOML file, each with its heading in `--help` and in the documentation.
SECTIONS = {
    "server": "Listeners and shutdown",
    "auth": "Authentication",
    "contacts": "Contacts",
    "database": "Application database",
    "http": "HTTP and WebSocket handshake",
    "limits": "Limits",
    "chat": "Chat",
    "push": "Push API",
    "webhooks": "Webhooks",
    "pusher": "Pusher protocol",
    "history": "Event history",
    "operations": "Operations",
    "demo": "Demo",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """The description of one field of `Config`.

    :ivar section: a key of `SECTIONS`.
    :ivar unit: of the value: "seconds", "bytes", "events" …; empty for names and switches.
    :ivar zero_meaning: what 0 (or an empty value) means. Without it, a number must be above 0.
    :ivar flag: the flag of a list, in the singular because it is repeated: "--auth". Empty: made from the name.
    :ivar secret: never shown, not even by `--check`.
    :ivar value: placeholder for the value in `--help`. Empty: the unit, or TEXT.
    :ivar choices: the values allowed; empty for any.
    :ivar highest: the largest number allowed, or None.
    :ivar path: whether it names a file, relative to the directory in which chatws was started.
    :ivar environment_only: whether it is neither a flag nor a key of the file, because other users of the machine can
        read command lines and files.
    """

    section: str
    help: str
    unit: str = ""
    zero_meaning: str = ""
    flag: str = ""
    secret: bool = False
    value: str = ""
    choices: tuple[str, ...] = ()
    highest: int | None = None
    path: bool = False
    environment_only: bool = False


def _set(default: Any, section: str, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"setting": Setting(section, help, **more)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one server, checked by `chatws.config.validate.check`. Tuples are lists."""

    # [server]
    port: int = _set(
        8080, "server", "TCP port for WebSocket clients", zero_meaning="any free port", highest=65535
    )  # fmt: skip
    interface: str = _set(
        "127.0.0.1", "server", "address that --port binds", value="ADDRESS", zero_meaning="every IPv4 address"
    )
    listen: tuple[str, ...] = _set(
        (), "server", "Twisted endpoint string for WebSocket clients, instead of --port", value="ENDPOINT"
    )
    push_port: int = _set(
        8081, "server", "TCP port for backends, on 127.0.0.1", zero_meaning="any free port", highest=65535
    )
    push_listen: tuple[str, ...] = _set(
        (), "server", "Twisted endpoint string for backends, instead of --push-port", value="ENDPOINT"
    )
    api_port: int = _set(
        0, "server", "TCP port of the HTTP API for backends, on 127.0.0.1", zero_meaning="off", highest=65535
    )
    api_listen: tuple[str, ...] = _set(
        (), "server", "Twisted endpoint string of the HTTP API for backends, instead of --api-port", value="ENDPOINT"
    )
    drain_timeout: float = _set(
        5.0, "server", "period over which a stopping server closes its WebSockets", unit="seconds",
        zero_meaning="all at once",
    )  # fmt: skip
    drain_close_code: int = _set(
        4012, "server", "close code at shutdown: 4012, or 1000 for old pages that do not reconnect after other codes. "
        "Pages with the client library always get 4012", value="CODE",
    )  # fmt: skip

    # [auth]
    auth_methods: tuple[str, ...] = _set(
        (), "auth", "authentication method: token, callback, database or trust. The first that can handle the `auth` "
        "message decides", flag="--auth", value="METHOD",
        zero_meaning="token if a secret or public key is set, else callback if a URL is set, else database if one is "
        "set, else trust",
    )  # fmt: skip
    secret_files: tuple[str, ...] = _set(
        (), "auth", "file with the secret that signs tokens. During a rotation two: the new one and the old one",
        flag="--secret-file", value="FILE", path=True,
    )  # fmt: skip
    secret: tuple[str, ...] = _set(
        (), "auth", "the token secret itself. CHATWS_SECRET_OLD holds the previous one during a rotation",
        secret=True, environment_only=True,
    )  # fmt: skip
    token_key_files: tuple[str, ...] = _set(
        (), "auth", "file with a public key that verifies tokens (PEM: RSA, P-256 or Ed25519). During a rotation two",
        flag="--token-key-file", value="FILE", path=True,
    )  # fmt: skip
    jwks_url: str = _set(
        "", "auth", "URL of the public keys that verify tokens (a JWK set)", value="URL", zero_meaning="none"
    )
    allow_world_readable_secrets: bool = _set(
        False, "auth", "accept secret files that every user of the machine can read: for containers, which have no "
        "other users",
    )  # fmt: skip
    token_audience: str = _set("", "auth", "required `aud` claim of tokens", zero_meaning="`aud` is not checked")
    auth_url: str = _set(
        "", "auth", "URL that authenticates a WebSocket client by its cookies", value="URL", zero_meaning="none"
    )
    auth_ttl: float = _set(
        3600.0, "auth", "time after which the server asks the URL again about an open connection, unless the response "
        "has `expires_in`", unit="seconds", zero_meaning="never",
    )  # fmt: skip
    auth_timeout: float = _set(
        5.0,
        "auth",
        "longest time for the check of an `auth` or `subscribe`, without its wait for a turn",
        unit="seconds",
    )
    auth_deadline: float = _set(
        10.0, "auth", "longest time that a connection may stay without `auth`", unit="seconds", zero_meaning="no limit"
    )
    auth_cache: float = _set(
        5.0, "auth", "how long the result of a user or permission check is cached", unit="seconds",
        zero_meaning="not cached",
    )  # fmt: skip

    # [contacts]
    contacts: bool = _set(False, "contacts", "admit contacts: customers who may see their own conversations")
    agent_roles: tuple[str, ...] = _set(
        ("agent",), "contacts", "value of `role` that makes an agent", flag="--agent-role", value="ROLE",
    )  # fmt: skip
    contact_roles: tuple[str, ...] = _set(
        ("contact",), "contacts", "value of `role` that makes a contact", flag="--contact-role", value="ROLE",
    )  # fmt: skip
    default_role: str = _set(
        "", "contacts", "with contacts: the role of credentials that name none", value="ROLE",
        zero_meaning="these credentials are rejected",
    )  # fmt: skip
    contact_events: tuple[str, ...] = _set(
        ("new_message", "message_read", "message_status_updated", "typing"), "contacts",
        "event of a conversation that contacts get", flag="--contact-event", value="EVENT",
        zero_meaning="only what is published for contacts",
    )  # fmt: skip
    contact_hidden_keys: tuple[str, ...] = _set(
        ("private", "internal"), "contacts", "contacts do not get a message in which this key is true",
        flag="--contact-hidden-key", value="KEY", zero_meaning="none",
    )  # fmt: skip
    contact_query: str = _set(
        "", "contacts", "returns a row if the contact of a token or session, %(contact_id)s, exists and is active",
        value="SQL", zero_meaning="not checked",
    )  # fmt: skip
    contact_conversation_query: str = _set(
        "", "contacts", "returns a row if %(contact_id)s may read %(conversation_id)s", value="SQL",
        zero_meaning="contacts may read the `conversations` of their token or session only",
    )  # fmt: skip
    contact_grace: float = _set(
        90.0, "contacts", "time between a contact's last subscription to a conversation and `offline` in "
        "`contact_status`", unit="seconds", zero_meaning="`offline` at once",
    )  # fmt: skip
    availability: bool = _set(
        False, "contacts", "tell contacts whether an agent is online with the status `online`, without ids"
    )
    max_connections_per_contact: int = _set(
        10, "contacts", "most open WebSockets of one contact, over all workers", unit="connections",
        zero_meaning="no limit",
    )  # fmt: skip
    max_contacts_per_ip: int = _set(
        0, "contacts", "most open WebSockets of contacts from one address, after `auth` and over all workers",
        unit="connections", zero_meaning="no limit",
    )  # fmt: skip

    # [database]
    database: str = _set(
        "", "database", "postgresql://…, mysql://… or sqlite:///path", value="URL", zero_meaning="none", secret=True
    )
    database_file: str = _set(
        "", "database", "file that holds the database URL", value="FILE", zero_meaning="none", path=True
    )
    database_pool: int = _set(5, "database", "connections to the database", unit="connections")
    user_query: str = _set(
        "SELECT id, name FROM users WHERE id = %(user_id)s AND status = 'active'",
        "database", "returns a row if the user exists and is active", value="SQL",
    )  # fmt: skip
    conversation_query: str = _set(
        "SELECT id FROM conversations WHERE id = %(conversation_id)s",
        "database", "returns a row if %(user_id)s may read %(conversation_id)s", value="SQL",
        zero_meaning="all users may read all conversations",
    )  # fmt: skip
    heartbeat_query: str = _set(
        "", "database", "executed for %(user_id)s, %(last_activity)s of batched pings", value="SQL", zero_meaning="none"
    )
    activity_query: str = _set(
        "", "database", "executed for %(user_id)s, %(activity_type)s of batched activities", value="SQL",
        zero_meaning="none",
    )  # fmt: skip
    outbox: bool = _set(
        False, "database", "send the events that the application inserts in the table chatws_outbox, and maintain "
        "chatws_online",
    )  # fmt: skip
    outbox_max_age: float = _set(
        3600.0, "database", "age from which a row of the outbox is no longer sent", unit="seconds",
        zero_meaning="no limit",
    )  # fmt: skip
    table_prefix: str = _set("", "database", "prefix of the tables of the outbox", zero_meaning="none")

    # [http]
    allowed_origins: tuple[str, ...] = _set(
        (), "http", "allowed origin besides the page's own host: scheme://host[:port], null or file://",
        flag="--allowed-origin", value="ORIGIN",
    )  # fmt: skip
    trusted_proxies: tuple[str, ...] = _set(
        ("127.0.0.0/8", "::1/128"), "http", "address or network whose X-Forwarded-For and X-Real-IP headers are used",
        flag="--trusted-proxy", value="NETWORK", zero_meaning="none",
    )  # fmt: skip
    handshake_timeout: float = _set(
        10.0, "http", "longest time for receiving a request head, and then a body", unit="seconds"
    )
    max_head_size: int = _set(32768, "http", "largest request head, cookies included", unit="bytes")
    compression: bool = _set(
        False,
        "http",
        "accept the WebSocket extension permessage-deflate, except from Safari 15.0 to 15.3, which fails on it",
    )

    # [limits]
    max_connections: int = _set(
        0,
        "limits",
        "most open WebSockets",
        unit="connections",
        zero_meaning="as many as the limit of open files allows",
    )
    max_connections_per_ip: int = _set(
        0,
        "limits",
        "most open WebSockets of one address, over all workers. 8 other connections may be open besides",
        unit="connections",
        zero_meaning="no limit",
    )
    max_connections_per_user: int = _set(
        50, "limits", "most open WebSockets of one agent, over all workers", unit="connections", zero_meaning="no limit"
    )
    max_message_size: int = _set(65536, "limits", "largest message of a WebSocket client, decompressed", unit="bytes")
    max_fragments: int = _set(64, "limits", "most frames of one message", unit="frames")
    message_rate: float = _set(
        20.0, "limits", "sustained rate of `auth`, `typing`, `presence` and invalid messages of a connection",
        unit="messages a second", zero_meaning="no limit",
    )  # fmt: skip
    message_burst: int = _set(100, "limits", "most of these messages at once", unit="messages")
    subscription_rate: float = _set(
        200.0, "limits", "sustained rate at which `subscribe`, `unsubscribe`, `ping` and `activity` are read from a "
        "connection. Further messages wait", unit="messages a second", zero_meaning="no limit",
    )  # fmt: skip
    subscription_burst: int = _set(2000, "limits", "most of these messages at once", unit="messages")
    queue_bytes: int = _set(
        67_108_864, "limits", "memory for messages of all connections that wait for a check of an `auth` or "
        "`subscribe`. Beyond it, each connection may queue 8 KiB", unit="bytes", zero_meaning="no limit",
    )  # fmt: skip
    max_subscriptions: int = _set(
        1000, "limits", "most subscribed conversations of one connection", unit="conversations", zero_meaning="no limit"
    )
    ping_interval: float = _set(
        30.0, "limits", "time between WebSocket pings of an idle connection", unit="seconds", zero_meaning="no pings"
    )
    ping_timeout: float = _set(
        20.0, "limits", "a connection that does not answer a ping for so long is closed", unit="seconds"
    )
    send_buffer: int = _set(
        1048576, "limits", "unsent bytes after which a connection is closed as a slow consumer", unit="bytes"
    )

    # [chat]
    presence_grace: float = _set(
        3.0, "chat", "time between an agent's last disconnect and `offline`", unit="seconds",
        zero_meaning="`offline` at once",
    )  # fmt: skip
    presence_ttl: float = _set(
        15.0, "chat", "time after which the agents of an unreachable node become offline", unit="seconds"
    )
    status_keep: float = _set(
        28_800.0, "chat", "how long an agent's status, such as `away`, outlives the agent's connections",
        unit="seconds", zero_meaning="it ends with them",
    )  # fmt: skip
    audience: tuple[str, ...] = _set(
        (),
        "chat",
        "default audience of an event: EVENT=conversation, user, agents, everyone or none",
        value="EVENT=AUDIENCE",
    )

    # [push]
    push_secret_file: str = _set(
        "", "push", "file with the secret that backends must send first", value="FILE", zero_meaning="no secret",
        path=True,
    )  # fmt: skip
    max_line_size: int = _set(1048576, "push", "longest line of a backend, or item of the HTTP API", unit="bytes")
    api_max_body: int = _set(1048576, "push", "largest request body of the HTTP API, also when inflated", unit="bytes")
    api_timeout: float = _set(
        30.0, "push", "longest time for receiving a request of the HTTP API, and for sending its response",
        unit="seconds",
    )  # fmt: skip
    api_idle_timeout: float = _set(
        60.0, "push", "a connection of the HTTP API without a request is closed after so long", unit="seconds"
    )

    # [webhooks]
    webhook_url: str = _set(
        "", "webhooks", "URL that gets webhooks. Redirects are not followed", value="URL", zero_meaning="no webhooks"
    )
    webhook_secret_file: str = _set(
        "", "webhooks", "file with the secret that signs webhooks, or a secret a line during a rotation",
        value="FILE", zero_meaning="webhooks are not signed", path=True,
    )  # fmt: skip
    webhook_header_file: str = _set(
        "", "webhooks", "file with further headers of the requests, `Name: value` a line", value="FILE",
        zero_meaning="none", path=True,
    )  # fmt: skip
    webhook_ca_file: str = _set(
        "", "webhooks", "file with the certificates of authorities that are trusted instead of the system's",
        value="FILE", zero_meaning="the system's", path=True,
    )  # fmt: skip
    webhook_events: tuple[str, ...] = _set(
        ("agent_online", "agent_offline", "agent_status", "heartbeat", "presence_reset"), "webhooks",
        "event to report. The others are activity, contact_online and contact_offline", flag="--webhook-event",
        value="EVENT",
    )  # fmt: skip
    webhook_timeout: float = _set(10.0, "webhooks", "longest time for a request and its answer", unit="seconds")
    webhook_max_body: int = _set(65536, "webhooks", "largest request body", unit="bytes")
    webhook_heartbeat: float = _set(30.0, "webhooks", "time between two heartbeats of an agent", unit="seconds")
    webhook_start_delay: float = _set(
        40.0, "webhooks", "time after the start of a broker in memory in which nothing is sent: pages reconnect",
        unit="seconds", zero_meaning="none",
    )  # fmt: skip
    webhook_queue: int = _set(
        50_000, "webhooks", "most changes that wait for a receiver that does not answer", unit="events"
    )

    # [pusher]. The file has `[[pusher.app]]` tables, and keys without the prefix.
    pusher_apps: tuple[str, ...] = _set(
        (), "pusher", "an app, as a JSON object with the keys of a `[[pusher.app]]` table", flag="--pusher-app",
        value="JSON", zero_meaning="none",
    )  # fmt: skip
    pusher_app_id: str = _set(
        "", "pusher", "id of the only app: decimal digits, as in the paths of the HTTP API", value="ID",
        zero_meaning="no app",
    )  # fmt: skip
    pusher_key: str = _set("", "pusher", "key of this app: public, and part of the URL", value="KEY")
    pusher_secret: str = _set("", "pusher", "secret of this app", secret=True, environment_only=True)
    pusher_secret_file: str = _set(
        "", "pusher", "file with the secret of this app, instead of the variable", value="FILE", path=True
    )
    pusher_client_events: bool = _set(False, "pusher", "accept client events (whispers) of this app")
    pusher_conversation_channel: str = _set(
        "private-conversation.{id}", "pusher", "channel that is a conversation of the chat", value="PATTERN",
        zero_meaning="none",
    )  # fmt: skip
    pusher_user_channel: tuple[str, ...] = _set(
        ("private-user.{id}", "private-App.Models.User.{id}"), "pusher", "channel that is an agent of the chat",
        flag="--pusher-user-channel", value="PATTERN", zero_meaning="none",
    )  # fmt: skip
    pusher_max_message: int = _set(
        1048576, "pusher", "largest message of a Pusher client, and largest data of an event", unit="bytes"
    )

    # [history]
    broker: str = _set("memory", "history", "memory, sqlite:///path, postgresql://… or redis://…", value="BROKER")
    broker_timeout: float = _set(
        5.0, "history", "PostgreSQL or Redis counts as unavailable if it does not answer for so long", unit="seconds"
    )
    broker_listen: str = _set(
        "", "history", "PostgreSQL: another URL for LISTEN, past a connection pooler", value="URL",
        zero_meaning="the broker's URL",
    )  # fmt: skip
    broker_poll: float = _set(
        0.0, "history", "PostgreSQL: time between two polls for new events, instead of LISTEN", unit="seconds",
        zero_meaning="LISTEN",
    )  # fmt: skip
    sqlite_synchronous: str = _set(
        "normal", "history", "SQLite: normal, or full: a publish is acknowledged when it has reached the disk",
        value="MODE", choices=("normal", "full"),
    )  # fmt: skip
    history_events: int = _set(
        100_000, "history", "most events kept for recovery", unit="events", zero_meaning="no limit"
    )
    history_seconds: float = _set(
        3600.0, "history", "highest age of events kept for recovery", unit="seconds", zero_meaning="no limit"
    )
    history_bytes: int = _set(
        67_108_864, "history", "most data of events kept for recovery", unit="bytes", zero_meaning="no limit"
    )

    # [operations]
    workers: int = _set(
        0, "operations", "processes that share the ports, under a supervisor", unit="processes",
        zero_meaning="one process without a supervisor, as with 1",
    )  # fmt: skip
    worker_timeout: float = _set(
        30.0, "operations", "a worker that does not respond to its supervisor for so long is killed and replaced",
        unit="seconds", zero_meaning="never",
    )  # fmt: skip
    io_uring: bool = _set(True, "operations", "send to many clients with one system call, if the kernel permits it")
    node_name: str = _set(
        "", "operations", "name of this node in metrics, logs and `chatws nodes`", value="NAME",
        zero_meaning="the name of the host",
    )  # fmt: skip
    metrics_port: int = _set(
        0, "operations", "TCP port on 127.0.0.1 for /metrics, /healthz and /readyz", zero_meaning="off", highest=65535
    )
    metrics_listen: tuple[str, ...] = _set(
        (), "operations", "Twisted endpoint string for /metrics, instead of --metrics-port", value="ENDPOINT"
    )
    metrics_secret_file: str = _set(
        "", "operations", "file with the secret that Prometheus sends as a bearer token for /metrics", value="FILE",
        zero_meaning="no secret", path=True,
    )  # fmt: skip
    log_format: str = _set(
        "text", "operations", "text, or json: one object per line", value="FORMAT", choices=("text", "json")
    )
    log_level: str = _set(
        "info", "operations", "lowest level that is logged: debug, info, warn, error or critical. A module may have "
        "its own: info,chatws.push=debug", value="LEVELS",
    )  # fmt: skip

    # [demo]
    demo: bool = _set(False, "demo", "serve the inbox demo on the WebSocket port")
    demo_database: str = _set(
        "", "demo", "SQLite file of the demo", value="FILE", zero_meaning="a temporary file", path=True
    )


def settings() -> dict[str, tuple[Setting, Any, Field[Any]]]:
    """Return each field's description and default value, by field name, in the order above."""
    table: dict[str, tuple[Setting, Any, Field[Any]]] = {}
    for attribute in fields(Config):
        default = attribute.default if attribute.default is not MISSING else None
        table[attribute.name] = (attribute.metadata["setting"], default, attribute)
    return table
