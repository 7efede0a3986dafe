"""Messages between a worker's broker and the supervisor's: msgpack arrays that begin with a number for their kind.

A worker (chatws.workers.ipc_broker) sends requests, each with a number. The supervisor (chatws.workers.broker_server)
replies in any order, and sends events in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from chatws.brokers.interface import AGENT_SPACE, Event, MemberData, NewEvent
from chatws.brokers.webhook_queue import NewWebhook, WebhookReply, WebhookRequest
from chatws.ids import Id

__all__ = [
    "AddWebhooksRequest",
    "AddedReply",
    "BrokerReply",
    "BrokerRequest",
    "DataReply",
    "DataRequest",
    "ErrorReply",
    "EventsNotice",
    "ExchangeWebhooksReply",
    "ExchangeWebhooksRequest",
    "LeaseReply",
    "LeaseRequest",
    "NodesReply",
    "NodesWithoutRequest",
    "OffsetRangeReply",
    "OffsetRangeRequest",
    "OnlineReply",
    "OnlineRequest",
    "PublishReply",
    "PublishRequest",
    "ReadReply",
    "ReadRequest",
    "ResetNotice",
    "SetDataReply",
    "SetDataRequest",
    "StartReply",
    "StartRequest",
    "encode",
    "reply_decoder",
    "request_decoder",
]


class _Numbered(msgspec.Struct, array_like=True):
    """A request, or the reply to the request of that number."""

    number: int


class StartRequest(_Numbered, tag=1):
    """Receive events from now on. The reply is `StartReply`."""


class PublishRequest(_Numbered, tag=2):
    """The reply is `PublishReply`."""

    new_events: Sequence[NewEvent]


class ReadRequest(_Numbered, tag=3):
    """The reply is `ReadReply`."""

    after: int
    limit: int


class OffsetRangeRequest(_Numbered, tag=4):
    """The reply is `OffsetRangeReply`."""


class LeaseRequest(_Numbered, tag=5):
    """The reply is `LeaseReply`."""

    node: str
    connection_counts: dict[Id, int | None]
    seconds: float
    space: str = AGENT_SPACE


class OnlineRequest(_Numbered, tag=6):
    """The reply is `OnlineReply`."""

    space: str = AGENT_SPACE


class NodesWithoutRequest(_Numbered, tag=7):
    """The reply is `NodesReply`."""

    space: str


class SetDataRequest(_Numbered, tag=8):
    """The reply is `SetDataReply`."""

    space: str
    member: Id
    data: str | None
    seconds: float


class DataRequest(_Numbered, tag=9):
    """The reply is `DataReply`."""

    space: str


class AddWebhooksRequest(_Numbered, tag=10):
    """The reply is `AddedReply`."""

    webhooks: Sequence[NewWebhook]
    reset: bool


class ExchangeWebhooksRequest(_Numbered, tag=11):
    """The reply is `ExchangeWebhooksReply`."""

    request: WebhookRequest


BrokerRequest: TypeAlias = (
    StartRequest
    | PublishRequest
    | ReadRequest
    | OffsetRangeRequest
    | LeaseRequest
    | OnlineRequest
    | AddWebhooksRequest
    | ExchangeWebhooksRequest
    | NodesWithoutRequest
    | SetDataRequest
    | DataRequest
)


class StartReply(_Numbered, tag=1):
    """The events that follow this reply begin after the last event of the history at this moment."""

    epoch: str


class PublishReply(_Numbered, tag=2, omit_defaults=True):
    """The new events that are no duplicates are the last `EventsNotice` before this, in their order.

    :ivar duplicates: (index of the new event, offset and time of the event that was first).
    """

    duplicates: Sequence[tuple[int, int, float]] = ()


class ReadReply(_Numbered, tag=3):
    events: list[Event]


class OffsetRangeReply(_Numbered, tag=4):
    first: int
    last: int


class LeaseReply(_Numbered, tag=5):
    changed: list[tuple[Id, bool]]
    held: int
    online: int


class OnlineReply(_Numbered, tag=6):
    users: list[Id]


class ErrorReply(_Numbered, tag=7):
    """The request failed. `reason` is a sentence for people."""

    reason: str


class EventsNotice(msgspec.Struct, array_like=True, tag=8):
    """New events."""

    events: list[Event]


class ResetNotice(msgspec.Struct, array_like=True, tag=9):
    """The history was reset."""

    epoch: str


class AddedReply(_Numbered, tag=10):
    """The events of webhooks are in the queue."""


class ExchangeWebhooksReply(_Numbered, tag=11):
    reply: WebhookReply


class NodesReply(_Numbered, tag=12):
    nodes: list[str]


class SetDataReply(_Numbered, tag=13):
    changed: bool


class DataReply(_Numbered, tag=14):
    data: dict[Id, MemberData]


BrokerReply: TypeAlias = (
    StartReply
    | PublishReply
    | ReadReply
    | OffsetRangeReply
    | LeaseReply
    | OnlineReply
    | ErrorReply
    | AddedReply
    | ExchangeWebhooksReply
    | NodesReply
    | SetDataReply
    | DataReply
)

encode = msgspec.msgpack.Encoder().encode
request_decoder = msgspec.msgpack.Decoder(BrokerRequest)
reply_decoder = msgspec.msgpack.Decoder(BrokerReply | EventsNotice | ResetNotice)
