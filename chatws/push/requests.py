"""What both Python clients share: the lines they send, the answers they read, and what they raise.

The exceptions::

    PushError               a push did not succeed; the root
    ├── PushRefused         the server said no, and would say so again: `code`, `message` (docs/protocol.md §3)
    └── PushUnavailable     no usable answer within the deadline: unreachable, silent, or unable to take it now.
                            The event may or may not have been sent. Trying again with the same key is safe.

Every publish has an idempotency key. Whatever is tried again is tried with the same key, so that an event whose
answer was lost is not sent twice (within 10 minutes).
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from chatws.ids import Id

__all__ = [
    "AUTH_ID",
    "Agent",
    "AgentConnection",
    "Answer",
    "Data",
    "PushError",
    "PushRefused",
    "PushUnavailable",
    "To",
    "auth_line",
    "backoff",
    "is_passing",
    "new_key",
    "operation_line",
    "parse_answer",
    "publish_line",
]

#: An event's data: a mapping, or the bytes of a JSON object, which reach the browser as they are.
Data: TypeAlias = Mapping[str, Any] | bytes
#: An audience, as in docs/protocol.md §3: "everyone", or {"conversation_id": …}, {"user_id": …}, {"user_ids": […]}.
To: TypeAlias = str | Mapping[str, Any]

#: The `id` of our `op auth`.
AUTH_ID = "auth"
#: Seconds between the first two tries, and between the last ones.
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0


class PushError(Exception):
    """A push did not succeed."""


class PushRefused(PushError):
    """The server said no.

    :ivar code: what kind, for programs: `bad_message`, `no_audience`, `bad_secret` …
    :ivar message: one sentence, for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class PushUnavailable(PushError):
    """No usable answer came within the deadline. `__cause__` is the last thing that went wrong, where known.

    :ivar code: what the server answered, `unavailable` or `overloaded`; empty where it did not answer.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class AgentConnection(msgspec.Struct, frozen=True):
    """A browser tab: the id that it was told, and its address."""

    id: str
    address: str


class Agent(msgspec.Struct, frozen=True):
    """:ivar connections: none while the last one's end may still turn out to be a reload."""

    user_id: Id
    connections: list[AgentConnection]


class Answer(msgspec.Struct, frozen=True):
    """What the server answered.

    :ivar ok: whether it was done.
    :ivar id: the idempotency key.
    :ivar event_id: the event's EPOCH:OFFSET; None for a transient event.
    :ivar delivered: to how many connections the event was handed.
    :ivar duplicate: the key was known: `event_id` is that of the first, and nothing was sent.
    :ivar connections: how many a `disconnect` or an `unsubscribe` touched.
    :ivar online: the answer to `online`.
    :ivar agents: the answer to `agents`.
    :ivar code, message: why not.
    """

    ok: bool
    id: int | str | None = None
    event_id: str | None = None
    delivered: int | None = None
    duplicate: bool = False
    connections: int | None = None
    online: list[Id] | None = None
    agents: list[Agent] | None = None
    code: str = ""
    message: str = ""

    def error(self) -> PushError:
        """The exception that a negative answer stands for."""
        if is_passing(self):
            return PushUnavailable(f"{self.code}: {self.message}", self.code)
        return PushRefused(self.code, self.message)


_encode = msgspec.json.Encoder().encode
parse_answer = msgspec.json.Decoder(Answer).decode


def is_passing(answer: Answer) -> bool:
    """Whether it is a no that may become a yes."""
    return answer.code in ("unavailable", "overloaded")


def new_key() -> str:
    """An idempotency key that nobody else has."""
    return uuid.uuid4().hex


def backoff(attempt: int) -> float:
    """Seconds to wait before another try: full jitter under a doubling cap. `attempt` counts from 0."""
    return random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempt, 10)))


def publish_line(
    event: str,
    data: Data,
    *,
    key: int | str,
    to: To | None = None,
    except_user_id: Id | None = None,
    transient: bool = False,
    ack: bool = True,
) -> bytes:
    """A publish, with its newline. For the parameters see `BlockingPushClient.publish`.

    :raises TypeError: `data` cannot be written as JSON.
    """
    if isinstance(data, bytes):  # a newline can only be white space in there, but would end the line
        fields: dict[str, Any] = {"event": event, "data": msgspec.Raw(data.replace(b"\n", b" "))}
    else:
        fields = {"event": event, "data": data}
    fields["id"] = key
    if ack:
        fields["ack"] = True
    if to is not None:
        fields["to"] = to
    if except_user_id is not None:
        fields["except_user_id"] = except_user_id
    if transient:
        fields["transient"] = True
    return _encode(fields) + b"\n"


def operation_line(op: str, **fields: Any) -> bytes:
    """An `op`, with its newline."""
    return _encode({"op": op, **fields}) + b"\n"


def auth_line(secret: str | bytes | None) -> bytes | None:
    """What must be sent first where there is a secret. Its answer has the id `AUTH_ID`."""
    if secret is None:
        return None
    return operation_line("auth", id=AUTH_ID, secret=secret.decode() if isinstance(secret, bytes) else secret)
