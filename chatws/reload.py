"""SIGHUP: the configuration is read again, and what can be changed is changed under everybody's feet.

All or nothing: what would not be taken at a start is refused as a whole, and the old configuration stays. The command
line and the environment of a process never change, so it is the files that count: `--config`, and the secrets'.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from types import FrameType
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from chatws import startup
from chatws.auth.build import default_methods
from chatws.auth.secrets import load_secrets
from chatws.config import Config
from chatws.configure import Loaded
from chatws.errors import OperatorError

__all__ = ["RELOADABLE", "Change", "Reloader", "compare", "on_sighup"]

log = Logger()

#: What takes effect without a restart. The secrets' files besides: their content counts, not their names.
RELOADABLE = frozenset(
    {
        "allowed_origin",
        "audience",
        "auth_deadline",
        "drain_seconds",
        "handshake_timeout",
        "max_connections",
        "max_connections_per_ip",
        "max_connections_per_user",
        "max_head_size",
        "max_line_size",
        "max_subscriptions",
        "rate",
        "rate_burst",
        "trusted_proxy",
    }
)
_SECRETS = frozenset({"push_secret_file", "secret", "secret_file"})


@dataclass(frozen=True)
class Change:
    """What a reload comes to.

    :ivar config: the configuration from now on: the new values of what can be changed, the old ones of the rest.
    :ivar ticket_secrets: in the order in which they are tried; empty without tickets.
    :ivar push_secret: or None.
    :ivar lines: a sentence for each setting that has changed, whether it takes effect or has to wait.
    """

    config: Config
    ticket_secrets: tuple[bytes, ...]
    push_secret: bytes | None
    lines: tuple[str, ...]


def push_secret(config: Config) -> bytes | None:
    """What backends must send first, or None.

    :raises OperatorError: the file cannot be read.
    """
    if not config.push_secret_file:
        return None
    return startup.read_secret_file(config.push_secret_file, "--push-secret-file").encode()


def compare(old: Config, old_ticket_secrets: tuple[bytes, ...], old_push_secret: bytes | None, new: Config) -> Change:
    """What changes from `old` to `new`, which has passed `startup.check`.

    :raises OperatorError: a secret cannot be read.
    """
    lines: list[str] = []
    taken: dict[str, Any] = {}
    later: list[str] = []
    for one in fields(Config):
        before, after = getattr(old, one.name), getattr(new, one.name)
        if before == after or one.name in _SECRETS:
            continue
        if one.name in RELOADABLE:
            taken[one.name] = after
            lines.append(f"{one.name}: {_shown(before)} → {_shown(after)}")
        else:
            later.append(one.name)
    secrets = load_secrets(new)
    if default_methods(old) != default_methods(new):
        # which ways to say who one is there are, is decided at the start; so is whether they need a secret
        secrets = old_ticket_secrets
        if "auth" not in later:
            later.append("auth")
    elif secrets != old_ticket_secrets:
        lines.append(f"the ticket secret has changed; {len(secrets)} {'is' if len(secrets) == 1 else 'are'} good now")
        taken |= {"secret": new.secret, "secret_file": new.secret_file}
    pushing = push_secret(new)
    if pushing != old_push_secret:
        what = "is no longer asked for" if pushing is None else "has changed" if old_push_secret else "is asked for now"
        lines.append(f"the push secret {what}; backends that are connected stay")
    taken["push_secret_file"] = new.push_secret_file
    lines += [f"{name} has changed too: that takes a restart" for name in later]
    return Change(replace(old, **taken), secrets, pushing, tuple(lines))


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


class Reloader:
    """Reads again, and hands over.

    :param load: reads the configuration.
    :param reconfigure: compares it with the present one, takes it, and tells what has changed; or raises
        `OperatorError` having changed nothing.
    """

    def __init__(self, load: Callable[[], Loaded], reconfigure: Callable[[Config], tuple[str, ...]]) -> None:
        self._load = load
        self._reconfigure = reconfigure
        self._started_in = os.getcwd()

    def reload(self) -> bool:
        """Do it, say in the log what came of it, and return whether the configuration was taken."""
        try:
            with _in_directory(self._started_in):
                loaded = self._load()
                lines = self._reconfigure(loaded.config)
        except OperatorError as error:
            log.error("the new configuration is refused, the old one stays: {reason}", reason=str(error))
            return False
        except Exception:
            log.failure("the configuration could not be read again, the old one stays")
            return False
        for line in lines:
            log.info("configuration: {change}", change=line)
        if not lines:
            log.info("the configuration was read again: nothing has changed")
        return True


@contextmanager
def _in_directory(path: str) -> Iterator[None]:
    """Relative paths count from where twistd was started, and a daemon may be elsewhere by now."""
    here = os.getcwd()
    if here == path:
        yield
        return
    try:
        os.chdir(path)
    except OSError as error:
        raise OperatorError(f"cannot go back to {path}, where paths count from: {error.strerror}") from None
    try:
        yield
    finally:
        os.chdir(here)


def on_sighup(reactor: Any, reload: Callable[[], object]) -> None:
    """Call `reload` whenever SIGHUP comes. When it comes because the terminal has gone, the server ends instead, as
    it would without this."""
    on_terminal = False

    def begin() -> None:
        nonlocal on_terminal
        on_terminal = os.isatty(0)  # now, not before: a daemon has left its terminal

    def hung_up() -> None:
        if on_terminal and not os.isatty(0):
            with suppress(ReactorNotRunning):
                reactor.stop()
        else:
            reload()

    def handle(number: int, frame: FrameType | None) -> None:
        reactor.callFromThread(hung_up)

    signal.signal(signal.SIGHUP, handle)
    reactor.callWhenRunning(begin)
