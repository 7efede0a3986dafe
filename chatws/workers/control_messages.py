"""Messages between the supervisor and a worker, except those of the broker.

They are msgpack arrays, sent over the descriptor `CONTROL`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from chatws.config.schema import Config

__all__ = [
    "CONTROL",
    "AskMetrics",
    "AskReadiness",
    "CheckAlive",
    "CountsTable",
    "Failed",
    "Family",
    "InheritedSocket",
    "LogRecord",
    "Metrics",
    "ReadinessReport",
    "Reconfigure",
    "ReportAlive",
    "Running",
    "Setup",
    "ToSupervisor",
    "ToWorker",
    "encode",
    "from_supervisor",
    "from_worker",
]

#: The worker's descriptor of the control channel: the first one after standard input, output and error.
CONTROL = 3


class InheritedSocket(msgspec.Struct, array_like=True):
    """A listening socket that the worker inherits.

    :ivar listener: "browsers", "backends" or "api".
    :ivar description: the endpoint string. The worker takes only its options from it, the address is bound already.
    :ivar source: the setting that holds the string, for errors.
    :ivar descriptor: the socket's descriptor in the worker.
    :ivar certificate: PEM of a TLS listener (`chatws.net.tls.read_certificate`), else None.
    """

    listener: str
    description: str
    source: str
    descriptor: int
    certificate: bytes | None


class CountsTable(msgspec.Struct, array_like=True):
    """The table of `chatws.runtime.connection_counts.SharedCounts`.

    :ivar descriptor: its descriptor in the worker.
    :ivar rows: number of workers.
    """

    descriptor: int
    rows: int
    secret: bytes


class Setup(msgspec.Struct, array_like=True, tag=1):
    """The first message to a worker.

    :ivar number: the worker's number, from 0.
    :ivar node: the name of the worker's node, new for each process.
    :ivar counts: the table of connection counts.
    :ivar broker_descriptor: the descriptor of the channel to the supervisor's broker. None: the worker opens its own.
    """

    number: int
    node: str
    config: Config
    sockets: list[InheritedSocket]
    broker_descriptor: int | None
    counts: CountsTable


class Reconfigure(msgspec.Struct, array_like=True, tag=2):
    """Apply the settings that can change while the server runs. The supervisor has validated them.

    :ivar certificates: PEM of each TLS listener, in the order of the sockets.
    """

    config: Config
    certificates: list[bytes]


class AskMetrics(msgspec.Struct, array_like=True, tag=3):
    """Request the worker's metrics. The response is a `Metrics` with the same number."""

    number: int


class AskReadiness(msgspec.Struct, array_like=True, tag=4):
    """Request the worker's readiness. The response is a `ReadinessReport` with the same number."""

    number: int


class CheckAlive(msgspec.Struct, array_like=True, tag=5):
    """Ask whether the worker's event loop runs. The response is a `ReportAlive`."""


class Running(msgspec.Struct, array_like=True, tag=1):
    """Report that the worker serves."""


class Failed(msgspec.Struct, array_like=True, tag=2):
    """Report that the worker cannot start, and ends.

    :ivar reason: one line for the operator.
    :ivar status: the exit status.
    """

    reason: str
    status: int


class Family(msgspec.Struct, array_like=True):
    """A metric family of Prometheus.

    :ivar samples: (name, labels, value) of each sample.
    """

    name: str
    documentation: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


class Metrics(msgspec.Struct, array_like=True, tag=3):
    """The response to `AskMetrics`."""

    number: int
    families: list[Family]


class ReadinessReport(msgspec.Struct, array_like=True, tag=4):
    """The response to `AskReadiness`.

    :ivar problems: the problem of each component that has one. Empty: the worker is ready.
    """

    number: int
    problems: Mapping[str, str]


class LogRecord(msgspec.Struct, array_like=True, tag=5):
    """A log line of the worker.

    :ivar time: seconds since 1970.
    :ivar fields: the result of `chatws.runtime.logging.fields_of`.
    """

    time: float
    fields: dict[str, Any]


class ReportAlive(msgspec.Struct, array_like=True, tag=6):
    """The response to `CheckAlive`."""


encode = msgspec.msgpack.Encoder().encode
#: A message of the supervisor.
ToWorker: TypeAlias = Setup | Reconfigure | AskMetrics | AskReadiness | CheckAlive
#: A message of a worker.
ToSupervisor: TypeAlias = Running | Failed | Metrics | ReadinessReport | LogRecord | ReportAlive

from_supervisor: msgspec.msgpack.Decoder[ToWorker]
from_supervisor = msgspec.msgpack.Decoder(ToWorker)
from_worker: msgspec.msgpack.Decoder[ToSupervisor]
from_worker = msgspec.msgpack.Decoder(ToSupervisor)
