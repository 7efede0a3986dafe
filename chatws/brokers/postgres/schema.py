"""The schema `chatws`: numbered SQL files, and whether a database has the ones that this program needs.

`chatws db upgrade` applies them (chatws.database.migrations). The comment at the top of each says which earlier
programs can still work with it: nodes of the last release go on while the schema has been upgraded under them.
"""

from __future__ import annotations

import re
from importlib.resources import files

from chatws.database.contract import QueryFailed
from chatws.database.migrations import Migration
from chatws.database.postgres_pool import PostgresDatabase
from chatws.errors import OperatorError, Unavailable

__all__ = ["check", "migrations"]

_FILE = re.compile(r"(\d{4})_(\w+)\.sql")
_KNOWS = re.compile(r"^-- Programs that know migration (\d+) or a later one can work with it\.$", re.MULTILINE)
_UPGRADE = "run `chatws db upgrade --broker URL`"


def migrations() -> list[Migration]:
    """All that there are, in their order: 1, 2, 3 …"""
    found = []
    for file in files("chatws.brokers.postgres").joinpath("migrations").iterdir():
        name = _FILE.fullmatch(file.name)
        if name is not None:
            sql = file.read_text("utf-8")
            needs = _KNOWS.search(sql)
            assert needs is not None, f"{file.name} does not say for which programs it is"
            found.append(Migration(int(name[1]), name[2], sql, int(needs[1])))
    return sorted(found)


async def check(database: PostgresDatabase) -> None:
    """
    :raises OperatorError: it cannot be reached, or its schema is not one that this program can use.
    """
    latest = migrations()[-1].number
    try:
        [basics] = await database.query(
            "SELECT to_regclass('chatws.migrations') IS NOT NULL AS there, getdatabaseencoding() AS encoding", {}
        )
        if basics["encoding"] != "UTF8":
            raise OperatorError("broker: the database's encoding must be UTF8")
        rows = (
            await database.query("SELECT number, needs FROM chatws.migrations ORDER BY number DESC LIMIT 1", {})
            if basics["there"]
            else []
        )
    except QueryFailed as error:
        raise OperatorError(f"broker: {error}") from None
    except Unavailable as error:
        raise OperatorError(f"broker: PostgreSQL cannot be asked: {database.trouble or error}") from None
    if not rows:
        raise OperatorError(f"broker: the database has no schema chatws yet: {_UPGRADE}")
    if rows[0]["number"] < latest:
        raise OperatorError(f"broker: the schema chatws is of an earlier version: {_UPGRADE}")
    if rows[0]["needs"] > latest:
        raise OperatorError("broker: the schema chatws is of a later version: install that version of chatws")
