"""`chatws kick`."""

from __future__ import annotations

import argparse

from chatws.command.options import add_push_options, an_id, push_client
from chatws.command.output import Output, count

HELP = "close a user's connections"
DESCRIPTION = """\
Closes all connections of a user, and forgets what was remembered of who they are. The browsers come back by themselves
and have to prove it anew; with --ban they are told not to. A ban is no lock: who opens the page again is let in as the
server's --auth says.
"""
EXAMPLES = """\
  chatws kick 5
  chatws kick 5 --ban --reason 'logged out'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", type=an_id, metavar="USER", help="the user's id")
    parser.add_argument("--ban", action="store_true", help="tell the browsers not to come back")
    parser.add_argument("--reason", default="", metavar="TEXT", help="what the browsers are told, 123 bytes of it")
    add_push_options(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    with push_client(arguments) as push:
        closed = push.disconnect(arguments.user, arguments.reason, arguments.ban).connections or 0
    words = f"closed {count(closed, 'connection')}" if closed else "no connection"
    output.result({"user_id": arguments.user, "closed": closed}, f"user {arguments.user}: {words}")
    return 0
