"""Generated messages of clients: every text is parsed completely, or rejected with an error that can be sent."""

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


def parse(text: str | bytes) -> messages.Message | ClientError:
    """Parse a text, and return the message or the error. The error can be encoded as a reply."""
    try:
        return messages.parse(text)
    except ClientError as error:
        reply = json.loads(messages.error(error, text))
        assert reply["event"] == "error"
        assert reply["data"]["code"] in ("bad_json", "bad_message", "unknown_type")
        assert len(reply["data"]["message"]) < 200
        return error


class ParserTests(SynchronousTestCase):
    @given(st.binary(max_size=200) | st.text(max_size=200))
    def test_any_text_is_parsed_or_rejected(self, text: str | bytes) -> None:
        parse(text)

    @given(objects, st.booleans())
    def test_parsed_fields_equal_those_of_the_json(self, fields: dict[str, Any], ascii_only: bool) -> None:
        try:
            text = json.dumps(fields, ensure_ascii=ascii_only).encode()
        except UnicodeEncodeError:
            return  # half of a surrogate pair is not valid text
        result = parse(text)
        if isinstance(result, ClientError):
            # The text is valid JSON, so only its content can be invalid.
            self.assertNotEqual(result.code, ErrorCode.BAD_JSON)
            return
        self.assertEqual(result.__struct_config__.tag, fields["type"])
        for field in result.__struct_fields__:
            value = getattr(result, field)
            if field in ("user_id", "conversation_id"):
                # Only a string of digits becomes an integer, and has the same text.
                self.assertEqual(str(value), str(fields.get(field)))
                self.assertIsNot(type(fields.get(field)), bool)
                self.assertIsNot(type(fields.get(field)), float)
            elif field == "last_event_id" and len(fields.get(field) or "") > messages.MAX_POSITION_LENGTH:
                self.assertEqual(messages.Position.parse(value), messages.Position.parse(fields[field]))
            elif field in fields:
                self.assertEqual(value, fields[field])

    def test_unknown_type_and_repeated_type_get_different_codes(self) -> None:
        for message_type in ("nope", "pong", "ping'", "'ping'", "PING", ""):
            error = parse(json.dumps({"type": message_type}))
            assert isinstance(error, ClientError)
            self.assertIs(error.code, ErrorCode.UNKNOWN_TYPE)
        error = parse('{"type":"ping","type":"presence"}')
        assert isinstance(error, ClientError)
        self.assertEqual((error.code, error.message), (ErrorCode.BAD_MESSAGE, "type is given more than once"))

    @given(objects, st.data())
    def test_truncated_message_is_rejected(self, fields: dict[str, Any], data: Any) -> None:
        text = json.dumps(fields)
        end = data.draw(st.integers(0, len(text) - 1))
        error = parse(text[:end])
        assert isinstance(error, ClientError)
        self.assertIs(error.code, ErrorCode.BAD_JSON)

    def test_invalid_json_at_any_position_is_bad_json(self) -> None:
        for text in (
            "[1",
            '{"type":"nope"',
            '{"type":"auth","user_id":[]',
            '{"type":5}}',
            '"auth',
            '{"type":"subscribe"} x',
        ):
            error = parse(text)
            assert isinstance(error, ClientError)
            self.assertIs(error.code, ErrorCode.BAD_JSON, text)
        for text in ("[1]", "5", '"auth"', "null", '{"type":"auth","user_id":[]}'):
            error = parse(text)
            assert isinstance(error, ClientError)
            self.assertIs(error.code, ErrorCode.BAD_MESSAGE, text)
