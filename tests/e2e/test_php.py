"""Test what browsers receive from each method of the PHP helper, with real PHP and a real server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.e2e.conftest import Server, run_server
from tests.e2e.php import FakePushApi, Php
from tests.e2e.wire import Browser, until
from tests.requirements import needs

pytestmark = needs("php-cli")

MESSAGE = {"id": 9, "content": "Olá, já chegou?", "sender_type": "contact", "sender_id": 7, "created_at": "2026-05-01"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start one server for all tests. Each test has its own connections and ignores presence events."""
    with run_server(tmp_path_factory.mktemp("chatws"), "--presence-grace", "0") as server:
        yield server


@pytest.fixture
def php(server: Server) -> Iterator[Php]:
    with Php(address=f"127.0.0.1:{server.push_port}") as php:
        yield php


@pytest.fixture
def helper(server: Server) -> Iterator[Php]:
    """Start PHP with App\\Helpers\\WebSocket, configured by the environment only."""
    with Php(helper=True, environment={"CHATWS_PUSH_ADDRESS": f"127.0.0.1:{server.push_port}"}) as php:
        yield php


def events(browser: Browser) -> list[dict[str, Any]]:
    """Return the events that have arrived, without presence events."""
    return [event for event in browser.settle() if event["event"] != "agent_status"]


def next_event(browser: Browser, name: str) -> str:
    """Return the data of the next event `name`, byte for byte."""
    browser.expect(name)
    text = browser.texts[-1]
    start = f'{{"event":"{name}","data":'
    assert text.startswith(start)
    data, _, _ = text.removeprefix(start).rpartition(',"id":"')
    return data or text.removeprefix(start)[:-1]


# --- Every method


@pytest.mark.parametrize(
    ("method", "arguments", "event", "data"),
    [
        (
            "notifyNewMessage",
            [456, MESSAGE],
            "new_message",
            {"conversation_id": 456, "message": MESSAGE},
        ),
        (
            "notifyConversationUpdated",
            [456, {"id": 456, "status": "closed"}],
            "conversation_updated",
            {"conversation_id": 456, "conversation": {"id": 456, "status": "closed"}},
        ),
        (
            "notifyNewConversation",
            [{"id": 457, "contact_name": "Zoë", "status": "open"}],
            "new_conversation",
            {"conversation": {"id": 457, "contact_name": "Zoë", "status": "open"}},
        ),
        ("notifyAgentStatus", [5, "away"], "agent_status", {"agent_id": 5, "status": "away"}),
        ("notifyTyping", [456, 7, True], "typing", {"conversation_id": 456, "user_id": 7, "is_typing": True}),
        ("notifyTyping", [456, 7, False], "typing", {"conversation_id": 456, "user_id": 7, "is_typing": False}),
        ("notifyMessageRead", [456, 9, 7], "message_read", {"conversation_id": 456, "message_id": 9, "user_id": 7}),
        (
            "notifyMessageStatusUpdated",
            [456, 9, "delivered"],
            "message_status_updated",
            {"conversation_id": 456, "message_id": 9, "status": "delivered"},
        ),
        ("notifyUser", [1, "order_paid", {"order_id": 77}], "order_paid", {"order_id": 77}),
        ("broadcast", ["maintenance", {"minutes": 5}], "maintenance", {"minutes": 5}),
        ("broadcast", ["maintenance", {"minutes": 5}, None], "maintenance", {"minutes": 5}),
        ("broadcast", ["maintenance", {"minutes": 5}, [1, 2]], "maintenance", {"minutes": 5}),
    ],
)
def test_legacy_method_called_publishes_its_documented_event(
    server: Server, helper: Php, method: str, arguments: list[Any], event: str, data: Any
) -> None:
    with server.agent(1, 456) as browser:
        assert getattr(helper, method)(*arguments) is True
        assert helper.log == []
        assert next_event(browser, event) == json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        assert events(browser) == [], "it came once"


def test_conversation_event_published_reaches_only_its_subscribers(server: Server, helper: Php) -> None:
    with server.agent(1, 456) as subscriber, server.agent(2, 457) as other:
        for method, arguments in (
            ("notifyNewMessage", (456, MESSAGE)),
            ("notifyTyping", (456, 7, True)),
            ("notifyMessageRead", (456, 9, 7)),
            ("notifyMessageStatusUpdated", (456, 9, "read")),
        ):
            assert getattr(helper, method)(*arguments) is True
        assert len(events(subscriber)) == 4
        assert events(other) == []


def test_typing_published_is_not_sent_to_the_typing_user(server: Server, helper: Php) -> None:
    with server.agent(7, 456) as typist:
        assert helper.notifyTyping(456, 7, True) is True
        assert events(typist) == []


def test_broadcast_with_targets_reaches_only_these(server: Server, php: Php) -> None:
    with server.agent(1) as first, server.agent(2, 456) as second, server.agent(3) as third:
        browsers = (first, second, third)

        def reached(targets: Any) -> list[int]:
            assert php.broadcast("note", {}, targets) is True
            return [number for number, browser in enumerate(browsers, 1) if events(browser)]

        assert reached(None) == [1, 2, 3]
        assert reached([1, 3]) == [1, 3]
        assert reached(["2"]) == [2]
        assert reached([]) == [], "an empty list is nobody, not everybody"
        assert reached({"conversation_id": 456}) == [2]
        assert reached({"user_id": 3}) == [3]
        assert reached({"user_ids": [1, 2]}) == [1, 2]
        assert reached({"user_ids": []}) == []
        assert reached({"except_user_id": 2}) == [1, 3]
        assert reached({"user_ids": [1, 2], "except_user_id": 2}) == [1]


def test_broadcast_to_more_users_than_a_line_may_name_sends_several_lines(server: Server, php: Php) -> None:
    with server.agent(1) as first, server.agent(25_000) as last:
        assert php.broadcast("note", {}, list(range(1, 25_001)), "everybody-today") is True
        assert php.broadcast("note", {}, list(range(1, 25_001)), "everybody-today") is True
        for browser in (first, last):
            assert [event["event"] for event in events(browser)] == ["note"]


def test_disconnect_user_with_and_without_ban_sends_the_close_code(server: Server, helper: Php) -> None:
    browser = server.agent(5)
    assert helper.disconnectUser(5, "logged out") is True
    assert browser.expect_close() == (4000, "logged out")
    browser = server.agent(5)
    assert helper.disconnectUser(5, "Zugriff entzogen", True) is True
    assert browser.expect_close() == (4903, "Zugriff entzogen")


def test_unsubscribe_user_called_ends_the_subscription(server: Server, helper: Php) -> None:
    with server.agent(5, 456) as browser:
        assert helper.unsubscribeUser(5, 456) is True
        assert helper.notifyNewMessage(456, MESSAGE) is True
        assert "new_message" not in [event["event"] for event in browser.settle()]


def test_online_agents_called_returns_their_ids(server: Server, helper: Php) -> None:
    until(lambda: helper.onlineAgents() == [], "the others to have left")
    with server.agent(7), server.agent(5), server.agent("maria"):
        assert helper.onlineAgents() == [5, 7, "maria"]


def test_ids_as_strings_are_accepted_by_the_client(server: Server, php: Php) -> None:
    with server.agent("maria", "c-1") as browser:
        assert php.notifyNewMessage("c-1", {"id": "m-1"}) is True
        assert next_event(browser, "new_message") == '{"conversation_id":"c-1","message":{"id":"m-1"}}'
        assert php.notifyUser("maria", "hello", {}) is True
        assert next_event(browser, "hello") == "{}"


# --- JSON encoding


def test_empty_array_where_the_protocol_requires_an_object_becomes_an_object(server: Server, php: Php) -> None:
    with server.agent(1, 456) as browser:
        assert php.notifyNewMessage(456, []) is True
        assert next_event(browser, "new_message") == '{"conversation_id":456,"message":{}}'
        assert php.notifyConversationUpdated(456, []) is True
        assert next_event(browser, "conversation_updated") == '{"conversation_id":456,"conversation":{}}'
        assert php.notifyNewConversation([]) is True
        assert next_event(browser, "new_conversation") == '{"conversation":{}}'
        assert php.notifyUser(1, "note", ["a", "b"]) is True
        assert next_event(browser, "note") == '{"0":"a","1":"b"}'


@pytest.mark.parametrize("precision", ["-1", "14", "17"])
def test_float_with_any_serialize_precision_keeps_its_value(server: Server, precision: str) -> None:
    address = f"127.0.0.1:{server.push_port}"
    with Php(address=address, ini=(f"serialize_precision={precision}",)) as php, server.agent(1) as browser:
        assert php.notifyUser(1, "note", {"a": 0.1, "b": 12345678.12345678, "c": 2.0, "d": 1e22}) is True
        assert next_event(browser, "note") == '{"a":0.1,"b":12345678.12345678,"c":2.0,"d":1.0e+22}'


def test_text_with_special_characters_arrives_unchanged(server: Server, php: Php) -> None:
    text = 'a"b\\c/d\n\r\t\x00\x1f é 漢字 😀 \u2028\u2029 </script> &'
    with server.agent(1) as browser:
        assert php.notifyUser(1, "note", {"text": text, "ключ": "значение"}) is True
        assert browser.expect("note")["data"] == {"text": text, "ключ": "значение"}


def test_invalid_utf8_in_a_message_is_replaced(server: Server, php: Php) -> None:
    with server.agent(1, 456) as browser:
        message = {"id": 1, "content": {"$base64": "Y2Fm6SEK7aCA"}}  # "café!" in Latin-1, half a surrogate pair
        assert php.notifyNewMessage(456, message) is True
        content = browser.expect("new_message")["data"]["message"]["content"]
        assert content.startswith("caf\ufffd!\n\ufffd")


def test_data_that_json_cannot_encode_is_rejected_and_logged(server: Server, php: Php) -> None:
    with server.agent(1) as browser:
        assert php.notifyUser(1, "note", {"price": {"$float": "NAN"}}) is False
        assert php.log == ["chatws: note not sent: Inf and NaN cannot be JSON encoded"]
        assert php.lastError() == "note not sent: Inf and NaN cannot be JSON encoded"
        assert php.notifyUser(1, "note", {}) is True
        assert php.lastError() is None
        assert [event["event"] for event in events(browser)] == ["note"]


# --- Size


def test_large_message_arrives_complete(server: Server, php: Php) -> None:
    content = "ß漢😀\n" * 70_000  # 840 KB
    with server.agent(1, 456) as browser:
        assert php.notifyNewMessage(456, {"content": content}) is True
        assert browser.expect("new_message")["data"]["message"]["content"] == content


def test_line_longer_than_max_line_size_is_not_sent(server: Server, php: Php) -> None:
    with server.agent(1, 456) as browser:
        assert php.notifyNewMessage(456, {"content": "x" * 1_048_576}) is False
        assert len(php.log) == 1
        assert "new_message not sent: its line has 1048" in php.log[0]
        assert php.notifyNewMessage(456, {"content": "y"}) is True
        assert browser.expect("new_message")["data"]["message"]["content"] == "y"


def test_line_too_long_for_the_server_does_not_affect_the_other_lines(chatws_server: Callable[..., Server]) -> None:
    server = chatws_server("--max-line-size", "1000")
    calls = [{"method": "notifyUser", "arguments": [1, "note", {"text": text}]} for text in ("a", "b" * 2000, "c", "d")]
    with Php(address=f"127.0.0.1:{server.push_port}") as php, server.agent(1) as browser:
        assert php.batch(calls) is False
        assert php.log == ["chatws: note was rejected: line_too_long: the line exceeds 1000 bytes"]
        texts = [event["data"]["text"] for event in events(browser)]
        assert texts == ["a", "c", "d"]
        assert php.notifyUser(1, "note", {"text": "e"}) is True


# --- Acknowledgements, keys, batches


def test_call_that_returned_true_has_sent_the_event_to_every_connection(server: Server, php: Php) -> None:
    with server.agent(1, 456) as browser:
        for number in range(20):
            assert php.notifyNewMessage(456, {"id": number}) is True
            assert events(browser)[-1]["data"]["message"]["id"] == number


def test_notification_with_a_repeated_key_is_delivered_once(server: Server, php: Php) -> None:
    long_key = "https://shop.example/orders/77?" + "x" * 200
    with server.agent(1) as browser:
        for key in ("order-77-paid", long_key, "Grüße"):
            for _ in range(2):
                assert php.notifyUser(1, "paid", {"key": key}, key) is True
        keys = [event["data"]["key"] for event in events(browser)]
        assert keys == ["order-77-paid", long_key, "Grüße"]


def test_equal_notifications_without_a_key_are_both_delivered(server: Server, php: Php) -> None:
    with server.agent(1, 456) as browser:
        assert php.notifyNewMessage(456, MESSAGE) is True
        assert php.notifyNewMessage(456, MESSAGE) is True
        assert len(events(browser)) == 2


def test_rejected_line_returns_false_and_keeps_the_connection(server: Server, php: Php) -> None:
    with server.agent(1) as browser:
        assert php.publish("never_heard_of", {}) is False
        assert php.log == [
            "chatws: never_heard_of was rejected: "
            "no_audience: never_heard_of has no default audience: name one with `to`"
        ]
        assert php.notifyUser(1, "authenticated", {}) is False
        assert "reserved_event" in php.log[0]
        assert php.notifyUser(1, "no spaces", {}) is False
        assert php.broadcast("note", {}, [1.5]) is False
        assert php.broadcast("note", {}, {"nobody": 1}) is False
        assert php.broadcast("note", {}, {"except_user_id": 1.5}) is False
        assert php.notifyUser(1, "note", {}) is True
        assert [event["event"] for event in events(browser)] == ["note"]


def test_batch_of_3000_notifications_arrives_in_order(server: Server, php: Php) -> None:
    calls = [{"method": "notifyNewMessage", "arguments": [456, {"id": number}]} for number in range(3000)]
    with server.agent(1, 456) as browser:
        assert php.batch(calls) is True
        numbers = [event["data"]["message"]["id"] for event in events(browser)]
        assert numbers == list(range(3000))
        assert php.batch([]) is True


def test_batch_with_an_invalid_line_sends_the_others(server: Server, php: Php) -> None:
    bad = {"method": "notifyUser", "arguments": [1, "note", {"x": {"$float": "INF"}}]}
    refused = {"method": "publish", "arguments": ["unheard_of", []]}
    good = {"method": "notifyUser", "arguments": [1, "note", []]}
    with server.agent(1) as browser:
        assert php.batch([good, bad, good]) is False
        assert php.lastError() == "note not sent: Inf and NaN cannot be JSON encoded"
        assert php.batch([good, refused, good]) is False
        assert php.batch([good, good]) is True
        assert php.lastError() is None
        assert [event["event"] for event in events(browser)] == ["note"] * 6


def test_transient_event_published_has_no_id(server: Server, php: Php) -> None:
    with server.agent(1) as browser:
        assert php.publish("cursor", {}, {"user_id": 1}, None, None, True) is True
        assert "id" not in browser.expect("cursor")


def test_calls_of_a_process_share_one_connection() -> None:
    with FakePushApi() as port, Php(address=port.address) as php:
        for _ in range(5):
            assert php.notifyAgentStatus(5, "away") is True
        assert php.ping() is True
        assert port.connections == 1


# --- Tokens


def test_token_signed_is_the_jwt_of_the_protocol() -> None:
    secret = "s3cret-of-32-bytes-or-more-for-sure!"
    with Php(helper=True, environment={"CHATWS_SECRET": secret, "CHATWS_TOKEN_AUDIENCE": "chat"}) as php:
        token = php.token(123)
        assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
        claims = jwt.decode(token, secret, algorithms=["HS256"], audience="chat")
        assert abs(claims["iat"] - time.time()) < 60
        assert claims == {"sub": "123", "iat": claims["iat"], "exp": claims["iat"] + 300, "aud": "chat"}
        claims = jwt.decode(php.token(123, 60, [4, 5]), secret, algorithms=["HS256"], audience="chat")
        assert claims["exp"] - claims["iat"] == 60
        assert claims["conversations"] == [4, 5]
        assert jwt.decode(php.token(1, 9, []), secret, algorithms=["HS256"], audience="chat")["conversations"] == []


def test_token_secret_in_a_file_signs_with_the_first_file(tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text("the-new-one-of-32-bytes-or-more-still\n")
    with Php(environment={"CHATWS_SECRET_FILES": f"{new},{tmp_path / 'old'}"}) as php:
        assert jwt.decode(php.token(1), new.read_text().strip(), algorithms=["HS256"])["sub"] == "1"


def test_token_without_a_secret_returns_false() -> None:
    with Php() as php:
        assert php.token(1) is False
        assert "no secret" in php.log[0]
