"""Determine which connections get an event: channels, and the default audience of each event (docs/protocol.md §2).

A channel is a string: `*` for all agents, `#contacts` for all contacts, `user:5` for the connections of an agent,
`contact:7` for those of a contact, `group:sales` for the agents of a group, and `conversation:456` for the subscribers
of a conversation. `!` before a channel excludes its connections. The hub, the history and the brokers deal with
channels only.

Hot path: `AudienceTable.new_events` processes a batch by columns. Its reference is `AudienceTable.new_event`, called
for each event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from operator import attrgetter
from typing import Any

import msgspec

from chatws.brokers.interface import AGENTS, CONTACTS, EXCLUDE, Audience, NewEvent
from chatws.errors import ClientError, ErrorCode
from chatws.ids import Id, parse_id

__all__ = [
    "AGENTS_AUDIENCE",
    "CONTACTS_EXCLUDED",
    "CONVERSATION_PREFIX",
    "DEFAULT_RULES",
    "EVERYONE",
    "AudienceTable",
    "Kind",
    "Rule",
    "connection_channel",
    "contact_channel",
    "conversation_channel",
    "conversation_contacts_channel",
    "excluding",
    "group_channel",
    "user_channel",
]

#: Keys of the audience cache: more conversations than a large shop has active at once.
MAX_CACHED_AUDIENCES = 10_000
#: The channels of all authenticated connections.
EVERYONE = (AGENTS, CONTACTS)
#: The audience of all agents.
AGENTS_AUDIENCE = Audience((AGENTS,))
#: Excludes contacts from the audience of a conversation.
CONTACTS_EXCLUDED = EXCLUDE + CONTACTS
#: Begins the channel of a conversation's subscribers. Contacts get only some of its events (ContactFilter).
CONVERSATION_PREFIX = "conversation:"


def conversation_channel(conversation_id: Id) -> str:
    """Return the channel of a conversation's subscribers."""
    return f"{CONVERSATION_PREFIX}{conversation_id}"


def conversation_contacts_channel(conversation_id: Id) -> str:
    """Return the channel of those of a conversation's subscribers that are contacts."""
    return f"conversation-contacts:{conversation_id}"


def user_channel(user_id: Id) -> str:
    """Return the channel of an agent's connections."""
    return f"user:{user_id}"


def contact_channel(contact_id: Id) -> str:
    """Return the channel of a contact's connections."""
    return f"contact:{contact_id}"


def group_channel(group: str) -> str:
    """Return the channel of the agents in a group."""
    return f"group:{group}"


def connection_channel(connection_id: str) -> str:
    """Return the channel of one connection. It can only be excluded."""
    return f"connection:{connection_id}"


def excluding(channel: str) -> str:
    """Return the channel that excludes the connections of `channel`."""
    return EXCLUDE + channel


class Kind(StrEnum):
    """An event's default audience. The values are those of `[audience]` in the configuration."""

    CONVERSATION = "conversation"
    USER = "user"
    AGENTS = "agents"
    EVERYONE = "everyone"
    NONE = "none"


class Rule(msgspec.Struct, frozen=True, gc=False):
    """One row of the table.

    :ivar transient: the event is never stored for recovery.
    :ivar not_to_actor: the connections of the `user_id` or `contact_id` in the data are excluded.
    """

    kind: Kind
    transient: bool = False
    not_to_actor: bool = False


#: The default audiences. `[audience]` in the configuration can change the `kind` of a row, or add one.
DEFAULT_RULES: Mapping[str, Rule] = {
    "new_message": Rule(Kind.CONVERSATION),
    "message_read": Rule(Kind.CONVERSATION),
    "message_status_updated": Rule(Kind.CONVERSATION),
    "typing": Rule(Kind.CONVERSATION, transient=True, not_to_actor=True),
    "conversation_updated": Rule(Kind.AGENTS),
    "new_conversation": Rule(Kind.AGENTS),
    "agent_status": Rule(Kind.AGENTS, transient=True),
}

_UNKNOWN = Rule(Kind.NONE)
# Used for every event: a global is found faster than an attribute of an enum.
_AGENTS, _EVERYONE, _NONE, _USER = Kind.AGENTS, Kind.EVERYONE, Kind.NONE, Kind.USER


class _AudienceIds(msgspec.Struct, gc=False):
    """The ids in an event's data that may determine its audience. The rest of the data is not decoded."""

    conversation_id: Any = None
    user_id: Any = None
    contact_id: Any = None


class _ConversationId(msgspec.Struct, gc=False):
    """The conversation's id. Decoding fails for data without one, and for values such as `true` or `1.0`."""

    conversation_id: Id


_decode_audience_ids = msgspec.json.Decoder(_AudienceIds).decode
_decode_conversation_id = msgspec.json.Decoder(_ConversationId).decode
_conversation_id_of = attrgetter("conversation_id")


class AudienceTable:
    """Makes the events that backends publish.

    :param overrides: kinds by event name, from `[audience]`.
    :param contacts: whether contacts may connect. If not, everyone is all agents.
    """

    def __init__(self, overrides: Mapping[str, Kind] | None = None, *, contacts: bool = False) -> None:
        self._everyone = EVERYONE if contacts else AGENTS_AUDIENCE.channels
        self._rules = dict(DEFAULT_RULES)
        for name, kind in (overrides or {}).items():
            self._rules[name] = msgspec.structs.replace(self._rules.get(name, _UNKNOWN), kind=kind)
        # The events that `new_events` handles: their conversation's id is all that their audience depends on.
        self._to_conversation = {
            name
            for name, rule in self._rules.items()
            if rule.kind is Kind.CONVERSATION and not rule.transient and not rule.not_to_actor
        }
        # Every stored event refers to its audience. Sharing one for each conversation makes the history smaller.
        # The keys are the ids as backends write them: 456 and "456".
        self._conversations: dict[Id, Audience] = {}

    def has_default(self, name: str) -> bool:
        """Return whether an event has a default audience."""
        return self._rules.get(name, _UNKNOWN).kind is not Kind.NONE

    def new_event(
        self,
        name: str,
        data: bytes,
        to: tuple[str, ...] | None = None,
        except_user_id: Id | None = None,
        key: str | None = None,
        transient: bool = False,
        excluded: tuple[str, ...] = (),
    ) -> NewEvent:
        """Return an event to be published.

        :param name: the event's name, validated.
        :param data: a JSON object, validated.
        :param to: the channels that the backend names, or None for the event's default audience.
        :param except_user_id: an agent whose connections are excluded.
        :param key: the idempotency key.
        :param transient: do not store the event; some events are transient in any case.
        :param excluded: channels that exclude other connections (`excluding`).
        :raises ClientError: `no_audience` for an event without a default audience; `bad_message` if the data lacks
            the id that the default audience needs.
        """
        rule = self._rules.get(name, _UNKNOWN)
        if to is None:
            audience = self._default(rule, name, data, except_user_id)
        else:
            audience = Audience(self._everyone if to == EVERYONE else to, except_user_id)
        if excluded:
            audience = Audience(audience.channels + excluded, audience.except_user_id)
        return NewEvent(name, audience, data, key, transient or rule.transient)

    def new_events(self, names: Sequence[str], data: Sequence[bytes]) -> list[NewEvent] | None:
        """Return many events, if each goes to the conversation in its data, as most do.

        :param names: the events' names, validated.
        :param data: a JSON object for each name.
        :return: None if any event has another audience, or none. The caller then calls `new_event` for each.
        """
        if not self._to_conversation.issuperset(names):
            return None
        try:
            ids = [*map(_conversation_id_of, map(_decode_conversation_id, data))]
            cached = [*map(self._conversations.get, ids)]
            audiences = [*map(self._conversation_audience, ids)] if None in cached else cached
        except (ClientError, msgspec.DecodeError, RecursionError):
            return None
        return [*map(NewEvent, names, audiences, data)]  # type: ignore[arg-type]  # no audience is None

    def _conversation_audience(self, raw_id: Id) -> Audience:
        """Return the shared audience of a conversation.

        :raises ClientError: `bad_message`: the id is invalid.
        """
        cache = self._conversations
        audience = cache.get(raw_id)
        if audience is None:
            conversation_id = parse_id(raw_id, "data.conversation_id")
            audience = cache.get(conversation_id) or Audience((conversation_channel(conversation_id),))
            if len(cache) >= MAX_CACHED_AUDIENCES - 1:
                cache.clear()
            cache[raw_id] = cache[conversation_id] = audience
        return audience

    def _default(self, rule: Rule, name: str, data: bytes, except_user_id: Id | None) -> Audience:
        kind = rule.kind
        if kind is _AGENTS:
            return AGENTS_AUDIENCE if except_user_id is None else Audience(AGENTS_AUDIENCE.channels, except_user_id)
        if kind is _EVERYONE:
            return Audience(self._everyone, except_user_id)
        if kind is _NONE:
            raise ClientError(ErrorCode.NO_AUDIENCE, f"{name} has no default audience: name one with `to`")
        try:
            ids = _decode_audience_ids(data)
        except msgspec.ValidationError:
            # A number out of msgspec's range. The push API's parser does not decode values inside `data`.
            raise ClientError(ErrorCode.BAD_MESSAGE, "an id in data is out of range") from None
        if rule.not_to_actor and except_user_id is None and ids.user_id is not None:
            except_user_id = parse_id(ids.user_id, "data.user_id")
        if kind is _USER:
            return Audience((user_channel(parse_id(ids.user_id, "data.user_id")),), except_user_id)
        conversation_id = parse_id(ids.conversation_id, "data.conversation_id")
        if rule.not_to_actor and except_user_id is None and ids.contact_id is not None:
            actor = contact_channel(parse_id(ids.contact_id, "data.contact_id"))
            return Audience((conversation_channel(conversation_id), excluding(actor)))
        if except_user_id is not None:
            return Audience((conversation_channel(conversation_id),), except_user_id)
        return self._conversation_audience(conversation_id)
