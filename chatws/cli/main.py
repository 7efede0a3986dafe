"""The command line of `chatws`: its parser, and how a subcommand ends.

The exit status is 0 when it was done, 1 when it was not (one line on stderr says why, and what to do), 2 when the
command line was wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import chatws
from chatws.cli.output import Output
from chatws.clients.protocol import PushRejected, PushUnavailable
from chatws.config.text_files import own_variables
from chatws.errors import ClientError, ConfigError
from chatws.runtime.streams import never_fail_to_encode

__all__ = ["main", "make_parser"]

#: The modules here that are one. Each has `HELP`, `DESCRIPTION`, `EXAMPLES`, `add_arguments(parser)` and
#: `run(arguments, output) -> exit status`.
COMMANDS = (
    "push",
    "tail",
    "agents",
    "kick",
    "nodes",
    "rebalance",
    "token",
    "check",
    "health",
    "db",
    "history",
    "bench",
    "compare",
    "webhook",
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, instead of all that would be right."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser(chosen: str = "") -> argparse.ArgumentParser:
    """Make the parser, with the chosen subcommand's module in `command`.

    :param chosen: the subcommand that is called, if that is known: what the others need takes its time to import.
    """
    parser = Parser(
        prog="chatws",
        description="Steers and watches a running chatws. The server itself is `twistd chatws`.",
        epilog="`chatws COMMAND --help` explains a command and has examples.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"chatws {chatws.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in (chosen,) if chosen in COMMANDS else COMMANDS:
        module = import_module(f"chatws.cli.{name}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print JSON, one value a line, errors too")
        command.set_defaults(command=module, prog=command.prog)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    :param words: the command line; by default the process's own.
    :return: the exit status.
    """
    words = sys.argv[1:] if words is None else words
    os.environ.update(own_variables(os.environ))
    never_fail_to_encode()
    arguments = make_parser(words[0] if words else "").parse_args(words)
    output = Output(arguments.json, arguments.prog)
    try:
        status: int = arguments.command.run(arguments, output)
        sys.stdout.flush()
    except ConfigError as error:
        output.error(str(error))
    except PushRejected as error:
        output.error(_refusal(error), error.code)
    except PushUnavailable as error:
        hint = "its /readyz says why" if error.code else "does chatws run, and is this its push address (--push)?"
        output.error(f"{error}; {hint}", "unavailable")
    except ClientError as error:
        output.error(error.message, error.code.value)
    except KeyboardInterrupt:
        output.clear()
        return 130
    except BrokenPipeError:  # `chatws tail | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    else:
        return status
    return 1


def _refusal(error: PushRejected) -> str:
    match error.code:
        case "bad_secret":
            return f"refused, {error}; give the push secret with --push-secret-file, or CHATWS_PUSH_SECRET"
        case "unauthenticated":
            return f"refused, {error}; the server has a push secret: give it with --push-secret-file"
        case "no_audience":
            return f"refused, {error}; say to whom with --to"
        case _:
            return f"refused, {error}"
