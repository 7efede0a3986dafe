"""The contacts that are subscribed to their conversations, on any node, and whether every node knows contacts.

A member of `CONTACT_SPACE` is a contact in a conversation. `ClusterPresence` leases it as it leases agents, with a
longer grace. Every node has the contacts of each conversation, so that the reply to an agent's `subscribe` needs no
query.

A node of an earlier version would take contact 7 for agent 7. Such a node holds no lease of this space. While one is
running, contacts are not admitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.interface import CONTACT_SPACE
from chatws.chat.presence.cluster import ClusterPresence, MemberChange
from chatws.errors import Unavailable
from chatws.ids import Id, sort_ids
from chatws.interfaces import Clock

__all__ = ["ContactPresence", "contact_member", "parse_contact_member"]

_encode = msgspec.json.Encoder().encode
_decode: Callable[[str], tuple[Id, Id]] = msgspec.json.Decoder(tuple[int | str, int | str]).decode


def contact_member(conversation_id: Id, contact_id: Id) -> str:
    """Return the member of a contact in a conversation."""
    return _encode((conversation_id, contact_id)).decode()


def parse_contact_member(member: Id) -> tuple[Id, Id]:
    """Return the conversation and the contact of a member."""
    return _decode(str(member))


class ContactPresence(ClusterPresence):
    """Maintains this node's leases of contacts, and the contacts of each conversation.

    :ivar outdated: nodes of earlier versions. None before the first check has succeeded.
    """

    _log = Logger()

    def __init__(
        self, node: str, announce: Callable[[list[MemberChange]], None], grace: float, ttl: float, clock: Clock
    ) -> None:
        super().__init__(node, announce, grace, ttl, clock, space=CONTACT_SPACE)
        self.outdated: list[str] | None = None
        self._contacts: dict[Id, set[Id]] = {}

    def contacts_of(self, conversation_id: Id) -> list[Id]:
        """Return the contacts that are subscribed to a conversation, sorted."""
        return sort_ids(self._contacts.get(conversation_id, set()))

    def apply_remote_status(self, online: Iterable[Id], offline: Iterable[Id]) -> None:
        """Apply an update that a node, this one included, has published."""
        online, offline = [*online], [*offline]
        super().apply_remote_status(online, offline)
        for conversation_id, contact_id in map(parse_contact_member, online):
            self._contacts.setdefault(conversation_id, set()).add(contact_id)
        for conversation_id, contact_id in map(parse_contact_member, offline):
            contacts = self._contacts.get(conversation_id, set())
            contacts.discard(contact_id)
            if not contacts:
                self._contacts.pop(conversation_id, None)

    async def start(self) -> None:
        """Take a lease, so that other nodes see this one, and read the contacts online.

        :raises Unavailable: The broker cannot be reached.
        """
        self._report()
        await super().start()
        self._note_outdated(await self.broker.nodes_without(CONTACT_SPACE))

    @property
    def all_nodes_know_contacts(self) -> bool:
        """Whether no node of an earlier version is running, as far as this node knows."""
        return self.outdated == []

    def _replace(self, members: Iterable[Id]) -> None:
        self._contacts = {}
        super()._replace(())
        self.apply_remote_status(members, ())

    def _renew(self) -> None:
        super()._renew()
        outdated = self.broker.nodes_without(CONTACT_SPACE)
        outdated.addCallbacks(self._note_outdated, self._not_checked)

    def _note_outdated(self, names: list[str]) -> None:
        if names and names != self.outdated:
            self._log.warn(
                "contacts are not admitted while nodes of an earlier version are running: {nodes}; upgrade them",
                nodes=", ".join(names),
            )
        elif self.outdated and not names:
            self._log.info("contacts are admitted again: every node knows them")
        self.outdated = names

    def _not_checked(self, failure: Failure) -> None:
        if not isinstance(failure.value, Unavailable):
            self._log.failure("Reading the nodes failed", failure)
