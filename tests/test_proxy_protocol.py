"""Headers of the PROXY protocol: complete, in pieces, and malformed."""

from __future__ import annotations

import struct

import pytest
from twisted.internet.address import IPv4Address, IPv6Address

from chatws.net.proxy_protocol import ProxyHeader, parse_proxy_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def version_2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


IPV4 = bytes([203, 0, 113, 9, 10, 0, 0, 1]) + struct.pack("!HH", 5000, 8080)
IPV6 = bytes(15) + b"\x01" + bytes(15) + b"\x02" + struct.pack("!HH", 5000, 8080)
V4 = (IPv4Address("TCP", "203.0.113.9", 5000), IPv4Address("TCP", "10.0.0.1", 8080))
V6 = (IPv6Address("TCP", "::1", 5000), IPv6Address("TCP", "::2", 8080))

HEADERS = [
    (b"PROXY TCP4 203.0.113.9 10.0.0.1 5000 8080\r\n", V4),
    (b"PROXY TCP6 ::1 ::2 5000 8080\r\n", V6),
    (b"PROXY UNKNOWN\r\n", (None, None)),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", (None, None)),
    (version_2(0x21, 0x11, IPV4), V4),
    (version_2(0x21, 0x21, IPV6), V6),
    (version_2(0x21, 0x11, IPV4 + b"\x04\x00\x01x"), V4),  # with a TLV
    (version_2(0x20, 0x00, b""), (None, None)),  # LOCAL: a health check
    (version_2(0x20, 0x11, IPV4), (None, None)),
    (version_2(0x21, 0x31, bytes(216)), (None, None)),  # Unix
    (version_2(0x21, 0x00, b"abc"), (None, None)),
]


@pytest.mark.parametrize(("header", "addresses"), HEADERS)
def test_parse_proxy_header_in_any_number_of_pieces(
    header: bytes, addresses: tuple[IPv4Address | IPv6Address | None, IPv4Address | IPv6Address | None]
) -> None:
    for size in range(len(header)):
        assert parse_proxy_header(header[:size]) is None
    for rest in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"):
        assert parse_proxy_header(header + rest) == ProxyHeader(*addresses, len(header))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",  # TLS
        b'{"op":"ping"}\n',
        b"PROXY \r\n",
        b"PROXY TCP4\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 5000\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 5000 port\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 5000 99999\r\n",
        b"PROXY TCP4 ::1 ::2 5000 8080\r\n",
        b"PROXY TCP4 shop.example 10.0.0.1 1 2\r\n",
        b"PROXY UDP4 203.0.113.9 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 \xff\xff 10.0.0.1 1 2\r\n",
        b"PROXY " + b"x" * 101,
        version_2(0x11, 0x11, IPV4),  # version 1 in binary
        version_2(0x2F, 0x11, IPV4),  # an unknown command
        version_2(0x21, 0x11, IPV4[:-1]),
        version_2(0x21, 0x21, IPV4),
    ],
)
def test_parse_proxy_header_of_something_else_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"PROXY header|codec|address"):
        parse_proxy_header(data)
