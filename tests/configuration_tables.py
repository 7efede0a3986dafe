"""The tables of docs/configuration.md, made from the code. `python -m tests.configuration_tables` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chatws.config.names import environment_name, flag_name
from chatws.config.schema import SECTIONS, Setting, settings

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
HEAD = (
    "| name | flag | environment | value | default | 0, or empty | what it is |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def marks(section: str) -> tuple[str, str]:
    """The comments between which a section's table stands."""
    return f"<!-- settings: {section} -->", "<!-- end -->"


def value(setting: Setting, default: Any) -> str:
    """The kind of value, with its unit."""
    if isinstance(default, bool):
        return "switch"
    if setting.environment_only:
        return "text"
    if isinstance(default, tuple):
        return "list"
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    if setting.highest is not None:
        return f"0 … {setting.highest}"
    return setting.unit or ("number" if isinstance(default, int | float) else "text")


def shown(default: Any) -> str:
    """The default as it would stand in the file; empty when there is none."""
    if isinstance(default, bool):
        return "`true`" if default else "`false`"
    if isinstance(default, tuple):
        return ", ".join(f"`{item}`" for item in default)
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{default}`" if default != "" else ""


def row(name: str, setting: Setting, default: Any) -> str:
    flag = "" if setting.environment_only else f"`{flag_name(name)}`"
    if isinstance(default, bool):
        flag += f", `{flag_name(f'no_{name}')}`"
    cells = [
        f"`{name}`",
        flag,
        f"`{environment_name(name)}`",
        value(setting, default),
        shown(default),
        setting.zero_meaning,
        setting.help,
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(section: str) -> str:
    """All of a section's settings."""
    rows = [
        row(name, setting, default) for name, (setting, default, _) in settings().items() if setting.section == section
    ]
    return "\n".join([HEAD, *rows])


def renewed(text: str) -> str:
    """The document with new tables. The text around them stays."""
    for section in SECTIONS:
        begin, end = marks(section)
        before, result, rest = text.partition(begin)
        assert result, f"docs/configuration.md has no place for the settings of [{section}]: {begin}"
        after = rest.partition(end)[2]
        text = f"{before}{begin}\n{table(section)}\n{end}{after}"
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(renewed(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
