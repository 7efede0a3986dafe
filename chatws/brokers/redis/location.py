"""The URL: `redis://[user:password@]host[:port][/db][?option=value&…]`, and its relatives.

`rediss://` is the same over TLS, `redis+unix:///path` goes to a Unix socket, and
`redis+sentinel://[user:password@]host[:port],host[:port]/service[/db]` (or `rediss+sentinel://`) asks Sentinels.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

import msgspec

from chatws.errors import OperatorError

__all__ = ["Location"]

_SCHEMES = ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel")
_OPTIONS = {"db", "prefix", "replicas", "ca", "sentinel_user", "sentinel_password"}
_PORT, _SENTINEL_PORT = 6379, 26379


class Location(msgspec.Struct, frozen=True):
    """Where a log is, and how to get in.

    :ivar hosts: (host, port) of the Redis, or of each Sentinel.
    :ivar path: of a Unix socket; then there are no hosts.
    :ivar service: what Sentinel calls the master; "" without Sentinel.
    :ivar tls: whether to speak TLS, with the host's name verified, to the Redis and to Sentinels.
    :ivar ca: a file with the certificates to trust, PEM; "" for the system's.
    :ivar prefix: what the names of all keys and of the channel begin with; several logs may share a Redis.
    :ivar replicas: how many of them must have an event before it is acknowledged.
    """

    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    tls: bool = False
    ca: str = ""
    user: str = ""
    password: str = ""
    db: int = 0
    prefix: str = "chatws"
    replicas: int = 0
    sentinel_user: str = ""
    sentinel_password: str = ""

    @property
    def name(self) -> str:
        """For messages: no secrets in it."""
        where = self.path or ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts
        )
        return f"{self.service} of the Sentinels {where}" if self.service else where

    @classmethod
    def parse(cls, url: str) -> Location:
        """
        :raises OperatorError: the URL does not make sense. The sentence quotes only names of options.
        """
        scheme, _, rest = url.partition(":")
        if scheme not in _SCHEMES or not rest.startswith("//"):
            raise _bad("it is redis://user:password@host:port/db?option=value")
        before, _, query = rest[2:].partition("?")
        authority, slash, path = before.partition("/")
        userinfo, at, places = authority.rpartition("@")
        user, colon, password = userinfo.partition(":")
        fields: dict[str, object] = {
            "user": unquote(user),
            "password": unquote(password),
            "tls": scheme[:6] == "rediss",
        }
        if at and not (colon and password):
            raise _bad("a user needs a password: redis://user:password@host, or redis://:password@host")
        db = ""
        if scheme == "redis+unix":
            if places or len(path) == 0:
                raise _bad("redis+unix takes an absolute path: redis+unix:///run/redis/redis.sock")
            fields["path"] = slash + unquote(path)
        else:
            sentinel = scheme.endswith("+sentinel")
            hosts = tuple(_host(place, _SENTINEL_PORT if sentinel else _PORT) for place in places.split(","))
            if len(hosts) > 1 and not sentinel:
                raise _bad("several hosts are for redis+sentinel:// only")
            fields["hosts"] = hosts
            if sentinel:
                service, _, db = path.partition("/")
                if not service:
                    raise _bad(
                        "Sentinel's name of the service is missing: redis+sentinel://host:port,host:port/mymaster"
                    )
                fields["service"] = unquote(service)
            else:
                db = path
        fields.update(_options(query))
        if db:
            fields["db"] = _number(db, "the database")
        return cls(**fields)  # type: ignore[arg-type]


def _bad(what: str) -> OperatorError:
    return OperatorError(f"broker: the Redis URL cannot be understood: {what}")


def _number(text: str, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise _bad(f"{what} is a number")
    return int(text)


def _host(place: str, port: int) -> tuple[str, int]:
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:@\s/]+))(?::([0-9]{1,5}))?", place)
    if found is None or not 0 < int(found[3] or port) < 65536:
        raise _bad("it is redis://user:password@host:port, with special characters percent-encoded (@ is %40)")
    return unquote(found[1] or found[2]), int(found[3] or port)


def _options(query: str) -> dict[str, object]:
    given = dict(parse_qsl(query, keep_blank_values=True))
    for name in given:
        if name not in _OPTIONS:
            raise _bad(f"no option {name[:20]!r}; there are {', '.join(sorted(_OPTIONS))}")
    found: dict[str, object] = dict(given)
    for name in ("db", "replicas"):
        if name in given:
            found[name] = _number(given[name], name)
    if not re.fullmatch(r"[0-9A-Za-z_.:-]{1,64}", given.get("prefix", "chatws")):
        raise _bad("prefix is up to 64 of A-Z a-z 0-9 _ . : -")
    return found
