"""`chatws shadow`."""

from __future__ import annotations

import argparse
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from chatws.command.agent import AgentSettings, auth_message, closed_because, parse_message, subscribe_message
from chatws.command.compare import Comparison, Difference, Side
from chatws.command.options import number, web_socket_url
from chatws.command.output import Output, compact, count, printable
from chatws.command.running import run_in_reactor
from chatws.command.tail import add_agent_options
from chatws.errors import OperatorError

__all__ = ["ANSWERS", "Watcher", "shown"]

HELP = "compare the events of two servers, before moving from one to the other"
DESCRIPTION = """\
Connects to an old server and to a new one as one agent, and compares the events that come, by name and data. Their
order and their `id` do not count. Neither do answers to messages of one's own. Let the backend push to both meanwhile.

An event that only the old server sends is `missing`, one that only the new one sends is `extra`, and two of one name
with other data are `different`. The exit status is 1 when there are any, or when a connection is lost.
"""
EXAMPLES = """\
  chatws shadow --legacy ws://old:8080 --new ws://new:8080/ws --user 5 --conversation 456 --seconds 600
  chatws shadow --legacy ws://old:8080 --new ws://new:8080/ws --user 5 --ignore agent_status --json
"""

#: Not pushed, but said in answer to what this agent itself says, or to its coming.
ANSWERS = frozenset(
    ("authenticated", "subscribed", "unsubscribed", "presence", "error", "pong", "connected", "recovered", "resync")
)
#: As the pages in the field do.
_PING_SECONDS = 30.0
#: How long an old server, whose answers may be others, gets for `auth` and `subscribe`.
_SETTLE_SECONDS = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--legacy", type=web_socket_url, required=True, metavar="URL", help="the old server")
    parser.add_argument("--new", type=web_socket_url, required=True, metavar="URL", help="the new server")
    add_agent_options(parser)
    parser.add_argument(
        "--seconds",
        type=number(float, 0.1, 10**7),
        default=60.0,
        help="how long to watch (default 60); an interrupt ends it with a report, too",
    )
    parser.add_argument(
        "--window",
        type=number(float, 0.05, 600),
        default=5.0,
        metavar="SECONDS",
        help="how far apart the two may send an event (default 5)",
    )
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="EVENT", help="an event not to compare; repeatable"
    )


class Watcher:
    """One of the two connections.

    :ivar ready: fires when the agent is authenticated and subscribed, as far as one can tell.
    """

    def __init__(self, side: Side, settings: AgentSettings, reactor: Any) -> None:
        self.side: Side = side
        self.ready: Deferred[None] = Deferred()
        self._settings = settings
        self._reactor = reactor
        self._missing = {"authenticated": 1, "subscribed": len(settings.conversations)}
        self._settle: Any = None
        self._pings = LoopingCall(lambda: self._client.send('{"type":"ping"}'))
        self._pings.clock = reactor
        from chatws.server.client import WebSocketClient  # takes its time, and most commands need none

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
        self._settle = self._reactor.callLater(_SETTLE_SECONDS, self._is_ready)
        self._pings.start(_PING_SECONDS, now=False)

    def _is_ready(self) -> None:
        if self._settle is not None and self._settle.active():
            self._settle.cancel()
        if not self.ready.called:
            self.ready.callback(None)

    def _received(self, text: str) -> None:
        message = parse_message(text)
        event = message.get("event", message.get("type")) if message else None
        if message is None or not isinstance(event, str):
            self.on_note(f"{self.side}: neither an event nor an answer: {text[:200]}")
            return
        if event not in ANSWERS:
            self.on_event(self, event, message.get("data"))
            return
        if event == "error":
            self.on_note(f"{self.side}: {text[:300]}")
        if event in self._missing:
            self._missing[event] -= 1
        if all(left <= 0 for left in self._missing.values()):
            self._is_ready()

    def _closed(self, code: int | None, reason: str) -> None:
        if self._settle is not None and self._settle.active():
            self._settle.cancel()
        if self._pings.running:
            self._pings.stop()
        self.on_lost(
            OperatorError(f"no connection to --{self.side} {self._settings.url}: {closed_because(code, reason)}")
        )


def run(arguments: argparse.Namespace, output: Output) -> int:
    comparison = Comparison(arguments.window)
    ignored = {*arguments.ignore}

    async def watch(reactor: Any) -> int:
        over: Deferred[None] = Deferred()
        is_watching = False
        waiting = 2

        def lost(error: OperatorError) -> None:
            if not over.called:
                over.errback(error)

        def event(watcher: Watcher, name: str, data: Any) -> None:
            if name not in ignored:
                comparison.saw(watcher.side, name, data, reactor.seconds(), counts=is_watching)

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
            tick.clock = reactor
            tick.start(0.2)
            reactor.callLater(arguments.seconds, wait_for_the_late, end)

        def say() -> None:
            output.progress(f"{comparison.same} the same, {len(comparison.differences())} not, or not yet")

        def wait_for_the_late(end: float) -> None:
            # what came just before the end from one may still come from the other
            nonlocal is_watching
            is_watching = False
            if over.called:
                return
            if comparison.is_waiting and reactor.seconds() < end + arguments.window:
                reactor.callLater(0.05, wait_for_the_late, end)
            else:
                over.callback(None)

        tick = LoopingCall(say)

        def one_ready(_: None) -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                begin()

        for watcher in watchers:
            watcher.ready.addCallback(one_ready)
        await over
        return 0

    status = run_in_reactor(watch, interrupted=0)
    found = comparison.differences()
    for one in found:
        output.result(_value(one), shown(one, output))
    summary = {"same": comparison.same, "differences": len(found)}
    output.result(summary, f"{count(comparison.same, 'event')} the same, {count(len(found), 'difference')}")
    return 1 if found else status


def _value(one: Difference) -> dict[str, Any]:
    sides = {"missing": {"legacy": one.legacy}, "extra": {"new": one.new}}
    return {"kind": one.kind, "event": one.event, **sides.get(one.kind, {"legacy": one.legacy, "new": one.new})}


def shown(one: Difference, output: Output) -> str:
    """A difference for people."""
    colours = {"missing": "red", "extra": "yellow", "different": "magenta"}
    head = f"{output.colour(colours[one.kind], one.kind)} {printable(one.event)}"
    legacy, new = printable(compact(one.legacy)), printable(compact(one.new))
    match one.kind:
        case "missing":
            return f"{head} {legacy}"
        case "extra":
            return f"{head} {new}"
        case _:
            return f"{head}\n  legacy {legacy}\n  new    {new}"
