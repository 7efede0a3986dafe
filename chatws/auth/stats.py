"""How people enter, and who still enters without a proof."""

from __future__ import annotations

from twisted.logger import Logger

from chatws.chat.contracts import Identity
from chatws.errors import AuthenticationFailed
from chatws.ids import Id

__all__ = ["AuthStats"]


class AuthStats:
    """Plain counters for whoever shows them.

    :ivar counts: how often, by (method, result). The method is that of `Identity.method`, or `none` where no method
        had an opinion; the result is `accepted`, `refused` (they are not who they say) or `unavailable`.
    """

    #: Users that are named in the log, per process.
    MAX_NAMED = 10_000
    _log = Logger()

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        self._named: set[Id] = set()

    def failed(self, method: str, error: BaseException) -> None:
        """An attempt ended with an exception."""
        self._count(method, "refused" if isinstance(error, AuthenticationFailed) else "unavailable")

    def accepted(self, identity: Identity, *, proved: bool) -> None:
        """Somebody is in. Without a proof the log names each such user once."""
        self._count(identity.method, "accepted")
        if proved or identity.user_id in self._named or len(self._named) >= self.MAX_NAMED:
            return
        self._named.add(identity.user_id)
        self._log.info(
            "user {user_id!r} enters without a proof, by --auth {method}",
            user_id=identity.user_id,
            method=identity.method,
        )
        if len(self._named) == self.MAX_NAMED:
            self._log.info(
                "{count} users have entered without a proof; further ones are not named", count=self.MAX_NAMED
            )

    def _count(self, method: str, result: str) -> None:
        self.counts[method, result] = self.counts.get((method, result), 0) + 1
