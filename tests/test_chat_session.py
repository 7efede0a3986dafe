"""What a client may do, without a reactor and without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chatws.chat.contracts import Identity
from chatws.chat.effects import (
    Authenticate,
    Check,
    Close,
    Effect,
    Enter,
    Join,
    Leave,
    ListPresence,
    Record,
    Reply,
    Tell,
)
from chatws.chat.messages import PONG
from chatws.chat.session import Session, SessionLimits, State
from chatws.errors import AuthenticationFailed, ClientError, ErrorCode, Unavailable

ANA = Identity(5, "trust")


def say(session: Session, message: Any, now: float = 0.0) -> list[Effect]:
    return session.receive(json.dumps(message), now)


def make(**limits: Any) -> Session:
    return Session(SessionLimits(**limits), 0.0)


def entered(**limits: Any) -> Session:
    session = make(**limits)
    [asked] = say(session, {"type": "auth", "user_id": 5})
    assert isinstance(asked, Authenticate)
    assert session.auth_decided(asked.message, ANA) == [Enter(ANA, None, False)]
    return session


def subscribed(conversation_id: Any = 456, **limits: Any) -> Session:
    session = entered(**limits)
    [check] = say(session, {"type": "subscribe", "conversation_id": conversation_id})
    assert isinstance(check, Check)
    assert session.check_decided(check, True) == [Join(conversation_id, None)]
    return session


def codes(effects: list[Effect]) -> list[str]:
    """The error codes among the replies."""
    decoded = [json.loads(effect.payload) for effect in effects if isinstance(effect, Reply)]
    return [one["data"]["code"] for one in decoded if one.get("event") == "error"]


@pytest.mark.parametrize("kind", ["subscribe", "unsubscribe", "typing", "presence"])
def test_everything_but_auth_ping_and_activity_wants_auth_first(kind: str) -> None:
    assert codes(say(make(), {"type": kind, "conversation_id": 1})) == ["unauthenticated"]


def test_ping_is_answered_in_every_state_and_recorded_once_the_user_is_known() -> None:
    session = make()
    assert say(session, {"type": "ping"}) == [Reply(PONG)]
    say(session, {"type": "auth", "user_id": 5})
    assert session.state is State.DECIDING
    assert say(session, {"type": "ping"}) == [Reply(PONG)]
    pong, record = say(entered(), {"type": "ping", "last_activity": 1700000000000})
    assert pong == Reply(PONG)
    assert isinstance(record, Record)
    assert record.user_id == 5


def test_activity_is_recorded_and_never_answered() -> None:
    assert say(make(), {"type": "activity", "activity_type": "visibility_change"}) == []
    [record] = say(entered(), {"type": "activity", "activity_type": "visibility_change"})
    assert isinstance(record, Record)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "bad_json"),
        ("", "bad_json"),
        ('{"type":"ping"} x', "bad_json"),
        ('{"a":' * 20000, "bad_json"),
        ("[]", "bad_message"),
        ("17", "bad_message"),
        ("{}", "bad_message"),
        ('{"type":5}', "bad_message"),
        ('{"type":"shout"}', "unknown_type"),
        ('{"type":"auth","user_id":1.0}', "bad_message"),
        ('{"type":"auth","user_id":true}', "bad_message"),
        ('{"type":"auth","user_id":""}', "bad_message"),
        ('{"type":"auth","user_id":-1}', "bad_message"),
        ('{"type":"auth","user_id":9007199254740992}', "bad_message"),
        ('{"type":"auth","user_id":[1]}', "bad_message"),
        ('{"type":"subscribe"}', "bad_message"),
        ('{"type":"subscribe","conversation_id":null}', "bad_message"),
        ('{"type":"typing","conversation_id":1,"is_typing":"yes"}', "bad_message"),
        ('{"type":"ping","last_activity":"now"}', "bad_message"),
    ],
)
def test_a_bad_message_gets_its_code_and_the_session_goes_on(text: str, code: str) -> None:
    session = make()
    assert codes(session.receive(text, 0.0)) == [code]
    assert say(session, {"type": "ping"}) == [Reply(PONG)]


def test_an_error_names_the_field_and_the_request() -> None:
    [reply] = say(make(), {"type": "subscribe", "conversation_id": True})
    assert isinstance(reply, Reply)
    data = json.loads(reply.payload)["data"]
    assert "conversation_id" in data["message"]
    assert data["request"]["type"] == "subscribe"


def test_digits_in_a_string_are_the_integer_they_spell() -> None:
    session = subscribed()
    [left] = say(session, {"type": "unsubscribe", "conversation_id": "456"})
    assert left == Leave(456)
    [left] = say(session, {"type": "unsubscribe", "conversation_id": "0456"})
    assert left == Leave("0456")


def test_what_comes_behind_an_undecided_auth_is_held_in_order() -> None:
    session = make()
    [asked] = say(session, {"type": "auth", "user_id": 5, "last_event_id": "e:1"})
    assert isinstance(asked, Authenticate)
    for message in (
        {"type": "subscribe", "conversation_id": 1},
        {"type": "typing", "conversation_id": 1},
        {"type": "presence"},
    ):
        assert say(session, message) == []
    enter, check = session.auth_decided(asked.message, ANA)
    assert enter == Enter(ANA, "e:1", False)
    assert isinstance(check, Check)
    join, typing = session.check_decided(check, True)
    assert join == Join(1, None)
    assert isinstance(typing, Check)
    assert session.check_decided(typing, True) == [Tell(1, 5, True), ListPresence()]


def test_subscribes_are_looked_up_side_by_side_but_a_typing_behind_them_waits() -> None:
    session = entered()
    [one] = say(session, {"type": "subscribe", "conversation_id": 1})
    [two] = say(session, {"type": "subscribe", "conversation_id": 2})
    assert say(session, {"type": "typing", "conversation_id": 1}) == []
    assert isinstance(one, Check)
    assert isinstance(two, Check)
    assert session.check_decided(two, True) == [Join(2, None)]
    join, typing = session.check_decided(one, True)
    assert join == Join(1, None)
    assert isinstance(typing, Check)


def test_a_failed_auth_is_told_and_closes() -> None:
    session = make()
    [asked] = say(session, {"type": "auth", "user_id": 5})
    assert isinstance(asked, Authenticate)
    effects = session.auth_decided(asked.message, AuthenticationFailed("no such user"))
    assert codes(effects) == ["auth_failed"]
    assert effects[-1] == Close(4901, "no such user")  # type: ignore[arg-type]
    assert say(session, {"type": "ping"}) == []


def test_an_auth_that_nobody_could_decide_is_closed_to_be_tried_later() -> None:
    session = make()
    [asked] = say(session, {"type": "auth", "user_id": 5})
    assert isinstance(asked, Authenticate)
    effects = session.auth_decided(asked.message, Unavailable("database"))
    assert codes(effects) == ["unavailable"]
    assert isinstance(effects[-1], Close)
    assert effects[-1].code == 4503


def test_a_bad_auth_message_leaves_the_connection_open_for_a_better_one() -> None:
    session = make()
    [asked] = say(session, {"type": "auth"})
    assert isinstance(asked, Authenticate)
    assert codes(session.auth_decided(asked.message, ClientError(ErrorCode.BAD_MESSAGE, "user_id"))) == ["bad_message"]
    assert session.state is State.NEW
    assert isinstance(say(session, {"type": "auth", "user_id": 5})[0], Authenticate)


def test_a_connection_belongs_to_one_user_but_may_show_fresh_credentials() -> None:
    session = entered()
    assert codes(say(session, {"type": "auth", "user_id": 6})) == ["already_authenticated"]
    [asked] = say(session, {"type": "auth", "user_id": 5})
    assert isinstance(asked, Authenticate)
    assert session.auth_decided(asked.message, ANA) == [Enter(ANA, None, True)]
    [asked] = say(session, {"type": "auth", "token": "another's"})
    assert isinstance(asked, Authenticate)
    assert codes(session.auth_decided(asked.message, Identity(6, "ticket"))) == ["already_authenticated"]
    assert session.identity == ANA


def test_fresh_credentials_for_fewer_conversations_end_the_other_subscriptions() -> None:
    session = subscribed(456)
    for conversation_id in (7, "x"):
        [check] = say(session, {"type": "subscribe", "conversation_id": conversation_id})
        assert isinstance(check, Check)
        session.check_decided(check, True)
    [asked] = say(session, {"type": "auth", "token": "narrower"})
    assert isinstance(asked, Authenticate)
    say(session, {"type": "typing", "conversation_id": 456})  # held
    narrower = Identity(5, "ticket", conversations=frozenset({7, 8}))
    *effects, refusal = session.auth_decided(asked.message, narrower)
    assert effects == [Enter(narrower, None, True), Leave(456), Leave("x")]
    assert codes([refusal]) == ["forbidden"]
    assert session.conversations == {7}
    assert codes(say(session, {"type": "typing", "conversation_id": 8})) == ["not_subscribed"]
    [asked] = say(session, {"type": "auth", "token": "one for all"})
    assert isinstance(asked, Authenticate)
    assert session.auth_decided(asked.message, ANA) == [Enter(ANA, None, True)]


def test_what_may_not_be_read_is_forbidden_and_what_cannot_be_asked_is_unavailable() -> None:
    session = entered()
    [check] = say(session, {"type": "subscribe", "conversation_id": 1})
    assert isinstance(check, Check)
    assert codes(session.check_decided(check, False)) == ["forbidden"]
    [check] = say(session, {"type": "subscribe", "conversation_id": 1})
    assert isinstance(check, Check)
    assert codes(session.check_decided(check, Unavailable("database"))) == ["unavailable"]
    assert session.conversations == set()


def test_a_right_that_has_gone_since_ends_the_subscription_at_the_next_typing() -> None:
    session = subscribed()
    [check] = say(session, {"type": "typing", "conversation_id": 456})
    assert isinstance(check, Check)
    refusal, leave = session.check_decided(check, False)
    assert codes([refusal]) == ["forbidden"]
    assert leave == Leave(456)


def test_typing_where_one_is_not_subscribed_is_refused() -> None:
    assert codes(say(entered(), {"type": "typing", "conversation_id": 1})) == ["not_subscribed"]


def test_revoking_takes_the_conversation_away_and_stops_a_look_up_in_flight() -> None:
    session = subscribed()
    assert session.revoke(456) == [Leave(456)]
    [check] = say(session, {"type": "subscribe", "conversation_id": 7})
    assert isinstance(check, Check)
    assert codes(session.revoke(7)) == ["forbidden"]
    assert session.check_decided(check, True) == []
    assert session.conversations == set()


def test_too_many_subscriptions_count_those_being_looked_up_but_not_a_repeated_one() -> None:
    session = subscribed(1, max_subscriptions=2)
    [check] = say(session, {"type": "subscribe", "conversation_id": 2})
    assert codes(say(session, {"type": "subscribe", "conversation_id": 3})) == ["too_many_subscriptions"]
    assert isinstance(check, Check)
    session.check_decided(check, True)
    [check] = say(session, {"type": "subscribe", "conversation_id": 2})
    assert isinstance(check, Check)


def test_the_others_are_told_when_somebody_who_was_typing_leaves() -> None:
    for leaving in (lambda one: one.gone(), lambda one: say(one, {"type": "unsubscribe", "conversation_id": 456})):
        session = subscribed()
        [check] = say(session, {"type": "typing", "conversation_id": 456})
        assert isinstance(check, Check)
        assert session.check_decided(check, True) == [Tell(456, 5, True)]
        assert leaving(session)[0] == Tell(456, 5, False)
        assert session.gone() == []


def test_the_burst_is_spent_and_refills_with_time() -> None:
    session = make(rate=2.0, rate_burst=3)
    assert [codes(say(session, {"type": "ping"})) for _ in range(4)] == [[], [], [], ["rate_limited"]]
    assert codes(say(session, {"type": "ping"}, 0.5)) == []
    assert codes(say(session, {"type": "ping"}, 0.5)) == ["rate_limited"]


def test_who_goes_on_after_being_told_is_closed() -> None:
    session = make(rate=1.0, rate_burst=5)
    effects = [effect for _ in range(11) for effect in say(session, {"type": "ping"})]
    assert codes(effects) == ["rate_limited"] * 5
    assert isinstance(effects[-1], Close)
    assert effects[-1].code == 4429


def test_strikes_are_forgotten_by_who_pauses() -> None:
    session = make(rate=1.0, rate_burst=5)
    for pause in range(10):
        for _ in range(8):
            effects = say(session, {"type": "ping"}, pause * 100.0)
        assert codes(effects) == ["rate_limited"]


def test_a_second_auth_behind_an_undecided_one_waits_for_it() -> None:
    session = make()
    [asked] = say(session, {"type": "auth", "user_id": 5})
    assert say(session, {"type": "auth", "user_id": 6}) == []
    assert isinstance(asked, Authenticate)
    enter, refusal = session.auth_decided(asked.message, ANA)
    assert isinstance(enter, Enter)
    assert codes([refusal]) == ["already_authenticated"]
