"""A user who is disconnected while events wait for the client gets none of them: real sockets, hand-turned reactor."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from chatws.chat.cluster_commands import DisconnectCommand, to_new_event
from chatws.chat.interfaces import Credentials, Identity
from chatws.chat.server import ChatServer
from chatws.errors import CloseCode
from tests.server_wire import ServerCase, Wire, frame, head

COUNT = 20_000
#: Bytes of a socket's send buffer: small, so that nearly everything waits in the server.
SOCKET_BUFFER = 4096
CLOSE = 0x88


class Expiring:
    """Accepts everybody until a second after 1970."""

    def authenticate(self, credentials: Credentials) -> Identity:
        assert credentials.user_id is not None
        return Identity(credentials.user_id, "token", expires_at=1.0)

    def forget(self, user_id: Any, **options: Any) -> None:
        pass


class BanDuringReplayTests(ServerCase):
    def start(self, **options: Any) -> None:
        self.chat = ChatServer(reactor=self.reactor, wall_clock=self.reactor.seconds, auth_deadline=0, **options)
        self.serve(self.chat, ping_interval=0)
        self.addCleanup(self.reactor.advance, 10)

    def tearDown(self) -> None:
        for wire in self.wires:
            wire.close()
        self.reactor.advance(10)
        super().tearDown()

    def publish(self, count: int, size: int = 300) -> None:
        pad = "x" * size
        for start in range(0, count, 1000):
            self.chat.publish(
                [
                    self.chat.audiences.new_event(
                        "new_message", json.dumps({"conversation_id": 456, "n": n, "pad": pad}).encode()
                    )
                    for n in range(start, min(start + 1000, count))
                ]
            )

    def open(self, user_id: int) -> Wire:
        wire = self.wire(send_buffer=SOCKET_BUFFER)
        wire.send(head())
        _, _, wire.received = wire.response()
        self.say(wire, type="auth", user_id=user_id)
        wire.frames()
        return wire

    def say(self, wire: Wire, **message: Any) -> None:
        wire.send(frame(json.dumps(message)))

    def replaying(self, count: int = COUNT, size: int = 300) -> Wire:
        """Return a client that has read a part of a replay."""
        position = f"{self.chat.broker.epoch}:{self.chat.history.last}"
        self.publish(count, size)
        wire = self.open(5)
        self.say(wire, type="subscribe", conversation_id=456, last_event_id=position)
        wire.frames(100_000)
        return wire

    def count_writes(self, wire: Wire) -> list[int]:
        """Return the list of the sizes of all writes to the server's end of the socket from now on."""
        sizes: list[int] = []
        write = wire.transport.writeSomeData

        def counted(data: bytes) -> int | Exception:
            written = write(data)
            if isinstance(written, int) and written > 0:
                sizes.append(written)
            return written

        self.patch(wire.transport, "writeSomeData", counted)
        return sizes

    def assert_nothing_but_the_close_frame(self, wire: Wire, sizes: list[int], code: int, largest_frame: int) -> None:
        frames = wire.frames()
        assert frames[-1][0] == CLOSE
        assert int.from_bytes(frames[-1][1][:2], "big") == code
        assert wire.received == b""
        assert [first for first, _ in frames[:-1]] == [0x81] * (len(frames) - 1)
        assert sum(sizes) < largest_frame + len(frames[-1][1]) + 2

    def test_ban_during_a_replay_writes_the_rest_of_a_frame_and_the_close_frame_only(self) -> None:
        self.start()
        wire = self.replaying()
        sizes = self.count_writes(wire)
        self.chat.disconnect(5, "banned", ban=True)
        self.assert_nothing_but_the_close_frame(wire, sizes, 4903, 600)

    def test_disconnect_command_of_another_node_does_the_same(self) -> None:
        self.start()
        wire = self.replaying()
        sizes = self.count_writes(wire)
        self.chat.publish([to_new_event(DisconnectCommand(5, "banned", ban=True, sender="other"))])
        self.assert_nothing_but_the_close_frame(wire, sizes, 4903, 600)

    def test_expired_token_during_a_replay_does_the_same(self) -> None:
        self.start(authenticator=Expiring())
        wire = self.replaying()
        sizes = self.count_writes(wire)
        self.reactor.advance(2)
        self.assert_nothing_but_the_close_frame(wire, sizes, 4000, 600)

    def test_ban_behind_live_events_of_any_size_does_the_same(self) -> None:
        for size in (10, 3000, 70_000):
            with self.subTest(size=size):
                self.start()
                wire = self.open(5)
                self.say(wire, type="subscribe", conversation_id=456)
                wire.frames()
                self.publish(10_000_000 // (size + 500) // 12, size)
                wire.read(20_000)
                wire.received = b""
                sizes = self.count_writes(wire)
                self.chat.disconnect(5, "banned", ban=True)
                data = wire.read()
                assert data.endswith(b"\x88\x08\x13\x27banned")
                assert sum(sizes) < size + 400

    def test_banned_client_that_reads_nothing_is_aborted_after_five_seconds(self) -> None:
        self.start()
        self.replaying()
        self.chat.disconnect(5, "banned", ban=True)
        self.reactor.advance(4)
        assert len(self.ws.connections) == 1
        self.reactor.advance(2)
        self.reactor.turn()
        assert len(self.ws.connections) == 0

    def test_replay_behind_a_close_for_a_restart_ends_too(self) -> None:
        self.start()
        wire = self.replaying()
        self.chat.disconnect_all(CloseCode.RESTARTING, "restart")
        frames = wire.frames()
        assert frames[-1][0] == CLOSE
        numbers = [json.loads(text)["data"]["n"] for first, text in frames if first == 0x81]
        assert all(after == before + 1 for before, after in pairwise(numbers))
        assert len(numbers) < 1000
