"""What can go wrong, and whose fault it is.

The tree::

    ChatwsError
    ├── ConfigError        a wrong option, a missing file: one line, exit status 78
    │   └── StartError     a port in use, a broker that is unavailable: one line, exit status 1
    └── ClientError          the other side's fault (or its bad luck): answered with a code, nobody else notices
        ├── AuthenticationFailed   `auth_failed`: who it says it is could not be proved
        ├── Forbidden              `forbidden`: it is known, and may not
        └── Unavailable            `unavailable`: nobody could be asked; never taken for a yes

Any other exception is a fault of ours: it is logged with its traceback, the connection in whose name it
happened is closed with `CloseCode.INTERNAL_ERROR`, and all the others go on.

The codes are those of docs/protocol.md, sections 2 and 3.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

__all__ = [
    "AuthenticationFailed",
    "ChatwsError",
    "ClientError",
    "CloseCode",
    "ConfigError",
    "ErrorCode",
    "Forbidden",
    "StartError",
    "Unavailable",
]


class ErrorCode(StrEnum):
    """The `code` of an `error` event (docs/protocol.md §2) or of a negative answer line (§3)."""

    BAD_JSON = "bad_json"
    BAD_MESSAGE = "bad_message"
    UNKNOWN_TYPE = "unknown_type"
    UNSUPPORTED = "unsupported"
    UNAUTHENTICATED = "unauthenticated"
    ALREADY_AUTHENTICATED = "already_authenticated"
    AUTH_FAILED = "auth_failed"
    FORBIDDEN = "forbidden"
    NOT_SUBSCRIBED = "not_subscribed"
    RATE_LIMITED = "rate_limited"
    TOO_MANY_SUBSCRIPTIONS = "too_many_subscriptions"
    UNAVAILABLE = "unavailable"
    # only to backends
    NO_AUDIENCE = "no_audience"
    RESERVED_EVENT = "reserved_event"
    LINE_TOO_LONG = "line_too_long"
    BAD_SECRET = "bad_secret"
    OVERLOADED = "overloaded"


class CloseCode(IntEnum):
    """WebSocket close codes: RFC 6455 §7.4.1, and ours from docs/protocol.md §2.

    4000 to 4899 tell the browser to reconnect with backoff, 4900 to 4999 not to.
    """

    NORMAL = 1000
    RECONNECT = 4000
    SLOW_CONSUMER = 4001
    RESTARTING = 4012
    AUTH_TIMEOUT = 4408
    TOO_MANY_ERRORS = 4429
    INTERNAL_ERROR = 4500
    UNAVAILABLE = 4503
    AUTH_FAILED = 4901
    FORBIDDEN = 4903
    TOO_MANY_CONNECTIONS = 4909


class ChatwsError(Exception):
    """The root of what chatws raises on purpose."""


class ConfigError(ChatwsError):
    """The operator must change something. `str()` is one line that says what.

    :cvar exit_status: of a server that cannot start. 78 is EX_CONFIG (sysexits.h): the next start fails, too.
    """

    exit_status = 78


class StartError(ConfigError):
    """The server cannot start now: a port is in use, the broker is unavailable, a disk is full.

    The configuration may be right, and a later start may succeed.
    """

    exit_status = 1


class ClientError(ChatwsError):
    """A message or a line that cannot be honoured.

    :ivar code: what kind, for programs.
    :ivar message: one sentence, for people; it names the field where there is one.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class AuthenticationFailed(ClientError):
    """The credentials do not prove who is calling. The connection is closed with `CloseCode.AUTH_FAILED`."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.AUTH_FAILED, message)


class Forbidden(ClientError):
    """The caller is known and may not do this."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.FORBIDDEN, message)


class Unavailable(ClientError):
    """What has to be asked (a database, the application, the log) cannot be asked now."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.UNAVAILABLE, message)
