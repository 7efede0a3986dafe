"""Look-ups of host names: what callers get, what they share, and how many there are."""

from __future__ import annotations

import socket
from collections.abc import Callable
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, gatherResults

from chatws.runtime.resolver import MAX_LOOKUPS, SHARE_TIMEOUT, Resolver
from tests.log_lines import logged_at


class Receiver:
    """:ivar done: fires with the addresses."""

    def __init__(self) -> None:
        self.addresses: list[Any] = []
        self.resolution: Any = None
        self.done: Deferred[list[Any]] = Deferred()

    def resolutionBegan(self, resolution: Any) -> None:
        self.resolution = resolution

    def addressResolved(self, address: Any) -> None:
        self.addresses.append(address)

    def resolutionComplete(self) -> None:
        self.done.callback(self.addresses)


class NameServer:
    """Takes getaddrinfo's place. Names that begin with "stuck" are not answered before `answer` is set."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = Event()

    def __call__(self, host: str, port: int, family: int = 0, kind: int = 0) -> list[Any]:
        self.asked.append(host)
        if host.startswith("stuck"):
            self.answer.wait(60)
        if host == "unknown.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        result = [(socket.AF_INET, kind, 6, "", ("192.0.2.1", port))]
        if family != socket.AF_INET:
            result.append((socket.AF_INET6, kind, 6, "", ("2001:db8::1", port, 0, 0)))  # type: ignore[arg-type]
        return result


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    names = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", names)
    return names


def look_up(resolver: Resolver, host: str, **options: Any) -> Receiver:
    receiver = Receiver()
    resolver.resolveHostName(receiver, host, 80, **options)
    return receiver


@pytest_twisted.ensureDeferred
async def test_a_name_has_its_addresses_of_each_kind_and_an_unknown_one_has_none(names: NameServer) -> None:
    resolver = Resolver(reactor)
    both = [IPv4Address("TCP", "192.0.2.1", 80), IPv6Address("TCP", "2001:db8::1", 80)]
    assert await look_up(resolver, "app.example").done == both
    assert await look_up(resolver, "app.example", addressTypes=[IPv4Address]).done == both[:1]
    assert await look_up(resolver, "unknown.example").done == []


@pytest.mark.parametrize("name", ["a" * 64 + ".example", "\ud800.example", "a..example"])
@pytest_twisted.ensureDeferred
async def test_a_name_that_cannot_be_one_has_no_address(name: str) -> None:
    assert await look_up(Resolver(reactor), name).done == []


@pytest.mark.parametrize(
    ("host", "types", "result"),
    [
        ("192.0.2.7", None, [IPv4Address("TCP", "192.0.2.7", 80)]),
        ("2001:db8::7", None, [IPv6Address("TCP", "2001:db8::7", 80)]),
        ("2001:db8::7", [IPv4Address], []),
    ],
)
def test_a_literal_address_resolves_without_a_thread(
    host: str, types: Any, result: list[Any], names: NameServer
) -> None:
    receiver = look_up(Resolver(reactor), host, addressTypes=types)
    assert receiver.done.called
    assert receiver.addresses == result
    assert names.asked == []


@pytest_twisted.ensureDeferred
async def test_callers_share_a_look_up_and_one_may_cancel(names: NameServer) -> None:
    resolver = Resolver(reactor)
    receivers = [look_up(resolver, "stuck.example") for _ in range(50)]
    receivers[0].resolution.cancel()
    assert await look_up(resolver, "other.example").done != []
    names.answer.set()
    await gatherResults([receiver.done for receiver in receivers[1:]])
    assert names.asked == ["stuck.example", "other.example"]
    assert not receivers[0].done.called
    assert receivers[0].addresses == []


@pytest_twisted.ensureDeferred
async def test_look_ups_beyond_the_limit_fail_at_once_and_are_logged_once(names: NameServer) -> None:
    resolver = Resolver(reactor)
    stuck = [look_up(resolver, f"stuck{n}.example") for n in range(MAX_LOOKUPS)]
    with logged_at() as warnings:
        for _ in range(3):
            refused = look_up(resolver, "late.example")
            assert refused.done.called
            assert refused.addresses == []
    assert len(warnings) == 1
    names.answer.set()
    await gatherResults([item.done for item in stuck])
    assert await look_up(resolver, "late.example").done != []


class LateReactor:
    """The reactor, on a clock that the test turns."""

    now = 0.0
    callFromThread: Callable[..., None] = reactor.callFromThread  # type: ignore[attr-defined]

    def seconds(self) -> float:
        return self.now


@pytest_twisted.ensureDeferred
async def test_a_look_up_that_is_stuck_is_not_joined_for_ever(names: NameServer) -> None:
    clock = LateReactor()
    resolver = Resolver(clock)
    first = look_up(resolver, "stuck.example")
    clock.now = SHARE_TIMEOUT + 1
    second = look_up(resolver, "stuck.example")
    names.answer.set()
    await gatherResults([first.done, second.done])
    assert names.asked == ["stuck.example"] * 2
