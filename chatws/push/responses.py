"""The responses to a backend (docs/protocol.md §3), and their encoder."""

from __future__ import annotations

import msgspec

from chatws.errors import ErrorCode
from chatws.ids import Id
from chatws.push.operations import RequestId

__all__ = [
    "AgentDetail",
    "ConnectionDetail",
    "ErrorResponse",
    "NodeDetail",
    "NodesResponse",
    "OpResponse",
    "PresenceResponse",
    "PublishResponse",
    "Response",
    "encode_responses",
]


class Response(msgspec.Struct, omit_defaults=True, gc=False):
    """The fields of every response.

    :ivar id: the `id` of the line; omitted if it had none.
    """

    ok: bool
    id: RequestId | None = None


class PublishResponse(Response):
    """The response to a publish.

    :ivar event_id: omitted for a transient event.
    :ivar delivered: the number of connections that got the event; omitted if it is unknown.
    :ivar duplicate: the idempotency key is known, and nothing was sent.
    """

    event_id: str | None = None
    delivered: int = -1
    duplicate: bool = False


class OpResponse(Response):
    """The response to an op other than `presence`.

    :ivar connections: the connections that a `disconnect` or `unsubscribe` affected; otherwise omitted.
    """

    connections: int = -1


class ConnectionDetail(msgspec.Struct, gc=False):
    """An agent's connection.

    :ivar id: the `connection_id` that the browser got.
    :ivar address: the client's address; empty for a Unix socket.
    """

    id: str
    address: str


class AgentDetail(msgspec.Struct):
    """An agent that is online.

    :ivar connections: empty shortly after the last one closed, as the page may be reloading.
    """

    user_id: Id
    connections: list[ConnectionDetail]


class PresenceResponse(Response):
    """The response to `presence`.

    :ivar online: the ids of the agents that are online.
    :ivar status: the statuses that are not `online`, by the text of the agent's id. Omitted if there are none.
    :ivar agents: the same agents with their connections, if `detail` was set.
    """

    online: list[Id] | None = None
    status: dict[str, str] | None = None
    agents: list[AgentDetail] | None = None


class NodeDetail(msgspec.Struct):
    """A node that shares the broker.

    :ivar id: the beginning of the ids of its connections.
    :ivar uptime: seconds since its start.
    :ivar lag: the latest delay of its event loop, in seconds.
    :ivar offset: the last offset that it has read.
    :ivar state: "serving" or "draining".
    :ivar differs: the settings in which it differs from the node that responds.
    :ivar responds: whether it is the node that responds.
    """

    id: str
    name: str
    address: str
    version: str
    connections: int
    uptime: float
    lag: float
    offset: int
    state: str
    differs: list[str]
    responds: bool


class NodesResponse(Response):
    """The response to `nodes`."""

    nodes: list[NodeDetail] | None = None


class ErrorResponse(Response):
    """The response to a line that failed.

    :ivar message: one sentence for people.
    """

    code: ErrorCode | None = None
    message: str = ""


#: Encodes responses as lines, each with its newline.
encode_responses = msgspec.json.Encoder().encode_lines
