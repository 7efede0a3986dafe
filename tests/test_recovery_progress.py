"""Replays of many conversations over a slow link: they never make the client a slow consumer, whatever their size."""

from __future__ import annotations

import json
from typing import Any

from chatws.chat.server import ChatServer
from tests.server_wire import ServerCase, frame, head

CONVERSATIONS = 20
SEND_BUFFER = 65_536
#: Bytes of a socket's send buffer: small, so that nearly everything waits in the server.
SOCKET_BUFFER = 4096


class RecoveryProgressTests(ServerCase):
    def recover(self, events: int, size: int) -> None:
        """Recover `events` of `size` bytes in each conversation, and read a little at a time."""
        chat = ChatServer(reactor=self.reactor, wall_clock=self.reactor.seconds, auth_deadline=0)
        self.serve(chat, ping_interval=0, send_buffer=SEND_BUFFER)
        start = f"{chat.broker.epoch}:0"
        pad = "x" * size
        for number in range(events):
            datas = [{"conversation_id": room, "n": number, "pad": pad} for room in range(CONVERSATIONS)]
            new_event = chat.audiences.new_event
            chat.publish([new_event("new_message", json.dumps(data).encode()) for data in datas])
        wire = self.wire(send_buffer=SOCKET_BUFFER)
        wire.send(head())
        _, _, wire.received = wire.response()
        requests: list[dict[str, Any]] = [{"type": "auth", "user_id": 5}]
        requests += [
            {"type": "subscribe", "conversation_id": room, "last_event_id": start} for room in range(CONVERSATIONS)
        ]
        wire.send(b"".join(frame(json.dumps(request)) for request in requests))
        seen: dict[int, list[int]] = {room: [] for room in range(CONVERSATIONS)}
        while frames := wire.frames(8192):
            for first, payload in frames:
                assert first == 0x81, payload
                message = json.loads(payload)
                if message["event"] == "new_message":
                    seen[message["data"]["conversation_id"]].append(message["data"]["n"])
        assert seen == {room: [*range(events)] for room in range(CONVERSATIONS)}
        assert self.ws.stats.slow_consumers == 0

    def tearDown(self) -> None:
        for wire in self.wires:
            wire.close()
        self.reactor.advance(10)
        super().tearDown()

    def test_replays_below_a_chunk_that_exceed_the_send_buffer_together_are_complete(self) -> None:
        self.recover(events=200, size=600)

    def test_replays_of_several_chunks_are_complete(self) -> None:
        self.recover(events=600, size=20)

    def test_replays_of_large_events_are_complete(self) -> None:
        self.recover(events=10, size=5000)
