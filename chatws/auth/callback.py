"""The authentication method `callback`: asks the application about the session of the browser's cookies.

The server sends one GET to `--auth-url`, with headers of the request that opened the connection. The application
accepts with 200 and `{"user_id":123}` or `{"contact_id":7}`, optionally with `conversations`, `groups`, `role` and
`expires_in`. It rejects with 401, 403 or `{"user_id":null}`. Every other result (a redirect, another status, invalid
JSON, a timeout) is `Unavailable`.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.web.http_headers import Headers

from chatws.auth.auth_url import check_auth_url
from chatws.auth.cache import RepeatedErrorLog, SingleFlightCache
from chatws.auth.fair_queue import FairQueue
from chatws.auth.http_client import HttpClient, InvalidResponse
from chatws.auth.methods import require_same_user
from chatws.auth.roles import parse_conversations, parse_role
from chatws.chat.interfaces import Credentials, Identity
from chatws.errors import AuthenticationFailed, ClientError, Unavailable
from chatws.ids import Id, parse_groups, parse_id
from chatws.interfaces import Reactor
from chatws.net.web_client import describe_error

__all__ = ["FORWARDED", "MAX_PARALLEL", "CallbackMethod", "parse_response"]

#: Headers of the browser that are forwarded unchanged. Some applications bind a session to the User-Agent.
FORWARDED = ("cookie", "authorization", "origin", "user-agent")
#: Parallel requests to the application: about the workers of a PHP-FPM pool. The others wait.
MAX_PARALLEL = 32
#: Seconds for which an identity lasts at least. An application that always answers 0 would be asked all the time.
MIN_TTL = 10.0
#: Seconds for which an identity lasts at most: a month. No connection is as old.
MAX_TTL = 2_592_000.0

_Key = tuple[tuple[str, str], ...]


class _CallbackBody(msgspec.Struct):
    user_id: object = msgspec.UNSET
    contact_id: object = msgspec.UNSET
    conversations: object = msgspec.UNSET
    groups: object = msgspec.UNSET
    role: object = msgspec.UNSET
    expires_in: object = msgspec.UNSET


class CallbackMethod:
    """Accept the user that the application returns for the browser's cookies.

    :param url: http or https.
    :param ttl: seconds after which the application is asked again, unless it answers with `expires_in`; 0: never.
    :param timeout: seconds for one request, without its wait for one of the `MAX_PARALLEL` slots. Addresses take turns.
    :raises ConfigError: the URL is invalid.
    """

    name = "callback"
    required_credential = "a Cookie or Authorization header"
    verifies_identity = True
    _log = Logger()

    def __init__(self, url: str, *, timeout: float, ttl: float = 0.0, reactor: Reactor) -> None:
        self._url = check_auth_url(url)
        self._ttl = ttl
        self._client = HttpClient(reactor, timeout, MAX_PARALLEL)
        self._error_log = RepeatedErrorLog(self._log, reactor)
        # nothing is cached: a logout must take effect at once
        self._users: SingleFlightCache[_Key, Identity | None] = SingleFlightCache(
            self._load, ttl=0, timeout=timeout, clock=reactor, queue=FairQueue(MAX_PARALLEL, timeout, reactor)
        )

    def can_handle(self, credentials: Credentials) -> bool:
        """Return whether the request that opened the connection has a Cookie or an Authorization header."""
        headers = credentials.http_request.headers
        return bool(headers.get("cookie") or headers.get("authorization"))

    def authenticate(self, credentials: Credentials) -> Deferred[Identity]:
        """See `Method.authenticate`."""
        return Deferred.fromCoroutine(self._authenticate(credentials))

    def forget(self, user_id: Id) -> None:
        """See `Revocable.forget`. The users of pending requests are unknown, so this affects all of them."""
        self._users.forget(lambda key: True)

    def stop(self) -> Deferred[None]:
        """Close the idle connections to the application."""
        return self._client.stop()

    async def _authenticate(self, credentials: Credentials) -> Identity:
        pending = self._users.get(_headers(credentials), owner=("address", credentials.remote_address))
        response = await pending if isinstance(pending, Deferred) else pending
        if response is None:
            raise AuthenticationFailed("the application does not know this session")
        require_same_user(credentials, response.user_id)
        if response.renew_after is None and self._ttl:
            return replace(response, renew_after=self._ttl)
        return response

    async def _load(self, headers: _Key) -> Identity | None:
        """Return the accepted user, or None if the application rejects the session.

        :raises Unavailable: the request failed, or the response is invalid.
        """
        try:
            return await self._request(headers)
        except (CancelledError, AuthenticationFailed):
            raise
        except InvalidResponse as error:
            self._error_log.make(f"--auth-url: {error}")
        except Exception as error:
            self._error_log.make(f"--auth-url: no response: {describe_error(error)}")
        raise Unavailable("the application is unavailable")

    async def _request(self, headers: _Key) -> Identity | None:
        request_headers = Headers({"accept": ["application/json"]})
        for name, value in headers:
            # unchanged: chatws.server decodes headers as Latin-1
            request_headers.addRawHeader(name.encode(), value.encode("latin-1", "replace"))
        status, body = await self._client.get(self._url, request_headers)
        if status in (401, 403):
            return None
        if status != 200:
            hint = "; redirects are not followed" if 300 <= status < 400 else ""
            raise InvalidResponse(f"status {status} is neither 200 (accept) nor 401 or 403 (reject){hint}")
        return parse_response(body)


def _headers(credentials: Credentials) -> _Key:
    """Return the headers of the request to the application. Equal headers share one request."""
    headers = credentials.http_request.headers
    forwarded = [(name, headers[name]) for name in FORWARDED if headers.get(name)]
    # only the last address is verified, by this server; the client may have written those before it
    addresses = [address for address in (headers.get("x-forwarded-for", ""), credentials.remote_address) if address]
    if addresses:
        forwarded.append(("x-forwarded-for", ", ".join(addresses)))
    return tuple(forwarded)


def parse_response(body: bytes) -> Identity | None:
    """Parse the body of a response with status 200.

    :return: the user, or None if the application rejects the session.
    :raises InvalidResponse: the body is invalid.
    :raises AuthenticationFailed: the role is not a text.
    """
    try:
        # PHP prints the byte order mark of a source file before its output
        content = msgspec.json.decode(body.removeprefix(b"\xef\xbb\xbf"), type=_CallbackBody)
        if content.user_id is msgspec.UNSET and content.contact_id is msgspec.UNSET:
            raise InvalidResponse("the response has neither a user_id nor a contact_id")
        has_contact = _has_session(content.contact_id)
        if not has_contact and not _has_session(content.user_id):
            return None
        if has_contact and _has_session(content.user_id):
            raise InvalidResponse("the response has both a user_id and a contact_id")
        return Identity(
            parse_id(content.contact_id, "contact_id") if has_contact else parse_id(content.user_id, "user_id"),
            CallbackMethod.name,
            conversations=parse_conversations(content.conversations),
            is_contact=has_contact,
            groups=None if content.groups is msgspec.UNSET else parse_groups(content.groups),
            role=parse_role(content.role),
            renew_after=_parse_expires_in(content.expires_in),
        )
    except AuthenticationFailed:
        raise
    except ClientError as error:
        raise InvalidResponse(f"in the response, {error.message}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidResponse(
            'a response with status 200 must be a JSON object like {"user_id":123}; to reject, respond with 401'
        ) from None


def _has_session(id: object) -> bool:
    """Return whether PHP has an id: not `$_SESSION['user_id'] ?? null` without a session, or its casts of that."""
    return id is not msgspec.UNSET and id is not None and id is not False and id != ""


def _parse_expires_in(value: object) -> float | None:
    """Return the seconds for which the identity lasts, or None if the response names none."""
    if value is msgspec.UNSET:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise InvalidResponse("in the response, expires_in must be a number of seconds")
    return float(min(max(value, MIN_TTL), MAX_TTL))
