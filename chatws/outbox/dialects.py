"""The outbox's statements for each database engine. `{p}` is the prefix of the table names."""

from __future__ import annotations

import re
from typing import NamedTuple

from chatws.errors import ConfigError

__all__ = ["DIALECTS", "NOT_EXCLUSIVE", "NOT_INNODB", "SEVERAL_WRITERS", "Dialect", "check_prefix", "dialect_of"]

NOT_EXCLUSIVE = (
    "the lock of the outbox does not exclude other connections, as through ProxySQL or on Galera: "
    "name the address of a single writer in --database"
)
SEVERAL_WRITERS = (
    "several servers of this cluster may write (Galera, multi-primary Group Replication): name the address of a single "
    "writer in --database, and append ?single_writer=true"
)
NOT_INNODB = "the table of the outbox is not InnoDB: ALTER TABLE chatws_outbox ENGINE=InnoDB"
_COLUMNS = (
    "id, nonce, event, data, audience, except_user_id, except_contact_id, except_connection_id, idempotency_key,"
    " transient, op"
)
_ONLINE_VIEW = (
    "SELECT a.user_id, a.user_number, a.status, a.since FROM {p}chatws_online_agents a JOIN {p}chatws_schema s"
)


class Dialect(NamedTuple):
    """Statements of one engine.

    :ivar tables: creates what is missing. Each is idempotent.
    :ivar age: the seconds since a row was inserted.
    :ivar lease: makes a silent session end soon. `%(seconds)s` is a number.
    :ivar lock: returns one row with `held`, 1 if this session has the lock `%(name)s` now.
    :ivar database: the name of the database.
    :ivar renew: postpones the time at which `chatws_online` becomes empty.
    :ivar clusters: each returns a `value` that is 1 in a cluster in which several servers write: a lock of one does not
        exclude those of the others.
    :ivar engine: returns the storage engine of the outbox; empty where there is only one.
    """

    tables: tuple[str, ...]
    age: str
    lease: tuple[str, ...]
    lock: str
    database: str
    renew: str
    engine: str = ""
    clusters: tuple[str, ...] = ()

    def poll(self, prefix: str, where: str, limit: int) -> str:
        """Return the statement that reads rows, in id order and in one snapshot."""
        return (
            f"SELECT {_COLUMNS}, {self.age} AS age FROM {prefix}chatws_outbox"
            f" WHERE error IS NULL AND ({where}) ORDER BY id LIMIT {limit}"
        )

    def scan(self, prefix: str, highest: int) -> str:
        """Return the statement that finds the lowest id up to `highest`."""
        return f"SELECT id FROM {prefix}chatws_outbox WHERE error IS NULL AND id <= {highest} ORDER BY id LIMIT 1"


_MYSQL = Dialect(
    tables=(
        "CREATE TABLE IF NOT EXISTS {p}chatws_schema (id INT NOT NULL PRIMARY KEY, version INT NOT NULL,"
        " table_id VARCHAR(32) NOT NULL, online_until DATETIME(3) NULL) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
        "CREATE TABLE IF NOT EXISTS {p}chatws_outbox ("
        " id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,"
        " nonce BIGINT NOT NULL DEFAULT (FLOOR(RAND() * 9007199254740991)),"
        " event VARCHAR(128) NULL, data LONGTEXT NOT NULL, audience LONGTEXT NULL,"
        " except_user_id VARCHAR(128) NULL, except_contact_id VARCHAR(128) NULL,"
        " except_connection_id VARCHAR(128) NULL, idempotency_key VARCHAR(128) NULL,"
        " transient TINYINT NOT NULL DEFAULT 0, op VARCHAR(32) NULL,"
        " created_at TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3), error VARCHAR(500) NULL"
        ") ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
        "CREATE TABLE IF NOT EXISTS {p}chatws_online_agents (user_id VARCHAR(128) NOT NULL PRIMARY KEY,"
        " user_number BIGINT NULL, status VARCHAR(32) NOT NULL, since DATETIME(3) NOT NULL,"
        " KEY user_number (user_number)) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
        "CREATE OR REPLACE SQL SECURITY INVOKER VIEW {p}chatws_online AS "
        + _ONLINE_VIEW
        + " WHERE s.online_until > UTC_TIMESTAMP(3)",
    ),
    age="UNIX_TIMESTAMP(CURRENT_TIMESTAMP(3)) - UNIX_TIMESTAMP(created_at)",
    lease=("SET SESSION wait_timeout = {seconds}", "SET SESSION innodb_lock_wait_timeout = 1"),
    lock="SELECT COALESCE(IS_USED_LOCK(%(name)s) = CONNECTION_ID(), GET_LOCK(%(name)s, 0)) AS held",
    database="SELECT DATABASE() AS name",
    renew="UPDATE {p}chatws_schema SET online_until = UTC_TIMESTAMP(3) + INTERVAL {seconds} SECOND",
    clusters=(
        "SELECT @@GLOBAL.wsrep_on AS value",
        "SELECT 1 - @@GLOBAL.group_replication_single_primary_mode AS value",
    ),
    engine="SELECT ENGINE AS engine FROM information_schema.tables"
    " WHERE table_schema = DATABASE() AND table_name = '{p}chatws_outbox'",
)

_POSTGRES = Dialect(
    tables=(
        "CREATE TABLE IF NOT EXISTS {p}chatws_schema (id integer PRIMARY KEY, version integer NOT NULL,"
        " table_id text NOT NULL, online_until timestamptz)",
        "CREATE TABLE IF NOT EXISTS {p}chatws_outbox (id bigserial PRIMARY KEY,"
        " nonce bigint NOT NULL DEFAULT (random() * 9007199254740991)::bigint,"
        " event text, data text NOT NULL, audience text, except_user_id text, except_contact_id text,"
        " except_connection_id text, idempotency_key text, transient boolean NOT NULL DEFAULT false, op text,"
        " created_at timestamptz NOT NULL DEFAULT clock_timestamp(), error text)",
        "CREATE TABLE IF NOT EXISTS {p}chatws_online_agents (user_id text PRIMARY KEY, user_number bigint,"
        " status text NOT NULL, since timestamptz NOT NULL)",
        "CREATE OR REPLACE VIEW {p}chatws_online AS " + _ONLINE_VIEW + " ON s.online_until > now()",
    ),
    age="EXTRACT(EPOCH FROM clock_timestamp() - created_at)",
    lease=("SET idle_session_timeout = '{seconds}s'", "SET lock_timeout = '1s'"),
    lock="SELECT CASE WHEN EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
    " OR pg_try_advisory_lock(hashtextextended(%(name)s, 0)) THEN 1 ELSE 0 END AS held",
    database="SELECT current_database() AS name",
    renew="UPDATE {p}chatws_schema SET online_until = now() + interval '{seconds} seconds'",
)

_SQLITE = Dialect(
    tables=(
        "CREATE TABLE IF NOT EXISTS {p}chatws_schema (id INTEGER PRIMARY KEY, version INTEGER NOT NULL,"
        " table_id TEXT NOT NULL, online_until REAL)",
        "CREATE TABLE IF NOT EXISTS {p}chatws_outbox (id INTEGER PRIMARY KEY AUTOINCREMENT,"
        " nonce INTEGER NOT NULL DEFAULT (abs(random() % 9007199254740991)), event TEXT, data TEXT NOT NULL,"
        " audience TEXT, except_user_id TEXT, except_contact_id TEXT, except_connection_id TEXT,"
        " idempotency_key TEXT, transient INTEGER NOT NULL DEFAULT 0, op TEXT,"
        " created_at REAL NOT NULL DEFAULT ((julianday('now') - 2440587.5) * 86400), error TEXT)",
        "CREATE TABLE IF NOT EXISTS {p}chatws_online_agents (user_id TEXT PRIMARY KEY, user_number INTEGER,"
        " status TEXT NOT NULL, since TEXT NOT NULL)",
        "CREATE VIEW IF NOT EXISTS {p}chatws_online AS "
        + _ONLINE_VIEW
        + " ON s.online_until > (julianday('now') - 2440587.5) * 86400",
    ),
    age="(julianday('now') - 2440587.5) * 86400 - created_at",
    lease=(),
    lock="SELECT 1 AS held",  # the session holds a lock on a file
    database="SELECT file AS name FROM pragma_database_list WHERE name = 'main'",
    renew="UPDATE {p}chatws_schema SET online_until = (julianday('now') - 2440587.5) * 86400 + {seconds}",
)

DIALECTS = {"mysql": _MYSQL, "mariadb": _MYSQL, "postgresql": _POSTGRES, "postgres": _POSTGRES, "sqlite": _SQLITE}


def dialect_of(url: str) -> Dialect:
    """Return the statements for the database at `url`."""
    return DIALECTS[url.partition(":")[0]]


def check_prefix(prefix: str) -> None:
    """Check `table_prefix`.

    :raises ConfigError: it has other characters than those of a plain SQL name, or more than 32.
    """
    if re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]{0,31})?", prefix) is None:
        raise ConfigError("--table-prefix must have up to 32 characters of A-Z a-z 0-9 _, and begin with no digit")
