"""The queue of webhook events in a broker: what every engine offers, and the engine in one process.

Changes of presence are appended in the step that makes them (`Broker.lease`), so a node that dies afterwards loses
none. One node at a time, the sender, exchanges what was acknowledged for what comes next (`Broker.exchange_webhooks`).

The queue is bounded. When it is full the oldest events of the lowest priority are dropped, and a reset is due: the
receiver gets the whole state (`presence_reset`), because it has missed changes. docs/adr/0021-webhooks.md has the
proof that the reported state ends right.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from chatws.ids import Id

__all__ = [
    "NO_WEBHOOK_QUEUE",
    "PRIORITIES",
    "NewWebhook",
    "SqlWebhookQueue",
    "WebhookItem",
    "WebhookQueueSettings",
    "WebhookReply",
    "WebhookRequest",
    "presence_webhooks",
]

#: Kinds of events that a full queue drops first, by rank. The rank of all others is `HIGHEST`.
PRIORITIES = {"activity": 0, "contact_online": 1, "contact_offline": 1}
HIGHEST = 2
#: Sequence numbers that one write to the disk covers: those of about a quarter of an hour.
NUMBERS_AHEAD = 10**9
#: An event that is to be queued: its kind, and JSON that the sender completes.
NewWebhook = tuple[str, bytes]

_encode = msgspec.json.Encoder().encode

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS webhooks (id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL, "
    "epoch TEXT NOT NULL, seq INTEGER NOT NULL DEFAULT 0, position INTEGER NOT NULL DEFAULT 0, "
    "queued INTEGER NOT NULL DEFAULT 0, resets INTEGER NOT NULL DEFAULT 1, resets_done INTEGER NOT NULL DEFAULT 0, "
    "dropped_0 INTEGER NOT NULL DEFAULT 0, dropped_1 INTEGER NOT NULL DEFAULT 0, dropped_2 INTEGER NOT NULL DEFAULT 0)",
    "CREATE TABLE IF NOT EXISTS webhook_events (position INTEGER PRIMARY KEY, priority INTEGER NOT NULL, "
    "time_ms INTEGER NOT NULL, kind TEXT NOT NULL, data BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS webhook_events_by_priority ON webhook_events (priority, position)",
)


class WebhookItem(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A queued event.

    :ivar position: its place in the queue.
    :ivar time_ms: when it was queued, in milliseconds since 1970.
    :ivar data: JSON that belongs to the kind: of an agent the id, of a contact the member of the space.
    """

    position: int
    time_ms: int
    kind: str
    data: bytes


class WebhookRequest(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What the sender, or a node that would like to be the sender, asks for.

    :ivar owner: the name of the node.
    :ivar seconds: how long it is the sender from now on, unless it asks again. 0: it is the sender no longer.
    :ivar name: the name of the queue that `acked` and `after` belong to. With another name they mean nothing.
    :ivar acked: the receiver has acknowledged all events up to this position.
    :ivar after: return events after this position.
    :ivar limit: number of events at most.
    :ivar reset_done: the receiver has acknowledged the reset of this number.
    :ivar numbers: how many sequence numbers to reserve.
    :ivar start_delay: seconds from the start of a queue that does not survive its process, in which nothing is sent.
    """

    owner: str
    seconds: float
    name: str = ""
    acked: int = 0
    after: int = 0
    limit: int = 0
    reset_done: int = 0
    numbers: int = 0
    start_delay: float = 0.0


class WebhookReply(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The state of the queue. Without `is_sender` nothing else is set.

    :ivar is_sender: whether the node is the sender now.
    :ivar name: the name of the queue. It changes when the queue or the history was lost.
    :ivar items: the events, in order.
    :ivar more: whether there are more events behind them.
    :ivar first_number: the first of the reserved sequence numbers. They grow over nodes and restarts.
    :ivar reset: the number of the reset that is due; 0 if none is.
    :ivar wait: seconds in which nothing may be sent yet.
    :ivar queued: events in the queue.
    :ivar dropped: number of events dropped so far, by priority.
    :ivar last: the position of the newest event, whether it is still in the queue or not.
    """

    is_sender: bool = False
    name: str = ""
    items: Sequence[WebhookItem] = ()
    more: bool = False
    first_number: int = 0
    reset: int = 0
    wait: float = 0.0
    queued: int = 0
    dropped: tuple[int, int, int] = (0, 0, 0)
    last: int = 0


class WebhookQueueSettings(NamedTuple):
    """Settings of the queue.

    :ivar limit: most events in the queue; 0 without webhooks.
    :ivar contacts: whether changes of contacts are queued, too.
    """

    limit: int = 0
    contacts: bool = False

    def limit_for(self, space: str) -> int:
        """Return the limit for changes of a space, 0 if they are not queued."""
        return self.limit if space == "agents" or (space == "contacts" and self.contacts) else 0


#: The settings without webhooks.
NO_WEBHOOK_QUEUE = WebhookQueueSettings()


def presence_webhooks(space: str, changes: Iterable[tuple[Id, bool]]) -> list[NewWebhook]:
    """Return the events of members of a space that came online (True) or went offline (False)."""
    kind = "contact" if space == "contacts" else "agent"
    return [(f"{kind}_online" if is_online else f"{kind}_offline", _encode(member)) for member, is_online in changes]


class SqlWebhookQueue:
    """The queue of an engine that one process holds. Its methods belong in a transaction of the caller.

    Which node is the sender is kept in memory, because all nodes are processes of one supervisor.

    :param db: a connection of SQLite with explicit commits.
    :param limit: most events in the queue.
    :param epoch: of the history. With another one than before, a reset is due.
    :param opened: when the queue was opened, in seconds since 1970.
    """

    def __init__(self, db: sqlite3.Connection, limit: int, epoch: str, opened: float) -> None:
        self._db = db
        self._limit = limit
        self._opened = opened
        self._owner, self._until = "", 0.0
        for statement in _SCHEMA:
            db.execute(statement)
        name = secrets.token_urlsafe(6)
        db.execute("INSERT OR IGNORE INTO webhooks (id, name, epoch) VALUES (1, ?, ?)", (name, epoch))
        db.execute(
            "UPDATE webhooks SET name = ?, epoch = ?, resets = resets + 1 WHERE epoch <> ?", (name, epoch, epoch)
        )
        (self._last_number,) = db.execute("SELECT seq FROM webhooks").fetchone()
        self._stored_number = self._last_number

    def add(self, webhooks: Sequence[NewWebhook], now: float) -> None:
        """Append events. A full queue drops others, or these."""
        db = self._db
        (position,) = db.execute("SELECT position FROM webhooks").fetchone()
        time_ms = int(now * 1000)
        db.executemany(
            "INSERT INTO webhook_events VALUES (?, ?, ?, ?, ?)",
            [
                (position + index, PRIORITIES.get(kind, HIGHEST), time_ms, kind, data)
                for index, (kind, data) in enumerate(webhooks, 1)
            ],
        )
        db.execute("UPDATE webhooks SET position = position + ?, queued = queued + ?", (len(webhooks), len(webhooks)))
        (queued,) = db.execute("SELECT queued FROM webhooks").fetchone()
        if queued > self._limit:
            self._drop(queued - self._limit)

    def _drop(self, count: int) -> None:
        db = self._db
        oldest = "SELECT position, priority FROM webhook_events ORDER BY priority, position LIMIT ?"
        dropped = db.execute(oldest, (count,)).fetchall()
        db.executemany("DELETE FROM webhook_events WHERE position = ?", [(position,) for position, _ in dropped])
        counts = [sum(1 for _, priority in dropped if priority == rank) for rank in range(HIGHEST + 1)]
        db.execute(
            "UPDATE webhooks SET queued = queued - ?, dropped_0 = dropped_0 + ?, dropped_1 = dropped_1 + ?, "
            "dropped_2 = dropped_2 + ?, resets = resets + 1",
            (len(dropped), *counts),
        )

    def require_reset(self) -> None:
        """Make a reset due."""
        self._db.execute("UPDATE webhooks SET resets = resets + 1")

    def exchange(self, request: WebhookRequest, now: float, *, lasts: bool) -> WebhookReply:
        """See `Broker.exchange_webhooks`.

        :param lasts: whether the queue survives its process.
        """
        db = self._db
        (name,) = db.execute("SELECT name FROM webhooks").fetchone()
        is_known = request.name == name
        if is_known and request.acked:
            acked = db.execute("DELETE FROM webhook_events WHERE position <= ?", (request.acked,)).rowcount
            if acked:
                db.execute("UPDATE webhooks SET queued = queued - ?", (acked,))
        if request.reset_done:
            db.execute("UPDATE webhooks SET resets_done = max(resets_done, ?)", (request.reset_done,))
        if self._owner not in ("", request.owner) and self._until > now:
            return WebhookReply()
        if not request.seconds:
            self._owner = ""
            return WebhookReply()
        self._owner, self._until = request.owner, now + request.seconds
        sql = "SELECT position, time_ms, kind, data FROM webhook_events WHERE position > ? ORDER BY position LIMIT ?"
        rows = db.execute(sql, (request.after if is_known else 0, request.limit + 1)).fetchall()
        queued, last, resets, resets_done, *dropped = db.execute(
            "SELECT queued, position, resets, resets_done, dropped_0, dropped_1, dropped_2 FROM webhooks"
        ).fetchone()
        first = self._reserve(request.numbers, now)
        return WebhookReply(
            True,
            name,
            [WebhookItem(*row) for row in rows[: request.limit]],
            len(rows) > request.limit,
            first,
            resets if resets > resets_done else 0,
            0.0 if lasts else max(0.0, self._opened + request.start_delay - now),
            queued,
            (dropped[0], dropped[1], dropped[2]),
            last,
        )

    def _reserve(self, count: int, now: float) -> int:
        """Return the first of `count` sequence numbers. They grow even if a restart finds the clock set back."""
        first: int = max(self._last_number + 1, int(now * 1_000_000))
        self._last_number = first + count - 1
        if self._last_number > self._stored_number:
            self._stored_number = self._last_number + NUMBERS_AHEAD
            self._db.execute("UPDATE webhooks SET seq = ?", (self._stored_number,))
        return first
