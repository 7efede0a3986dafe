"""`chatws rebalance`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from chatws.cli.options import add_push_options, number, push_client
from chatws.cli.output import Output, count, printable
from chatws.clients.protocol import ClusterNode
from chatws.errors import ConfigError

HELP = "move connections from nodes with many to nodes with few"
DESCRIPTION = """\
Closes connections of each node that has more than its share, over some seconds. Their clients connect again and
recover, and the balancer (least_conn) sends them to the nodes with few connections. Use it after a rolling restart.

--drain NODE closes all connections of one node, which then rejects WebSockets with 503 and is not ready, so that the
balancer uses the others. The process keeps running. --resume NODE ends that.
"""
EXAMPLES = """\
  chatws rebalance
  chatws rebalance --seconds 120
  chatws rebalance --drain web2
  chatws rebalance --resume web2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_push_options(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--drain", metavar="NODE", help="the name or id of a node that is to serve no browser")
    what.add_argument("--resume", metavar="NODE", help="the name or id of a node that is to serve browsers again")
    parser.add_argument(
        "--seconds",
        type=number(float, 0, 86400),
        default=30.0,
        metavar="SECONDS",
        help="the time over which the connections are closed (default 30)",
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    with push_client(arguments) as push:
        nodes = push.nodes()
        if arguments.drain is not None:
            moves = [(node, node.connections) for node in named(nodes, arguments.drain)]
        elif arguments.resume is not None:
            moves = [(node, 0) for node in named(nodes, arguments.resume)]
        else:
            moves = surplus(nodes)
        for node, connections in moves:
            drain = arguments.drain is not None
            push.rebalance(node.id, connections, seconds=arguments.seconds, drain=drain)
            verb = "drains" if drain else "serves"
            output.result(
                {"node": node.id, "name": node.name, "connections": connections, "drain": drain},
                f"{printable(node.name)} ({node.id}) {verb}, and closes {count(connections, 'connection')} "
                f"over {arguments.seconds:g} s",
            )
    if not moves:
        output.result([], "the nodes have their shares")
    return 0


def named(nodes: Sequence[ClusterNode], name: str) -> list[ClusterNode]:
    """Return the nodes with this name or id: several with --workers.

    :raises ConfigError: there is none.
    """
    found = [node for node in nodes if name in (node.name, node.id)]
    if not found:
        raise ConfigError(f"no node is called {name}; `chatws nodes` lists them")
    return found


def surplus(nodes: Sequence[ClusterNode]) -> list[tuple[ClusterNode, int]]:
    """Return the nodes with more than their share, each with how many connections it has above it.

    Nodes that drain get no share and keep what they have.
    """
    serving = [node for node in nodes if node.state == "serving"]
    share = -(-sum(node.connections for node in serving) // max(1, len(serving)))
    return [(node, node.connections - share) for node in serving if node.connections > share]
