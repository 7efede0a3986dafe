"""Ids that an engine takes for another: `WHERE id = '01'` finds row 1 if the column is an integer.

To chatws, "01" and 1 are different ids (docs/protocol.md), and so they are in a text column. The type of
the column is unknown, as the query is the operator's. A second query with an equivalent id reveals it: a text column
has no row for that id, a typed column returns the same row.
"""

from __future__ import annotations

import re
from contextlib import suppress
from uuid import UUID

__all__ = ["equivalent_id", "is_canonical_integer"]

#: The canonical form of an integer, which engines write.
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")


def is_canonical_integer(text: str) -> bool:
    """Return whether `text` is written as engines write integers."""
    return _INTEGER.fullmatch(text) is not None


def equivalent_id(value: object) -> str | None:
    """Return another text that a number or uuid column considers equal to `value`, and a text column does not.

    :return: None if there is none to check: `value` is not a text, is not a number or UUID, or is in canonical form.
    """
    if not isinstance(value, str) or is_canonical_integer(value):
        return None
    for parse in (float, lambda text: int(text, 0)):  # PostgreSQL 16 also accepts 0x1f and 1_000
        with suppress(ValueError):
            parse(value)
            return f"  {value}"
    with suppress(ValueError):
        uuid = UUID(value)
        if str(uuid) != value:
            return next(text for text in (f"{{{uuid.hex}}}", f"{{{uuid}}}") if text != value)
    return None
