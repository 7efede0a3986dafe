"""The apps that clients and backends of Pusher's protocol name: each has channels, limits and secrets of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from chatws.auth.auth_url import check_auth_url
from chatws.auth.secrets import read_secret_file
from chatws.errors import ConfigError

__all__ = ["WEBHOOK_EVENTS", "AppTable", "PusherApp", "PusherSettings", "load_apps"]

#: The events of webhooks (https://pusher.com/docs/channels/server_api/webhooks/).
WEBHOOK_EVENTS = (
    "channel_occupied",
    "channel_vacated",
    "member_added",
    "member_removed",
    "client_event",
    "cache_miss",
)
_ID = re.compile(r"[0-9]{1,20}")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class PusherSettings(Protocol):
    """The settings of `chatws.config.schema.Config` that this module uses."""

    @property
    def pusher_apps(self) -> tuple[str, ...]: ...
    @property
    def pusher_app_id(self) -> str: ...
    @property
    def pusher_key(self) -> str: ...
    @property
    def pusher_secret(self) -> str: ...
    @property
    def pusher_secret_file(self) -> str: ...
    @property
    def pusher_client_events(self) -> bool: ...
    @property
    def pusher_conversation_channel(self) -> str: ...
    @property
    def pusher_user_channel(self) -> tuple[str, ...]: ...
    @property
    def allow_world_readable_secrets(self) -> bool: ...


@dataclass(frozen=True)
class PusherApp:
    """One app.

    :ivar id: decimal digits, in the paths of the HTTP API.
    :ivar key: public, in the URL of WebSockets.
    :ivar secret: signs subscriptions, requests and webhooks.
    :ivar name: in metrics and logs.
    :ivar client_events: whether clients may send events.
    :ivar max_connections: open WebSockets of this app in this process; 0 for no limit of its own.
    :ivar bridge: whether its channels of conversations and users are those of the chat.
    :ivar webhook_url: receives webhooks; empty for none.
    :ivar webhook_events: the names of the events that the URL receives.
    """

    id: str
    key: str
    secret: bytes = field(repr=False)
    name: str = ""
    client_events: bool = False
    max_connections: int = 0
    bridge: bool = True
    webhook_url: str = ""
    webhook_events: frozenset[str] = frozenset(WEBHOOK_EVENTS)


class AppTable:
    """The configured apps, by key and by id.

    :raises ConfigError: two apps have the same id, key or name.
    """

    def __init__(self, apps: Iterable[PusherApp] = ()) -> None:
        self._by_key: dict[str, PusherApp] = {}
        self._by_id: dict[str, PusherApp] = {}
        names: set[str] = set()
        for app in apps:
            if app.key in self._by_key or app.id in self._by_id or app.name in names:
                raise ConfigError(f"[[pusher.app]] {app.id}: another app has the same id, key or name")
            self._by_key[app.key] = self._by_id[app.id] = app
            names.add(app.name)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[PusherApp]:
        return iter(self._by_id.values())

    def by_key(self, key: str) -> PusherApp | None:
        """Return the app with this key, or None."""
        return self._by_key.get(key)

    def by_id(self, id: str) -> PusherApp | None:
        """Return the app with this id, or None."""
        return self._by_id.get(id)


def load_apps(config: PusherSettings) -> AppTable:
    """Return the configured apps; empty if the protocol is off.

    :raises ConfigError: an app is invalid, or its secret cannot be read.
    """
    described = [(f"[[pusher.app]] {index}", json.loads(text)) for index, text in enumerate(config.pusher_apps, 1)]
    single = bool(config.pusher_app_id or config.pusher_key or config.pusher_secret or config.pusher_secret_file)
    if single and described:
        raise ConfigError("--pusher-app-id and [[pusher.app]] exclude each other: leave one out")
    for setting, pattern in (
        ("--pusher-conversation-channel", config.pusher_conversation_channel),
        *(("--pusher-user-channel", pattern) for pattern in config.pusher_user_channel),
    ):
        if pattern and (pattern.count("{id}") != 1 or not pattern.startswith("private-")):
            raise ConfigError(f'{setting} must begin with private- and contain {{id}} once, not "{pattern}"')
    if single:
        if config.pusher_secret and config.pusher_secret_file:
            raise ConfigError("CHATWS_PUSHER_SECRET and --pusher-secret-file exclude each other: leave one out")
        app = {
            "id": config.pusher_app_id,
            "key": config.pusher_key,
            "secret_file": config.pusher_secret_file,
            "client_events": config.pusher_client_events,
        }
        return AppTable([_app("--pusher-app-id", app, config, True, config.pusher_secret.strip().encode())])
    return AppTable([_app(source, keys, config, len(described) == 1) for source, keys in described])


def _app(source: str, keys: dict[str, Any], config: PusherSettings, is_only: bool, secret: bytes = b"") -> PusherApp:
    known = {"id", "key", "secret_file", "name", "client_events", "max_connections", "bridge"}
    unknown = sorted(keys.keys() - known - {"webhook_url", "webhook_events"})
    if unknown:
        raise ConfigError(f"{source}: no key of an app is called {unknown[0]}")
    id = keys.get("id", "")
    id = str(id) if isinstance(id, int) and not isinstance(id, bool) else id
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise ConfigError(f"{source}: the id of an app has 1 to 20 decimal digits")
    key, name = keys.get("key", ""), keys.get("name", id)
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ConfigError(f"{source}: the key of an app has 1 to 128 of A-Za-z0-9_-")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{source}: the name of an app has 1 to 64 of A-Za-z0-9_.:-")
    client_events, bridge = keys.get("client_events", False), keys.get("bridge", is_only)
    if not isinstance(client_events, bool) or not isinstance(bridge, bool):
        raise ConfigError(f"{source}: client_events and bridge must be true or false")
    max_connections = keys.get("max_connections", 0)
    if isinstance(max_connections, bool) or not isinstance(max_connections, int) or max_connections < 0:
        raise ConfigError(f"{source}: max_connections must be a whole number, 0 or more")
    url, events = keys.get("webhook_url", ""), keys.get("webhook_events", list(WEBHOOK_EVENTS))
    if not isinstance(url, str):
        raise ConfigError(f"{source}: webhook_url must be a text")
    if url:
        check_auth_url(url, f"{source}: webhook_url")
    if not isinstance(events, list) or not all(event in WEBHOOK_EVENTS for event in events):
        raise ConfigError(f"{source}: webhook_events must be a list of {', '.join(WEBHOOK_EVENTS)}")
    file = keys.get("secret_file", "")
    if not secret and isinstance(file, str) and file:
        secret = read_secret_file(
            file, f"{source}: secret_file", allow_world_readable=config.allow_world_readable_secrets
        )
    if not secret:
        raise ConfigError(f"{source}: the secret is missing: set secret_file, or CHATWS_PUSHER_SECRET")
    return PusherApp(id, key, secret, name, client_events, max_connections, bridge, url, frozenset(events))
