"""Which Redis is the master now: https://redis.io/docs/latest/develop/reference/sentinel-clients/"""

from __future__ import annotations

from collections import Counter
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from chatws.brokers.redis.connection import Connection, Lost, Refused, open_connection
from chatws.brokers.redis.location import Location
from chatws.errors import OperatorError

__all__ = ["find_master"]


async def find_master(location: Location, *, timeout: float, reactor: Any) -> tuple[str, int]:
    """The address that most of the Sentinels name, all being asked at once.

    :raises Lost: none of them names one.
    """
    asking = [
        Deferred.fromCoroutine(_ask(location, address, timeout=timeout, reactor=reactor)) for address in location.hosts
    ]
    gathered = gatherResults(asking)
    try:
        answers = await gathered
    finally:
        for one in asking:
            one.cancel()
    named = Counter(answer for answer in answers if isinstance(answer, tuple))
    if not named:
        problems = "; ".join(sorted({str(answer) for answer in answers}))
        raise Lost(f"no Sentinel names a master for {location.service!r}: {problems}")
    return named.most_common(1)[0][0]


async def _ask(location: Location, address: tuple[str, int], *, timeout: float, reactor: Any) -> tuple[str, int] | str:
    """What one Sentinel says, or why it says nothing."""
    try:
        connection = await open_connection(
            Connection,
            location,
            address,
            user=location.sentinel_user,
            password=location.sentinel_password,
            db=0,
            timeout=timeout,
            reactor=reactor,
        )
    except (Lost, Refused, OperatorError) as error:
        return str(error)
    try:
        found = await connection.ask("SENTINEL", "get-master-addr-by-name", location.service)
    except (Lost, Refused) as error:
        return str(error)
    finally:
        connection.abort("asked")
    if not isinstance(found, list) or len(found) != 2:
        return "it does not know that name"
    return found[0].decode(), int(found[1])
