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

__all__ = ["check", "migrations"]

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


async def check(database: PostgresDatabase) -> None:
    """Check the schema of the database.

    :raises ConfigError: it cannot be reached, or its schema is not one that this program can use.
    """
    latest = migrations()[-1].number
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
    if not rows:
        raise ConfigError(f"broker: the database has no schema chatws yet: {_UPGRADE}")
    if rows[0]["number"] < latest:
        raise ConfigError(f"broker: the schema chatws is of an earlier version: {_UPGRADE}")
    if rows[0]["needs"] > latest:
        raise ConfigError("broker: the schema chatws is of a later version: install that version of chatws")
