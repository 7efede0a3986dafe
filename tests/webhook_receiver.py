"""A receiver of webhooks for tests: a real HTTP server on a thread, which keeps what a receiver should keep."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from chatws.clients.webhook import HEADER, verify

#: What a receiver answers: a status, headers, and a body; None closes the connection without an answer.
Reply = tuple[int, dict[str, str], bytes] | None


class Receiver:
    """Keeps the requests, and the state that a receiver that follows docs/webhooks.md would have.

    :ivar answer: decides what is answered to a request; it may block.
    :ivar requests: the bodies, decoded, of all requests with a valid signature.
    :ivar acknowledged: the events of requests that were answered with 200, in order.
    :ivar seq: the greatest sequence number that was applied.
    :ivar online: the agents that are online according to the events.
    """

    def __init__(self, secret: str = "") -> None:
        self.answer: Callable[[Any], Reply] = lambda request: (200, {}, b"")
        self.secret = secret
        self.requests: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.acknowledged: list[Any] = []
        self.connections = 0
        self.seq = 0
        self.online: set[Any] = set()
        self.url = ""
        self._lock = threading.Lock()
        self._parts: set[Any] = set()

    def events(self) -> list[Any]:
        """The acknowledged events, each once: an answer that comes too late on a busy machine causes a repetition."""
        events: dict[str, Any] = {}
        for event in list(self.acknowledged):
            events.setdefault(event["id"], event)
        return list(events.values())

    def names(self, without: tuple[str, ...] = ("heartbeat",)) -> list[str]:
        """The names of the acknowledged events."""
        return [event["event"] for event in self.events() if event["event"] not in without]

    def changes(self) -> list[tuple[str, Any]]:
        """The acknowledged changes of agents."""
        kinds = ("agent_online", "agent_offline")
        return [(event["event"], event["user_id"]) for event in self.events() if event["event"] in kinds]

    def receive(self, body: bytes, headers: dict[str, str]) -> Reply:
        if self.secret and not verify(body, headers.get(HEADER.lower()), self.secret):
            return (401, {}, b"bad signature")
        request = json.loads(body)
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
        reply = self.answer(request)
        if reply is not None and 200 <= reply[0] < 300:
            with self._lock:
                for event in request["events"]:
                    self.acknowledged.append(event)
                    self.apply(event)
        return reply

    def apply(self, event: Any) -> None:
        """Ignore an event that is older than one that was applied."""
        if event["seq"] <= self.seq:
            return
        self.seq = event["seq"]
        match event["event"]:
            case "agent_online":
                self.online.add(event["user_id"])
            case "agent_offline":
                self.online.discard(event["user_id"])
            case "presence_reset":
                if event["part"] == 1:
                    self._parts = set()
                self._parts.update(event["online"])
                if event["part"] == event["parts"]:
                    self.online = self._parts


@contextmanager
def webhook_receiver(secret: str = "", port: int = 0) -> Iterator[Receiver]:
    """Run a receiver on the loopback."""
    receiver = Receiver(secret)

    class ReceivingHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            receiver.connections += 1
            super().setup()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            reply = receiver.receive(body, {name.lower(): value for name, value in self.headers.items()})
            if reply is None:
                self.close_connection = True
                return
            status, headers, content = reply
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "content-length" not in {name.lower() for name in headers}:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Server(("127.0.0.1", port), ReceivingHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
