"""Whether a row that a query returned is that of the given ids, and not of ids that the engine takes for equal.

The query is the operator's, so the columns that it compares are unknown. PostgreSQL and SQLite take other spellings of
a number or UUID for equal (`chatws.database.id_aliases`). MySQL also compares the number 5 with '5abc', and texts by a
collation that often ignores case, accents and trailing spaces.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from uuid import UUID

from chatws.database.id_aliases import is_canonical_integer
from chatws.database.interface import ExactText, Row, Values

__all__ = ["has_equal_texts", "is_exact_match"]

_Query = Callable[[Values], Awaitable[Sequence[Row]]]


async def is_exact_match(query: _Query, rows: Sequence[Row], values: Values, names: Collection[str]) -> bool:
    """Return whether MySQL found `rows` by exactly `values`.

    A column that is named as a placeholder, such as `user_id`, decides without a further query. Otherwise the query is
    repeated with texts that are compared byte by byte, and with texts that only a typed column finds.

    :param query: runs the query with other values.
    :param rows: those that it returned for `values`.
    :param names: the placeholders of the query.
    """
    open_names = []
    for name in names:
        if name in rows[0] and isinstance(rows[0][name], int | str):
            if not any(str(row[name]) == str(values[name]) for row in rows):
                return False
        else:
            open_names.append(name)
    if not open_names:
        return True
    exact = {**values, **{name: ExactText(values[name]) for name in open_names}}
    if not await query(exact):
        return False
    for name in open_names:
        alias = _alias(str(values[name]))
        if alias is not None and await query({**exact, name: ExactText(alias)}):
            return False
    return True


def has_equal_texts(value: object) -> bool:
    """Return whether the collation of a text column may take another text for equal to `value`."""
    return isinstance(value, str) and not is_canonical_integer(value)


def _alias(text: str) -> str | None:
    """Return a text that a number or uuid column takes for equal to `text`, and a text column does not."""
    if is_canonical_integer(text):
        return None
    with suppress(ValueError):
        canonical = str(UUID(text))
        return None if text == canonical else canonical
    return f"  {text}"  # MySQL skips spaces, and reads the number that the rest begins with, or 0
