"""Placeholders in the operator's SQL: `%(name)s`, and `%%` for a percent sign, the same for every engine.

psycopg and chatws' own code for MySQL substitute placeholders also within quotes, which produces broken SQL. SQLite
silently takes a quoted one for a constant. `check_sql` therefore rejects placeholders within quotes or comments for all
engines, and also single percent signs.

Each engine has quotes and comments of its own:

- PostgreSQL: https://www.postgresql.org/docs/current/sql-syntax-lexical.html
- MySQL: https://dev.mysql.com/doc/refman/8.4/en/language-structure.html
- SQLite: https://www.sqlite.org/lang_expr.html and https://www.sqlite.org/lang_keywords.html
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import StrEnum
from functools import lru_cache

from chatws.errors import ConfigError

__all__ = ["DatabaseEngine", "check_sql", "to_sqlite"]


class DatabaseEngine(StrEnum):
    """The kinds of databases."""

    POSTGRESQL = "postgresql"
    MYSQL = "mysql"
    SQLITE = "sqlite"


# An unclosed quote or comment extends to the end, and the engine rejects it.
_COMMENT = r"/\*.*?(?:\*/|\Z)"
_NAME = r'"(?:[^"]|"")*(?:"|\Z)'
_STRING = r"'(?:[^']|'')*(?:'|\Z)"
_BACKTICKS = r"`(?:[^`]|``)*(?:`|\Z)"
_LINE_COMMENT = r"--[^\n]*"
#: DatabaseEngine → patterns of strings, quoted names and comments.
_OPAQUE = {
    DatabaseEngine.POSTGRESQL: (
        # E'…' has backslashes. As a part of a longer word, E begins no such string.
        r"(?<![A-Za-z0-9_$])[eE]'(?:[^'\\]|''|\\.)*(?:'|\Z)",
        r"(?<![A-Za-z0-9_$])\$(?P<tag>(?:[A-Za-z_][A-Za-z0-9_]*)?)\$.*?(?:\$(?P=tag)\$|\Z)",
        _STRING,
        _NAME,
        _LINE_COMMENT,
        # comments nest, here three deep
        r"/\*(?:(?!/\*|\*/).|/\*(?:(?!/\*|\*/).|/\*(?:(?!/\*|\*/).)*(?:\*/|\Z))*(?:\*/|\Z))*(?:\*/|\Z)",
    ),
    DatabaseEngine.MYSQL: (
        r"'(?:[^'\\]|''|\\.)*(?:'|\Z)",
        r'"(?:[^"\\]|""|\\.)*(?:"|\Z)',
        _BACKTICKS,
        # without white space after it, -- is two signs
        r"--(?=[\s\x00-\x1f]|\Z)[^\n]*",
        r"\#[^\n]*",
        _COMMENT,
    ),
    DatabaseEngine.SQLITE: (_STRING, _NAME, _BACKTICKS, r"\[[^\]]*(?:\]|\Z)", _LINE_COMMENT, _COMMENT),
}
_TOKENS = {
    engine: re.compile(
        rf"""
          (?P<opaque> {"|".join(patterns)} )
        | (?P<name>   %\((?P<word>[A-Za-z_][A-Za-z0-9_]*)\)s )
        | (?P<percent> %% )
        | (?P<wrong>  % )
        """,
        re.VERBOSE | re.DOTALL,
    )
    for engine, patterns in _OPAQUE.items()
}


def check_sql(name: str, sql: str, allowed: Collection[str], engine: DatabaseEngine) -> frozenset[str]:
    """Return the names of the placeholders in `sql`.

    :param name: the setting that it comes from, for the error.
    :param allowed: the names that have a value.
    :param engine: whose quotes and comments it has.
    :raises ConfigError: it has an unknown name, a single percent sign, or a placeholder within quotes or a comment.
    """
    names = set()
    for token in _TOKENS[engine].finditer(sql):
        if token["opaque"] is not None:
            inner = token["opaque"].replace("%%", "")
            if "%(" in inner:
                raise ConfigError(f"{name}: a placeholder within quotes or a comment; write it without quotes")
            if "%" in inner:
                raise ConfigError(f"{name}: a percent sign must be doubled (%%), within quotes too")
        elif token["wrong"] is not None:
            raise ConfigError(f"{name}: a percent sign must be doubled (%%) or begin a placeholder like %(user_id)s")
        elif token["word"] is not None:
            if token["word"] not in allowed:
                known = ", ".join(f"%({placeholder})s" for placeholder in sorted(allowed))
                raise ConfigError(f"{name}: %({token['word']})s is unknown; known placeholders: {known}")
            names.add(token["word"])
    return frozenset(names)


@lru_cache(maxsize=64)
def to_sqlite(sql: str, exact: frozenset[str] = frozenset()) -> str:
    """Return `sql` with SQLite's placeholders (`:name`, see https://sqlite.org/lang_expr.html#varparam).

    :param sql: checked by `check_sql`.
    :param exact: placeholders that are compared byte by byte, whatever the collation of a column
        (https://sqlite.org/datatype3.html#collating_sequences).
    """

    def translate(token: re.Match[str]) -> str:
        if token["word"] is not None:
            placeholder = f":{token['word']}"
            return f"({placeholder} COLLATE BINARY)" if token["word"] in exact else placeholder
        return token[0].replace("%%", "%")

    return _TOKENS[DatabaseEngine.SQLITE].sub(translate, sql)
