"""Messages between two processes: cut anywhere on the way, held back when the other end does not read."""

from __future__ import annotations

from twisted.internet.error import ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chatws.channel import Channel, framed


class ChannelTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.messages: list[bytes] = []
        self.ends: list[str] = []
        self.moves: list[int] = []
        self.channel = Channel(self.messages.append, lambda: self.ends.append("lost"), lambda: self.moves.append(1))
        self.transport = StringTransport()
        self.channel.makeConnection(self.transport)

    def test_messages_cut_anywhere_arrive_whole_and_in_order(self) -> None:
        sent = [b"one", b"", b"x" * 70_000, b"last"]
        data = b"".join(framed(one) for one in sent)
        for size in (1, 3, 4, 5, 65_536, len(data)):
            self.messages.clear()
            for start in range(0, len(data), size):
                self.channel.dataReceived(data[start : start + size])
            self.assertEqual(self.messages, sent)

    def test_half_a_message_is_none(self) -> None:
        self.channel.dataReceived(framed(b"torn")[:-1])
        self.channel.connectionLost(Failure(ConnectionLost()))
        self.assertEqual((self.messages, self.ends), ([], ["lost"]))

    def test_what_is_sent_can_be_read_by_another_channel(self) -> None:
        self.channel.send(b"a")
        self.channel.send_framed(framed(b"b"))
        other: list[bytes] = []
        end = Channel(other.append, lambda: None)
        end.makeConnection(StringTransport())
        end.dataReceived(self.transport.value())
        self.assertEqual(other, [b"a", b"b"])

    def test_what_the_other_end_does_not_read_is_counted_and_sent_in_order_when_it_does(self) -> None:
        self.channel.send(b"1")
        self.channel.pauseProducing()
        self.channel.send(b"22")
        self.channel.send(b"333")
        self.assertEqual((self.channel.unsent, self.channel.sent, self.moves), (6 + 7, 5, []))
        self.channel.resumeProducing()
        self.assertEqual((self.channel.unsent, self.channel.sent, self.moves), (0, 18, [1]))
        self.assertEqual(self.transport.value(), framed(b"1") + framed(b"22") + framed(b"333"))

    def test_a_transport_that_is_full_at_once_gets_no_more(self) -> None:
        self.channel.pauseProducing()
        self.channel.send(b"1")
        self.channel.send(b"2")
        write = self.transport.write

        def fill(data: bytes) -> None:
            write(data)
            self.channel.pauseProducing()

        self.transport.write = fill  # type: ignore[method-assign]
        self.channel.resumeProducing()
        self.assertEqual((self.transport.value(), self.channel.unsent), (framed(b"1"), 5))

    def test_a_message_that_cannot_be_dealt_with_breaks_the_connection(self) -> None:
        channel = Channel(lambda message: self.messages.append(message) or 1 / 0, lambda: None)  # type: ignore[func-returns-value]
        transport = StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived(framed(b"a") + framed(b"b"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((self.messages, transport.disconnecting), ([b"a"], True))

    def test_after_the_end_nothing_is_sent_and_nothing_is_held(self) -> None:
        self.channel.pauseProducing()
        self.channel.send(b"1")
        self.channel.connectionLost()
        self.channel.send(b"2")
        self.assertEqual((self.channel.unsent, self.channel.connected, self.ends), (0, False, ["lost"]))
