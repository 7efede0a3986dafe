"""Ids as they stand on the wire (docs/protocol.md, first page): an integer or a string.

A string of decimal digits without a leading zero is the integer it spells, so that "456" from an HTML
attribute and 456 from a database meet. After `parse_id` two equal ids compare equal, and `str()` of two
different ids differs: `str()` may serve as a key.
"""

from __future__ import annotations

from typing import TypeAlias

from chatws.errors import ClientError, ErrorCode

__all__ = ["MAX_ID_CHARACTERS", "MAX_ID_INTEGER", "Id", "parse_id", "sort_ids"]

Id: TypeAlias = int | str

#: The largest integer that JavaScript represents exactly, 2**53 - 1.
MAX_ID_INTEGER = 2**53 - 1
#: Characters in a string id.
MAX_ID_CHARACTERS = 128


def parse_id(value: object, field: str) -> Id:
    """The canonical form of `value`.

    :param field: the name of the field it came from, for the error's sentence.
    :raises ClientError: `bad_message`, when it is no id (booleans, floats and null are none).
    """
    if type(value) is int:
        if 0 <= value <= MAX_ID_INTEGER:
            return value
        raise ClientError(ErrorCode.BAD_MESSAGE, f"{field} must be an integer from 0 to 2^53-1")
    if type(value) is str:
        if not 1 <= len(value) <= MAX_ID_CHARACTERS:
            raise ClientError(ErrorCode.BAD_MESSAGE, f"{field} must have 1 to {MAX_ID_CHARACTERS} characters")
        if len(value) <= 16 and value.isascii() and value.isdigit() and (value[0] != "0" or value == "0"):
            number = int(value)
            if number <= MAX_ID_INTEGER:
                return number
        return value
    raise ClientError(ErrorCode.BAD_MESSAGE, f"{field} must be an integer or a string")


def sort_ids(ids: set[Id] | list[Id]) -> list[Id]:
    """Integers by value, then strings by code point."""
    return sorted(ids, key=lambda one: (isinstance(one, str), one))
