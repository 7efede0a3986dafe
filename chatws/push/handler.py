"""Executes a backend's lines and builds the responses. `chatws.push.connection` keeps their order.

`CommandHandler.parse_simple_batch` and `acks` run for every event of a busy backend, so they process a batch field by
field with `map`. tests/test_push_lines.py compares both with plain code.
"""

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

from chatws.brokers.interface import Event, NewEvent
from chatws.chat.audience import AudienceTable
from chatws.chat.cluster_commands import RebalanceCommand
from chatws.chat.nodes import KnownNode
from chatws.errors import ClientError, ErrorCode, Unavailable
from chatws.ids import Id, sort_ids
from chatws.push.operations import (
    DisconnectOp,
    GroupsOp,
    NodesOp,
    Op,
    PresenceOp,
    RebalanceOp,
    RequestId,
    StatusOp,
    UnsubscribeOp,
    WebhookSyncOp,
)
from chatws.push.protocol import PublishLine, parse_simple_batch
from chatws.push.responses import (
    AgentDetail,
    ConnectionDetail,
    ErrorResponse,
    NodeDetail,
    NodesResponse,
    OpResponse,
    PresenceResponse,
    PublishResponse,
    Response,
)

__all__ = ["CommandHandler", "PushStats", "PushTarget"]

T = TypeVar("T")

_is_duplicate, _wants_ack = attrgetter("duplicate"), attrgetter("ack")


class PushTarget(Protocol):
    """The commands that backends can give: implemented by the chat server."""

    @property
    def audiences(self) -> AudienceTable:
        """The default audiences of events."""
        ...

    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        """Publish events. Fires with the stored events, in order, when all are delivered to the connections.

        :raises ClientError: (through the Deferred) none of them counts as published.
        """
        ...

    def disconnect(self, user_id: Id, reason: str, ban: bool, *, is_contact: bool = False) -> int | Deferred[int]:
        """Close the connections of an agent or a contact and return how many. `ban` tells clients not to reconnect."""
        ...

    def unsubscribe(self, user_id: Id, conversation_id: Id, *, is_contact: bool = False) -> int | Deferred[int]:
        """Unsubscribe an agent's or a contact's connections from the conversation and return how many."""
        ...

    def set_groups(self, user_id: Id, groups: tuple[str, ...]) -> int | Deferred[int]:
        """Replace the groups of the agent's connections and return the number of connections."""
        ...

    def sync_webhooks(self) -> Deferred[None]:
        """Send the whole state to the receiver of webhooks."""
        ...

    def set_status(self, user_id: Id, status: str) -> Deferred[None] | None:
        """Set an agent's status on all nodes.

        :raises Unavailable: (through the Deferred) the broker cannot be reached.
        """
        ...

    def online(self) -> list[Id] | Deferred[list[Id]]:
        """Return the agents that are online."""
        ...

    def statuses(self) -> dict[str, str]:
        """Return the statuses of agents online that are not `online`, by the text of the id."""
        ...

    def nodes(self) -> list[KnownNode]:
        """Return the nodes that share the broker, this one first."""
        ...

    async def rebalance(self, command: RebalanceCommand) -> None:
        """Close connections of a node."""
        ...

    def connections_of(self, user_id: Id) -> list[tuple[str, str]]:
        """Return the id and the address of each of the user's connections on this node."""
        ...

    def event_id(self, event: Event) -> str | None:
        """Return EPOCH:OFFSET, or None for a transient event."""
        ...


@dataclass(slots=True)
class PushStats:
    """Counters since the start.

    :ivar connections: accepted connections.
    :ivar lines: lines read, including empty ones.
    :ivar bytes: bytes read.
    :ivar published: published events, without duplicates.
    :ivar errors: error responses by code.
    """

    connections: int = 0
    lines: int = 0
    bytes: int = 0
    published: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class CommandHandler:
    """Execute lines on a target, and count them in `stats`."""

    log = Logger()

    def __init__(self, target: PushTarget, stats: PushStats) -> None:
        self._target = target
        self._stats = stats

    def to_new_event(self, request: PublishLine) -> NewEvent:
        """Return the event to publish, with its audience.

        :raises ClientError: the line does not determine an audience.
        """
        try:
            return self._target.audiences.new_event(
                request.event,
                request.data,
                request.to,
                request.except_user_id,
                request.key,
                request.transient,
                request.excluded,
            )
        except ClientError:
            raise
        except RecursionError:  # nested almost too deeply for the parser
            raise ClientError(ErrorCode.BAD_JSON, "the line is nested too deeply") from None
        except msgspec.DecodeError:  # a number out of range in place of an id
            raise ClientError(ErrorCode.BAD_MESSAGE, f"data of {request.event} has invalid ids") from None
        except Exception as error:
            raise self.to_client_error(error) from None

    def parse_simple_batch(self, lines: Sequence[bytes]) -> list[NewEvent] | None:
        """Make the events of many lines at once (see `parse_simple_batch`, `AudienceTable.new_events`)."""
        found = parse_simple_batch(lines)
        return None if found is None else self._target.audiences.new_events(*found)

    def publish(
        self, requests: Sequence[PublishLine | ErrorResponse], new_events: Sequence[NewEvent]
    ) -> list[Response] | Deferred[list[Response]]:
        """Publish `new_events`, which belong to the publishes among `requests`, as one batch.

        :return: the responses to `requests`, at once if the broker has finished. The Deferred never fails.
        """
        try:
            deferred = self._target.publish(new_events)
            if deferred.called and type(deferred.result) is list:  # the normal case, faster than a callback
                return self.acks(requests, deferred.result)
        except Exception as error:
            return self._publish_failed(requests, self.to_client_error(error))
        responses = deferred.addCallback(lambda events: self.acks(requests, events))
        return responses.addErrback(
            lambda failure: self._publish_failed(requests, self.to_client_error(failure.value, failure))
        )

    def acks(self, requests: Sequence[PublishLine | ErrorResponse], events: Sequence[Event]) -> list[Response]:
        """Return the responses to a published batch.

        :param events: one for each publish among `requests`, in order.
        """
        self._stats.published += len(events) - sum(map(_is_duplicate, events))
        if len(requests) == len(events) and not any(map(_wants_ack, requests)):
            return []
        responses: list[Response] = []
        position = 0
        for request in requests:
            if type(request) is PublishLine:
                event = events[position]
                position += 1
                if request.ack:
                    event_id = self._target.event_id(event)
                    responses.append(
                        PublishResponse(True, request.request_id, event_id, event.delivered, event.duplicate)
                    )
            else:
                responses.append(request)  # type: ignore[arg-type]
        return responses

    def _publish_failed(self, requests: Sequence[PublishLine | ErrorResponse], error: ClientError) -> list[Response]:
        """Return the responses to a failed batch. Failed publishes have one with or without `ack`."""
        return [
            self.error_response(error, request.request_id) if isinstance(request, PublishLine) else request
            for request in requests
        ]

    async def execute(self, operation: Op) -> Response:
        """Execute an `op` other than `auth`. Never fails."""
        target = self._target
        try:
            match operation:
                case DisconnectOp():
                    reason, ban = operation.reason or "", operation.ban is True
                    count = target.disconnect(operation.user, reason, ban, is_contact=operation.is_contact)
                    return OpResponse(True, operation.request_id, await _resolve(count))
                case UnsubscribeOp():
                    user, is_contact = operation.user, operation.is_contact
                    count = target.unsubscribe(user, operation.conversation_id, is_contact=is_contact)
                    return OpResponse(True, operation.request_id, await _resolve(count))
                case GroupsOp():
                    count = target.set_groups(operation.user_id, operation.names)
                    return OpResponse(True, operation.request_id, await _resolve(count))
                case StatusOp():
                    await _resolve(target.set_status(operation.user_id, operation.status))
                    return OpResponse(True, operation.request_id)
                case PresenceOp():
                    online = sort_ids([*await _resolve(target.online())])
                    agents = [self._agent(user_id) for user_id in online] if operation.detail else None
                    return PresenceResponse(True, operation.request_id, online, target.statuses() or None, agents)
                case NodesOp():
                    nodes = [_node_detail(node, position == 0) for position, node in enumerate(target.nodes())]
                    return NodesResponse(True, operation.request_id, nodes)
                case RebalanceOp():
                    await target.rebalance(
                        RebalanceCommand(operation.node, operation.count, operation.seconds, operation.drain)
                    )
                    return OpResponse(True, operation.request_id)
                case WebhookSyncOp():
                    await target.sync_webhooks()
                    return OpResponse(True, operation.request_id)
                case _:
                    return OpResponse(True, operation.request_id)
        except Exception as error:
            return self.error_response(self.to_client_error(error), operation.request_id)

    def _agent(self, user_id: Id) -> AgentDetail:
        return AgentDetail(
            user_id, [ConnectionDetail(id, address) for id, address in self._target.connections_of(user_id)]
        )

    def error_response(self, error: ClientError, request_id: RequestId | None = None) -> ErrorResponse:
        """Return the response for an error, and count it."""
        self._stats.errors[error.code.value] += 1
        return ErrorResponse(False, request_id, error.code, error.message)

    def to_client_error(self, error: BaseException | None, failure: Failure | None = None) -> ClientError:
        """Return the error for the response. Other exceptions than `ClientError` are logged, and sent without details.

        :param failure: the failure with `error`, or None inside an `except` clause.
        """
        if isinstance(error, ClientError):
            return error
        self.log.failure("internal error while processing a backend's line", failure)
        return Unavailable("internal error")


def _node_detail(node: KnownNode, is_this: bool) -> NodeDetail:
    info = node.info
    return NodeDetail(
        info.id,
        info.name,
        info.address,
        info.version,
        info.connections,
        round(info.uptime, 1),
        round(info.lag, 4),
        info.offset,
        "draining" if info.is_draining else "serving",
        [*node.differs],
        is_this,
    )


async def _resolve(value: T | Deferred[T]) -> T:
    return await value if isinstance(value, Deferred) else value
