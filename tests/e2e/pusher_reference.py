"""A small server of Pusher's protocol for tests of its clients, in a thread. It is no part of chatws.

It serves one app, checks signatures, and keeps the events of each channel.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from chatws.pusher.signatures import AppCredentials, verify_channel_auth

__all__ = ["ReferenceServer"]


class _Client:
    """A connection with its channels."""

    def __init__(self, connection: ServerConnection, number: int) -> None:
        self.connection = connection
        self.socket_id = f"{number}.{number}"
        self.channels: set[str] = set()

    def reply(self, event: str, data: Any, **more: Any) -> None:
        with suppress(ConnectionClosed):
            self.connection.send(json.dumps({"event": event, "data": json.dumps(data), **more}))


class ReferenceServer:
    """The server, with a thread for each connection. It is a context manager.

    :ivar port: its port on 127.0.0.1.
    :ivar subscriptions: the data of each subscription that it has accepted.
    """

    def __init__(self, app: AppCredentials) -> None:
        self.subscriptions: list[dict[str, Any]] = []
        self._app = app
        self._clients: set[_Client] = set()
        self._lock = threading.RLock()
        self._count = 0
        self._epoch = 1
        self._events: dict[str, list[tuple[str, str, Any]]] = defaultdict(list)
        self._server = serve(self._serve, "127.0.0.1", 0, compression=None)
        self.port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.drop()
        self._server.shutdown()
        self._thread.join()

    def publish(self, channel: str, event: str, *data: Any) -> None:
        """Store events and send them to the subscribers."""
        with self._lock:
            for item in data:
                events = self._events[channel]
                id = f"{self._epoch}:{len(events) + 1}"
                events.append((id, event, item))
                for client in self._clients:
                    if channel in client.channels:
                        client.reply(event, item, channel=channel, id=id)

    @contextmanager
    def offline(self) -> Iterator[None]:
        """Break all connections, and accept none in the block."""
        with self._lock:
            self.drop()
            yield

    def drop(self) -> None:
        """Break all connections, as a network does."""
        with self._lock:
            for client in self._clients:
                with suppress(OSError):
                    client.connection.socket.shutdown(2)
            self._clients.clear()

    def lose_history(self) -> None:
        """Forget all events. Ids of earlier events have another epoch."""
        with self._lock:
            self._epoch += 1
            self._events.clear()

    def _serve(self, connection: ServerConnection) -> None:
        with self._lock:
            self._count += 1
            client = _Client(connection, self._count)
            self._clients.add(client)
            client.reply("pusher:connection_established", {"socket_id": client.socket_id, "activity_timeout": 30})
        with suppress(ConnectionClosed):
            for text in connection:
                message = json.loads(text)
                if message["event"] == "pusher:subscribe":
                    with self._lock:
                        self._subscribe(client, message["data"])
        with self._lock:
            self._clients.discard(client)

    def _subscribe(self, client: _Client, data: dict[str, Any]) -> None:
        channel, last = data["channel"], data.get("last_event_id")
        if channel.startswith(("private-", "presence-")) and not verify_channel_auth(
            self._app, data["auth"], client.socket_id, channel, data.get("channel_data")
        ):
            client.reply("pusher:subscription_error", {"type": "AuthError", "status": 401}, channel=channel)
            return
        self.subscriptions.append(data)
        client.channels.add(channel)
        content: dict[str, Any] = {}
        if channel.startswith("presence-"):
            member = json.loads(data["channel_data"])
            members = {member["user_id"]: member["user_info"]}
            content = {"presence": {"count": 1, "ids": list(members), "hash": members}}
        events = self._events[channel]
        newest = f"{self._epoch}:{len(events)}"
        client.reply("pusher_internal:subscription_succeeded", content, channel=channel, id=newest)
        if last is None:
            return
        epoch, _, offset = last.partition(":")
        recovered = int(epoch) == self._epoch
        for id, event, item in events[int(offset) :] if recovered else ():
            client.reply(event, item, channel=channel, id=id)
        client.reply("chatws:recovered", {"recovered": recovered}, channel=channel, id=newest)
