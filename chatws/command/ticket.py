"""`chatws ticket`."""

from __future__ import annotations

import argparse
import os
import re
import time
from typing import NamedTuple

import jwt

from chatws.auth.secrets import load_secrets
from chatws.command.options import an_id, ids, number
from chatws.command.output import Output
from chatws.errors import OperatorError
from chatws.ids import Id

__all__ = ["make_ticket", "ticket_secret"]

HELP = "sign a ticket that says who somebody is"
DESCRIPTION = """\
Prints a signed ticket (a JWT, docs/protocol.md §5) for the `token` of an `auth` message. Whoever has it is that user to
the server until it expires. The secret is the server's: --secret-file, or CHATWS_SECRET in the environment.
"""
EXAMPLES = """\
  chatws ticket 5 --secret-file /etc/chatws/secret
  chatws ticket 5 --ttl 60 --conversations 456,457 --secret-file /etc/chatws/secret
  chatws tail --user 5 --token "$(chatws ticket 5 --secret-file /etc/chatws/secret)"
"""

#: Ten years: what is meant to last longer is a mistake.
_MAX_TTL = 10 * 366 * 86400


class _Secrets(NamedTuple):
    secret: tuple[str, ...]
    secret_file: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", type=an_id, metavar="USER", help="the user's id")
    parser.add_argument(
        "--ttl", type=number(int, 1, _MAX_TTL), default=300, metavar="SECONDS", help="how long it holds (default 300)"
    )
    parser.add_argument(
        "--conversations", type=ids, metavar="IDS", help="the only ones it opens, parted by commas (default all)"
    )
    parser.add_argument(
        "--audience",
        default=os.environ.get("CHATWS_TICKET_AUDIENCE"),
        metavar="TEXT",
        help="its `aud`, where the server asks for one (CHATWS_TICKET_AUDIENCE)",
    )
    parser.add_argument(
        "--secret-file", metavar="FILE", help="a file with the secret (CHATWS_SECRET, CHATWS_SECRET_FILE)"
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    secret = ticket_secret(arguments.secret_file)
    if secret is None:
        raise OperatorError("there is no secret to sign with: give --secret-file FILE, or set CHATWS_SECRET")
    expires_at = int(time.time()) + arguments.ttl
    token = make_ticket(
        arguments.user, secret, expires_at, conversations=arguments.conversations, audience=arguments.audience
    )
    output.result({"user_id": arguments.user, "token": token, "expires_at": expires_at}, token)
    return 0


def make_ticket(
    user_id: Id, secret: bytes, expires_at: int, *, conversations: list[Id] | None = None, audience: str | None = None
) -> str:
    """A ticket.

    :param expires_at: seconds since 1970.
    :param conversations: the only ones that it opens; None for all.
    """
    claims: dict[str, object] = {"sub": str(user_id), "exp": expires_at}
    if audience:
        claims["aud"] = audience
    if conversations is not None:
        claims["conversations"] = conversations
    return jwt.encode(claims, secret, algorithm="HS256")


def ticket_secret(path: str | None) -> bytes | None:
    """The secret in that file, or else that of the environment. Of several the first signs.

    :raises OperatorError: it cannot be read, or is too short.
    """

    def words(name: str) -> tuple[str, ...]:
        return tuple(one for one in re.split(r"[,\s]+", os.environ.get(name, "")) if one)

    if path is not None:
        found = load_secrets(_Secrets((), (path,)))
    else:
        found = load_secrets(_Secrets(words("CHATWS_SECRET"), words("CHATWS_SECRET_FILE")))
    return found[0] if found else None
