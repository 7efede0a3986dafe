"""The servers and workloads of benchmarks/run.py."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = HERE / ".peers"
BUILD = PEERS / "bin"
PYTHON_PEERS = ("websockets", "picows", "socketify", "autobahn[twisted]")
NODE_PEERS = ("ws", "socket.io")
#: Text that compresses like people's messages.
PAD = (
    "Good morning! I ordered the blue one in size M last Thursday, and the parcel that came today has the green one. "
    "Can I send it back for free? Order 4711-0815."
)
#: Users of the connections, for servers that authenticate. Each has some pages open.
USERS = 900


@dataclass(frozen=True)
class Workload:
    """A load.

    :ivar per: connections of a group. Each message goes to one group. 0: one room of all.
    :ivar messages: messages of one round.
    :ivar window: messages outstanding.
    :ivar deflate: whether the client offers permessage-deflate.
    :ivar contacts: how many of the connections are those of contacts, two pages each. The others are agents. Each
        contact has a conversation, which goes to its pages and to one agent.
    """

    title: str
    connections: int
    per: int
    messages: int
    window: int
    unit: str  # "delivery", "message" or "connection"
    deflate: bool = False
    contacts: int = 0


WORKLOADS = {
    "room1": Workload("one room of 500, one message at a time", 500, 0, 120, 1, "delivery"),
    "room16": Workload("one room of 500, 16 messages outstanding", 500, 0, 320, 16, "delivery"),
    "inbox": Workload("9,000 connections, 3 recipients a message, 16 outstanding", 9000, 3, 3000, 16, "message"),
    "inbox1000": Workload("1,000 connections, 3 recipients a message, 16 outstanding", 1000, 3, 3000, 16, "message"),
    "inbox9000": Workload("9,000 connections, beside the other numbers of them", 9000, 3, 3000, 16, "message"),
    "inbox19000": Workload("19,000 connections, 3 recipients a message, 16 outstanding", 19000, 3, 3000, 16, "message"),
    "agents9000": Workload("9,000 agents' connections, 3 recipients a message", 9000, 3, 3000, 16, "message"),
    "contacts9000": Workload(
        "9,000 connections of contacts and 100 of agents, 3 recipients a message",
        9100,
        3,
        3000,
        16,
        "message",
        contacts=9000,
    ),
    # no messages: the cost to connect, authenticate and subscribe
    "connect": Workload("9,000 connections come in", 9000, 3, 0, 0, "connection"),
    "plain_room": Workload("one room of 500, not compressed", 500, 0, 120, 1, "message"),
    "deflated_room": Workload("one room of 500, compressed", 500, 0, 120, 1, "message", deflate=True),
    "plain_group": Workload("3 recipients a message, not compressed", 900, 3, 3000, 1, "message"),
    "deflated_group": Workload("3 recipients a message, compressed", 900, 3, 3000, 1, "message", deflate=True),
}
MAIN = ("room1", "room16", "inbox")
#: Workloads that are compared with each other, so they take turns in the same rounds.
TOGETHER = (("inbox1000", "inbox9000", "inbox19000"), ("agents9000", "contacts9000"))
NEAREST = ("floor", "chatws", "uwebsockets", "socketify", "picows")
#: Workloads that only some servers take part in.
ONLY = {
    **dict.fromkeys(TOGETHER[0], ("floor", "chatws")),
    **dict.fromkeys(TOGETHER[1], ("chatws",)),
    "plain_room": ("chatws-deflate",),
    "deflated_room": ("chatws-deflate",),
    "plain_group": ("chatws-deflate",),
    "deflated_group": ("chatws-deflate",),
}


@dataclass(frozen=True)
class Server:
    """A server.

    :ivar command: with {port} and {push}.
    :ivar subscribe: the messages with which a connection enters group %g.
    :ivar publisher: "tcp" or "ws".
    """

    title: str
    command: tuple[str, ...]
    path: str = "/"
    publisher: str = "tcp"
    prefix: tuple[str, ...] = ()
    subscribe: str = '{"type":"subscribe","conversation_id":%g}'


def _beside(python: str) -> str:
    """The path of twistd in a Python's environment."""
    return str(Path(python).absolute().with_name("twistd")) if python else ""


_TWISTD = (_beside(sys.executable), "-n", "--pidfile=")
# The client opens all connections before it authenticates them, which may exceed the default `auth_deadline`.
_CHATWS = ("chatws", "--port={port}", "--push-port={push}", "--auth-deadline=120")
#: chatws on other reactors.
REACTORS = ("chatws-asyncio",)
#: The workloads that these take part in.
REACTOR_WORKLOADS = ("room1", "inbox", "connect")
#: chatws on another Python, if CHATWS_PYTHON=path/to/bin/python names an environment.
OTHER_PYTHON = "chatws-other-python"
# the same interpreter for all
PEER_PYTHON = str(PEERS / f"venv-{platform.python_version()}" / "bin" / "python")
SERVERS = {
    "floor": Server("a C loop of send()", (str(BUILD / "floor"), "{port}", "{push}")),
    "chatws": Server("chatws", (*_TWISTD, *_CHATWS), "/ws"),
    "chatws-send": Server("chatws --no-io-uring", (*_TWISTD, *_CHATWS, "--no-io-uring"), "/ws"),
    "chatws-asyncio": Server("chatws on asyncio", (*_TWISTD, "--reactor=asyncio", *_CHATWS), "/ws"),
    OTHER_PYTHON: Server(
        "chatws on another Python", (_beside(os.environ.get("CHATWS_PYTHON", "")), *_TWISTD[1:], *_CHATWS), "/ws"
    ),
    "chatws-deflate": Server("chatws --compression", (*_TWISTD, *_CHATWS, "--compression"), "/ws"),
    # with a loop that blocks, like that of uWebSockets, and with socketify's, which polls
    "uwebsockets": Server(
        "uWebSockets (socketify)", (PEER_PYTHON, "uwebsockets_server.py", "{port}", "{push}", "native"), publisher="ws"
    ),
    "socketify": Server(
        "uWebSockets (socketify's run)", (PEER_PYTHON, "uwebsockets_server.py", "{port}", "{push}"), publisher="ws"
    ),
    "picows": Server("picows", (PEER_PYTHON, "picows_server.py", "{port}", "{push}")),
    "ws": Server("ws (Node)", ("node", "ws_server.mjs", "{port}", "{push}")),
    "websockets": Server("websockets", (PEER_PYTHON, "websockets_server.py", "{port}", "{push}")),
    "socketio": Server(
        "Socket.IO",
        ("node", "socketio_server.mjs", "{port}", "{push}"),
        "/socket.io/?EIO=4&transport=websocket",
        prefix=("40",),
        subscribe='42["subscribe",{"conversation_id":%g}]',
    ),
    "autobahn": Server("Autobahn, sendPreparedMessage", (PEER_PYTHON, "autobahn_server.py", "{port}", "{push}")),
    # subscriptions in a property of each connection, as in real applications, and in an SplObjectStorage
    "ratchet": Server("Ratchet", ("php", "ratchet_server.php", "{port}", "{push}")),
    "ratchet-storage": Server(
        "Ratchet (SplObjectStorage)", ("php", "ratchet_server.php", "{port}", "{push}", "storage")
    ),
}


def install(names: list[str]) -> None:
    """Install the peers and build the C programs."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for source in (HERE / "load.c", HERE / "storm.c", HERE / "servers" / "floor.c"):
        target = BUILD / source.stem
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["cc", "-O2", "-pthread", "-o", str(target), str(source)], check=True)
    if any(SERVERS[name].command[0] == PEER_PYTHON for name in names) and not Path(PEER_PYTHON).exists():
        subprocess.run([sys.executable, "-m", "venv", str(Path(PEER_PYTHON).parents[1])], check=True)
        subprocess.run([PEER_PYTHON, "-m", "pip", "install", "-q", *PYTHON_PEERS], check=True)
    if any(SERVERS[name].command[0] == "node" for name in names) and not (PEERS / "node_modules").exists():
        subprocess.run(["npm", "install", "--silent", "--prefix", str(PEERS), *NODE_PEERS], check=True)


def versions() -> dict[str, str]:
    """The versions of everything that was measured."""
    result = {"kernel": platform.release(), "machine": platform.machine()}
    code = "import importlib.metadata as m,json;print(json.dumps({n:m.version(n) for n in %r}))"
    for python, names in (
        (sys.executable, ["chatws", "Twisted", "autobahn", "msgspec"]),
        (PEER_PYTHON, ["websockets", "picows", "socketify"]),
    ):
        if Path(python).exists():
            result |= json.loads(subprocess.check_output([python, "-c", code % (names,)]))
    for name in NODE_PEERS:
        package = PEERS / "node_modules" / name / "package.json"
        if package.exists():
            result[name] = json.loads(package.read_text())["version"]
    for program, arguments in (("node", ["--version"]), ("php", ["-r", "echo PHP_VERSION;"])):
        if shutil.which(program):
            result[program] = subprocess.check_output([program, *arguments], text=True).strip()
    result["python"] = _python(sys.executable)
    if "CHATWS_PYTHON" in os.environ:
        result["other_python"] = _python(os.environ["CHATWS_PYTHON"])
    if has_ratchet():
        result |= json.loads(subprocess.check_output(["php", "-r", _RATCHET_VERSIONS]))
    return result


_PYTHON = """
import platform, sys, sysconfig
if sys.base_prefix == "/usr":
    how = "as " + platform.freedesktop_os_release()["NAME"] + " builds it"
else:
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""
    how = "built with" + ("" if "--enable-optimizations" in options else "out") + " `--enable-optimizations`"
print(platform.python_version(), how)
"""


def _python(executable: str) -> str:
    """The version of a Python, and how it was built (docs/performance.md, Python versions)."""
    return subprocess.check_output([executable, "-c", _PYTHON], text=True).strip()


_RATCHET_VERSIONS = """
require getenv('RATCHET_VENDOR') . '/autoload.php';
interface_exists('Ratchet\\ConnectionInterface');
echo json_encode([
    'ratchet' => preg_replace('~^Ratchet/~', '', Ratchet\\VERSION),
    'ratchet_loop' => (new ReflectionClass(React\\EventLoop\\Loop::get()))->getShortName(),
    'ratchet_extension' => implode(', ', preg_grep('/^(ev|uv|event)/', get_loaded_extensions())),
]);
"""


def has_ratchet() -> bool:
    return "RATCHET_VENDOR" in os.environ and shutil.which("php") is not None


def takes_part(name: str, key: str) -> bool:
    """Whether a server takes part in a workload."""
    if key in ONLY:
        return name in ONLY[key]
    if name == OTHER_PYTHON and "CHATWS_PYTHON" not in os.environ:
        return False
    return name != "chatws-deflate" and (name not in (*REACTORS, OTHER_PYTHON) or key in REACTOR_WORKLOADS)
