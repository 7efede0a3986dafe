"""`chatws token`."""

from __future__ import annotations

import argparse
import os
import re
import time
from typing import NamedTuple

import jwt

from chatws.auth.secrets import load_secrets
from chatws.cli.options import allow_world_readable_secrets, an_id, ids, number
from chatws.cli.output import Output
from chatws.errors import ClientError, ConfigError
from chatws.ids import Id, parse_groups

__all__ = ["make_token", "signing_secret"]

HELP = "sign a token for a user"
DESCRIPTION = """\
Prints a signed token (a JWT, docs/protocol.md §5) for the `token` of an `auth` message. It authenticates as that user
until it expires. The secret is the server's: --secret-file, or CHATWS_SECRET in the environment.
"""
EXAMPLES = """\
  chatws token 5 --secret-file /etc/chatws/secret
  chatws token 5 --ttl 60 --conversations 456,457 --secret-file /etc/chatws/secret
  chatws tail --user 5 --token "$(chatws token 5 --secret-file /etc/chatws/secret)"
"""

#: Seconds: ten years. A longer time is taken for a mistake, such as milliseconds.
_MAX_TTL = 10 * 366 * 86400


class _Secrets(NamedTuple):
    secret: tuple[str, ...]
    secret_files: tuple[str, ...]
    allow_world_readable_secrets: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", type=an_id, metavar="USER", help="the user's id")
    parser.add_argument(
        "--ttl",
        type=number(int, 1, _MAX_TTL),
        default=300,
        metavar="SECONDS",
        help="time until it expires (default 300)",
    )
    parser.add_argument(
        "--conversations",
        type=ids,
        metavar="IDS",
        help="permits only these, separated by commas (default all)",
    )
    parser.add_argument("--role", metavar="ROLE", help="its `role`: agent, or contact, whose id USER then is")
    parser.add_argument("--groups", type=group_names, metavar="NAMES", help="its groups, separated by commas")
    parser.add_argument(
        "--audience",
        default=os.environ.get("CHATWS_TOKEN_AUDIENCE"),
        metavar="TEXT",
        help="its `aud`, if the server requires one (CHATWS_TOKEN_AUDIENCE)",
    )
    parser.add_argument(
        "--secret-file", metavar="FILE", help="a file with the secret (CHATWS_SECRET, CHATWS_SECRET_FILES)"
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    secret = signing_secret(arguments.secret_file)
    if secret is None:
        raise ConfigError("no secret to sign with: give --secret-file FILE, or set CHATWS_SECRET")
    expires_at = int(time.time()) + arguments.ttl
    token = make_token(
        arguments.user,
        secret,
        expires_at,
        conversations=arguments.conversations,
        audience=arguments.audience,
        role=arguments.role,
        groups=arguments.groups,
    )
    output.result({"user_id": arguments.user, "token": token, "expires_at": expires_at}, token)
    return 0


def group_names(text: str) -> tuple[str, ...]:
    """Parse `--groups`: names separated by commas."""
    try:
        return parse_groups([name.strip() for name in text.split(",")])
    except ClientError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def make_token(
    user_id: Id,
    secret: bytes,
    expires_at: int,
    *,
    conversations: list[Id] | None = None,
    audience: str | None = None,
    role: str | None = None,
    groups: tuple[str, ...] | None = None,
) -> str:
    """Sign a token with HS256 (RFC 7519, docs/protocol.md §5).

    :param expires_at: seconds since 1970.
    :param conversations: the only conversations that it permits; None for all.
    :param role: whether it is for an agent or a contact; None for the server's default.
    :param groups: the groups of an agent; None for none.
    """
    claims: dict[str, object] = {"sub": str(user_id), "exp": expires_at}
    if audience:
        claims["aud"] = audience
    if conversations is not None:
        claims["conversations"] = conversations
    if role is not None:
        claims["role"] = role
    if groups is not None:
        claims["groups"] = groups
    return jwt.encode(claims, secret, algorithm="HS256")


def signing_secret(path: str | None) -> bytes | None:
    """Read the secret of a file, or else of the environment. The first of several signs.

    :returns: None if no secret is configured.
    :raises ConfigError: the secret cannot be read or is too short.
    """

    def words(name: str) -> tuple[str, ...]:
        return tuple(word for word in re.split(r"[,\s]+", os.environ.get(name, "")) if word)

    allow = allow_world_readable_secrets()
    if path is not None:
        secrets = load_secrets(_Secrets((), (path,), allow))
    else:
        secrets = load_secrets(_Secrets(words("CHATWS_SECRET"), words("CHATWS_SECRET_FILES"), allow))
    return secrets[0] if secrets else None
