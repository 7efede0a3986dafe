"""`chatws db`: the schema of the PostgreSQL broker."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from chatws.brokers.postgres.schema import migrations
from chatws.command.output import Output, count
from chatws.configure import load
from chatws.database.migrations import applied, apply, transaction
from chatws.errors import OperatorError

HELP = "bring the schema of the PostgreSQL broker up to date"
DESCRIPTION = """\
`upgrade` creates the schema `chatws` in the database of a postgresql:// broker, or brings it up to date: all in one
transaction, and nothing if there is nothing to do. With a configuration file it also takes over [audience], for
chatws.publish. Run it before the first node of a new version is started; nodes of the last version go on meanwhile.
`status` says what there is, with the exit status 1 when an upgrade is due.

The broker is --broker, or CHATWS_BROKER, or that of the configuration file. A password in a command line can be seen by
every user of the machine: use one of the others, or ~/.pgpass.
"""
EXAMPLES = """\
  chatws db upgrade --config /etc/chatws/chatws.toml
  CHATWS_BROKER=postgresql://chatws@db.example/shop chatws db status
"""

SCHEMA = "chatws"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["upgrade", "status"], help="what to do")
    parser.add_argument("--broker", metavar="URL", help="postgresql://… (CHATWS_BROKER)")
    parser.add_argument("--config", metavar="FILE", help="the server's TOML file (CHATWS_CONFIG)")


def run(arguments: argparse.Namespace, output: Output) -> int:
    flags = {} if arguments.broker is None else {"broker": [arguments.broker]}
    config = load(flags, os.environ, arguments.config).config
    if not config.broker.startswith(("postgresql:", "postgres:")):
        raise OperatorError("there is no postgresql:// broker: give --broker URL, CHATWS_BROKER, or --config FILE")
    has_file = arguments.config is not None or bool(os.environ.get("CHATWS_CONFIG"))
    with transaction(config.broker) as cursor:
        if arguments.action == "status":
            return _status(cursor, output)
        kinds = (
            {event: kind for event, _, kind in (one.partition("=") for one in config.audience)} if has_file else None
        )
        return _upgrade(cursor, kinds, output)


def _upgrade(cursor: Any, kinds: dict[str, str] | None, output: Output) -> int:
    new = apply(cursor, SCHEMA, migrations())
    if kinds is not None:
        cursor.execute("SELECT chatws.set_audiences(%s)", (json.dumps(kinds),))
    names = [f"{one.number:04} {one.name}" for one in new]
    version = migrations()[-1].number
    text = f"applied {', '.join(names)}" if new else f"nothing to do: the schema is at {version:04}"
    output.result({"applied": names, "version": version}, text)
    return 0


def _status(cursor: Any, output: Output) -> int:
    there = applied(cursor, SCHEMA)
    known = {one.number for one in there}
    missing = [one for one in migrations() if one.number not in known]
    lines = [f"{one.number:04} {one.name}  since {one.at}" for one in there]
    lines += [f"{one.number:04} {one.name}  missing" for one in missing]
    lines.append(f"{count(len(missing), 'migration')} to apply: chatws db upgrade" if missing else "up to date")
    found = {
        "applied": [f"{one.number:04} {one.name}" for one in there],
        "missing": [f"{one.number:04} {one.name}" for one in missing],
    }
    output.result(found, "\n".join(lines))
    return 1 if missing else 0
