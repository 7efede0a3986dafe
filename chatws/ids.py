"""Ids as they stand on the wire (docs/protocol.md, first page): an integer or a string.

A string of decimal digits without a leading zero is the integer it spells, so that "456" from an HTML
attribute and 456 from a database meet. After `parse_id` two equal ids compare equal, and `str()` of two
different ids differs: `str()` may serve as a key.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from chatws.errors import ClientError, ErrorCode

__all__ = [
    "MAX_GROUPS",
    "MAX_ID_CHARACTERS",
    "MAX_ID_INTEGER",
    "Id",
    "parse_groups",
    "parse_id",
    "parse_ids",
    "sort_ids",
]

Id: TypeAlias = int | str

#: The largest integer that JavaScript represents exactly, 2**53 - 1.
MAX_ID_INTEGER = 2**53 - 1
#: Characters in a string id.
MAX_ID_CHARACTERS = 128
#: Groups of one agent: an agent of a large shop is in a few teams.
MAX_GROUPS = 100
_GROUP = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def parse_id(value: object, field: str) -> Id:
    """Return the canonical form of `value`.

    :param field: the name of the field it came from, for the error's sentence.
    :raises ClientError: `bad_message`, if it is not an id, such as a boolean, a float or null.
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


def parse_ids(value: object, field: str) -> list[Id]:
    """Return the canonical forms of the ids in a list, or in an array as PHP encodes it.

    PHP's `json_encode` writes an array whose keys are not 0, 1, 2 … as an object: `array_filter([455, 456])` can become
    `{"1":456}`. An object with integer keys and distinct ids is therefore a list of its values. One that could as well
    map ids to flags (`{"456":1}`) is ambiguous, and invalid.

    :param field: the name of the field it came from, for the error's sentence.
    :raises ClientError: `bad_message`, if it is anything else. null is not an empty list: a query may have failed.
    """
    if isinstance(value, list):
        return [parse_id(item, field) for item in value]
    if isinstance(value, dict) and all(key.isascii() and key.isdigit() for key in value):
        ids = [parse_id(item, field) for item in value.values()]
        if not ids or (len(set(ids)) == len(ids) and not {0, 1}.issuperset(ids)):
            return ids
        raise ClientError(
            ErrorCode.BAD_MESSAGE,
            f"{field} may be a list with gaps or map ids to flags; send array_values() of the ids",
        )
    raise ClientError(ErrorCode.BAD_MESSAGE, f"{field} must be a list of ids, such as [456,457]")


def parse_groups(value: object, field: str = "groups") -> tuple[str, ...]:
    """Return the names of groups, each once, in order.

    :param field: the name of the field they came from, for the error's sentence.
    :raises ClientError: `bad_message`, if it is not a list of at most `MAX_GROUPS` valid names.
    """
    if isinstance(value, dict) and all(key.isascii() and key.isdigit() for key in value):
        value = list(value.values())  # a PHP array with gaps
    if not isinstance(value, list | tuple):
        raise ClientError(ErrorCode.BAD_MESSAGE, f"{field} must be a list of names")
    if len(value) > MAX_GROUPS:
        raise ClientError(ErrorCode.BAD_MESSAGE, f"{field} must have at most {MAX_GROUPS} names")
    for name in value:
        if not isinstance(name, str) or _GROUP.fullmatch(name) is None:
            raise ClientError(ErrorCode.BAD_MESSAGE, f"{field} must have names of 1 to 64 characters of A-Za-z0-9_.:-")
    return tuple(dict.fromkeys(value))


def sort_ids(ids: set[Id] | list[Id]) -> list[Id]:
    """Sort integers by value, and strings by code point after them."""
    return sorted(ids, key=lambda id: (isinstance(id, str), id))
