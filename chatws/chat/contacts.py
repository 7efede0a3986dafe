"""Deliver events to contacts: only what docs/protocol.md §6 allows.

Contacts have a hub of their own, so that delivery to agents is the same with and without them. A contact subscribes to
the channel of its conversation as agents do, and the filter decides for each event, and not for each recipient.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import msgspec

from chatws.brokers.interface import CONTACTS, Event
from chatws.chat.audience import CONTACTS_EXCLUDED, CONVERSATION_PREFIX
from chatws.chat.delivery import DeliveryGroup, plan_deliveries
from chatws.chat.hub import Hub
from chatws.server.component import Connection

__all__ = ["ContactDelivery", "ContactFilter"]

#: Values of such a key in a message that is no internal note. PHP writes a boolean from a database as 0 or "0".
_FALSE = frozenset([b"false", b"null", b"0", b'""', b'"0"', b'"false"'])


class _Data(msgspec.Struct, gc=False):
    message: msgspec.Raw = msgspec.Raw(b"{}")


_decode_data = msgspec.json.Decoder(_Data).decode
_decode_message = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class ContactFilter:
    """Decides which events a contact may get, live and replayed.

    :param events: the names of the events of conversations that contacts get.
    :param hidden_keys: an event whose `data.message` has one of these keys with a true value is hidden.
    """

    def __init__(self, events: Collection[str], hidden_keys: Collection[str]) -> None:
        self._events = frozenset(events)
        self._hidden_keys = tuple(hidden_keys)

    def allows(self, event: Event) -> bool:
        """Return whether contacts that subscribe to a channel of the event may get it."""
        channels = event.audience.channels
        if CONTACTS_EXCLUDED in channels:
            return False
        is_conversation = channels[0].startswith(CONVERSATION_PREFIX)
        if is_conversation and event.name not in self._events:
            return False
        is_addressed = not is_conversation and channels[0].startswith("contact:")
        return is_addressed or not self.is_hidden(event.data)

    def is_hidden(self, data: bytes) -> bool:
        """Return whether the message in an event's data is an internal note. Data that cannot be decoded is hidden."""
        try:
            message = bytes(_decode_data(data).message)
            values = _decode_message(message) if message[:1] == b"{" else {}
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return True
        return any(key in values and bytes(values[key]) not in _FALSE for key in self._hidden_keys)


class ContactDelivery:
    """The contacts on this node and the deliveries to them.

    :param connection_id: returns the id of a connection.
    :param make_frames: makes the complete frames of events.
    :ivar filter: decides what contacts may get. A reload of the configuration replaces it.
    :ivar hub: the subscriptions of contacts.
    """

    def __init__(
        self,
        contact_filter: ContactFilter,
        connection_id: Callable[[Connection], str],
        make_frames: Callable[[Sequence[Event]], list[bytes]],
    ) -> None:
        self.filter = contact_filter
        self.hub: Hub[Connection] = Hub(connection_id)
        self._make_frames = make_frames

    @property
    def count(self) -> int:
        """Number of contacts' connections."""
        return self.hub.count(CONTACTS)

    def plan(self, events: Sequence[Event]) -> list[DeliveryGroup[Connection]]:
        """Return the deliveries to contacts, in order, and add their numbers to `delivered` of each event."""
        hub, allows = self.hub, self.filter.allows
        if not hub.subscriptions:
            return []
        visible = [event for event in events if hub.has_subscribers(event.audience.channels) and allows(event)]
        to_agents = [event.delivered for event in visible]
        deliveries = plan_deliveries(visible, hub, self._make_frames)
        for event, delivered in zip(visible, to_agents, strict=True):
            event.delivered += delivered
        return deliveries
