"""A model of the events that every handler must get. It uses only published events and replies."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from chatws.chat.audience import conversation_channel, user_channel
from tests.fakes import FakeConnection
from tests.recovering_client import RecoveringClient

__all__ = ["Log", "Page", "check", "settled"]

#: The model: per epoch, every event as (channels, excluded user, number) by offset.
Log = dict[str, dict[int, tuple[tuple[str, ...], int | None, int]]]


def settled(deferred: Deferred[Any]) -> Any:
    """Return the result of a Deferred that must have fired."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    [result] = results
    if hasattr(result, "raiseException"):
        result.raiseException()
    return result


class Page:
    """A page: its library, its connection, and the expectations of the model for each channel."""

    def __init__(self, user_id: int) -> None:
        self.user_id = user_id
        self.library = RecoveringClient(user_id)
        self.connection: FakeConnection | None = None
        #: by channel (None: the user's and that of all users): the offset after which every event must be handled
        self.since: dict[Any, tuple[str, int]] = {}
        #: all channels that it has ever subscribed to
        self.wanted = {"*", user_channel(user_id)}

    def receive(self, count: int | None) -> list[dict[str, Any]]:
        """Let the library handle up to `count` pending messages, or all with None.

        :return: the replies with `recovered: false`, after which the model expects no older events.
        """
        if self.connection is None:
            return []
        payloads = self.connection.payloads
        now, self.connection.payloads = payloads[:count], [] if count is None else payloads[count:]
        lost = []
        for payload in now:
            message = json.loads(payload)
            self.library.receive(message)
            if self._follow(message):
                lost.append(message)
        return lost

    def _follow(self, message: dict[str, Any]) -> bool:
        """Update the offset from which a channel must be complete, and return whether its recovery failed."""
        event, data = message.get("event"), message.get("data", {})
        if event not in ("authenticated", "subscribed"):
            return False
        channel = data.get("conversation_id")
        if channel not in self.library.channels or data.get("recovered") is True:
            return False
        lost = data.get("recovered") is False
        if lost or channel not in self.since:
            message["since"] = self.since.get(channel)
            epoch, _, offset = data["last_event_id"].rpartition(":")
            self.since[channel] = (epoch, int(offset))
        return lost


def check(page: Page, log: Log, *, to_the_end: bool = True) -> None:
    """Check that the page has handled the events of the model once, in order, and no others.

    :param to_the_end: whether all events must have been handled; else the newest may be pending.
    """
    handled = page.library.handled
    ids = [position for _, _, position in handled]
    assert len(set(ids)) == len(ids), "handled twice"
    for event, data, position in handled:
        epoch, _, offset = position.rpartition(":")
        channels, excluded, number = log[epoch][int(offset)]
        assert (event, data["n"]) == ("note", number)
        assert excluded != page.user_id
        assert page.wanted.intersection(channels), "an event of another channel"
    for channel, (epoch, since) in page.since.items():
        mine = {"*", user_channel(page.user_id)} if channel is None else {conversation_channel(channel)}
        expected = [
            f"{epoch}:{offset}"
            for offset, (channels, excluded, _) in sorted(log[epoch].items())
            if offset > since and excluded != page.user_id and mine & set(channels)
        ]
        wanted = set(expected)
        seen = [position for position in ids if position in wanted]
        assert seen == (expected if to_the_end else expected[: len(seen)]), (channel, epoch, since)
