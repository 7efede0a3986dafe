"""The examples of docs/proxies.md and the proxies' files of deploy/: they parse, and their idle limits suffice."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from chatws.config.schema import Config
from tests.requirements import find_program, needs

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/proxies.md").read_text()


def example(heading: str, language: str) -> str:
    """The first example of a section."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[0])


def values(heading: str) -> dict[str, Any]:
    """The first YAML example of a section."""
    found = yaml.safe_load(example(heading, "yaml"))
    assert isinstance(found, dict)
    return found


def idle_limits() -> dict[str, list[float]]:
    """Each proxy's idle limits in seconds, as its example sets them."""
    nginx = (ROOT / "deploy/nginx/chatws.conf").read_text()
    haproxy = (ROOT / "deploy/haproxy/chatws.cfg").read_text()
    ingress = values("Kubernetes")["metadata"]["annotations"]
    alb = values("AWS Application Load Balancer")["alb.ingress.kubernetes.io/load-balancer-attributes"]
    limits = {
        "nginx": re.findall(r"^    proxy_read_timeout (\d+)s;", nginx, re.MULTILINE),
        "HAProxy": re.findall(r"^    timeout tunnel (\d+)s$", haproxy, re.MULTILINE),
        "Apache": re.findall(r" timeout=(\d+)", example("Apache", "apache")),
        "ingress": [ingress[f"nginx.ingress.kubernetes.io/proxy-{name}-timeout"] for name in ("read", "send")],
        "ALB": re.findall(r"^idle_timeout\.timeout_seconds=(\d+)$", alb),
    }
    return {name: [float(limit) for limit in found] for name, found in limits.items()}


@pytest.mark.parametrize(("name", "limits"), idle_limits().items())
def test_each_idle_limit_allows_more_than_one_lost_ping(name: str, limits: list[float]) -> None:
    assert limits, name
    assert min(limits) >= 2 * Config().ping_interval + Config().ping_timeout


def test_examples_with_yaml_check_the_nodes_with_healthz() -> None:
    service = values("Traefik")["http"]["services"]["chatws"]["loadBalancer"]
    assert service["healthCheck"]["path"] == "/healthz"
    assert len(service["servers"]) == 2
    assert service["serversTransport"] in values("Traefik")["http"]["serversTransports"]
    assert values("AWS Application Load Balancer")["alb.ingress.kubernetes.io/healthcheck-path"] == "/healthz"
    (rule,) = values("Kubernetes")["spec"]["rules"]
    assert rule["http"]["paths"][0]["backend"]["service"]["port"]["number"] == Config().port
    probes = yaml.safe_load(re.findall(r"^```yaml\n(readinessProbe.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0])
    assert {probes[name]["httpGet"]["path"] for name in ("readinessProbe", "livenessProbe")} == {"/healthz"}
    assert probes["terminationGracePeriodSeconds"] >= 2 * Config().drain_timeout + 10


@needs("apache2")
def test_apache_accepts_its_example(tmp_path: Path) -> None:
    program = find_program("apache2")
    assert program is not None
    text = re.search(r"with the modules (.*?)\. The event", PAGE, re.DOTALL)
    assert text is not None
    modules = ["mpm_event", "authz_core", *re.findall(r"`(\w+)`", text[1])]
    built_in = subprocess.run([program, "-l"], capture_output=True, text=True, timeout=60, check=True).stdout
    loaded = [name for name in modules if f"mod_{name}.c" not in built_in]
    lines = [f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in loaded]
    lines += ["ServerName shop.example", "Listen 127.0.0.1:8099", f"PidFile {tmp_path}/pid", f"ErrorLog {tmp_path}/log"]
    (tmp_path / "apache.conf").write_text("\n".join(lines) + "\n" + example("Apache", "apache"))
    command = [program, "-t", "-f", str(tmp_path / "apache.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "Syntax OK"
