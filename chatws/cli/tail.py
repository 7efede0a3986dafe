"""`chatws tail`."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from twisted.internet.defer import Deferred

from chatws.cli.agent_client import AgentClient, AgentSettings
from chatws.cli.options import an_id, number, web_socket_url
from chatws.cli.output import Output, compact, printable
from chatws.cli.reactor_run import run_in_reactor
from chatws.interfaces import Reactor

__all__ = ["shown"]

HELP = "what an agent sees, live"
DESCRIPTION = """\
Connects as an agent's page does and prints each event that comes, until it is interrupted. After a lost connection it
comes back and recovers what it missed. To the others the agent is online meanwhile. On a terminal it is coloured; with
--json each line is a message as the page would get it. Notes about the connection go to stderr.
"""
EXAMPLES = """\
  chatws tail --user 5
  chatws tail --user 5 --conversation 456 --conversation 457 --url wss://chat.example/ws
  CHATWS_TOKEN="$(chatws token 5 --secret-file secret)" chatws tail --user 5 --json | jq .data
"""

#: Where an event's name has none, it is cyan.
_COLOURS = {
    "new_message": "green",
    "new_conversation": "green",
    "agent_status": "yellow",
    "typing": "dim",
    "message_read": "blue",
    "message_status_updated": "blue",
    "conversation_updated": "magenta",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_agent_options(parser)
    parser.add_argument(
        "--url",
        type=web_socket_url,
        default="ws://127.0.0.1:8080/ws",
        help="the server's WebSocket (default ws://127.0.0.1:8080/ws)",
    )
    parser.add_argument(
        "--count", type=number(int, 1, 10**9), metavar="N", help="end after so many events (default: never)"
    )


def add_agent_options(parser: argparse.ArgumentParser) -> None:
    """Who to be, and what to listen to."""
    parser.add_argument("--user", type=an_id, required=True, metavar="ID", help="the agent to be")
    parser.add_argument(
        "--token",
        default=os.environ.get("CHATWS_TOKEN"),
        help="the agent's token (CHATWS_TOKEN is not visible in the list of processes)",
    )
    parser.add_argument(
        "--conversation",
        type=an_id,
        action="append",
        default=[],
        metavar="ID",
        help="a conversation to subscribe to; repeatable",
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    async def watch(reactor: Reactor) -> int:
        done: Deferred[int] = Deferred()
        left = arguments.count

        def event(text: str, message: dict[str, Any]) -> None:
            nonlocal left
            if done.called:
                return
            output.line(one_line(text, message) if output.is_json else shown(message, output))
            if left is not None:
                left -= 1
                if left == 0:
                    done.callback(0)

        def end(error: Exception) -> None:
            agent.stop()
            if not done.called:
                done.errback(error)

        settings = AgentSettings(arguments.url, arguments.user, arguments.token, arguments.conversation)
        agent = AgentClient(settings, reactor, on_event=event, on_note=output.note, on_end=end)
        reactor.addSystemEventTrigger("before", "shutdown", agent.stop)
        agent.start()
        return await done

    return run_in_reactor(watch, interrupted=0)


def one_line(text: str, message: dict[str, Any]) -> str:
    """Return the message as it came, or encoded again if it has line ends."""
    return compact(message) if "\n" in text or "\r" in text else text


def shown(message: dict[str, Any], output: Output) -> str:
    """Format an event for people: its time, name, conversation and data."""
    name = str(message.get("event"))
    data = message.get("data")
    conversation = data.get("conversation_id") if isinstance(data, dict) else None
    words = [
        output.colour("dim", time.strftime("%H:%M:%S")),
        output.colour(_COLOURS.get(name, "cyan"), printable(name)),
        *([] if conversation is None else [output.colour("bold", printable(f"[{conversation}]"))]),
        printable(compact(data)),
    ]
    return " ".join(words)
