"""Placeholders in the operator's SQL: `%(name)s`, and `%%` for a percent sign, the same for every engine.

psycopg substitutes wherever a placeholder stands, within quotes too, where the result is broken SQL at best; SQLite
takes a quoted one for a constant, silently. So a placeholder within quotes or a comment is refused for both, and so is
a lone percent sign, which only psycopg would notice.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

from chatws.errors import OperatorError

__all__ = ["check_sql", "to_sqlite"]

# What SQLite's and PostgreSQL's lexers skip as a whole. An unclosed quote runs to the end: the engine will complain.
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
    """The names of the placeholders in `sql`.

    :param name: the setting it comes from, for the error's sentence.
    :param allowed: the names that will be given a value.
    :raises OperatorError: a name that is not allowed, a lone percent sign, a placeholder within quotes or a comment.
    """
    found = set()
    for token in _TOKEN.finditer(sql):
        if token["opaque"] is not None:
            inner = token["opaque"].replace("%%", "")
            if "%(" in inner:
                raise OperatorError(f"{name}: a placeholder within quotes or a comment; it stands without quotes")
            if "%" in inner:
                raise OperatorError(f"{name}: a percent sign must be doubled (%%), within quotes too")
        elif token["wrong"] is not None:
            raise OperatorError(f"{name}: a percent sign must be doubled (%%) or begin a placeholder like %(user_id)s")
        elif token["word"] is not None:
            if token["word"] not in allowed:
                known = ", ".join(f"%({one})s" for one in sorted(allowed))
                raise OperatorError(f"{name}: %({token['word']})s is not known here; there is {known}")
            found.add(token["word"])
    return frozenset(found)


@lru_cache(maxsize=64)
def to_sqlite(sql: str) -> str:
    """`sql` with SQLite's placeholders (`:name`, see https://sqlite.org/lang_expr.html#varparam).

    :param sql: as `check_sql` lets through.
    """

    def translate(token: re.Match[str]) -> str:
        if token["word"] is not None:
            return f":{token['word']}"
        return token[0].replace("%%", "%")

    return _TOKEN.sub(translate, sql)
