"""`chatws webhook`."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from chatws.cli.options import add_push_options, number, push_client
from chatws.cli.output import Output, count, printable
from chatws.clients.webhook import HEADER, verify
from chatws.config.loader import load
from chatws.errors import ConfigError
from chatws.interfaces import Reactor

if TYPE_CHECKING:
    from chatws.config.schema import Config
    from chatws.webhooks.client import Answer

__all__ = ["make_receiver", "reach"]

HELP = "test the receiver of webhooks, or be one for development"
DESCRIPTION = """\
`test` sends one signed event, `test`, to --webhook-url and shows the answer. The exit status is 0 if the receiver
acknowledges it. Its `seq` is 0, so a receiver that ignores lower numbers than it has seen ignores it.
`listen` is a receiver for development: it prints the events that come, checks the signature, and answers 200, or 401
if the signature is wrong.
`sync` makes a running server send the whole state (`presence_reset`) with the next request.
"""
EXAMPLES = """\
  chatws webhook test --config /etc/chatws/chatws.toml
  chatws webhook test --url http://localhost:8000/ --secret-file secret
  chatws webhook listen --port 8000 --secret-file secret
  chatws webhook sync
"""

#: Bytes of a request that `listen` reads: more than --webhook-max-body may sensibly be.
_MAX_BODY = 16 * 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["test", "listen", "sync"], help="what to do")
    receiver = parser.add_argument_group("test")
    receiver.add_argument("--config", metavar="FILE", help="the server's TOML file (CHATWS_CONFIG)")
    receiver.add_argument("--url", metavar="URL", help="the receiver (CHATWS_WEBHOOK_URL)")
    both = parser.add_argument_group("test and listen")
    both.add_argument(
        "--secret-file", metavar="FILE", help="a file with the secret, or one a line (CHATWS_WEBHOOK_SECRET_FILE)"
    )
    listen = parser.add_argument_group("listen")
    listen.add_argument(
        "--port", type=number(int, 0, 65535), default=8000, metavar="PORT", help="on 127.0.0.1 (default 8000)"
    )
    listen.add_argument(
        "--status",
        type=number(int, 100, 599),
        default=200,
        metavar="STATUS",
        help="the answer to a valid request (default 200)",
    )
    add_push_options(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    match arguments.action:
        case "test":
            return _test(_config(arguments), output)
        case "listen":
            return _listen(arguments, output)
        case _:
            with push_client(arguments) as push:
                push.sync_webhooks()
            output.result({"ok": True}, "the next request begins with the whole state")
            return 0


def _config(arguments: argparse.Namespace) -> Config:
    given = {"webhook_url": arguments.url, "webhook_secret_file": arguments.secret_file}
    flags = {name: [value] for name, value in given.items() if value is not None}
    return load(flags, os.environ, arguments.config).config


def reach(config: Config, events: list[dict[str, Any]], interrupted: int = 130) -> tuple[int, Answer | None]:
    """Send a request to the receiver, as the server does.

    :return: the exit status if a signal has interrupted it, otherwise 0; and the answer.
    :raises ConfigError: the settings of webhooks are invalid.
    """
    from chatws.auth.auth_url import check_auth_url
    from chatws.cli.reactor_run import run_in_reactor
    from chatws.webhooks.batches import body_of
    from chatws.webhooks.client import WebhookClient
    from chatws.webhooks.settings import WebhookFiles, check_webhooks

    if not config.webhook_url:
        raise ConfigError("there is no receiver: give --url URL, --config FILE, or CHATWS_WEBHOOK_URL")
    check_webhooks(config)
    files = WebhookFiles(config)
    answers: list[Answer] = []

    async def begin(reactor: Reactor) -> int:
        client = WebhookClient(
            check_auth_url(config.webhook_url, "--webhook-url"),
            timeout=config.webhook_timeout,
            secrets=files.secrets,
            headers=files.headers,
            policy=files.policy,
            reactor=reactor,
            wall_clock=time.time,
        )
        answers.append(await client.post(body_of([json.dumps(event).encode() for event in events], time.time())))
        await client.stop()
        return 0

    status = run_in_reactor(begin, interrupted)
    return (status, None) if status else (0, answers[0])


def _test(config: Config, output: Output) -> int:
    event = {"id": f"test-{secrets.token_hex(8)}", "seq": 0, "event": "test", "time_ms": int(time.time() * 1000)}
    interrupted, answer = reach(config, [event])
    if answer is None:
        return interrupted
    acknowledged = "acknowledged" if answer.is_success else "not acknowledged"
    report = {
        "ok": answer.is_success,
        "event": event,
        "status": answer.status or None,
        "problem": answer.problem or None,
        "location": answer.location or None,
        "body": answer.body.decode("utf-8", "replace"),
    }
    output.result(report, f"{acknowledged}: {printable(answer.describe())}")
    return 0 if answer.is_success else 1


def make_receiver(port: int, known: list[str], status: int, output: Output) -> ThreadingHTTPServer:
    """Make the receiver of `listen`, which has not started to serve.

    :param known: the secrets. Without one, signatures are not checked.
    :param status: the answer to a valid request.
    :raises ConfigError: the port cannot be bound.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > _MAX_BODY:
                self._answer(413)
                self.close_connection = True
                return
            body = self.rfile.read(int(length))
            if known and not verify(body, self.headers.get(HEADER), known):
                output.result({"ok": False, "code": "bad_signature"}, "wrong signature, answered 401")
                self._answer(401)
                return
            try:
                events = json.loads(body)["events"]
                lines = [json.dumps(event) for event in events]
            except (ValueError, KeyError, TypeError, RecursionError):
                output.result({"ok": False, "code": "bad_json"}, "not a webhook, answered 400")
                self._answer(400)
                return
            signature = "signature valid" if known else "signature not checked: no --secret-file"
            if not output.is_json:
                output.line(f"{count(len(events), 'event')}, {signature}, answered {status}")
            for event, line in zip(events, lines, strict=True):
                output.result(event, f"  {printable(line)}")
            self._answer(status)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Write nothing: `output` has the line."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on 127.0.0.1:{port}: {error.strerror or error}; give another --port"
        ) from None


def _listen(arguments: argparse.Namespace, output: Output) -> int:
    from chatws.webhooks.settings import WebhookFiles

    files = WebhookFiles(_config(arguments))
    known = [secret.decode() for secret in files.secrets()]
    with make_receiver(arguments.port, known, arguments.status, output) as server:
        output.note(f"listening on http://127.0.0.1:{server.server_address[1]}/")
        server.serve_forever()
    return 0
