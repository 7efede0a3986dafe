"""What a stranger may send: any bytes, and any sequence of frames. Nothing of it is a fault of ours."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from chatws.server import HttpServer, WsServer
from tests.server_wire import BinaryRecorder, frame, head, split_frames


def deflated(payload: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


payloads = st.one_of(
    st.binary(max_size=140),
    st.text(max_size=60).map(str.encode),
    st.binary(max_size=300).map(deflated),
    st.sampled_from([b"\0" * 200_000, b"x" * 70_000]).map(deflated),
    st.sampled_from([b"\x03\xe8", b"\x03\xe8bye", b"\x03\xe8\xff", b"\x00", b"\x13\x88", b"x" * 65536, b"y" * 66000]),
)
frames = st.builds(
    lambda payload, opcode, fin, rsv, mask: frame(payload, opcode, fin=fin, rsv=rsv, mask=mask),
    payloads,
    st.sampled_from([0, 0, 1, 1, 1, 2, 2, 8, 9, 9, 10, 3, 11, 15]),
    st.sampled_from([True, True, False]),
    st.sampled_from([0, 0, 0, 4, 4, 1, 7]),
    st.sampled_from([b"\1\2\3\4", b"\1\2\3\4", b"\1\2\3\4", b"\0\0\0\0", None]),
)


@pytest.mark.long
class FuzzTests(SynchronousTestCase):
    def open(self, **options: Any) -> None:
        self.clock = Clock()
        self.component = BinaryRecorder()
        self.ws = WsServer(self.component, reactor=self.clock, **options)
        self.http = HttpServer(self.ws, reactor=self.clock)
        self.transport: Any = StringTransport()
        self.visitor = self.http.buildProtocol(None)
        self.transport.protocol = self.visitor  # as a real transport has it; the upgrade replaces it
        self.visitor.makeConnection(self.transport)
        self.visitor.dataReceived(head(Sec_WebSocket_Extensions="permessage-deflate"))
        assert b" 101 " in self.transport.value()
        self.transport.clear()

    def end(self) -> None:
        """The connection goes; what was sent is whole frames, of which a close frame is the last if there is one."""
        result, rest = split_frames(self.transport.value())
        assert rest == b""
        closes = [index for index, (first, _) in enumerate(result) if first == 0x88]
        assert closes in ([], [len(result) - 1])
        self.clock.advance(10)
        self.visitor.connectionLost()
        assert self.component.errors == []
        assert [event[0] for event in self.component.events if event[0] in ("open", "close")] == ["open", "close"]
        assert self.clock.getDelayedCalls() == []
        assert self.http.admission.open_now == 0
        assert self.flushLoggedErrors() == []

    @settings(max_examples=150, deadline=None)
    @given(st.lists(frames, max_size=12), st.booleans(), st.integers(1, 4000))
    def test_no_sequence_of_frames_breaks_the_protocol(self, sent: list[bytes], compression: bool, cut: int) -> None:
        self.open(compression=compression)
        data = b"".join(sent)
        for start in range(0, len(data), cut if cut > 500 else max(cut, len(data) // 200)):
            step = cut if cut > 500 else max(cut, len(data) // 200)
            self.visitor.dataReceived(data[start : start + step])
            self.clock.advance(0.001)
        protocol = self.transport.protocol
        assert len(protocol.data) <= max(cut, len(data) // 200) + 14
        self.end()

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.binary(max_size=200), max_size=10), st.booleans())
    def test_no_bytes_break_the_protocol(self, sent: list[bytes], compression: bool) -> None:
        self.open(compression=compression)
        for data in sent:
            self.visitor.dataReceived(data)
        self.end()

    @settings(max_examples=80, deadline=None)
    @given(
        st.lists(st.tuples(st.text(max_size=200), st.integers(1, 5), st.booleans()), max_size=8),
        st.lists(st.integers(1, 50), min_size=1, max_size=20),
    )
    def test_messages_in_any_pieces_arrive_whole(self, messages: list[tuple[str, int, bool]], cuts: list[int]) -> None:
        self.open(compression=True)
        data = b""
        for text, parts, compressed in messages:
            raw = deflated(text.encode()) if compressed else text.encode()
            size = len(raw) // parts + 1
            pieces = [raw[start : start + size] for start in range(0, len(raw), size)] or [b""]
            for index, piece in enumerate(pieces):
                data += frame(
                    piece,
                    0 if index else 1,
                    fin=index == len(pieces) - 1,
                    rsv=4 if compressed and not index else 0,
                )
                data += frame("", 9)
        position = 0
        while position < len(data):
            for cut in cuts:
                self.visitor.dataReceived(data[position : position + cut])
                position += cut
                self.clock.advance(0.001)
        received = [event[2] for event in self.component.events if event[0] == "message"]
        assert received == [text for text, _, _ in messages]
        self.end()
