"""Options of a connection to MySQL or MariaDB, from a URL: mysql://user:password@host:port/database?option=value."""

from __future__ import annotations

import re
import ssl
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from chatws.errors import ConfigError

__all__ = ["MYSQL_SCHEMES", "MysqlOptions", "mysql_options"]

MYSQL_SCHEMES = ("mysql", "mariadb")
_SSL_MODES = ("disabled", "preferred", "required", "verify_ca", "verify_identity")
_OPTIONS = ("unix_socket", "ssl_ca", "ssl_cert", "ssl_key", "ssl_mode", "time_zone", "single_writer")
_FORM = (
    "the database URL is invalid; the form is mysql://user:password@host:port/database?option=value, "
    "with special characters percent-encoded (@ is %40)"
)


class MysqlOptions(NamedTuple):
    """Options of a connection.

    :ivar host: the name that the server's certificate must have; empty with a Unix socket.
    :ivar unix_socket: the path, or empty.
    :ivar tls: the context, None for TLS without verification where the server offers it, False for no TLS.
    :ivar time_zone: of the session, such as `+00:00`; empty for the server's.
    :ivar single_writer: whether the operator says that the address leads to one server of a cluster only.
    """

    host: str
    port: int
    unix_socket: str
    user: str
    password: str
    database: str
    tls: ssl.SSLContext | bool | None
    time_zone: str
    single_writer: bool


def mysql_options(url: str) -> MysqlOptions:
    """Return the options that `url` describes.

    With `ssl_ca` the server's certificate and its host name are verified. `ssl_mode=verify_ca` skips the name.

    :raises ConfigError: the URL is invalid, or a TLS file cannot be read. The message does not quote the URL, as it may
        contain a password.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 3306
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
        # an undecodable escape becomes U+FFFD, and `%zz` stays as it is
        texts = [unquote(text) for text in (parts.username or "", parts.password or "", parts.path[1:])]
    except ValueError:
        raise ConfigError(_FORM) from None
    if parts.netloc.count("@") > 1 or "@" in parts.path or "@" in parts.query or parts.fragment:
        raise ConfigError(
            "the database URL has an unencoded character in its password: @ is %40, / is %2F, ? is %3F, # is %23"
        )
    if re.search(r"%(?![0-9A-Fa-f]{2})", url) or any("�" in text for text in texts):
        raise ConfigError(_FORM)
    options = dict(pairs)
    user, password, database = texts
    unix_socket = options.get("unix_socket", "")
    if set(options) - set(_OPTIONS):
        raise ConfigError(f"the database URL has an unknown option: the options are {', '.join(_OPTIONS)}")
    if not url.startswith(tuple(f"{scheme}://" for scheme in MYSQL_SCHEMES)) or not (host or unix_socket):
        raise ConfigError(_FORM)
    if not database or "/" in database:
        raise ConfigError("the database URL has no database: append its name, as in mysql://user:password@host/shop")
    if not user:
        raise ConfigError("the database URL has no user: mysql://user:password@host/shop")
    return MysqlOptions(
        "" if unix_socket else host,
        port,
        unix_socket,
        user,
        password,
        database,
        _tls(options),
        options.get("time_zone", ""),
        options.get("single_writer", "").lower() in ("1", "true", "yes"),
    )


def _tls(options: dict[str, str]) -> ssl.SSLContext | bool | None:
    has_files = bool(options.get("ssl_ca") or options.get("ssl_cert"))
    mode = options.get("ssl_mode") or ("verify_identity" if has_files else "preferred")
    if mode not in _SSL_MODES:
        raise ConfigError(f"ssl_mode in the database URL must be one of {', '.join(_SSL_MODES)}")
    if has_files and mode in ("disabled", "preferred", "required"):
        raise ConfigError(f"ssl_mode={mode} in the database URL verifies nothing: leave it out, or ssl_ca and ssl_cert")
    if mode in ("disabled", "preferred"):
        return False if mode == "disabled" else None
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca") or None)
        if options.get("ssl_cert"):
            context.load_cert_chain(options["ssl_cert"], options.get("ssl_key") or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot read ssl_ca, ssl_cert or ssl_key of the database URL: {error}") from None
    # certificates that MySQL generates lack extensions that strict checks demand (the default since Python 3.13)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = mode == "verify_identity"
    if mode == "required":
        context.verify_mode = ssl.CERT_NONE
    return context
