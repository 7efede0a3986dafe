"""`chatws agents`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import msgspec

from chatws.cli.options import add_push_options, push_client
from chatws.cli.output import Output, count, printable
from chatws.clients.protocol import OnlineAgent

HELP = "list the agents online, with their statuses, connections and addresses"
DESCRIPTION = """\
Lists the agents online with their status and the number and addresses of their connections. An agent without a
connection has just closed the last one, within presence_grace. With several nodes or workers, the one that responds
knows every agent, but only its own connections.
"""
EXAMPLES = """\
  chatws agents
  chatws agents --json | jq '.online'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_push_options(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    with push_client(arguments) as push:
        agents = push.agents()
    value = {"online": [agent.user_id for agent in agents], "agents": msgspec.to_builtins(agents)}
    output.result(value, table(agents))
    return 0


def table(agents: Sequence[OnlineAgent]) -> str:
    """Format the agents, one a line, and their number."""
    rows = [("agent", "status", "connections", "addresses")]
    for agent in agents:
        addresses: dict[str, int] = {}
        for connection in agent.connections:
            address = connection.address or "unix"
            addresses[address] = addresses.get(address, 0) + 1
        listed = ", ".join(name if times == 1 else f"{name} ({times})" for name, times in addresses.items())
        rows.append(
            (printable(str(agent.user_id)), printable(agent.status), str(len(agent.connections)), printable(listed))
        )
    widths = [max(len(row[column]) for row in rows) for column in (0, 1, 2)]
    lines = [
        f"{row[0].ljust(widths[0])}  {row[1].ljust(widths[1])}  {row[2].rjust(widths[2])}  {row[3]}".rstrip()
        for row in rows
    ]
    total = sum(len(agent.connections) for agent in agents)
    summary = f"{count(len(agents), 'agent')}, {count(total, 'connection')}"
    return "\n".join([*lines, summary]) if agents else "no agent is online"
