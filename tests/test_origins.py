"""Origins as browsers send them, and as operators write them."""

from __future__ import annotations

import pytest

from chatws.errors import ConfigError
from chatws.server.origins import FILE, NULL, Origin, parse_allowed_origin, parse_origin

SHOP = Origin("https", "shop.example", 443)


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("https://shop.example", SHOP),
        ("HTTPS://Shop.Example", SHOP),
        ("https://shop.example/", SHOP),
        ("https://shop.example:443", SHOP),
        ("http://shop.example:443", Origin("http", "shop.example", 443)),
        ("http://shop.example:80/", Origin("http", "shop.example", 80)),
        ("https://loja-são-joão.example", Origin("https", "xn--loja-so-joo-e8ae.example", 443)),
        ("https://LOJA-SÃO-JOÃO.example", Origin("https", "xn--loja-so-joo-e8ae.example", 443)),
        ("https://xn--caf-dma.example", Origin("https", "xn--caf-dma.example", 443)),
        ("https://straße.example", Origin("https", "xn--strae-oqa.example", 443)),
        ("http://[2001:DB8:0:0::1]:8080", Origin("http", "[2001:db8::1]", 8080)),
        ("http://my_host:3000", Origin("http", "my_host", 3000)),
        ("capacitor://localhost", Origin("capacitor", "localhost", 0)),
        ("app://.", Origin("app", ".", 0)),
        ("null", NULL),
        ("NULL", NULL),
        ("file://", FILE),
        ("file:///", FILE),
    ],
)
def test_an_allowed_origin_is_normalized_as_browsers_send_it(written: str, origin: Origin) -> None:
    assert parse_allowed_origin(written, "--allowed-origin") == origin


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("*", "there are no wildcards; list each origin as scheme://host or scheme://host:port"),
        ("https://*.shop.example", "there are no wildcards"),
        ("shop.example", "must be scheme://host or scheme://host:port, for example https://shop.example"),
        ("shop.example:443", "must be scheme://host or scheme://host:port, for example"),
        ("//shop.example", "must be scheme://host or scheme://host:port, for example"),
        ("", "must be scheme://host or scheme://host:port, for example"),
        ("wss://shop.example", "an origin is the page's: write https://shop.example"),
        ("ws://shop.example:81", "an origin is the page's: write http://shop.example:81"),
        ("https://shop.example/chat", "an origin has no path: write https://shop.example"),
        ("https://shop.example?x", "an origin has no path: write https://shop.example"),
        ("https://me@shop.example", "without a user"),
        ("https://shop.example:99999", "Port out of range 0-65535"),
        ("https://shop.example:x", "Port could not be cast to integer value as 'x'"),
        ("https://[::g]", ""),
        ("https://☕.example", "write the name as browsers send it, with xn--"),
        ("https://shop example", "must be one origin, scheme://host or scheme://host:port"),
        ("https://a, https://b", "must be one origin, scheme://host or scheme://host:port"),
    ],
)
def test_an_invalid_origin_is_one_line_with_the_valid_form(written: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_allowed_origin(written, "--allowed-origin")
    line = str(caught.value)
    assert line.startswith(f'--allowed-origin "{written}"')
    assert reason in line
    assert "\n" not in line


def test_a_malformed_header_is_no_origin() -> None:
    for junk in ("NULL", "file:///", "file:///etc/passwd", "file", "nul", "null, null"):
        assert parse_origin(junk) is None, junk
