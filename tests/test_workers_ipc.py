"""Messages between two processes: cut anywhere on the way, held back when the other end does not read."""

from __future__ import annotations

from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chatws.workers.ipc import IpcConnection, encode_frame
from tests.fakes_channel import FakePipe


class ChannelTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.messages: list[bytes] = []
        self.reads: list[int] = []
        self.ends: list[str] = []
        self.moves: list[int] = []
        self.channel = IpcConnection(self.receive, lambda: self.ends.append("lost"), lambda: self.moves.append(1))
        self.transport = FakePipe()
        self.channel.makeConnection(self.transport)

    def receive(self, messages: list[bytes]) -> None:
        self.messages += messages
        self.reads.append(len(messages))

    def test_messages_cut_anywhere_arrive_whole_and_in_order(self) -> None:
        sent = [b"one", b"", b"x" * 70_000, b"last"]
        data = b"".join(encode_frame(item) for item in sent)
        for size in (1, 3, 4, 5, 65_536, len(data)):
            self.messages.clear()
            for start in range(0, len(data), size):
                self.channel.dataReceived(data[start : start + size])
            self.assertEqual(self.messages, sent)

    def test_frames_of_one_read_are_delivered_together(self) -> None:
        data = encode_frame(b"1") + encode_frame(b"2") + encode_frame(b"3")
        self.channel.dataReceived(data[:-1])
        self.channel.dataReceived(data[-1:] + encode_frame(b"4"))
        self.assertEqual((self.messages, self.reads), ([b"1", b"2", b"3", b"4"], [2, 2]))

    def test_half_a_message_is_none(self) -> None:
        self.channel.dataReceived(encode_frame(b"torn")[:-1])
        self.channel.connectionLost(Failure(ConnectionLost()))
        self.assertEqual((self.messages, self.ends), ([], ["lost"]))

    def test_sent_frames_are_read_by_another_channel(self) -> None:
        self.transport.room = 70_000
        self.channel.send(b"a" * 60_000)
        self.channel.send(b"b" * 200_000)
        self.channel.send_framed(encode_frame(b"c"))
        self.transport.drain()
        self.channel.send(b"d")
        other: list[bytes] = []
        end = IpcConnection(other.extend, lambda: None)
        end.makeConnection(FakePipe())
        end.dataReceived(self.transport.value())
        self.assertEqual(other, [b"a" * 60_000, b"b" * 200_000, b"c", b"d"])

    def test_unread_frames_are_counted_and_sent_in_order_later(self) -> None:
        self.transport.room = 0
        for number in range(10):
            self.channel.send(b"%d" % number + b"x" * 99_995)
        # the transport has a piece, the rest is here
        self.assertEqual((self.channel.unsent + self.channel.sent, self.channel.sent), (1_000_000, 65_536))
        self.transport.drain(500_000)
        self.assertEqual(self.channel.unsent + self.channel.sent, 1_000_000)
        self.assertLess(self.channel.unsent, 500_000)
        self.assertEqual(len(self.transport.value()), 500_000)
        self.transport.drain()
        self.assertEqual((self.channel.unsent, self.channel.sent), (0, 1_000_000))
        self.channel.dataReceived(self.transport.value())
        self.assertEqual([message[:1] for message in self.messages], [b"%d" % number for number in range(10)])
        self.assertTrue(self.moves)

    def test_a_drained_channel_sends_directly_again(self) -> None:
        self.transport.room = 3
        self.channel.send(b"x")
        self.transport.drain()
        before = len(self.moves)
        self.channel.send(b"y" * 1000)
        self.assertEqual((self.channel.unsent, len(self.moves)), (0, before))
        self.assertEqual(self.transport.value(), encode_frame(b"x") + encode_frame(b"y" * 1000))

    def test_a_message_that_cannot_be_dealt_with_breaks_the_connection(self) -> None:
        def fail(messages: list[bytes]) -> None:
            raise ZeroDivisionError

        channel = IpcConnection(fail, lambda: None)
        transport = FakePipe()
        channel.makeConnection(transport)
        channel.dataReceived(encode_frame(b"a"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(transport.disconnecting)

    def test_sends_to_a_closed_channel_are_dropped(self) -> None:
        def broken(data: bytes) -> int:
            raise BrokenPipeError

        self.transport.send = broken  # type: ignore[method-assign]
        self.channel.send(b"1")
        self.assertEqual(self.channel.unsent, 0)
        self.channel.connectionLost()
        self.channel.send(b"2")
        self.assertEqual((self.channel.unsent, self.channel.connected, self.ends), (0, False, ["lost"]))

    def test_a_lost_connection_discards_unsent_frames(self) -> None:
        self.transport.room = 0
        self.channel.send(b"x" * 100_000)
        self.assertGreater(self.channel.unsent, 0)
        self.channel.connectionLost()
        self.assertEqual(self.channel.unsent, 0)
