"""Find the current Redis master through Sentinel.

https://redis.io/docs/latest/develop/reference/sentinel-clients/
"""

from __future__ import annotations

from collections import Counter

from twisted.internet.defer import Deferred, gatherResults

from chatws.brokers.redis.connection import CommandError, ConnectionLost, RedisConnection, open_connection
from chatws.brokers.redis.url import RedisUrl
from chatws.errors import ConfigError
from chatws.interfaces import Reactor

__all__ = ["find_master"]


async def find_master(location: RedisUrl, *, timeout: float, reactor: Reactor) -> tuple[str, int]:
    """Return the address that most of the Sentinels name. The requests to all of them run at the same time.

    :param timeout: seconds for each connection and each response.
    :raises ConnectionLost: no Sentinel names a master.
    """
    requests = [
        Deferred.fromCoroutine(_request_master(location, address, timeout=timeout, reactor=reactor))
        for address in location.hosts
    ]
    gathered = gatherResults(requests)
    try:
        results = await gathered
    finally:
        for request in requests:
            request.cancel()
    addresses = Counter(result for result in results if isinstance(result, tuple))
    if not addresses:
        problems = "; ".join(sorted({str(result) for result in results}))
        raise ConnectionLost(f"no Sentinel names a master for {location.service!r}: {problems}")
    return addresses.most_common(1)[0][0]


async def _request_master(
    location: RedisUrl, address: tuple[str, int], *, timeout: float, reactor: Reactor
) -> tuple[str, int] | str:
    """Return the address that one Sentinel names, or the reason why it names none."""
    try:
        connection = await open_connection(
            RedisConnection,
            location,
            address,
            user=location.sentinel_user,
            password=location.sentinel_password,
            db=0,
            timeout=timeout,
            reactor=reactor,
        )
    except (ConnectionLost, CommandError, ConfigError) as error:
        return str(error)
    try:
        reply = await connection.ask("SENTINEL", "get-master-addr-by-name", location.service)
    except (ConnectionLost, CommandError) as error:
        return str(error)
    finally:
        connection.abort("the request is complete")
    if not isinstance(reply, list) or len(reply) != 2:
        return "the Sentinel does not know this name"
    return reply[0].decode(), int(reply[1])
