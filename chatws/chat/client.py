"""One connection, as the chat knows it."""

from __future__ import annotations

from typing import Any

from chatws.chat.session import Session
from chatws.ids import Id
from chatws.server.component import Connection

__all__ = ["Client"]


class Client:
    """What stands in `connection.session`.

    :ivar deadline: the timer that ends the connection: first for want of an `auth`, then with the ticket.
    :ivar replays: the long replays under way, by channel; None when there are none, as most of the time.
    """

    __slots__ = ("connection", "deadline", "replays", "session")

    def __init__(self, connection: Connection, session: Session) -> None:
        self.connection = connection
        self.session = session
        self.deadline: Any = None
        self.replays: dict[str, object] | None = None

    @property
    def user_id(self) -> Id | None:
        """Who it is, once it is in."""
        identity = self.session.identity
        return None if identity is None else identity.user_id
