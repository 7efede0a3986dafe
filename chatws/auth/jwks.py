"""The public keys at `jwks_url`, which the application or an identity provider publishes (RFC 7517).

They are fetched when the first token needs them, and again when they are old or a token names an unknown `kid`. Tokens
that come meanwhile share one request.
"""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.web.http_headers import Headers

from chatws.auth.auth_url import check_auth_url
from chatws.auth.cache import RepeatedErrorLog, SingleFlightCache
from chatws.auth.http_client import HttpClient, InvalidResponse
from chatws.auth.public_keys import VerificationKey, parse_key_set
from chatws.errors import Unavailable
from chatws.interfaces import Reactor
from chatws.net.web_client import describe_error

__all__ = ["JwksKeys", "is_unprotected"]

#: Seconds after which the keys are fetched again: a key that was withdrawn is not accepted for longer.
MAX_AGE = 600.0
#: Seconds for which the keys are used while they cannot be fetched: an outage of the provider keeps nobody out.
MAX_STALE = 86_400.0
#: Seconds between two requests. Tokens with invented `kid`s cause no more.
MIN_INTERVAL = 30.0
#: The key of the only entry of the cache.
_ONLY = ""


def is_unprotected(url: str) -> bool:
    """Return whether the network could replace the keys: the URL is http and leads to another machine."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


class JwksKeys:
    """Fetches the keys of a URL and keeps them.

    :param timeout: seconds for a request.
    :raises ConfigError: the URL is invalid.
    :ivar counts: requests by their result.
    """

    _log = Logger()

    def __init__(self, url: str, *, timeout: float, reactor: Reactor) -> None:
        self._url = check_auth_url(url, "--jwks-url")
        self._clock = reactor
        self._client = HttpClient(reactor, timeout, 1)
        self._error_log = RepeatedErrorLog(self._log, reactor)
        self._requests: SingleFlightCache[str, bool] = SingleFlightCache(
            self._fetch, ttl=0, timeout=timeout, clock=reactor
        )
        self._keys: tuple[VerificationKey, ...] = ()
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self.counts = {"ok": 0, "failed": 0}

    @property
    def key_count(self) -> int:
        """How many keys are known."""
        return len(self._keys)

    def find(self, algorithm: str, kid: str) -> list[VerificationKey] | Deferred[list[VerificationKey]]:
        """Return the keys that may have signed a token.

        :param kid: that of the token; empty if it has none.
        :raises Unavailable: (through the Deferred) no keys are known, and the URL does not respond.
        """
        keys = self._matching(algorithm, kid)
        if not self._is_older(self._fetched_at, MAX_AGE) and (keys or not self._may_wait()):
            return keys
        return Deferred.fromCoroutine(self._find(algorithm, kid))

    def stop(self) -> Deferred[None]:
        """Close the connection."""
        return self._client.stop()

    async def _find(self, algorithm: str, kid: str) -> list[VerificationKey]:
        if self._may_wait():
            request = self._requests.get(_ONLY)
            with suppress(Unavailable):
                await request if isinstance(request, Deferred) else request
        if self._is_older(self._fetched_at, MAX_STALE):
            raise Unavailable("the keys of tokens are unavailable")
        return self._matching(algorithm, kid)

    def _matching(self, algorithm: str, kid: str) -> list[VerificationKey]:
        return [key for key in self._keys if key.algorithm == algorithm and (not kid or key.kid == kid)]

    def _may_wait(self) -> bool:
        """Return whether a request is running, or may be sent."""
        return self._requests.is_running(_ONLY) or self._is_older(self._tried_at, MIN_INTERVAL)

    def _is_older(self, time: float | None, seconds: float) -> bool:
        return time is None or self._clock.seconds() - time >= seconds

    async def _fetch(self, _: str) -> bool:
        self._tried_at = self._clock.seconds()
        try:
            status, body = await self._client.get(self._url, Headers({"accept": ["application/json"]}))
            if status != 200:
                raise InvalidResponse(f"status {status} is not 200; redirects are not followed")
            keys = parse_key_set(body)
            if not keys:
                raise InvalidResponse("the JWK set has no key for RS256, ES256 or EdDSA")
        except CancelledError:
            self.counts["failed"] += 1
            self._error_log.make("--jwks-url: no response in time")
            raise
        except Exception as error:
            self.counts["failed"] += 1
            self._error_log.make(f"--jwks-url: {describe_error(error)}")
            raise Unavailable("the keys of tokens are unavailable") from None
        if keys != self._keys:
            self._log.info("--jwks-url: {count} keys are valid now", count=len(keys))
        self.counts["ok"] += 1
        self._keys = keys
        self._fetched_at = self._clock.seconds()
        return True
