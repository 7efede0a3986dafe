"""`chatws nodes`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import msgspec

from chatws.cli.options import add_push_options, push_client
from chatws.cli.output import Output, count, printable
from chatws.clients.protocol import ClusterNode

HELP = "list the nodes that share the broker"
DESCRIPTION = """\
Lists the nodes that share the broker: name, id, address, version, connections, uptime, delay of the event loop, and the
last event that each has read. With --workers, each worker is a node. The exit status is 1 if a node has other settings
than the one that responds.
"""
EXAMPLES = """\
  chatws nodes
  chatws nodes --push 10.0.0.5:8081,10.0.0.6:8081 --json | jq '.[].connections'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_push_options(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    with push_client(arguments) as push:
        nodes = push.nodes()
    output.result(msgspec.to_builtins(nodes), table(nodes))
    return 1 if any(node.differs for node in nodes) else 0


def table(nodes: Sequence[ClusterNode]) -> str:
    """Format the nodes, one a line, and their differences."""
    rows = [("node", "id", "address", "version", "connections", "uptime", "lag", "offset", "state")]
    for node in sorted(nodes, key=lambda node: (node.name, node.id)):
        uptime, lag = f"{node.uptime:.0f} s", f"{1000 * node.lag:.1f} ms"
        texts = (node.name, node.id, node.address, node.version)
        numbers = (str(node.connections), uptime, lag, str(node.offset))
        rows.append((*map(printable, texts), *numbers, node.state))  # type: ignore[arg-type]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [
        f"{printable(node.name)} ({node.id}) differs: {', '.join(map(printable, node.differs))}"
        for node in nodes
        if node.differs
    ]
    total = sum(node.connections for node in nodes)
    return "\n".join([*lines, f"{count(len(nodes), 'node')}, {count(total, 'connection')}"])
