"""What a backend's line does, and how it is answered: apart from the order of lines, which is the connection's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Protocol, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.contract import Draft, Event
from chatws.chat.audience import AudienceTable
from chatws.errors import ClientError, ErrorCode, Unavailable
from chatws.ids import Id, sort_ids
from chatws.push.answers import Agent, AgentConnection, Answer, Done, Online, Published, Refused
from chatws.push.lines import Disconnect, Operation, Presence, Publish, RequestId, Unsubscribe, parse_plain

__all__ = ["Executor", "PushStats", "PushTarget"]

T = TypeVar("T")

_is_duplicate, _wants_ack = attrgetter("duplicate"), attrgetter("ack")


class PushTarget(Protocol):
    """What backends steer: the chat server."""

    @property
    def audiences(self) -> AudienceTable:
        """Who gets an event whose line does not say."""
        ...

    def publish(self, drafts: Sequence[Draft]) -> Deferred[list[Event]]:
        """Fires with one event per draft, in order, when all are stored and handed to the connections.

        :raises ClientError: through the Deferred; then none of them counts as published.
        """
        ...

    def disconnect(self, user_id: Id, reason: str, ban: bool) -> int | Deferred[int]:
        """Close that user's connections, how many. `ban`: tell them not to come back."""
        ...

    def unsubscribe(self, user_id: Id, conversation_id: Id) -> int | Deferred[int]:
        """Take the conversation away from that user's connections, from how many."""
        ...

    def online(self) -> list[Id] | Deferred[list[Id]]:
        """Who is online."""
        ...

    def connections_of(self, user_id: Id) -> list[tuple[str, str]]:
        """That user's connections on this server: connection id, address."""
        ...

    def event_id(self, event: Event) -> str | None:
        """EPOCH:OFFSET, or None for a transient event."""
        ...


@dataclass(slots=True)
class PushStats:
    """Since the start.

    :ivar connections: accepted.
    :ivar lines: read; empty ones too.
    :ivar bytes: read.
    :ivar published: events; duplicates not.
    :ivar errors: negative answers, by code.
    """

    connections: int = 0
    lines: int = 0
    bytes: int = 0
    published: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class Executor:
    """Does requests to a target, counting them in `stats`."""

    log = Logger()

    def __init__(self, target: PushTarget, stats: PushStats) -> None:
        self._target = target
        self._stats = stats

    def draft(self, request: Publish) -> Draft:
        """:raises ClientError: nobody can be told whom the event is for."""
        try:
            return self._target.audiences.draft(
                request.event, request.data, request.to, request.except_user_id, request.key, request.transient
            )
        except ClientError:
            raise
        except RecursionError:  # a line that was only just shallow enough to be parsed
            raise ClientError(ErrorCode.BAD_JSON, "the line is nested too deeply") from None
        except msgspec.DecodeError:  # a number past all bounds where an id should be
            raise ClientError(ErrorCode.BAD_MESSAGE, f"data of {request.event} has no proper ids") from None
        except Exception as error:
            raise self.blame(error) from None

    def plain_drafts(self, lines: Sequence[bytes]) -> list[Draft] | None:
        """The drafts of many lines at once, where that can be: see `parse_plain` and `AudienceTable.drafts`."""
        found = parse_plain(lines)
        return None if found is None else self._target.audiences.drafts(*found)

    def publish(
        self, requests: Sequence[Publish | Refused], drafts: Sequence[Draft]
    ) -> list[Answer] | Deferred[list[Answer]]:
        """Publish `drafts` as one batch: those of the publishes among `requests`.

        :return: the answers to `requests`, at once where the broker need not wait. The Deferred never fails.
        """
        try:
            deferred = self._target.publish(drafts)
            if deferred.called and type(deferred.result) is list:  # the usual, and quicker than a callback
                return self.receipts(requests, deferred.result)
        except Exception as error:
            return self._not_published(requests, self.blame(error))
        answers = deferred.addCallback(lambda events: self.receipts(requests, events))
        return answers.addErrback(lambda failure: self._not_published(requests, self.blame(failure.value, failure)))

    def receipts(self, requests: Sequence[Publish | Refused], events: Sequence[Event]) -> list[Answer]:
        """The answers to a batch that was published, with one event for each publish among `requests`."""
        self._stats.published += len(events) - sum(map(_is_duplicate, events))
        if len(requests) == len(events) and not any(map(_wants_ack, requests)):
            return []
        answers: list[Answer] = []
        position = 0
        for request in requests:
            if type(request) is Publish:
                event = events[position]
                position += 1
                if request.ack:
                    event_id = self._target.event_id(event)
                    answers.append(Published(True, request.request_id, event_id, event.delivered, event.duplicate))
            else:
                answers.append(request)  # type: ignore[arg-type]
        return answers

    def _not_published(self, requests: Sequence[Publish | Refused], error: ClientError) -> list[Answer]:
        """These publishes failed; that is answered with or without `ack`."""
        return [
            self.refused(error, request.request_id) if isinstance(request, Publish) else request for request in requests
        ]

    async def perform(self, operation: Operation) -> Answer:
        """Do an `op`, save for the check of an `auth`'s secret. Never fails."""
        target = self._target
        try:
            match operation:
                case Disconnect():
                    closed = target.disconnect(operation.user_id, operation.reason or "", operation.ban is True)
                    return Done(True, operation.request_id, await _now_or_later(closed))
                case Unsubscribe():
                    left = target.unsubscribe(operation.user_id, operation.conversation_id)
                    return Done(True, operation.request_id, await _now_or_later(left))
                case Presence():
                    online = await _now_or_later(target.online())
                    online = sort_ids(online)
                    agents = [self._agent(user_id) for user_id in online] if operation.detail else None
                    return Online(True, operation.request_id, online, agents)
                case _:
                    return Done(True, operation.request_id)
        except Exception as error:
            return self.refused(self.blame(error), operation.request_id)

    def _agent(self, user_id: Id) -> Agent:
        return Agent(user_id, [AgentConnection(*one) for one in self._target.connections_of(user_id)])

    def refused(self, error: ClientError, request_id: RequestId | None = None) -> Refused:
        """The negative answer."""
        self._stats.errors[error.code.value] += 1
        return Refused(False, request_id, error.code, error.message)

    def blame(self, error: BaseException | None, failure: Failure | None = None) -> ClientError:
        """What to answer. A fault of ours is logged, and told without details.

        :param failure: the failure it came in; when left out, `error` is being handled.
        """
        if isinstance(error, ClientError):
            return error
        self.log.failure("A backend's line failed", failure)
        return Unavailable("internal error")


async def _now_or_later(value: T | Deferred[T]) -> T:
    return await value if isinstance(value, Deferred) else value
