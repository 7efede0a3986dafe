"""Where a server runs: by itself, as a rule. In a worker some of this comes from the supervisor (chatws.workers)."""

from __future__ import annotations

from typing import Any

from chatws import startup
from chatws.brokers import open_broker
from chatws.brokers.contract import Bounds, Broker
from chatws.config import Config
from chatws.endpoints import make_endpoint

__all__ = ["Place", "log_bounds", "open_log"]


def log_bounds(config: Config) -> Bounds:
    """How much of the log is kept."""
    return Bounds(config.history_events, config.history_seconds, config.history_bytes)


def open_log(config: Config, reactor: Any) -> Broker:
    """The log's engine, not started.

    :raises OperatorError: there is none of that name.
    """
    return open_broker(
        config.broker,
        log_bounds(config),
        durable=config.durable,
        reactor=reactor,
        timeout=config.broker_timeout,
        listen_url=config.broker_listen,
        poll=config.broker_poll,
    )


class Place:
    """What a server takes from its process, and tells it.

    :ivar node: its name among those that share the log; empty for a random one.
    """

    node = ""

    def __init__(self, config: Config, reactor: Any) -> None:
        self.config = config
        self.reactor = reactor

    def broker(self) -> Broker:
        """The log, not started."""
        return open_log(self.config, self.reactor)

    def browser_endpoints(self) -> list[Any]:
        """Where to listen for browsers.

        :raises OperatorError: as the other two: an endpoint string is no good.
        """
        source = "--listen" if self.config.listen else "--port"
        return [make_endpoint(self.reactor, one, source) for one in startup.browser_endpoints(self.config)]

    def push_endpoints(self) -> list[Any]:
        """Where to listen for backends."""
        source = "--push-listen" if self.config.push_listen else "--push-port"
        return [make_endpoint(self.reactor, one, source) for one in startup.push_endpoints(self.config)]

    def metrics_endpoints(self) -> list[Any]:
        """Where to listen for those who collect metrics."""
        return [make_endpoint(self.reactor, one, "--metrics-port") for one in startup.metrics_endpoint(self.config)]

    def started(self) -> None:
        """The server serves."""

    def failed(self, reason: str) -> None:
        """The server cannot start."""
        startup.fail(self.reactor, reason)
