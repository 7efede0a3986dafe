"""Parts of a server made from its configuration. A worker gets some of them from the supervisor (`chatws.workers`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from chatws.brokers.factory import open_broker
from chatws.brokers.interface import Broker, Retention
from chatws.brokers.webhook_queue import NO_WEBHOOK_QUEUE, WebhookQueueSettings
from chatws.chat.audience import AudienceTable, Kind
from chatws.chat.contacts import ContactFilter
from chatws.chat.rate_limits import SessionLimits
from chatws.config import validate
from chatws.config.schema import Config
from chatws.errors import ConfigError
from chatws.interfaces import Reactor
from chatws.net.listeners import Listener, make_listener
from chatws.runtime.connection_counts import ConnectionCounts
from chatws.runtime.file_budget import FileBudget
from chatws.server.admission import Admission

__all__ = [
    "Listeners",
    "admission_settings",
    "api_limits",
    "configured_listeners",
    "history_retention",
    "make_admission",
    "make_audiences",
    "make_contact_filter",
    "open_configured_broker",
    "session_limits",
]


def history_retention(config: Config) -> Retention:
    """Return the limits of the stored history."""
    return Retention(config.history_events, config.history_seconds, config.history_bytes)


def open_configured_broker(config: Config, reactor: Reactor) -> Broker:
    """Make the broker, not yet started.

    :raises ConfigError: the broker's URL is invalid.
    """
    return open_broker(
        config.broker,
        history_retention(config),
        sync_commits=config.sqlite_synchronous == "full",
        reactor=reactor,
        timeout=config.broker_timeout,
        listen_url=config.broker_listen,
        poll=config.broker_poll,
        webhook_queue=_webhook_queue(config),
    )


def _webhook_queue(config: Config) -> WebhookQueueSettings:
    if not config.webhook_url:
        return NO_WEBHOOK_QUEUE
    contacts = any(event.startswith("contact_") for event in config.webhook_events)
    return WebhookQueueSettings(config.webhook_queue, contacts)


class Listeners(NamedTuple):
    """The listeners of a server, not yet bound."""

    websocket: list[Listener]
    push: list[Listener]
    api: list[Listener]
    metrics: list[Listener]


def configured_listeners(config: Config, reactor: Reactor) -> Listeners:
    """Make the listeners.

    :raises ConfigError: an endpoint string is invalid.
    """

    def made(endpoints: Sequence[str], source: str) -> list[Listener]:
        return [make_listener(reactor, endpoint, source) for endpoint in endpoints]

    return Listeners(
        made(validate.browser_endpoints(config), "--listen" if config.listen else "--port"),
        made(validate.push_endpoints(config), "--push-listen" if config.push_listen else "--push-port"),
        made(validate.api_endpoints(config), validate.api_source(config)),
        made(validate.metrics_endpoints(config), validate.metrics_source(config)),
    )


def make_audiences(config: Config) -> AudienceTable:
    """Build the table of audiences.

    :raises ConfigError: `[audience]` has an unknown audience.
    """
    pairs = (assignment.partition("=") for assignment in config.audience)
    try:
        return AudienceTable({name: Kind(kind) for name, _, kind in pairs}, contacts=config.contacts)
    except ValueError as error:
        raise ConfigError(f"[audience]: {error}; one of {', '.join(Kind)}") from None


def make_contact_filter(config: Config) -> ContactFilter:
    """Build the filter of what contacts may get."""
    return ContactFilter(config.contact_events, config.contact_hidden_keys)


def admission_settings(config: Config) -> dict[str, Any]:
    """Return the parameters of `Admission`."""
    return {
        "allowed_origins": config.allowed_origins,
        "trusted_proxies": config.trusted_proxies,
        "max_connections": config.max_connections,
        "max_connections_per_ip": config.max_connections_per_ip,
    }


def session_limits(config: Config) -> dict[str, Any]:
    """Return the parameters of `SessionLimits`."""
    return {limit.name: getattr(config, limit.name) for limit in fields(SessionLimits) if limit.init}


def api_limits(config: Config) -> dict[str, Any]:
    """Return the limits of the HTTP API, parameters of `HttpFactory`."""
    return {
        "max_body": config.api_max_body,
        "max_item": config.max_line_size,
        "request_timeout": config.api_timeout,
        "idle_timeout": config.api_idle_timeout,
    }


def make_admission(
    config: Config, budget: FileBudget | None = None, counts: ConnectionCounts | None = None
) -> Admission:
    """Make the admission of connections.

    :raises ConfigError: a setting is invalid.
    """
    return Admission(**admission_settings(config), budget=budget, counts=counts)
