"""The PHP helper, by real PHP, against a real server: what each method makes a browser see."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.e2e.conftest import Server, run_server
from tests.e2e.php import FakePushPort, Php
from tests.e2e.wire import Browser, until
from tests.requirements import needs

pytestmark = needs("php-cli")

MESSAGE = {"id": 9, "content": "Olá, já chegou?", "sender_type": "contact", "sender_id": 7, "created_at": "2026-05-01"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all: each test has browsers and conversations of its own, and looks away from who comes and goes."""
    with run_server(tmp_path_factory.mktemp("chatws"), "--presence-grace", "0") as one:
        yield one


@pytest.fixture
def php(server: Server) -> Iterator[Php]:
    with Php(address=f"127.0.0.1:{server.push_port}") as one:
        yield one


@pytest.fixture
def helper(server: Server) -> Iterator[Php]:
    """App\\Helpers\\WebSocket, set up by the environment alone."""
    with Php(helper=True, environment={"CHATWS_PUSH_ADDRESS": f"127.0.0.1:{server.push_port}"}) as one:
        yield one


def events(browser: Browser) -> list[dict[str, Any]]:
    """What has come by now, except who came and went."""
    return [one for one in browser.settle() if one["event"] != "agent_status"]


def next_event(browser: Browser, name: str) -> str:
    """The data of the next event `name`, as it came: to the byte."""
    browser.expect(name)
    text = browser.texts[-1]
    start = f'{{"event":"{name}","data":'
    assert text.startswith(start)
    data, _, _ = text.removeprefix(start).rpartition(',"id":"')
    return data or text.removeprefix(start)[:-1]


# --- every method


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
def test_each_method_of_the_old_helper_makes_its_documented_event(
    server: Server, helper: Php, method: str, arguments: list[Any], event: str, data: Any
) -> None:
    with server.agent(1, 456) as browser:
        assert getattr(helper, method)(*arguments) is True
        assert helper.log == []
        assert next_event(browser, event) == json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        assert events(browser) == [], "it came once"


def test_conversation_events_go_to_its_subscribers_alone(server: Server, helper: Php) -> None:
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


def test_typing_does_not_come_back_to_who_types(server: Server, helper: Php) -> None:
    with server.agent(7, 456) as typist:
        assert helper.notifyTyping(456, 7, True) is True
        assert events(typist) == []


def test_a_broadcast_reaches_its_targets_and_nobody_else(server: Server, php: Php) -> None:
    with server.agent(1) as one, server.agent(2, 456) as two, server.agent(3) as three:
        browsers = (one, two, three)

        def reached(targets: Any) -> list[int]:
            assert php.broadcast("note", {}, targets) is True
            return [at for at, browser in enumerate(browsers, 1) if events(browser)]

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


def test_more_users_than_a_line_may_name_are_told_by_several_lines(server: Server, php: Php) -> None:
    with server.agent(1) as first, server.agent(25_000) as last:
        assert php.broadcast("note", {}, list(range(1, 25_001)), "everybody-today") is True
        assert php.broadcast("note", {}, list(range(1, 25_001)), "everybody-today") is True
        for browser in (first, last):
            assert [one["event"] for one in events(browser)] == ["note"]


def test_a_user_is_disconnected_and_may_come_back_unless_banned(server: Server, helper: Php) -> None:
    browser = server.agent(5)
    assert helper.disconnectUser(5, "logged out") is True
    assert browser.expect_close() == (4000, "logged out")
    browser = server.agent(5)
    assert helper.disconnectUser(5, "Zugriff entzogen", True) is True
    assert browser.expect_close() == (4903, "Zugriff entzogen")


def test_a_conversation_is_taken_away_from_a_user(server: Server, helper: Php) -> None:
    with server.agent(5, 456) as browser:
        assert helper.unsubscribeUser(5, 456) is True
        assert helper.notifyNewMessage(456, MESSAGE) is True
        assert "new_message" not in [one["event"] for one in browser.settle()]


def test_who_is_online_is_told(server: Server, helper: Php) -> None:
    until(lambda: helper.onlineAgents() == [], "the others to have left")
    with server.agent(7), server.agent(5), server.agent("maria"):
        assert helper.onlineAgents() == [5, 7, "maria"]


def test_ids_may_be_strings_for_who_uses_the_client(server: Server, php: Php) -> None:
    with server.agent("maria", "c-1") as browser:
        assert php.notifyNewMessage("c-1", {"id": "m-1"}) is True
        assert next_event(browser, "new_message") == '{"conversation_id":"c-1","message":{"id":"m-1"}}'
        assert php.notifyUser("maria", "hello", {}) is True
        assert next_event(browser, "hello") == "{}"


# --- what JSON makes of PHP


def test_empty_arrays_are_objects_where_the_protocol_wants_one(server: Server, php: Php) -> None:
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
def test_floats_keep_their_value_whatever_php_ini_says(server: Server, precision: str) -> None:
    address = f"127.0.0.1:{server.push_port}"
    with Php(address=address, ini=(f"serialize_precision={precision}",)) as php, server.agent(1) as browser:
        assert php.notifyUser(1, "note", {"a": 0.1, "b": 12345678.12345678, "c": 2.0, "d": 1e22}) is True
        assert next_event(browser, "note") == '{"a":0.1,"b":12345678.12345678,"c":2.0,"d":1.0e+22}'


def test_text_of_every_kind_arrives_as_it_was(server: Server, php: Php) -> None:
    text = 'a"b\\c/d\n\r\t\x00\x1f é 漢字 😀 \u2028\u2029 </script> &'
    with server.agent(1) as browser:
        assert php.notifyUser(1, "note", {"text": text, "ключ": "значение"}) is True
        assert browser.expect("note")["data"] == {"text": text, "ключ": "значение"}


def test_bytes_that_are_no_utf_8_cost_themselves_and_not_the_message(server: Server, php: Php) -> None:
    with server.agent(1, 456) as browser:
        message = {"id": 1, "content": {"$base64": "Y2Fm6SEK7aCA"}}  # "café!" in Latin-1, half a surrogate pair
        assert php.notifyNewMessage(456, message) is True
        content = browser.expect("new_message")["data"]["message"]["content"]
        assert content.startswith("caf\ufffd!\n\ufffd")


def test_what_json_cannot_say_is_refused_and_logged(server: Server, php: Php) -> None:
    with server.agent(1) as browser:
        assert php.notifyUser(1, "note", {"price": {"$float": "NAN"}}) is False
        assert php.log == ["chatws: note not sent: Inf and NaN cannot be JSON encoded"]
        assert php.lastError() == "note not sent: Inf and NaN cannot be JSON encoded"
        assert php.notifyUser(1, "note", {}) is True
        assert php.lastError() is None
        assert [one["event"] for one in events(browser)] == ["note"]


# --- size


def test_a_big_message_arrives_whole(server: Server, php: Php) -> None:
    content = "ß漢😀\n" * 70_000  # 840 KB
    with server.agent(1, 456) as browser:
        assert php.notifyNewMessage(456, {"content": content}) is True
        assert browser.expect("new_message")["data"]["message"]["content"] == content


def test_an_over_long_line_is_not_even_sent(server: Server, php: Php) -> None:
    with server.agent(1, 456) as browser:
        assert php.notifyNewMessage(456, {"content": "x" * 1_048_576}) is False
        assert len(php.log) == 1
        assert "new_message not sent: its line has 1048" in php.log[0]
        assert php.notifyNewMessage(456, {"content": "y"}) is True
        assert browser.expect("new_message")["data"]["message"]["content"] == "y"


def test_a_line_too_long_for_the_server_does_not_cost_its_neighbours(chatws_server: Callable[..., Server]) -> None:
    server = chatws_server("--max-line-size", "1000")
    calls = [{"method": "notifyUser", "arguments": [1, "note", {"text": text}]} for text in ("a", "b" * 2000, "c", "d")]
    with Php(address=f"127.0.0.1:{server.push_port}") as php, server.agent(1) as browser:
        assert php.batch(calls) is False
        assert php.log == ["chatws: note was refused: line_too_long: a line may have 1000 bytes"]
        texts = [one["data"]["text"] for one in events(browser)]
        assert texts == ["a", "c", "d"]
        assert php.notifyUser(1, "note", {"text": "e"}) is True


# --- acknowledgements, keys, batches


def test_true_means_that_the_event_is_on_its_way_to_every_browser(server: Server, php: Php) -> None:
    with server.agent(1, 456) as browser:
        for number in range(20):
            assert php.notifyNewMessage(456, {"id": number}) is True
            assert events(browser)[-1]["data"]["message"]["id"] == number


def test_a_key_is_sent_once(server: Server, php: Php) -> None:
    long_key = "https://shop.example/orders/77?" + "x" * 200
    with server.agent(1) as browser:
        for key in ("order-77-paid", long_key, "Grüße"):
            for _ in range(2):
                assert php.notifyUser(1, "paid", {"key": key}, key) is True
        keys = [one["data"]["key"] for one in events(browser)]
        assert keys == ["order-77-paid", long_key, "Grüße"]


def test_equal_notifications_without_a_key_are_two(server: Server, php: Php) -> None:
    with server.agent(1, 456) as browser:
        assert php.notifyNewMessage(456, MESSAGE) is True
        assert php.notifyNewMessage(456, MESSAGE) is True
        assert len(events(browser)) == 2


def test_a_refusal_is_false_and_logged_and_the_connection_goes_on(server: Server, php: Php) -> None:
    with server.agent(1) as browser:
        assert php.publish("never_heard_of", {}) is False
        assert php.log == [
            "chatws: never_heard_of was refused: "
            "no_audience: never_heard_of has no default audience: say who gets it with `to`"
        ]
        assert php.notifyUser(1, "authenticated", {}) is False
        assert "reserved_event" in php.log[0]
        assert php.notifyUser(1, "no spaces", {}) is False
        assert php.broadcast("note", {}, [1.5]) is False
        assert php.broadcast("note", {}, {"nobody": 1}) is False
        assert php.broadcast("note", {}, {"except_user_id": 1.5}) is False
        assert php.notifyUser(1, "note", {}) is True
        assert [one["event"] for one in events(browser)] == ["note"]


def test_a_batch_goes_out_in_one_go_and_in_order(server: Server, php: Php) -> None:
    calls = [{"method": "notifyNewMessage", "arguments": [456, {"id": number}]} for number in range(3000)]
    with server.agent(1, 456) as browser:
        assert php.batch(calls) is True
        found = [one["data"]["message"]["id"] for one in events(browser)]
        assert found == list(range(3000))
        assert php.batch([]) is True


def test_a_batch_with_one_bad_line_sends_the_others(server: Server, php: Php) -> None:
    bad = {"method": "notifyUser", "arguments": [1, "note", {"x": {"$float": "INF"}}]}
    refused = {"method": "publish", "arguments": ["unheard_of", []]}
    good = {"method": "notifyUser", "arguments": [1, "note", []]}
    with server.agent(1) as browser:
        assert php.batch([good, bad, good]) is False
        assert php.lastError() == "note not sent: Inf and NaN cannot be JSON encoded"
        assert php.batch([good, refused, good]) is False
        assert php.batch([good, good]) is True
        assert php.lastError() is None
        assert [one["event"] for one in events(browser)] == ["note"] * 6


def test_a_transient_event_is_not_kept(server: Server, php: Php) -> None:
    with server.agent(1) as browser:
        assert php.publish("cursor", {}, {"user_id": 1}, None, None, True) is True
        assert "id" not in browser.expect("cursor")


def test_all_calls_of_a_process_share_one_connection() -> None:
    with FakePushPort() as port, Php(address=port.address) as php:
        for _ in range(5):
            assert php.notifyAgentStatus(5, "away") is True
        assert php.ping() is True
        assert port.connections == 1


# --- tickets


def test_a_ticket_is_a_jwt_as_the_protocol_says() -> None:
    secret = "s3cret-of-32-bytes-or-more-for-sure!"
    with Php(helper=True, environment={"CHATWS_SECRET": secret, "CHATWS_TICKET_AUDIENCE": "chat"}) as php:
        token = php.ticket(123)
        assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
        claims = jwt.decode(token, secret, algorithms=["HS256"], audience="chat")
        assert abs(claims["iat"] - time.time()) < 60
        assert claims == {"sub": "123", "iat": claims["iat"], "exp": claims["iat"] + 300, "aud": "chat"}
        claims = jwt.decode(php.ticket(123, 60, [4, 5]), secret, algorithms=["HS256"], audience="chat")
        assert claims["exp"] - claims["iat"] == 60
        assert claims["conversations"] == [4, 5]
        assert jwt.decode(php.ticket(1, 9, []), secret, algorithms=["HS256"], audience="chat")["conversations"] == []


def test_the_secret_that_signs_may_stand_in_a_file(tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text("the-new-one-of-32-bytes-or-more-still\n")
    with Php(environment={"CHATWS_SECRET_FILE": f"{new},{tmp_path / 'old'}"}) as php:
        assert jwt.decode(php.ticket(1), new.read_text().strip(), algorithms=["HS256"])["sub"] == "1"


def test_without_a_secret_there_is_no_ticket() -> None:
    with Php() as php:
        assert php.ticket(1) is False
        assert "no secret" in php.log[0]
