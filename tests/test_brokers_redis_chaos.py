"""Three nodes on one Redis, each behind a firewall that forgets; everything dies at random while they publish."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from chatws.brokers.interface import Broker, Event
from chatws.errors import Unavailable
from tests.contracts.test_broker_contract import Recorder, new_event
from tests.contracts.test_shared_broker_contract import DEADLINE, until_notified
from tests.postgres import ForgetfulFirewall
from tests.redis import RedisServer
from tests.requirements import needs
from tests.test_brokers_redis import Nodes, nodes, server

__all__ = ["nodes", "server"]

pytestmark = needs("redis-server")

PUBLISHERS, EVENTS = 6, 40


class Chaos:
    """
    :ivar acknowledged: by idempotency key, the offset that the publisher was told.
    """

    def __init__(
        self, seed: int, brokers: list[Broker], firewalls: list[ForgetfulFirewall], redis: RedisServer
    ) -> None:
        self.random = random.Random(seed)
        self.brokers = brokers
        self.firewalls = firewalls
        self.redis = redis
        self.acknowledged: dict[str, int] = {}
        self.publishing = PUBLISHERS

    async def publish(self, name: str) -> None:
        """As a backend does: it sends each event with the same key, to any node, until one accepts it."""
        from twisted.internet import reactor

        end = reactor.seconds() + 6 * DEADLINE
        for number in range(EVENTS):
            key = f"{name}.{number}"
            attempt = 0
            while key not in self.acknowledged:
                attempt += 1
                assert reactor.seconds() < end, f"{key} was not taken"
                broker = self.random.choice(self.brokers)
                try:
                    passing = new_event(f"{key}.{attempt}", transient=True)
                    _, receipt = await broker.publish([passing, new_event(key, key=key)])
                    self.acknowledged[key] = receipt.offset
                except Unavailable:
                    await deferLater(reactor, 0.02)
            await deferLater(reactor, self.random.uniform(0, 0.05))
        self.publishing -= 1

    async def disturb(self) -> None:
        """Until all is published."""
        from twisted.internet import reactor

        while self.publishing:
            firewall = self.random.choice(self.firewalls)
            match self.random.randrange(6):
                case 0:
                    firewall.closed = True
                    firewall.forget()
                case 1:
                    firewall.forget()
                case 2:
                    firewall.forget_answers()
                case 3:
                    self.redis.run("CLIENT", "KILL", "TYPE", self.random.choice(["pubsub", "normal"]))
                case 4:
                    self.redis.run("SCRIPT", "FLUSH")
                case 5:
                    self.redis.kill()
                    self.redis.start()
            await deferLater(reactor, self.random.uniform(0.02, 0.4))
            for item in self.firewalls:
                item.closed = False


@pytest.mark.parametrize("seed", [1, 2])
@pytest_twisted.ensureDeferred
async def test_random_faults_keep_delivery_once_and_in_order_on_every_node(
    server: Callable[..., RedisServer], nodes: Nodes, seed: int
) -> None:
    from twisted.internet import reactor

    redis = server(persistent=True)
    url = redis.url
    firewalls = [ForgetfulFirewall(reactor, redis.port) for _ in range(3)]
    opened: list[tuple[Broker, Recorder]] = [
        await nodes.open(url.replace(f":{redis.port}", f":{firewall.port}"), timeout=0.3) for firewall in firewalls
    ]
    brokers = [broker for broker, _ in opened]
    chaos = Chaos(seed, brokers, firewalls, redis)
    publishers = [Deferred.fromCoroutine(chaos.publish(f"p{number}")) for number in range(PUBLISHERS)]
    disturbing = Deferred.fromCoroutine(chaos.disturb())
    await gatherResults([*publishers, disturbing])

    witness, _ = await nodes.open(url)
    stored = await witness.read(0, 10_000)
    assert [event.offset for event in stored] == list(range(1, PUBLISHERS * EVENTS + 1)), "each key is stored once"
    assert {event.name: event.offset for event in stored} == chaos.acknowledged
    for _, recorder in opened:
        await until_notified(recorder, len(stored))
        told = [event for event in recorder.events if event.offset]
        assert [facts(event) for event in told] == [facts(event) for event in stored]
        passing = [event.name for event in recorder.events if not event.offset]
        assert len(passing) == len(set(passing)), "those that pass are told once too, if at all"
        assert recorder.epochs == []
    for broker in brokers:
        await broker.stop()
    for firewall in firewalls:
        await firewall.stop()


def facts(event: Event) -> tuple[object, ...]:
    return event.offset, event.name, event.time
