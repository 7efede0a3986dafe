"""The demo's data: SQL, and what a change consists of. Nothing here knows of HTTP or of notifications.

Every function takes a cursor and runs inside one transaction. Rows go out as dictionaries in the shapes of
docs/protocol.md §2, plus what an inbox shows.
"""

from __future__ import annotations

import sqlite3
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from chatws.demo import seed
from chatws.errors import ChatwsError

__all__ = ["Change", "DemoError", "Row", "moment", "prepare"]

Row = dict[str, Any]

#: Messages of a conversation that are sent to a page; the latest.
MESSAGES_SHOWN = 200
#: Characters of a message that a list shows.
PREVIEW = 140


class DemoError(ChatwsError):
    """A request that cannot be honoured. :ivar status: the HTTP status, :ivar code: for programs."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Change(NamedTuple):
    """What a write did.

    :ivar conversation: as it is now.
    :ivar message: the message that was added, or None.
    :ivar created: whether the conversation is a new one.
    :ivar repeated: the message was there already: the request was one that had been sent before.
    """

    conversation: Row
    message: Row | None = None
    created: bool = False
    repeated: bool = False


def moment(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC: `2026-11-23T12:00:00.000Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def prepare(connection: sqlite3.Connection, now: float) -> str:
    """Create what is missing; an empty shop gets its agents and conversations. Returns the database's own name.

    :param now: seconds since 1970; the seeded messages came shortly before.
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
    # Ids from 1001: a message pushed by hand while trying things out ("id":9) is no message of the shop's.
    connection.execute("INSERT INTO sqlite_sequence VALUES ('messages', 1000)")
    # The oldest first, so that ids grow with time as they do in a shop that has been running.
    said = sorted(
        (
            (message.minutes, number, message)
            for number, one in enumerate(seed.CONVERSATIONS, 1)
            for message in one.messages
        ),
        key=lambda entry: -entry[0],
    )
    for number, one in enumerate(seed.CONVERSATIONS, 1):
        first, last = one.messages[0].minutes, one.messages[-1].minutes
        connection.execute(
            "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1)",
            (number, *one.contact, one.status, one.assigned_to, moment(now - first * 60), moment(now - last * 60)),
        )
    for minutes, number, message in said:
        connection.execute(
            "INSERT INTO messages (conversation_id, sender_type, sender_id, content, created_at)"
            " VALUES (?, ?, ?, ?, ?)",
            (number, *_sender(message.sender), message.content, moment(now - minutes * 60)),
        )
    for number, one in enumerate(seed.CONVERSATIONS, 1):
        ids = [
            row[0]
            for row in connection.execute("SELECT id FROM messages WHERE conversation_id = ? ORDER BY id", (number,))
        ]
        unseen = 0
        for message in reversed(one.messages):
            if message.sender != seed.CUSTOMER:
                break
            unseen += 1
        for agent in seed.AGENTS:
            read = ids[: len(ids) - unseen] if agent in one.unread_by else ids
            if read:
                connection.execute("INSERT INTO reads VALUES (?, ?, ?)", (agent, number, read[-1]))


def _sender(number: int) -> tuple[str, int | None]:
    return ("customer", None) if number == seed.CUSTOMER else ("agent", number)


# --- reading


def agents(cursor: Any) -> list[Row]:
    return [dict(row) for row in cursor.execute("SELECT id, name, team FROM agents ORDER BY id").fetchall()]


def conversations(cursor: Any, agent_id: int | None) -> list[Row]:
    """All, the one with the latest message first; with `agent_id` each says how much of it that agent has not seen."""
    if agent_id is not None:
        check_agent(cursor, agent_id)
    ids = cursor.execute("SELECT id FROM conversations ORDER BY updated_at DESC, id DESC").fetchall()
    found = [conversation(cursor, row["id"]) for row in ids]
    if agent_id is not None:
        for one in found:
            one["unread"] = one["unread_counts"][str(agent_id)]
    return found


def conversation(cursor: Any, conversation_id: int) -> Row:
    row = cursor.execute("SELECT * FROM conversations WHERE id = ?", (conversation_id,)).fetchone()
    if row is None:
        raise DemoError(404, "not_found", f"there is no conversation {conversation_id}")
    last = cursor.execute(
        "SELECT * FROM messages WHERE conversation_id = ? AND sender_type != 'note' ORDER BY id DESC LIMIT 1",
        (conversation_id,),
    ).fetchone()
    found = dict(row)
    found["last_message"] = None
    if last is not None:
        preview = _message(last)
        preview["content"] = preview["content"][:PREVIEW]
        found["last_message"] = preview
    found["unread_counts"] = _unread_counts(cursor, conversation_id)
    return found


def messages(cursor: Any, conversation_id: int) -> tuple[Row, list[Row], Row]:
    """The conversation, its latest messages with the oldest first, and each agent's last read message id."""
    about = conversation(cursor, conversation_id)
    rows = cursor.execute(
        "SELECT * FROM messages WHERE conversation_id = ? ORDER BY id DESC LIMIT ?", (conversation_id, MESSAGES_SHOWN)
    ).fetchall()
    reads = cursor.execute(
        "SELECT agent_id, message_id FROM reads WHERE conversation_id = ?", (conversation_id,)
    ).fetchall()
    return about, [_message(row) for row in reversed(rows)], {str(one["agent_id"]): one["message_id"] for one in reads}


def check_agent(cursor: Any, agent_id: int) -> None:
    if cursor.execute("SELECT 1 FROM agents WHERE id = ?", (agent_id,)).fetchone() is None:
        raise DemoError(404, "not_found", f"there is no agent {agent_id}")


def _message(row: Any) -> Row:
    found = dict(row)
    for name in ("about_id", "client_id"):
        if found[name] is None:
            del found[name]
    return found


def _unread_counts(cursor: Any, conversation_id: int) -> dict[str, int]:
    """By agent: the messages that somebody else wrote after the last one this agent has read."""
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


# --- writing


def send(cursor: Any, conversation_id: int, agent_id: int, content: str, client_id: str | None, now: str) -> Change:
    """An agent writes. The same `client_id` from the same agent a second time changes nothing."""
    check_agent(cursor, agent_id)
    about = conversation(cursor, conversation_id)
    if client_id is not None:
        known = cursor.execute(
            "SELECT * FROM messages WHERE sender_id = ? AND client_id = ?", (agent_id, client_id)
        ).fetchone()
        if known is not None:
            return Change(about, _message(known), repeated=True)
    if about["status"] == "closed":
        raise DemoError(409, "conversation_closed", f"conversation {conversation_id} is closed: reopen it first")
    written = _write(cursor, conversation_id, "agent", agent_id, content, now, client_id=client_id)
    _advance_read(cursor, conversation_id, agent_id, written["id"])
    return Change(conversation(cursor, conversation_id), written)


def assign(cursor: Any, conversation_id: int, agent_id: int | None, by: int | None, now: str) -> Change:
    """Give the conversation to an agent, or to nobody. Nothing changes when it is so already."""
    for one in (agent_id, by):
        if one is not None:
            check_agent(cursor, one)
    about = conversation(cursor, conversation_id)
    if about["assigned_to"] == agent_id:
        return Change(about)
    cursor.execute("UPDATE conversations SET assigned_to = ? WHERE id = ?", (agent_id, conversation_id))
    note = "assigned" if agent_id is not None else "unassigned"
    written = _write(cursor, conversation_id, "note", by, note, now, about_id=agent_id)
    return Change(conversation(cursor, conversation_id), written)


def set_status(cursor: Any, conversation_id: int, status: str, by: int | None, now: str) -> Change:
    """Close (`closed`) or reopen (`open`). Nothing changes when it is so already."""
    if by is not None:
        check_agent(cursor, by)
    about = conversation(cursor, conversation_id)
    if about["status"] == status:
        return Change(about)
    cursor.execute("UPDATE conversations SET status = ? WHERE id = ?", (status, conversation_id))
    written = _write(cursor, conversation_id, "note", by, "closed" if status == "closed" else "reopened", now)
    return Change(conversation(cursor, conversation_id), written)


def mark_read(cursor: Any, conversation_id: int, agent_id: int, message_id: int | None) -> tuple[Row, int | None]:
    """An agent has seen the conversation up to `message_id`, or all of it.

    Returns the conversation, and the message up to which it is newly read: None when nothing moved.
    """
    check_agent(cursor, agent_id)
    about = conversation(cursor, conversation_id)
    newest = cursor.execute(
        "SELECT max(id) AS newest FROM messages WHERE conversation_id = ?", (conversation_id,)
    ).fetchone()["newest"]
    if newest is None:
        return about, None
    upto = newest if message_id is None else min(message_id, newest)
    if not _advance_read(cursor, conversation_id, agent_id, upto):
        return about, None
    _new_version(cursor, conversation_id)
    return conversation(cursor, conversation_id), upto


def choose_customer(cursor: Any) -> int | None:
    """Which conversation's customer writes next, or None for somebody new: who was answered last, who has waited
    longest, and a newcomer, in turns."""
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


def customer_writes(cursor: Any, conversation_id: int | None, content: str | None, now: str) -> Change:
    """A customer says `content`, or what comes to mind. No conversation: somebody new. A closed one opens again."""
    if conversation_id is None:
        return _newcomer(cursor, content, now)
    about = conversation(cursor, conversation_id)
    if content is None:
        said = cursor.execute(
            "SELECT count(*) AS said FROM messages WHERE conversation_id = ? AND sender_type = 'customer'",
            (conversation_id,),
        ).fetchone()["said"]
        content = seed.next_line(seed.Contact(about["contact_name"], about["channel"], about["language"]), said)
    if about["status"] == "closed":
        cursor.execute("UPDATE conversations SET status = 'open' WHERE id = ?", (conversation_id,))
    written = _write(cursor, conversation_id, "customer", None, content, now)
    return Change(conversation(cursor, conversation_id), written)


def _newcomer(cursor: Any, content: str | None, now: str) -> Change:
    number = cursor.execute("SELECT count(*) AS number FROM conversations").fetchone()["number"]
    contact, line = seed.NEWCOMERS[(number - len(seed.CONVERSATIONS)) % len(seed.NEWCOMERS)]
    cursor.execute(
        "INSERT INTO conversations (contact_name, channel, language, status, created_at, updated_at)"
        " VALUES (?, ?, ?, 'open', ?, ?)",
        (*contact, now, now),
    )
    conversation_id = cursor.lastrowid
    written = _write(cursor, conversation_id, "customer", None, line if content is None else content, now)
    return Change(conversation(cursor, conversation_id), written, created=True)


def _write(
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
    _new_version(cursor, conversation_id)
    return _message(cursor.execute("SELECT * FROM messages WHERE id = ?", (message_id,)).fetchone())


def _advance_read(cursor: Any, conversation_id: int, agent_id: int, message_id: int) -> bool:
    """Whether the mark moved: it never goes back."""
    cursor.execute(
        "INSERT INTO reads VALUES (?, ?, ?) ON CONFLICT (agent_id, conversation_id)"
        " DO UPDATE SET message_id = excluded.message_id WHERE excluded.message_id > reads.message_id",
        (agent_id, conversation_id, message_id),
    )
    return bool(cursor.rowcount)


def _new_version(cursor: Any, conversation_id: int) -> None:
    cursor.execute("UPDATE conversations SET version = version + 1 WHERE id = ?", (conversation_id,))
