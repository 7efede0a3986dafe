"""Placeholders in the operator's SQL: `%(name)s`, and `%%` for a percent sign, the same for every engine.

psycopg substitutes placeholders also within quotes, which produces broken SQL. SQLite silently takes a quoted one for
a constant. `check_sql` therefore rejects placeholders within quotes or comments for both engines, and also single
percent signs, which only psycopg reports.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

from chatws.errors import ConfigError

__all__ = ["check_sql", "to_sqlite"]

# `opaque`: strings, quoted names and comments, as in SQLite's and PostgreSQL's lexers. An unclosed quote extends to
# the end, and the engine rejects it.
_TOKEN = re.compile(
    r"""
      (?P<opaque> '(?:[^']|'')*(?:'|\Z) | "(?:[^"]|"")*(?:"|\Z) | --[^\n]* | /\*.*?(?:\*/|\Z) )
    | (?P<name>   %\((?P<word>[A-Za-z_][A-Za-z0-9_]*)\)s )
    | (?P<percent> %% )
    | (?P<wrong>  % )
    """,
    re.VERBOSE | re.DOTALL,
)


def check_sql(name: str, sql: str, allowed: Collection[str]) -> frozenset[str]:
    """Return the names of the placeholders in `sql`.

    :param name: the setting that it comes from, for the error.
    :param allowed: the names that have a value.
    :raises ConfigError: it has an unknown name, a single percent sign, or a placeholder within quotes or a comment.
    """
    names = set()
    for token in _TOKEN.finditer(sql):
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
def to_sqlite(sql: str) -> str:
    """Return `sql` with SQLite's placeholders (`:name`, see https://sqlite.org/lang_expr.html#varparam).

    :param sql: checked by `check_sql`.
    """

    def translate(token: re.Match[str]) -> str:
        if token["word"] is not None:
            return f":{token['word']}"
        return token[0].replace("%%", "%")

    return _TOKEN.sub(translate, sql)
