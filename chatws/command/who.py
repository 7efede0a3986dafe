"""`chatws who`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import msgspec

from chatws.command.options import add_push_options, push_client
from chatws.command.output import Output, count, printable
from chatws.push.requests import Agent

HELP = "the agents online, with their tabs and addresses"
DESCRIPTION = """\
Lists who is online, with each tab's connection and address. Without a tab is who has just closed the last one, and may
be back in a moment. Of several nodes or workers the one that answers lists only the tabs of its own.
"""
EXAMPLES = """\
  chatws who
  chatws who --json | jq '.online'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_push_options(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    with push_client(arguments) as push:
        agents = push.agents()
    found = {"online": [agent.user_id for agent in agents], "agents": msgspec.to_builtins(agents)}
    output.result(found, table(agents))
    return 0


def table(agents: Sequence[Agent]) -> str:
    """The agents, a line each, and how many they are."""
    rows = [("agent", "tabs", "addresses")]
    for agent in agents:
        tabs = len(agent.connections)
        addresses: dict[str, int] = {}
        for connection in agent.connections:
            address = connection.address or "unix"
            addresses[address] = addresses.get(address, 0) + 1
        listed = ", ".join(name if times == 1 else f"{name} ({times})" for name, times in addresses.items())
        rows.append((printable(str(agent.user_id)), str(tabs), printable(listed)))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{row[0].ljust(widths[0])}  {row[1].rjust(widths[1])}  {row[2]}".rstrip() for row in rows]
    total = sum(len(agent.connections) for agent in agents)
    summary = f"{count(len(agents), 'agent')}, {count(total, 'tab')}"
    return "\n".join([*lines, summary]) if agents else "nobody is online"
