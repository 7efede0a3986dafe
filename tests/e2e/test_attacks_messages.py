"""Attacks on a real server by what messages say: whatever it is, a bystander still gets its events."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import jwt
import pytest

from tests.e2e.conftest import Server
from tests.e2e.raw import Raw, frame
from tests.e2e.siege import PUSH_SECRET, SECRET, besieged, unharmed
from tests.test_auth_token import forge, segment

__all__ = ["besieged", "unharmed"]


def claims(**more: Any) -> dict[str, Any]:
    return {"sub": "5", "exp": time.time() + 60, **more}


def make_token(**more: Any) -> str:
    return jwt.encode(claims(**more), SECRET, algorithm="HS256")


# --- who one is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "None"},
        {"alg": "nOnE", "typ": "JWT"},
        {"alg": "HS512"},
        {"alg": "RS256"},
        {"alg": ""},
        {"alg": None},
        {},
        {"alg": "HS256", "crit": ["exp"], "exp": 1},
        {"alg": "HS256", "b64": False, "crit": ["b64"]},
    ],
    ids=str,
)
def test_a_token_that_is_not_plainly_signed_with_hs256_is_refused(header: Any, besieged: Server) -> None:
    unsigned = b".".join([segment(json.dumps(header).encode()), segment(json.dumps(claims()).encode()), b""]).decode()
    for token in (unsigned, forge(claims(), header, SECRET.encode())):
        refused(besieged, token)


def refused(server: Server, token: str, **more: Any) -> None:
    """Nothing of what follows the token is done."""
    with Raw(server.port) as page:
        page.upgrade().say(
            {"type": "auth", "token": token, **more},
            {"type": "subscribe", "conversation_id": 1},
            {"type": "presence"},
        )
        assert page.error() == "auth_failed"
        code, reason = page.closed_with()
        assert code == 4901
        assert "token" in reason or "user_id" in reason


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_token(exp=time.time() - 10),
        lambda: make_token(exp=None),
        lambda: make_token(nbf=time.time() + 600),
        lambda: jwt.encode({"sub": "5"}, SECRET),
        lambda: jwt.encode(claims(), "another-secret-of-thirty-two-bytes-"),
        lambda: forge(claims(), secret=b""),
        lambda: make_token()[:-2],
        lambda: make_token() + "=",
        lambda: make_token().rpartition(".")[0] + ".",
        lambda: forge(claims(sub=5), secret=SECRET.encode()),
        lambda: make_token(sub=""),
        lambda: forge([], secret=SECRET.encode()),
        lambda: make_token(conversations="all"),
        lambda: make_token(padding="x" * 20_000),
        lambda: "",
        lambda: "a.b.c",
        lambda: "ey" * 100,
    ],
    ids=range(17),
)
def test_an_invalid_token_is_rejected_and_not_treated_as_absent(make: Callable[[], str], besieged: Server) -> None:
    refused(besieged, make(), user_id=5)


def test_a_token_authenticates_only_its_own_user(besieged: Server) -> None:
    for user_id in (6, "05", "5 ", 55):
        refused(besieged, make_token(), user_id=user_id)
    with Raw(besieged.port) as page:
        page.upgrade().say({"type": "auth", "user_id": "5", "token": make_token()})
        assert page.expect("authenticated")["user_id"] == 5


def test_a_token_for_some_conversations_opens_no_others(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().enter(5, 1, "2", token=make_token(conversations=[1, "2"]))
        for other in (3, "1 ", "01", "one"):
            page.say({"type": "subscribe", "conversation_id": other})
            assert page.error() == "forbidden"


def test_an_authenticated_connection_cannot_change_its_user(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().enter(5, token=make_token())
        page.say({"type": "auth", "user_id": 6}, {"type": "auth", "token": make_token(sub="6")})
        assert page.error() == "already_authenticated"
        assert page.error() == "already_authenticated"
        page.say({"type": "auth", "user_id": 5, "token": make_token()})
        assert page.expect("authenticated")["user_id"] == 5


def test_tokens_and_cookies_are_not_in_the_log(besieged: Server) -> None:
    token = make_token(sub="77")
    with Raw(besieged.port) as page:
        page.upgrade(Cookie="session=hush-hush").enter(77, token=token)
    refused(besieged, token[:-3])
    assert token[:30] not in besieged.log
    assert "hush-hush" not in besieged.log


def test_a_connection_without_auth_is_closed_at_the_deadline(besieged: Server) -> None:
    with ExitStack() as stack:
        pages = [stack.enter_context(Raw(besieged.port)).upgrade() for _ in range(20)]
        for page in pages:
            page.say({"type": "subscribe", "conversation_id": 900}, {"type": "presence"}, {"type": "ping"})
            assert page.error() == "unauthenticated"
            assert page.error() == "unauthenticated"
            page.expect("pong")
        assert {page.closed_with()[0] for page in pages} == {4408}


def test_connections_beyond_the_limit_of_a_user_are_closed(besieged: Server) -> None:
    with ExitStack() as stack:
        pages = [stack.enter_context(Raw(besieged.port)).upgrade().enter(60) for _ in range(50)]
        for _ in range(5):
            with Raw(besieged.port) as another:
                another.upgrade().say({"type": "auth", "user_id": "60"})
                assert another.closed_with()[0] == 4909
        assert all(page.pong() for page in pages)


# --- ids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        "456.0",
        "4.56e2",
        "true",
        "null",
        "-456",
        "9007199254740992",
        '""',
        '"' + "x" * 129 + '"',
        "[456]",
        "{}",
        "1e999",
    ],
)
def test_an_invalid_id_is_rejected(raw: str, besieged: Server) -> None:
    with Raw(besieged.port) as page, besieged.backend() as backend:
        page.upgrade().say(f'{{"type":"auth","user_id":{raw}}}')
        assert page.error() == ("auth_failed" if raw == "null" else "bad_message")
        if raw != "null":
            page.enter(1).say(f'{{"type":"subscribe","conversation_id":{raw}}}')
            assert page.error() == "bad_message"
        backend.request({"op": "auth", "secret": PUSH_SECRET})
        backend.send_bytes(f'{{"event":"new_message","data":{{"conversation_id":{raw}}},"ack":true}}\n'.encode())
        assert backend.read_line()["code"] == "bad_message"


def test_similar_ids_are_different_ids(besieged: Server) -> None:
    same = [456, "456"]
    # full-width digits among them, which Python's `int` would take
    different = ["0456", "456.0", " 456", "+456", "4_56", "0x1c8", "\uff14\uff15\uff16", "456\0", "True"]
    with ExitStack() as stack:
        pages = {
            conversation_id: stack.enter_context(Raw(besieged.port))
            .upgrade()
            .enter(f"reader of {conversation_id!r}"[:60], conversation_id)
            for conversation_id in [*same, *different]
        }
        backend = stack.enter_context(besieged.backend())
        backend.request({"op": "auth", "secret": PUSH_SECRET})
        for number, conversation in enumerate([456, "456"]):
            assert backend.push("new_message", {"conversation_id": conversation, "number": number})["delivered"] == 2
        for conversation_id in same:
            assert [pages[conversation_id].expect("new_message")["number"] for _ in range(2)] == [0, 1]
        for conversation_id in different:
            data = {"conversation_id": conversation_id, "own": conversation_id}
            assert backend.push("new_message", data)["delivered"] == 1
            assert pages[conversation_id].expect("new_message") == data


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"ping","type":"auth","user_id":[]}',
        '{"type":"auth","user_id":"\\ud800"}',
        '{"type":["auth"]}',
        '{"type":"__class__"}',
        '{"type":"auth","user_id":1,"token":{}}',
        '{"type":"auth","user_id":1,"last_event_id":7}',
        '{"type":"auth","user_id":' + "9" * 60_000 + "}",
        '{"type":"ping","last_activity":"now"}',
        '{"type":"activity","activity_type":null}',
        '{"__proto__":{"type":"auth"}}',
        "\ufeff{}",
        "NaN",
        '""',
        "\0",
        "",
    ],
    ids=range(15),
)
def test_invalid_message_gets_an_error_and_has_no_effect(text: str, besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().say(text)
        assert page.error() in ("bad_json", "bad_message", "unknown_type")
        assert page.pong()


@pytest.mark.parametrize("position", ["x", ":", "epoch:-1", "epoch:99999999999999999999", "a" * 60_000, ":1", "1:1:1"])
def test_an_unknown_position_recovers_nothing(position: str, besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().say({"type": "auth", "user_id": 1, "last_event_id": position})
        assert page.expect("authenticated")["recovered"] is False
        assert page.pong()


# --- too much -------------------------------------------------------------------------------------------------------


def test_a_flood_of_messages_is_limited_and_then_ended(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().enter(1)
        for _ in range(40):
            page.send(frame('{"type":"presence"}') * 100)
        seen: dict[str, int] = {}
        while (result := page.next_frame())[0] != 0x88:
            message = json.loads(result[1])
            name = message["data"].get("code", message["event"])
            seen[name] = seen.get(name, 0) + 1
        assert int.from_bytes(result[1][:2], "big") == 4429
        # about a hundred at once, and twenty more for each second that it took
        assert 99 <= seen["presence"] < 400
        assert 100 <= seen["rate_limited"] < 400


def test_a_flood_of_errors_is_ended_too(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().enter(1)
        page.send(frame("{") * 4_000)
        assert page.closed_with() == (4429, "too many messages")


def test_a_flood_of_subscriptions_is_limited_and_those_before_stay(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().enter(1)
        page.say(*({"type": "subscribe", "conversation_id": f"room {number}"} for number in range(40)))
        for number in range(20):
            page.expect("subscribed", conversation_id=f"room {number}")
        assert [page.error() for _ in range(20)] == ["too_many_subscriptions"] * 20
        page.say({"type": "subscribe", "conversation_id": "room 3"})
        page.expect("subscribed", conversation_id="room 3")
        page.say({"type": "unsubscribe", "conversation_id": "room 4"}, {"type": "subscribe", "conversation_id": "x"})
        page.expect("subscribed", conversation_id="x")


def test_typing_without_a_subscription_is_not_subscribed(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().enter(1).say({"type": "typing", "conversation_id": 900})
        assert page.error() == "not_subscribed"
