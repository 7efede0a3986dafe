"""Turns rows of the outbox into lines of the push API, so that both have the same rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from chatws.errors import ClientError, ErrorCode
from chatws.push.operations import Op
from chatws.push.protocol import PublishLine, parse_line

__all__ = ["OPERATIONS", "parse_row"]

OutboxRow: TypeAlias = Mapping[str, Any]

#: Operations of the push API that a row may have. The others only make sense with a response.
OPERATIONS = ("disconnect", "unsubscribe", "groups", "status")
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_OPTIONS = ("except_user_id", "except_contact_id", "except_connection_id")


def parse_row(row: OutboxRow, *, table_id: str, max_age: float, max_size: int) -> PublishLine | Op:
    """Return the request that a row stands for.

    :param max_age: seconds; 0 for no limit.
    :param max_size: bytes of the row as a line.
    :raises ClientError: the row cannot be sent.
    """
    if 0 < max_age < float(row["age"]):
        raise ClientError(ErrorCode.BAD_MESSAGE, f"older than outbox_max_age ({max_age:g} s)")
    data = _json(row["data"], "data")
    if row["op"] is not None:
        if row["event"] is not None:
            raise ClientError(ErrorCode.BAD_MESSAGE, "a row has either event or op, not both")
        if row["op"] not in OPERATIONS:
            raise ClientError(ErrorCode.UNKNOWN_TYPE, f"op must be one of {', '.join(OPERATIONS)}")
        try:
            fields: dict[str, Any] = _decode_fields(data)
        except msgspec.DecodeError:
            raise ClientError(ErrorCode.BAD_MESSAGE, "data must be an object") from None
        fields |= {"op": row["op"]}
    else:
        key = row["idempotency_key"]
        fields = {
            "event": row["event"],
            "data": msgspec.Raw(data),
            "to": None if row["audience"] is None else msgspec.Raw(_audience(row["audience"])),
            **{name: row[name] for name in _OPTIONS},
            "id": f"outbox:{table_id}:{row['id']}:{row['nonce']}" if key is None else key,
            "transient": bool(row["transient"]),
            "ack": True,
        }
    line = msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
    if len(line) > max_size:
        raise ClientError(ErrorCode.LINE_TOO_LONG, f"the row has more than {max_size} bytes (--max-line-size)")
    return parse_line(line)


def _json(text: str, column: str) -> bytes:
    """Return the column as bytes, which are one JSON value: nothing can be added to the line."""
    encoded = text.encode()
    try:
        _decode_raw(encoded)
    except (msgspec.DecodeError, RecursionError):
        raise ClientError(ErrorCode.BAD_JSON, f"{column} is not JSON") from None
    return encoded


def _audience(text: str) -> bytes:
    # a plain word, such as agents, needs no quotes
    return msgspec.json.encode(text) if text.isalpha() else _json(text, "audience")
