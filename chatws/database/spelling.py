"""Ids that an engine takes for others: `WHERE id = '01'` finds row 1 where the column is of integers.

To us, "01" and 1 are two ids (docs/protocol.md, first page), as they are to a column of texts. Which kind of column an
operator's query compares with cannot be seen; but it can be asked, with a text that nobody has for an id.
"""

from __future__ import annotations

import re
from contextlib import suppress
from uuid import UUID

__all__ = ["other_spelling"]

#: How engines themselves write an integer.
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")


def other_spelling(value: object) -> str | None:
    """Another text that a column of numbers or of uuids takes for the same as `value`, and a column of texts does not.

    :return: None where there is no doubt: `value` is no text, or can be neither, or is as an engine would write it.
    """
    if not isinstance(value, str) or _INTEGER.fullmatch(value):
        return None
    for read in (float, lambda text: int(text, 0)):  # PostgreSQL 16 knows 0x1f and 1_000 as well
        with suppress(ValueError):
            read(value)
            return f"  {value}"
    with suppress(ValueError):
        uuid = UUID(value)
        if str(uuid) != value:
            return next(one for one in (f"{{{uuid.hex}}}", f"{{{uuid}}}") if one != value)
    return None
