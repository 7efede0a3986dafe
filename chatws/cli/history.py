"""`chatws history`: begin a new epoch of the event history."""

from __future__ import annotations

import argparse
import os
import time

from chatws.brokers.reset import reset_history
from chatws.cli.output import Output
from chatws.cli.reactor_run import run_in_reactor
from chatws.config.loader import load
from chatws.interfaces import Reactor

HELP = "begin a new epoch of the event history, after a restored backup"
DESCRIPTION = """\
`reset` discards the stored events and begins a new epoch: every page reloads its state once. Run it after you have
restored a backup or a snapshot of the history, before the first node starts. The restored history would assign offsets
again that pages have seen, and such a page would miss events without a notice.

Nodes on PostgreSQL or Redis may run. The server of an SQLite file has to be stopped.

The broker is --broker, CHATWS_BROKER, or that of the configuration file.
"""
EXAMPLES = """\
  chatws history reset --config /etc/chatws/chatws.toml
  CHATWS_BROKER=redis://:PASSWORD@10.0.0.9 chatws history reset
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["reset"], help="what to do")
    parser.add_argument("--broker", metavar="URL", help="the history (CHATWS_BROKER)")
    parser.add_argument("--config", metavar="FILE", help="the server's TOML file (CHATWS_CONFIG)")


def run(arguments: argparse.Namespace, output: Output) -> int:
    flags = {"broker": [arguments.broker]} if arguments.broker is not None else {}
    config = load(flags, os.environ, arguments.config).config

    async def reset(reactor: Reactor) -> int:
        epoch = await reset_history(config.broker, now=time.time(), timeout=config.broker_timeout, reactor=reactor)
        output.result({"epoch": epoch}, f"the history begins again with epoch {epoch}: every page reloads")
        return 0

    return run_in_reactor(reset)
