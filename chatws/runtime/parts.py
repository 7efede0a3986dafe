"""Parts of a server made from its configuration. A worker gets some of them from the supervisor (`chatws.workers`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chatws.brokers.factory import open_broker
from chatws.brokers.interface import Broker, Retention
from chatws.config import validate
from chatws.config.schema import Config
from chatws.interfaces import Reactor
from chatws.net.listeners import Listener, make_listener

__all__ = ["Listeners", "configured_listeners", "history_retention", "open_configured_broker"]


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
    )


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
        made(validate.metrics_endpoint(config), "--metrics-port"),
    )
