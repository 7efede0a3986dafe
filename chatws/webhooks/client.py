"""The HTTP client of webhooks: one POST at a time, with limits.

Twisted's Agent neither repeats a POST on a dead connection of its pool nor ends a connection that has a new address in
the DNS. The client does both.
"""

from __future__ import annotations

import email.utils
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.protocol import Protocol
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseNeverReceived,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from chatws.clients.webhook import HEADER, sign
from chatws.interfaces import Reactor, zope_clock
from chatws.net.web_client import QuietEndpoints, describe_error

__all__ = ["MAX_ANSWER", "Answer", "Header", "WebhookClient", "tls_policy"]

#: Bytes of an answer that are read.
MAX_ANSWER = 4096
#: Bytes of an answer on the wire, with its head and the framing of chunks.
MAX_WIRE_BYTES = 16 * MAX_ANSWER
#: Seconds that a connection is used: after that, the name of the receiver is resolved again.
CONNECTION_LIFETIME = 60
#: Bytes of an answer that are shown to the operator.
SHOWN = 200

Header = tuple[str, str]


class Answer(msgspec.Struct, frozen=True):
    """The result of a request.

    :ivar status: the HTTP status, 0 without an answer.
    :ivar problem: why there is no answer; empty if there is one.
    :ivar is_refused: whether the connection was refused.
    :ivar location: the header `Location`.
    :ivar retry_after: the header `Retry-After` in seconds, or None.
    :ivar body: the first bytes of the body.
    """

    status: int = 0
    problem: str = ""
    is_refused: bool = False
    location: str = ""
    retry_after: float | None = None
    body: bytes = b""

    @property
    def is_success(self) -> bool:
        """Whether it acknowledges the request."""
        return 200 <= self.status < 300

    def describe(self) -> str:
        """Return status, `Location` and the beginning of the body, for the operator."""
        if not self.status:
            return self.problem
        location = f", Location: {self.location}" if self.location else ""
        text = " ".join(self.body[:SHOWN].decode("utf-8", "replace").split())
        return f"status {self.status}{location}{f', {text}' if text else ''}"


@implementer(IBodyProducer)
class _Body:
    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """See `IBodyProducer`."""
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """See `IBodyProducer`."""

    def resumeProducing(self) -> None:
        """See `IBodyProducer`."""

    def stopProducing(self) -> None:
        """See `IBodyProducer`."""


class _AnswerReader(Protocol):
    """Read up to `MAX_ANSWER` bytes, then close the connection: an answer that goes on is not waited for."""

    def __init__(self) -> None:
        self._body = b""
        self.done: Deferred[bytes] = Deferred(lambda _: self._close())

    def dataReceived(self, data: bytes) -> None:
        self._body += data
        if len(self._body) >= MAX_ANSWER and not self.done.called:
            self.done.callback(self._body[:MAX_ANSWER])
            self._close()

    def connectionLost(self, reason: Any = None) -> None:
        if self.done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(self._body)
        else:
            self.done.errback(reason)

    def _close(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.loseConnection()


class WebhookClient:
    """Sends requests to one URL. Redirects are not followed.

    :param url: see `chatws.auth.auth_url.check_auth_url`.
    :param timeout: seconds for a request, connecting and the whole answer included.
    :param secrets: returns the secrets that sign; none: requests are not signed.
    :param headers: returns further headers.
    :param policy: how certificates are checked; None as browsers do.
    :param wall_clock: seconds since 1970.
    """

    def __init__(
        self,
        url: bytes,
        *,
        timeout: float,
        secrets: Callable[[], Sequence[bytes]],
        headers: Callable[[], Sequence[Header]],
        policy: Any,
        reactor: Reactor,
        wall_clock: Callable[[], float],
    ) -> None:
        self._url = url
        self._timeout = timeout
        self._secrets = secrets
        self._headers = headers
        self._reactor = reactor
        self._wall_clock = wall_clock
        self._endpoints = QuietEndpoints(reactor, timeout, MAX_WIRE_BYTES, policy)
        self._pool: Any = HTTPConnectionPool(reactor, persistent=True)  # type: ignore[no-untyped-call]
        self._pool.maxPersistentPerHost = 1
        self._pool.cachedConnectionTimeout = CONNECTION_LIFETIME
        self._pool.retryAutomatically = False
        self._agent: Any = Agent.usingEndpointFactory(reactor, self._endpoints, self._pool)  # type: ignore[no-untyped-call]
        self._opened_at: float = 0.0

    async def post(self, body: bytes) -> Answer:
        """Sign and send one request. Never fails."""
        try:
            answering = Deferred.fromCoroutine(self._post(body))
            return await answering.addTimeout(self._timeout, zope_clock(self._reactor), self._timed_out)
        except TimeoutError as error:
            return Answer(problem=str(error))
        except Refused as error:
            return Answer(problem=f"connection refused: {error}", is_refused=True)
        except Exception as error:
            return Answer(problem=describe_error(error))

    def _timed_out(self, failure: Any, timeout: float) -> Any:
        raise TimeoutError(f"no complete answer in {timeout:g} s")

    async def _post(self, body: bytes) -> Answer:
        if self._reactor.seconds() - self._opened_at > CONNECTION_LIFETIME:
            await self.stop()
            self._opened_at = self._reactor.seconds()
        opened = self._endpoints.opened
        try:
            response = await self._request(body)
        except (ResponseNeverReceived, RequestTransmissionFailed):
            if self._endpoints.opened != opened:
                raise
            # the receiver has closed an idle connection: another one at once
            await self.stop()
            self._opened_at = self._reactor.seconds()
            response = await self._request(body)
        reader = _AnswerReader()
        response.deliverBody(reader)
        return Answer(
            response.code,
            location=_header(response, "location"),
            retry_after=_retry_after(_header(response, "retry-after"), self._wall_clock()),
            body=await reader.done,
        )

    async def _request(self, body: bytes) -> Any:
        headers = Headers({"content-type": ["application/json"], "user-agent": ["chatws"], "accept": ["*/*"]})
        for name, value in self._headers():
            headers.setRawHeaders(name, [value])
        secrets = self._secrets()
        if secrets:
            headers.setRawHeaders(HEADER, [sign(body, secrets, self._wall_clock())])
        return await self._agent.request(b"POST", self._url, headers, _Body(body))

    def stop(self) -> Deferred[None]:
        """Close the connection."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed


def tls_policy(pem: bytes | None) -> Any:
    """Return how certificates are checked.

    :param pem: certificates of the authorities that are trusted instead of the system's.
    :raises ValueError: it has no valid certificate.
    """
    if pem is None:
        return BrowserLikePolicyForHTTPS()  # type: ignore[no-untyped-call]
    from twisted.internet.ssl import Certificate, trustRootFromCertificates

    end = b"-----END CERTIFICATE-----"
    blocks = [block + end for block in pem.split(end)[:-1]]
    if not blocks:
        raise ValueError("has no certificate in PEM")
    try:
        certificates = [Certificate.loadPEM(block) for block in blocks]
    except Exception as error:
        raise ValueError(f"has an invalid certificate: {error}") from None
    return BrowserLikePolicyForHTTPS(trustRootFromCertificates(certificates))  # type: ignore[no-untyped-call]


def _header(response: Any, name: str) -> str:
    values: list[str] = response.headers.getRawHeaders(name, [])
    return values[0] if values else ""


def _retry_after(value: str, now: float) -> float | None:
    """Return the seconds of `Retry-After` (RFC 9110 §10.2.3), or None."""
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError):
        return None
