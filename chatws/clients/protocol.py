"""The lines, results and exceptions that the Python clients share.

The exceptions::

    PushError               a push failed; the base class
    ├── PushRejected        the server rejected it, and a retry would fail too: `code`, `message` (docs/protocol.md §3)
    └── PushUnavailable     there was no final response within the deadline. The event may or may not have been sent.
                            A retry with the same key is safe.

Every publish has an idempotency key, which all its retries share. An event whose response was lost is therefore not
sent twice (within 10 minutes).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import msgspec

from chatws.ids import Id
from chatws.runtime.backoff import backoff

__all__ = [
    "AUTH_ID",
    "ClusterNode",
    "Data",
    "OnlineAgent",
    "OnlineConnection",
    "PushError",
    "PushRejected",
    "PushResult",
    "PushUnavailable",
    "Request",
    "To",
    "auth_line",
    "group_requests",
    "is_retryable",
    "new_key",
    "online_agents",
    "op_line",
    "parse_result",
    "publish_line",
    "retry_delay",
    "retry_pause",
]

#: An event's data: a mapping, or the bytes of a JSON object, which reach the browser unchanged.
Data: TypeAlias = Mapping[str, Any] | bytes
#: An audience, as in docs/protocol.md §3: "agents", "everyone", or {"conversation_id": …}, {"user_ids": […]},
#: {"contact_id": …}, {"group": …}; {"conversation_id": …, "role": "agent"} is an internal note.
To: TypeAlias = str | Mapping[str, Any]

#: The `id` of the client's `op auth`.
AUTH_ID = "auth"
#: Bytes of a response line above which the peer is not considered a chatws server. 100,000 online agents fit.
MAX_RESPONSE_BYTES = 16 * 1024 * 1024
#: Lines and bytes that `publish_many` sends before it reads the responses: these must fit into the socket buffers, or
#: client and server would wait for each other.
WINDOW_LINES = 100
WINDOW_BYTES = 65536
#: Seconds: the longest pause before the first retry, and before any.
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0


class Request(NamedTuple):
    """An encoded line to send.

    :ivar id: the `id` of its result.
    :ivar ack: whether it is answered also if it succeeds.
    """

    line: bytes
    id: int | str
    ack: bool = True


class PushError(Exception):
    """A push failed."""


class PushRejected(PushError):
    """The server rejected the push.

    :ivar code: for programs: `bad_message`, `no_audience`, `bad_secret` …
    :ivar message: one sentence, for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class PushUnavailable(PushError):
    """There was no final response within the deadline. `__cause__` is the last error, if there was one.

    :ivar code: the code of the last response, `unavailable` or `overloaded`; empty if there was none.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class OnlineConnection(msgspec.Struct, frozen=True):
    """A browser tab of an agent.

    :ivar id: the `connection_id` that the browser got.
    :ivar address: the IP address of the browser.
    """

    id: str
    address: str


class OnlineAgent(msgspec.Struct, frozen=True):
    """An agent that is online.

    :ivar connections: empty shortly after the last one closed, as the page may be reloading.
    :ivar status: what the agent has set: "online", "away", "busy" and so on.
    """

    user_id: Id
    connections: list[OnlineConnection]
    status: str = "online"


class ClusterNode(msgspec.Struct, frozen=True):
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


class PushResult(msgspec.Struct, frozen=True):
    """The server's response to a line.

    :ivar ok: whether it succeeded.
    :ivar id: the idempotency key.
    :ivar event_id: the event's EPOCH:OFFSET; None for a transient event.
    :ivar delivered: the number of connections that got the event; None if it is unknown.
    :ivar duplicate: whether the key is known: nothing was sent, and `event_id` is that of the first publish.
    :ivar connections: the number of connections that a `disconnect` or an `unsubscribe` affected.
    :ivar online: the agents that are online, for `online`.
    :ivar status: those of the agents that are not `online`, by the text of the agent's id.
    :ivar agents: the agents online with their connections, for `agents`.
    :ivar code: why it failed, for programs; empty if it succeeded.
    :ivar message: why it failed, in one sentence.
    """

    ok: bool
    id: int | str | None = None
    event_id: str | None = None
    delivered: int | None = None
    duplicate: bool = False
    connections: int | None = None
    online: list[Id] | None = None
    status: dict[str, str] | None = None
    agents: list[OnlineAgent] | None = None
    nodes: list[ClusterNode] | None = None
    code: str = ""
    message: str = ""

    def error(self) -> PushError:
        """Return the exception for a failed push."""
        if is_retryable(self):
            return PushUnavailable(f"{self.code}: {self.message}", self.code)
        return PushRejected(self.code, self.message)


_encode = msgspec.json.Encoder().encode
_decode_result = msgspec.json.Decoder(PushResult).decode
_check_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def parse_result(line: bytes) -> PushResult:
    """Decode a response line.

    :raises msgspec.DecodeError: it is not from chatws.
    """
    try:
        return _decode_result(line)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"the response is not valid JSON: {error}") from None


def online_agents(result: PushResult) -> list[OnlineAgent]:
    """Return the agents in the response to `presence`, each with its status."""
    agents = result.agents
    if agents is None:  # a server without `detail`
        agents = [OnlineAgent(user_id, []) for user_id in result.online or []]
    statuses = result.status or {}
    return [msgspec.structs.replace(agent, status=statuses.get(str(agent.user_id), "online")) for agent in agents]


def is_retryable(result: PushResult) -> bool:
    """Return whether a retry may succeed."""
    return result.code in ("unavailable", "overloaded")


def new_key() -> str:
    """Return a unique idempotency key."""
    return uuid.uuid4().hex


def retry_pause(attempt: int) -> float:
    """Return the seconds before a retry of one address.

    :param attempt: the number of earlier retries.
    """
    return backoff(attempt, FIRST_PAUSE, LONGEST_PAUSE)


def retry_delay(attempt: int, addresses: int, is_connection_error: bool) -> float:
    """Return the seconds before a retry.

    There is no pause before another address, nor before the first retry after a connection error: the server may have
    restarted.

    :param attempt: the number of earlier attempts, at least 1.
    :param addresses: the number of addresses, which are tried in turn.
    """
    rounds, others = divmod(attempt, addresses)
    return 0.0 if others or (rounds == 1 and is_connection_error) else retry_pause(rounds - 1)


def group_requests(publishes: Iterable[Mapping[str, Any]]) -> Iterator[list[Request]]:
    """Encode the arguments of `publish_many`, and yield them in groups to send at once. All have a key."""
    window: list[Request] = []
    size = 0
    for publish in publishes:
        key = publish.get("key")
        key = new_key() if key is None else key
        line = publish_line(**{**publish, "key": key, "ack": True})
        if window and (len(window) >= WINDOW_LINES or size + len(line) > WINDOW_BYTES):
            yield window
            window, size = [], 0
        window.append(Request(line, key))
        size += len(line)
    if window:
        yield window


def publish_line(
    event: str,
    data: Data,
    *,
    key: int | str,
    to: To | None = None,
    except_user_id: Id | None = None,
    except_contact_id: Id | None = None,
    except_connection_id: str | None = None,
    transient: bool = False,
    ack: bool = True,
) -> bytes:
    """Encode a publish, with its newline. For the parameters see `BlockingPushClient.publish`.

    :raises TypeError: `data` cannot be encoded as JSON.
    :raises ValueError: `data` is bytes that are not a JSON object in UTF-8.
    """
    if isinstance(data, bytes):  # in valid JSON, a newline is only white space; here it would end the line
        try:
            data.decode()
            _check_object(data)
        except (ValueError, RecursionError) as error:  # msgspec's errors and UnicodeDecodeError are ValueErrors
            raise ValueError(f"data must be a JSON object: {error}") from None
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
    if except_contact_id is not None:
        fields["except_contact_id"] = except_contact_id
    if except_connection_id is not None:
        fields["except_connection_id"] = except_connection_id
    if transient:
        fields["transient"] = True
    return _encode(fields) + b"\n"


def op_line(op: str, **fields: Any) -> bytes:
    """Encode an `op`, with its newline."""
    return _encode({"op": op, **fields}) + b"\n"


def auth_line(secret: str | bytes | None) -> bytes | None:
    """Encode the first line of a connection, or return None without a secret. Its result has the id `AUTH_ID`."""
    if secret is None:
        return None
    return op_line("auth", id=AUTH_ID, secret=secret.decode() if isinstance(secret, bytes) else secret)
