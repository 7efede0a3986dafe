"""How people enter, and who still enters without a proof."""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from chatws.chat.contracts import Identity
from chatws.errors import AuthenticationFailed
from chatws.ids import Id

__all__ = ["AuthStats"]


class AuthStats:
    """Plain counters for whoever shows them.

    :param reactor: an IReactorTime.
    :ivar counts: how often, by (method, result). The method is that of `Identity.method`, or `none` where no method
        had an opinion; the result is `accepted`, `refused` (they are not who they say) or `unavailable`.
    """

    #: Users that are named in the log, per process, and in one line.
    MAX_NAMED = 10_000
    MAX_IN_A_LINE = 100
    #: Seconds from one naming to the next: a shop that arrives at once is a few lines.
    NAMING_INTERVAL = 1.0
    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        self._reactor = reactor
        self._named: set[Id] = set()
        self._to_name: dict[str, list[Id]] = {}
        self._next_naming: Any = None

    def failed(self, method: str, error: BaseException) -> None:
        """An attempt ended with an exception."""
        self._count(method, "refused" if isinstance(error, AuthenticationFailed) else "unavailable")

    def accepted(self, identity: Identity, *, proved: bool) -> None:
        """Somebody is in. Without a proof the log names each such user once."""
        self._count(identity.method, "accepted")
        if proved or identity.user_id in self._named or len(self._named) >= self.MAX_NAMED:
            return
        self._named.add(identity.user_id)
        self._to_name.setdefault(identity.method, []).append(identity.user_id)
        if self._next_naming is None:
            self._look()

    def stop(self) -> None:
        """Name who is not named yet."""
        if self._next_naming is not None:
            self._next_naming.cancel()
            self._next_naming = None
        self._name_all()

    def _look(self) -> None:
        self._next_naming = self._reactor.callLater(self.NAMING_INTERVAL, self._look) if self._to_name else None
        self._name_all()

    def _name_all(self) -> None:
        to_name, self._to_name = self._to_name, {}
        for method, user_ids in to_name.items():
            for start in range(0, len(user_ids), self.MAX_IN_A_LINE):
                self._name(method, user_ids[start : start + self.MAX_IN_A_LINE])
        if to_name and len(self._named) >= self.MAX_NAMED:
            self._log.info(
                "{count} users have entered without a proof; further ones are not named", count=self.MAX_NAMED
            )

    def _name(self, method: str, user_ids: list[Id]) -> None:
        if len(user_ids) == 1:
            self._log.info(
                "user {user_id!r} enters without a proof, by --auth {method}", user_id=user_ids[0], method=method
            )
        else:
            users = ", ".join(map(repr, user_ids))
            self._log.info("users {users} enter without a proof, by --auth {method}", users=users, method=method)

    def _count(self, method: str, result: str) -> None:
        self.counts[method, result] = self.counts.get((method, result), 0) + 1
