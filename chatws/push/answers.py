"""What a backend is answered (docs/protocol.md §3), as structs, and what makes lines of them."""

from __future__ import annotations

import msgspec

from chatws.errors import ErrorCode
from chatws.ids import Id
from chatws.push.lines import RequestId

__all__ = ["Agent", "AgentConnection", "Answer", "Done", "Online", "Published", "Refused", "encode_answers"]


class Answer(msgspec.Struct, omit_defaults=True, gc=False):
    """:ivar id: that of the line answered; left out where it had none."""

    ok: bool
    id: RequestId | None = None


class Published(Answer):
    """:ivar event_id: left out for a transient event.
    :ivar delivered: connections it was handed to.
    :ivar duplicate: the key was known, and nothing was sent.
    """

    event_id: str | None = None
    delivered: int = -1
    duplicate: bool = False


class Done(Answer):
    """:ivar connections: how many a `disconnect` or `unsubscribe` touched."""

    connections: int = -1


class AgentConnection(msgspec.Struct, gc=False):
    """:ivar id: the `connection_id` that the browser was told.
    :ivar address: empty for a Unix socket.
    """

    id: str
    address: str


class Agent(msgspec.Struct):
    """:ivar connections: none while the last one's end may still turn out to be a reload."""

    user_id: Id
    connections: list[AgentConnection]


class Online(Answer):
    """:ivar online: who is.
    :ivar agents: the same with their connections, where that was asked for.
    """

    online: list[Id] | None = None
    agents: list[Agent] | None = None


class Refused(Answer):
    """:ivar message: one sentence for people."""

    code: ErrorCode | None = None
    message: str = ""


#: The answers' lines, each with its newline.
encode_answers = msgspec.json.Encoder().encode_lines
