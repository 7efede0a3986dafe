"""The authentication method `token`: JSON Web Tokens signed with HS256 (RFC 7515, RFC 7519; docs/protocol.md §5).

Follows RFC 8725. PyJWT verifies the signature. This module checks the claims, strictly by type. The token's header
does not choose anything: HS256 is the only algorithm, `kid` is ignored and critical extensions are rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import jwt
import msgspec

from chatws.auth.methods import require_same_user
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

    :param secrets: the token may be signed with any of them.
    :param clock: `seconds()` since 1970, to compare with `exp`, `nbf` and `iat`.
    :param audience: what `aud` must be or contain; empty ignores `aud`.
    """

    name = "token"
    required_credential = "token"
    verifies_identity = True

    def __init__(self, secrets: Sequence[bytes], *, clock: TimeSource, audience: str = "") -> None:
        self._secrets = tuple(secrets)
        self._clock = clock
        self._audience = audience
        self._jws = jwt.PyJWS(algorithms=["HS256"])

    def change_secrets(self, secrets: Sequence[bytes]) -> None:
        """Replace the secrets. Existing connections remain until their token expires."""
        self._secrets = tuple(secrets)

    def can_handle(self, credentials: Credentials) -> bool:
        """Return whether the message has a token."""
        return credentials.token is not None

    def authenticate(self, credentials: Credentials) -> Identity:
        """Verify the token (RFC 7519 §7.2).

        :raises AuthenticationFailed: the token is invalid; the message says why.
        """
        assert credentials.token is not None
        claims = self._claims(self._payload(credentials.token))
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

    def _payload(self, token: str) -> bytes:
        """Verify the signature and return the payload."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise AuthenticationFailed("the token is too long")
        if "=" in token:  # RFC 7515 §2: base64url without padding; PyJWT lets some through
            raise AuthenticationFailed("the token is malformed")
        for secret in self._secrets:
            try:
                decoded = self._jws.decode_complete(token, secret, algorithms=["HS256"])
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidAlgorithmError:
                raise AuthenticationFailed("the token must be signed with HS256") from None
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
