"""Tickets, good and forged. docs/protocol.md §5."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.auth.token import LEEWAY, MAX_TOKEN_CHARACTERS, TokenMethod
from chatws.chat.interfaces import Credentials, Identity
from chatws.errors import AuthenticationFailed, ErrorCode
from chatws.ids import Id
from chatws.server.component import HttpRequest

SECRET = b"0123456789abcdef0123456789abcdef"
OLD = b"fedcba9876543210fedcba9876543210"
NOW = 1_800_000_000.0


def segment(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def forge(payload: Any, header: Any = None, secret: bytes = SECRET, digest: Any = hashlib.sha256) -> str:
    """A token with any header and payload at all, rightly signed unless told otherwise."""
    header = header if header is not None else {"typ": "JWT", "alg": "HS256"}
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signed = segment(head) + b"." + segment(body)
    return (signed + b"." + segment(hmac.new(secret, signed, digest).digest())).decode()


def claims(**more: Any) -> dict[str, Any]:
    result = {"sub": "5", "exp": NOW + 60, **more}
    return {key: value for key, value in result.items() if value is not ...}


class TicketCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.method = TokenMethod([SECRET, OLD], clock=self.clock)

    def tearDown(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def credentials(self, token: str | None, user_id: Id | None = None) -> Credentials:
        return Credentials(user_id, token, HttpRequest("GET", "/ws"), "192.0.2.1")

    def enter(self, token: str, user_id: Id | None = None) -> Identity:
        result = self.method.authenticate(self.credentials(token, user_id))
        self.assertIsInstance(result, Identity, "a token needs no waiting")
        return result

    def refused(self, token: str, words: str = "", user_id: Id | None = None) -> None:
        error = self.assertRaises(AuthenticationFailed, self.enter, token, user_id)
        self.assertEqual(error.code, ErrorCode.AUTH_FAILED)
        self.assertIn(words, error.message)
        self.assertLess(len(error.message), 250)
        self.assertNotIn("\n", error.message)


class GoodTickets(TicketCase):
    def test_the_subject_is_the_user(self) -> None:
        for user_id in (None, 5):
            self.assertEqual(self.enter(forge(claims()), user_id), Identity(5, "token", NOW + 60 + LEEWAY, None))

    def test_a_token_of_another_library_authenticates(self) -> None:
        token = jwt.encode({"sub": "anna", "exp": NOW + 1}, SECRET, algorithm="HS256")
        self.assertEqual(self.enter(token, "anna").user_id, "anna")

    def test_either_of_two_secrets_may_have_signed(self) -> None:
        for secret in (SECRET, OLD):
            self.assertEqual(self.enter(forge(claims(), secret=secret)).user_id, 5)

    def test_ids_in_conversations_are_canonical(self) -> None:
        result = self.enter(forge(claims(conversations=["456", 456, "x", "007", 0])))
        self.assertEqual(result.conversations, frozenset({456, "x", "007", 0}))
        self.assertEqual(self.enter(forge(claims(conversations=[]))).conversations, frozenset())
        self.assertIs(self.enter(forge(claims())).conversations, None)

    def test_a_php_array_with_gaps_is_a_list(self) -> None:
        result = self.enter(forge(claims(conversations={"1": 456, "2": "457"})))
        self.assertEqual(result.conversations, frozenset({456, 457}))
        for odd in ({"456": 1}, {"456": True}, {"id": 456}, None, "456", 456):
            self.refused(forge(claims(conversations=odd)), "malformed")

    def test_times_may_be_fractions_and_the_clocks_a_little_apart(self) -> None:
        self.enter(forge(claims(exp=NOW + 0.5, nbf=NOW - 0.5, iat=NOW)))
        self.enter(forge(claims(exp=NOW - LEEWAY + 1, nbf=NOW + LEEWAY, iat=NOW + LEEWAY)))

    def test_a_token_within_the_leeway_does_not_expire_at_once(self) -> None:
        expires_at = self.enter(forge(claims(exp=NOW - 1))).expires_at
        assert expires_at is not None
        self.assertGreater(expires_at, NOW)

    def test_key_id_and_unknown_claims_are_ignored(self) -> None:
        for kid in ("1", "../../dev/null", "' OR 1=1 --", "http://127.0.0.1/key"):
            self.enter(forge(claims(admin=True, iss="x"), {"alg": "HS256", "kid": kid}))

    def test_an_audience_is_looked_at_only_when_one_is_configured(self) -> None:
        self.enter(forge(claims(aud="another shop")))
        self.method = TokenMethod([SECRET], clock=self.clock, audience="chat")
        for good in ("chat", ["x", "chat"]):
            self.enter(forge(claims(aud=good)))
        for bad in (..., None, "", "chatter", ["x"], []):
            self.refused(forge(claims(aud=bad)), "audience")
        for malformed in (7, {"chat": 1}, [7]):
            self.refused(forge(claims(aud=malformed)), "malformed")


class ForgedTickets(TicketCase):
    def test_an_unsigned_token_is_rejected(self) -> None:
        payload = segment(json.dumps(claims()).encode()).decode()
        for algorithm in ("none", "None", "NONE", "nOnE", "", None):
            header = segment(json.dumps({"alg": algorithm}).encode()).decode()
            self.refused(f"{header}.{payload}.", "HS256")
            self.refused(f"{header}.{payload}", "malformed")
            self.refused(forge(claims(), {"alg": algorithm}), "HS256")
        self.refused(forge(claims(), {"typ": "JWT"}), "HS256")

    def test_another_algorithm_with_the_same_secret(self) -> None:
        for algorithm, digest in (("HS384", hashlib.sha384), ("HS512", hashlib.sha512)):
            self.refused(forge(claims(), {"alg": algorithm}, digest=digest), "HS256")
        for algorithm in ("hs256", "HS256 ", ["HS256"], {"HS256": 1}, 256, True):
            self.refused(forge(claims(), {"alg": algorithm}))

    def test_an_asymmetric_algorithm(self) -> None:
        key = rsa.generate_private_key(65537, 2048)
        token = jwt.encode(claims(), key, algorithm="RS256")
        self.refused(token, "HS256")
        # and the public key taken for an HMAC secret
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.refused(forge(claims(), secret=public), "signature")
        self.refused(
            forge(claims(), {"alg": "HS256", "jwk": {"kty": "oct", "k": "AAAA"}}, secret=b"\0\0\0"), "signature"
        )

    def test_another_secret(self) -> None:
        for secret in (b"", b"secret", SECRET[:-1], SECRET + b"\n", SECRET.upper()):
            self.refused(forge(claims(), secret=secret), "signature")

    def test_any_changed_character_of_a_token_is_rejected(self) -> None:
        good = forge(claims())
        for length in range(len(good)):
            self.refused(good[:length])
        for position in range(0, len(good), 3):
            changed = "A" if good[position] != "A" else "B"
            self.refused(good[:position] + changed + good[position + 1 :])
        for more in (" ", "\n", "=", "==", ".", "A", "é"):
            self.refused(good + more)
            self.refused(more + good)

    def test_times_that_are_over_missing_or_none(self) -> None:
        self.refused(forge(claims(exp=NOW - LEEWAY - 1)), "expired")
        self.refused(forge(claims(exp=NOW - LEEWAY)), "expired")
        self.refused(forge(claims(exp=0)), "expired")
        self.refused(forge(claims(exp=...)), "exp")
        for odd in (None, str(NOW + 60), True, [NOW + 60], {}):
            self.refused(forge(claims(exp=odd)), "malformed")

    def test_out_of_range_times_are_rejected(self) -> None:
        for huge in (10**400, 10**30, 1e308, NOW * 1000, -1, -1e308):
            self.refused(forge(claims(exp=huge)), "exp")
        for literal in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000):
            self.refused(forge(b'{"sub":"5","exp":' + literal + b"}"))

    def test_claims_in_the_future_are_rejected(self) -> None:
        for name in ("nbf", "iat"):
            self.refused(forge(claims(**{name: NOW + LEEWAY + 1})), "clocks")
            self.refused(forge(claims(**{name: 10**400})), "clocks")
            self.refused(forge(claims(**{name: str(NOW)})), "malformed")

    def test_an_expired_token_is_rejected(self) -> None:
        token = forge(claims())
        self.clock.advance(60 + LEEWAY - 0.1)
        self.enter(token)
        self.clock.advance(0.2)
        self.refused(token, "expired")

    def test_a_token_of_another_user_is_rejected(self) -> None:
        for user_id in (6, 0, "5x", "05"):
            self.refused(forge(claims()), "user_id", user_id)

    def test_a_subject_that_is_no_text_or_no_id(self) -> None:
        for subject in (5, 5.0, True, None, ["5"], {"5": 5}, ...):
            self.refused(forge(claims(sub=subject)), "sub")
        for subject in ("", "x" * 129):
            self.refused(forge(claims(sub=subject)), "sub")

    def test_conversations_that_are_no_ids(self) -> None:
        for odd in (None, "456", 456, {"456": 1}, True, [True], [None], [1.0], [[456]], [-1], [2**53], [""]):
            self.refused(forge(claims(conversations=odd)), "malformed")

    def test_unsupported_headers_are_rejected(self) -> None:
        for header in (
            {"alg": "HS256", "crit": ["exp"], "exp": 1},
            {"alg": "HS256", "crit": []},
            {"alg": "HS256", "b64": False},
            {"alg": "HS256", "b64": False, "crit": ["b64"]},
            {"alg": "HS256", "kid": 7},
            {"alg": "HS256", "kid": ["../../etc/passwd"]},
        ):
            self.refused(forge(claims(), header))

    def test_malformed_tokens_are_rejected(self) -> None:
        for text in ("", ".", "..", "...", "a.b.c", "null", "\0", "\ud800.\ud800.\ud800", "é.é.é", "{}", " " * 100):
            self.refused(text)
        for payload in (b"", b"[]", b"null", b"5", b'"x"', b"\xff\xfe", b'{"sub":"\\ud800","exp":1}', b"{" * 1000):
            self.refused(forge(payload))

    def test_nesting_that_breaks_parsers(self) -> None:
        for deep in (b"[" * 6000, b'{"a":' * 2000, b"[" * 3000 + b"]" * 3000):
            self.refused(forge(deep))
            self.refused(forge(claims(), deep))

    def test_five_megabytes_are_not_even_read(self) -> None:
        token = forge(claims(more="x" * 5_000_000))
        self.refused(token, "too long")
        self.refused("." * (MAX_TOKEN_CHARACTERS + 1), "too long")
        self.refused("a" * MAX_TOKEN_CHARACTERS, "malformed")


@given(st.text(max_size=200) | st.text(alphabet="ey.JIUzI1NiA_-=", max_size=200))
def test_arbitrary_text_is_auth_failed(text: str) -> None:
    clock = Clock()
    clock.advance(NOW)
    method = TokenMethod([SECRET], clock=clock)
    with pytest.raises(AuthenticationFailed):
        method.authenticate(Credentials(5, text, HttpRequest("GET", "/"), ""))


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("sub", "exp", "nbf", "iat", "aud", "conversations"), json_values),
    )
)
def test_signed_claims_give_a_valid_identity_or_are_rejected(payload: dict[str, Any]) -> None:
    clock = Clock()
    clock.advance(NOW)
    method = TokenMethod([SECRET], clock=clock)
    try:
        result = method.authenticate(Credentials(None, forge(payload), HttpRequest("GET", "/"), ""))
    except AuthenticationFailed:
        return
    assert type(result.user_id) in (int, str)
    assert result.expires_at is not None
    assert NOW < result.expires_at < 1e12
