"""`chatws compare`."""

from __future__ import annotations

import argparse
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from chatws.cli.agent_client import AgentSettings, auth_message, closed_because, parse_message, subscribe_message
from chatws.cli.comparison import Comparison, Difference, Side
from chatws.cli.options import number, web_socket_url
from chatws.cli.output import Output, compact, count, printable
from chatws.cli.reactor_run import run_in_reactor
from chatws.cli.tail import add_agent_options
from chatws.errors import ConfigError
from chatws.interfaces import Reactor, zope_clock

__all__ = ["REPLIES", "Watcher", "shown"]

HELP = "compare the events of two servers before a migration"
DESCRIPTION = """\
Connects to an old and a new server as the same agent, and compares the events by name and data. Their order and their
`id` are ignored, as are replies to the agent's own messages. The backend has to push to both servers meanwhile.

An event that only the old server sends is `missing`. One that only the new server sends is `extra`. Two events of the
same name with other data are `different`. The exit status is 1 if there is a difference or a connection is lost.
"""
EXAMPLES = """\
  chatws compare --legacy ws://old:8080 --new ws://new:8080/ws --user 5 --conversation 456 --seconds 600
  chatws compare --legacy ws://old:8080 --new ws://new:8080/ws --user 5 --ignore agent_status --json
"""

#: Not pushed by a backend: replies to the agent's own messages and the greeting.
REPLIES = frozenset(
    ("authenticated", "subscribed", "unsubscribed", "presence", "error", "pong", "connected", "recovered", "resync")
)
#: Seconds between two pings, as existing pages send them.
_PING_INTERVAL = 30.0
#: Seconds for `auth` and `subscribe`. An old server may send other replies, so the comparison begins without them.
_SETTLE_TIMEOUT = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--legacy", type=web_socket_url, required=True, metavar="URL", help="the old server")
    parser.add_argument("--new", type=web_socket_url, required=True, metavar="URL", help="the new server")
    add_agent_options(parser)
    parser.add_argument(
        "--seconds",
        type=number(float, 0.1, 10**7),
        default=60.0,
        help="time to watch (default 60); an interrupt also ends it with a report",
    )
    parser.add_argument(
        "--window",
        type=number(float, 0.05, 600),
        default=5.0,
        metavar="SECONDS",
        help="maximum time between the two servers' copies of an event (default 5)",
    )
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="EVENT", help="an event not to compare; repeatable"
    )


class Watcher:
    """One of the two connections.

    :ivar ready: fires when the agent is authenticated and subscribed, or after `_SETTLE_TIMEOUT`.
    """

    def __init__(self, side: Side, settings: AgentSettings, reactor: Reactor) -> None:
        self.side: Side = side
        self.ready: Deferred[None] = Deferred()
        self._settings = settings
        self._reactor = reactor
        self._missing = {"authenticated": 1, "subscribed": len(settings.conversations)}
        self._settle: Any = None
        self._pings = LoopingCall(lambda: self._client.send('{"type":"ping"}'))
        self._pings.clock = zope_clock(reactor)
        from chatws.server.websocket_client import WebSocketClient  # Autobahn: slow to import

        self._client = WebSocketClient(
            settings.url, reactor=reactor, on_open=self._opened, on_message=self._received, on_close=self._closed
        )
        self.on_event: Any = lambda watcher, event, data: None
        self.on_note: Any = lambda text: None
        self.on_lost: Any = lambda error: None

    def connect(self) -> None:
        self._client.connect()

    def _opened(self) -> None:
        self._client.send(auth_message(self._settings))
        for conversation_id in self._settings.conversations:
            self._client.send(subscribe_message(conversation_id))
        self._settle = self._reactor.callLater(_SETTLE_TIMEOUT, self._set_ready)
        self._pings.start(_PING_INTERVAL, now=False)

    def _set_ready(self) -> None:
        if self._settle is not None and self._settle.active():
            self._settle.cancel()
        if not self.ready.called:
            self.ready.callback(None)

    def _received(self, text: str) -> None:
        message = parse_message(text)
        event = message.get("event", message.get("type")) if message else None
        if message is None or not isinstance(event, str):
            self.on_note(f"{self.side}: neither an event nor a reply: {text[:200]}")
            return
        if event not in REPLIES:
            self.on_event(self, event, message.get("data"))
            return
        if event == "error":
            self.on_note(f"{self.side}: {text[:300]}")
        if event in self._missing:
            self._missing[event] -= 1
        if all(left <= 0 for left in self._missing.values()):
            self._set_ready()

    def _closed(self, code: int | None, reason: str) -> None:
        if self._settle is not None and self._settle.active():
            self._settle.cancel()
        if self._pings.running:
            self._pings.stop()
        self.on_lost(
            ConfigError(f"no connection to --{self.side} {self._settings.url}: {closed_because(code, reason)}")
        )


def run(arguments: argparse.Namespace, output: Output) -> int:
    comparison = Comparison(arguments.window)
    ignored = {*arguments.ignore}

    async def watch(reactor: Reactor) -> int:
        over: Deferred[None] = Deferred()
        is_watching = False
        waiting = 2

        def lost(error: ConfigError) -> None:
            if not over.called:
                over.errback(error)

        def event(watcher: Watcher, name: str, data: Any) -> None:
            if name not in ignored:
                comparison.add(watcher.side, name, data, reactor.seconds(), counts=is_watching)

        sides: list[tuple[Side, str]] = [("legacy", arguments.legacy), ("new", arguments.new)]
        watchers = [
            Watcher(side, AgentSettings(url, arguments.user, arguments.token, arguments.conversation), reactor)
            for side, url in sides
        ]
        for watcher in watchers:
            watcher.on_event, watcher.on_note, watcher.on_lost = event, output.note, lost
            watcher.connect()

        def begin() -> None:
            nonlocal is_watching
            is_watching = True
            output.note(f"watching both for {arguments.seconds:g} s")
            end = reactor.seconds() + arguments.seconds
            tick.clock = zope_clock(reactor)
            tick.start(0.2)
            reactor.callLater(arguments.seconds, wait_for_late_events, end)

        def show_progress() -> None:
            output.progress(f"{comparison.same} the same, {len(comparison.differences())} not, or not yet")

        def wait_for_late_events(end: float) -> None:
            # an event that one server sent just before the end may still arrive from the other
            nonlocal is_watching
            is_watching = False
            if over.called:
                return
            if comparison.is_waiting and reactor.seconds() < end + arguments.window:
                reactor.callLater(0.05, wait_for_late_events, end)
            else:
                over.callback(None)

        tick = LoopingCall(show_progress)

        def watcher_ready(_: None) -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                begin()

        for watcher in watchers:
            watcher.ready.addCallback(watcher_ready)
        await over
        return 0

    status = run_in_reactor(watch, interrupted=0)
    differences = comparison.differences()
    for difference in differences:
        output.result(_as_json(difference), shown(difference, output))
    summary = {"same": comparison.same, "differences": len(differences)}
    output.result(summary, f"{count(comparison.same, 'event')} the same, {count(len(differences), 'difference')}")
    return 1 if differences else status


def _as_json(difference: Difference) -> dict[str, Any]:
    kind, event, legacy, new = difference
    sides = {"missing": {"legacy": legacy}, "extra": {"new": new}}
    return {"kind": kind, "event": event, **sides.get(kind, {"legacy": legacy, "new": new})}


def shown(difference: Difference, output: Output) -> str:
    """Format a difference as text."""
    colours = {"missing": "red", "extra": "yellow", "different": "magenta"}
    head = f"{output.colour(colours[difference.kind], difference.kind)} {printable(difference.event)}"
    legacy, new = printable(compact(difference.legacy)), printable(compact(difference.new))
    match difference.kind:
        case "missing":
            return f"{head} {legacy}"
        case "extra":
            return f"{head} {new}"
        case _:
            return f"{head}\n  legacy {legacy}\n  new    {new}"
