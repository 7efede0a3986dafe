"""Tickets: JSON Web Tokens signed with HS256 (RFC 7515, RFC 7519; docs/protocol.md §5), as RFC 8725 says to read them.

PyJWT checks the signature; the claims are checked here, strictly by type and by the clock that is handed in. The
header decides nothing: no algorithm but HS256, no `kid`, no critical extension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jwt
import msgspec

from chatws.auth.methods import agree
from chatws.chat.contracts import Credentials, Identity
from chatws.errors import AuthenticationFailed, ClientError
from chatws.ids import Id, parse_id

__all__ = ["LEEWAY", "MAX_TICKET_CHARACTERS", "TicketMethod"]

#: Seconds by which the clocks of chatws and of the application may differ.
LEEWAY = 5.0
#: A longer token is refused unread.
MAX_TICKET_CHARACTERS = 16_384
#: 1 January of the year 10000. A later `exp` is a mistake: milliseconds, as a rule.
_END_OF_TIME = 253_402_300_800


class _Claims(msgspec.Struct):
    sub: str
    exp: int | float
    nbf: int | float | None = None
    iat: int | float | None = None
    aud: str | list[str] | None = None
    conversations: list[object] | msgspec.UnsetType = msgspec.UNSET


class TicketMethod:
    """:param secrets: any of them may have signed.
    :param audience: what `aud` must be or contain; `aud` is not looked at when this is empty.
    """

    name = "ticket"
    wants = "token"
    proves = True

    def __init__(self, secrets: Sequence[bytes], *, clock: Any, audience: str = "") -> None:
        self._secrets = tuple(secrets)
        self._clock = clock
        self._audience = audience
        self._jws = jwt.PyJWS(algorithms=["HS256"])

    def change_secrets(self, secrets: Sequence[bytes]) -> None:
        """From now on these sign. Who is in stays in, until the ticket expires."""
        self._secrets = tuple(secrets)

    def has_opinion(self, credentials: Credentials) -> bool:
        return credentials.token is not None

    def authenticate(self, credentials: Credentials) -> Identity:
        """:raises AuthenticationFailed: the sentence says what is wrong with the ticket."""
        assert credentials.token is not None
        claims = self._claims(self._payload(credentials.token))
        self._check_times(claims)
        if self._audience:
            audiences = [claims.aud] if isinstance(claims.aud, str) else claims.aud or []
            if self._audience not in audiences:
                raise AuthenticationFailed("the ticket is for another audience")
        try:
            user_id = parse_id(claims.sub, "sub")
            conversations = _conversations(claims.conversations)
        except ClientError as error:
            raise AuthenticationFailed(f"the ticket is malformed: {error.message}") from None
        agree(credentials, user_id)
        # what the leeway lets in must not be sent away at once
        return Identity(
            user_id=user_id, method=self.name, expires_at=float(claims.exp) + LEEWAY, conversations=conversations
        )

    def _payload(self, token: str) -> bytes:
        """What the ticket says, once its signature is known to be good."""
        if len(token) > MAX_TICKET_CHARACTERS:
            raise AuthenticationFailed("the ticket is too long")
        if "=" in token:  # RFC 7515 §2: base64url without padding; PyJWT lets some through
            raise AuthenticationFailed("the ticket is malformed")
        for secret in self._secrets:
            try:
                found = self._jws.decode_complete(token, secret, algorithms=["HS256"])
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidAlgorithmError:
                raise AuthenticationFailed("the ticket must be signed with HS256") from None
            except Exception:
                # whatever a parser makes of bytes from outside, it is not a yes
                raise AuthenticationFailed("the ticket is malformed") from None
            if "crit" in found["header"]:  # RFC 7515 §4.1.11: none is understood here
                raise AuthenticationFailed("the ticket has a critical extension")
            payload: bytes = found["payload"]
            return payload
        raise AuthenticationFailed("the ticket's signature is wrong")

    def _claims(self, payload: bytes) -> _Claims:
        try:
            return msgspec.json.decode(payload, type=_Claims)
        except msgspec.ValidationError as error:
            raise AuthenticationFailed(f"the ticket is malformed: {error}"[:200]) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise AuthenticationFailed("the ticket is malformed") from None

    def _check_times(self, claims: _Claims) -> None:
        now = self._clock.seconds()
        if not 0 <= claims.exp < _END_OF_TIME:
            raise AuthenticationFailed("the ticket's exp is no time in seconds since 1970")
        if claims.exp + LEEWAY <= now:
            raise AuthenticationFailed("the ticket has expired")
        if (claims.nbf is not None and claims.nbf > now + LEEWAY) or (
            claims.iat is not None and claims.iat > now + LEEWAY
        ):
            raise AuthenticationFailed("the ticket is not valid yet; do the clocks agree?")


def _conversations(listed: list[object] | msgspec.UnsetType) -> frozenset[Id] | None:
    if listed is msgspec.UNSET:
        return None  # all. Not so for null: what the application meant to list may have failed
    return frozenset(parse_id(one, "conversations") for one in listed)
