"""Tokens that a private key has signed: keys in files, and JWK sets. docs/protocol.md §5."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from chatws.auth.jwks import MAX_AGE, MAX_STALE, MIN_INTERVAL, JwksKeys
from chatws.auth.public_keys import MAX_KEYS, load_key_files, parse_key_set
from chatws.auth.token import TokenMethod
from chatws.chat.interfaces import Credentials, Identity
from chatws.config.schema import Config
from chatws.errors import AuthenticationFailed, ConfigError, Unavailable
from chatws.server.component import HttpRequest

SECRET = b"0123456789abcdef0123456789abcdef"
NOW = 1_800_000_000.0
TIMEOUT = 2.0
RSA, OTHER_RSA = (rsa.generate_private_key(65537, 2048) for _ in range(2))
P256, ED25519 = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
PRIVATE = {"RS256": RSA, "ES256": P256, "EdDSA": ED25519}


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def private_pem(key: Any) -> bytes:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    names = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256"}
    name = next((name for kind, name in names.items() if isinstance(key, kind)), "EdDSA")
    fields: Any = jwt.get_algorithm_by_name(name).to_jwk(key.public_key(), as_dict=True)
    return {name: value for name, value in {**fields, **more}.items() if name not in ("key_ops", "alg") or name in more}


def sign(key: Any, algorithm: str, **header: Any) -> str:
    return jwt.encode({"sub": "5", "exp": NOW + 60}, key, algorithm=algorithm, headers=header)


def method_with(*keys: Any, secrets: Any = (), key_set: Any = None, tmp_path: Path | None = None) -> TokenMethod:
    paths = []
    for number, key in enumerate(keys):
        assert tmp_path is not None
        path = tmp_path / f"{number}.pem"
        path.write_bytes(public_pem(key))
        paths.append(str(path))
    clock = Clock()
    clock.advance(NOW)
    public_keys = load_key_files(Config(token_key_files=tuple(paths)))
    return TokenMethod(secrets, clock=clock, public_keys=public_keys, key_set=key_set)


def begin(method: TokenMethod, token: str) -> Any:
    return method.authenticate(Credentials(None, token, HttpRequest("GET", "/ws"), "192.0.2.1"))


def refused(method: TokenMethod, token: str, words: str) -> None:
    with pytest.raises(AuthenticationFailed, match=words):
        begin(method, token)


# --- files ---


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_key_of_a_file_verifies_the_algorithm_of_its_type_only(algorithm: str, tmp_path: Path) -> None:
    method = method_with(PRIVATE[algorithm], tmp_path=tmp_path)
    for kid in ({}, {"kid": "any"}):
        identity = begin(method, sign(PRIVATE[algorithm], algorithm, **kid))
        assert isinstance(identity, Identity)
        assert identity.user_id == 5
    for other, key in PRIVATE.items():
        if other != algorithm:
            refused(method, sign(key, other), f"the token must be signed with {algorithm}$")
    refused(method, sign(RSA, "RS512"), f"must be signed with {algorithm}")
    refused(method, sign(RSA, "PS256"), f"must be signed with {algorithm}")
    refused(method, sign(SECRET, "HS256"), f"must be signed with {algorithm}")
    refused(method, sign(None, "none"), f"must be signed with {algorithm}")


@pytest.mark.parametrize("secrets", [(), (SECRET,)])
def test_public_key_never_is_a_secret(secrets: tuple[bytes, ...], tmp_path: Path) -> None:
    method = method_with(RSA, secrets=secrets, tmp_path=tmp_path)
    # https://auth0.com/blog/critical-vulnerabilities-in-json-web-token-libraries/: HMAC with the public key
    for pem in (public_pem(RSA), public_pem(RSA).strip()):
        hmac = jwt.get_algorithm_by_name("HS256")
        parts = [
            jwt.utils.base64url_encode(json.dumps(part).encode())
            for part in ({"alg": "HS256", "typ": "JWT"}, {"sub": "5", "exp": NOW + 60})
        ]
        signature = hmac.sign(b".".join(parts), pem)
        token = b".".join([*parts, jwt.utils.base64url_encode(signature)]).decode()
        refused(method, token, "signature is wrong" if secrets else "must be signed with RS256")
    if secrets:
        assert begin(method, sign(SECRET, "HS256")).user_id == 5
        assert begin(method, sign(RSA, "RS256")).user_id == 5


def test_signature_of_another_key_is_rejected_and_of_a_second_file_accepted(tmp_path: Path) -> None:
    refused(method_with(RSA, tmp_path=tmp_path), sign(OTHER_RSA, "RS256"), "signature is wrong")
    both = method_with(RSA, OTHER_RSA, tmp_path=tmp_path)
    assert begin(both, sign(OTHER_RSA, "RS256")).user_id == 5
    both.change_keys([], load_key_files(Config(token_key_files=(str(tmp_path / "1.pem"),))))
    refused(both, sign(RSA, "RS256"), "signature is wrong")
    assert begin(both, sign(OTHER_RSA, "RS256")).user_id == 5


@pytest.mark.parametrize(
    "token", ["", ".", "a.b.c", "eyJhbGciOiJSUzI1NiJ9..", "..", "eyJraWQiOjV9.e30.x", "\ud800.a.b"]
)
def test_malformed_token_is_rejected(token: str, tmp_path: Path) -> None:
    with pytest.raises(AuthenticationFailed):
        begin(method_with(RSA, tmp_path=tmp_path), token)


@pytest.mark.parametrize(
    ("pem", "words"),
    [
        (private_pem(RSA), "has a private key.*openssl pkey"),
        (public_pem(rsa.generate_private_key(65537, 1024)), "is not RSA of 2048 bits or more, P-256, or Ed25519"),
        (public_pem(ec.generate_private_key(ec.SECP384R1())), "is not RSA"),
        (public_pem(ed448.Ed448PrivateKey.generate()), "is not RSA"),
        (b"a secret", "no public key in PEM format"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "no public key in PEM format"),
        (b"", "is empty"),
    ],
)
def test_unsuitable_key_file_is_an_error_at_start(pem: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem)
    with pytest.raises(ConfigError, match=f"^--token-key-file: .*{words}"):
        load_key_files(Config(token_key_files=(str(path),)))


# --- JWK sets ---


def key_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def test_key_set_has_only_its_public_signature_keys() -> None:
    private: Any = jwt.get_algorithm_by_name("RS256").to_jwk(RSA, as_dict=True)
    keys = parse_key_set(
        key_set(
            jwk(RSA, kid="1", use="sig", alg="RS256", x5c=["ignored"]),
            jwk(P256, kid="2", key_ops=["verify"]),
            jwk(ED25519, kid="3", alg="EdDSA"),
            {**private, "kid": "4", "key_ops": ["sign", "verify"]},
            {"kty": "oct", "k": "AAAA", "kid": "5", "alg": "HS256"},
            jwk(RSA, kid="6", use="enc"),
            jwk(RSA, kid="7", alg="RS512"),
            jwk(P256, kid="8", key_ops=["deriveKey"]),
            {**jwk(P256, kid="9"), "x": "AAAA"},
            {"kty": ["RSA"], "kid": "10"},
            {"kid": "11"},
            {**jwk(P256), "kid": 12},
            jwk(ec.generate_private_key(ec.SECP384R1()), kid="13"),
            jwk(rsa.generate_private_key(65537, 1024), kid="14"),
            {**jwk(P256), "kty": "RSA", "kid": "15"},
        )
    )
    assert [(key.kid, key.algorithm) for key in keys] == [
        ("1", "RS256"),
        ("2", "ES256"),
        ("3", "EdDSA"),
        ("4", "RS256"),
    ]
    assert not any(hasattr(key.key, "private_bytes") for key in keys)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[1]}', b"\xff", b"[" * 5000])
def test_other_responses_are_no_key_set(body: bytes) -> None:
    with pytest.raises(ValueError, match="not a JWK set"):
        parse_key_set(body)


def test_key_set_is_bounded() -> None:
    with pytest.raises(ValueError, match=f"more than {MAX_KEYS} keys"):
        parse_key_set(key_set(*(jwk(ED25519, kid=str(number)) for number in range(MAX_KEYS + 1))))


class Provider:
    """The identity provider: its responses wait for the test."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.requests: list[Deferred[tuple[int, bytes]]] = []
        self.keys: Any = JwksKeys("https://id.example/keys", timeout=TIMEOUT, reactor=self.clock)  # type: ignore[arg-type]
        self.keys._client = self
        self.method = method_with(key_set=self.keys)

    async def get(self, url: bytes, headers: Any) -> tuple[int, bytes]:
        assert url == b"https://id.example/keys"
        self.requests.append(Deferred())
        return await self.requests[-1]

    def respond(self, *keys: dict[str, Any], status: int = 200) -> None:
        self.requests[-1].callback((status, key_set(*keys)))

    def learn(self, *keys: dict[str, Any]) -> None:
        """Let the first token fetch `keys`."""
        pending = begin(self.method, sign(RSA, "RS256", kid="a"))
        self.respond(*keys)
        pending.addErrback(lambda _: None)


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()
    yield found
    assert found.clock.getDelayedCalls() == []


def result(pending: Deferred[Any]) -> Any:
    """The user's id, or the exception's type."""
    results: list[Any] = []
    pending.addBoth(results.append)
    assert len(results) == 1, "it waits"
    return type(results[0].value) if isinstance(results[0], Failure) else results[0].user_id


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_tokens_that_come_together_share_one_request_and_later_ones_need_none(
    algorithm: str, provider: Provider
) -> None:
    token = sign(PRIVATE[algorithm], algorithm, kid="a")
    pending = [begin(provider.method, token) for _ in range(20)]
    assert len(provider.requests) == 1
    provider.respond(jwk(PRIVATE[algorithm], kid="a"))
    assert {result(one) for one in pending} == {5}
    assert begin(provider.method, token).user_id == 5
    assert begin(provider.method, sign(PRIVATE[algorithm], algorithm)).user_id == 5, "without kid every key is tried"
    refused(provider.method, sign(SECRET, "HS256"), "must be signed with RS256 or ES256 or EdDSA")
    refused(provider.method, sign(None, "none"), "must be signed with")
    assert provider.keys.counts == {"ok": 1, "failed": 0}


def test_unknown_kid_fetches_the_keys_again_but_not_for_each_token(provider: Provider) -> None:
    provider.learn(jwk(RSA, kid="a"))
    new = sign(OTHER_RSA, "RS256", kid="b")
    refused(provider.method, new, "signature is wrong")
    assert len(provider.requests) == 1, "the keys have just been fetched"
    provider.clock.advance(MIN_INTERVAL)
    pending = [begin(provider.method, new) for _ in range(5)]
    assert begin(provider.method, sign(RSA, "RS256", kid="a")).user_id == 5, "known keys do not wait"
    provider.respond(jwk(RSA, kid="a"), jwk(OTHER_RSA, kid="b"))
    assert {result(one) for one in pending} == {5}
    for number in range(100):
        refused(provider.method, sign(RSA, "RS256", kid=f"invented {number}"), "signature is wrong")
    assert len(provider.requests) == 2


def test_key_of_another_kid_or_type_does_not_verify(provider: Provider) -> None:
    provider.learn(jwk(RSA, kid="a"), jwk(P256, kid="b"))
    refused(provider.method, sign(P256, "ES256", kid="a"), "signature is wrong")
    refused(provider.method, sign(RSA, "RS256", kid="b"), "signature is wrong")
    refused(provider.method, sign(ED25519, "EdDSA"), "signature is wrong")


def test_withdrawn_key_is_rejected_after_the_longest_age(provider: Provider) -> None:
    provider.learn(jwk(RSA, kid="a"))
    provider.clock.advance(MAX_AGE - 1)
    assert begin(provider.method, sign(RSA, "RS256", kid="a")).user_id == 5
    provider.clock.advance(1)
    pending = begin(provider.method, sign(RSA, "RS256", kid="a"))
    provider.respond(jwk(OTHER_RSA, kid="b"))
    assert result(pending) is AuthenticationFailed


@pytest.mark.parametrize("fault", ["status", "silent", "empty", "garbage"])
def test_provider_that_fails_leaves_the_known_keys_for_a_day(fault: str, provider: Provider) -> None:
    def fail() -> None:
        if fault == "silent":
            provider.clock.advance(TIMEOUT)
        elif fault == "empty":
            provider.respond({"kty": "oct"})
        elif fault == "garbage":
            provider.requests[-1].callback((200, b"<html>"))
        else:
            provider.respond(jwk(OTHER_RSA, kid="a"), status=302)

    token = sign(RSA, "RS256", kid="a")
    pending = begin(provider.method, token)
    fail()
    assert result(pending) is Unavailable
    assert result(begin(provider.method, token)) is Unavailable
    assert len(provider.requests) == 1, "a request that failed is not repeated at once"
    provider.clock.advance(MIN_INTERVAL)
    provider.learn(jwk(RSA, kid="a"))
    provider.clock.advance(MAX_AGE)
    pending = begin(provider.method, token)
    fail()
    assert result(pending) == 5
    assert result(begin(provider.method, token)) == 5
    provider.clock.advance(MAX_STALE)
    pending = begin(provider.method, token)
    fail()
    assert result(pending) is Unavailable
    assert provider.keys.counts == {"ok": 1, "failed": 3}


@pytest.mark.parametrize("url", ["ftp://x/keys", "id.example", "https://user:hunter2@id.example/", "https://x/ y", ""])
def test_invalid_url_is_an_error_at_start(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^--jwks-url") as caught:
        JwksKeys(url, timeout=1.0, reactor=Clock())  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)
