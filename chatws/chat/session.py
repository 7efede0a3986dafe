"""What one client may do now: a state, and a table from (state, message type) to a handler. Sans-IO.

A message goes in, effects come out; the session performs none of them. What has to be asked elsewhere (who is this?
may it read that?) is an effect too, and its answer comes back by `auth_decided` and `check_decided`. Messages that
arrive meanwhile are held in order. Only `ping` and `activity` overtake; and further `subscribe`s, so that fifty
look-ups take as long as one.

After every answer the session looks again: the client may have gone, or lost the conversation, while it was asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar

from chatws.chat import messages
from chatws.chat.contracts import Identity
from chatws.chat.effects import (
    Authenticate,
    Check,
    Close,
    Effect,
    Enter,
    Join,
    Leave,
    ListPresence,
    Record,
    Reply,
    Tell,
)
from chatws.chat.messages import Activity, Auth, Message, Ping, Presence, Subscribe, Typing, Unsubscribe
from chatws.errors import AuthenticationFailed, ClientError, CloseCode, ErrorCode, Forbidden, Unavailable
from chatws.ids import Id, sort_ids

__all__ = ["Session", "SessionLimits", "State"]

#: Messages held while an answer is awaited; one more is refused. More than any page sends at once.
MAX_HELD = 1000


@dataclass(slots=True)
class SessionLimits:
    """See chatws.config for the meaning of each. All sessions share one, which may be changed under them."""

    max_subscriptions: int = 200
    rate: float = 20.0
    rate_burst: int = 100


class State(Enum):
    """How far the client has come."""

    NEW = auto()
    DECIDING = auto()
    IN = auto()
    CLOSED = auto()


class Session:
    """One client's session. Every method returns the effects to carry out, in order.

    :ivar identity: who it is, once it is in.
    :ivar conversations: what it is subscribed to.
    """

    __slots__ = (
        "_checking",
        "_held",
        "_limits",
        "_stamp",
        "_strikes",
        "_tokens",
        "_typing",
        "conversations",
        "identity",
        "state",
    )

    def __init__(self, limits: SessionLimits, now: float) -> None:
        self.state = State.NEW
        self.identity: Identity | None = None
        self.conversations: set[Id] = set()
        self._limits = limits
        self._tokens: float = limits.rate_burst
        self._stamp = now
        self._strikes = 0
        # made only when needed: most connections are idle
        self._typing: set[Id] | None = None
        self._checking: list[Check] | None = None
        self._held: deque[Message] | None = None

    # What comes in

    def receive(self, text: str | bytes, now: float) -> list[Effect]:
        """One text message.

        :param now: seconds, of any monotonic clock, always the same one.
        """
        if self.state is State.CLOSED:
            return []
        if self._limits.rate and not self._admit(now):
            return self._strike(text)
        try:
            message = messages.parse(text)
        except ClientError as problem:
            self._strikes += 1
            return [_refusal(problem, text)]
        if self._must_wait(message):
            return self._hold(message)
        return self._handle(message)

    def auth_decided(self, message: Auth, answer: Identity | ClientError) -> list[Effect]:
        """The answer to `Authenticate(message)`."""
        if self.state is State.CLOSED:
            return []
        entered = self.identity is not None
        self.state = State.IN if entered else State.NEW
        if isinstance(answer, Identity):
            if self.identity is not None and self.identity.user_id != answer.user_id:
                return [self._already(message), *self._release()]
            self.identity = answer
            self.state = State.IN
            effects: list[Effect] = [Enter(answer, message.last_event_id, entered)]
            if entered:  # with fresh credentials now, which may be for fewer
                for conversation_id in sort_ids([one for one in self.conversations if not answer.covers(one)]):
                    effects += self._leave(conversation_id)
            return effects + self._release()
        refusal = _refusal(answer, message=message)
        if isinstance(answer, AuthenticationFailed):
            return [refusal, *self.close(CloseCode.AUTH_FAILED, answer.message)]
        if isinstance(answer, Forbidden):
            return [refusal, *self.close(CloseCode.FORBIDDEN, answer.message)]
        if isinstance(answer, Unavailable) and not entered:
            return [refusal, *self.close(CloseCode.UNAVAILABLE, answer.message)]
        return [refusal, *self._release()]

    def check_decided(self, check: Check, answer: bool | ClientError) -> list[Effect]:
        """The answer to `check`. Without effect when the conversation was taken away meanwhile."""
        checking = self._checking
        if self.state is State.CLOSED or checking is None:
            return []
        others = [one for one in checking if one is not check]
        if len(others) == len(checking):
            return []
        self._checking = others or None
        message = check.message
        conversation_id = message.conversation_id
        effects: list[Effect]
        if isinstance(answer, ClientError):
            effects = [_refusal(answer, message=message)]
        elif not answer:
            effects = [_refusal(_forbidden(conversation_id), message=message)]
            if conversation_id in self.conversations:
                effects += self._leave(conversation_id)
        elif isinstance(message, Subscribe):
            self.conversations.add(conversation_id)
            effects = [Join(conversation_id, message.last_event_id)]
        elif conversation_id in self.conversations:
            effects = self._tell(conversation_id, message.is_typing)
        else:
            effects = [_refusal(_not_subscribed(conversation_id), message=message)]
        return effects + self._release()

    def revoke(self, conversation_id: Id) -> list[Effect]:
        """A backend takes the conversation away: also from a check still in flight."""
        if self.state is State.CLOSED:
            return []
        effects: list[Effect] = []
        for check in self._checking or ():
            if check.message.conversation_id == conversation_id:
                effects.append(_refusal(_forbidden(conversation_id), message=check.message))
        if effects and self._checking is not None:
            self._checking = [one for one in self._checking if one.message.conversation_id != conversation_id] or None
        if conversation_id in self.conversations:
            effects += self._leave(conversation_id)
        return effects + self._release()

    def close(self, code: CloseCode, reason: str) -> list[Effect]:
        """End the session from this side."""
        if self.state is State.CLOSED:
            return []
        return [*self.gone(), Close(code, reason)]

    def gone(self) -> list[Effect]:
        """The connection has ended: what the others must be told. Nothing comes of this session any more."""
        effects: list[Effect] = []
        if self.state is not State.CLOSED:
            for conversation_id in self._typing or ():
                effects.extend(self._told(conversation_id, False))
        self.state = State.CLOSED
        self._typing = self._checking = self._held = None
        return effects

    # Limits

    def _admit(self, now: float) -> bool:
        """The token bucket: `rate` a second, `rate_burst` at once."""
        limits = self._limits
        tokens = self._tokens + (now - self._stamp) * limits.rate
        self._stamp = now
        if tokens >= limits.rate_burst:
            tokens = limits.rate_burst
            self._strikes = 0
        if tokens < 1.0:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1.0
        return True

    def _strike(self, text: str | bytes) -> list[Effect]:
        self._strikes += 1
        if self._strikes > self._limits.rate_burst:
            return self.close(CloseCode.TOO_MANY_ERRORS, "too many messages")
        problem = ClientError(ErrorCode.RATE_LIMITED, f"more than {self._limits.rate:g} messages a second")
        return [_refusal(problem, text)]

    # Holding

    def _must_wait(self, message: Message) -> bool:
        if isinstance(message, Ping | Activity):
            return False
        if self._held or self.state is State.DECIDING:
            return True
        if not self._checking:
            return False
        return not isinstance(message, Subscribe) or any(
            one.message.conversation_id == message.conversation_id for one in self._checking
        )

    def _hold(self, message: Message) -> list[Effect]:
        if self._held is None:
            self._held = deque()
        if len(self._held) >= MAX_HELD:
            problem = ClientError(ErrorCode.RATE_LIMITED, f"more than {MAX_HELD} messages wait for an answer")
            return [_refusal(problem, message=message)]
        self._held.append(message)
        return []

    def _release(self) -> list[Effect]:
        """Go on with what was held, until something has to be waited for again."""
        effects: list[Effect] = []
        held = self._held
        self._held = None
        while held:
            if self._must_wait(held[0]):
                self._held = held
                break
            effects += self._handle(held.popleft())
        return effects

    # The table

    def _handle(self, message: Message) -> list[Effect]:
        handler = self._table.get((self.state, type(message)))
        if handler is None:
            problem = ClientError(ErrorCode.UNAUTHENTICATED, "send `auth` first")
            return [_refusal(problem, message=message)]
        effects: list[Effect] = handler(self, message)
        return effects

    def _auth(self, message: Auth) -> list[Effect]:
        if self.identity is not None and message.user_id is not None and message.user_id != self.identity.user_id:
            return [self._already(message)]
        self.state = State.DECIDING
        return [Authenticate(message)]

    def _subscribe(self, message: Subscribe) -> list[Effect]:
        limit = self._limits.max_subscriptions
        waiting = {check.message.conversation_id for check in self._checking or ()}
        if limit and message.conversation_id not in self.conversations and len(self.conversations | waiting) >= limit:
            problem = ClientError(ErrorCode.TOO_MANY_SUBSCRIPTIONS, f"at most {limit} conversations a connection")
            return [_refusal(problem, message=message)]
        return [self._check(message)]

    def _unsubscribe(self, message: Unsubscribe) -> list[Effect]:
        return self._leave(message.conversation_id)

    def _typing_message(self, message: Typing) -> list[Effect]:
        conversation_id = message.conversation_id
        if conversation_id in self.conversations:
            return [self._check(message)]
        assert self.identity is not None
        problem = (_not_subscribed if self.identity.covers(conversation_id) else _forbidden)(conversation_id)
        return [_refusal(problem, message=message)]

    def _ping(self, message: Ping) -> list[Effect]:
        effects: list[Effect] = [Reply(messages.PONG)]
        if self.identity is not None:
            effects.append(Record(self.identity.user_id, message))
        return effects

    def _activity(self, message: Activity) -> list[Effect]:
        return [] if self.identity is None else [Record(self.identity.user_id, message)]

    def _presence(self, message: Presence) -> list[Effect]:
        return [ListPresence()]

    _table: ClassVar[dict[tuple[State, type], Callable[[Session, Any], list[Effect]]]] = {
        (State.NEW, Auth): _auth,
        (State.NEW, Ping): _ping,
        (State.NEW, Activity): _activity,
        (State.DECIDING, Ping): _ping,
        (State.DECIDING, Activity): _activity,
        (State.IN, Auth): _auth,
        (State.IN, Subscribe): _subscribe,
        (State.IN, Unsubscribe): _unsubscribe,
        (State.IN, Typing): _typing_message,
        (State.IN, Ping): _ping,
        (State.IN, Activity): _activity,
        (State.IN, Presence): _presence,
    }

    # Common steps

    def _check(self, message: Subscribe | Typing) -> Check:
        assert self.identity is not None
        check = Check(message, self.identity)
        self._checking = [*(self._checking or ()), check]
        return check

    def _leave(self, conversation_id: Id) -> list[Effect]:
        effects = self._tell(conversation_id, False) if self._typing and conversation_id in self._typing else []
        self.conversations.discard(conversation_id)
        return [*effects, Leave(conversation_id)]

    def _tell(self, conversation_id: Id, is_typing: bool) -> list[Effect]:
        if is_typing:
            if self._typing is None:
                self._typing = set()
            self._typing.add(conversation_id)
        elif self._typing is not None:
            self._typing.discard(conversation_id)
        return self._told(conversation_id, is_typing)

    def _told(self, conversation_id: Id, is_typing: bool) -> list[Effect]:
        return [] if self.identity is None else [Tell(conversation_id, self.identity.user_id, is_typing)]

    def _already(self, message: Auth) -> Reply:
        assert self.identity is not None
        problem = ClientError(
            ErrorCode.ALREADY_AUTHENTICATED, f"this connection belongs to user {self.identity.user_id}"
        )
        return _refusal(problem, message=message)


def _refusal(problem: ClientError, text: str | bytes = b"", *, message: Message | None = None) -> Reply:
    return Reply(messages.error(problem, text, message=message), problem.code)


def _forbidden(conversation_id: Id) -> ClientError:
    return Forbidden(f"you may not read conversation {conversation_id}")


def _not_subscribed(conversation_id: Id) -> ClientError:
    return ClientError(ErrorCode.NOT_SUBSCRIBED, f"subscribe to conversation {conversation_id} first")
