"""The browsers' messages, generated: whatever text comes, it is one of ours, whole, or a refusal that can be sent."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatws.chat import messages
from chatws.errors import ClientError, ErrorCode

TYPES = ["auth", "subscribe", "unsubscribe", "typing", "ping", "activity", "presence", "dance", "", 5, None]
FIELDS = ["user_id", "conversation_id", "token", "last_event_id", "is_typing", "last_activity", "activity_type", "x"]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=140)
    | st.from_regex(r"0?[0-9]{1,18}", fullmatch=True)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
objects = st.fixed_dictionaries({"type": st.sampled_from(TYPES) | values}, optional=dict.fromkeys(FIELDS, values))


def outcome(text: str | bytes) -> messages.Message | ClientError:
    """What is made of a text; a refusal has to be such that it can be sent."""
    try:
        return messages.parse(text)
    except ClientError as error:
        answer = json.loads(messages.error(error, text))
        assert answer["event"] == "error"
        assert answer["data"]["code"] in ("bad_json", "bad_message", "unknown_type")
        assert len(answer["data"]["message"]) < 200
        return error


class ParserCase(SynchronousTestCase):
    @given(st.binary(max_size=200) | st.text(max_size=200))
    def test_any_text_is_parsed_or_refused(self, text: str | bytes) -> None:
        outcome(text)

    @given(objects, st.booleans())
    def test_what_is_parsed_is_what_was_said(self, said: dict[str, Any], ascii_only: bool) -> None:
        try:
            text = json.dumps(said, ensure_ascii=ascii_only).encode()
        except UnicodeEncodeError:
            return  # half of a surrogate pair is no text
        found = outcome(text)
        if isinstance(found, ClientError):
            # well-formed JSON: whatever else is wrong with it
            self.assertNotEqual(found.code, ErrorCode.BAD_JSON)
            return
        self.assertEqual(found.__struct_config__.tag, said["type"])
        for field in found.__struct_fields__:
            value = getattr(found, field)
            if field in ("user_id", "conversation_id"):
                # equal ids are spelt alike; only a string of digits becomes a number, and only as that number
                self.assertEqual(str(value), str(said.get(field)))
                self.assertIsNot(type(said.get(field)), bool)
                self.assertIsNot(type(said.get(field)), float)
            elif field in said:
                self.assertEqual(value, said[field])

    def test_a_type_that_is_none_and_a_type_given_twice_are_told_apart(self) -> None:
        for kind in ("nope", "pong", "ping'", "'ping'", "PING", ""):
            refused = outcome(json.dumps({"type": kind}))
            assert isinstance(refused, ClientError)
            self.assertIs(refused.code, ErrorCode.UNKNOWN_TYPE)
        refused = outcome('{"type":"ping","type":"presence"}')
        assert isinstance(refused, ClientError)
        self.assertEqual((refused.code, refused.message), (ErrorCode.BAD_MESSAGE, "type is given more than once"))

    @given(objects, st.data())
    def test_a_message_cut_anywhere_is_never_taken_for_a_whole_one(self, said: dict[str, Any], data: Any) -> None:
        text = json.dumps(said)
        end = data.draw(st.integers(0, len(text) - 1))
        self.assertIsInstance(outcome(text[:end]), ClientError)
