"""Reply, replay, live (docs/protocol.md §4): add a connection to channels with no event missing or sent twice.

The reply is queued, then the replay, and the hub adds the connection, all in one turn of the reactor. Live events wait
behind the replay in the connection's send queue.

The history is searched first, because the reply states the number of missed events. A short search takes place at
once. A longer one is a job of the `WorkScheduler`, one block of the history a step, and the client's later replies
wait (`Client.waiting`). A connection has few replays at once. Further recoveries wait until one has ended.

A replay holds no events. It reads the history as the peer reads, one chunk a step of the scheduler. If the history
drops events before they are sent, the connection is closed with 4000, and the client recovers again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from chatws.brokers.interface import Event
from chatws.chat.chat_stats import ChatStats
from chatws.chat.client import Client
from chatws.chat.contacts import ContactDelivery
from chatws.chat.history import History
from chatws.chat.hub import Hub
from chatws.chat.messages import Position
from chatws.chat.session import State
from chatws.chat.work_scheduler import Job, WorkScheduler
from chatws.ids import Id
from chatws.server.component import Connection
from chatws.server.frames import text_frame

__all__ = ["MAX_REPLAYS", "REPLAY_CHUNK", "Recovery"]

#: Events whose frames are made at once in a replay: short work for one turn of the reactor, and little memory.
REPLAY_CHUNK = 256
#: Bytes of data after which a chunk ends, for large events.
REPLAY_CHUNK_BYTES = 65_536
#: Bytes of a reply and its replay that are written at once, so that most recoveries need no stream.
DIRECT_BYTES = 16_384
#: Events of the history that recoveries search in one turn of the reactor before further searches become jobs: some
#: 2 ms, with the index of those events.
TURN_EVENTS = 4096
#: The least that a search counts as: a lookup costs as much as a search of so many events.
MIN_SEARCH = 64
#: Replays of one connection at once. More would not be faster, because they are sent one after the other.
MAX_REPLAYS = 4


class Recovery:
    """Adds connections to channels.

    :param epoch: returns the epoch of the history.
    :param hub: the subscriptions of agents.
    :param contacts: the subscriptions of contacts, and what they may get; None if contacts are off.
    :param make_frames: makes the complete frames of events.
    :param scheduler: runs searches and replays.
    :param resume: executes a client's waiting actions, once its search has ended.
    :param history_lost: closes a client whose replay the history no longer holds.
    :ivar replays: number of replays in progress.
    """

    def __init__(
        self,
        epoch: Callable[[], str],
        history: History,
        hub: Hub[Connection],
        contacts: ContactDelivery | None,
        stats: ChatStats,
        make_frames: Callable[[Sequence[Event]], list[bytes]],
        scheduler: WorkScheduler,
        resume: Callable[[Client], None],
        history_lost: Callable[[Client], None],
    ) -> None:
        self.replays = 0
        self._epoch = epoch
        self._history = history
        self._hub = hub
        self._contacts = contacts
        self._stats = stats
        self._make_frames = make_frames
        self._scheduler = scheduler
        self._resume = resume
        self._history_lost = history_lost
        self._searches: dict[Client, _Search] = {}

    @property
    def searches(self) -> int:
        """Number of clients whose search is in progress or waits."""
        return len(self._searches)

    def enter(
        self,
        client: Client,
        channels: tuple[str, ...],
        last_event_id: str | None,
        reply: Callable[[str, int | None, bool], bytes],
        is_subscribed: Callable[[], bool] = lambda: True,
    ) -> None:
        """Send a reply and the missed events, and add the client's connection to `channels`.

        If that takes a long search, `client.waiting` is a list when this returns. Replies that follow go there.

        :param last_event_id: the last event that the client has seen; None asks for no recovery.
        :param reply: makes the payload of the reply from the position of the history, the number of events that
            follow (None without recovery), and whether the recovery failed.
        :param is_subscribed: returns False if the subscription has been ended meanwhile. Then only the reply is sent.
        """
        if last_event_id is None:
            client.connection.send_frames(text_frame(reply(self._position(), None, False)))
            if is_subscribed():
                self._add(client, channels)
            return
        self._end_replay(client, channels[0])  # superseded
        search = _Search(self, client, channels, Position.parse(last_event_id), reply, is_subscribed)
        distance = max(self._history.last - search.position.offset, MIN_SEARCH)
        if client.replay_count < MAX_REPLAYS and self._scheduler.take(distance / TURN_EVENTS):
            while search.step():
                pass
        else:
            client.waiting = []
            self._searches[client] = search
            if client.replay_count < MAX_REPLAYS:
                search.start()

    def leave(self, client: Client, channel: str) -> None:
        """Remove the client's connection from a channel, and end a replay of it that is in progress."""
        self.hub_of(client).discard(channel, client.connection)
        self._end_replay(client, channel)

    def narrow(self, client: Client, channels: Collection[str]) -> None:
        """Drop the groups that are not among `channels` from a search in progress, which begins again."""
        search = self._searches.get(client)
        if search is not None:
            search.narrow(channels)

    def end(self, client: Client) -> None:
        """End all replays and the search of a client: its connection is closing, or closed."""
        search = self._searches.pop(client, None)
        if search is not None:
            search.cancel()
        for channel in tuple(client.replays or ()):
            self._end_replay(client, channel)

    def entering(self, user_id: Id, is_contact: bool) -> list[Client]:
        """Return the clients of an agent or contact that are authenticated, and not in the hub before their search."""
        return [
            client
            for client in self._searches
            if client.user_id == user_id
            and client.is_contact == is_contact
            and not self.hub_of(client).channels_of(client.connection)
        ]

    def hub_of(self, client: Client) -> Hub[Connection]:
        """Return the hub with the client's subscriptions."""
        return self._contacts.hub if self._contacts is not None and client.is_contact else self._hub

    def allowed(self, client: Client, channels: Collection[str], events: Sequence[Event]) -> list[Event]:
        """Return those events of the client's channels that it may get."""
        if self._contacts is not None and client.is_contact:
            events = [event for event in events if self._contacts.filter.allows(event)]
        elif client.user_id is not None:
            events = [event for event in events if event.audience.except_user_id != client.user_id]
        hub, connection = self.hub_of(client), client.connection
        return [event for event in events if not hub.is_excluded(connection, event.audience.channels, channels)]

    def _position(self) -> str:
        return f"{self._epoch()}:{self._history.last}"

    def _add(self, client: Client, channels: tuple[str, ...]) -> None:
        hub = self.hub_of(client)
        for channel in channels:
            hub.add(channel, client.connection)

    def _found(self, search: _Search, count: int | None) -> None:
        """Send the reply, start the replay and add the connection. `count` is None if the recovery failed."""
        client, channels = search.client, search.channels
        waited = self._searches.pop(client, None) is not None
        if client.session.state is State.CLOSED:
            return
        is_subscribed = search.is_subscribed()
        if not is_subscribed:
            count = None
        if count is None:
            self._stats.recoveries_failed += 1
        else:
            self._stats.recoveries += 1
        position, last = self._position(), self._history.last
        reply_frame = text_frame(search.reply(position, count or 0, count is None))
        frames = b""
        if count and count <= REPLAY_CHUNK and not client.connection.has_backlog:
            events = search.events(last, None)
            if events is not None and sum(len(event.data) for event in events) < DIRECT_BYTES:
                frames = b"".join(self._make_frames(events))
        client.connection.send_frames(reply_frame + frames)
        if count and not frames:
            self._start_replay(search, last)
        if is_subscribed:
            self._add(client, channels)
        if waited:
            self._resume(client)

    def _start_replay(self, search: _Search, last: int) -> None:
        client, channel = search.client, search.channels[0]
        if client.replays is None:
            client.replays = {}
        replay = _Replay(self, search, last)
        client.replays[channel] = replay.chunks
        self.replays += 1
        client.connection.stream(replay.chunks)

    def _end_replay(self, client: Client, channel: str) -> None:
        chunks = None if client.replays is None else client.replays.pop(channel, None)
        if chunks is not None:
            self.replays -= 1
            client.connection.cancel_stream(chunks)
            self._replay_ended(client)

    def _replay_ended(self, client: Client) -> None:
        search = self._searches.get(client)
        if search is not None and client.replay_count < MAX_REPLAYS:
            search.start()


class _Search:
    """The search for the events that a client has missed.

    :ivar position: the last event that the client has seen.
    :ivar reply: see `Recovery.enter`, also for `is_subscribed`.
    """

    def __init__(
        self,
        recovery: Recovery,
        client: Client,
        channels: tuple[str, ...],
        position: Position,
        reply: Callable[[str, int | None, bool], bytes],
        is_subscribed: Callable[[], bool],
    ) -> None:
        self.client = client
        self.channels = channels
        self.position = position
        self.reply = reply
        self.is_subscribed = is_subscribed
        self._recovery = recovery
        self._searched = position.offset
        self._count = 0
        self._job: Job | None = None

    def start(self) -> None:
        """Search in steps of the scheduler. Idempotent."""
        if self._job is None:
            self._job = self._recovery._scheduler.submit((self.client.is_contact, self.client.user_id), self.step)

    def cancel(self) -> None:
        """Drop the search."""
        if self._job is not None:
            self._job.cancel()

    def step(self) -> bool:
        """Search one block of the history, and return whether more are to come. Otherwise the client enters."""
        recovery = self._recovery
        history = recovery._history
        if self.position.epoch != recovery._epoch():
            recovery._found(self, None)
            return False
        end = min(((self._searched + 1) // history.block + 1) * history.block - 1, history.last)
        events = self.events(end, None) if end >= self._searched else None
        if events is None:
            recovery._found(self, None)
            return False
        self._count += len(events)
        if end == history.last:
            self._searched = self.position.offset
            recovery._found(self, self._count)
            return False
        self._searched = end
        return True

    def events(self, until: int, limit: int | None) -> list[Event] | None:
        """Return the client's events after the last ones up to an offset, or None if the history has dropped some."""
        events = self._recovery._history.since(self.channels, self._searched, limit, until)
        if events is None:
            return None
        return self._recovery.allowed(self.client, self.channels, events)

    def narrow(self, channels: Collection[str]) -> None:
        """Drop the groups that are not among `channels`, and begin again."""
        self.channels = tuple(
            channel for channel in self.channels if channel in channels or not channel.startswith("group:")
        )
        self._searched = self.position.offset
        self._count = 0


class _Replay:
    """A replay in progress.

    :ivar chunks: its frames, as a stream of the connection.
    """

    def __init__(self, recovery: Recovery, search: _Search, last: int) -> None:
        self._recovery = recovery
        self._client = search.client
        self._channels = search.channels
        self._after = search.position.offset
        self._last = last
        self._epoch = search.position.epoch
        self._may_read = False
        self._is_scheduled = False
        self.chunks = self._generate()

    def _generate(self) -> Iterator[bytes | None]:
        recovery, client = self._recovery, self._client
        while self._after < self._last and self._is_current():
            if not self._may_read:
                if not self._is_scheduled:
                    self._is_scheduled = True
                    recovery._scheduler.submit((client.is_contact, client.user_id), self._step)
                yield None
                continue
            self._may_read = False
            if recovery._epoch() != self._epoch:
                break  # all clients are forced to resync
            # without groups that the client has left meanwhile
            own = {*recovery.hub_of(client).channels_of(client.connection)}
            channels = [channel for channel in self._channels if channel in own]
            events = recovery._history.since(channels, self._after, REPLAY_CHUNK, self._last)
            if events is None:
                recovery._history_lost(client)
                return
            chunk = _first_bytes(events)
            at_end = len(events) < REPLAY_CHUNK and len(chunk) == len(events)
            self._after = self._last if at_end else chunk[-1].offset
            frames = recovery._make_frames(recovery.allowed(client, self._channels, chunk))
            if frames:
                yield b"".join(frames)
        if self._is_current():
            recovery._end_replay(client, self._channels[0])

    def _is_current(self) -> bool:
        replays = self._client.replays
        return replays is not None and replays.get(self._channels[0]) is self.chunks

    def _step(self) -> bool:
        """Read the next chunk now."""
        self._is_scheduled = False
        self._may_read = True
        self._client.connection.resume_stream()
        return False


def _first_bytes(events: list[Event]) -> list[Event]:
    """Return the first events, up to some `REPLAY_CHUNK_BYTES`, and at least one."""
    size = 0
    for index, event in enumerate(events, 1):
        size += len(event.data)
        if size >= REPLAY_CHUNK_BYTES:
            return events[:index]
    return events
