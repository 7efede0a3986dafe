"""Levels of the log: one for all modules, and others for some (`--log-level info,chatws.push=debug`).

The levels are those of the process. The observers of the log drop the lines below them. Lines of level debug can be
many, so components build them only if `is_debugged`.
"""

from __future__ import annotations

from twisted.logger import LogEvent, LogLevel, LogLevelFilterPredicate

from chatws.errors import ConfigError

__all__ = ["check_levels", "is_debugged", "is_logged", "use_levels"]

_NAMES = ("debug", "info", "warn", "error", "critical")

_levels = LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)
_debugged: dict[str, bool] = {}


def check_levels(text: str) -> list[tuple[str, str]]:
    """Parse `--log-level`.

    :returns: module and level of each part. The module is empty for the level of all others.
    :raises ConfigError: a part is invalid.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    pairs = []
    for part in parts:
        module, equals, level = part.rpartition("=")
        if level not in _NAMES or (equals and not all(map(str.isidentifier, module.split(".")))):
            raise ConfigError(
                f'--log-level: "{part}" must be {", ".join(_NAMES[:-1])} or {_NAMES[-1]}, '
                "or such a level for a module: chatws.push=debug"
            )
        pairs.append((module, level))
    modules = [module for module, _ in pairs]
    for module in modules:
        if modules.count(module) > 1:
            raise ConfigError(f"--log-level has two levels for {module or 'all modules'}: leave one out")
    return pairs


def use_levels(text: str) -> None:
    """Use the levels of `--log-level` from now on.

    :raises ConfigError: they are invalid.
    """
    pairs = check_levels(text)
    _levels.clearLogLevels()
    _debugged.clear()
    for module, level in pairs:
        _levels.setLogLevelForNamespace(module, LogLevel.lookupByName(level))


def is_logged(event: LogEvent) -> bool:
    """Return whether the line of an event is written. One without a level is of level info."""
    level = event.get("log_level", LogLevel.info)
    return bool(level >= _levels.logLevelForNamespace(event.get("log_namespace") or ""))


def is_debugged(module: str) -> bool:
    """Return whether lines of level debug of a module are written. Cheap enough for each batch of events."""
    known = _debugged.get(module)
    if known is None:
        known = _debugged[module] = _levels.logLevelForNamespace(module) is LogLevel.debug
    return known
