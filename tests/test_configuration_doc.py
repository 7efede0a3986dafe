"""docs/configuration.md and the code say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from chatws.config.loader import load
from chatws.config.names import environment_name, flag_name
from chatws.config.schema import SECTIONS, settings
from tests.configuration_tables import DOCUMENT, marks, renewed


def test_the_tables_are_those_of_the_code() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == renewed(text), "run: python -m tests.configuration_tables"


def test_every_setting_stands_in_the_document_under_each_of_its_names() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, (setting, _, _) in settings().items():
        assert f"| `{name}` |" in text
        assert f"`{environment_name(name)}`" in text
        assert setting.environment_only or f"`{flag_name(name)}`" in text


def test_every_section_has_its_heading_and_its_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for section, title in SECTIONS.items():
        assert f"\n## {title}\n" in text
        assert marks(section)[0] in text


def test_the_example_file_is_accepted(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert tomllib.loads(example)
    path = tmp_path / "chatws.toml"
    path.write_text(example)
    loaded = load({}, {}, str(path))
    assert loaded.config.audience == ("order_paid=everyone",)
    assert loaded.config.history_seconds == 1800.0
