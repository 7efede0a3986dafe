"""`chatws check`: what `twistd chatws --config CONFIG --check` says."""

from __future__ import annotations

import argparse
import os

from chatws.command.output import Output

HELP = "say what would run with a configuration, or what is wrong with it"
DESCRIPTION = """\
Reads a TOML file and the environment as the server would, holds the settings against each other and against the
machine, and says what would run and from where each setting comes. It starts nothing. `twistd chatws --config CONFIG
--check` says the same, and takes the server's options besides.
"""
EXAMPLES = """\
  chatws check /etc/chatws/chatws.toml
  chatws check chatws.toml --json && systemctl restart chatws
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the TOML file")


def run(arguments: argparse.Namespace, output: Output) -> int:
    # the whole server: no other command needs it
    from twisted.internet import reactor

    from chatws import service, startup
    from chatws.auth.build import default_methods
    from chatws.configure import load
    from chatws.tap import describe, without_secrets

    loaded = load({}, os.environ, arguments.config)
    config = loaded.config
    warnings = startup.check(config, reactor)
    # built and thrown away: what a part refuses is to be known here too
    service.build(config, reactor)
    found = {
        "ok": True,
        "browsers": list(startup.browser_endpoints(config)),
        "backends": list(startup.push_endpoints(config)),
        "auth": list(default_methods(config)),
        "database": without_secrets(startup.database_url(config)),
        "events": without_secrets(config.broker),
        "warnings": [*loaded.notes, *warnings],
    }
    output.result(found, describe(loaded, warnings))
    return 0
