"""Build one `Config` from a TOML file, the environment and the command line.

Flags override the environment, the environment overrides the file, and the file overrides the defaults, separately for
each setting. A list replaces the whole list of a lower source. Settings that describe the same thing in two ways
(`port` and `listen`) count as one: the higher source also replaces the other way.

This module checks what concerns a single setting or a single source: spelling, types, ranges, a `--port` beside a
`--listen`. `chatws.config.validate.check` compares the settings with each other.
"""

from __future__ import annotations

import json
import math
import re
import stat
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from chatws.config.names import (
    RENAMED_SECTIONS,
    describe_former_key,
    describe_unknown_variables,
    environment_name,
    flag_name,
    suggestion,
    without_service_variables,
)
from chatws.config.schema import SECTIONS, Config, Setting, settings
from chatws.config.text_files import decode_text, own_variables
from chatws.errors import ConfigError

__all__ = ["LoadedConfig", "ValueSource", "expected", "load"]

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_EVENT_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_AUDIENCES = ("conversation", "user", "agents", "everyone", "none")
_TABLE = settings()

#: Two ways to describe the same thing, each with its settings. Within one source (the command line, the environment,
#: the file) they exclude each other. Between two sources the higher one wins: a service manager passes sockets with
#: `--listen`, while the file names the port that is used everywhere else.
_ALTERNATIVES = (
    (("listen",), ("port", "interface")),
    (("push_listen",), ("push_port",)),
    (("api_listen",), ("api_port",)),
    (("metrics_listen",), ("metrics_port",)),
    (("secret",), ("secret_files",)),
    (("database",), ("database_file",)),
    (("broker_listen",), ("broker_poll",)),
)
#: Settings whose 0 or empty value is a choice. For the others of `_ALTERNATIVES` an empty value counts as not set.
_MEANINGFUL_WHEN_EMPTY = frozenset({"port", "interface", "push_port"})


class ValueSource(NamedTuple):
    """The source of a value.

    :ivar kind: `default`, `file`, `environment` or `flag`.
    :ivar name: as the operator wrote it: `--port`, `CHATWS_PORT`, `port in chatws.toml`; empty for a default.
    """

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.kind


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration with the sources of its values.

    :ivar sources: by setting, in the order of the schema.
    :ivar warnings: sentences for the log.
    :ivar replaced: sentences about values that a higher source has replaced, with another value or with the other way
        to describe the same thing: "--listen replaces port in chatws.toml".
    """

    config: Config
    sources: Mapping[str, ValueSource]
    warnings: Sequence[str] = ()
    replaced: Sequence[str] = ()


def expected(name: str) -> str:
    """Return what the value of a setting must be, with unit and range: "a number of seconds, 0 or more"."""
    setting, default, _ = _TABLE[name]
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int | float):
        kind = "a number" if isinstance(default, float) else "a whole number"
        unit = f" of {setting.unit}" if setting.unit else ""
        if setting.highest is not None:
            return f"{kind}{unit} from {0 if setting.zero_meaning else 1} to {setting.highest}"
        return f"{kind}{unit}{', 0 or more' if setting.zero_meaning else ' above 0'}"
    return " or ".join(setting.choices) or ("a list of texts" if isinstance(default, tuple) else "a text")


def load(flags: Mapping[str, Sequence[str]], environment: Mapping[str, str], file: str | None = None) -> LoadedConfig:
    """Build the configuration from its three sources.

    :param flags: the values of the command line, as written, by field name. A switch gives "true" or "false".
    :param environment: `os.environ`. `CHATWS_CONFIG` names the file if `file` is None. An empty variable counts as not
        set.
    :param file: the path of a TOML file.
    :raises ConfigError: with one line that names the flag, the variable, or the key and its file.
    """
    variables = {name: value for name, value in without_service_variables(own_variables(environment)).items() if value}
    unknown = describe_unknown_variables(variables)
    if unknown:
        raise ConfigError(unknown)
    file = file if file is not None else variables.get("CHATWS_CONFIG")
    values: dict[str, Any] = {name: default for name, (_, default, _) in _TABLE.items()}
    sources = {name: ValueSource("default") for name in _TABLE}
    replaced: list[str] = []
    for triples in (_from_file(file), _from_environment(variables), _from_flags(flags)):
        given = {name: (value, source) for name, value, source in triples}
        for name, by in _replaced_by(given):
            if sources[name].kind != "default":
                replaced.append(f"{by} replaces {sources[name]}")
            values[name], sources[name] = _TABLE[name][1], ValueSource("default")
        for name, (value, source) in given.items():
            if sources[name].kind != "default" and values[name] != value:
                replaced.append(f"{source} replaces {sources[name]}")
            values[name], sources[name] = value, source
    return LoadedConfig(Config(**values), sources, _exposed_passwords(file, values, sources), replaced)


#: Name, value and source of each setting of one source.
_Values = Iterator[tuple[str, Any, ValueSource]]


def _from_flags(flags: Mapping[str, Sequence[str]]) -> _Values:
    for name, texts in flags.items():
        source = ValueSource("flag", flag_name(name))
        # a script with CRLF leaves a carriage return at the end of a line
        yield name, _parse(name, [text.rstrip("\r") for text in texts], source), source


def _from_environment(variables: Mapping[str, str]) -> _Values:
    for name, (_, default, _) in _TABLE.items():
        variable = environment_name(name)
        text = variables.get(variable)
        if text is None:
            if name == "secret" and "CHATWS_SECRET_OLD" in variables:
                raise ConfigError("CHATWS_SECRET_OLD is set and CHATWS_SECRET is not")
            continue
        source = ValueSource("environment", variable)
        if name == "pusher_apps":
            yield name, _parse(name, [text], source), source
        elif name == "secret":
            # not split: a secret may contain commas and spaces
            old = variables.get("CHATWS_SECRET_OLD")
            yield name, (text,) if old is None else (text, old), source
        else:
            texts = re.split(r"[,\s]+", text.strip(", \t\n")) if isinstance(default, tuple) else [text]
            yield name, _parse(name, texts, source), source


def _from_file(file: str | None) -> _Values:
    if file is None:
        return
    try:
        document = tomllib.loads(decode_text(Path(file).read_bytes(), file))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from None
    positions: dict[str, str] = {}
    for position, name, value in _keys(document, file):
        if name in positions:
            raise ConfigError(f"{file} sets {name} twice, {positions[name]} and {position}")
        positions[name] = position
        source = ValueSource("file", f"{name} in {file}")
        yield name, _accept(name, value, source), source


def _keys(document: Mapping[str, Any], file: str) -> Iterator[tuple[str, str, Any]]:
    """Yield position, name and value of the file's settings, at the top level or in the table of their section."""
    for key, value in document.items():
        if key == "audience" and isinstance(value, dict):
            yield "in [audience]", key, value
        elif isinstance(value, dict) and key in RENAMED_SECTIONS:
            raise ConfigError(f"{file}: the table [{key}] is now {RENAMED_SECTIONS[key]}")
        elif isinstance(value, dict) and key in SECTIONS:
            for name, inner in value.items():
                if key == "pusher":
                    name = _pusher_name(name)
                setting = _lookup(name, file, [name for name in _TABLE if _TABLE[name][0].section == key])
                if setting.section != key:
                    raise ConfigError(f"{file}: {name} belongs in [{setting.section}], not in [{key}]")
                yield f"in [{key}]", name, inner
        else:
            if isinstance(value, dict) and key not in _TABLE:
                raise ConfigError(f"{file}: no table is called [{key}]{suggestion(key, [*SECTIONS, 'audience'])}")
            _lookup(key, file, list(_TABLE))
            yield "at the top", key, value


def _pusher_name(key: str) -> str:
    """Return the setting of a key of `[pusher]`: the table has them without the prefix."""
    if key == "app":
        return "pusher_apps"
    return f"pusher_{key}" if f"pusher_{key}" in _TABLE else key


def _lookup(name: str, file: str, likely: list[str]) -> Setting:
    """Return the setting of a key.

    :param likely: names that are suggested before others.
    :raises ConfigError: there is no such setting, or it may not be in a file.
    """
    if name not in _TABLE:
        former = describe_former_key(name)
        raise ConfigError(
            f"{file}: {former}" if former else f"{file}: no setting is called {name}"
            f"{suggestion(name, [*likely, *_TABLE])}"
        )  # fmt: skip
    setting = _TABLE[name][0]
    if setting.environment_only:
        raise ConfigError(
            f"{file}: {name} is read from {environment_name(name)} only; use "
            f"{'secret_files' if name == 'secret' else 'pusher_secret_file'} for a file"
        )
    return setting


def _reject(name: str, value: object, source: ValueSource) -> NoReturn:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    shown = "" if _TABLE[name][0].secret else f', not "{text if len(text) <= 80 else text[:80] + "…"}"'
    raise ConfigError(f"{source} must be {expected(name)}{shown}")


def _parse(name: str, texts: Sequence[str], source: ValueSource) -> Any:
    """Convert the texts of a flag or a variable. The last text counts, unless the setting is a list."""
    default = _TABLE[name][1]
    if isinstance(default, tuple):
        return _accept(name, [text for text in texts if text], source)
    text = texts[-1]
    value: Any = text
    if isinstance(default, bool):
        word = text.strip().lower()
        value = word in _TRUE if word in _TRUE | _FALSE else None
    elif isinstance(default, int | float):
        try:
            value = int(text) if isinstance(default, int) else float(text)
        except ValueError:
            value = None
    if value is None:
        _reject(name, text, source)
    return _accept(name, value, source)


def _accept(name: str, value: Any, source: ValueSource) -> Any:
    """Return the value in the field's type, or raise `ConfigError` if it is out of bounds."""
    setting, default, _ = _TABLE[name]
    if isinstance(default, bool):
        if not isinstance(value, bool):
            _reject(name, value, source)
        return value
    if isinstance(default, int | float):
        return _number(name, value, source)
    if isinstance(default, tuple):
        return _texts(name, value, source)
    if not isinstance(value, str):
        _reject(name, value, source)
    if not value and default:
        if not setting.zero_meaning:
            raise ConfigError(f"{source} must not be empty")
        return value
    if setting.choices and value not in setting.choices:
        _reject(name, value, source)
    return str(Path(value).absolute()) if setting.path and value else value


def _number(name: str, value: Any, source: ValueSource) -> Any:
    setting, default, _ = _TABLE[name]
    if isinstance(value, bool) or not isinstance(value, int if isinstance(default, int) else int | float):
        _reject(name, value, source)
    try:
        number = type(default)(value)
    except OverflowError:
        number = math.inf
    highest = math.inf if setting.highest is None else setting.highest
    if not 0 <= number <= highest or number == math.inf or (number == 0 and not setting.zero_meaning):
        _reject(name, value, source)
    return number


def _texts(name: str, value: Any, source: ValueSource) -> tuple[str, ...]:
    setting = _TABLE[name][0]
    if name == "audience":
        return tuple(_audiences(value, source))
    if name == "pusher_apps":
        return tuple(_apps(value, source))
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        _reject(name, value, source)
    return tuple(str(Path(text).absolute()) if setting.path else text for text in texts)


def _apps(value: Any, source: ValueSource) -> Iterator[str]:
    """Yield the JSON of each app, with sorted keys. `chatws.pusher.apps` checks the keys."""
    for item in value if isinstance(value, list) else [value]:
        app = item
        if isinstance(item, str):
            try:
                app = json.loads(item)
            except (ValueError, RecursionError):
                app = None
        if not isinstance(app, dict):
            raise ConfigError(f"{source} must be a table, or a JSON object, for each app")
        if isinstance(app.get("secret_file"), str):
            app = {**app, "secret_file": str(Path(app["secret_file"]).absolute())}
        try:
            yield json.dumps(app, sort_keys=True)
        except TypeError:
            raise ConfigError(f"{source}: an app has a value that is no text, number, list or switch") from None


def _audiences(value: Any, source: ValueSource) -> Iterator[str]:
    """Yield `order_paid=everyone` from `{"order_paid": "everyone"}` or `["order_paid=everyone"]`."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list) and all(isinstance(text, str) for text in value):
        pairs = [(event, audience) for event, _, audience in (text.partition("=") for text in value)]
    else:
        pairs = [("", value)]
    for event, audience in pairs:
        if not _EVENT_NAME.fullmatch(event) or audience not in _AUDIENCES:
            choice = ", ".join(_AUDIENCES[:-1]) + f" or {_AUDIENCES[-1]}"
            raise ConfigError(f'{source} must name an event and {choice}, not "{event}={audience}"')
        yield f"{event}={audience}"


def _replaced_by(given: Mapping[str, tuple[Any, ValueSource]]) -> Iterator[tuple[str, ValueSource]]:
    """Yield the settings that lower sources may have, each with the source of what replaces it.

    :param given: the settings of one source.
    :raises ConfigError: that source describes the same thing in two ways.
    """
    for alternatives in _ALTERNATIVES:
        first, second = (
            [name for name in names if name in given and (given[name][0] or name in _MEANINGFUL_WHEN_EMPTY)]
            for names in alternatives
        )
        if first and second:
            source, other = given[first[0]][1], given[second[0]][1]
            raise ConfigError(f"{source} and {other} exclude each other: leave one out")
        for used, names in ((first, alternatives[1]), (second, alternatives[0])):
            if used:
                for name in names:
                    yield name, given[used[0]][1]


def _exposed_passwords(file: str | None, values: Mapping[str, Any], sources: Mapping[str, ValueSource]) -> list[str]:
    """Return a warning if the file has a URL with a password and every user of the machine can read it."""
    if file is None or values["allow_world_readable_secrets"] or sys.platform == "win32":
        return []
    if not Path(file).stat().st_mode & stat.S_IROTH:
        return []
    urls = [str(values[name]) for name in ("database", "broker", "broker_listen") if sources[name].kind == "file"]
    if not any(re.search(r"://[^/]*:[^/]*@", url) for url in urls):
        return []
    return [f"{file} holds a password and every user of this machine can read it: chmod 640 {file}"]
