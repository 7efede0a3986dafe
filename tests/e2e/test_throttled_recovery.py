"""Recoveries over a link that is slower than what was missed: they are complete, whatever their size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.e2e.network import Network
from tests.e2e.process import clean_environment
from tests.e2e.wire import Backend, Browser
from tests.requirements import NETWORK_NAMESPACES, needs

pytestmark = [pytest.mark.long, needs("iproute2"), needs(NETWORK_NAMESPACES)]

#: Bytes a second of the link. Each recovery is some 2 MB.
RATE = 1_000_000
#: A tenth of a recovery.
SEND_BUFFER = 200_000
#: Live events during a recovery, which are far less than the link carries.
LIVE = 20


@pytest.fixture
def network() -> Iterator[Network]:
    with Network("server", "client") as made:
        try:
            made.throttle("server", RATE)
        except OSError as error:
            pytest.skip(f"this kernel cannot throttle a link: {error}")
        yield made


@pytest.mark.parametrize(
    ("conversations", "events", "size"),
    [
        pytest.param(20, 200, 500, id="20 conversations of 200 events"),
        pytest.param(20, 300, 330, id="20 conversations of 300 events"),
        pytest.param(20, 10, 10_000, id="20 conversations of 10 large events"),
        pytest.param(1, 4000, 500, id="one conversation of 4000 events"),
    ],
)
def test_recovery_over_a_throttled_link_is_complete_and_live_events_follow(
    network: Network, tmp_path: Path, conversations: int, events: int, size: int
) -> None:
    server = Server(tmp_path, (), clean_environment())
    server.arguments = ("--interface", "", "--auth", "trust", "--send-buffer", str(SEND_BUFFER))
    rooms = range(1, conversations + 1)
    with network.inside("server"):
        server.start()
        backend = Backend(server.push_port)
    url = f"ws://{network.address('server')}:{server.port}/ws"
    try:
        with network.inside("client"):
            client = Browser(url)
        position = client.auth(5)["last_event_id"]
        client.close()
        pad = "x" * size
        for number in range(events):
            data = [{"conversation_id": room, "n": number, "pad": pad} for room in rooms]
            backend.send(*[{"event": "new_message", "data": fields} for fields in data])
        assert backend.request({"op": "ping"})["ok"]
        with network.inside("client"):
            client = Browser(url)
        client.auth(5, last_event_id=position)
        for room in rooms:
            client.send({"type": "subscribe", "conversation_id": room, "last_event_id": position})
        # the first answer is read, so that everything that is pushed from now on is live for this conversation
        client.expect("subscribed", conversation_id=1)
        expected = {room: [*range(events)] for room in rooms}
        seen: dict[int, list[int]] = {room: [] for room in rooms}
        messages = 0
        while seen != expected:
            message = client.receive()
            if message.get("event") != "new_message":
                assert message["event"] == "subscribed", message
                assert (message["data"]["recovered"], message["data"]["replayed"] >= events) == (True, True)
                continue
            data = message["data"]
            assert data["n"] == len(seen[data["conversation_id"]]), "lost, doubled or out of order"
            seen[data["conversation_id"]].append(data["n"])
            messages += 1
            if messages % (conversations * events // LIVE) == 0 and len(expected[conversations]) < events + LIVE:
                room = conversations  # the last one, whose answer may wait for the replays of the others
                backend.push("new_message", {"conversation_id": room, "n": len(expected[room])})
                expected[room].append(len(expected[room]))
        assert len(expected[conversations]) == events + LIVE
        client.close()
        backend.close()
    finally:
        with suppress(OSError), network.inside("server"):
            server.finish()
    assert "slow consumer" not in server.log
