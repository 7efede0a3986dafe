"""`chatws check`: what would run, and what becomes of a login."""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING

from chatws.cli.options import an_id
from chatws.cli.output import Output, printable
from chatws.errors import ConfigError, ErrorCode

if TYPE_CHECKING:
    from chatws.chat.interfaces import Credentials
    from chatws.cli.login_check import LoginResult
    from chatws.config.loader import LoadedConfig
    from chatws.config.schema import Config
    from chatws.interfaces import Reactor

HELP = "check a configuration and print what would run, or check a login"
DESCRIPTION = """\
Reads a TOML file and the environment as the server would, and checks the settings against each other and the machine.
Runs each configured query once with a test id, which writes nothing, and prints how long the database took to accept
the connection and to answer. Prints what would run and the source of each setting. It starts nothing.
`twistd chatws --config CONFIG --check` prints the same, and accepts the server's options.

With --user, --token or --cookie it checks a login as the server would, and prints the method and the time of each
step. If tokens are configured and neither --token nor --cookie is given, it signs a token for --user. The exit
status is 0 if the login is accepted.
"""
EXAMPLES = """\
  chatws check /etc/chatws/chatws.toml
  chatws check chatws.toml --json && systemctl restart chatws
  chatws check --config /etc/chatws/chatws.toml --user 5 --conversation 456
  chatws check chatws.toml --user 5 --cookie "laravel_session=…"
  chatws check chatws.toml --webhook
"""

#: Lifetime in seconds of a token that is signed for a check: it is used at once.
TOKEN_SECONDS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", metavar="CONFIG", help="the TOML file")
    parser.add_argument("--config", metavar="FILE", help="the same (CHATWS_CONFIG)")
    parser.add_argument("--webhook", action="store_true", help="send an empty signed request to --webhook-url, too")
    login = parser.add_argument_group("a login")
    login.add_argument("--user", type=an_id, metavar="USER", help="the user_id that the page sends")
    login.add_argument("--token", metavar="TOKEN", help="the token that the page sends")
    login.add_argument("--cookie", metavar="COOKIE", help="the Cookie header of the browser")
    login.add_argument("--authorization", metavar="VALUE", help="its Authorization header")
    login.add_argument("--origin", metavar="ORIGIN", help="its Origin header")
    login.add_argument(
        "--conversation", type=an_id, metavar="ID", help="a conversation that the user has to be allowed to read"
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    # imports the whole server, which no other command needs
    from chatws.config.loader import load

    if arguments.file is not None and arguments.config is not None:
        raise ConfigError("the configuration file is named twice: leave out --config")
    loaded = load({}, os.environ, arguments.file or arguments.config)
    if any(value is not None for value in (arguments.user, arguments.token, arguments.cookie, arguments.authorization)):
        return _login(arguments, loaded.config, output)
    if arguments.conversation is not None or arguments.origin is not None:
        raise ConfigError("--conversation and --origin belong to a login: give --user, --token or --cookie")
    return _configuration(loaded, output, reaches_webhook=arguments.webhook)


def _configuration(loaded: LoadedConfig, output: Output, *, reaches_webhook: bool) -> int:
    from twisted.internet import reactor

    from chatws.auth.factory import default_methods
    from chatws.cli.twistd import describe, without_secrets
    from chatws.config import validate
    from chatws.runtime import service

    config = loaded.config
    warnings = validate.check(config, reactor)
    # built and discarded: components check their settings too
    service.build(config, reactor)
    queries = validate.check_queries(config)
    warnings += queries.warnings
    report = {
        "ok": True,
        "browsers": list(validate.browser_endpoints(config)),
        "backends": list(validate.push_endpoints(config)),
        "http_api": list(validate.api_endpoints(config)),
        "auth": list(default_methods(config)),
        "database": without_secrets(validate.database_url(config)),
        "queries": [{"name": step.name, "result": step.result, "ms": 1000 * step.seconds} for step in queries.steps],
        "events": without_secrets(config.broker),
        "replaced": list(loaded.replaced),
        "warnings": [*loaded.warnings, *warnings],
    }
    output.result(report, describe(loaded, warnings, queries.steps))
    return _webhook(config, output) if reaches_webhook else 0


def _webhook(config: Config, output: Output) -> int:
    """Send an empty request to the receiver of webhooks."""
    from chatws.cli.webhook import reach

    interrupted, answer = reach(config, [])
    if answer is None:
        return interrupted
    status = "acknowledges" if answer.is_success else "does not acknowledge"
    report = {"ok": answer.is_success, "webhook": answer.describe()}
    output.result(report, f"the receiver of webhooks {status} an empty request: {printable(answer.describe())}")
    return 0 if answer.is_success else 1


def _login(arguments: argparse.Namespace, config: Config, output: Output) -> int:
    from chatws.cli.login_check import check_login
    from chatws.cli.reactor_run import run_in_reactor

    credentials, signed = _credentials(arguments, config)
    results: list[LoginResult] = []

    async def begin(reactor: Reactor) -> int:
        results.append(await check_login(config, credentials, arguments.conversation, reactor))
        return 0

    interrupted = run_in_reactor(begin)
    if interrupted:
        return interrupted
    (result,) = results
    identity, error = result.identity, result.error
    lines = [f"{'new token':20}signed for this check with the configured secret"] if signed else []
    for step in result.steps:
        took = "" if step.seconds is None else f"{1000 * step.seconds:8.1f} ms"
        lines.append(f"{step.name:20}{step.result:50}{took}".rstrip())
    lines += [f"log: {note}" for note in result.notes]
    if identity is not None:
        lines.append(f"user {identity.user_id} is accepted, by {identity.method}")
        if error is None and arguments.conversation is not None:
            lines.append(f"and may read conversation {arguments.conversation}")
    if error is not None:
        outcome = "not decided" if error.code is ErrorCode.UNAVAILABLE else "refused"
        lines.append(f"{outcome}: {error.message} ({error.code.value})")
    report = {
        "ok": error is None,
        "user_id": None if identity is None else identity.user_id,
        "method": None if identity is None else identity.method,
        "error": None if error is None else {"code": error.code.value, "message": error.message},
        "steps": [
            {"name": step.name, "result": step.result, "ms": None if step.seconds is None else 1000 * step.seconds}
            for step in result.steps
        ],
        "log": result.notes,
    }
    output.result(report, "\n".join(lines))
    return 1 if error else 0


def _credentials(arguments: argparse.Namespace, config: Config) -> tuple[Credentials, bool]:
    """Return the credentials of the page and its browser, and whether the token is one signed here."""
    from chatws.auth.factory import default_methods
    from chatws.auth.secrets import load_secrets
    from chatws.chat.interfaces import Credentials
    from chatws.cli.token import make_token
    from chatws.server.component import HttpRequest

    headers = {
        name: value for name in ("cookie", "authorization", "origin") if (value := getattr(arguments, name)) is not None
    }
    token = arguments.token
    has_session = arguments.cookie is not None or arguments.authorization is not None
    signed = token is None and not has_session and "token" in default_methods(config)
    if signed:
        secrets = load_secrets(config)
        if secrets:
            expires_at = int(time.time()) + TOKEN_SECONDS
            token = make_token(arguments.user, secrets[0], expires_at, audience=config.token_audience)
    return Credentials(arguments.user, token, HttpRequest("GET", "/ws", headers=headers), "127.0.0.1"), signed
