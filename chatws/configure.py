"""From a TOML file, the environment and the command line to one `Config`.

Flags go over the environment, the environment over the file, the file over the defaults, setting by setting; a list
is replaced, never added to. What only one place can know is checked here (spelling, types, ranges, a `--port` beside
a `--listen`); whether the settings go together is for `chatws.startup.check`.
"""

from __future__ import annotations

import math
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from chatws.config import SECTIONS, Config, Setting, settings
from chatws.errors import OperatorError

__all__ = ["Loaded", "Origin", "environment_name", "expected", "flag_name", "load", "suggestion"]

#: In the environment, and no settings.
#: Variables that are no settings: two of the server's own, and those of the PHP helper and the command `chatws`, which
#: may be in the same environment.
_OTHER_VARIABLES = frozenset(
    {"CHATWS_CONFIG", "CHATWS_SECRET_OLD", "CHATWS_PUSH_ADDRESS", "CHATWS_PUSH_SECRET", "CHATWS_PUSH_SECRET_FILE"}
    | {f"CHATWS_PUSH_{name}" for name in ("ANSWER_TIMEOUT_MS", "BUDGET_MS", "CONNECT_TIMEOUT_MS", "PAUSE_MS")}
    | {"CHATWS_PUSH_TLS_CA", "CHATWS_PUSH_TLS_NAME", "CHATWS_SPOOL_DIR", "CHATWS_SPOOL_MAX_FILES", "CHATWS_TOKEN"}
)
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_EVENT_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_AUDIENCES = ("conversation", "user", "everyone", "none")
_TABLE = settings()


class Origin(NamedTuple):
    """Where a value comes from.

    :ivar kind: `default`, `file`, `environment` or `flag`.
    :ivar name: what the operator wrote there: `--port`, `CHATWS_PORT`, `port in chatws.toml`; empty for a default.
    """

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.kind


@dataclass(frozen=True)
class Loaded:
    """A configuration, and how it came about.

    :ivar origins: by setting, in the table's order.
    :ivar notes: sentences about what was passed over.
    """

    config: Config
    origins: Mapping[str, Origin]
    notes: Sequence[str] = ()


def flag_name(name: str) -> str:
    """`send_buffer` → `--send-buffer`."""
    return "--" + name.replace("_", "-")


def environment_name(name: str) -> str:
    """`send_buffer` → `CHATWS_SEND_BUFFER`."""
    return "CHATWS_" + name.upper()


def suggestion(wrong: str, names: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing when none of `names` is near."""
    near = get_close_matches(wrong, list(names), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def expected(name: str) -> str:
    """What a setting's value must be, with unit and range: "a number of seconds, 0 or more"."""
    setting, default, _ = _TABLE[name]
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int | float):
        kind = "a number" if isinstance(default, float) else "a whole number"
        unit = f" of {setting.unit}" if setting.unit else ""
        if setting.highest is not None:
            return f"{kind}{unit} from {0 if setting.zero else 1} to {setting.highest}"
        return f"{kind}{unit}{', 0 or more' if setting.zero else ' above 0'}"
    return "a list of texts" if isinstance(default, tuple) else "a text"


def load(flags: Mapping[str, Sequence[str]], environment: Mapping[str, str], file: str | None = None) -> Loaded:
    """Put the three together.

    :param flags: what the command line gave, as it was written, by field name; a switch gives "true" or "false".
    :param environment: `os.environ`, or what stands for it. `CHATWS_CONFIG` names the file when `file` is None.
        An empty variable counts as one that is not set.
    :param file: the path of a TOML file.
    :raises OperatorError: with one line that names the flag, the variable, or the key and its file.
    """
    given = {name: value for name, value in environment.items() if name.startswith("CHATWS_") and value}
    file = file if file is not None else given.get("CHATWS_CONFIG")
    values: dict[str, Any] = {name: default for name, (_, default, _) in _TABLE.items()}
    origins = {name: Origin("default") for name in _TABLE}
    for name, value, origin in (*_from_file(file), *_from_environment(given), *_from_flags(flags)):
        values[name] = value
        origins[name] = origin
    _refuse_two_addresses(origins)
    return Loaded(Config(**values), origins, [*_notes(given), *_exposed(file, values, origins)])


_Found = Iterator[tuple[str, Any, Origin]]


def _from_flags(flags: Mapping[str, Sequence[str]]) -> _Found:
    for name, texts in flags.items():
        origin = Origin("flag", flag_name(name))
        yield name, _parse(name, texts, origin), origin


def _from_environment(given: Mapping[str, str]) -> _Found:
    for name, (_, default, _) in _TABLE.items():
        variable = environment_name(name)
        text = given.get(variable)
        if text is None:
            if name == "secret" and "CHATWS_SECRET_OLD" in given:
                raise OperatorError("CHATWS_SECRET_OLD is set and CHATWS_SECRET is not")
            continue
        origin = Origin("environment", variable)
        if name == "secret":
            # as it is: a secret may contain commas and spaces
            old = given.get("CHATWS_SECRET_OLD")
            yield name, (text,) if old is None else (text, old), origin
        else:
            texts = re.split(r"[,\s]+", text.strip(", \t\n")) if isinstance(default, tuple) else [text]
            yield name, _parse(name, texts, origin), origin


def _from_file(file: str | None) -> _Found:
    if file is None:
        return
    try:
        document = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise OperatorError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise OperatorError(f"{file} is not UTF-8") from None
    except ValueError as error:
        raise OperatorError(f"{file}: {error}") from None
    seen: dict[str, str] = {}
    for where, name, value in _keys(document, file):
        if name in seen:
            raise OperatorError(f"{file} sets {name} twice, {seen[name]} and {where}")
        seen[name] = where
        origin = Origin("file", f"{name} in {file}")
        yield name, _accept(name, value, origin), origin


def _keys(document: Mapping[str, Any], file: str) -> Iterator[tuple[str, str, Any]]:
    """The file's settings, whether they stand at the top or in the table of their section."""
    for key, value in document.items():
        if key == "audience" and isinstance(value, dict):
            yield "in [audience]", key, value
        elif key in SECTIONS and isinstance(value, dict):
            for name, inner in value.items():
                setting = _known(name, file, [one for one in _TABLE if _TABLE[one][0].section == key])
                if setting.section != key:
                    raise OperatorError(f"{file}: {name} belongs in [{setting.section}], not in [{key}]")
                yield f"in [{key}]", name, inner
        else:
            if isinstance(value, dict) and key not in _TABLE:
                _unknown(f"[{key}]", f"{file}: no table is called [{key}]", key, [*SECTIONS, "audience"])
            _known(key, file, list(_TABLE))
            yield "at the top", key, value


def _known(name: str, file: str, near: list[str]) -> Setting:
    if name not in _TABLE:
        _unknown(name, f"{file}: no setting is called {name}", name, [*near, *_TABLE])
    setting = _TABLE[name][0]
    if setting.environment_only:
        raise OperatorError(f"{file}: {name} is taken from {environment_name(name)} only, or use {name}_file")
    return setting


def _unknown(what: str, sentence: str, name: str, names: Iterable[str]) -> NoReturn:
    raise OperatorError(sentence + suggestion(name, names))


def _refuse(name: str, value: object, origin: Origin) -> NoReturn:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    shown = "" if _TABLE[name][0].secret else f', not "{text if len(text) <= 80 else text[:80] + "…"}"'
    raise OperatorError(f"{origin} must be {expected(name)}{shown}")


def _parse(name: str, texts: Sequence[str], origin: Origin) -> Any:
    """A value from a flag or a variable: text, of which the last one counts unless the setting is a list."""
    default = _TABLE[name][1]
    if isinstance(default, tuple):
        return _accept(name, [text for text in texts if text], origin)
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
        _refuse(name, text, origin)
    return _accept(name, value, origin)


def _accept(name: str, value: Any, origin: Origin) -> Any:
    """The value in the field's own type, when it is within the setting's bounds."""
    setting, default, _ = _TABLE[name]
    if isinstance(default, bool):
        if not isinstance(value, bool):
            _refuse(name, value, origin)
        return value
    if isinstance(default, int | float):
        return _number(name, value, origin)
    if isinstance(default, tuple):
        return _texts(name, value, origin)
    if not isinstance(value, str):
        _refuse(name, value, origin)
    if not value and default:
        if not setting.zero:
            raise OperatorError(f"{origin} must not be empty")
        return value
    return str(Path(value).absolute()) if setting.path and value else value


def _number(name: str, value: Any, origin: Origin) -> Any:
    setting, default, _ = _TABLE[name]
    if isinstance(value, bool) or not isinstance(value, int if isinstance(default, int) else int | float):
        _refuse(name, value, origin)
    try:
        number = type(default)(value)
    except OverflowError:
        number = math.inf
    highest = math.inf if setting.highest is None else setting.highest
    if not 0 <= number <= highest or number == math.inf or (number == 0 and not setting.zero):
        _refuse(name, value, origin)
    return number


def _texts(name: str, value: Any, origin: Origin) -> tuple[str, ...]:
    setting = _TABLE[name][0]
    if name == "audience":
        return tuple(_audiences(value, origin))
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        _refuse(name, value, origin)
    return tuple(str(Path(one).absolute()) if setting.path else one for one in found)


def _audiences(value: Any, origin: Origin) -> Iterator[str]:
    """`{"order_paid": "everyone"}` or `["order_paid=everyone"]`."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list) and all(isinstance(one, str) for one in value):
        pairs = [(event, audience) for event, _, audience in (one.partition("=") for one in value)]
    else:
        pairs = [("", value)]
    for event, audience in pairs:
        if not _EVENT_NAME.fullmatch(event) or audience not in _AUDIENCES:
            choice = ", ".join(_AUDIENCES[:-1]) + f" or {_AUDIENCES[-1]}"
            raise OperatorError(f'{origin} must name an event and {choice}, not "{event}={audience}"')
        yield f"{event}={audience}"


def _refuse_two_addresses(origins: Mapping[str, Origin]) -> None:
    for whole, parts in (("listen", ("port", "interface")), ("push_listen", ("push_port",))):
        for part in parts:
            if origins[whole].kind != "default" and origins[part].kind != "default":
                raise OperatorError(f"{origins[whole]} and {origins[part]} exclude each other: leave one out")


def _notes(given: Mapping[str, str]) -> list[str]:
    variables = {environment_name(name) for name in _TABLE} | _OTHER_VARIABLES
    return [
        f"the environment's {variable} is no setting and is passed over{suggestion(variable, variables)}"
        for variable in sorted(given)
        if variable not in variables
    ]


def _exposed(file: str | None, values: Mapping[str, Any], origins: Mapping[str, Origin]) -> list[str]:
    """A warning when the file has a URL with a password in it, and not only its owner and group may read it."""
    if file is None or not Path(file).stat().st_mode & stat.S_IROTH:
        return []
    urls = [str(values[name]) for name in ("database", "broker", "broker_listen") if origins[name].kind == "file"]
    if not any(re.search(r"://[^/]*:[^/]*@", url) for url in urls):
        return []
    return [f"{file} holds a password and everybody on this machine can read it: chmod 640 {file}"]
