"""The authentication method `token`: signed JSON Web Tokens (RFC 7515, RFC 7519; docs/protocol.md §5).

Follows RFC 8725. PyJWT verifies the signature. This module checks the claims, strictly by type. The token's header
selects among the configured keys and nothing else: a secret verifies HS256 only, and a public key only the algorithm
of its type. Critical extensions are rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import jwt
import msgspec
from twisted.internet.defer import Deferred, succeed

from chatws.auth.jwks import JwksKeys
from chatws.auth.methods import require_same_user
from chatws.auth.public_keys import ALGORITHMS, VerificationKey
from chatws.auth.roles import parse_conversations, parse_role
from chatws.chat.interfaces import Credentials, Identity
from chatws.errors import AuthenticationFailed, ClientError
from chatws.ids import parse_groups, parse_id

__all__ = ["LEEWAY", "MAX_TOKEN_CHARACTERS", "TimeSource", "TokenMethod"]

#: Seconds by which the clocks of chatws and of the application may differ: with NTP, they differ by milliseconds.
LEEWAY = 5.0
#: A longer token is rejected before it is parsed. 900 conversations of 12 digits fit.
MAX_TOKEN_CHARACTERS = 16_384
#: Seconds to the year 10000. A later `exp` is a mistake, usually a time in milliseconds.
_MAX_EXP = 253_402_300_800


class TimeSource(Protocol):
    """The wall clock (`chatws.runtime.clock.WallClock`)."""

    def seconds(self) -> float:
        """Return the time in seconds since 1970."""
        ...


class _Claims(msgspec.Struct):
    sub: str
    exp: int | float
    nbf: int | float | None = None
    iat: int | float | None = None
    aud: str | list[str] | None = None
    conversations: object = msgspec.UNSET
    groups: object = msgspec.UNSET
    role: object = msgspec.UNSET


class TokenMethod:
    """Accept the user of a valid token.

    :param secrets: the token may be signed with any of them (HS256).
    :param public_keys: or with the private key of any of these.
    :param key_set: or with that of a key at `jwks_url`.
    :param clock: `seconds()` since 1970, to compare with `exp`, `nbf` and `iat`.
    :param audience: what `aud` must be or contain; empty ignores `aud`.
    """

    name = "token"
    required_credential = "token"
    verifies_identity = True

    def __init__(
        self,
        secrets: Sequence[bytes],
        *,
        clock: TimeSource,
        audience: str = "",
        public_keys: Sequence[VerificationKey] = (),
        key_set: JwksKeys | None = None,
    ) -> None:
        self.change_keys(secrets, public_keys)
        self.key_set = key_set
        self._clock = clock
        self._audience = audience
        self._jws = jwt.PyJWS(algorithms=["HS256", *ALGORITHMS])

    def change_keys(self, secrets: Sequence[bytes], public_keys: Sequence[VerificationKey]) -> None:
        """Replace the secrets and the keys of files. Existing connections remain until their token expires."""
        self._secrets = [VerificationKey("", "HS256", secret) for secret in secrets]
        self._public_keys = tuple(public_keys)

    def stop(self) -> Deferred[None]:
        """Close the connection to `jwks_url`."""
        return succeed(None) if self.key_set is None else self.key_set.stop()

    def can_handle(self, credentials: Credentials) -> bool:
        """Return whether the message has a token."""
        return credentials.token is not None

    def authenticate(self, credentials: Credentials) -> Identity | Deferred[Identity]:
        """Verify the token (RFC 7519 §7.2). Returns a Deferred if keys must be fetched.

        :raises AuthenticationFailed: the token is invalid; the message says why.
        :raises Unavailable: (through the Deferred) the keys cannot be fetched.
        """
        token = credentials.token
        assert token is not None
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise AuthenticationFailed("the token is too long")
        if "=" in token:  # RFC 7515 §2: base64url without padding; PyJWT lets some through
            raise AuthenticationFailed("the token is malformed")
        keys = self._find_keys(token)
        if isinstance(keys, list):
            return self._identify(credentials, token, keys)
        return Deferred.fromCoroutine(self._identify_later(credentials, token, keys))

    async def _identify_later(
        self, credentials: Credentials, token: str, pending: Deferred[list[VerificationKey]]
    ) -> Identity:
        return self._identify(credentials, token, await pending)

    def _identify(self, credentials: Credentials, token: str, keys: Sequence[VerificationKey]) -> Identity:
        claims = self._claims(self._payload(token, keys))
        self._check_times(claims)
        if self._audience:
            audiences = [claims.aud] if isinstance(claims.aud, str) else claims.aud or []
            if self._audience not in audiences:
                raise AuthenticationFailed("the token is for another audience")
        try:
            user_id = parse_id(claims.sub, "sub")
            conversations = parse_conversations(claims.conversations)
            groups = None if claims.groups is msgspec.UNSET else parse_groups(claims.groups)
            role = parse_role(claims.role)
        except ClientError as error:
            raise AuthenticationFailed(f"the token is malformed: {error.message}") from None
        require_same_user(credentials, user_id)
        # with the leeway: a token that it makes valid must not expire at once
        return Identity(
            user_id,
            self.name,
            expires_at=float(claims.exp) + LEEWAY,
            conversations=conversations,
            groups=groups,
            role=role,
        )

    def _find_keys(self, token: str) -> list[VerificationKey] | Deferred[list[VerificationKey]]:
        """Return the keys that may have signed the token.

        :raises AuthenticationFailed: there are none for its algorithm.
        """
        if not self._public_keys and self.key_set is None:
            return self._secrets
        try:
            header = self._jws.get_unverified_header(token)
        except Exception:
            raise AuthenticationFailed("the token is malformed") from None
        algorithm = header.get("alg")
        if self.key_set is not None and algorithm in ALGORITHMS:
            return self.key_set.find(algorithm, header.get("kid", ""))
        keys = [key for key in (*self._secrets, *self._public_keys) if key.algorithm == algorithm]
        if not keys:
            raise self._wrong_algorithm()
        return keys

    def _wrong_algorithm(self) -> AuthenticationFailed:
        names = dict.fromkeys(key.algorithm for key in (*self._secrets, *self._public_keys))
        expected = " or ".join([*names, *(ALGORITHMS if self.key_set else ())])
        return AuthenticationFailed(f"the token must be signed with {expected}")

    def _payload(self, token: str, keys: Sequence[VerificationKey]) -> bytes:
        """Verify the signature and return the payload."""
        for key in keys:
            try:
                decoded = self._jws.decode_complete(token, key.key, algorithms=[key.algorithm])
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidAlgorithmError:
                raise self._wrong_algorithm() from None
            except Exception:
                # PyJWT may raise anything for malformed bytes: no exception means success
                raise AuthenticationFailed("the token is malformed") from None
            if "crit" in decoded["header"]:  # RFC 7515 §4.1.11: unsupported extensions must be rejected
                raise AuthenticationFailed("the token has a critical extension")
            payload: bytes = decoded["payload"]
            return payload
        raise AuthenticationFailed("the token's signature is wrong")

    def _claims(self, payload: bytes) -> _Claims:
        try:
            return msgspec.json.decode(payload, type=_Claims)
        except msgspec.ValidationError as error:
            raise AuthenticationFailed(f"the token is malformed: {error}"[:200]) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise AuthenticationFailed("the token is malformed") from None

    def _check_times(self, claims: _Claims) -> None:
        now = self._clock.seconds()
        if not 0 <= claims.exp < _MAX_EXP:
            raise AuthenticationFailed("the token's exp is not a time in seconds since 1970")
        if claims.exp + LEEWAY <= now:
            raise AuthenticationFailed("the token has expired")
        if (claims.nbf is not None and claims.nbf > now + LEEWAY) or (
            claims.iat is not None and claims.iat > now + LEEWAY
        ):
            raise AuthenticationFailed("the token is not valid yet; check the clocks of both servers")
