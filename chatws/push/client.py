"""Python clients for the push port: `BlockingPushClient` for scripts and Django, `PushClient` for Twisted.

::

    from chatws.push.client import BlockingPushClient, PushError

    push = BlockingPushClient("127.0.0.1:8081")
    try:
        push.publish("new_message", {"conversation_id": 456, "message": {"id": 9, "content": "hi"}})
    except PushError:
        ...  # it could not be delivered, and you know it

Both try again for a bounded time, with an idempotency key, and then fail: no call hangs, no event is lost silently,
none is sent twice. The exceptions are drawn in `chatws.push.requests`.
"""

from __future__ import annotations

from chatws.push.blocking import BlockingPushClient
from chatws.push.reconnecting import PushClient
from chatws.push.requests import Agent, AgentConnection, Answer, PushError, PushRefused, PushUnavailable

__all__ = [
    "Agent",
    "AgentConnection",
    "Answer",
    "BlockingPushClient",
    "PushClient",
    "PushError",
    "PushRefused",
    "PushUnavailable",
]
