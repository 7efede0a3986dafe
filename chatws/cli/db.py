"""`chatws db`: the schema of the PostgreSQL broker, and the tables of the outbox."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from chatws.brokers.postgres.schema import describe_problem, migrations
from chatws.cli.output import Output, count
from chatws.config.loader import load
from chatws.config.validate import database_url
from chatws.database.migrations import applied, apply, transaction
from chatws.errors import ConfigError
from chatws.outbox.dialects import DIALECTS
from chatws.outbox.migrations import LATER_VERSION, VERSION, outbox_version, upgrade_outbox

HELP = "bring the schema of the PostgreSQL broker and the tables of the outbox up to date"
DESCRIPTION = """\
`upgrade` creates the schema `chatws` in the database of a postgresql:// broker, or brings it up to date, in one
transaction. It changes nothing if the schema is up to date. With a configuration file it also stores [audience], for
chatws.publish. Run it before you start the first node of a new version. Nodes of the previous version keep running.
`status` lists the migrations. Its exit status is 1 if an upgrade is due, or if the schema is of a later version that
this version of chatws cannot use.

With --database, or with `outbox` in the configuration, `upgrade` also creates the tables of the outbox in the
application's database (MySQL, MariaDB, PostgreSQL, SQLite).

The broker is --broker, CHATWS_BROKER, or that of the configuration file, and likewise the database. Every user of the
machine can see a password in a command line: use one of the others, or ~/.pgpass.
"""
EXAMPLES = """\
  chatws db upgrade --config /etc/chatws/chatws.toml
  CHATWS_BROKER=postgresql://chatws@db.example/shop chatws db status
  CHATWS_DATABASE=mysql://admin:PASSWORD@localhost/shop CHATWS_OUTBOX=true chatws db upgrade
"""

SCHEMA = "chatws"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["upgrade", "status"], help="what to do")
    parser.add_argument("--broker", metavar="URL", help="postgresql://… (CHATWS_BROKER)")
    parser.add_argument("--database", metavar="URL", help="of the application, for the outbox (CHATWS_DATABASE)")
    parser.add_argument("--table-prefix", metavar="TEXT", help="of the outbox's tables (CHATWS_TABLE_PREFIX)")
    parser.add_argument("--config", metavar="FILE", help="the server's TOML file (CHATWS_CONFIG)")


def run(arguments: argparse.Namespace, output: Output) -> int:
    given = {name: getattr(arguments, name) for name in ("broker", "database", "table_prefix")}
    flags = {name: [value] for name, value in given.items() if value is not None}
    config = load(flags, os.environ, arguments.config).config
    has_broker = config.broker.startswith(("postgresql:", "postgres:"))
    if arguments.database is not None or config.outbox:
        url = database_url(config)
        if not url:
            raise ConfigError("there is no database for the outbox: give --database URL, or CHATWS_DATABASE")
        if url.partition(":")[0] not in DIALECTS:
            raise ConfigError("the database URL must begin with postgresql://, mysql://, mariadb:// or sqlite:///")
        status = _outbox(arguments.action, url, config.table_prefix, output)
        if status or not has_broker:
            return status
    if not has_broker:
        raise ConfigError("there is no postgresql:// broker: give --broker URL, CHATWS_BROKER, or --config FILE")
    has_file = arguments.config is not None or bool(os.environ.get("CHATWS_CONFIG"))
    with transaction(config.broker) as cursor:
        if arguments.action == "status":
            return _status(cursor, output)
        pairs = (assignment.partition("=") for assignment in config.audience)
        return _upgrade(cursor, {event: kind for event, _, kind in pairs} if has_file else None, output)


def _outbox(action: str, url: str, prefix: str, output: Output) -> int:
    if action == "status":
        version = outbox_version(url, prefix)
        state = "up to date" if version == VERSION else "missing: chatws db upgrade"
        if version > VERSION:
            state = LATER_VERSION
        output.result({"outbox": version}, f"the tables of the outbox are {state}")
        return 0 if version == VERSION else 1
    changed = upgrade_outbox(url, prefix)
    text = "created the tables of the outbox" if changed else "nothing to do: the tables of the outbox are up to date"
    output.result({"outbox": VERSION, "changed": changed}, text)
    return 0


def _upgrade(cursor: Any, audiences: dict[str, str] | None, output: Output) -> int:
    new = apply(cursor, SCHEMA, migrations())
    if audiences is not None:
        cursor.execute("SELECT chatws.set_audiences(%s)", (json.dumps(audiences),))
    names = [f"{migration.number:04} {migration.name}" for migration in new]
    version = migrations()[-1].number
    text = f"applied {', '.join(names)}" if new else f"nothing to do: the schema is at {version:04}"
    output.result({"applied": names, "version": version}, text)
    return 0


def _status(cursor: Any, output: Output) -> int:
    done = applied(cursor, SCHEMA)
    numbers = {migration.number for migration in done}
    missing = [migration for migration in migrations() if migration.number not in numbers]
    problem = describe_problem(done[-1].number, done[-1].needs) if done else describe_problem(0, 0)
    lines = [f"{migration.number:04} {migration.name}  since {migration.at}" for migration in done]
    lines += [f"{migration.number:04} {migration.name}  missing" for migration in missing]
    if missing:
        lines.append(f"{count(len(missing), 'migration')} to apply: chatws db upgrade")
    else:
        lines.append(f"this version of chatws cannot use it: {problem}" if problem else "up to date")
    status = {
        "applied": [f"{migration.number:04} {migration.name}" for migration in done],
        "missing": [f"{migration.number:04} {migration.name}" for migration in missing],
        "problem": problem,
    }
    output.result(status, "\n".join(lines))
    return 1 if missing or problem else 0
