"""A log that is relayed within this process: the exchange and its workers' brokers, over real socket pairs."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from chatws.brokers.interface import Broker, EventHandler
from chatws.workers.broker_server import BrokerServer
from chatws.workers.ipc import IpcConnection, adopt_socket
from chatws.workers.ipc_broker import IpcBroker


def connect(reactor: Any, first: IpcConnection, other: IpcConnection) -> None:
    """Make them the two ends of a socket pair."""
    for end, channel in zip(socket.socketpair(), (first, other), strict=True):
        adopt_socket(reactor, channel, end.detach())


class IpcBrokers:
    """The logs that are open, each with its exchange, by the directory that they belong to."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.open: dict[Path, list[ConnectedIpcBroker]] = {}
        self.exchanges: dict[Path, BrokerServer] = {}

    def broker(self, place: Path, make: Callable[[], Broker]) -> Broker:
        """One more node on the log of `place`, which the first one makes and the last one closes."""
        return ConnectedIpcBroker(self, place, make)


class ConnectedIpcBroker(IpcBroker):
    """A worker's broker whose exchange starts with the first such one and stops with the last."""

    def __init__(self, relays: IpcBrokers, place: Path, make: Callable[[], Broker]) -> None:
        super().__init__(lambda channel: connect(relays.reactor, relays.exchanges[place].channel("w"), channel))
        self._relays = relays
        self._place = place
        self._make = make

    def start(self, listener: EventHandler) -> Deferred[None]:
        self._relays.open.setdefault(self._place, []).append(self)
        if self._place in self._relays.exchanges:
            return super().start(listener)
        exchange = BrokerServer(self._make(), lambda name: os.abort(), self._relays.reactor)
        self._relays.exchanges[self._place] = exchange
        return exchange.start().addCallback(lambda _: IpcBroker.start(self, listener))

    def stop(self) -> Deferred[None]:
        async def stop() -> None:
            await IpcBroker.stop(self)
            users = self._relays.open.get(self._place, [])
            if self in users:
                users.remove(self)
                if not users:
                    await self._relays.exchanges.pop(self._place).stop()

        return Deferred.fromCoroutine(stop())


@pytest.fixture
def relays() -> IpcBrokers:
    """No log yet."""
    from twisted.internet import reactor

    return IpcBrokers(reactor)
