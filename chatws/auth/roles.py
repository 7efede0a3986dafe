"""The role of an identity: agent or contact, from the credentials and the row of the operator's query (PROTOCOL §6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from chatws.chat.interfaces import Identity
from chatws.errors import AuthenticationFailed, ClientError
from chatws.ids import Id, parse_groups, parse_ids

__all__ = ["Roles", "identity_from_row", "parse_conversations", "parse_role"]


def parse_role(value: object) -> str | None:
    """Return the role that credentials name, or None if they name none.

    :param value: the claim, or `msgspec.UNSET`.
    :raises AuthenticationFailed: it is not a text. null is not an absent role: the query for it may have failed.
    """
    if value is msgspec.UNSET:
        return None
    if not isinstance(value, str):
        raise AuthenticationFailed("role must be a text")
    return value


def parse_conversations(value: object) -> frozenset[Id] | None:
    """Return the conversations that credentials cover, or None if they name none.

    :param value: the claim, or `msgspec.UNSET`.
    :raises ClientError: it is not a list of ids.
    """
    return None if value is msgspec.UNSET else frozenset(parse_ids(value, "conversations"))


def identity_from_row(identity: Identity, row: Mapping[str, Any]) -> Identity:
    """Return the identity with what the row of a query adds: `role`, `groups` and `conversations`.

    Groups and conversations of the credentials take precedence. In the row these are JSON text, and NULL names none.

    :raises AuthenticationFailed: the row is invalid, or names another role than the credentials.
    """
    role = row.get("role")
    if role is not None and identity.role is not None and role != identity.role:
        raise AuthenticationFailed("the database names another role than the credentials")
    groups, conversations = row.get("groups"), row.get("conversations")
    try:
        if groups is not None and identity.groups is None:
            identity = replace(identity, groups=parse_groups(_decode(groups)))
        if conversations is not None and identity.conversations is None:
            identity = replace(identity, conversations=frozenset(parse_ids(_decode(conversations), "conversations")))
    except (ClientError, msgspec.DecodeError, UnicodeError, RecursionError):
        raise AuthenticationFailed("the user's groups or conversations in the database are invalid") from None
    return identity if role is None or identity.role is not None else replace(identity, role=parse_role(role))


def _decode(value: Any) -> Any:
    return msgspec.json.decode(value) if isinstance(value, str | bytes) else value


class Roles:
    """Decides whether an identity is an agent or a contact.

    :param contacts: whether contacts may connect. If so, an identity needs a role.
    :param agent_roles: the roles of agents.
    :param contact_roles: the roles of contacts.
    :param default_role: the role of an identity without one; empty rejects it.
    """

    def __init__(
        self,
        *,
        contacts: bool = False,
        agent_roles: tuple[str, ...] = ("agent",),
        contact_roles: tuple[str, ...] = ("contact",),
        default_role: str = "",
    ) -> None:
        self._contacts = contacts
        self._agent_roles = agent_roles
        self._contact_roles = contact_roles
        self._default_role = default_role

    def assign(self, identity: Identity) -> Identity:
        """Return the identity as that of an agent or a contact, by the role that its credentials name.

        :raises AuthenticationFailed: the role is not configured, or contradicts the kind of id.
        """
        role = identity.role
        if role is None:
            is_contact = identity.is_contact or (self._contacts and self._default_role in self._contact_roles)
        elif role in self._contact_roles:
            is_contact = True
        elif role in self._agent_roles:
            is_contact = False
        else:
            raise AuthenticationFailed(f"role {role[:64]!r} is not in agent_roles or contact_roles")
        if identity.is_contact and not is_contact:
            raise AuthenticationFailed("an agent has a user_id, not a contact_id")
        if is_contact and not self._contacts:
            raise AuthenticationFailed("contacts are switched off")
        if is_contact and identity.method == "callback" and not identity.is_contact:
            raise AuthenticationFailed("the application must name a contact by contact_id")
        return replace(identity, is_contact=True) if is_contact and not identity.is_contact else identity

    def finish(self, identity: Identity) -> Identity:
        """Check an identity from `assign` that has its role from the credentials and the database.

        :raises AuthenticationFailed: it has no role and needs one, or the database named a role of the other kind.
        """
        role = identity.role
        if role is None:
            if self._contacts and not identity.is_contact and self._default_role not in self._agent_roles:
                raise AuthenticationFailed("the credentials name no role, and default_role is not set")
        elif role not in (self._contact_roles if identity.is_contact else self._agent_roles):
            raise AuthenticationFailed(
                f"role {role[:64]!r} is not one of {'a contact' if identity.is_contact else 'an agent'}"
            )
        return identity
