"""`chatws push`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import msgspec

from chatws.cli.options import add_push_options, an_id, ids, push_client
from chatws.cli.output import Output, count
from chatws.cli.spool import Spool, send_spool
from chatws.clients.protocol import PushResult
from chatws.errors import ConfigError
from chatws.ids import Id

HELP = "publish an event, or send the lines in a PHP helper's spool"
DESCRIPTION = """\
Publishes one event, and prints how many connections received it. Without --to it goes to the event's default audience.

With --spool it sends the lines that the PHP helper could not deliver, the oldest first. It deletes a file when the
server has acknowledged its line, and moves it to refused/ if the server rejects it for good. The exit status is 1 if
lines still wait or were refused.
"""
EXAMPLES = """\
  chatws push new_message '{"conversation_id":456,"message":{"id":9,"content":"hi"}}'
  chatws push order_paid '{"order_id":77}' --to users:5,6 --id order-77-paid
  jq -c . notice.json | chatws push notice - --to everyone --transient
  chatws push --spool /var/spool/chatws
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("event", nargs="?", metavar="EVENT", help="the event's name: new_message, order_paid …")
    parser.add_argument("data", nargs="?", metavar="JSON", help="its data, an object; - reads it from stdin")
    parser.add_argument("--to", type=audience, metavar="AUDIENCE", help=f"one of {AUDIENCES}")
    parser.add_argument("--except-user", type=an_id, metavar="ID", help="the user whose connections do not get it")
    parser.add_argument(
        "--id", metavar="KEY", help="idempotency key: a second push with the same one within 10 minutes is not sent"
    )
    parser.add_argument("--transient", action="store_true", help="do not keep it for browsers that are away")
    parser.add_argument("--spool", metavar="DIR", help="send the lines in this directory instead")
    add_push_options(parser)
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace, output: Output) -> int:
    event_options = (arguments.event, arguments.to, arguments.except_user, arguments.id, arguments.transient or None)
    if arguments.spool is not None:
        if any(option is not None for option in event_options):
            arguments.usage_error("--spool sends what waits there, and takes neither an event nor its options")
        return _spool(arguments, output)
    if arguments.event is None or arguments.data is None:
        arguments.usage_error("EVENT and JSON are missing, or --spool DIR")
    text = sys.stdin.buffer.read() if arguments.data == "-" else arguments.data.encode("utf-8", "surrogateescape")
    data = json_object(text)
    with push_client(arguments) as push:
        result = push.publish(
            arguments.event,
            data,
            to=arguments.to,
            except_user_id=arguments.except_user,
            key=arguments.id,
            transient=arguments.transient,
        )
    fields = {
        "id": result.id,
        "event_id": result.event_id,
        "delivered": result.delivered,
        "duplicate": result.duplicate,
    }
    output.result(fields, describe(arguments.event, result))
    return 0


#: The forms of `--to`. `agents-of` and `contacts-of` name the subscribers of a conversation by their role.
AUDIENCES = "conversation:5, agents-of:5, contacts-of:5, user:5, users:5,6, contact:7, group:sales, agents, everyone"


def describe(event: str, result: PushResult) -> str:
    """Describe an acknowledgement in words."""
    name = f"{event} {result.event_id}" if result.event_id else event
    if result.duplicate:
        return f"{name} had been sent before: nothing was sent"
    return f"{name} went to {count(result.delivered or 0, 'connection')}"


def audience(text: str) -> str | dict[str, Id | list[Id]]:
    """`--to`, as the protocol writes it."""
    kind, _, rest = text.partition(":")
    match kind:
        case "agents" | "everyone" if not rest:
            return kind
        case "conversation" if rest:
            return {"conversation_id": an_id(rest)}
        case "agents-of" | "contacts-of" if rest:
            return {"conversation_id": an_id(rest), "role": kind.removesuffix("s-of")}
        case "user" if rest:
            return {"user_id": an_id(rest)}
        case "users" if rest:
            return {"user_ids": list(ids(rest))}
        case "contact" if rest:
            return {"contact_id": an_id(rest)}
        case "group" if rest:
            return {"group": rest}
    raise argparse.ArgumentTypeError(f"{text!r} must be one of {AUDIENCES}")


def json_object(text: bytes) -> bytes:
    """Check an event's data, and return its bytes as they were written.

    :raises ConfigError: it is no JSON object.
    """
    text = text.strip()
    try:
        text.decode()
        decoded: Any = msgspec.json.decode(text)
    except UnicodeDecodeError:
        raise ConfigError("the JSON is not UTF-8") from None
    except RecursionError:
        raise ConfigError("the JSON is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"the JSON is invalid: {error}" if text else "the JSON is missing") from None
    if not isinstance(decoded, dict):
        raise ConfigError("the data must be a JSON object: {…}")
    return text


def _spool(arguments: argparse.Namespace, output: Output) -> int:
    spool = Spool(arguments.spool, output.note)
    with push_client(arguments) as push:
        outcome = send_spool(spool, push, arguments.timeout, output.progress)
    counts = {"sent": outcome.sent, "refused": outcome.refused, "waiting": outcome.waiting}
    words = f"{count(outcome.sent, 'line')} sent, {outcome.refused} refused, {outcome.waiting} waiting"
    output.result(counts, words)
    if outcome.waiting:
        reason = outcome.problem or "some files cannot be read"
        output.error(f"{count(outcome.waiting, 'line')} still waiting: {reason}", "unavailable")
    return 1 if outcome.waiting or outcome.refused else 0
