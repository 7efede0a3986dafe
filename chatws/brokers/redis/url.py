"""Parse Redis URLs: `redis://[user:password@]host[:port][/db][?option=value&…]` and its variants.

`rediss://` is the same over TLS, and `redis+unix:///path` connects to a Unix socket.
`redis+sentinel://[user:password@]host[:port],host[:port]/service[/db]` (or `rediss+sentinel://`) requests the master's
address from Sentinels.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

import msgspec

from chatws.errors import ConfigError

__all__ = ["RedisUrl"]

_SCHEMES = ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel")
_OPTIONS = {"db", "prefix", "replicas", "ca", "sentinel_user", "sentinel_password"}
#: The default ports of Redis and of Sentinel.
_PORT, _SENTINEL_PORT = 6379, 26379


class RedisUrl(msgspec.Struct, frozen=True):
    """The address of a Redis that holds a history, and the credentials.

    :ivar hosts: (host, port) of the Redis, or of each Sentinel.
    :ivar path: path of a Unix socket, in place of hosts; "" for TCP.
    :ivar service: Sentinel's name of the master; "" without Sentinel.
    :ivar tls: use TLS to Redis and to the Sentinels, and verify the host's name.
    :ivar ca: a PEM file with the trusted certificates; "" for the system's.
    :ivar prefix: prefix of all keys and of the channel. Several histories may share a Redis.
    :ivar replicas: number of replicas that must have an event before it is acknowledged.
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
        """The address for logs and errors, without secrets."""
        address = self.path or ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts
        )
        return f"{self.service} of the Sentinels {address}" if self.service else address

    @classmethod
    def parse(cls, url: str) -> RedisUrl:
        """Parse a URL.

        :raises ConfigError: the URL is invalid. The message quotes only names of options.
        """
        scheme, _, rest = url.partition(":")
        if scheme not in _SCHEMES or not rest.startswith("//"):
            raise _url_error("write redis://user:password@host:port/db?option=value")
        location, _, query = rest[2:].partition("?")
        authority, slash, path = location.partition("/")
        userinfo, at, addresses = authority.rpartition("@")
        user, colon, password = userinfo.partition(":")
        fields: dict[str, object] = {
            "user": unquote(user),
            "password": unquote(password),
            "tls": scheme[:6] == "rediss",
        }
        if at and not (colon and password):
            raise _url_error("a user needs a password: redis://user:password@host, or redis://:password@host")
        db = ""
        if scheme == "redis+unix":
            if addresses or len(path) == 0:
                raise _url_error("redis+unix takes an absolute path: redis+unix:///run/redis/redis.sock")
            fields["path"] = slash + unquote(path)
        else:
            sentinel = scheme.endswith("+sentinel")
            default_port = _SENTINEL_PORT if sentinel else _PORT
            hosts = tuple(_host(address, default_port) for address in addresses.split(","))
            if len(hosts) > 1 and not sentinel:
                raise _url_error("several hosts are for redis+sentinel:// only")
            fields["hosts"] = hosts
            if sentinel:
                service, _, db = path.partition("/")
                if not service:
                    raise _url_error(
                        "Sentinel's name of the service is missing: redis+sentinel://host:port,host:port/mymaster"
                    )
                fields["service"] = unquote(service)
            else:
                db = path
        fields.update(_options(query))
        if db:
            fields["db"] = _number(db, "the database")
        return cls(**fields)  # type: ignore[arg-type]


def _url_error(reason: str) -> ConfigError:
    return ConfigError(f"broker: the Redis URL is invalid: {reason}")


def _number(text: str, name: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise _url_error(f"{name} must be a number")
    return int(text)


def _host(address: str, default_port: int) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:@\s/]+))(?::([0-9]{1,5}))?", address)
    if match is None or not 0 < int(match[3] or default_port) < 65536:
        raise _url_error("write redis://user:password@host:port, with special characters percent-encoded (@ is %40)")
    return unquote(match[1] or match[2]), int(match[3] or default_port)


def _options(query: str) -> dict[str, object]:
    given = dict(parse_qsl(query, keep_blank_values=True))
    for name in given:
        if name not in _OPTIONS:
            raise _url_error(f"unknown option {name[:20]!r}; the options are {', '.join(sorted(_OPTIONS))}")
    options: dict[str, object] = dict(given)
    for name in ("db", "replicas"):
        if name in given:
            options[name] = _number(given[name], name)
    if not re.fullmatch(r"[0-9A-Za-z_.:-]{1,64}", given.get("prefix", "chatws")):
        raise _url_error("prefix must be 1 to 64 of the characters A-Z a-z 0-9 _ . : -")
    return options
