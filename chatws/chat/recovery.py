"""Reply, replay, live (docs/protocol.md §4): how a connection enters channels without a gap and without a doublet.

All three happen in one turn of the reactor: the reply is queued, then what was missed, then the hub names the
connection for what comes. A long replay is made as the peer reads it; what is live waits behind it in the
connection's own queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from chatws.brokers.contract import Event
from chatws.chat.client import Client
from chatws.chat.history import History
from chatws.chat.hub import Hub
from chatws.chat.messages import Position
from chatws.chat.stats import Stats
from chatws.server.component import Connection
from chatws.server.frames import text_frame

__all__ = ["REPLAY_CHUNK", "Recovery"]

#: Events whose frames are made at once in a replay; more are made as the browser reads.
REPLAY_CHUNK = 256


class Recovery:
    """
    :param make_frames: each event's frame, complete.
    """

    def __init__(
        self,
        history: History,
        hub: Hub[Connection],
        stats: Stats,
        make_frames: Callable[[Sequence[Event]], list[bytes]],
    ) -> None:
        self._history = history
        self._hub = hub
        self._stats = stats
        self._make_frames = make_frames

    def enter(
        self,
        client: Client,
        epoch: str,
        channels: tuple[str, ...],
        last_event_id: str | None,
        reply: Callable[[str, int | None, bool], bytes],
    ) -> None:
        """Let the client into `channels`.

        :param epoch: the log's.
        :param last_event_id: after which it wants what it missed; None asks for nothing.
        :param reply: makes the payload of the reply, of the log's position, how many events follow (None when none
            were asked for), and whether the log cannot prove that these are all.
        """
        connection = client.connection
        position = f"{epoch}:{self._history.last}"
        if last_event_id is None:
            connection.send_frames(text_frame(reply(position, None, False)))
        else:
            missed = self._missed(client, epoch, channels, Position.parse(last_event_id))
            if missed is None:
                self._stats.recoveries_failed += 1
            else:
                self._stats.recoveries += 1
            events = missed or []
            first = text_frame(reply(position, len(events), missed is None))
            if len(events) <= REPLAY_CHUNK:
                connection.send_frames(first + b"".join(self._make_frames(events)))
            else:
                connection.send_frames(first)
                connection.stream(self._replay(client, channels[-1], events))
        for channel in channels:
            self._hub.add(channel, connection)

    def leave(self, client: Client, channel: str) -> None:
        """Take the client out of `channel`, and stop a replay of it that is still under way."""
        self._hub.discard(channel, client.connection)
        if client.replays is not None:
            client.replays.pop(channel, None)

    def _missed(self, client: Client, epoch: str, channels: tuple[str, ...], position: Position) -> list[Event] | None:
        if position.epoch != epoch:
            return None
        found = self._history.since(channels, position.offset)
        if found is None:
            return None
        return [event for event in found if event.audience.except_user_id != client.user_id]

    def _replay(self, client: Client, channel: str, events: list[Event]) -> Iterator[bytes]:
        """The events' frames, a chunk at a time. They are held by the list: trimming the log takes none away."""
        mark = object()
        if client.replays is None:
            client.replays = {}
        replays = client.replays
        replays[channel] = mark

        def chunks() -> Iterator[bytes]:
            for start in range(0, len(events), REPLAY_CHUNK):
                if replays.get(channel) is not mark:
                    return  # the channel was left meanwhile: by the client, or because a backend took it away
                yield b"".join(self._make_frames(events[start : start + REPLAY_CHUNK]))
            replays.pop(channel, None)

        return chunks()
