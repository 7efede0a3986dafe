"""Decodes the queue of webhooks in Redis (exchange_webhooks.lua)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatws.brokers.webhook_queue import WebhookItem, WebhookReply

__all__ = ["decode_webhooks"]

#: Values of the reply before the events.
_HEAD = 8


def decode_webhooks(reply: Sequence[Any] | None, limit: int) -> WebhookReply:
    """Return the reply of the script.

    :param reply: None if another node is the sender.
    :param limit: number of events that were asked for.
    """
    if reply is None:
        return WebhookReply()
    name, first, reset, queued, last, *dropped = reply[:_HEAD]
    items = []
    for event in reply[_HEAD:]:
        position, time_ms, kind, data = event.split(b" ", 3)
        items.append(WebhookItem(int(position), int(time_ms), kind.decode(), data))
    items.sort(key=lambda item: item.position)
    return WebhookReply(
        True,
        name.decode(),
        items[:limit],
        len(items) > limit,
        int(first),
        int(reset),
        0.0,
        queued,
        (dropped[0], dropped[1], dropped[2]),
        int(last),
    )
