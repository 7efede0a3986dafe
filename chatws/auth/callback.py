"""The application says who a browser is: chatws asks it with the browser's own cookies.

One GET to `--auth-url` with the headers of the request that opened the connection. 200 with
`{"user_id":123}`, optionally with `"conversations":[…]`, is a yes; 401 and 403 are a no. Anything else (a redirect,
another status, no JSON, too much of it, no answer in time) says nothing, and is neither: `Unavailable`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from chatws.auth.lookup import Complaints, Lookup
from chatws.auth.methods import agree
from chatws.chat.contracts import Credentials, Identity
from chatws.errors import AuthenticationFailed, ClientError, OperatorError, Unavailable
from chatws.ids import Id, parse_id

__all__ = ["FORWARDED", "MAX_ANSWER", "MAX_PARALLEL", "CallbackMethod"]

#: Headers of the browser that are passed on as they are. Some applications bind a session to the User-Agent.
FORWARDED = ("cookie", "authorization", "origin", "user-agent")
#: Bytes that an answer may have.
MAX_ANSWER = 65_536
#: Questions that are put to the application at once; the others wait their turn, within their timeout.
MAX_PARALLEL = 32

_Key = tuple[tuple[str, str], ...]


class _Answer(msgspec.Struct, frozen=True):
    user_id: Id
    conversations: frozenset[Id] | None


class _Body(msgspec.Struct):
    user_id: object
    conversations: list[object] | msgspec.UnsetType = msgspec.UNSET


class _Odd(Exception):
    """The application answered, but neither yes nor no."""


class CallbackMethod:
    """:param url: http or https.
    :param timeout: seconds for one question, waiting for a turn included.
    :raises OperatorError: the URL is none.
    """

    name = "callback"
    wants = "a Cookie or Authorization header"
    proves = True
    _log = Logger()

    def __init__(self, url: str, *, timeout: float, reactor: Any) -> None:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
            self._url = url.encode("ascii")
        except ValueError:
            usable = False
        if not usable:
            raise OperatorError("--auth-url must be an http:// or https:// URL, without a password")
        self._pool = HTTPConnectionPool(reactor, persistent=True)  # type: ignore[no-untyped-call]
        self._pool.maxPersistentPerHost = MAX_PARALLEL
        self._pool.cachedConnectionTimeout = 30
        agent = Agent(reactor, connectTimeout=timeout, pool=self._pool)  # type: ignore[no-untyped-call]
        self._agent: Any = agent
        self._turns = DeferredSemaphore(MAX_PARALLEL)
        self._complaints = Complaints(self._log, reactor)
        # an answer is not kept: who logs out is out
        self._lookup: Lookup[_Key, _Answer | None] = Lookup(self._ask, keep=0, timeout=timeout, clock=reactor)

    def has_opinion(self, credentials: Credentials) -> bool:
        headers = credentials.http_request.headers
        return bool(headers.get("cookie") or headers.get("authorization"))

    def authenticate(self, credentials: Credentials) -> Deferred[Identity]:
        return Deferred.fromCoroutine(self._authenticate(credentials))

    def stop(self) -> Deferred[None]:
        """Close the connections that are kept open for the next question."""
        closed: Deferred[None] = self._pool.closeCachedConnections()  # type: ignore[no-untyped-call]
        return closed

    async def _authenticate(self, credentials: Credentials) -> Identity:
        found = self._lookup.get(_headers(credentials))
        answer = await found if isinstance(found, Deferred) else found
        if answer is None:
            raise AuthenticationFailed("the application does not know this session")
        agree(credentials, answer.user_id)
        return Identity(user_id=answer.user_id, method=self.name, conversations=answer.conversations)

    async def _ask(self, headers: _Key) -> _Answer | None:
        """The application's yes, or None for its no.

        :raises Unavailable: it said neither.
        """
        await self._turns.acquire()
        try:
            return await self._request(headers)
        except CancelledError:
            raise
        except _Odd as error:
            self._complaints.make(f"--auth-url: {error}")
        except Exception as error:
            self._complaints.make(f"--auth-url: no answer: {_sentence(error)}")
        finally:
            self._turns.release()
        raise Unavailable("the application cannot be asked now")

    async def _request(self, headers: _Key) -> _Answer | None:
        sent = Headers({"accept": ["application/json"]})
        for name, value in headers:
            # as they came: chatws.server reads them as Latin-1
            sent.addRawHeader(name.encode(), value.encode("latin-1", "replace"))
        response = await self._agent.request(b"GET", self._url, sent, None)
        body = _Reader(MAX_ANSWER if response.code == 200 else 0)
        response.deliverBody(body)
        if response.code in (401, 403):
            return None
        if response.code != 200:
            hint = "; a redirect is not followed" if 300 <= response.code < 400 else ""
            raise _Odd(f"status {response.code} is neither a yes (200) nor a no (401, 403){hint}")
        return _parse(await body.done)


def _headers(credentials: Credentials) -> _Key:
    """What is sent to the application, which is also what makes two questions one."""
    given = credentials.http_request.headers
    found = [(name, given[name]) for name in FORWARDED if given.get(name)]
    # the last one is ours, and true; what stands before it is hearsay
    hops = [one for one in (given.get("x-forwarded-for", ""), credentials.remote_address) if one]
    if hops:
        found.append(("x-forwarded-for", ", ".join(hops)))
    return tuple(found)


def _parse(body: bytes) -> _Answer:
    """:raises _Odd: it is no answer."""
    try:
        # files saved with a byte order mark are common in PHP, and it precedes what they print
        said = msgspec.json.decode(body.removeprefix(b"\xef\xbb\xbf"), type=_Body)
        user_id = parse_id(said.user_id, "user_id")
        conversations = said.conversations
        if conversations is msgspec.UNSET:
            return _Answer(user_id, None)
        return _Answer(user_id, frozenset(parse_id(one, "conversations") for one in conversations))
    except ClientError as error:
        raise _Odd(f"in the answer {error.message}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _Odd('the answer to a yes must be JSON like {"user_id":123}') from None


def _sentence(error: Exception) -> str:
    reasons = getattr(error, "reasons", None)  # twisted.web wraps what happened to the connection
    if reasons and isinstance(reasons[0], Failure):
        return f"{type(error).__name__}: {reasons[0].getErrorMessage()}"
    return str(error) or type(error).__name__


class _Reader(Protocol):
    """Collects an answer, and hangs up when there is more of it than `limit` bytes.

    :ivar done: fires with the whole of it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self.done: Deferred[bytes] = Deferred(lambda _: self._hang_up())

    def connectionMade(self) -> None:
        if not self._limit:
            self._hang_up()

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._limit:
            self._parts.append(data)
            return
        self._parts.clear()
        self._hang_up()
        if not self.done.called and self._limit:
            self.done.errback(_Odd(f"the answer has more than {self._limit} bytes"))

    def connectionLost(self, reason: Any = None) -> None:
        if self.done.called or not self._limit:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(b"".join(self._parts))
        else:
            self.done.errback(reason)

    def _hang_up(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.loseConnection()
