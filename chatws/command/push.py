"""`chatws push`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import msgspec

from chatws.command.options import add_push_options, an_id, ids, push_client
from chatws.command.output import Output, count
from chatws.command.spool import Spool, send_spool
from chatws.errors import OperatorError
from chatws.ids import Id
from chatws.push.requests import Answer

HELP = "publish an event, or send what waits in a PHP helper's spool"
DESCRIPTION = """\
Publishes one event, and says to how many connections it went. Without --to it goes to the event's default audience.

With --spool it sends what the PHP helper could not deliver, the oldest first. A file is deleted when its line has been
acknowledged, and moved to refused/ when it never will be. The exit status is 1 while something waits, or was refused.
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
    parser.add_argument("--to", type=audience, metavar="AUDIENCE", help="conversation:5, user:5, users:5,6 or everyone")
    parser.add_argument("--except-user", type=an_id, metavar="ID", help="whose connections do not get it")
    parser.add_argument(
        "--id", metavar="KEY", help="idempotency key: a second push with the same one within 10 minutes is not sent"
    )
    parser.add_argument("--transient", action="store_true", help="do not keep it for browsers that are away")
    parser.add_argument("--spool", metavar="DIR", help="send what waits in this directory instead")
    add_push_options(parser)
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace, output: Output) -> int:
    event_options = (arguments.event, arguments.to, arguments.except_user, arguments.id, arguments.transient or None)
    if arguments.spool is not None:
        if any(one is not None for one in event_options):
            arguments.usage_error("--spool sends what waits there, and takes neither an event nor its options")
        return _spool(arguments, output)
    if arguments.event is None or arguments.data is None:
        arguments.usage_error("EVENT and JSON are missing, or --spool DIR")
    text = sys.stdin.buffer.read() if arguments.data == "-" else arguments.data.encode("utf-8", "surrogateescape")
    data = json_object(text)
    with push_client(arguments) as push:
        answer = push.publish(
            arguments.event,
            data,
            to=arguments.to,
            except_user_id=arguments.except_user,
            key=arguments.id,
            transient=arguments.transient,
        )
    found = {"id": answer.id, "event_id": answer.event_id, "delivered": answer.delivered, "duplicate": answer.duplicate}
    output.result(found, describe(arguments.event, answer))
    return 0


def describe(event: str, answer: Answer) -> str:
    """An acknowledgement, for people."""
    name = f"{event} {answer.event_id}" if answer.event_id else event
    if answer.duplicate:
        return f"{name} had been sent before: nothing was sent"
    return f"{name} went to {count(answer.delivered or 0, 'connection')}"


def audience(text: str) -> str | dict[str, Id | list[Id]]:
    """`--to`, as the protocol writes it."""
    kind, _, rest = text.partition(":")
    match kind:
        case "everyone" if not rest:
            return "everyone"
        case "conversation" if rest:
            return {"conversation_id": an_id(rest)}
        case "user" if rest:
            return {"user_id": an_id(rest)}
        case "users" if rest:
            return {"user_ids": list(ids(rest))}
    raise argparse.ArgumentTypeError(f"{text!r} is none of conversation:5, user:5, users:5,6, everyone")


def json_object(text: bytes) -> bytes:
    """An event's data to the byte as it was written.

    :raises OperatorError: it is no JSON object.
    """
    text = text.strip()
    try:
        text.decode()
        decoded: Any = msgspec.json.decode(text)
    except UnicodeDecodeError:
        raise OperatorError("the JSON is not UTF-8") from None
    except RecursionError:
        raise OperatorError("the JSON is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise OperatorError(f"the JSON is none: {error}" if text else "the JSON is missing") from None
    if not isinstance(decoded, dict):
        raise OperatorError("the data must be a JSON object: {…}")
    return text


def _spool(arguments: argparse.Namespace, output: Output) -> int:
    spool = Spool(arguments.spool, output.note)
    with push_client(arguments) as push:
        outcome = send_spool(spool, push, arguments.timeout, output.progress)
    found = {"sent": outcome.sent, "refused": outcome.refused, "waiting": outcome.waiting}
    words = f"{count(outcome.sent, 'line')} sent, {outcome.refused} refused, {outcome.waiting} waiting"
    output.result(found, words)
    if outcome.waiting:
        reason = outcome.problem or "some files cannot be read"
        output.error(f"{count(outcome.waiting, 'line')} still waiting: {reason}", "unavailable")
    return 1 if outcome.waiting or outcome.refused else 0
