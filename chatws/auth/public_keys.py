"""Public keys that verify tokens, from PEM files and from a JWK set (RFC 7517).

A key fixes its algorithm: RS256 for RSA, ES256 for P-256, EdDSA for Ed25519 (RFC 8725 §3.1). Keys of other types, also
symmetric ones in a JWK set, are never used.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import msgspec

from chatws.auth.secrets import read_secret_file
from chatws.errors import ConfigError

__all__ = ["ALGORITHMS", "MAX_KEYS", "VerificationKey", "load_key_files", "parse_key_set"]

#: Signature algorithms with a public key.
ALGORITHMS = ("RS256", "ES256", "EdDSA")
#: Keys in files, and in a JWK set. A token without `kid` is tried with each of its algorithm.
MAX_KEYS = 20
#: Bits of an RSA key: NIST SP 800-131A, and RFC 7518 §3.3.
MIN_RSA_BITS = 2048
_TYPES = "RSA of 2048 bits or more, P-256, or Ed25519"
#: The public parameters by the key's type and curve.
_PARAMETERS = {("RSA", None): ("n", "e"), ("EC", "P-256"): ("x", "y"), ("OKP", "Ed25519"): ("x",)}


class VerificationKey(NamedTuple):
    """A key that verifies tokens of one algorithm.

    :ivar kid: its name in the key set; empty for a key of a file.
    :ivar algorithm: one of `ALGORITHMS`, or HS256.
    :ivar key: as `cryptography` has it, or a secret.
    """

    kid: str
    algorithm: str
    key: Any


class KeyFileSettings(Protocol):
    """The settings of `chatws.config.schema.Config` that this module uses."""

    @property
    def token_key_files(self) -> tuple[str, ...]: ...


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]


def load_key_files(config: KeyFileSettings) -> tuple[VerificationKey, ...]:
    """Return the public keys of `token_key_files`.

    :raises ConfigError: a file cannot be read, or has no suitable public key.
    """
    if len(config.token_key_files) > MAX_KEYS:
        raise ConfigError(f"--token-key-file: at most {MAX_KEYS} keys")
    return tuple(_load_file(path) for path in config.token_key_files)


def _load_file(path: str) -> VerificationKey:
    from cryptography.hazmat.primitives import serialization

    pem = read_secret_file(path, "--token-key-file", allow_world_readable=True)
    if b"PRIVATE KEY" in pem:
        raise ConfigError(
            f"--token-key-file: {path} has a private key, which belongs to the application only. "
            "Write its public key to a file: openssl pkey -in PRIVATE.pem -pubout -out PUBLIC.pem"
        )
    try:
        key = serialization.load_pem_public_key(pem)
    except Exception:
        raise ConfigError(
            f"--token-key-file: {path} has no public key in PEM format (-----BEGIN PUBLIC KEY-----)"
        ) from None
    algorithm = _algorithm(key)
    if not algorithm:
        raise ConfigError(f"--token-key-file: the key in {path} is not {_TYPES}")
    return VerificationKey("", algorithm, key)


def _algorithm(key: Any) -> str:
    """Return the algorithm of a public key; empty if it is of another type or too short."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPublicKey):
        return "RS256" if key.key_size >= MIN_RSA_BITS else ""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "ES256" if isinstance(key.curve, ec.SECP256R1) else ""
    return "EdDSA" if isinstance(key, ed25519.Ed25519PublicKey) else ""


def parse_key_set(body: bytes) -> tuple[VerificationKey, ...]:
    """Return the suitable keys of a JWK set (RFC 7517 §5). Others, such as those for encryption, are skipped.

    :raises ValueError: it is no key set, or has more than `MAX_KEYS` suitable keys.
    """
    try:
        keys = msgspec.json.decode(body, type=_KeySet).keys
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ValueError('the response is not a JWK set: {"keys":[…]}') from None
    found = [key for key in map(_parse_key, keys) if key is not None]
    if len(found) > MAX_KEYS:
        raise ValueError(f"the JWK set has more than {MAX_KEYS} keys")
    return tuple(found)


def _parse_key(fields: dict[str, Any]) -> VerificationKey | None:
    import jwt

    kty, curve = fields.get("kty"), fields.get("crv")
    names = _PARAMETERS.get((kty, curve)) if isinstance(kty, str) and isinstance(curve, str | None) else None
    operations = fields.get("key_ops")
    if (
        names is None
        or fields.get("use", "sig") != "sig"
        or (operations is not None and (not isinstance(operations, list) or "verify" not in operations))
    ):
        return None
    # without private parameters, which a mistaken application may publish
    public = {"kty": kty, **{name: fields.get(name) for name in names}, **({"crv": curve} if curve else {})}
    wanted = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}[str(kty)]
    try:
        key = jwt.PyJWK(public, algorithm=wanted).key
    except Exception:
        return None  # malformed: PyJWT and cryptography raise many types
    kid = fields.get("kid", "")
    if _algorithm(key) != wanted or fields.get("alg", wanted) not in (wanted, "Ed25519") or not isinstance(kid, str):
        return None
    return VerificationKey(kid, wanted, key)
