"""Authorization: whether a user may read a conversation."""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import Deferred

from chatws.auth.cache import SingleFlightCache
from chatws.auth.exists_query import ExistsQuery
from chatws.auth.fair_queue import FairQueue
from chatws.auth.refusals import Refusals
from chatws.chat.interfaces import Identity
from chatws.database.interface import Database
from chatws.ids import Id
from chatws.interfaces import Clock

__all__ = ["ConversationAuthorizer"]

#: user_id and conversation_id. The user is None where the query does not use it: all users then share one result.
_Key = tuple[Id | None, Id]


class ConversationAuthorizer:
    """See `chatws.chat.interfaces.Authorizer`. The identity's own list is checked first, then the database.

    :param database: the application's database, or None to allow every conversation that the identity allows.
    :param query: the `conversation_query`; empty has the effect of no database.
    :param contact_query: the `contact_conversation_query`; empty allows a contact its own list only.
    :param ttl: seconds for which permissions are cached; 0 caches none. Denials are not cached, except for a second
        for a user with many of them (`chatws.auth.refusals`).
    :param timeout: seconds that a query may take, without its wait for a turn.
    :param slots: queries that run at the same time. The others wait, and users take turns.
    :raises ConfigError: the query has an unknown placeholder.
    """

    def __init__(
        self,
        database: Database | None,
        query: str,
        *,
        ttl: float,
        timeout: float,
        slots: int,
        clock: Clock,
        contact_query: str = "",
    ) -> None:
        self._agents = self._contacts = None
        if database is not None:
            queue = FairQueue(slots, timeout, clock)
            make = partial(_Permissions, database, ttl=ttl, timeout=timeout, queue=queue, clock=clock)
            if query:
                self._agents = make("conversation_query", query, "user_id")
            if contact_query:
                self._contacts = make("contact_conversation_query", contact_query, "contact_id")

    def may_read(self, identity: Identity, conversation_id: Id) -> bool | Deferred[bool]:
        """See `chatws.chat.interfaces.Authorizer.may_read`."""
        if not identity.covers(conversation_id):
            return False
        permissions = self._contacts if identity.is_contact else self._agents
        if permissions is None:
            return identity.may_read(conversation_id)
        return permissions.get(identity.user_id, conversation_id)

    def forget(self, user_id: Id, conversation_id: Id | None = None, *, is_contact: bool = False) -> None:
        """Drop the cached permissions of an agent or a contact: one conversation, or all of them."""
        permissions = self._contacts if is_contact else self._agents
        if permissions is not None:
            permissions.forget(user_id, conversation_id)


class _Permissions:
    """The permissions of agents, or those of contacts.

    :param name: the setting of the query.
    :param user_placeholder: the placeholder for the id of the agent or contact.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        sql: str,
        user_placeholder: str,
        *,
        ttl: float,
        timeout: float,
        queue: FairQueue,
        clock: Clock,
    ) -> None:
        self._query = ExistsQuery(database, name, sql, [user_placeholder, "conversation_id"], clock)
        self._user_placeholder = user_placeholder
        self._by_user = user_placeholder in self._query.placeholders
        self._cache = SingleFlightCache(self._load, ttl=ttl, timeout=timeout, clock=clock, queue=queue)
        self._refusals = Refusals(clock)
        self._owner = "contact" if user_placeholder == "contact_id" else "user"

    def get(self, user_id: Id, conversation_id: Id) -> bool | Deferred[bool]:
        if (user_id, conversation_id) in self._refusals:
            return False
        key = (user_id if self._by_user else None, conversation_id)
        may_read = self._cache.get(key, owner=(self._owner, user_id))
        if isinstance(may_read, Deferred):
            may_read.addCallback(self._note, user_id, conversation_id)
        return may_read

    def forget(self, user_id: Id, conversation_id: Id | None) -> None:
        self._refusals.forget(user_id)
        self._cache.forget(
            lambda key: key[0] in (None, user_id) and (conversation_id is None or key[1] == conversation_id)
        )

    def _note(self, may_read: bool, user_id: Id, conversation_id: Id) -> bool:
        if not may_read:
            self._refusals.add(user_id, conversation_id)
        return may_read

    async def _load(self, key: _Key) -> bool:
        user_id, conversation_id = key
        row = await self._query.run({self._user_placeholder: user_id, "conversation_id": conversation_id})
        return row is not None
