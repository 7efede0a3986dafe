"""The private attributes of Autobahn, Twisted and txpostgres that chatws uses, each of which a new version may drop.

setup.cfg bounds these libraries. After `make update`, or with a raised bound, a test here fails where a version lacks
an attribute. Autobahn's protocol class documents few of its attributes, so all that WsProtocol shares with it count.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import autobahn.twisted.websocket
import autobahn.websocket.compress
import autobahn.websocket.protocol
import pytest
import twisted.enterprise.adbapi
import twisted.internet.abstract
import twisted.internet.endpoints
import twisted.internet.pollreactor
import twisted.internet.tcp
import twisted.internet.unix
import twisted.protocols.tls
import twisted.web.http
import txpostgres.txpostgres
from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket.protocol import WebSocketProtocol

import chatws
from chatws.server.autobahn_base import AutobahnBase
from chatws.server.ws_protocol import WsProtocol

#: Hooks of Autobahn that WsProtocol overrides: Autobahn has to call them.
HOOKS = {
    "_fail_connection",
    "_onMessageBegin",
    "_onMessageFrameBegin",
    "_onPing",
    "_onPong",
    "dropConnection",
    "onCloseFrame",
    "onMessageBegin",
    "onMessageEnd",
    "onMessageFrameBegin",
    "onPing",
    "sendCloseFrame",
    "sendData",
}
#: State of one connection, which Autobahn sets when a connection opens. WsProtocol has it as attributes of the class.
STATE = {
    "_perMessageCompress",
    "autoPingPending",
    "autoPingPendingCall",
    "autoPingPendingSent",
    "autoPingPendingSeq",
    "autoPingTimeoutCall",
    "closeHandshakeTimeoutCall",
    "closedByMe",
    "data",
    "droppedByMe",
    "failedByMe",
    "localCloseCode",
    "localCloseReason",
    "openHandshakeTimeoutCall",
    "remoteCloseCode",
    "remoteCloseReason",
    "send_queue",
    "send_state",
    "state",
    "trackedTimings",
    "trafficStats",
    "triggered",
    "utf8validator",
    "wasClean",
    "wasCloseHandshakeTimeout",
    "wasMaxFramePayloadSizeExceeded",
    "wasMaxMessagePayloadSizeExceeded",
    "wasNotCleanReason",
    "wasOpenHandshakeTimeout",
    "wasServerConnectionDropTimeout",
    "wasServingFlashSocketPolicyFile",
}
#: State that Autobahn sets later, with each frame or handshake, and methods that WsProtocol calls.
OTHERS = {
    "CONFIG_ATTRS",
    "_parseExtensionsHeader",
    "control_frame_data",
    "current_frame",
    "current_frame_masker",
    "frame_data",
    "inside_message",
    "log",
    "message_data",
    "message_is_binary",
    "processData",
    "websocket_version",
}
#: Autobahn's documented API: https://autobahn.readthedocs.io/en/latest/reference/autobahn.websocket.html
DOCUMENTED = {"factory", "transport"}

#: By class or module: the private attributes, and public ones that no document names.
PRIVATE: list[tuple[Any, set[str]]] = [
    (WebSocketServerProtocol, HOOKS | STATE | OTHERS),
    # an inflater of some 40 KiB, dropped after each message
    (autobahn.websocket.compress.PerMessageDeflate, {"_decompressor"}),
    # listening on a Unix socket that is open, and that systemd or the supervisor has too
    (twisted.internet.unix.Port, {"_shouldShutdown", "numberAccepts"}),
    # systemd's sockets, which Twisted takes from the environment
    (twisted.internet.endpoints._SystemdParser, {"_sddaemon"}),
    (twisted.internet.tcp.Port, {"_logger", "_shouldShutdown", "numberAccepts"}),
    # writing to the socket of a connection without a turn of the reactor
    (twisted.internet.tcp.Server, {"TLS", "bufferSize", "connected", "socket"}),
    # closing a connection to MySQL, which must not raise when the connection is lost
    (twisted.enterprise.adbapi.ConnectionPool, {"_close"}),
    # freeing a closed connection without the garbage collector
    (twisted.protocols.tls.BufferingTLSTransport, {"_producer", "_tlsShutdownFinished"}),
    (twisted.web.http.HTTPChannel, {"_transferDecoder"}),
    # dropping what a transport has not given to its socket
    (twisted.internet.abstract.FileDescriptor, {"_tempDataBuffer", "_tempDataLen", "dataBuffer", "offset"}),
    # measuring the turns of the reactor. EPollReactor has it too, which tests/test_runtime_turns.py uses
    (twisted.internet.pollreactor.PollReactor, {"_poller"}),
    # letting go of a broken connection before libpq closes its socket
    (txpostgres.txpostgres, {"_PollingMixin"}),
    (txpostgres.txpostgres.Connection, {"_connection"}),
]


def own_attributes(tree: ast.AST, context: type[ast.expr_context]) -> Iterator[str]:
    """The names N in `self.N` that are read (`ast.Load`) or set (`ast.Store`)."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=result) if isinstance(result, context):
                yield name


@cache
def parse_module(name: str) -> ast.Module:
    return ast.parse(inspect.getsource(importlib.import_module(name)))


@cache
def parse_source(what: Any) -> Any:
    """The syntax tree of a class or function. `inspect.getsource` would parse the module again for each class."""
    tree: Any = parse_module(what.__module__)
    for name in what.__qualname__.split("."):
        nodes = [node for node in tree.body if getattr(node, "name", "") == name]
        if len(nodes) != 1:  # below a condition: Python knows the lines
            return ast.parse(textwrap.dedent(inspect.getsource(what)))
        (tree,) = nodes
    return tree


def library_classes(owner: type) -> list[type]:
    return [item for item in owner.__mro__ if item.__module__.split(".")[0] in ("autobahn", "twisted", "txpostgres")]


@cache
def attributes(owner: Any) -> set[str]:
    """What a class or module has, and what a class's methods set on its instances."""
    result = set(dir(owner))
    if inspect.isclass(owner):
        for class_ in library_classes(owner):
            result |= set(own_attributes(parse_source(class_), ast.Store))
    return result


def missing(owner: Any, names: Iterable[str]) -> list[str]:
    return sorted(set(names) - attributes(owner))


@pytest.mark.parametrize(("owner", "names"), PRIVATE, ids=lambda value: getattr(value, "__name__", "names"))
def test_the_library_has_each_private_attribute(owner: Any, names: set[str]) -> None:
    assert missing(owner, names) == []


def test_a_version_that_lacks_an_attribute_is_found() -> None:
    class Port:
        _shouldShutdown = True

    assert missing(Port, {"_shouldShutdown", "_preexistingSocket"}) == ["_preexistingSocket"]
    assert missing(WebSocketServerProtocol, {"autoPingPendingSent", "autoPingPendingReceived"}) == [
        "autoPingPendingReceived"
    ]


def test_autobahn_calls_each_hook_that_is_overridden() -> None:
    trees = [parse_source(class_) for class_ in library_classes(WebSocketServerProtocol)]
    assert HOOKS - {name for tree in trees for name in own_attributes(tree, ast.Load)} == set()


def test_the_protocol_has_the_attributes_that_autobahn_sets() -> None:
    """WsProtocol replaces `_connectionMade`: what is set there and is absent here fails at its first use."""
    initial = set(own_attributes(parse_source(WebSocketProtocol._connectionMade), ast.Store))
    clients_only = {"serverConnectionDropTimeoutCall"}
    of_the_factory = {"trafficStats"}  # see make_protocol_class
    assert {name for name in initial if not hasattr(WsProtocol, name)} == clients_only | of_the_factory
    assert initial - clients_only == STATE


def test_everything_that_the_protocol_shares_with_autobahn_is_listed() -> None:
    used: set[str] = set()
    for owner in (AutobahnBase, WsProtocol):
        tree = parse_source(owner)
        used |= {*vars(owner), *own_attributes(tree, ast.Load), *own_attributes(tree, ast.Store)}
    twisted_protocol = set(dir(twisted.internet.protocol.Protocol))
    shared = {name for name in used & attributes(WebSocketServerProtocol) if not name.startswith("__")}
    constants = {name for name in shared if name.isupper() and isinstance(getattr(WebSocketProtocol, name, None), int)}
    assert shared - twisted_protocol - constants - DOCUMENTED <= HOOKS | STATE | OTHERS


# --- completeness ---------------------------------------------------------------------------------------------------


def modules() -> Iterator[Any]:
    for package in pkgutil.walk_packages(chatws.__path__, "chatws."):
        if not package.name.endswith("__main__"):
            yield importlib.import_module(package.name)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith(("__", "_abc_"))  # the latter are of abc.ABCMeta


def test_every_private_attribute_of_a_base_class_is_listed() -> None:
    listed = {name for _, names in PRIVATE for name in names}
    wrong = []
    for module in modules():
        for name, first in vars(module).items():
            if not inspect.isclass(first) or first.__module__ != module.__name__:
                continue
            bases = list(library_classes(first))
            if not bases:
                continue
            tree = parse_source(first)
            used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | set(vars(first))
            for base in bases:
                shared = {attribute for attribute in used & attributes(base) if is_private(attribute)}
                wrong += [f"{module.__name__}.{name}: {attribute}" for attribute in sorted(shared - listed)]
    assert wrong == []


def test_every_private_attribute_that_is_not_chatws_s_own_is_listed() -> None:
    ours = {"_exit", "_replace", "_current_frames"}  # documented, in os, of namedtuple, and in sys
    used: dict[str, str] = {}
    for module in modules():
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    ours.add(node.name)
                case ast.Name(ctx=ast.Store()):
                    ours.add(node.id)
                case ast.alias():
                    ours.add((node.asname or node.name).rpartition(".")[2])
                case ast.Constant(value=str()):  # __slots__
                    ours.add(str(node.value))
                case ast.Attribute(value=ast.Name(id="self" | "cls"), ctx=ast.Store()):
                    ours.add(node.attr)
                case ast.Attribute() if is_private(node.attr):
                    used[node.attr] = f"{module.__name__}:{node.lineno} {ast.unparse(node)}"
    listed = {name for _, names in PRIVATE for name in names}
    assert [where for name, where in used.items() if name not in ours | listed] == []
