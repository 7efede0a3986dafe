"""The demo's data and the SQL for it, without HTTP and notifications.

Every function takes a cursor and runs inside one transaction. Rows are returned as dictionaries in the shapes of
docs/protocol.md §2, with more fields for the inbox.
"""

from __future__ import annotations

import sqlite3
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from chatws.demo import seed
from chatws.errors import ChatwsError

__all__ = ["DemoError", "Row", "StoreChange", "is_temporary", "prepare", "timestamp"]

Row = dict[str, Any]

#: The number of latest messages that a page loads. The page has no paging.
MESSAGES_SHOWN = 200
#: Characters of the last message in the list: more than one line of it.
PREVIEW = 140


class DemoError(ChatwsError):
    """A request that is rejected.

    :ivar status: the HTTP status.
    :ivar code: the error code for programs.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class StoreChange(NamedTuple):
    """The result of a write.

    :ivar conversation: its new state.
    :ivar message: the added message, or None.
    :ivar created: whether the conversation is new.
    :ivar repeated: whether the message existed before, because the request was repeated.
    """

    conversation: Row
    message: Row | None = None
    created: bool = False
    repeated: bool = False


def timestamp(seconds: float) -> str:
    """Format seconds since 1970 as ISO 8601 in UTC: `2026-11-23T12:00:00.000Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


#: Primary result codes of https://sqlite.org/rescode.html after which the same statement may succeed later.
_TEMPORARY = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)


def is_temporary(error: sqlite3.Error) -> bool:
    """Whether the disk or another process is the cause, and not the statement: a full disk, a lock."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _TEMPORARY


def prepare(connection: sqlite3.Connection, now: float) -> str:
    """Create missing tables and fill an empty database. Return the database's unique name.

    :param now: seconds since 1970; the initial messages are dated shortly before.
    """
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(Path(__file__).with_name("schema.sql").read_text(encoding="utf-8"))
    with connection:
        connection.execute("INSERT OR IGNORE INTO facts VALUES ('instance', ?)", (uuid.uuid4().hex,))
        connection.execute("INSERT OR IGNORE INTO facts VALUES ('customer_turns', '0')")
        if connection.execute("SELECT count(*) FROM agents").fetchone()[0] == 0:
            _seed(connection, now)
    name: str = connection.execute("SELECT value FROM facts WHERE name = 'instance'").fetchone()[0]
    return name


def _seed(connection: sqlite3.Connection, now: float) -> None:
    connection.executemany("INSERT INTO agents VALUES (?, ?, ?)", [(n, *rest) for n, rest in seed.AGENTS.items()])
    # Ids start at 1001, so that a message pushed manually ("id":9) has no id of the shop.
    connection.execute("INSERT INTO sqlite_sequence VALUES ('messages', 1000)")
    # Insert the oldest first, so that ids grow with time.
    ordered = sorted(
        (
            (message.minutes, number, message)
            for number, entry in enumerate(seed.CONVERSATIONS, 1)
            for message in entry.messages
        ),
        key=lambda item: -item[0],
    )
    for number, entry in enumerate(seed.CONVERSATIONS, 1):
        first, last = entry.messages[0].minutes, entry.messages[-1].minutes
        connection.execute(
            "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1)",
            (
                number,
                *entry.contact,
                entry.status,
                entry.assigned_to,
                timestamp(now - first * 60),
                timestamp(now - last * 60),
            ),
        )
    for minutes, number, message in ordered:
        connection.execute(
            "INSERT INTO messages (conversation_id, sender_type, sender_id, content, created_at)"
            " VALUES (?, ?, ?, ?, ?)",
            (number, *_sender(message.sender), message.content, timestamp(now - minutes * 60)),
        )
    for number, entry in enumerate(seed.CONVERSATIONS, 1):
        ids = [
            row[0]
            for row in connection.execute("SELECT id FROM messages WHERE conversation_id = ? ORDER BY id", (number,))
        ]
        unseen = 0
        for message in reversed(entry.messages):
            if message.sender != seed.CUSTOMER:
                break
            unseen += 1
        for agent in seed.AGENTS:
            read = ids[: len(ids) - unseen] if agent in entry.unread_by else ids
            if read:
                connection.execute("INSERT INTO reads VALUES (?, ?, ?)", (agent, number, read[-1]))


def _sender(number: int) -> tuple[str, int | None]:
    return ("customer", None) if number == seed.CUSTOMER else ("agent", number)


# --- Reading


def agents(cursor: Any) -> list[Row]:
    return [dict(row) for row in cursor.execute("SELECT id, name, team FROM agents ORDER BY id").fetchall()]


def conversations(cursor: Any, agent_id: int | None) -> list[Row]:
    """Return all conversations, the latest first. With `agent_id` each has that agent's number of unread messages."""
    if agent_id is not None:
        check_agent(cursor, agent_id)
    ids = cursor.execute("SELECT id FROM conversations ORDER BY updated_at DESC, id DESC").fetchall()
    result = [conversation(cursor, row["id"]) for row in ids]
    if agent_id is not None:
        for entry in result:
            entry["unread"] = entry["unread_counts"][str(agent_id)]
    return result


def conversation(cursor: Any, conversation_id: int) -> Row:
    row = cursor.execute("SELECT * FROM conversations WHERE id = ?", (conversation_id,)).fetchone()
    if row is None:
        raise DemoError(404, "not_found", f"conversation {conversation_id} does not exist")
    last = cursor.execute(
        "SELECT * FROM messages WHERE conversation_id = ? AND sender_type != 'note' ORDER BY id DESC LIMIT 1",
        (conversation_id,),
    ).fetchone()
    result = dict(row)
    result["last_message"] = None
    if last is not None:
        preview = _message(last)
        preview["content"] = preview["content"][:PREVIEW]
        result["last_message"] = preview
    result["unread_counts"] = _unread_counts(cursor, conversation_id)
    return result


def messages(cursor: Any, conversation_id: int) -> tuple[Row, list[Row], Row]:
    """Return the conversation, its latest messages in order, and agent id => id of the last read message."""
    entry = conversation(cursor, conversation_id)
    rows = cursor.execute(
        "SELECT * FROM messages WHERE conversation_id = ? ORDER BY id DESC LIMIT ?", (conversation_id, MESSAGES_SHOWN)
    ).fetchall()
    reads = cursor.execute(
        "SELECT agent_id, message_id FROM reads WHERE conversation_id = ?", (conversation_id,)
    ).fetchall()
    last_read = {str(row["agent_id"]): row["message_id"] for row in reads}
    return entry, [_message(row) for row in reversed(rows)], last_read


def check_agent(cursor: Any, agent_id: int) -> None:
    if cursor.execute("SELECT 1 FROM agents WHERE id = ?", (agent_id,)).fetchone() is None:
        raise DemoError(404, "not_found", f"agent {agent_id} does not exist")


def _message(row: Any) -> Row:
    message = dict(row)
    for name in ("about_id", "client_id"):
        if message[name] is None:
            del message[name]
    return message


def _unread_counts(cursor: Any, conversation_id: int) -> dict[str, int]:
    """Return agent id => the number of messages of other senders after the last message that the agent has read."""
    rows = cursor.execute(
        """
        SELECT agents.id AS agent, count(messages.id) AS unread
        FROM agents
        LEFT JOIN reads ON reads.agent_id = agents.id AND reads.conversation_id = :conversation
        LEFT JOIN messages ON messages.conversation_id = :conversation
            AND messages.id > coalesce(reads.message_id, 0)
            AND messages.sender_type != 'note'
            AND messages.sender_id IS NOT agents.id
        GROUP BY agents.id
        """,
        {"conversation": conversation_id},
    ).fetchall()
    return {str(row["agent"]): row["unread"] for row in rows}


# --- Writing


def send(
    cursor: Any, conversation_id: int, agent_id: int, content: str, client_id: str | None, now: str
) -> StoreChange:
    """Store an agent's message. A second one with the same `client_id` from the same agent changes nothing."""
    check_agent(cursor, agent_id)
    entry = conversation(cursor, conversation_id)
    if client_id is not None:
        existing = cursor.execute(
            "SELECT * FROM messages WHERE sender_id = ? AND client_id = ?", (agent_id, client_id)
        ).fetchone()
        if existing is not None:
            return StoreChange(entry, _message(existing), repeated=True)
    if entry["status"] == "closed":
        raise DemoError(409, "conversation_closed", f"conversation {conversation_id} is closed, reopen it first")
    message = _add_message(cursor, conversation_id, "agent", agent_id, content, now, client_id=client_id)
    _advance_read(cursor, conversation_id, agent_id, message["id"])
    return StoreChange(conversation(cursor, conversation_id), message)


def assign(cursor: Any, conversation_id: int, agent_id: int | None, by: int | None, now: str) -> StoreChange:
    """Assign the conversation to an agent, or to none. An equal assignment changes nothing."""
    for agent in (agent_id, by):
        if agent is not None:
            check_agent(cursor, agent)
    entry = conversation(cursor, conversation_id)
    if entry["assigned_to"] == agent_id:
        return StoreChange(entry)
    cursor.execute("UPDATE conversations SET assigned_to = ? WHERE id = ?", (agent_id, conversation_id))
    note = "assigned" if agent_id is not None else "unassigned"
    message = _add_message(cursor, conversation_id, "note", by, note, now, about_id=agent_id)
    return StoreChange(conversation(cursor, conversation_id), message)


def set_status(cursor: Any, conversation_id: int, status: str, by: int | None, now: str) -> StoreChange:
    """Close (`closed`) or reopen (`open`) the conversation. An equal status changes nothing."""
    if by is not None:
        check_agent(cursor, by)
    entry = conversation(cursor, conversation_id)
    if entry["status"] == status:
        return StoreChange(entry)
    cursor.execute("UPDATE conversations SET status = ? WHERE id = ?", (status, conversation_id))
    message = _add_message(cursor, conversation_id, "note", by, "closed" if status == "closed" else "reopened", now)
    return StoreChange(conversation(cursor, conversation_id), message)


def mark_read(cursor: Any, conversation_id: int, agent_id: int, message_id: int | None) -> tuple[Row, int | None]:
    """Mark the conversation as read by an agent, up to `message_id` or completely.

    Returns the conversation, and the id of the last read message, or None if the mark has not moved.
    """
    check_agent(cursor, agent_id)
    entry = conversation(cursor, conversation_id)
    newest = cursor.execute(
        "SELECT max(id) AS newest FROM messages WHERE conversation_id = ?", (conversation_id,)
    ).fetchone()["newest"]
    if newest is None:
        return entry, None
    last_read = newest if message_id is None else min(message_id, newest)
    if not _advance_read(cursor, conversation_id, agent_id, last_read):
        return entry, None
    _increment_version(cursor, conversation_id)
    return conversation(cursor, conversation_id), last_read


def choose_customer(cursor: Any) -> int | None:
    """Return the conversation whose customer writes next, or None for a new contact.

    In turns it is the conversation with the latest response, the one that has waited longest, and a new contact.
    """
    turn = int(cursor.execute("SELECT value FROM facts WHERE name = 'customer_turns'").fetchone()["value"])
    cursor.execute("UPDATE facts SET value = ? WHERE name = 'customer_turns'", (str(turn + 1),))
    if turn % 3 == 2:
        return None
    order = ("last.sender_type = 'agent' DESC, last.id DESC", "last.id ASC")[turn % 3]
    row = cursor.execute(
        f"""
        SELECT conversations.id FROM conversations
        JOIN messages AS last ON last.id = (
            SELECT max(id) FROM messages WHERE conversation_id = conversations.id AND sender_type != 'note'
        )
        WHERE conversations.status = 'open' ORDER BY {order} LIMIT 1
        """
    ).fetchone()
    return None if row is None else row["id"]


def customer_writes(cursor: Any, conversation_id: int | None, content: str | None, now: str) -> StoreChange:
    """Store a customer's message, prepared if there is no content. Without a conversation, a new contact writes.

    A closed conversation is reopened.
    """
    if conversation_id is None:
        return _new_contact(cursor, content, now)
    entry = conversation(cursor, conversation_id)
    if content is None:
        count = cursor.execute(
            "SELECT count(*) AS count FROM messages WHERE conversation_id = ? AND sender_type = 'customer'",
            (conversation_id,),
        ).fetchone()["count"]
        content = seed.next_line(seed.Contact(entry["contact_name"], entry["channel"], entry["language"]), count)
    if entry["status"] == "closed":
        cursor.execute("UPDATE conversations SET status = 'open' WHERE id = ?", (conversation_id,))
    message = _add_message(cursor, conversation_id, "customer", None, content, now)
    return StoreChange(conversation(cursor, conversation_id), message)


def _new_contact(cursor: Any, content: str | None, now: str) -> StoreChange:
    number = cursor.execute("SELECT count(*) AS number FROM conversations").fetchone()["number"]
    contact, line = seed.NEWCOMERS[(number - len(seed.CONVERSATIONS)) % len(seed.NEWCOMERS)]
    cursor.execute(
        "INSERT INTO conversations (contact_name, channel, language, status, created_at, updated_at)"
        " VALUES (?, ?, ?, 'open', ?, ?)",
        (*contact, now, now),
    )
    conversation_id = cursor.lastrowid
    message = _add_message(cursor, conversation_id, "customer", None, line if content is None else content, now)
    return StoreChange(conversation(cursor, conversation_id), message, created=True)


def _add_message(
    cursor: Any,
    conversation_id: int,
    sender_type: str,
    sender_id: int | None,
    content: str,
    now: str,
    *,
    about_id: int | None = None,
    client_id: str | None = None,
) -> Row:
    cursor.execute(
        "INSERT INTO messages (conversation_id, sender_type, sender_id, about_id, content, created_at, client_id)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (conversation_id, sender_type, sender_id, about_id, content, now, client_id),
    )
    message_id = cursor.lastrowid
    if sender_type != "note":
        cursor.execute("UPDATE conversations SET updated_at = ? WHERE id = ?", (now, conversation_id))
    _increment_version(cursor, conversation_id)
    return _message(cursor.execute("SELECT * FROM messages WHERE id = ?", (message_id,)).fetchone())


def _advance_read(cursor: Any, conversation_id: int, agent_id: int, message_id: int) -> bool:
    """Move the read mark of an agent forward. Return whether it has moved."""
    cursor.execute(
        "INSERT INTO reads VALUES (?, ?, ?) ON CONFLICT (agent_id, conversation_id)"
        " DO UPDATE SET message_id = excluded.message_id WHERE excluded.message_id > reads.message_id",
        (agent_id, conversation_id, message_id),
    )
    return bool(cursor.rowcount)


def _increment_version(cursor: Any, conversation_id: int) -> None:
    cursor.execute("UPDATE conversations SET version = version + 1 WHERE id = ?", (conversation_id,))
