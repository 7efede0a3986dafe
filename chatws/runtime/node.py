"""This node among those that share the broker: what it announces of itself, and how it gives connections away."""

from __future__ import annotations

import hashlib
import socket

from twisted.internet.defer import Deferred
from twisted.logger import Logger

import chatws
from chatws.brokers.interface import Broker
from chatws.chat.cluster_commands import NodeInfo, RebalanceCommand
from chatws.chat.drain import disconnect_evenly
from chatws.chat.nodes import ClusterNodes
from chatws.chat.server import ChatServer
from chatws.config.schema import Config
from chatws.errors import CloseCode
from chatws.interfaces import Reactor
from chatws.net.sockets import shown_addresses
from chatws.runtime.measurements import Lag
from chatws.server.admission import Admission
from chatws.server.io_server import IoServer

__all__ = ["NodeControl", "node_name", "shared_settings"]

log = Logger()


def node_name(config: Config) -> str:
    """Return the name of the node for people: in logs, metrics and `chatws nodes`."""
    return config.node_name or socket.gethostname()


def shared_settings(config: Config) -> dict[str, str]:
    """Return what must be equal on all nodes, as texts for logs.

    The table of audiences is a digest: it is long, and only its equality counts.
    """
    audience = "\n".join(sorted(config.audience))
    settings = {
        "version": chatws.__version__,
        "history_events": str(config.history_events),
        "history_seconds": f"{config.history_seconds:g}",
        "history_bytes": str(config.history_bytes),
        "audience": hashlib.sha256(audience.encode()).hexdigest()[:12],
        "contacts": str(config.contacts).lower(),
        "table_prefix": config.table_prefix,
    }
    if config.broker.startswith(("postgresql:", "postgres:")):
        from chatws.brokers.postgres.schema import migrations

        settings["schema"] = str(migrations()[-1].number)
    return settings


class NodeControl:
    """Announces the node, and executes `rebalance`.

    :param config: the settings at the start.
    :param name: the name of the node for people.
    :param admission: rejects WebSockets while the node drains.
    :param browsers: the WebSocket listeners.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        broker: Broker,
        chat: ChatServer,
        admission: Admission,
        browsers: IoServer,
        lag: Lag,
        reactor: Reactor,
    ) -> None:
        self.cluster = ClusterNodes(broker, self._describe, self._rebalance, reactor)
        self._name = name
        self._settings = shared_settings(config)
        self._close_code = CloseCode(config.drain_close_code)
        self._chat = chat
        self._admission = admission
        self._browsers = browsers
        self._lag = lag
        self._reactor = reactor
        self._started = reactor.seconds()
        chat.use_cluster(self.cluster)

    @property
    def state(self) -> str:
        """Why the node is not ready, or ""."""
        return "draining" if self._admission.is_draining else ""

    def reconfigure(self, config: Config) -> None:
        """Use changed settings."""
        self._settings = shared_settings(config)
        self._close_code = CloseCode(config.drain_close_code)

    def _describe(self) -> NodeInfo:
        return NodeInfo(
            self._chat.node,
            self._name,
            shown_addresses(self._browsers.ports),
            chatws.__version__,
            self._chat.connection_count,
            self._reactor.seconds() - self._started,
            self._lag.latest,
            self._chat.history.last,
            self._admission.is_draining,
            self._settings,
        )

    def _rebalance(self, command: RebalanceCommand) -> None:
        self._admission.is_draining = command.drain
        log.info(
            "rebalance: disconnecting {count} clients over {seconds:g} s; the node is {state}",
            count=command.count,
            seconds=command.seconds,
            state="draining" if command.drain else "serving",
        )
        closing = Deferred.fromCoroutine(
            disconnect_evenly(self._disconnect, command.count, command.seconds, self._reactor)
        )
        closing.addErrback(lambda failure: log.failure("a rebalance failed", failure))

    def _disconnect(self, count: int) -> int:
        return self._chat.disconnect_all(self._close_code, "connect again: the nodes are rebalanced", count)
