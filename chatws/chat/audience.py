"""Who gets an event: the channels, and the one table of defaults (docs/protocol.md §2).

A channel is a string: `*` for every authenticated connection, `user:5` for those of a user, `conversation:456`
for the subscribers of a conversation. Hub, history and brokers know nothing but channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from operator import attrgetter
from typing import Any

import msgspec

from chatws.brokers.contract import EVERYONE, Audience, Draft
from chatws.errors import ClientError, ErrorCode
from chatws.ids import Id, parse_id

__all__ = ["DEFAULT_RULES", "AudienceTable", "Kind", "Rule", "conversation_channel", "user_channel"]

#: Conversations whose audience is kept at hand.
MAX_KEPT = 10_000
#: The audience of all authenticated connections.
TO_EVERYONE = Audience((EVERYONE,))


def conversation_channel(conversation_id: Id) -> str:
    """The channel of a conversation's subscribers."""
    return f"conversation:{conversation_id}"


def user_channel(user_id: Id) -> str:
    """The channel of a user's connections."""
    return f"user:{user_id}"


class Kind(StrEnum):
    """Where an event goes when the backend does not say; the values are those of `[audience]` in the configuration."""

    CONVERSATION = "conversation"
    USER = "user"
    EVERYONE = "everyone"
    NONE = "none"


class Rule(msgspec.Struct, frozen=True, gc=False):
    """One row of the table.

    :ivar transient: never kept for recovery.
    :ivar not_to_actor: the connections of the `user_id` in the data are left out.
    """

    kind: Kind
    transient: bool = False
    not_to_actor: bool = False


#: Which events go to whom. `[audience]` in the configuration can change the `kind` of a row, or add one.
DEFAULT_RULES: Mapping[str, Rule] = {
    "new_message": Rule(Kind.CONVERSATION),
    "message_read": Rule(Kind.CONVERSATION),
    "message_status_updated": Rule(Kind.CONVERSATION),
    "typing": Rule(Kind.CONVERSATION, transient=True, not_to_actor=True),
    "conversation_updated": Rule(Kind.EVERYONE),
    "new_conversation": Rule(Kind.EVERYONE),
    "agent_status": Rule(Kind.EVERYONE, transient=True),
}

_UNKNOWN = Rule(Kind.NONE)
# looked up for every event; an enum's own attributes are slow to find
_EVERYONE, _NONE, _USER = Kind.EVERYONE, Kind.NONE, Kind.USER


class _Addressed(msgspec.Struct, gc=False):
    """What of an event's data the audience may need; the rest is never decoded."""

    conversation_id: Any = None
    user_id: Any = None


class _InConversation(msgspec.Struct, gc=False):
    """The same, where all that is needed is there, and nothing that could be mistaken for it (JSON's true, or 1.0)."""

    conversation_id: Id


_decode_addressed = msgspec.json.Decoder(_Addressed).decode
_decode_in_conversation = msgspec.json.Decoder(_InConversation).decode
_conversation_of = attrgetter("conversation_id")


class AudienceTable:
    """Turns what a backend asks for into a draft for the log.

    :param overrides: kinds by event name, from `[audience]`.
    """

    def __init__(self, overrides: Mapping[str, Kind] | None = None) -> None:
        self._rules = dict(DEFAULT_RULES)
        for name, kind in (overrides or {}).items():
            self._rules[name] = msgspec.structs.replace(self._rules.get(name, _UNKNOWN), kind=kind)
        self._to_conversation = {
            name
            for name, rule in self._rules.items()
            if rule.kind is Kind.CONVERSATION and not rule.transient and not rule.not_to_actor
        }
        # Every event that is kept holds its audience: those of one conversation share one, which makes the log smaller.
        # By the conversation's id, also as backends may write it: 456 and "456".
        self._conversations: dict[Id, Audience] = {}

    def has_default(self, name: str) -> bool:
        """Whether an event of this name goes to anybody when nobody is named."""
        return self._rules.get(name, _UNKNOWN).kind is not Kind.NONE

    def draft(
        self,
        name: str,
        data: bytes,
        to: tuple[str, ...] | None = None,
        except_user_id: Id | None = None,
        key: str | None = None,
        transient: bool = False,
    ) -> Draft:
        """
        :param name: the event's name, already checked.
        :param data: a JSON object, already checked.
        :param to: the channels the backend names, or None for the event's default.
        :param transient: asked for by the backend; some events are so in any case.
        :raises ClientError: `no_audience` for an event without a default, `bad_message` when the data lacks the id
            that the default needs.
        """
        rule = self._rules.get(name, _UNKNOWN)
        audience = self._default(rule, name, data, except_user_id) if to is None else Audience(to, except_user_id)
        return Draft(name, audience, data, key, transient or rule.transient)

    def drafts(self, names: Sequence[str], data: Sequence[bytes]) -> list[Draft] | None:
        """Many drafts at once, in as few steps for each as can be, where each event goes to the conversation that its
        data names, as most do.

        :param names: already checked, and :param data: JSON.
        :return: None where any of them goes elsewhere, or nobody can tell where: `draft` knows.
        """
        if not self._to_conversation.issuperset(names):
            return None
        try:
            ids = [*map(_conversation_of, map(_decode_in_conversation, data))]
            found = [*map(self._conversations.get, ids)]
            audiences = [*map(self._in_conversation, ids)] if None in found else found
        except (ClientError, msgspec.DecodeError, RecursionError):
            return None
        return [*map(Draft, names, audiences, data)]  # type: ignore[arg-type]  # there is no None

    def _in_conversation(self, given: Id) -> Audience:
        """:raises ClientError: that is no id."""
        known = self._conversations
        found = known.get(given)
        if found is None:
            conversation_id = parse_id(given, "data.conversation_id")
            found = known.get(conversation_id) or Audience((conversation_channel(conversation_id),))
            if len(known) >= MAX_KEPT - 1:
                known.clear()
            known[given] = known[conversation_id] = found
        return found

    def _default(self, rule: Rule, name: str, data: bytes, except_user_id: Id | None) -> Audience:
        kind = rule.kind
        if kind is _EVERYONE:
            return Audience(TO_EVERYONE.channels, except_user_id)
        if kind is _NONE:
            raise ClientError(ErrorCode.NO_AUDIENCE, f"{name} has no default audience: say who gets it with `to`")
        try:
            addressed = _decode_addressed(data)
        except msgspec.ValidationError:
            # a number that no machine holds: the parser has passed it, as it stands where nobody looks
            raise ClientError(ErrorCode.BAD_MESSAGE, "an id in data is out of range") from None
        if rule.not_to_actor and except_user_id is None and addressed.user_id is not None:
            except_user_id = parse_id(addressed.user_id, "data.user_id")
        if kind is _USER:
            return Audience((user_channel(parse_id(addressed.user_id, "data.user_id")),), except_user_id)
        conversation_id = parse_id(addressed.conversation_id, "data.conversation_id")
        if except_user_id is not None:
            return Audience((conversation_channel(conversation_id),), except_user_id)
        return self._in_conversation(conversation_id)
