"""Reload the configuration on SIGHUP, without closing a connection.

A configuration that would not start a server is rejected as a whole, and the old one stays. The command line and the
environment of a process never change, so only files matter: that of `--config`, the secrets and the certificates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from twisted.logger import Logger

from chatws.auth.factory import default_methods
from chatws.auth.public_keys import VerificationKey, load_key_files
from chatws.auth.secrets import load_secrets
from chatws.config import validate
from chatws.config.loader import LoadedConfig
from chatws.config.schema import Config
from chatws.errors import ConfigError

__all__ = ["RELOADABLE", "ConfigDiff", "Reloader", "diff_config", "read_renewals", "use_renewals"]

log = Logger()

#: Settings that take effect without a restart. Secrets do too, by the content of their files.
RELOADABLE = frozenset(
    {
        "allowed_origins",
        "api_idle_timeout",
        "api_max_body",
        "api_timeout",
        "audience",
        "auth_deadline",
        "contact_events",
        "contact_hidden_keys",
        "drain_close_code",
        "drain_timeout",
        "handshake_timeout",
        "log_level",
        "max_connections",
        "max_connections_per_contact",
        "max_contacts_per_ip",
        "max_connections_per_ip",
        "max_connections_per_user",
        "max_head_size",
        "max_line_size",
        "max_subscriptions",
        "message_burst",
        "message_rate",
        "subscription_burst",
        "queue_bytes",
        "subscription_rate",
        "trusted_proxies",
        "webhook_header_file",
        "webhook_secret_file",
    }
)
_SECRETS = frozenset({"push_secret_file", "secret", "secret_files", "token_key_files"})


@dataclass(frozen=True)
class ConfigDiff:
    """The result of a reload.

    :ivar config: the new values of reloadable settings, and the old values of all others.
    :ivar token_secrets: in the order in which they are tried; empty without token authentication.
    :ivar public_keys: those of `token_key_files`.
    :ivar push_secret: the secret that backends must send first, or None.
    :ivar lines: a sentence for each changed setting: what it is now, or that it needs a restart.
    """

    config: Config
    token_secrets: tuple[bytes, ...]
    public_keys: tuple[VerificationKey, ...]
    push_secret: bytes | None
    lines: tuple[str, ...]


def push_secret(config: Config) -> bytes | None:
    """Return the secret that backends must send first, or None.

    :raises ConfigError: the file cannot be read.
    """
    if not config.push_secret_file:
        return None
    allow = config.allow_world_readable_secrets
    return validate.read_secret_file(config.push_secret_file, "--push-secret-file", allow_world_readable=allow).encode()


def diff_config(
    old: Config,
    old_token_secrets: tuple[bytes, ...],
    old_push_secret: bytes | None,
    new: Config,
    old_public_keys: tuple[VerificationKey, ...] = (),
) -> ConfigDiff:
    """Compare `old` with `new`, which has passed `validate.check`.

    :raises ConfigError: a secret cannot be read.
    """
    lines: list[str] = []
    changed: dict[str, Any] = {}
    needs_restart: list[str] = []
    for attribute in fields(Config):
        name = attribute.name
        before, after = getattr(old, name), getattr(new, name)
        if before == after or name in _SECRETS:
            continue
        if name in RELOADABLE:
            changed[name] = after
            lines.append(f"{name}: {_shown(before)} → {_shown(after)}")
        else:
            needs_restart.append(name)
    secrets, public_keys = load_secrets(new), load_key_files(new)
    if default_methods(old) != default_methods(new):
        # the authentication methods, and whether they need a secret, are fixed at start
        secrets, public_keys = old_token_secrets, old_public_keys
        if "auth_methods" not in needs_restart:
            needs_restart.append("auth_methods")
    for name, before, after in (
        ("token secret", old_token_secrets, secrets),
        ("public key of tokens", old_public_keys, public_keys),
    ):
        if before != after:
            lines.append(f"the {name} has changed: {len(after)} {'is' if len(after) == 1 else 'are'} valid now")
            changed |= {"secret": new.secret, "secret_files": new.secret_files, "token_key_files": new.token_key_files}
    new_push_secret = push_secret(new)
    if new_push_secret != old_push_secret:
        change = "is set now" if old_push_secret is None else "is removed" if new_push_secret is None else "has changed"
        lines.append(f"the push secret {change}: connected backends stay connected")
    changed["push_secret_file"] = new.push_secret_file
    lines += [f"{name} has changed: this needs a restart" for name in needs_restart]
    return ConfigDiff(replace(old, **changed), secrets, public_keys, new_push_secret, tuple(lines))


class HasTls(Protocol):
    """A listener with or without TLS.

    :ivar tls: `chatws.net.tls.ServerTls`, or None.
    """

    @property
    def tls(self) -> Any: ...

    @property
    def label(self) -> str: ...


def read_renewals(listeners: Iterable[HasTls]) -> list[tuple[HasTls, bytes]]:
    """Read and check the certificates whose files have changed. None is used yet.

    :returns: each listener with its new certificate, in PEM.
    :raises ConfigError: a certificate is invalid.
    """
    with_tls = [listener for listener in listeners if listener.tls is not None]
    if not with_tls:
        return []
    from chatws.net.tls import CertificateError  # imports OpenSSL, which most servers do not need

    renewals = []
    for listener in with_tls:
        try:
            pem = listener.tls.read()
        except CertificateError as error:
            raise ConfigError(f"{listener.label}: {error}") from None
        if pem != listener.tls.pem:
            renewals.append((listener, pem))
    return renewals


def use_renewals(renewals: Sequence[tuple[HasTls, bytes]]) -> tuple[str, ...]:
    """Use the certificates for all new connections.

    :returns: a sentence for each certificate.
    """
    if not renewals:
        return ()
    from chatws.net.tls import describe_certificate

    lines = []
    for listener, pem in renewals:
        listener.tls.use(pem)
        lines.append(f"{listener.label}: new connections get the new certificate {describe_certificate(pem)}")
    return tuple(lines)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


class Reloader:
    """Read the configuration again and apply it.

    :param load: reads the configuration.
    :param reconfigure: applies it and returns a sentence for each change, or changes nothing and raises `ConfigError`.
    """

    def __init__(self, load: Callable[[], LoadedConfig], reconfigure: Callable[[Config], tuple[str, ...]]) -> None:
        self._load = load
        self._reconfigure = reconfigure
        self._started_in = os.getcwd()

    def reload(self) -> bool:
        """Reload, log the result, and return whether the configuration was accepted."""
        try:
            with _in_directory(self._started_in):
                loaded = self._load()
                lines = self._reconfigure(loaded.config)
        except ConfigError as error:
            log.error("the new configuration is rejected, the old one stays: {reason}", reason=str(error))
            return False
        except Exception:
            log.failure("reload failed, the old configuration stays")
            return False
        for line in lines:
            log.info("configuration: {change}", change=line)
        for sentence in loaded.replaced:
            log.info("configuration: {sentence}", sentence=sentence)
        if not lines:
            log.info("configuration reloaded: nothing has changed")
        return True


@contextmanager
def _in_directory(path: str) -> Iterator[None]:
    """Change to the directory in which twistd was started, which relative paths refer to. A daemon has left it."""
    current = os.getcwd()
    if current == path:
        yield
        return
    try:
        os.chdir(path)
    except OSError as error:
        raise ConfigError(f"cannot change to {path}, which relative paths refer to: {error.strerror}") from None
    try:
        yield
    finally:
        os.chdir(current)
