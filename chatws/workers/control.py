"""What a supervisor and a worker say to each other besides the log: msgpack arrays, over the descriptor `CONTROL`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from chatws.config import Config

__all__ = [
    "CONTROL",
    "AskMetrics",
    "AskReadiness",
    "Failed",
    "Family",
    "Metrics",
    "Readiness",
    "Reconfigure",
    "Running",
    "Said",
    "Setup",
    "Socket",
    "encode",
    "from_supervisor",
    "from_worker",
]

#: The worker's descriptor for this conversation.
CONTROL = 3


class Socket(msgspec.Struct, array_like=True):
    """A listening socket that the worker inherits.

    :ivar door: "browsers" or "backends".
    :ivar description: the endpoint string that says what is spoken there; its address is no longer looked at.
    :ivar source: the setting it is from, for errors.
    :ivar family: AF_INET, AF_INET6 or AF_UNIX.
    """

    door: str
    description: str
    source: str
    descriptor: int
    family: int


class Setup(msgspec.Struct, array_like=True, tag=1):
    """The first message to a worker.

    :ivar log: the descriptor of its way to the log; None: it opens the log itself.
    """

    number: int
    node: str
    config: Config
    sockets: list[Socket]
    log: int | None


class Reconfigure(msgspec.Struct, array_like=True, tag=2):
    """Take from this what can be changed; it has been checked."""

    config: Config


class AskMetrics(msgspec.Struct, array_like=True, tag=3):
    number: int


class AskReadiness(msgspec.Struct, array_like=True, tag=4):
    number: int


class Running(msgspec.Struct, array_like=True, tag=1):
    """The worker serves."""


class Failed(msgspec.Struct, array_like=True, tag=2):
    """The worker cannot start, and ends; one line for the operator."""

    reason: str


class Family(msgspec.Struct, array_like=True):
    """A family of Prometheus' metrics.

    :ivar samples: (name, labels, value).
    """

    name: str
    documentation: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


class Metrics(msgspec.Struct, array_like=True, tag=3):
    number: int
    families: list[Family]


class Readiness(msgspec.Struct, array_like=True, tag=4):
    """:ivar problems: what does not work, by part."""

    number: int
    problems: Mapping[str, str]


class Said(msgspec.Struct, array_like=True, tag=5):
    """A line for the log.

    :ivar time: seconds since 1970.
    :ivar fields: see chatws.logs.fields_of.
    """

    time: float
    fields: dict[str, Any]


encode = msgspec.msgpack.Encoder().encode
from_supervisor: msgspec.msgpack.Decoder[Setup | Reconfigure | AskMetrics | AskReadiness]
from_supervisor = msgspec.msgpack.Decoder(Setup | Reconfigure | AskMetrics | AskReadiness)
from_worker: msgspec.msgpack.Decoder[Running | Failed | Metrics | Readiness | Said]
from_worker = msgspec.msgpack.Decoder(Running | Failed | Metrics | Readiness | Said)
