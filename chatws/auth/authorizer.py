"""Who may read which conversation."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from chatws.auth.lookup import Lookup, Question
from chatws.chat.contracts import Identity
from chatws.database.contract import Database
from chatws.ids import Id

__all__ = ["ConversationAuthorizer"]

#: What a lookup is about. The user is None where the query does not ask for one: then all users are one question.
_Key = tuple[Id | None, Id]


class ConversationAuthorizer:
    """See chatws.chat.contracts.Authorizer: what the identity brings along limits it, then the database is asked.

    :param database: None, and everybody may read whatever their identity does not forbid.
    :param query: `conversation_query`; empty likewise.
    :param keep: seconds that a yes is kept; 0 keeps none. A no is never kept.
    :param timeout: seconds that an answer may take.
    :raises OperatorError: the query has a placeholder that is not known.
    """

    def __init__(self, database: Database | None, query: str, *, keep: float, timeout: float, clock: Any) -> None:
        self._lookup: Lookup[_Key, bool] | None = None
        self._by_user = False
        if database is not None and query:
            self._question = Question(database, "conversation_query", query, ["user_id", "conversation_id"], clock)
            self._by_user = "user_id" in self._question.placeholders
            self._lookup = Lookup(self._ask, keep=keep, timeout=timeout, clock=clock)

    def may_read(self, identity: Identity, conversation_id: Id) -> bool | Deferred[bool]:
        if not identity.covers(conversation_id):
            return False
        if self._lookup is None:
            return True
        return self._lookup.get((identity.user_id if self._by_user else None, conversation_id))

    def forget(self, user_id: Id, conversation_id: Id | None = None) -> None:
        """What this user may read is asked anew from now on: this conversation, or all of them."""
        if self._lookup is not None:
            self._lookup.forget(
                lambda key: key[0] in (None, user_id) and (conversation_id is None or key[1] == conversation_id)
            )

    async def _ask(self, key: _Key) -> bool:
        user_id, conversation_id = key
        return await self._question.ask({"user_id": user_id, "conversation_id": conversation_id})
