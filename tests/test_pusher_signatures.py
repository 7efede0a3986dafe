"""Signatures of Pusher's protocol, against Pusher's examples, npm's `pusher` 5.3.4 and PyPI's `pusher`."""

from __future__ import annotations

import hashlib
import time
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import pusher
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pusher.http import Request

from chatws.pusher.signatures import (
    MAX_PARAMETERS,
    QueryError,
    SignatureError,
    channel_auth,
    parse_query,
    sign,
    user_auth,
    verify_channel_auth,
    verify_request,
    verify_user_auth,
)

#: The credentials of the examples that Pusher publishes.
KEY, SECRET = "278d425bdf160c739803", b"7ad3773142a6692b25b8"
SOCKET = "1234.1234"


class SignedApp(NamedTuple):
    key: str = KEY
    secret: bytes = SECRET


APP = SignedApp()
NOW = 1353088179.0
#: The query of Pusher's worked example of a request.
QUERY = (
    "auth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0"
    "&body_md5=ec365a775a4cd0599faeb73354201b6f"
    "&auth_signature=da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c"
)
BODY = b'{"name":"foo","channels":["project-3"],"data":"{\\"some\\":\\"data\\"}"}'


def client(**options: Any) -> pusher.Pusher:
    return pusher.Pusher(app_id="3", key=KEY, secret=SECRET.decode(), **options)


def verify(
    query: str,
    body: bytes = b"",
    *,
    method: str = "GET",
    path: str = "/apps/3/channels",
    now: float = NOW,
) -> None:
    verify_request(APP, method=method, path=path, parameters=parse_query(query), body=body, now=now)


def signed(text: str, *, method: str = "GET", path: str = "/apps/3/channels") -> str:
    """Return a query for the signed text of its parameters, which are in order."""
    signature = sign(SECRET, "\n".join((method, path, text)).encode())
    return f"{text}&auth_signature={signature}"


def auth_parameters(**changes: str) -> str:
    parameters = {"auth_key": KEY, "auth_timestamp": "1353088179", "auth_version": "1.0", **changes}
    return "&".join(f"{key}={value}" for key, value in sorted(parameters.items()) if value != "-")


# --- channels and users ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel", "channel_data", "signature"),
    [
        # the first is on Pusher's page; the others are its example with two names
        ("private-foobar", None, "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"),
        (
            "presence-foobar",
            '{"user_id":10,"user_info":{"name":"Mr. Pusher"}}',
            "afaed3695da2ffd16931f457e338e6c9f2921fa133ce7dac49f529792be6304c",
        ),
        (
            "presence-foobar",
            '{"user_id":10,"user_info":{"name":"Mr. Channels"}}',
            "31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80",
        ),
        # made by npm's pusher
        (
            "presence-foobar",
            '{"user_id":10,"user_info":{"name":"Zoë 🙂"}}',
            "ff46828c9df1f22eb5c1888cbe6ab45be2a59af45ad1664359a49d32308b97c0",
        ),
        ("private-foobar", '{"user_id":"10"}', "bf9f2eda99b88b670aedd071792d41c2796fda040476f39b46f89a28ccc69a9c"),
    ],
)
def test_channel_auth_of_a_known_vector_is_right(channel: str, channel_data: str | None, signature: str) -> None:
    assert channel_auth(APP, SOCKET, channel, channel_data) == f"{KEY}:{signature}"
    assert verify_channel_auth(APP, f"{KEY}:{signature}", SOCKET, channel, channel_data)


def test_user_auth_of_the_published_vector_is_right() -> None:
    auth = f"{KEY}:4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba"
    assert user_auth(APP, SOCKET, '{"id":"12345"}') == auth
    assert verify_user_auth(APP, auth, SOCKET, '{"id":"12345"}')


@pytest.mark.parametrize("data", [None, {"user_id": "10"}, {"user_id": 10, "user_info": {"name": "Zoë 🙂"}}])
@pytest.mark.parametrize("channel", ["private-a", "presence-a;b@c,d.e=f", "private-cache-a"])
def test_channel_auth_of_the_python_sdk_is_accepted(channel: str, data: dict[str, Any] | None) -> None:
    made = client().authenticate(channel, SOCKET, data)
    assert verify_channel_auth(APP, made["auth"], SOCKET, channel, made.get("channel_data"))


def test_user_auth_of_the_python_sdk_is_accepted() -> None:
    made = client().authenticate_user(SOCKET, {"id": "7", "name": "Zoë"})
    assert verify_user_auth(APP, made["auth"], SOCKET, made["user_data"])


@pytest.mark.parametrize(
    "changed",
    [
        {"auth": f"{KEY}:{'0' * 64}"},
        {"auth": ""},
        {"auth": "é:ü"},
        {"auth": "\ud800"},
        {"app": SignedApp(key="another")},
        {"app": SignedApp(secret=b"another")},
        {"socket_id": "1234.1235"},
        {"channel": "private-foobaz"},
        {"channel_data": "{}"},
        {"channel_data": ""},
    ],
)
def test_verify_channel_with_anything_else_returns_false(changed: dict[str, Any]) -> None:
    right = {"app": APP, "auth": channel_auth(APP, SOCKET, "private-foobar")}
    right |= {"socket_id": SOCKET, "channel": "private-foobar", "channel_data": None}
    assert verify_channel_auth(**right)
    assert not verify_channel_auth(**{**right, **changed})


def test_verify_channel_without_the_channel_data_that_was_signed_returns_false() -> None:
    auth = channel_auth(APP, SOCKET, "private-foobar", '{"user_id":"1"}')
    assert not verify_channel_auth(APP, auth, SOCKET, "private-foobar")


def test_verify_channel_with_the_signature_in_upper_case_returns_false() -> None:
    auth = channel_auth(APP, SOCKET, "private-foobar")
    assert not verify_channel_auth(APP, auth.upper(), SOCKET, "private-foobar")


def test_verify_channel_compares_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(given: bytes, expected: bytes) -> bool:
        compared.append(given)
        return False

    monkeypatch.setattr("chatws.pusher.signatures.hmac.compare_digest", compare)
    auth = channel_auth(APP, SOCKET, "private-foobar")
    assert not verify_channel_auth(APP, auth, SOCKET, "private-foobar")
    assert compared == [auth.encode()]


def test_verify_user_with_a_signature_for_a_channel_returns_false() -> None:
    auth = channel_auth(APP, SOCKET, "private-foobar", '{"id":"1"}')
    assert not verify_user_auth(APP, auth, SOCKET, '{"id":"1"}')


# --- requests -------------------------------------------------------------------------------------------------------


def test_verify_request_of_the_published_vector_returns() -> None:
    assert hashlib.md5(BODY).hexdigest() == "ec365a775a4cd0599faeb73354201b6f"
    verify(QUERY, BODY, method="POST", path="/apps/3/events")


@pytest.mark.parametrize(
    ("method", "path", "body", "query"),
    [
        (
            "GET",
            "/apps/3/channels",
            "",
            "auth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0&filter_by_prefix=presence-"
            "&info=user_count&auth_signature=16819168891cb5dfd72b5c7a5d3d602605b26c6ba1930033b5e2eeeb65010291",
        ),
        (
            "POST",
            "/apps/3/events",
            '{"name":"é","data":"{}","channels":["a;b@c"]}',
            "auth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0"
            "&body_md5=6ef33a1b941ba7aff2ecd260efe425c1"
            "&auth_signature=8612d2f5a3d9479e7389e1211bfc85411882c910a21f10c47442840ac217dde2",
        ),
    ],
)
def test_verify_request_of_the_node_sdk_returns(method: str, path: str, body: str, query: str) -> None:
    verify(query, body.encode(), method=method, path=path)


def requests_of_the_python_sdk() -> list[Request]:
    sdk = client()
    return [
        sdk._pusher_client.trigger.make_request(["a", "presence-b@c,d"], "event", {"text": "é🙂"}, SOCKET),
        sdk._pusher_client.trigger_batch.make_request([{"channel": "a", "name": "b", "data": "c"}]),
        sdk._pusher_client.channels_info.make_request("presence-", ["user_count"]),
        sdk._pusher_client.channels_info.make_request(),
        sdk._pusher_client.channel_info.make_request("presence-a;b=c", ["user_count", "subscription_count"]),
        sdk._pusher_client.users_info.make_request("presence-a"),
        sdk._pusher_client.terminate_user_connections.make_request("7"),
    ]


@pytest.mark.parametrize("number", range(7))
def test_verify_request_of_the_python_sdk_returns(number: int) -> None:
    """A GET has `body_md5`, of a body that is empty."""
    request = requests_of_the_python_sdk()[number]
    url = urlsplit(request.url)
    assert "body_md5" in url.query
    verify(url.query, request.body, method=request.method, path=url.path, now=time.time())
    escaped = "&".join(f"{key}={quote(value, safe='')}" for key, value in parse_query(url.query).items())
    verify(escaped, request.body, method=request.method, path=quote(url.path), now=time.time())


def test_verify_request_signs_every_parameter_but_the_signature() -> None:
    text = auth_parameters(anything="1", info="user_count")
    verify(signed(text))
    with pytest.raises(SignatureError, match="auth_signature is wrong"):
        verify(signed(text) + "&more=1")
    with pytest.raises(SignatureError, match="auth_signature is wrong"):
        verify(signed(text).replace("&info=user_count", ""))


def test_verify_request_signs_keys_in_lower_case_and_sorted() -> None:
    lower = auth_parameters(Name="Something else").replace("Name", "name")
    ordered = "&".join(sorted(lower.split("&")))
    signature = sign(SECRET, f"GET\n/apps/3/channels\n{ordered}".encode())
    verify(f"Name=Something%20else&{auth_parameters()}&auth_signature={signature}")


def test_verify_request_signs_decoded_values() -> None:
    text = auth_parameters(filter_by_prefix="presence-é@,=;")
    query = signed(text)
    verify(query)
    verify(query.replace("presence-é@,=;", quote("presence-é@,=;", safe="")))


def test_verify_request_signs_the_decoded_or_the_received_path() -> None:
    text = auth_parameters()
    path = "/apps/3/channels/%23server-to-user-5"
    verify(signed(text, path="/apps/3/channels/#server-to-user-5"), path=path)
    verify(signed(text, path=path), path=path)


@pytest.mark.parametrize("offset", [-600, -599, 0, 600])
def test_verify_request_within_600_seconds_returns(offset: int) -> None:
    verify(signed(auth_parameters()), now=NOW + offset)


@pytest.mark.parametrize("offset", [-601, 601, 10**9])
def test_verify_request_beyond_600_seconds_fails(offset: int) -> None:
    with pytest.raises(SignatureError, match="check the clocks"):
        verify(signed(auth_parameters()), now=NOW + offset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auth_key": "-"}, "auth_key is missing"),
        ({"auth_key": "other"}, "not the key of this app"),
        ({"auth_version": "-"}, "auth_version is missing"),
        ({"auth_version": "2.0"}, "must be 1.0"),
        ({"auth_timestamp": "-"}, "auth_timestamp is missing"),
        ({"auth_timestamp": "1e9"}, "number of seconds"),
        ({"auth_timestamp": "-1"}, "number of seconds"),
        ({"auth_timestamp": "9" * 5000}, "number of seconds"),
        ({"auth_timestamp": "١٣٥٣٠٨٨١٧٩"}, "number of seconds"),
    ],
)
def test_verify_request_with_a_wrong_parameter_says_which(changes: dict[str, str], message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        verify(signed(auth_parameters(**changes)))


def test_verify_request_without_a_signature_fails() -> None:
    with pytest.raises(SignatureError, match="auth_signature is missing"):
        verify(auth_parameters())


@pytest.mark.parametrize("signature", ["0" * 64, "é", "x" * 10_000])
def test_verify_request_with_a_wrong_signature_shows_what_was_signed(signature: str) -> None:
    with pytest.raises(SignatureError) as raised:
        verify(f"{auth_parameters()}&auth_signature={signature}")
    assert f"GET\\n/apps/3/channels\\n{auth_parameters()}" in str(raised.value)
    assert SECRET.decode() not in str(raised.value)
    assert sign(SECRET, f"GET\n/apps/3/channels\n{auth_parameters()}".encode()) not in str(raised.value)


def test_verify_request_with_another_body_fails() -> None:
    with pytest.raises(SignatureError, match="body_md5 does not match"):
        verify(QUERY, BODY + b" ", method="POST", path="/apps/3/events")
    empty = hashlib.md5(b"").hexdigest()
    verify(signed(auth_parameters(body_md5=empty)))
    with pytest.raises(SignatureError, match="body_md5 does not match"):
        verify(signed(auth_parameters(body_md5="0" * 32)))


def test_verify_request_with_a_body_and_without_body_md5_fails() -> None:
    """Otherwise the signature would not cover the body, and any body could be sent with it."""
    with pytest.raises(SignatureError, match="body_md5 is missing"):
        verify(signed(auth_parameters(), method="POST"), b"{}", method="POST")


# --- queries --------------------------------------------------------------------------------------------------------


def test_parse_query_decodes() -> None:
    assert parse_query("a=1&&B=x%20y+z&c&d=%C3%A9") == {"a": "1", "b": "x y z", "c": "", "d": "é"}
    assert parse_query("") == {}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("a=1&a=2", "repeated"),
        ("a=1&A=2", "repeated"),
        ("a=%FF", "UTF-8"),
        ("%FF=1", "UTF-8"),
        ("a=1%26b=2", "encoded &"),
        ("a%26b=1", "encoded &"),
        ("a%3Db=1", "encoded ="),
        ("&".join(f"a{number}=1" for number in range(MAX_PARAMETERS + 1)), "at most"),
        ("&".join(f"a{number}=1" for number in range(100_000)), "at most"),
    ],
)
def test_parse_query_with_an_ambiguous_or_malformed_query_fails(query: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        parse_query(query)


@given(st.text(max_size=200), st.binary(max_size=50), st.text(max_size=50))
def test_verify_request_with_any_text_fails_cleanly(query: str, body: bytes, path: str) -> None:
    with pytest.raises((QueryError, SignatureError)):
        verify(query, body, path=path)


# --- webhooks -------------------------------------------------------------------------------------------------------


def test_sign_of_a_webhook_is_what_the_python_sdk_verifies() -> None:
    body = b'{"time_ms":%d,"events":[{"name":"channel_occupied","channel":"a"}]}' % int(time.time() * 1000)
    assert client().validate_webhook(KEY, sign(SECRET, body), body.decode())["events"] == [
        {"name": "channel_occupied", "channel": "a"}
    ]
    assert client().validate_webhook(KEY, sign(b"other", body), body.decode()) is None
