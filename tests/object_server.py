"""A server whose cyclic garbage collector is off, and that reports its objects: `python -m tests.object_server DIR`.

It serves plain text, TLS and a PROXY protocol listener. It prints its ports as one JSON object. A connection to the
port `objects` gets the number of the tracked objects of each type, and of the open connections.
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol

from chatws.config.schema import Config
from chatws.runtime.service import ChatwsService, build


class _Report(Protocol):
    transport: Any
    factory: Any

    def connectionMade(self) -> None:
        service = self.factory.service
        open_connections = (
            len(service.websockets.connections) + len(service.http.http_connections) + len(service.push.connections)
        )
        types = Counter(f"{type(item).__module__}.{type(item).__qualname__}" for item in gc.get_objects())
        self.transport.write(json.dumps({"open": open_connections, "types": types}).encode())
        self.transport.loseConnection()


class _Service(ChatwsService):
    def _started(self) -> None:
        # after the start, which sets the thresholds of the collector
        gc.disable()
        factory: Any = Factory.forProtocol(_Report)
        factory.noisy = False
        factory.service = self
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        plain, tls, proxied = (listening.getHost().port for listening in self.browsers.ports)
        assert self.monitors is not None
        ports = {
            "plain": plain,
            "tls": tls,
            "proxied": proxied,
            "push": self.backends.ports[0].getHost().port,
            "metrics": self.monitors.ports[0].getHost().port,
            "objects": port.getHost().port,
        }
        print(json.dumps(ports), flush=True)


def main() -> None:
    """Serve until SIGTERM. The first argument is a directory with the file `pem`, the second the metrics port."""
    pem = Path(sys.argv[1], "pem")
    config = Config(
        listen=(
            "tcp:0:interface=127.0.0.1",
            f"ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}",
            "haproxy:tcp:0:interface=127.0.0.1",
        ),
        push_port=0,
        metrics_port=int(sys.argv[2]),
        compression=True,
        send_buffer=65536,
        ping_interval=5,
        ping_timeout=5,
        auth_deadline=10,
        handshake_timeout=10,
        max_connections_per_user=0,
        drain_timeout=0.0,
    )
    build(config, reactor)  # type: ignore[arg-type]  # checks the settings
    service = _Service(config, reactor)  # type: ignore[arg-type]
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
