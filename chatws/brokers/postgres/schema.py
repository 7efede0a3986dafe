"""The schema `chatws`: numbered SQL files, and whether a database has the ones that this program needs.

`chatws db upgrade` applies them (chatws.database.migrations). The comment at the top of each says which earlier
programs can still work with it: nodes of the last release go on while the schema has been upgraded under them.
"""

from __future__ import annotations

import re
from importlib.resources import files

from chatws.database.interface import QueryFailed
from chatws.database.migrations import Migration, require_utf8
from chatws.database.postgres_pool import PostgresDatabase
from chatws.errors import ConfigError, StartError, Unavailable

__all__ = ["check", "describe_problem", "migrations"]

_FILE = re.compile(r"(\d{4})_(\w+)\.sql")
_KNOWS = re.compile(r"^-- Programs that know migration (\d+) or a later one can work with it\.$", re.MULTILINE)
_UPGRADE = "run `chatws db upgrade --broker URL`"


def migrations() -> list[Migration]:
    """Return all migrations, ordered by their numbers 1, 2, 3 and so on."""
    result = []
    for file in files("chatws.brokers.postgres").joinpath("migrations").iterdir():
        name = _FILE.fullmatch(file.name)
        if name is not None:
            sql = file.read_text("utf-8")
            needs = _KNOWS.search(sql)
            assert needs is not None, f"{file.name} does not say for which programs it is"
            result.append(Migration(int(name[1]), name[2], sql, int(needs[1])))
    return sorted(result)


def describe_problem(number: int, needs: int) -> str:
    """Return why this program cannot work with a schema, and what to do. Empty if it can.

    :param number: the last migration that has been applied; 0 if there is none.
    :param needs: the latest migration that a program must know to work with the schema.
    """
    latest = migrations()[-1].number
    if not number:
        return f"the database has no schema chatws yet: {_UPGRADE}"
    if number < latest:
        return f"the schema chatws is of an earlier version: {_UPGRADE}"
    if needs > latest:
        return "the schema chatws is of a later version: install that version of chatws"
    return ""


async def check(database: PostgresDatabase) -> None:
    """Check the schema of the database.

    :raises ConfigError: it cannot be reached, or its schema is not one that this program can use.
    """
    try:
        [basics] = await database.query(
            "SELECT to_regclass('chatws.migrations') IS NOT NULL AS there, getdatabaseencoding() AS encoding, "
            "current_database() AS name",
            {},
        )
        require_utf8(basics["name"], basics["encoding"])
        rows = (
            await database.query("SELECT number, needs FROM chatws.migrations ORDER BY number DESC LIMIT 1", {})
            if basics["there"]
            else []
        )
    except QueryFailed as error:
        raise ConfigError(f"broker: {error}") from None
    except Unavailable as error:
        raise StartError(f"broker: PostgreSQL cannot be asked: {database.problem or error}") from None
    problem = describe_problem(rows[0]["number"], rows[0]["needs"]) if rows else describe_problem(0, 0)
    if problem:
        raise ConfigError(f"broker: {problem}")
