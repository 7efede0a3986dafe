"""The chat's state of one connection."""

from __future__ import annotations

from collections.abc import Iterator

from chatws.chat.actions import Action
from chatws.chat.rate_limits import MIN_PAUSE
from chatws.chat.session import Session
from chatws.ids import Id
from chatws.interfaces import Cancellable
from chatws.server.component import Connection

__all__ = ["MAX_WAITING", "Client"]

#: Waiting actions from which reading pauses: a page subscribes to its 1,000 conversations without a pause.
MAX_WAITING = 1000


class Client:
    """A connection and its session, stored as `connection.client`.

    :ivar deadline: the timer that closes the connection: until it is authenticated, for a missing `auth`; from then
        on, when its token expires or its identity is to be renewed. None if nothing applies.
    :ivar pause: the timer that ends a pause in reading; None while messages are read.
    :ivar present_in: the conversations in which the connection of a contact is counted, each with its member of
        `CONTACT_SPACE`; None if there has been none.
    :ivar replays: the replays in progress, by channel; None if there has been none, as for most connections.
    :ivar counted: what its connection counts for: see `Subscriptions.accept_auth`.
    :ivar waiting: actions that wait for a search of the history; None if there is no search.
    """

    __slots__ = ("connection", "counted", "deadline", "pause", "present_in", "replays", "session", "waiting")

    def __init__(self, connection: Connection, session: Session) -> None:
        self.connection = connection
        self.session = session
        self.deadline: Cancellable | None = None
        self.pause: Cancellable | None = None
        self.present_in: dict[Id, str] | None = None
        self.replays: dict[str, Iterator[bytes | None]] | None = None
        self.counted: tuple[str, ...] = ()
        self.waiting: list[Action] | None = None

    @property
    def replay_count(self) -> int:
        """Number of replays in progress."""
        return 0 if self.replays is None else len(self.replays)

    def read_delay(self, now: float) -> float:
        """Return the seconds to wait before reading on: see `Session.read_delay`. Waiting actions count too."""
        if self.waiting is not None and len(self.waiting) > MAX_WAITING:
            return MIN_PAUSE
        return self.session.read_delay(now)

    @property
    def is_contact(self) -> bool:
        """Whether the connection is authenticated as a contact."""
        identity = self.session.identity
        return identity is not None and identity.is_contact

    @property
    def user_id(self) -> Id | None:
        """The agent's id; None before authentication, and for a contact."""
        identity = self.session.identity
        return None if identity is None or identity.is_contact else identity.user_id

    @property
    def log_name(self) -> Id | None:
        """How the log names the user: the agent's id, or `contact:ID`; None before authentication."""
        identity = self.session.identity
        return f"contact:{identity.user_id}" if identity is not None and identity.is_contact else self.user_id
