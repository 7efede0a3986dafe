"""What every handler must have seen, by a model that knows nothing but what was published and answered."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from chatws.chat.audience import conversation_channel, user_channel
from tests.fakes import FakeConnection
from tests.recovering_client import RecoveringClient

__all__ = ["Log", "Page", "check", "settled"]

#: The model: per epoch, every event as (channels, left out, number) by offset.
Log = dict[str, dict[int, tuple[tuple[str, ...], int | None, int]]]


def settled(deferred: Deferred[Any]) -> Any:
    """The result of a Deferred that must have fired."""
    found: list[Any] = []
    deferred.addBoth(found.append)
    [result] = found
    if hasattr(result, "raiseException"):
        result.raiseException()
    return result


class Page:
    """A page: its library, its connection, and what the model expects of each of its channels."""

    def __init__(self, user_id: int) -> None:
        self.user_id = user_id
        self.library = RecoveringClient(user_id)
        self.connection: FakeConnection | None = None
        #: by channel (None: everyone's and the user's): the offset after which everything must be handled
        self.since: dict[Any, tuple[str, int]] = {}
        #: channels that it has ever asked for
        self.wanted = {"*", user_channel(user_id)}

    def receive(self, count: int | None) -> list[dict[str, Any]]:
        """The library handles up to `count` (all: None) of the messages that have come. Returns those in which the
        server says that it cannot prove completeness, before the model forgives what is missing."""
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
        """The model's side of a reply: from where on the channel must be complete."""
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
    """Everything that the model says must have been handled was, once, in order, and nothing else.

    :param to_the_end: otherwise the newest may not have come yet.
    """
    handled = page.library.handled
    ids = [one[2] for one in handled]
    assert len(set(ids)) == len(ids), "handled twice"
    for event, data, position in handled:
        epoch, _, offset = position.rpartition(":")
        channels, left_out, number = log[epoch][int(offset)]
        assert (event, data["n"]) == ("note", number)
        assert left_out != page.user_id
        assert page.wanted.intersection(channels), "somebody else's"
    for channel, (epoch, since) in page.since.items():
        mine = {"*", user_channel(page.user_id)} if channel is None else {conversation_channel(channel)}
        expected = [
            f"{epoch}:{offset}"
            for offset, (channels, left_out, _) in sorted(log[epoch].items())
            if offset > since and left_out != page.user_id and mine & set(channels)
        ]
        wanted = set(expected)
        seen = [position for position in ids if position in wanted]
        assert seen == (expected if to_the_end else expected[: len(seen)]), (channel, epoch, since)
