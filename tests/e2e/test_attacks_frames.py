"""Attacks on a real server by WebSocket frames (RFC 6455 §5): whatever is sent, a bystander still gets its events."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.e2e.conftest import Server
from tests.e2e.raw import Raw, frame, rss
from tests.e2e.siege import besieged, bystander, unharmed

__all__ = ["besieged", "unharmed"]

Start = Callable[..., Server]

MIB = 1024 * 1024
DEFLATE = "permessage-deflate"
PING = '{"type":"ping"}'


def deflated(data: bytes, repeat: int = 1) -> bytes:
    """RFC 7692 §7.2.1."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    result = b"".join(deflate.compress(data) for _ in range(repeat))
    return (result + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (frame(PING, mask=None), 1002),
        (frame(PING, rsv=2), 1002),
        (frame(PING, opcode=3), 1002),
        (frame(PING, opcode=11), 1002),
        (frame(PING, opcode=0), 1002),
        (frame("{", fin=False) + frame(PING), 1002),
        (frame("x" * 126, opcode=9), 1002),
        (frame("x", opcode=9, fin=False), 1002),
        (b"\x81\xfe\x00\x05" + b"\0" * 9, 1002),
        (b"\x81\xff" + b"\xff" * 8 + b"\0" * 4, 1002),
        (frame(b"\x03\xed", opcode=8), 1002),
        (frame(b"\x03", opcode=8), 1002),
        (frame(b'{"type":"\xff"}'), 1007),
        (frame(b"\xed\xa0\x80"), 1007),
        (frame(b"\xf4\x90\x80\x80"), 1007),
        (frame(b"\xc3"), 1007),
        (frame(b"\x03\xe8\xc3\x28", opcode=8), 1007),
        (b"\x81\xff" + (1 << 62).to_bytes(8, "big") + b"\0" * 4, 1009),
        (frame("x" * 65537), 1009),
        (frame("x" * 40000, fin=False) + frame("x" * 40000, opcode=0), 1009),
    ],
    ids=lambda value: ascii(value)[2:32] if isinstance(value, bytes) else None,
)
def test_a_protocol_violation_closes_with_its_code(frames: bytes, code: int, besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().enter(1, 1)
        page.send(frames + frame(PING) * 100)
        assert page.closed_with()[0] == code


def test_a_message_beyond_the_limit_is_rejected_by_its_length(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().enter(1)
        page.send(b"\x81\xff" + (5 * MIB).to_bytes(8, "big") + b"\0\0\0\0")
        assert page.closed_with()[0] == 1009


def test_ten_thousand_tiny_fragments_are_cut_short(besieged: Server) -> None:
    before = rss(besieged.pid)
    with ExitStack() as stack:
        pages = [stack.enter_context(Raw(besieged.port)).upgrade().enter(1) for _ in range(20)]
        for page in pages:
            page.send(frame("[", fin=False) + frame("", opcode=0, fin=False) * 5_000)
            page.send(frame("[", opcode=0, fin=False) * 5_000 + frame("]", opcode=0))
        assert {page.closed_with() for page in pages} == {(1009, "too many fragments")}
    assert rss(besieged.pid) < before + 8 * MIB


def test_a_compression_bomb_does_not_unfold(besieged: Server) -> None:
    bomb = deflated(bytes(MIB), 60)
    assert len(bomb) < 65536
    before = rss(besieged.pid)
    with ExitStack() as stack:
        pages = [stack.enter_context(Raw(besieged.port)) for _ in range(10)]
        for page in pages:
            page.upgrade(Sec_WebSocket_Extensions=DEFLATE).enter(1)
            page.send(frame(bomb, rsv=4))
        assert {page.closed_with()[0] for page in pages} == {1009}
        in_pieces = stack.enter_context(Raw(besieged.port)).upgrade(Sec_WebSocket_Extensions=DEFLATE).enter(1)
        pieces = [bomb[start : start + 2000] for start in range(0, len(bomb), 2000)]
        in_pieces.send(frame(pieces[0], rsv=4, fin=False))
        in_pieces.send(b"".join(frame(piece, opcode=0, fin=False) for piece in pieces[1:]) + frame("", opcode=0))
        assert in_pieces.closed_with()[0] == 1009
    assert rss(besieged.pid) < before + 16 * MIB


def test_invalid_deflate_data_closes_its_own_connection(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade(Sec_WebSocket_Extensions=DEFLATE)
        page.send(frame(b"\xff" * 100, rsv=4))
        assert page.closed_with()[0] in (1002, 1007)


def test_compressed_frame_without_negotiation_is_rejected(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade()
        page.send(frame(deflated(b'{"type":"ping"}'), rsv=4))
        assert page.closed_with()[0] == 1002


@pytest.mark.parametrize("opcode", [9, 10])
def test_a_flood_of_control_frames_is_ended(opcode: int, besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().enter(1)
        page.send(frame(b"x" * 100, opcode=opcode) * 2_000)
        while (result := page.next_frame())[0] != 0x88:
            assert result == (0x8A, b"x" * 100)
        assert int.from_bytes(result[1][:2], "big") == 4429


def test_a_binary_message_is_unsupported_and_the_connection_stays(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade()
        page.send(frame(bytes(range(256)), opcode=2))
        assert page.error() == "unsupported"
        assert page.pong()


def test_five_megabytes_of_nesting_are_no_json(chatws_server: Start) -> None:
    server = chatws_server("--max-message-size", str(8 * MIB), "--max-line-size", str(8 * MIB))
    with bystander(server), Raw(server.port) as page, server.backend() as backend:
        page.upgrade().enter(1)
        deep = "[" * (5 * MIB)
        for text in (deep, '{"type":' * 1_000_000, '{"type":"auth","user_id":' + deep, deep + "]" * len(deep)):
            page.say(text[: 8 * MIB])
            assert page.error() in ("bad_json", "bad_message")
        assert page.pong()
        assert backend.request({"op": "ping"})["ok"]
        for line in (deep, '{"event":"a","to":"everyone","data":' + deep, '{"event":"a","data":' + '{"a":' * 10**6):
            backend.send_bytes(line.encode() + b"\n")
            assert backend.read_line()["code"] == "bad_json"
        assert backend.request({"op": "ping"})["ok"]


def test_five_megabytes_of_nesting_are_too_big_by_default(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade()
        page.send(frame("[" * (5 * MIB)))
        assert page.closed_with()[0] == 1009
    with Raw(besieged.port) as page:
        page.upgrade().say("[" * 65_536, '{"type":' * 8_000)
        assert page.error() in ("bad_json", "bad_message")
        assert page.error() in ("bad_json", "bad_message")
        assert page.pong()


def test_a_peer_without_a_close_frame_is_dropped(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade()
        page.send(frame(PING, mask=None))
        while page.next_frame()[0] != 0x88:
            pass
        # no close frame from here
        assert page.read_to_end() == b""
