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
from tests.test_auth_ticket import forge, segment

__all__ = ["besieged", "unharmed"]


def claims(**more: Any) -> dict[str, Any]:
    return {"sub": "5", "exp": time.time() + 60, **more}


def ticket(**more: Any) -> str:
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
def test_a_ticket_that_is_not_plainly_signed_with_hs256_is_refused(header: Any, besieged: Server) -> None:
    unsigned = b".".join([segment(json.dumps(header).encode()), segment(json.dumps(claims()).encode()), b""]).decode()
    for token in (unsigned, forge(claims(), header, SECRET.encode())):
        refused(besieged, token)


def refused(server: Server, token: str, **more: Any) -> None:
    """Nothing of what follows the ticket is done."""
    with Raw(server.port) as page:
        page.upgrade().say(
            {"type": "auth", "token": token, **more},
            {"type": "subscribe", "conversation_id": 1},
            {"type": "presence"},
        )
        assert page.error() == "auth_failed"
        code, reason = page.closed_with()
        assert code == 4901
        assert "ticket" in reason or "user_id" in reason


@pytest.mark.parametrize(
    "make",
    [
        lambda: ticket(exp=time.time() - 10),
        lambda: ticket(exp=None),
        lambda: ticket(nbf=time.time() + 600),
        lambda: jwt.encode({"sub": "5"}, SECRET),
        lambda: jwt.encode(claims(), "another-secret-of-thirty-two-bytes-"),
        lambda: forge(claims(), secret=b""),
        lambda: ticket()[:-2],
        lambda: ticket() + "=",
        lambda: ticket().rpartition(".")[0] + ".",
        lambda: forge(claims(sub=5), secret=SECRET.encode()),
        lambda: ticket(sub=""),
        lambda: forge([], secret=SECRET.encode()),
        lambda: ticket(conversations="all"),
        lambda: ticket(padding="x" * 20_000),
        lambda: "",
        lambda: "a.b.c",
        lambda: "ey" * 100,
    ],
    ids=range(17),
)
def test_a_bad_ticket_is_refused_and_not_taken_for_no_ticket(make: Callable[[], str], besieged: Server) -> None:
    refused(besieged, make(), user_id=5)


def test_a_ticket_is_good_for_its_own_user_alone(besieged: Server) -> None:
    for user_id in (6, "05", "5 ", 55):
        refused(besieged, ticket(), user_id=user_id)
    with Raw(besieged.port) as page:
        page.upgrade().say({"type": "auth", "user_id": "5", "token": ticket()})
        assert page.expect("authenticated")["user_id"] == 5


def test_a_ticket_for_some_conversations_opens_no_others(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().enter(5, 1, "2", token=ticket(conversations=[1, "2"]))
        for other in (3, "1 ", "01", "one"):
            page.say({"type": "subscribe", "conversation_id": other})
            assert page.error() == "forbidden"


def test_one_who_is_in_cannot_become_somebody_else(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().enter(5, token=ticket())
        page.say({"type": "auth", "user_id": 6}, {"type": "auth", "token": ticket(sub="6")})
        assert page.error() == "already_authenticated"
        assert page.error() == "already_authenticated"
        page.say({"type": "auth", "user_id": 5, "token": ticket()})
        assert page.expect("authenticated")["user_id"] == 5


def test_tickets_and_cookies_are_not_in_the_log(besieged: Server) -> None:
    token = ticket(sub="77")
    with Raw(besieged.port) as page:
        page.upgrade(Cookie="session=hush-hush").enter(77, token=token)
    refused(besieged, token[:-3])
    assert token[:30] not in besieged.log
    assert "hush-hush" not in besieged.log


def test_who_does_not_say_who_it_is_is_sent_away_in_time(besieged: Server) -> None:
    with ExitStack() as stack:
        pages = [stack.enter_context(Raw(besieged.port)).upgrade() for _ in range(20)]
        for page in pages:
            page.say({"type": "subscribe", "conversation_id": 900}, {"type": "presence"}, {"type": "ping"})
            assert page.error() == "unauthenticated"
            assert page.error() == "unauthenticated"
            page.expect("pong")
        assert {page.closed_with()[0] for page in pages} == {4408}


def test_too_many_connections_of_one_user_are_sent_away_and_the_others_stay(besieged: Server) -> None:
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
def test_what_is_no_id_is_refused(raw: str, besieged: Server) -> None:
    with Raw(besieged.port) as page, besieged.backend() as backend:
        page.upgrade().say(f'{{"type":"auth","user_id":{raw}}}')
        assert page.error() == ("auth_failed" if raw == "null" else "bad_message")
        if raw != "null":
            page.enter(1).say(f'{{"type":"subscribe","conversation_id":{raw}}}')
            assert page.error() == "bad_message"
        backend.request({"op": "auth", "secret": PUSH_SECRET})
        backend.send_bytes(f'{{"event":"new_message","data":{{"conversation_id":{raw}}},"ack":true}}\n'.encode())
        assert backend.read_line()["code"] == "bad_message"


def test_ids_that_look_alike_are_the_same_only_when_they_are(besieged: Server) -> None:
    same = [456, "456"]
    # full-width digits among them, which Python's `int` would take
    different = ["0456", "456.0", " 456", "+456", "4_56", "0x1c8", "\uff14\uff15\uff16", "456\0", "True"]
    with ExitStack() as stack:
        pages = {
            one: stack.enter_context(Raw(besieged.port)).upgrade().enter(f"reader of {one!r}"[:60], one)
            for one in [*same, *different]
        }
        backend = stack.enter_context(besieged.backend())
        backend.request({"op": "auth", "secret": PUSH_SECRET})
        for number, conversation in enumerate([456, "456"]):
            assert backend.push("new_message", {"conversation_id": conversation, "number": number})["delivered"] == 2
        for one in same:
            assert [pages[one].expect("new_message")["number"] for _ in range(2)] == [0, 1]
        for one in different:
            assert backend.push("new_message", {"conversation_id": one, "own": one})["delivered"] == 1
            assert pages[one].expect("new_message") == {"conversation_id": one, "own": one}


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
def test_a_message_that_is_none_is_answered_and_nothing_else_happens(text: str, besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().say(text)
        assert page.error() in ("bad_json", "bad_message", "unknown_type")
        assert page.pong()


@pytest.mark.parametrize("position", ["x", ":", "epoch:-1", "epoch:99999999999999999999", "a" * 60_000, ":1", "1:1:1"])
def test_a_position_that_was_never_given_recovers_nothing(position: str, besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().say({"type": "auth", "user_id": 1, "last_event_id": position})
        assert page.expect("authenticated")["recovered"] is False
        assert page.pong()


# --- too much -------------------------------------------------------------------------------------------------------


def test_a_flood_of_messages_is_limited_and_then_ended(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().enter(1)
        for _ in range(40):
            page.send(frame('{"type":"ping"}') * 100)
        seen: dict[str, int] = {}
        while (found := page.next_frame())[0] != 0x88:
            message = json.loads(found[1])
            name = message.get("type") or message["data"].get("code", message["event"])
            seen[name] = seen.get(name, 0) + 1
        assert int.from_bytes(found[1][:2], "big") == 4429
        # about a hundred at once, and twenty more for each second that it took
        assert 99 <= seen["pong"] < 400
        assert seen["rate_limited"] == 100


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


def test_one_may_not_type_where_one_does_not_listen(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        page.upgrade().enter(1).say({"type": "typing", "conversation_id": 900})
        assert page.error() == "not_subscribed"
