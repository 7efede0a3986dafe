"""The leases and the data of members in Redis: one script each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from chatws.brokers.interface import AGENT_SPACE, CONTACT_SPACE, LeaseResult, MemberData
from chatws.brokers.redis.scripts import DATA, LEASE, NODES_WITHOUT, ONLINE, SET_DATA, KeyNames
from chatws.brokers.redis.session import RedisSession
from chatws.brokers.webhook_queue import WebhookQueueSettings
from chatws.ids import Id

__all__ = ["PresenceQueries"]

_encode_id = msgspec.json.Encoder().encode
_decode_id: Callable[[bytes], Id] = msgspec.json.Decoder(int | str).decode


class PresenceQueries:
    """The methods of `Broker` about presence, each with a session.

    :param time: returns the time for scripts, "" for that of Redis.
    :param webhook_queue: settings of the queue of webhooks, to which changes are appended.
    """

    def __init__(self, keys: KeyNames, time: Callable[[], str], webhook_queue: WebhookQueueSettings) -> None:
        self._keys = keys
        self._time = time
        self._webhook_queue = webhook_queue

    async def lease(
        self, session: RedisSession, node: str, connection_counts: Mapping[Id, int | None], seconds: float, space: str
    ) -> LeaseResult:
        """See `Broker.lease`."""
        changes: list[bytes | int] = []
        for member, count in connection_counts.items():
            changes += (_encode_id(member), b"" if count is None else count)
        limit, kind = self._webhook_queue.limit_for(space), "contact" if space == CONTACT_SPACE else "agent"
        held, online, *news = await session.run(
            LEASE, self._keys.leases(space), self._time(), node, repr(float(seconds)), limit, kind, *changes
        )
        changed = [(_decode_id(news[n]), news[n + 1] == b"1") for n in range(0, len(news), 2)]
        return LeaseResult(changed, held, online)

    async def online(self, session: RedisSession, space: str) -> list[Id]:
        """See `Broker.online`."""
        return [_decode_id(member) for member in await session.run(ONLINE, self._keys.leases(space), self._time())]

    async def nodes_without(self, session: RedisSession, space: str) -> list[str]:
        """See `Broker.nodes_without`."""
        keys = (self._keys.leases(AGENT_SPACE)[0], self._keys.leases(space)[0])
        return sorted(name.decode() for name in await session.run(NODES_WITHOUT, keys, self._time()))

    async def set_data(self, session: RedisSession, space: str, member: Id, data: str | None, seconds: float) -> bool:
        """See `Broker.set_data`."""
        stored = ("", "") if data is None else ("1", data)
        arguments = (self._time(), _encode_id(member), *stored, repr(float(seconds)))
        return bool(await session.run(SET_DATA, self._keys.data(space), *arguments))

    async def data(self, session: RedisSession, space: str) -> dict[Id, MemberData]:
        """See `Broker.data`."""
        reply = await session.run(DATA, self._keys.data(space), self._time())
        entries = zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        return {_decode_id(member): MemberData(data.decode(), float(expiry)) for member, data, expiry in entries}
