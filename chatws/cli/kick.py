"""`chatws kick`."""

from __future__ import annotations

import argparse

from chatws.cli.options import add_push_options, an_id, push_client
from chatws.cli.output import Output, count

HELP = "close a user's connections"
DESCRIPTION = """\
Closes all connections of a user and drops the cached permissions. The pages reconnect and authenticate again. With
--ban they do not reconnect. A ban does not block the account: a user who opens the page again is authenticated as
usual.
"""
EXAMPLES = """\
  chatws kick 5
  chatws kick 5 --ban --reason 'logged out'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", type=an_id, metavar="USER", help="the user's id")
    parser.add_argument("--ban", action="store_true", help="tell the pages not to reconnect")
    parser.add_argument("--reason", default="", metavar="TEXT", help="the reason for the pages, at most 123 bytes")
    add_push_options(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    with push_client(arguments) as push:
        closed = push.disconnect(arguments.user, arguments.reason, arguments.ban).connections or 0
    words = f"closed {count(closed, 'connection')}" if closed else "no connection"
    output.result({"user_id": arguments.user, "closed": closed}, f"user {arguments.user}: {words}")
    return 0
