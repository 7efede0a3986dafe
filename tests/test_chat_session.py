"""The session, without a reactor and without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chatws.chat.actions import (
    AcceptAuth,
    Action,
    AddSubscription,
    Authenticate,
    BroadcastTyping,
    CheckPermission,
    Close,
    ListPresence,
    PauseReading,
    RecordActivity,
    RemoveSubscription,
    SendReply,
)
from chatws.chat.interfaces import Identity
from chatws.chat.messages import PONG
from chatws.chat.session import MAX_QUEUED_SIZE, RESERVED_QUEUE_SIZE, Session, SessionLimits, State
from chatws.errors import AuthenticationFailed, ClientError, ErrorCode, Unavailable

ANA = Identity(5, "trust")


def say(session: Session, message: Any, now: float = 0.0) -> list[Action]:
    return session.receive(json.dumps(message), now)


def make(**limits: Any) -> Session:
    return Session(SessionLimits(**limits), 0.0)


def authenticated(**limits: Any) -> Session:
    session = make(**limits)
    [action] = say(session, {"type": "auth", "user_id": 5})
    assert isinstance(action, Authenticate)
    assert session.on_auth_result(action.message, ANA) == [AcceptAuth(ANA, None, False)]
    return session


def subscribed(conversation_id: Any = 456, **limits: Any) -> Session:
    session = authenticated(**limits)
    [check] = say(session, {"type": "subscribe", "conversation_id": conversation_id})
    assert isinstance(check, CheckPermission)
    assert session.on_check_result(check, True) == [AddSubscription(conversation_id, None)]
    return session


def codes(actions: list[Action]) -> list[str]:
    """The error codes among the replies."""
    decoded = [json.loads(action.payload) for action in actions if isinstance(action, SendReply)]
    return [reply["data"]["code"] for reply in decoded if reply.get("event") == "error"]


@pytest.mark.parametrize("kind", ["subscribe", "unsubscribe", "typing", "presence"])
def test_messages_before_auth_are_rejected_as_unauthenticated(kind: str) -> None:
    assert codes(say(make(), {"type": kind, "conversation_id": 1})) == ["unauthenticated"]


def test_ping_is_answered_in_every_state_and_recorded_after_auth() -> None:
    session = make()
    assert say(session, {"type": "ping"}) == [SendReply(PONG)]
    say(session, {"type": "auth", "user_id": 5})
    assert session.state is State.AUTHENTICATING
    assert say(session, {"type": "ping"}) == [SendReply(PONG)]
    pong, record = say(authenticated(), {"type": "ping", "last_activity": 1700000000000})
    assert pong == SendReply(PONG)
    assert isinstance(record, RecordActivity)
    assert record.user_id == 5


def test_activity_is_recorded_and_never_answered() -> None:
    assert say(make(), {"type": "activity", "activity_type": "visibility_change"}) == []
    [record] = say(authenticated(), {"type": "activity", "activity_type": "visibility_change"})
    assert isinstance(record, RecordActivity)


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
def test_invalid_message_gets_an_error_code_and_the_session_continues(text: str, code: str) -> None:
    session = make()
    assert codes(session.receive(text, 0.0)) == [code]
    assert say(session, {"type": "ping"}) == [SendReply(PONG)]


def test_error_names_the_field_and_the_request() -> None:
    [reply] = say(make(), {"type": "subscribe", "conversation_id": True})
    assert isinstance(reply, SendReply)
    data = json.loads(reply.payload)["data"]
    assert "conversation_id" in data["message"]
    assert data["request"]["type"] == "subscribe"


def test_id_of_decimal_digits_equals_the_integer() -> None:
    session = subscribed()
    [left] = say(session, {"type": "unsubscribe", "conversation_id": "456"})
    assert left == RemoveSubscription(456)
    [left] = say(session, {"type": "unsubscribe", "conversation_id": "0456"})
    assert left == RemoveSubscription("0456")


def test_messages_behind_a_pending_auth_are_queued_in_order() -> None:
    session = make()
    [action] = say(session, {"type": "auth", "user_id": 5, "last_event_id": "e:1"})
    assert isinstance(action, Authenticate)
    for message in (
        {"type": "subscribe", "conversation_id": 1},
        {"type": "typing", "conversation_id": 1},
        {"type": "presence"},
    ):
        assert say(session, message) == []
    accept, check = session.on_auth_result(action.message, ANA)
    assert accept == AcceptAuth(ANA, "e:1", False)
    assert isinstance(check, CheckPermission)
    subscription, typing = session.on_check_result(check, True)
    assert subscription == AddSubscription(1, None)
    assert isinstance(typing, CheckPermission)
    assert session.on_check_result(typing, True) == [BroadcastTyping(1, 5, True), ListPresence()]


def test_subscribes_are_checked_in_parallel_and_a_typing_behind_them_waits() -> None:
    session = authenticated()
    [first] = say(session, {"type": "subscribe", "conversation_id": 1})
    [second] = say(session, {"type": "subscribe", "conversation_id": 2})
    assert say(session, {"type": "typing", "conversation_id": 1}) == []
    assert isinstance(first, CheckPermission)
    assert isinstance(second, CheckPermission)
    assert session.on_check_result(second, True) == [AddSubscription(2, None)]
    subscription, typing = session.on_check_result(first, True)
    assert subscription == AddSubscription(1, None)
    assert isinstance(typing, CheckPermission)


def test_failed_auth_is_answered_and_closes() -> None:
    session = make()
    [action] = say(session, {"type": "auth", "user_id": 5})
    assert isinstance(action, Authenticate)
    actions = session.on_auth_result(action.message, AuthenticationFailed("no such user"))
    assert codes(actions) == ["auth_failed"]
    assert actions[-1] == Close(4901, "no such user")  # type: ignore[arg-type]
    assert say(session, {"type": "ping"}) == []


def test_auth_with_an_unavailable_check_closes_with_4503() -> None:
    session = make()
    [action] = say(session, {"type": "auth", "user_id": 5})
    assert isinstance(action, Authenticate)
    actions = session.on_auth_result(action.message, Unavailable("database"))
    assert codes(actions) == ["unavailable"]
    assert isinstance(actions[-1], Close)
    assert actions[-1].code == 4503


def test_invalid_auth_message_leaves_the_connection_open() -> None:
    session = make()
    [action] = say(session, {"type": "auth"})
    assert isinstance(action, Authenticate)
    error = ClientError(ErrorCode.BAD_MESSAGE, "user_id")
    assert codes(session.on_auth_result(action.message, error)) == ["bad_message"]
    assert session.state is State.NEW
    assert isinstance(say(session, {"type": "auth", "user_id": 5})[0], Authenticate)


def test_second_auth_of_the_same_user_renews_and_of_another_user_is_rejected() -> None:
    session = authenticated()
    assert codes(say(session, {"type": "auth", "user_id": 6})) == ["already_authenticated"]
    [action] = say(session, {"type": "auth", "user_id": 5})
    assert isinstance(action, Authenticate)
    assert session.on_auth_result(action.message, ANA) == [AcceptAuth(ANA, None, True)]
    [action] = say(session, {"type": "auth", "token": "another's"})
    assert isinstance(action, Authenticate)
    assert codes(session.on_auth_result(action.message, Identity(6, "token"))) == ["already_authenticated"]
    assert session.identity == ANA


def test_renewed_credentials_for_fewer_conversations_end_the_other_subscriptions() -> None:
    session = subscribed(456)
    for conversation_id in (7, "x"):
        [check] = say(session, {"type": "subscribe", "conversation_id": conversation_id})
        assert isinstance(check, CheckPermission)
        session.on_check_result(check, True)
    [action] = say(session, {"type": "auth", "token": "narrower"})
    assert isinstance(action, Authenticate)
    say(session, {"type": "typing", "conversation_id": 456})  # queued
    narrower = Identity(5, "token", conversations=frozenset({7, 8}))
    *actions, rejection = session.on_auth_result(action.message, narrower)
    assert actions == [AcceptAuth(narrower, None, True), RemoveSubscription(456), RemoveSubscription("x")]
    assert codes([rejection]) == ["forbidden"]
    assert session.conversations == {7}
    assert codes(say(session, {"type": "typing", "conversation_id": 8})) == ["not_subscribed"]
    [action] = say(session, {"type": "auth", "token": "one for all"})
    assert isinstance(action, Authenticate)
    assert session.on_auth_result(action.message, ANA) == [AcceptAuth(ANA, None, True)]


def test_subscribe_without_permission_is_forbidden_and_with_a_failed_check_unavailable() -> None:
    session = authenticated()
    [check] = say(session, {"type": "subscribe", "conversation_id": 1})
    assert isinstance(check, CheckPermission)
    assert codes(session.on_check_result(check, False)) == ["forbidden"]
    [check] = say(session, {"type": "subscribe", "conversation_id": 1})
    assert isinstance(check, CheckPermission)
    assert codes(session.on_check_result(check, Unavailable("database"))) == ["unavailable"]
    assert session.conversations == set()


def test_typing_after_a_lost_permission_ends_the_subscription() -> None:
    session = subscribed()
    [check] = say(session, {"type": "typing", "conversation_id": 456})
    assert isinstance(check, CheckPermission)
    rejection, leave = session.on_check_result(check, False)
    assert codes([rejection]) == ["forbidden"]
    assert leave == RemoveSubscription(456)


def test_typing_without_a_subscription_is_rejected() -> None:
    assert codes(say(authenticated(), {"type": "typing", "conversation_id": 1})) == ["not_subscribed"]


def test_revoke_ends_the_subscription_and_rejects_a_pending_check() -> None:
    session = subscribed()
    assert session.revoke(456) == [RemoveSubscription(456)]
    [check] = say(session, {"type": "subscribe", "conversation_id": 7})
    assert isinstance(check, CheckPermission)
    assert codes(session.revoke(7)) == ["forbidden"]
    assert session.on_check_result(check, True) == []
    assert session.conversations == set()


def test_too_many_subscriptions_counts_pending_checks_and_no_repeated_subscribe() -> None:
    session = subscribed(1, max_subscriptions=2)
    [check] = say(session, {"type": "subscribe", "conversation_id": 2})
    assert codes(say(session, {"type": "subscribe", "conversation_id": 3})) == ["too_many_subscriptions"]
    assert isinstance(check, CheckPermission)
    session.on_check_result(check, True)
    assert say(session, {"type": "subscribe", "conversation_id": 2}) == [AddSubscription(2, None)]


def test_end_of_a_typing_users_subscription_broadcasts_that_typing_stopped() -> None:
    def unsubscribe(session: Session) -> list[Action]:
        return say(session, {"type": "unsubscribe", "conversation_id": 456})

    for leave in (Session.end, unsubscribe):
        session = subscribed()
        [check] = say(session, {"type": "typing", "conversation_id": 456})
        assert isinstance(check, CheckPermission)
        assert session.on_check_result(check, True) == [BroadcastTyping(456, 5, True)]
        assert leave(session)[0] == BroadcastTyping(456, 5, False)
        assert session.end() == []


# --- rate limits ------------------------------------------------------------------------------------------------------


def pauses(actions: list[Action]) -> list[float]:
    return [action.seconds for action in actions if isinstance(action, PauseReading)]


@pytest.mark.parametrize(
    "message",
    [
        {"type": "typing", "conversation_id": 456},
        {"type": "presence"},
        {"type": "auth", "user_id": 6},
        {"type": "x"},
        1,
    ],
    ids=str,
)
def test_message_bucket_empties_and_refills_with_time(message: Any) -> None:
    session = make(message_rate=2.0, message_burst=3)
    error_codes = [codes(say(session, message)) for _ in range(4)]
    assert [each == ["rate_limited"] for each in error_codes] == [False, False, False, True]
    assert codes(say(session, message, 0.5)) != ["rate_limited"]
    assert codes(say(session, message, 0.5)) == ["rate_limited"]


def test_binary_message_counts_as_an_invalid_message() -> None:
    session = make(message_rate=2.0, message_burst=3)
    assert [codes(session.receive_binary(0.0)) for _ in range(4)] == [["unsupported"]] * 3 + [["rate_limited"]]
    assert isinstance([*map(session.receive_binary, [0.0] * 3)][-1][-1], Close)


def test_rate_limited_error_names_the_message() -> None:
    session = make(message_rate=1.0, message_burst=1)
    say(session, {"type": "typing", "conversation_id": 456})
    [rejection] = say(session, {"type": "typing", "conversation_id": 456})
    assert isinstance(rejection, SendReply)
    assert json.loads(rejection.payload)["data"]["request"] == {"type": "typing", "conversation_id": 456}


def test_client_that_continues_after_rejections_is_closed() -> None:
    session = make(message_rate=1.0, message_burst=5)
    actions = [action for _ in range(11) for action in say(session, {"type": "presence"})]
    assert codes(actions) == ["unauthenticated"] * 5 + ["rate_limited"] * 5
    assert isinstance(actions[-1], Close)
    assert actions[-1].code == 4429


def test_rejections_are_forgiven_at_the_message_rate() -> None:
    session = make(message_rate=20.0, message_burst=100)
    result: list[str] = []
    for number in range(30 * 600):  # a key held down for ten minutes
        actions = say(session, {"type": "typing", "conversation_id": 456}, number / 30)
        assert not any(isinstance(action, Close) for action in actions)
        result += codes(actions)
    assert "rate_limited" in result
    for number in range(1000):  # 60 a second: three times the rate
        actions = say(session, {"type": "presence"}, 600 + number / 60)
        if any(isinstance(action, Close) for action in actions):
            return
    raise AssertionError("a flood does not end the connection")


@pytest.mark.parametrize(("stall", "closes"), [(6.0, False), (7.0, True)])
def test_held_key_after_a_stall_of_the_network_closes_only_above_both_bursts(stall: float, closes: bool) -> None:
    session = make(message_rate=20.0, message_burst=100)
    held = {"type": "typing", "conversation_id": 456}
    for number in range(30 * 60):  # both buckets are in use
        say(session, held, number / 30)
    actions = [action for _ in range(round(30 * stall)) for action in say(session, held, 60 + stall)]
    assert [action.code for action in actions if isinstance(action, Close)] == [4429] * closes


@pytest.mark.parametrize(
    "message",
    [
        {"type": "subscribe", "conversation_id": 456},
        {"type": "unsubscribe", "conversation_id": 7},
        {"type": "ping"},
        {"type": "activity", "activity_type": "mouse_move"},
    ],
    ids=lambda message: message["type"],
)
def test_empty_subscription_bucket_pauses_reading_and_rejects_nothing(message: Any) -> None:
    session = subscribed(subscription_rate=10.0, subscription_burst=4, message_burst=1, message_rate=0.001)
    result = [say(session, message) for _ in range(3)]  # the fourth was the subscribe before
    assert [codes(actions) for actions in result] == [[], [], []]
    assert [pauses(actions) for actions in result] == [[], [], [pytest.approx(0.1)]]
    assert session.read_delay(0.05) == pytest.approx(0.05)
    assert session.read_delay(0.1001) == 0.0
    # messages that a decorator had read before the pause are processed too
    assert codes(say(session, message, 0.11)) == []
    assert pauses(say(session, message, 0.11)) == [pytest.approx(0.19)]


def test_refill_never_exceeds_the_burst_and_a_rate_of_0_is_no_limit() -> None:
    session = authenticated(subscription_rate=10.0, subscription_burst=3)
    assert [pauses(say(session, {"type": "ping"}, 1e6)) for _ in range(3)] == [[], [], [pytest.approx(0.1)]]
    session = authenticated(subscription_rate=0, subscription_burst=3)
    assert not any(pauses(say(session, {"type": "ping"})) for _ in range(100))
    session = authenticated(message_rate=0, message_burst=1)
    assert not any(codes(say(session, {"type": "presence"})) for _ in range(1000))


def test_repeated_subscribe_is_answered_without_a_check() -> None:
    session = subscribed(456)
    assert say(session, {"type": "subscribe", "conversation_id": "456"}) == [AddSubscription(456, None)]
    [check] = say(session, {"type": "subscribe", "conversation_id": 456, "last_event_id": "e:1"})
    assert isinstance(check, CheckPermission), "a replay is authorized again"
    assert session.on_check_result(check, True) == [AddSubscription(456, "e:1")]
    session.revoke(456)
    assert isinstance(say(session, {"type": "subscribe", "conversation_id": 456})[0], CheckPermission)


def test_repeated_subscribe_during_a_check_waits_for_that_check() -> None:
    session = authenticated()
    [check] = say(session, {"type": "subscribe", "conversation_id": 1})
    assert say(session, {"type": "subscribe", "conversation_id": 1}) == []
    assert isinstance(check, CheckPermission)
    assert session.on_check_result(check, True) == [AddSubscription(1, None), AddSubscription(1, None)]


def test_list_of_300_refreshed_three_times_behind_a_pending_auth_is_never_rejected() -> None:
    session = make()
    actions = say(session, {"type": "auth", "user_id": 5})
    for now in (0.0, 0.5, 1.0, 1.5):
        for number in range(300):
            actions += say(session, {"type": "subscribe", "conversation_id": number}, now)
    assert codes(actions) == []
    assert isinstance(actions[0], Authenticate)
    waiting = session.on_auth_result(actions[0].message, ANA)
    joined = []
    while waiting:
        action = waiting.pop(0)
        assert codes([action]) == []
        if isinstance(action, CheckPermission):
            waiting += session.on_check_result(action, True)
        elif isinstance(action, AddSubscription):
            joined.append(action.conversation_id)
    assert sorted(joined) == sorted([*range(300)] * 4)


def queue_until_pause(session: Session, message: Any) -> int:
    """Send a message again and again until reading pauses, and return how often. None is rejected."""
    for count in range(1, 10_000):
        actions = say(session, message)
        assert codes(actions) == []
        if pauses(actions):
            return count
    raise AssertionError("reading did not pause")


@pytest.mark.parametrize("character", ["x", "\N{GRINNING FACE}"])
def test_queued_messages_are_bounded_by_their_memory(character: str) -> None:
    session = make(message_burst=1000)
    say(session, {"type": "auth", "user_id": 5})
    # one character outside of the BMP makes a string four times as large
    count = queue_until_pause(session, {"type": "auth", "token": character + "x" * 1000})
    assert count * (1000 if character == "x" else 4000) < MAX_QUEUED_SIZE + 4 * 1000


def test_queued_position_takes_no_memory_however_long_it_is() -> None:
    session = make()
    say(session, {"type": "auth", "user_id": 5})
    message = {"type": "subscribe", "conversation_id": 1, "last_event_id": "x" * 10_000}
    assert queue_until_pause(session, message) > 900


def test_all_connections_together_queue_no_more_than_the_limit_allows() -> None:
    limits = SessionLimits(queue_bytes=100_000)
    sessions = [Session(limits, 0.0) for _ in range(200)]
    for session in sessions:
        say(session, {"type": "auth", "user_id": 5})
        while not pauses(actions := say(session, {"type": "subscribe", "conversation_id": 1})):
            assert codes(actions) == []
    held = limits.queued
    assert held <= 100_000 + MAX_QUEUED_SIZE + len(sessions) * 2 * RESERVED_QUEUE_SIZE
    page = sessions[-1]
    assert page.read_delay(0.0) > 0, "reading waits, and nothing is rejected"
    [*_, close] = say(page, {"type": "auth", "token": "x" * 60_000})
    assert isinstance(close, Close)
    assert close.code == 4429
    for session in sessions:
        session.end()
    assert limits.queued == 0


def test_processed_messages_no_longer_count_as_queued() -> None:
    limits = SessionLimits()
    session = Session(limits, 0.0)
    [action] = say(session, {"type": "auth", "user_id": 5})
    say(session, {"type": "subscribe", "conversation_id": 1})
    say(session, {"type": "presence"})
    assert isinstance(action, Authenticate)
    [_, check] = session.on_auth_result(action.message, ANA)
    assert limits.queued > 0, "`presence` waits for the check"
    assert isinstance(check, CheckPermission)
    session.on_check_result(check, True)
    assert limits.queued == 0


def test_queued_messages_are_bounded_by_a_pause_and_not_by_a_rejection() -> None:
    session = make()
    [action] = say(session, {"type": "auth", "user_id": 5})
    assert queue_until_pause(session, {"type": "subscribe", "conversation_id": 1}) <= 1000
    assert session.read_delay(3600.0) > 0.0, "for as long as the check takes"
    assert isinstance(action, Authenticate)
    session.on_auth_result(action.message, AuthenticationFailed("no"))
    assert session.read_delay(3600.0) == 0.0


def test_second_auth_behind_a_pending_one_waits_for_it() -> None:
    session = make()
    [action] = say(session, {"type": "auth", "user_id": 5})
    assert say(session, {"type": "auth", "user_id": 6}) == []
    assert isinstance(action, Authenticate)
    accept, rejection = session.on_auth_result(action.message, ANA)
    assert isinstance(accept, AcceptAuth)
    assert codes([rejection]) == ["already_authenticated"]
