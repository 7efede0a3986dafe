"""chatws.push.protocol: what is a line, and what is wrong with the others."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.interface import Audience, Event, NewEvent
from chatws.chat.audience import AudienceTable
from chatws.chat.messages import RESERVED_EVENTS
from chatws.errors import ClientError, ErrorCode
from chatws.push import protocol as push_lines
from chatws.push.handler import CommandHandler, PushStats
from chatws.push.operations import (
    AuthOp,
    DisconnectOp,
    PingOp,
    PresenceOp,
    UnsubscribeOp,
)
from chatws.push.protocol import (
    MAX_CACHED_STARTS,
    MAX_USER_IDS,
    LineError,
    PublishLine,
    parse_line,
)
from chatws.push.responses import ErrorResponse, encode_responses


def line(**fields: Any) -> bytes:
    """A publish with `fields` besides or instead of the usual ones; None leaves one out."""
    whole = {"event": "new_message", "data": {}, **fields}
    return json.dumps({key: value for key, value in whole.items() if value is not None}).encode()


class Case(SynchronousTestCase):
    def assert_refused(self, text: bytes, code: ErrorCode, *words: str, request_id: object = None) -> None:
        with pytest.raises(LineError) as caught:
            parse_line(text)
        error = caught.value
        assert (error.code, error.request_id) == (code, request_id), error.message
        for word in words:
            assert word in error.message


class PublishTests(Case):
    def test_data_is_kept_to_the_byte(self) -> None:
        data = b'{ "b" : 1.50,\t"a":[1e3, -0 ,"\\u00e9\xc3\xa9\xf0\x9f\x98\x80\\/"],"a":null}'
        request = parse_line(b' {"ack":true,"data" : ' + data + b' , "event":"x"} \r')
        assert request == PublishLine("x", data, ack=True)

    def test_a_line_needs_an_event_and_data(self) -> None:
        assert parse_line(b'{"event":"new_message","data":{}}') == PublishLine("new_message", b"{}")

    def test_unknown_keys_are_ignored(self) -> None:
        assert parse_line(line(extra=[1, {"op": 2}], user_id=1.5, secret=0)) == PublishLine("new_message", b"{}")

    def test_a_null_field_is_absent(self) -> None:
        text = (
            b'{"event":"x","data":{},"to":null,"except_user_id":null,"id":null,"ack":null,"transient":null,"op":null}'
        )
        assert parse_line(text) == PublishLine("x", b"{}")

    def test_flags(self) -> None:
        request = parse_line(line(ack=True, transient=True))
        assert (request.ack, request.transient) == (True, True)
        self.assert_refused(line(ack=1), ErrorCode.BAD_MESSAGE, "ack must be true or false")
        self.assert_refused(line(transient="yes"), ErrorCode.BAD_MESSAGE, "transient must be true or false")

    def test_data_must_be_an_object(self) -> None:
        for text in (
            b'{"event":"x"}',
            b'{"event":"x","data":null}',
            b'{"event":"x","data":[]}',
            b'{"event":"x","data":"{}"}',
        ):
            self.assert_refused(text, ErrorCode.BAD_MESSAGE, "data")

    def test_event_names(self) -> None:
        for name in ("a", "A-z_0.9:x", "n" * 64):
            assert parse_line(line(event=name)).event == name
        for name in ("", "n" * 65, "a b", "a\n", "é", '"', "a/b", "a\u0000"):
            self.assert_refused(line(event=name), ErrorCode.BAD_MESSAGE, "event")
        self.assert_refused(line(event=5), ErrorCode.BAD_MESSAGE, "event must be a string")
        self.assert_refused(b'{"data":{}}', ErrorCode.BAD_MESSAGE, "event or op is missing")

    def test_the_servers_own_events_are_reserved(self) -> None:
        for name in sorted(RESERVED_EVENTS):
            self.assert_refused(line(event=name, id="k"), ErrorCode.RESERVED_EVENT, name, request_id="k")

    def test_except_user_id(self) -> None:
        assert parse_line(line(except_user_id="456")).except_user_id == 456
        assert parse_line(line(except_user_id="0456")).except_user_id == "0456"
        for bad in (456.0, True, [], -1, "", "x" * 129, 2**53):
            self.assert_refused(line(except_user_id=bad), ErrorCode.BAD_MESSAGE, "except_user_id")

    def test_an_idempotency_key_is_echoed_as_given(self) -> None:
        for given_id, key in (
            ("order-77", "order-77"),
            (5, "5"),
            ("5", "5"),
            (-5, "-5"),
            ("é" * 128, "é" * 128),
            (0, "0"),
        ):
            request = parse_line(line(id=given_id))
            assert (request.request_id, request.key) == (given_id, key)
        for bad in ("", "x" * 129, 1.0, True, [], 10**128):
            self.assert_refused(line(id=bad), ErrorCode.BAD_MESSAGE, "id")


class ToTests(Case):
    def to(self, to: object) -> object:
        return parse_line(line(to=to)).to

    def test_each_form(self) -> None:
        assert self.to("everyone") == ("*", "#contacts")
        assert self.to("agents") == ("*",)
        assert self.to({"conversation_id": 456, "role": "agent"}) == ("conversation:456", "!#contacts")
        assert self.to({"conversation_id": 456, "role": "contact"}) == ("conversation-contacts:456",)
        assert self.to({"contact_id": 7}) == ("contact:7",)
        assert self.to({"contact_ids": [7, "7", "x"]}) == ("contact:7", "contact:x")
        assert self.to({"group": "sales"}) == ("group:sales",)
        assert self.to({"groups": ["sales", "b2b", "sales"]}) == ("group:sales", "group:b2b")
        assert self.to({"conversation_id": 456}) == ("conversation:456",)
        assert self.to({"conversation_id": "456"}) == ("conversation:456",)
        assert self.to({"conversation_id": "a:b"}) == ("conversation:a:b",)
        assert self.to({"user_id": 5}) == ("user:5",)
        assert self.to({"user_ids": [5, "6", "x"]}) == ("user:5", "user:6", "user:x")

    def test_a_user_named_twice_counts_once(self) -> None:
        assert self.to({"user_ids": [5, "5", 6, 5]}) == ("user:5", "user:6")
        # PHP's array_filter([4, 5, 6], …)
        assert self.to({"user_ids": {"1": 5, "2": "6"}}) == ("user:5", "user:6")

    def test_the_number_of_users_is_capped(self) -> None:
        assert len(self.to({"user_ids": list(range(MAX_USER_IDS))})) == MAX_USER_IDS
        self.assert_refused(line(to={"user_ids": list(range(MAX_USER_IDS + 1))}), ErrorCode.BAD_MESSAGE, "to.user_ids")
        self.assert_refused(line(to={"user_ids": []}), ErrorCode.BAD_MESSAGE, "to.user_ids")

    def test_anything_else_is_refused(self) -> None:
        for bad in ("all", "", "*", 5, True, [5], {}, {"user": 5}, {"conversation_id": None}):
            self.assert_refused(line(to=bad), ErrorCode.BAD_MESSAGE, "to")
        for bad in (
            {"conversation_id": 456, "role": "admin"},
            {"user_id": 5, "role": "agent"},
            {"role": "agent"},
            {"group": ""},
            {"group": "a b"},
            {"groups": []},
            {"groups": ["a"] * 101},
            {"contact_ids": []},
        ):
            self.assert_refused(line(to=bad), ErrorCode.BAD_MESSAGE, "to")

    def test_exclusions_become_channels(self) -> None:
        parsed = parse_line(line(except_contact_id="7", except_connection_id="n1-4"))
        assert isinstance(parsed, PublishLine)
        assert parsed.excluded == ("!contact:7", "!connection:n1-4")
        for bad in ({"except_contact_id": True}, {"except_connection_id": 5}, {"except_connection_id": ""}):
            self.assert_refused(line(**bad), ErrorCode.BAD_MESSAGE, next(iter(bad)))

    def test_two_forms_of_to_are_bad_message(self) -> None:
        self.assert_refused(line(to={"conversation_id": 1, "user_id": 2}), ErrorCode.BAD_MESSAGE, "one of")

    def test_ids_are_ids(self) -> None:
        for bad in (456.0, True, "", [], -1, 2**53):
            self.assert_refused(line(to={"conversation_id": bad}), ErrorCode.BAD_MESSAGE, "to.conversation_id")
            self.assert_refused(line(to={"user_id": bad}), ErrorCode.BAD_MESSAGE, "to.user_id")
            self.assert_refused(line(to={"user_ids": [1, bad]}), ErrorCode.BAD_MESSAGE, "to.user_ids")
        self.assert_refused(line(to={"user_ids": [None]}), ErrorCode.BAD_MESSAGE, "to.user_ids")
        for odd in ({"0": 1}, {"5": True}, {"a": 5}, {"5": 7, "6": 7}):
            self.assert_refused(line(to={"user_ids": odd}), ErrorCode.BAD_MESSAGE, "to.user_ids")


class OperationTests(Case):
    def test_each(self) -> None:
        for text, expected in (
            (b'{"op":"auth","secret":"s"}', AuthOp(secret="s")),
            (b'{"op":"disconnect","user_id":"5"}', DisconnectOp(user_id=5)),
            (
                b'{"op":"disconnect","user_id":5,"reason":"bye","ban":true}',
                DisconnectOp(user_id=5, reason="bye", ban=True),
            ),
            (b'{"op":"disconnect","user_id":5,"reason":null,"ban":null}', DisconnectOp(user_id=5)),
            (b'{"op":"unsubscribe","user_id":5,"conversation_id":"x"}', UnsubscribeOp(user_id=5, conversation_id="x")),
            (b'{"op":"presence"}', PresenceOp()),
            (b'{"op":"presence","detail":true}', PresenceOp(detail=True)),
            (b'{"id":7,"op":"ping"}', PingOp(id=7)),
        ):
            assert parse_line(text) == expected

    def test_op_ignores_the_keys_of_a_publish(self) -> None:
        assert parse_line(b'{"to":5,"ack":"x","data":1,"event":null,"op":"ping"}') == PingOp()

    def test_event_and_op_together_are_refused(self) -> None:
        self.assert_refused(
            b'{"op":"ping","event":"x","data":{},"id":1}', ErrorCode.BAD_MESSAGE, "not both", request_id=1
        )

    def test_an_unknown_op(self) -> None:
        self.assert_refused(b'{"op":"quit","id":"a"}', ErrorCode.UNKNOWN_TYPE, "disconnect", request_id="a")
        self.assert_refused(b'{"op":5}', ErrorCode.BAD_MESSAGE, "op must be a string")

    def test_the_field_that_is_wrong_is_named(self) -> None:
        self.assert_refused(b'{"op":"auth"}', ErrorCode.BAD_MESSAGE, "secret is missing")
        self.assert_refused(b'{"op":"auth","secret":5}', ErrorCode.BAD_MESSAGE, "secret must be a string")
        self.assert_refused(b'{"op":"disconnect","id":3}', ErrorCode.BAD_MESSAGE, "user_id or contact_id", request_id=3)
        both = b'{"op":"disconnect","user_id":5,"contact_id":7}'
        self.assert_refused(both, ErrorCode.BAD_MESSAGE, "user_id or contact_id")
        self.assert_refused(b'{"op":"groups","user_id":5}', ErrorCode.BAD_MESSAGE, "groups is missing")
        for groups in (b"null", b'"sales"', b'["a b"]', b'[""]', b"[5]"):
            text = b'{"op":"groups","user_id":5,"groups":' + groups + b"}"
            self.assert_refused(text, ErrorCode.BAD_MESSAGE, "groups must")
        self.assert_refused(b'{"op":"status","user_id":5}', ErrorCode.BAD_MESSAGE, "status is missing")
        for status in (b"null", b'"offline"', b'"Away"', b"5"):
            text = b'{"op":"status","user_id":5,"status":' + status + b"}"
            self.assert_refused(text, ErrorCode.BAD_MESSAGE, "status must")
        self.assert_refused(b'{"op":"disconnect","user_id":5.0}', ErrorCode.BAD_MESSAGE, "user_id must be")
        self.assert_refused(b'{"op":"disconnect","user_id":-1,"id":3}', ErrorCode.BAD_MESSAGE, "user_id", request_id=3)
        self.assert_refused(b'{"op":"disconnect","user_id":5,"reason":5}', ErrorCode.BAD_MESSAGE, "reason")
        self.assert_refused(b'{"op":"disconnect","user_id":5,"ban":1}', ErrorCode.BAD_MESSAGE, "ban")
        self.assert_refused(b'{"op":"unsubscribe","user_id":5}', ErrorCode.BAD_MESSAGE, "conversation_id is missing")
        self.assert_refused(b'{"op":"ping","id":""}', ErrorCode.BAD_MESSAGE, "id")


class NotJsonTests(Case):
    def test_json_that_browsers_reject_is_bad_json(self) -> None:
        for value in (
            b'"\x01"', b'"\t"', b'"\\x"', b'"\\u12"', b'"\\u00zz"', b"01", b"1.", b".5", b"-", b"+1", b"1e", b"NaN",
            b"Infinity", b"-Infinity", b"tru", b"truex", b"{a:1}", b"[1,]", b'{"a":1,}', b'{"a" 1}', b"[1 2]", b"'a'",
            b"\x0b1", b"\xa01", b"0x1", b"", b"/**/1", b'{"\\x":1}', b'"\xff"', b'{"\xff":1}', b'"\xc0\x80"',
            b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"\xc3"', b'"a', b"undefined",
        ):  # fmt: skip
            self.assert_refused(b'{"event":"x","data":{"a":' + value + b"}}", ErrorCode.BAD_JSON)
            self.assert_refused(b'{"event":"x","data":{},"other":' + value + b"}", ErrorCode.BAD_JSON)
            self.assert_refused(b'{"event":5,"data":{},"other":' + value + b"}", ErrorCode.BAD_JSON)

    def test_half_a_surrogate_pair(self) -> None:
        for value in (b'"\\ud800"', b'"\\udc00"', b'"\\ud83d\\u0041"', b'"\\ud800\\ud800"'):
            self.assert_refused(b'{"event":"x","data":{"a":' + value + b"}}", ErrorCode.BAD_JSON)
        assert isinstance(parse_line(b'{"event":"x","data":{"a":"\\ud83d\\ude00"}}'), PublishLine)

    def test_lines_that_are_no_object_are_rejected(self) -> None:
        for text in (
            b"[]",
            b"5",
            b"null",
            b'"{}"',
            b"GET / HTTP/1.1",
            b"\xff",
            b"{} {}",
            b"{}\x00",
            b"\xef\xbb\xbf{}",
            b"{",
        ):
            self.assert_refused(text, ErrorCode.BAD_JSON)

    def test_nesting_without_an_end(self) -> None:
        for opening in (b"[", b'{"a":'):
            self.assert_refused(b'{"event":"x","data":{"a":' + opening * 150_000, ErrorCode.BAD_JSON)
        deep = b"[" * 150_000 + b"]" * 150_000
        self.assert_refused(b'{"event":"x","data":{"a":' + deep + b"}}", ErrorCode.BAD_JSON, "deep")

    def test_numbers_of_any_length_pass(self) -> None:
        data = b'{"a":' + b"9" * 5000 + b',"b":1e999,"c":0.' + b"1" * 5000 + b"}"
        assert parse_line(b'{"event":"x","data":' + data + b"}").data == data


def reference(text: bytes) -> dict[str, Any] | None:
    """What Python's parser makes of a line, held to RFC 8259 and to our rule about surrogates; None if nothing."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    halves = False

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal halves
        halves = halves or not is_whole([item for pair in pairs for item in pair])
        return dict(pairs)

    try:
        result = json.loads(text.decode(), parse_constant=refuse, parse_int=float, object_pairs_hook=look)
    except ValueError:
        return None
    return result if isinstance(result, dict) and not halves else None


def is_whole(value: Any) -> bool:
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    return all(map(is_whole, value)) if isinstance(value, list) else True


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)
lines = st.builds(
    lambda fields, compact: json.dumps(fields, ensure_ascii=compact, separators=(",", ":") if compact else None),
    st.fixed_dictionaries(
        {
            "event": st.sampled_from(["new_message", "x", 5]),
            "data": values | st.dictionaries(st.text(max_size=4), values),
        },
        optional={
            "other": values,
            "op": st.sampled_from(["ping", "x", None]),
            "id": values,
            "to": values,
            "ack": values,
        },
    ),
    st.booleans(),
).map(lambda text: text.encode("utf-8", "surrogatepass"))
#: What is taken together.
usual = st.builds(
    lambda name, conversation_id, rest, compact: json.dumps(
        {"event": name, "data": {**rest, "conversation_id": conversation_id}},
        separators=(",", ":") if compact else None,
    ).encode(),
    st.sampled_from(["new_message", "message_read", "message_status_updated"]),
    st.integers(0, 2**53 - 1) | st.integers(0, 9) | st.text(st.characters(codec="ascii"), min_size=1, max_size=8),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), values, max_size=3),
    st.booleans(),
)
#: What it takes to spoil JSON.
pieces = st.sampled_from(
    [bytes([byte]) for byte in b'{}[]":,\\/\t\r \x00\x1f\x7f\x80\xc3\xa9\xed\xff0123456789.-+eEutrfalsn']
    + [
        b"NaN",
        b"\\u",
        b"\\ud800",
        b"\\ude00",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98\x80",
        b"\xef\xbb\xbf",
        b"\\x",
        b"01",
        b"1.",
    ]
)


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    text = draw(lines | usual)
    for _ in range(draw(st.integers(0, 3))):
        position = draw(st.integers(0, len(text)))
        text = text[:position] + draw(pieces | st.just(b"")) + text[position + draw(st.integers(0, 2)) :]
    return text


class AgainstPythonTests(SynchronousTestCase):
    @pytest.mark.long
    @settings(max_examples=500, deadline=None)
    @given(spoiled() | st.binary(max_size=40))
    def test_a_line_is_bad_json_exactly_if_python_s_parser_rejects_it(self, text: bytes) -> None:
        expected = reference(text)
        request, code = None, None
        try:
            request = parse_line(text)
        except LineError as error:
            code = error.code
        assert (code is ErrorCode.BAD_JSON) == (expected is None)
        if isinstance(request, PublishLine):
            assert request.data in text
            assert json.loads(request.data, parse_int=float) == expected["data"]
            assert request.event == expected["event"]

    @settings(max_examples=150, deadline=None)
    @given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), values), st.booleans())
    @pytest.mark.long
    def test_any_object_goes_through_as_data(self, data: dict[str, Any], ascii_only: bool) -> None:
        written = json.dumps(data, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        assert parse_line(b'{"event":"x","data":' + written + b"}") == PublishLine("x", written)


class TogetherTests(SynchronousTestCase):
    """Lines that come together are understood as each would be by itself, or left to that."""

    def setUp(self) -> None:
        self.handler = CommandHandler(cast(Any, SimpleNamespace(audiences=AudienceTable())), PushStats())

    def one_by_one(self, texts: list[bytes]) -> list[NewEvent] | None:
        """None if any is wrong, or asks for more than to be published."""
        try:
            requests = [parse_line(text) for text in texts]
            new_events = [self.handler.to_new_event(cast(PublishLine, request)) for request in requests]
        except ClientError:
            return None
        return new_events if all(request == PublishLine(request.event, request.data) for request in requests) else None

    @pytest.mark.long
    @settings(max_examples=500, deadline=None)
    @given(st.lists(spoiled() | usual, min_size=1, max_size=6))
    def test_a_simple_batch_equals_single_lines_or_is_none(self, texts: list[bytes]) -> None:
        new_events = self.handler.parse_simple_batch(texts)
        assert new_events is None or new_events == self.one_by_one(texts)

    @pytest.mark.long
    @settings(max_examples=200, deadline=None)
    @given(st.lists(usual, min_size=1, max_size=20))
    def test_the_usual_are_taken_together(self, texts: list[bytes]) -> None:
        assume(b'"ack"' not in b"".join(texts))
        new_events = self.handler.parse_simple_batch(texts)
        assert new_events is not None
        assert new_events == self.one_by_one(texts)

    def test_a_batch_with_a_complex_line_is_not_simple(self) -> None:
        good = line(data={"conversation_id": 1})
        assert self.handler.parse_simple_batch([good, good]) is not None
        others = [
            line(data={"conversation_id": 1}, ack=True),
            line(data={"conversation_id": 1}, id=5),
            line(data={"conversation_id": 1}, to="everyone"),
            line(data={"conversation_id": 1}, except_user_id=0),
            line(data={"conversation_id": 1}, transient=True),
            line(data={"conversation_id": 1}, op="ping"),
            line(data={"conversation_id": 1}, event=None),
            line(data={"conversation_id": 1}, event="no such name!"),
            line(data={"conversation_id": 1}, event="connected"),
            line(data={"conversation_id": 1}, event="unheard_of"),
            line(data={"conversation_id": 1, "user_id": 2}, event="typing"),
            line(data={"conversation_id": 1}, event="conversation_updated"),
            line(data=None),
            line(data=[1]),
            line(data={}),
            line(data={"conversation_id": True}),
            line(data={"conversation_id": 1.0}),
            line(data={"conversation_id": -1}),
            line(data={"conversation_id": 2**53}),
            line(data={"conversation_id": ""}),
            line(data={"conversation_id": "x" * 129}),
            b'{"event":"new_message","data":{"conversation_id":' + b"9" * 5000 + b"}}",
            b'{"event":"new_message","data":{"conversation_id":1,"x":' + b"[" * 150_000 + b"]" * 150_000 + b"}}",
            b'{"event":"new_message","data":{"conversation_id":1,"x":"\xff"}}',
            b"{}",
            b"",
            b"GET / HTTP/1.1",
            b'{"event":"new_message","data":{"conversation_id":1}',
            b'{"event":"new_message","data":{"conversation_id":1}}}',
            b'{"event":"new_message","data":{"conversation_id":1},"to":"everyone"}',
            b'{"event":"no such name!","data":{"conversation_id":1}}',
            b'{"event":"connected","data":{"conversation_id":1}}',
            b'{"event":"new_message","data":[{"conversation_id":1}]}',
        ]
        compact = good.replace(b" ", b"")
        for other in others:
            assert self.handler.parse_simple_batch([good, other, good]) is None, other
            assert self.handler.parse_simple_batch([compact, other, compact]) is None, other

    def test_white_space_around_the_data_is_no_part_of_it(self) -> None:
        for before, after in ((b" ", b""), (b"", b" "), (b"", b""), (b"\t", b" ")):
            text = b'{"event":"new_message","data":%b{"conversation_id":1}%b}' % (before, after)
            assert self.handler.parse_simple_batch([text]) == self.one_by_one([text])

    def test_cached_line_starts_are_limited(self) -> None:
        for number in range(MAX_CACHED_STARTS + 10):
            self.handler.parse_simple_batch([b'{"event":"e%d","data":{"conversation_id":1}}' % number])
            assert 0 < len(push_lines._event_names) <= MAX_CACHED_STARTS

    def test_an_id_is_the_same_conversation_as_an_integer_and_as_a_string(self) -> None:
        for value, channel in ((456, "456"), ("456", "456"), ("0456", "0456"), ("abc", "abc"), (0, "0"), ("0", "0")):
            for _ in range(2):  # and once more, when it is known
                result = self.handler.parse_simple_batch([line(data={"conversation_id": value})])
                assert [new_event.audience.channels for new_event in result or []] == [(f"conversation:{channel}",)]


def make_event(number: int, *, transient: bool, duplicate: bool) -> Event:
    """Return a published event as a broker returns it: a transient one has no offset."""
    audience = Audience((f"conversation:{number}",))
    return Event(0 if transient else number, "new_message", audience, b"{}", 0.0, duplicate, delivered=number)


def reference_acks(
    requests: list[PublishLine | ErrorResponse], events: list[Event], stats: PushStats
) -> list[dict[str, Any]]:
    """Return what `CommandHandler.acks` has to return, as plain JSON objects, and count in `stats`."""
    remaining = iter(events)
    responses: list[dict[str, Any]] = []
    for request in requests:
        if isinstance(request, ErrorResponse):
            responses.append({"ok": False, "id": request.id, "code": "bad_message", "message": request.message})
            continue
        event = next(remaining)
        if not event.duplicate:
            stats.published += 1
        if request.ack:
            response = {"ok": True, "id": request.request_id, "delivered": event.delivered}
            if event.offset:
                response["event_id"] = f"epoch:{event.offset}"
            if event.duplicate:
                response["duplicate"] = True
            responses.append(response)
    assert next(remaining, None) is None
    return [{key: value for key, value in response.items() if value is not None} for response in responses]


class AcksTests(SynchronousTestCase):
    """The responses to a batch are those of `reference_acks`, which builds them one by one."""

    def check(self, kinds: list[tuple[str, bool, bool]]) -> list[dict[str, Any]]:
        """Compare the responses to requests that are "acked", "silent" or "failed", with `transient`, `duplicate`."""
        requests: list[PublishLine | ErrorResponse] = []
        events: list[Event] = []
        for number, (kind, transient, duplicate) in enumerate(kinds, 1):
            if kind == "failed":
                requests.append(ErrorResponse(False, number, ErrorCode.BAD_MESSAGE, "wrong"))
            else:
                requests.append(PublishLine("new_message", b"{}", request_id=number, ack=kind == "acked"))
                events.append(make_event(number, transient=transient, duplicate=duplicate))
        target = SimpleNamespace(event_id=lambda event: f"epoch:{event.offset}" if event.offset else None)
        stats, expected_stats = PushStats(), PushStats()
        acks = CommandHandler(cast(Any, target), stats).acks(requests, events)
        responses = [json.loads(response) for response in encode_responses(acks).splitlines()]
        assert responses == reference_acks(requests, events, expected_stats)
        assert stats.published == expected_stats.published
        return responses

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(["acked", "silent", "failed"]), st.booleans(), st.booleans())))
    def test_acks_of_any_batch_equal_the_reference(self, kinds: list[tuple[str, bool, bool]]) -> None:
        self.check(kinds)

    def test_acks_of_a_batch_without_ack_and_error_are_empty(self) -> None:
        assert self.check([("silent", False, False), ("silent", True, True)]) == []

    def test_acks_after_a_failed_line_belong_to_their_own_events(self) -> None:
        responses = self.check([("failed", False, False), ("silent", False, False), ("acked", False, True)])
        assert responses == [
            {"ok": False, "id": 1, "code": "bad_message", "message": "wrong"},
            {"ok": True, "id": 3, "event_id": "epoch:3", "delivered": 3, "duplicate": True},
        ]
