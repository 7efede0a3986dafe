"""Makes the parts of webhooks from the configuration, and checks their files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from chatws.auth.auth_url import check_auth_url
from chatws.auth.secrets import read_secret_file
from chatws.config.text_files import decode_text
from chatws.errors import ConfigError
from chatws.webhooks.client import Header, tls_policy
from chatws.webhooks.sender import WebhookSettings

__all__ = ["ALL_EVENTS", "WebhookConfig", "WebhookFiles", "check_webhooks", "make_settings"]

#: The events of docs/protocol.md §8.
ALL_EVENTS = (
    "agent_online",
    "agent_offline",
    "agent_status",
    "heartbeat",
    "presence_reset",
    "activity",
    "contact_online",
    "contact_offline",
)
#: Headers that the client sets itself.
_OWN_HEADERS = frozenset({"content-length", "content-type", "host", "transfer-encoding", "x-chatws-signature"})
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\t]*)")
#: The smallest body: an event with ids of 128 characters fits, in any script.
MIN_BODY = 2048


class WebhookConfig(Protocol):
    """The settings of `chatws.config.schema.Config` that this package uses."""

    @property
    def webhook_url(self) -> str: ...
    @property
    def webhook_secret_file(self) -> str: ...
    @property
    def webhook_header_file(self) -> str: ...
    @property
    def webhook_ca_file(self) -> str: ...
    @property
    def webhook_events(self) -> tuple[str, ...]: ...
    @property
    def webhook_timeout(self) -> float: ...
    @property
    def webhook_max_body(self) -> int: ...
    @property
    def webhook_heartbeat(self) -> float: ...
    @property
    def webhook_start_delay(self) -> float: ...
    @property
    def allow_world_readable_secrets(self) -> bool: ...


def make_settings(config: WebhookConfig) -> WebhookSettings:
    """Return the settings of the sender."""
    return WebhookSettings(
        frozenset(config.webhook_events),
        config.webhook_timeout,
        config.webhook_max_body,
        config.webhook_heartbeat,
        config.webhook_start_delay,
    )


def check_webhooks(config: WebhookConfig) -> list[str]:
    """Check the settings of webhooks, and read their files.

    :return: warnings, a sentence each.
    :raises ConfigError: a setting is invalid, or a file cannot be read.
    """
    if not config.webhook_url:
        return []
    check_auth_url(config.webhook_url, "--webhook-url")
    for event in config.webhook_events:
        if event not in ALL_EVENTS:
            raise ConfigError(f'--webhook-event: "{event}" is not one of {", ".join(ALL_EVENTS)}')
    if not config.webhook_events:
        raise ConfigError("--webhook-event is empty: name an event, or leave --webhook-url out")
    if config.webhook_max_body < MIN_BODY:
        raise ConfigError(f"--webhook-max-body must be at least {MIN_BODY} bytes")
    files = WebhookFiles(config)
    warnings = []
    if not files.secrets():
        warnings.append("webhooks are not signed: set --webhook-secret-file, so that the receiver can verify them")
    if "presence_reset" not in config.webhook_events:
        warnings.append("--webhook-event leaves presence_reset out: after a drop the receiver is wrong about agents")
    return warnings


class WebhookFiles:
    """The secrets, headers and certificates of the files that the configuration names.

    :raises ConfigError: a file cannot be read, or is invalid.
    """

    def __init__(self, config: WebhookConfig) -> None:
        self._secrets: tuple[bytes, ...] = ()
        self._headers: tuple[Header, ...] = ()
        self.policy = _read_policy(config.webhook_ca_file)
        self.read(config)

    def read(self, config: WebhookConfig) -> bool:
        """Read secrets and headers again, and return whether they have changed.

        :raises ConfigError: a file cannot be read, or is invalid. Nothing has changed.
        """
        before = self._secrets, self._headers
        allow = config.allow_world_readable_secrets
        secrets = tuple(line.encode() for line in _lines(config.webhook_secret_file, "--webhook-secret-file", allow))
        lines = _lines(config.webhook_header_file, "--webhook-header-file", allow)
        headers = tuple(_parse_header(line, number) for number, line in enumerate(lines, 1))
        self._secrets, self._headers = secrets, headers
        return before != (secrets, headers)

    def secrets(self) -> Sequence[bytes]:
        """Return the secrets that sign."""
        return self._secrets

    def headers(self) -> Sequence[Header]:
        """Return further headers."""
        return self._headers


def _lines(path: str, setting: str, allow_world_readable: bool) -> list[str]:
    if not path:
        return []
    text = decode_text(read_secret_file(path, setting, allow_world_readable=allow_world_readable), f"{setting}: {path}")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _parse_header(line: str, number: int) -> Header:
    match = _HEADER.fullmatch(line)
    if match is None:
        raise ConfigError(f"--webhook-header-file: line {number} is not `Name: value`")
    if match[1].lower() in _OWN_HEADERS:
        raise ConfigError(f"--webhook-header-file: line {number}: the server sets {match[1]} itself")
    return match[1], match[2].strip()


def _read_policy(path: str) -> Any:
    try:
        return tls_policy(Path(path).read_bytes()) if path else tls_policy(None)
    except OSError as error:
        raise ConfigError(f"--webhook-ca-file: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--webhook-ca-file: {path} {error}") from None
