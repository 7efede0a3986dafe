"""The protocol state of one connection: a state, and a table from (state, message type) to a handler. Sans-IO.

A message comes in, and actions come out (chatws.chat.actions). The session executes none of them. Authentication and
permission checks are actions too. Their results come back through `on_auth_result` and `on_check_result`.

Messages that arrive during a check are queued in order. Only `ping` and `activity` overtake, and further
`subscribe`s, so that fifty checks take as long as one. After every result the session checks its state again: the
connection may have closed, or a backend may have ended the subscription.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from sys import getsizeof
from typing import Any, ClassVar

from msgspec.structs import astuple, replace

from chatws.chat import messages
from chatws.chat.actions import (
    AcceptAuth,
    Action,
    AddSubscription,
    Authenticate,
    BroadcastTyping,
    ChangeGroups,
    CheckPermission,
    Close,
    ListPresence,
    PauseReading,
    RecordActivity,
    RemoveSubscription,
    ScheduleRenewal,
    SendReply,
    SetStatus,
)
from chatws.chat.interfaces import Identity
from chatws.chat.messages import Activity, Auth, Message, Ping, Presence, Status, Subscribe, Typing, Unsubscribe
from chatws.chat.rate_limits import MIN_PAUSE, RateLimits, SessionLimits
from chatws.errors import AuthenticationFailed, ClientError, CloseCode, ErrorCode, Forbidden, Unavailable
from chatws.ids import Id, sort_ids

__all__ = ["Session", "SessionLimits", "State"]

#: Queued messages, and bytes of them, from which reading pauses. A page's 1,000 `subscribe`s fit.
MAX_QUEUED = 1000
MAX_QUEUED_SIZE = 262_144
#: Bytes of a connection's queued messages that are always accepted, also if all connections together exceed
#: `queue_bytes`: the `subscribe`s of a page with 30 rows.
RESERVED_QUEUE_SIZE = 8192
#: Seconds after which an application that could not answer about an identity is asked again.
RENEWAL_RETRY = 30.0
#: Bytes that a queued message takes besides its texts, about: the decoded object and its slot in the queue.
QUEUED_OVERHEAD = 200

# Tuples, because `A | B` would create a union for each message, which costs more than the check itself.
_SUBSCRIPTION_MESSAGES = (Subscribe, Unsubscribe, Ping, Activity)
_UNQUEUED_MESSAGES = (Ping, Activity)


class State(Enum):
    """The progress of a connection."""

    NEW = auto()
    AUTHENTICATING = auto()
    AUTHENTICATED = auto()
    CLOSED = auto()


class Session:
    """The session of one connection. Its methods return the actions to execute, in order.

    :param limits: shared by all sessions.
    :param now: seconds of a monotonic clock.
    :ivar identity: the result of authentication; None before.
    :ivar conversations: the conversations that the connection is subscribed to.
    """

    __slots__ = (
        "_auth_overdue",
        "_checks",
        "_limits",
        "_queue",
        "_queued_size",
        "_rates",
        "_typing_in",
        "conversations",
        "identity",
        "state",
    )

    def __init__(self, limits: SessionLimits, now: float) -> None:
        self.state = State.NEW
        self.identity: Identity | None = None
        self.conversations: set[Id] = set()
        self._auth_overdue = False
        self._limits = limits
        self._rates = RateLimits(limits, now)
        # None until needed, which saves memory: most connections are idle.
        self._typing_in: dict[Id, bool] | None = None  # whether only agents have been told
        self._checks: list[CheckPermission] | None = None
        self._queue: deque[tuple[Message, int]] | None = None
        self._queued_size = 0

    # Input

    def receive(self, text: str | bytes, now: float) -> list[Action]:
        """Process a text message.

        :param now: seconds of the same clock on every call.
        """
        if self.state is State.CLOSED:
            return []
        self._rates.refill(now)
        try:
            message = messages.parse(text)
        except ClientError as error:
            return self._reject_invalid(error, text)
        if isinstance(message, _SUBSCRIPTION_MESSAGES):
            self._rates.take_subscription()
        elif not self._rates.take_message():
            return self._reject_rate_limited(message)
        actions = self._enqueue(message) if self._must_wait(message) else self._handle(message)
        delay = self.read_delay(now)
        return [*actions, PauseReading(delay)] if delay else actions

    def receive_binary(self, now: float) -> list[Action]:
        """Reject a binary message with `unsupported`."""
        if self.state is State.CLOSED:
            return []
        self._rates.refill(now)
        return self._reject_invalid(ClientError(ErrorCode.UNSUPPORTED, "binary messages are not supported"))

    def read_delay(self, now: float) -> float:
        """Return the seconds to wait before reading on, or 0 to read now. After the wait the caller asks again.

        Reading pauses while the subscription bucket is empty, and while too many messages are queued.
        """
        if self.state is State.CLOSED:
            return 0.0
        return self._rates.read_delay(now) or (MIN_PAUSE if self._queue and self._is_queue_full() else 0.0)

    def _is_queue_full(self) -> bool:
        if self._queue is None:
            return False
        max_size = RESERVED_QUEUE_SIZE if self._limits.is_queue_full else MAX_QUEUED_SIZE
        return len(self._queue) >= MAX_QUEUED or self._queued_size > max_size

    def on_auth_result(self, message: Auth, result: Identity | ClientError) -> list[Action]:
        """Process the result of `Authenticate(message)`."""
        if self.state is State.CLOSED:
            return []
        renewed = self.identity is not None
        self.state = State.AUTHENTICATED if renewed else State.NEW
        if isinstance(result, Identity):
            if self.identity is not None and not self.identity.is_same_user(result):
                return [self._already_authenticated(message), *self._process_queue()]
            self.identity = result
            self.state = State.AUTHENTICATED
            actions: list[Action] = [AcceptAuth(result, message.last_event_id, renewed)]
            if renewed:
                actions += self._leave_not_covered()
            return actions + self._process_queue()
        rejection = _rejection(result, message=message)
        if isinstance(result, AuthenticationFailed):
            return [rejection, *self.close(CloseCode.AUTH_FAILED, result.message)]
        if isinstance(result, Forbidden):
            return [rejection, *self.close(CloseCode.FORBIDDEN, result.message)]
        if isinstance(result, Unavailable) and not renewed:
            return [rejection, *self.close(CloseCode.UNAVAILABLE, result.message)]
        if self._auth_overdue and not renewed:
            return [rejection, *self.close(CloseCode.AUTH_TIMEOUT, "no auth in time")]
        return [rejection, *self._process_queue()]

    def on_renewal(self, result: Identity | ClientError) -> list[Action]:
        """Process the result of authenticating the connection's request again (`ScheduleRenewal`).

        The client is told nothing, unless the identity covers fewer conversations or has other groups. Only a rejection
        closes the connection. An authenticator that is unavailable is asked again.
        """
        identity = self.identity
        if self.state is State.CLOSED or identity is None:
            return []
        if isinstance(result, Identity):
            if not identity.is_same_user(result):
                return self.close(CloseCode.RECONNECT, "the session belongs to another user", True)
            # without groups those remain that a backend has set
            self.identity = replace(result, groups=identity.groups)
            actions = [] if result.groups is None else self.set_groups(result.groups)
            actions += self._leave_not_covered()
            return actions if result.renew_after is None else [*actions, ScheduleRenewal(result.renew_after)]
        if isinstance(result, AuthenticationFailed | Forbidden):
            return self.close(CloseCode.RECONNECT, "the session has ended", True)
        return [ScheduleRenewal(RENEWAL_RETRY)]

    def on_auth_deadline(self) -> list[Action]:
        """Close the connection with 4408: it has sent no valid `auth` in time.

        A pending check may finish, because it has a timeout of its own. If it fails, the connection is closed.
        """
        if self.state is State.AUTHENTICATING:
            self._auth_overdue = True
            return []
        return self.close(CloseCode.AUTH_TIMEOUT, "no auth in time")

    def on_check_result(self, check: CheckPermission, result: bool | ClientError) -> list[Action]:
        """Process the result of a check. It has no effect if a backend has revoked the permission meanwhile."""
        checks = self._checks
        if self.state is State.CLOSED or checks is None:
            return []
        others = [other for other in checks if other is not check]
        if len(others) == len(checks):
            return []
        self._checks = others or None
        message = check.message
        conversation_id = message.conversation_id
        actions: list[Action]
        if isinstance(result, ClientError):
            actions = [_rejection(result, message=message)]
        elif not result or not (self.identity and self.identity.covers(conversation_id)):
            actions = [_rejection(_forbidden(conversation_id), message=message)]
            if conversation_id in self.conversations:
                actions += self._leave(conversation_id)
        elif isinstance(message, Subscribe):
            self.conversations.add(conversation_id)
            actions = [AddSubscription(conversation_id, message.last_event_id)]
        elif conversation_id in self.conversations:
            actions = self._set_typing(conversation_id, message.is_typing, message.role == "agent")
        else:
            actions = [_rejection(_not_subscribed(conversation_id), message=message)]
        return actions + self._process_queue()

    def on_status_result(self, message: Status, error: ClientError | None) -> list[Action]:
        """Process the result of `SetStatus`."""
        if self.state is State.CLOSED:
            return []
        if error is not None:
            return [_rejection(error, message=message)]
        return [SendReply(messages.status_set(message.status))]

    def revoke(self, conversation_id: Id) -> list[Action]:
        """End the subscription to a conversation, and reject pending checks for it."""
        if self.state is State.CLOSED:
            return []
        actions: list[Action] = []
        remaining: list[CheckPermission] = []
        for check in self._checks or ():
            if check.message.conversation_id == conversation_id:
                actions.append(_rejection(_forbidden(conversation_id), message=check.message))
            else:
                remaining.append(check)
        self._checks = remaining or None
        if conversation_id in self.conversations:
            actions += self._leave(conversation_id)
        return actions + self._process_queue()

    def repeat_checks(self) -> list[Action]:
        """Start the pending checks again: permissions may have changed since. Their earlier results have no effect."""
        checks, self._checks = self._checks, None
        return [self._start_check(check.message) for check in checks or ()]

    def set_groups(self, groups: tuple[str, ...]) -> list[Action]:
        """Replace the groups of the agent. Has no effect on contacts."""
        identity = self.identity
        if self.state is State.CLOSED or identity is None or identity.is_contact or (identity.groups or ()) == groups:
            return []
        self.identity = replace(identity, groups=groups)
        return [ChangeGroups(groups)]

    def close(self, code: CloseCode, reason: str, drop_unsent: bool = False) -> list[Action]:
        """Close the connection.

        :param drop_unsent: send nothing of what waits.
        """
        if self.state is State.CLOSED:
            return []
        return [*self.end(), Close(code, reason, drop_unsent)]

    def end(self) -> list[Action]:
        """End the session after its connection has closed. The session returns no actions after these."""
        actions: list[Action] = []
        if self.state is not State.CLOSED:
            for conversation_id, agents_only in (self._typing_in or {}).items():
                actions.extend(self._broadcast_typing(conversation_id, False, agents_only))
        self.state = State.CLOSED
        self._typing_in = self._checks = self._queue = None
        self._limits.queued -= self._queued_size
        self._queued_size = 0
        return actions

    # Rejections

    def _reject_invalid(self, error: ClientError, text: str | bytes = b"") -> list[Action]:
        if not self._rates.take_message():
            return self._reject_rate_limited(text=text)
        return [_rejection(error, text)]

    def _reject_rate_limited(self, message: Message | None = None, text: str | bytes = b"") -> list[Action]:
        if not self._rates.reject():
            return self.close(CloseCode.TOO_MANY_ERRORS, "too many messages")
        error = ClientError(ErrorCode.RATE_LIMITED, f"more than {self._limits.message_rate:g} messages a second")
        return [_rejection(error, text, message=message)]

    def _already_authenticated(self, message: Auth) -> SendReply:
        assert self.identity is not None
        kind = "contact" if self.identity.is_contact else "user"
        text = f"this connection belongs to {kind} {self.identity.user_id}"
        return _rejection(ClientError(ErrorCode.ALREADY_AUTHENTICATED, text), message=message)

    # The queue of messages that wait for a check

    def _must_wait(self, message: Message) -> bool:
        if isinstance(message, _UNQUEUED_MESSAGES):
            return False
        if self._queue or self.state is State.AUTHENTICATING:
            return True
        if not self._checks:
            return False
        return not isinstance(message, Subscribe) or any(
            check.message.conversation_id == message.conversation_id for check in self._checks
        )

    def _enqueue(self, message: Message) -> list[Action]:
        size = QUEUED_OVERHEAD + sum(getsizeof(text) for text in astuple(message) if isinstance(text, str))
        if self._limits.is_queue_full and self._queued_size + size > 2 * RESERVED_QUEUE_SIZE:
            return self.close(CloseCode.TOO_MANY_ERRORS, "too many messages wait for a check")
        if self._queue is None:
            self._queue = deque()
        self._queue.append((message, size))
        self._queued_size += size
        self._limits.queued += size
        return []

    def _process_queue(self) -> list[Action]:
        """Process queued messages up to one that has to wait for a check."""
        actions: list[Action] = []
        queue = self._queue
        self._queue = None
        while queue:
            message, size = queue[0]
            if self._must_wait(message):
                self._queue = queue
                break
            queue.popleft()
            self._queued_size -= size
            self._limits.queued -= size
            actions += self._handle(message)
        return actions

    # Handlers

    def _handle(self, message: Message) -> list[Action]:
        handler = self._handlers.get((self.state, type(message)))
        if handler is None:
            return [_rejection(ClientError(ErrorCode.UNAUTHENTICATED, "send `auth` first"), message=message)]
        actions: list[Action] = handler(self, message)
        return actions

    def _on_auth(self, message: Auth) -> list[Action]:
        if self.identity is not None and message.user_id is not None and message.user_id != self.identity.user_id:
            return [self._already_authenticated(message)]
        self.state = State.AUTHENTICATING
        return [Authenticate(message)]

    def _on_subscribe(self, message: Subscribe) -> list[Action]:
        conversation_id = message.conversation_id
        if conversation_id in self.conversations:
            if message.last_event_id is None:
                # Pages subscribe to their whole list again after each message, which must not cost a query each time.
                return [AddSubscription(conversation_id, None)]
        elif self._is_full():
            text = f"a connection may subscribe to at most {self._limits.max_subscriptions} conversations"
            return [_rejection(ClientError(ErrorCode.TOO_MANY_SUBSCRIPTIONS, text), message=message)]
        return [self._start_check(message)]

    def _is_full(self) -> bool:
        """Return whether the connection has `max_subscriptions`, including those with a pending check."""
        limit = self._limits.max_subscriptions
        checks = self._checks or ()
        if not limit or len(self.conversations) + len(checks) < limit:
            return False
        return len(self.conversations | {check.message.conversation_id for check in checks}) >= limit

    def _on_unsubscribe(self, message: Unsubscribe) -> list[Action]:
        return self._leave(message.conversation_id)

    def _on_typing(self, message: Typing) -> list[Action]:
        conversation_id = message.conversation_id
        assert self.identity is not None
        if self.identity.is_contact and message.role is not None:
            return [_rejection(Forbidden("contacts type to all subscribers"), message=message)]
        if conversation_id in self.conversations:
            return [self._start_check(message)]
        error = (_not_subscribed if self.identity.covers(conversation_id) else _forbidden)(conversation_id)
        return [_rejection(error, message=message)]

    def _on_ping(self, message: Ping) -> list[Action]:
        actions: list[Action] = [SendReply(messages.PONG)]
        if self.identity is not None and not self.identity.is_contact:
            actions.append(RecordActivity(self.identity.user_id, message))
        return actions

    def _on_activity(self, message: Activity) -> list[Action]:
        if self.identity is None or self.identity.is_contact:
            return []
        return [RecordActivity(self.identity.user_id, message)]

    def _on_presence(self, message: Presence) -> list[Action]:
        if self.identity is not None and self.identity.is_contact:
            return [_rejection(Forbidden("contacts may not list agents"), message=message)]
        return [ListPresence()]

    def _on_status(self, message: Status) -> list[Action]:
        assert self.identity is not None
        if self.identity.is_contact:
            return [_rejection(Forbidden("contacts have no status"), message=message)]
        return [SetStatus(self.identity.user_id, message)]

    _handlers: ClassVar[dict[tuple[State, type], Callable[[Session, Any], list[Action]]]] = {
        (State.NEW, Auth): _on_auth,
        (State.NEW, Ping): _on_ping,
        (State.NEW, Activity): _on_activity,
        (State.AUTHENTICATING, Ping): _on_ping,
        (State.AUTHENTICATING, Activity): _on_activity,
        (State.AUTHENTICATED, Auth): _on_auth,
        (State.AUTHENTICATED, Subscribe): _on_subscribe,
        (State.AUTHENTICATED, Unsubscribe): _on_unsubscribe,
        (State.AUTHENTICATED, Typing): _on_typing,
        (State.AUTHENTICATED, Ping): _on_ping,
        (State.AUTHENTICATED, Activity): _on_activity,
        (State.AUTHENTICATED, Presence): _on_presence,
        (State.AUTHENTICATED, Status): _on_status,
    }

    # Steps that handlers share

    def _start_check(self, message: Subscribe | Typing) -> CheckPermission:
        assert self.identity is not None
        check = CheckPermission(message, self.identity)
        self._checks = [*(self._checks or ()), check]
        return check

    def _leave(self, conversation_id: Id) -> list[Action]:
        agents_only = None if self._typing_in is None else self._typing_in.get(conversation_id)
        actions = [] if agents_only is None else self._set_typing(conversation_id, False, agents_only)
        self.conversations.discard(conversation_id)
        return [*actions, RemoveSubscription(conversation_id)]

    def _leave_not_covered(self) -> list[Action]:
        """End the subscriptions that the identity does not cover any more."""
        identity = self.identity
        actions: list[Action] = []
        if identity is not None and identity.conversations is not None:
            for conversation_id in sort_ids(self.conversations - identity.conversations):
                actions += self._leave(conversation_id)
        return actions

    def _set_typing(self, conversation_id: Id, is_typing: bool, agents_only: bool) -> list[Action]:
        if is_typing:
            if self._typing_in is None:
                self._typing_in = {}
            self._typing_in[conversation_id] = agents_only
        elif self._typing_in is not None:
            self._typing_in.pop(conversation_id, None)
        return self._broadcast_typing(conversation_id, is_typing, agents_only)

    def _broadcast_typing(self, conversation_id: Id, is_typing: bool, agents_only: bool) -> list[Action]:
        identity = self.identity
        if identity is None:
            return []
        return [BroadcastTyping(conversation_id, identity.user_id, is_typing, identity.is_contact, agents_only)]


def _rejection(error: ClientError, text: str | bytes = b"", *, message: Message | None = None) -> SendReply:
    return SendReply(messages.error(error, text, message=message), error.code)


def _forbidden(conversation_id: Id) -> ClientError:
    return Forbidden(f"you may not read conversation {conversation_id}")


def _not_subscribed(conversation_id: Id) -> ClientError:
    return ClientError(ErrorCode.NOT_SUBSCRIBED, f"subscribe to conversation {conversation_id} first")
