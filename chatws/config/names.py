"""Names: of settings as flags and variables, former names, and variables that belong to other programs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches

from chatws.config.schema import settings

__all__ = [
    "RENAMED_SECTIONS",
    "describe_former_flag",
    "describe_former_key",
    "describe_unknown_variables",
    "environment_name",
    "flag_name",
    "suggestion",
    "without_service_variables",
]

_TABLE = settings()
#: Former names of settings, each with its new name.
_RENAMED = {
    "allowed_origin": "allowed_origins",
    "auth": "auth_methods",
    "drain_seconds": "drain_timeout",
    "durable": "sqlite_synchronous",
    "presence_lease": "presence_ttl",
    "rate": "message_rate",
    "rate_burst": "message_burst",
    "secret_file": "secret_files",
    "ticket_audience": "token_audience",
    "trusted_proxy": "trusted_proxies",
}
#: Former settings without a successor, each with the reason.
_REMOVED = {"push_queue": "clients repeat an unacknowledged push with its key"}
#: Former tables of the TOML file.
RENAMED_SECTIONS = {"door": "[http] and [limits]", "listen": "[server]", "log": "[history]"}
#: Variables that are not settings: two of the server, those of the PHP client, and those of the command `chatws`. One
#: environment may serve them all.
_OTHER_VARIABLES = frozenset(
    {"CHATWS_CONFIG", "CHATWS_SECRET_OLD", "CHATWS_PUSH_ADDRESS", "CHATWS_PUSH_SECRET", "CHATWS_PUSH_SECRET_FILE"}
    | {f"CHATWS_PUSH_{name}" for name in ("ANSWER_TIMEOUT_MS", "BUDGET_MS", "CONNECT_TIMEOUT_MS", "PAUSE_MS")}
    | {
        "CHATWS_PUSH_TLS_CA",
        "CHATWS_PUSH_TLS_NAME",
        "CHATWS_PUSHER_URL",
        "CHATWS_SPOOL_DIR",
        "CHATWS_SPOOL_MAX_FILES",
        "CHATWS_TOKEN",
    }
)
#: What Kubernetes sets in every pod for a Service named `chatws` or `chatws-…`
#: (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
_SERVICE_VARIABLE = re.compile(
    r"CHATWS_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
#: One of them has the name of a setting. Its value tells them apart: `CHATWS_PORT=tcp://10.0.0.1:8080`.
_SERVICE_URL_VARIABLE = re.compile(r"CHATWS_(\w+_)?PORT")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://.*")


def flag_name(name: str) -> str:
    """Return the flag of a setting: `send_buffer` → `--send-buffer`."""
    flag = _TABLE[name][0].flag if name in _TABLE else ""
    return flag or "--" + name.replace("_", "-")


def environment_name(name: str) -> str:
    """Return the variable of a setting: `send_buffer` → `CHATWS_SEND_BUFFER`."""
    return "CHATWS_" + name.upper()


def suggestion(wrong: str, names: Iterable[str]) -> str:
    """Return `; did you mean X?`, or nothing if none of `names` is similar."""
    similar = get_close_matches(wrong, list(names), 1, 0.6)
    return f"; did you mean {similar[0]}?" if similar else ""


def describe_former_key(key: str) -> str | None:
    """Return a sentence about a former key of the TOML file, or None for any other key."""
    if key == "durable":
        return 'durable is now sqlite_synchronous = "full"'
    return _describe(key, key, str)


def describe_former_flag(flag: str) -> str | None:
    """Return a sentence about a former flag, or None for any other flag."""
    if flag in ("--durable", "--no-durable"):
        return f"{flag} is now --sqlite-synchronous {'full' if flag == '--durable' else 'normal'}"
    return _describe(flag.removeprefix("--").replace("-", "_"), flag, flag_name)


def describe_unknown_variables(environment: Mapping[str, str]) -> str:
    """Return a sentence for each variable `CHATWS_…` that is not a setting; empty if there is none.

    :param environment: without the variables of Services (`without_service_variables`).
    """
    known = {environment_name(name) for name in _TABLE} | _OTHER_VARIABLES
    return ". ".join(_describe_variable(variable, known) for variable in sorted(environment) if variable not in known)


def without_service_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables that Kubernetes sets for Services."""
    return {
        name: value
        for name, value in environment.items()
        if not _SERVICE_VARIABLE.fullmatch(name)
        and not (_SERVICE_URL_VARIABLE.fullmatch(name) and _SERVICE_URL.fullmatch(value))
    }


def _describe_variable(variable: str, known: Iterable[str]) -> str:
    if variable == "CHATWS_DURABLE":
        return "CHATWS_DURABLE is now CHATWS_SQLITE_SYNCHRONOUS=full"
    former = _describe(variable.removeprefix("CHATWS_").lower(), variable, environment_name)
    return former or f"{variable} is not a setting{suggestion(variable, known) or ': remove it'}"


def _describe(former: str, written: str, spell: Callable[[str], str]) -> str | None:
    if former in _REMOVED:
        return f"{written} has been removed: {_REMOVED[former]}"
    return f"{written} is now {spell(_RENAMED[former])}" if former in _RENAMED else None
