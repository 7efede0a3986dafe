"""permessage-deflate: what is negotiated, what is inflated, and fan-out that compresses once."""

from __future__ import annotations

import random
import zlib
from typing import Any

from chatws.server import compression, fanout
from chatws.server.fanout import FanOut
from chatws.server.frames import text_frame
from chatws.server.io_uring import Ring
from chatws.server.recipients import Recipients
from tests.requirements import needs_io_uring
from tests.server_wire import ServerCase, Wire, frame, head, split_frames

OFFER = "permessage-deflate; client_max_window_bits"
LONG = '{"event":"new_message","data":{"content":"' + "so it goes, " * 50 + '"}}'


def deflate(payload: bytes | str) -> bytes:
    if isinstance(payload, str):
        payload = payload.encode()
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflate(payload: bytes, window: int = 15) -> str:
    return zlib.decompressobj(-window).decompress(payload + b"\0\0\xff\xff").decode()


class CompressionTests(ServerCase):
    def setUp(self) -> None:
        super().setUp()
        self.serve(compression=True)
        self.fan_out = FanOut()

    def compressed(self, offer: str = OFFER) -> tuple[Wire, Any]:
        return self.connect(Sec_WebSocket_Extensions=offer)

    def extension(self, offer: str) -> str | None:
        wire = self.wire()
        wire.send(head(Sec_WebSocket_Extensions=offer))
        status, headers, _ = wire.response()
        assert status == 101
        return headers.get("sec-websocket-extensions")

    def test_compression_is_off_by_default(self) -> None:
        self.serve()
        assert self.extension(OFFER) is None

    def test_no_context_is_taken_over_in_either_direction(self) -> None:
        expected = {"permessage-deflate", "client_no_context_takeover", "server_no_context_takeover"}
        for offer in (OFFER, "permessage-deflate", "permessage-deflate; server_no_context_takeover"):
            extension = self.extension(offer)
            assert extension is not None
            assert set(extension.split("; ")) == expected
        extension = self.extension("permessage-deflate; server_max_window_bits=10")
        assert extension is not None
        assert set(extension.split("; ")) == expected | {"server_max_window_bits=10"}

    def test_offers_that_cannot_be_understood_are_declined(self) -> None:
        for offer in (
            "",
            "x-webkit-deflate-frame",
            "permessage-deflate; server_max_window_bits=99",
            "permessage-deflate; nonsense",
            "permessage-bzip2",
            ";;;",
            "permessage-deflate; =; ==",
        ):
            assert self.extension(offer) is None, offer
        assert self.extension("permessage-deflate; nonsense, permessage-deflate") is not None

    def test_compression_is_declined_for_the_safari_versions_that_fail_on_it(self) -> None:
        mac = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko)"
        phone = "Mozilla/5.0 ({}; CPU iPhone OS {} like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
        for user_agent, accepted in (
            (f"{mac} Version/15.0 Safari/605.1.15", False),
            (f"{mac} Version/15.3.1 Safari/605.1.15", False),
            (phone.format("iPhone", "15_2_1") + " Version/15.2 Mobile/15E148 Safari/604.1", False),
            (phone.format("iPad", "15_0") + " CriOS/97.0 Mobile/15E148 Safari/604.1", False),
            (phone.format("iPhone", "15_3") + " Mobile/15E148", False),
            (f"{mac} Version/15.4 Safari/605.1.15", True),
            (f"{mac} Version/14.1.2 Safari/605.1.15", True),
            (f"{mac} Version/15.30 Safari/605.1.15", True),
            (phone.format("iPhone", "15_4") + " Version/15.4 Mobile/15E148 Safari/604.1", True),
            ("Mozilla/5.0 (X11; Linux x86_64) Chrome/115.3.0.0 Safari/537.36", True),
            ("", True),
        ):
            wire = self.wire()
            wire.send(head(Sec_WebSocket_Extensions=OFFER, User_Agent=user_agent))
            status, headers, _ = wire.response()
            assert (status, "sec-websocket-extensions" in headers) == (101, accepted), user_agent

    def test_compressed_messages_are_inflated_also_in_fragments(self) -> None:
        wire, _ = self.compressed()
        data = deflate(LONG)
        wire.send(frame(data, rsv=4) + frame("plain"))
        wire.send(frame(data[:7], rsv=4, fin=False) + frame(data[7:], opcode=0))
        assert self.component.events[1:] == [("message", 1, LONG), ("message", 1, "plain"), ("message", 1, LONG)]

    def test_inflater_is_released_between_messages(self) -> None:
        wire, _ = self.compressed()
        wire.send(frame(deflate(LONG), rsv=4))
        assert wire.transport.protocol._perMessageCompress._decompressor is None

    def test_a_compression_bomb_is_refused_before_it_is_inflated(self) -> None:
        bystander_wire, bystander = self.compressed()
        wire, _ = self.compressed()
        bomb = deflate(b"\0" * 50_000_000)
        assert len(bomb) < 65536
        wire.send(frame(bomb, rsv=4))
        assert wire.closed_with()[0] == 1009
        bystander.send("fine")
        assert bystander_wire.texts() == ["fine"]

    def test_a_bomb_in_fragments_is_refused(self) -> None:
        wire, _ = self.compressed()
        bomb = deflate(b"\0" * 100_000)
        half = len(bomb) // 2
        wire.send(frame(bomb[:half], rsv=4, fin=False) + frame(bomb[half:], opcode=0))
        assert wire.closed_with()[0] == 1009

    def test_invalid_deflate_data_is_rejected(self) -> None:
        wire, _ = self.compressed()
        wire.send(frame(b"\xff\xff\xff\xff junk", rsv=4))
        assert wire.closed_with()[0] == 1007
        for _ in range(20):
            wire.send(frame("and it goes on" * 500))
        assert len(wire.transport.protocol.data) < 65536

    def test_inflated_text_must_be_utf_8(self) -> None:
        wire, _ = self.compressed()
        wire.send(frame(deflate(b"\xff\xfe"), rsv=4))
        assert wire.closed_with()[0] == 1007

    def test_a_compressed_frame_without_negotiation_is_a_protocol_error(self) -> None:
        wire, _ = self.connect()
        wire.send(frame(deflate(LONG), rsv=4))
        assert wire.closed_with()[0] == 1002

    def test_fan_out_compresses_once_for_all_with_the_same_window(self) -> None:
        made = []
        real = zlib.compressobj
        self.patch(compression.zlib, "compressobj", lambda *args: made.append(args) or real(*args))
        wires = [self.compressed()[0] for _ in range(5)]
        narrow, _ = self.compressed("permessage-deflate; server_max_window_bits=10")
        plain, _ = self.connect()
        self.fan_out.send_all([(Recipients(self.component.connections), [text_frame(LONG.encode())])])
        for wire in wires:
            ((first, payload),) = wire.frames()
            assert (first, inflate(payload)) == (0xC1, LONG)
            assert len(payload) < len(LONG) / 4
        ((first, payload),) = narrow.frames()
        assert (first, inflate(payload, 10)) == (0xC1, LONG)
        assert plain.texts() == [LONG]
        assert len(made) == 2

    def test_deflated_data_of_any_length_and_window_inflates(self) -> None:
        text = "".join(f"{number} of these, " for number in range(9000))
        for window in range(9, 16):
            deflater = compression.Deflater(window)
            for length in (128, 512, 513, 1024, 5000, 32768, 100_000):
                ((first, payload),), rest = split_frames(deflater(text_frame(text[:length].encode())))
                assert (first, rest, inflate(payload, window)) == (0xC1, b"", text[:length])

    def test_frames_keep_their_order_and_short_ones_are_left_plain(self) -> None:
        wire, connection = self.compressed()
        self.fan_out.send_all(
            [
                ([connection], [text_frame(b"short"), text_frame(LONG.encode())]),
                (self.component.connections, [text_frame(b"short too")]),
            ]
        )
        connection.send(LONG)
        connection.send(b"x" * 1000)
        result = wire.frames()
        assert [first for first, _ in result] == [0x81, 0xC1, 0x81, 0xC1, 0xC2]
        assert (result[0][1], inflate(result[1][1]), result[2][1]) == (b"short", LONG, b"short too")

    def test_a_slow_reader_of_compressed_frames_gets_them_whole(self) -> None:
        self.serve(compression=True, send_buffer=100_000)
        wire, connection = self.connect(send_buffer=4096, Sec_WebSocket_Extensions=OFFER)
        dice = random.Random(7)
        noise: list[str] = []
        while connection.is_open:
            noise.append("".join(dice.choices("0123456789abcdefghijklmnopqrstuvwxyz", k=1500)))
            connection.send(noise[-1])
            assert len(noise) < 5000
        result = wire.frames()
        assert result[-1][1][:2] == (4001).to_bytes(2, "big")
        assert [inflate(payload) for _, payload in result[:-1]] == noise[: len(result) - 1]


@needs_io_uring
class CompressionTogetherTests(CompressionTests):
    def setUp(self) -> None:
        super().setUp()
        self.patch(fanout, "IO_URING_MIN_SENDS", 1)
        self.fan_out.ring = Ring()
