"""The alert rules of deploy/prometheus, their unit tests by promtool, and the documents that explain each alert."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.requirements import find_program, needs

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "deploy/prometheus/alerts.yml"
UNIT_TESTS = ROOT / "deploy/prometheus/alerts_test.yml"
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()


def rules() -> dict[str, dict[str, Any]]:
    """Alert → its rule."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def promtool(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = find_program("prometheus")
    assert program
    return subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("alert", rules())
def test_alert_is_explained_in_the_documents(alert: str) -> None:
    rule = rules()[alert]
    document, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert document == "docs/runbook.md"
    headings = {title.lower().replace(" ", "-"): title for title in re.findall("^## (.+)$", RUNBOOK, re.MULTILINE)}
    _, section = RUNBOOK.split(f"\n## {headings[anchor]}\n")
    assert f"`{alert}`" in section.split("\n## ")[0]
    _, table = OPERATIONS.split("\n## Alerts\n")
    assert f"`{alert}`" in table.split("\n## ")[0]
    assert rule["labels"]["severity"] in {"page", "ticket"}


def test_documents_name_no_other_alert() -> None:
    assert set(re.findall(r"`(Chatws[A-Z]\w+)`", RUNBOOK + OPERATIONS)) == set(rules())


@pytest.mark.parametrize("alert", rules())
def test_series_of_alert_are_documented(alert: str) -> None:
    names = re.findall(r"\bchatws_\w+", rules()[alert]["expr"]) or re.findall(
        r"\b(?:up|process_\w+)\b", rules()[alert]["expr"]
    )
    assert names
    for name in names:
        assert re.sub("_bucket$", "", name) in OPERATIONS or name.startswith("process_"), name


@needs("prometheus")
def test_promtool_accepts_the_rules_and_their_unit_tests() -> None:
    checked = promtool("check", "rules", "alerts.yml", cwd=RULES.parent)
    assert (checked.returncode, f"{len(rules())} rules found" in checked.stdout) == (0, True), checked.stdout
    tested = promtool("test", "rules", "alerts_test.yml", cwd=RULES.parent)
    assert tested.returncode == 0, tested.stdout


@needs("prometheus")
@pytest.mark.parametrize("alert", rules())
def test_unit_tests_fail_without_the_alert(alert: str, tmp_path: Path) -> None:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    group["rules"] = [rule for rule in group["rules"] if rule["alert"] != alert]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump({"groups": [group]}))
    (tmp_path / "alerts_test.yml").write_text(UNIT_TESTS.read_text())
    tested = promtool("test", "rules", "alerts_test.yml", cwd=tmp_path)
    assert tested.returncode == 1
    assert alert in tested.stderr + tested.stdout


@pytest.mark.parametrize("alert", rules())
def test_quiet_day_has_the_series_of_the_alert(alert: str) -> None:
    quiet = yaml.safe_load(UNIT_TESTS.read_text())["tests"][0]["input_series"]
    series = {re.split("[{]", entry["series"])[0] for entry in quiet}
    names = set(re.findall(r"\b(?:chatws_\w+|process_\w+|up)\b", rules()[alert]["expr"]))
    assert names
    assert names <= series
