"""A running server as its operator sees it: metrics, health, logs, SIGHUP."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Server, twistd_command
from tests.e2e.process import clean_environment, free_port
from tests.e2e.wire import Browser, until
from tests.requirements import find_program, needs
from tests.variants import others_long

Start = Callable[..., Server]

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "chatws.json"


def fetch(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path)
    response = connection.getresponse()
    result = response.status, response.read().decode()
    connection.close()
    return result


def samples(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    status, text = fetch(port, "/metrics")
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(port: int, name: str, **labels: str) -> float:
    return samples(port)[name, frozenset(labels.items())]


def write_secret(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


# --- metrics --------------------------------------------------------------------------------------------------------


def test_events_and_connections_are_counted_in_metrics(chatws_server: Start) -> None:
    metrics = free_port()
    server = chatws_server("--metrics-port", str(metrics), "--presence-grace", "0")
    first, two = server.agent(1, 456), server.agent(2, 456, 457)
    with server.backend() as backend:
        backend.push("new_message", {"conversation_id": 456, "message": {}})
        backend.request({"event": "no such audience", "data": {}})
    first.expect("new_message")
    two.expect("new_message")
    first.send({"type": "nonsense"})
    first.expect("error")
    assert value(metrics, "chatws_connections") == 2
    assert value(metrics, "chatws_connections_authenticated") == 2
    assert value(metrics, "chatws_users") == 2
    assert value(metrics, "chatws_subscriptions") == 3
    assert value(metrics, "chatws_authentications_total", method="trust", result="accepted", proved="no") == 2
    assert value(metrics, "chatws_events_total", event="new_message") == 1
    assert value(metrics, "chatws_deliveries_total", event="new_message") == 2
    assert value(metrics, "chatws_errors_total", code="unknown_type") == 1
    assert value(metrics, "chatws_push_lines_total") == 2
    assert value(metrics, "chatws_push_published_total") == 1
    assert value(metrics, "chatws_push_errors_total", code="bad_message") == 1
    assert value(metrics, "chatws_history_events") == value(metrics, "chatws_history_last_offset") == 1
    until(lambda: value(metrics, "chatws_event_loop_lag_seconds_count") > 0, "the lag to be measured")
    two.close()
    until(lambda: value(metrics, "chatws_connections") == 1, "the second agent to be gone")
    assert value(metrics, "chatws_subscriptions") == 1


@needs("prometheus")
@pytest.mark.parametrize("more", [(), ("--workers", "2")], ids=["stand-alone", "workers"])
def test_promtool_finds_no_problem_in_the_metrics(more: tuple[str, ...], chatws_server: Start) -> None:
    metrics = free_port()
    server = chatws_server("--metrics-port", str(metrics), *more)
    with server.backend() as backend:
        backend.push("new_message", {"conversation_id": 456, "message": {}})
    page = fetch(metrics, "/metrics")[1]
    assert "chatws_events_total" in page
    assert promtool(page) == (0, "")
    status, problems = promtool(page.replace("chatws_internal_errors_total", "chatws_internal_errors"))
    assert status == 3
    assert 'chatws_internal_errors counter metrics should have "_total" suffix' in problems


def promtool(page: str) -> tuple[int, str]:
    """The exit status of `promtool check metrics`, and its complaints."""
    program = find_program("prometheus")
    assert program
    done = subprocess.run([program, "check", "metrics"], input=page, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_metrics_have_a_port_of_their_own_and_none_by_default(chatws_server: Start) -> None:
    metrics = free_port()
    server = chatws_server("--metrics-port", str(metrics))
    assert fetch(server.port, "/metrics")[0] == 404
    assert fetch(metrics, "/assets/js/websocket-client.js")[0] == 404
    assert fetch(metrics, "/healthz") == (200, "ok\n")
    assert "metrics are on 127.0.0.1:" in server.log
    assert "metrics are on" not in chatws_server().log


@pytest.mark.parametrize("more", others_long([[], ["--workers", "2"]]), ids=["stand-alone", "workers"])
def test_metrics_for_other_hosts_need_the_bearer_token(more: list[str], chatws_server: Start, tmp_path: Path) -> None:
    port = free_port()
    secret = write_secret(tmp_path / "metrics_secret", "open sesame")
    chatws_server(
        "--metrics-listen", f"tcp:{port}", "--metrics-secret-file", str(secret), "--node-name", "web1", *more
    )  # fmt: skip

    def status(path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", path, headers=headers)
        found = connection.getresponse().status
        connection.close()
        return found

    for wrong in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer open"}, {"Authorization": "open sesame"}):
        assert status("/metrics", **wrong) == 401
    assert status("/metrics", Authorization="Bearer open sesame", Host="chatws-1:9180") == 200
    assert status("/healthz") == 200
    until(lambda: status("/readyz") == 200, "the server to be ready")


def test_the_series_name_the_node_and_a_peer_cannot_add_labels(chatws_server: Start) -> None:
    metrics = free_port()
    server = chatws_server("--metrics-port", str(metrics), "--node-name", "web1")
    with server.agent(1, 456) as browser, server.backend() as backend:
        event_id = backend.push("new_message", {"conversation_id": 456})["event_id"]
        for number in range(300):
            backend.send({"event": f"order.{number}", "data": {}, "to": "everyone"})
            backend.send({"op": f"op{number}", "event": "\u00e9"})
        for number in range(20):
            browser.send({"type": f"type{number}"})
            fetch(server.port, f"/path{number}")
        backend.half_close()
        assert backend.read_to_end().count(b"\n") >= 300
    found = samples(metrics)
    [info] = [dict(labels) for name, labels in found if name == "chatws_info"]
    assert info["node"] == "web1"
    assert ("chatws_history_info", frozenset({("epoch", event_id.partition(":")[0])})) in found
    by_name: dict[str, int] = {}
    for name, _ in found:
        by_name[name] = by_name.get(name, 0) + 1
    assert by_name.pop("chatws_events_total") == by_name.pop("chatws_deliveries_total") == 101
    assert max(count for name, count in by_name.items() if not name.endswith("_bucket")) < 30


def test_every_dashboard_query_matches_a_metric(chatws_server: Start, tmp_path: Path) -> None:
    metrics = free_port()
    (tmp_path / "shop.db").touch()
    server = chatws_server(
        "--metrics-port", str(metrics), "--database", f"sqlite:///{tmp_path}/shop.db", "--auth", "trust"
    )
    server.agent(1)
    exposed = {
        (sample.name, label)
        for family in text_string_to_metric_families(fetch(metrics, "/metrics")[1])
        for sample in [*family.samples]
        for label in ["", *sample.labels]
    } | {
        # a counter by label has no sample before the first of its kind
        (f"{family.name}_total", label)
        for family in text_string_to_metric_families(fetch(metrics, "/metrics")[1])
        if family.type == "counter"
        for label in ["", "code", "event", "method", "result", "reason", "proved"]
    }
    names = {name for name, _ in exposed}
    expressions = list(_expressions(json.loads(DASHBOARD.read_text())))
    assert len(expressions) >= 15
    for expression in expressions:
        asked = re.findall(r"\b(?:chatws|process)_\w+", expression)
        assert asked, expression
        for name in asked:
            assert name in names, f"{name}, in {expression}"
        for labels in re.findall(r"\bby ?\(([^)]*)\)", expression):
            for label in re.split(r", *", labels):
                assert label in ("instance", "le") or any((name, label) in exposed for name in asked), expression


def _expressions(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node[key] for key in ("expr", "query") if isinstance(node.get(key), str) and "_" in node[key]]
        return own + [expression for child in node.values() for expression in _expressions(child)]
    return [expression for child in node for expression in _expressions(child)] if isinstance(node, list) else []


# --- health ---------------------------------------------------------------------------------------------------------


def test_server_without_its_database_is_alive_and_not_ready(chatws_server: Start, tmp_path: Path) -> None:
    metrics = free_port()
    shop = tmp_path / "shop.db"
    server = chatws_server(
        "--metrics-port", str(metrics), "--database", f"sqlite:///{shop}", "--auth", "trust", "--broker",
        f"sqlite:///{tmp_path}/log.db",
    )  # fmt: skip
    for port in (server.port, metrics):
        assert fetch(port, "/healthz") == (200, "ok\n")
        status, text = fetch(port, "/readyz")
        assert status == 503
        assert text.startswith("database: ")
        assert len(text.splitlines()) == 1
    assert value(metrics, "chatws_database_up") == 0
    shop.touch()
    until(lambda: fetch(server.port, "/readyz") == (200, "ready\n"), "the server to be ready")
    assert value(metrics, "chatws_database_up") == 1
    assert value(metrics, "chatws_database_errors_total", reason="unavailable") >= 1
    assert value(metrics, "chatws_database_query_duration_seconds_count", kind="query") >= 2


# --- logs -----------------------------------------------------------------------------------------------------------


def test_json_log_lines_are_objects_with_user_and_address(chatws_server: Start) -> None:
    server = chatws_server(
        "--log-format", "json", "--message-rate", "1", "--message-burst", "1", CHATWS_SECRET="s" * 32
    )
    stranger = server.browser(headers={"X-Forwarded-For": "203.0.113.9"})
    stranger.send({"type": "auth", "user_id": "{evil}\n", "token": "no.good.token"})
    assert stranger.expect_close()[0] == 4901
    server.expect_log("authentication failed")
    server.stop()
    lines = [json.loads(line) for line in server.log.splitlines()]
    (refused,) = [line for line in lines if "authentication failed" in line["message"]]
    assert re.fullmatch(r"[0-9a-f]{8}-1", refused["connection_id"])
    assert refused["user"] == "{evil}?"
    assert refused["address"] == "203.0.113.9"
    assert refused["level"] == "info"
    assert refused["logger"] == "chatws.chat.connection_log"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", refused["time"])
    assert "s" * 32 not in server.log


@pytest.mark.parametrize("log_format", others_long(["json", "text"]))
def test_a_daemon_reopens_its_log_file_on_sigusr1(log_format: str, tmp_path: Path) -> None:
    port, push_port = free_port(), free_port()
    words = ["--pidfile", "pid", "--logfile", "chatws.log", "chatws", "--log-format", log_format, "--port", str(port)]
    subprocess.run(
        [*twistd_command(), *words, "--push-port", str(push_port)],
        cwd=tmp_path, env=clean_environment(), check=True, timeout=60,
    )  # fmt: skip
    log = tmp_path / "chatws.log"
    until(lambda: log.exists() and "listening for browsers" in log.read_text(), "the daemon to listen")
    pid = int((tmp_path / "pid").read_text())
    log.rename(tmp_path / "chatws.log.1")
    os.kill(pid, signal.SIGUSR1)
    until(log.exists, "the log to be reopened")
    os.kill(pid, signal.SIGTERM)
    until(lambda: not (tmp_path / "pid").exists(), "the daemon to end")
    assert sorted(path.name for path in tmp_path.glob("chatws.log*")) == ["chatws.log", "chatws.log.1"]
    assert "Server Shut Down." in log.read_text()
    for item in (log, tmp_path / "chatws.log.1") if log_format == "json" else ():
        lines = [json.loads(line) for line in item.read_text().splitlines()]
        assert lines
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)


def connection_id(browser: Browser) -> str:
    """The id of the connection, as the page has it."""
    return str(browser.received[0]["data"]["connection_id"])


def test_rate_limiting_is_logged_with_the_id_that_the_page_has(chatws_server: Start) -> None:
    server = chatws_server("--message-rate", "0.01", "--message-burst", "2")
    browser = server.agent(7)
    browser.send({"type": "presence"})
    browser.send({"type": "presence"})
    browser.expect("error", code="rate_limited")
    server.expect_log(f"connection {connection_id(browser)}, user 7, from 127.0.0.1: rate limited")


def test_a_connection_that_ends_abnormally_is_written_down_and_a_banned_user_too(chatws_server: Start) -> None:
    server = chatws_server()
    broken, banned = server.agent(7), server.agent(8)
    broken.socket.socket.sendall(b"\x81\x02hi")  # not masked
    server.expect_log(f"connection {connection_id(broken)}, user 7, from 127.0.0.1: ended abnormally: protocol error, ")
    with server.backend() as backend:
        backend.request({"op": "disconnect", "user_id": 8, "ban": True, "reason": "{0}\nlogged out"})
    assert banned.expect_close()[0] == 4903
    line = f"connection {connection_id(banned)}, user 8, from 127.0.0.1: closed with 4903: "
    server.expect_log(line + "{0}?logged out")


# --- SIGHUP ---------------------------------------------------------------------------------------------------------


def make_token(secret: str, user_id: int) -> str:
    return jwt.encode({"sub": str(user_id), "exp": 4102444800}, secret, algorithm="HS256")


def test_sighup_changes_secrets_and_limits_and_keeps_connections(chatws_server: Start, tmp_path: Path) -> None:
    old, new = "o" * 32, "n" * 32
    write_secret(tmp_path / "token", old)
    write_secret(tmp_path / "push", "first")
    settings = tmp_path / "chatws.toml"
    settings.write_text(
        f'secret_files = "{tmp_path}/token"\npush_secret_file = "{tmp_path}/push"\nmax_subscriptions = 1\n'
    )
    server = chatws_server("--config", str(settings))
    agent = server.browser()
    agent.auth(1, token=make_token(old, 1))
    agent.subscribe(456)
    agent.send({"type": "subscribe", "conversation_id": 457})
    agent.expect("error", code="too_many_subscriptions")

    write_secret(tmp_path / "token", new)
    write_secret(tmp_path / "push", "second")
    settings.write_text(
        f'secret_files = "{tmp_path}/token"\npush_secret_file = "{tmp_path}/push"\nmax_subscriptions = 2\n'
        'allowed_origins = ["https://shop.example"]\nping_interval = 5\n'
    )
    os.kill(server.pid, signal.SIGHUP)
    server.expect_log("configuration: ping_interval has changed: this needs a restart")

    agent.subscribe(457)  # the same connection, under the new limit
    late = server.browser(origin="https://shop.example")
    late.auth(2, token=make_token(new, 2))
    outdated = server.browser()
    outdated.send({"type": "auth", "token": make_token(old, 3)})
    assert outdated.expect_close()[0] == 4901
    with server.backend() as backend:
        assert backend.request({"op": "auth", "secret": "second"})["ok"]
    assert "configuration: max_subscriptions: 1 → 2" in server.log
    assert "configuration: allowed_origins: [] → [https://shop.example]" in server.log
    assert "configuration: the token secret has changed: 1 is valid now" in server.log
    assert "configuration: the push secret has changed" in server.log
    for secret in (old, new, "second"):
        assert secret not in server.log


def test_sighup_with_a_wrong_configuration_changes_nothing(chatws_server: Start, tmp_path: Path) -> None:
    settings = tmp_path / "chatws.toml"
    settings.write_text("max_subscriptions = 1\n")
    server = chatws_server("--config", str(settings))
    agent = server.agent(1, 456)
    settings.write_text('max_subscriptions = 2\ntrusted_proxies = ["nowhere"]\n')
    os.kill(server.pid, signal.SIGHUP)
    server.expect_log("the new configuration is rejected, the old one stays: --trusted-proxy")
    agent.send({"type": "subscribe", "conversation_id": 457})
    agent.expect("error", code="too_many_subscriptions")

    settings.write_text("max_subscriptions = ")
    os.kill(server.pid, signal.SIGHUP)
    until(lambda: server.log.count("is rejected, the old one stays") == 2, "the second refusal")
    settings.write_text("max_subscriptions = 1\n")
    os.kill(server.pid, signal.SIGHUP)
    server.expect_log("nothing has changed")
    agent.settle()


@pytest.mark.long
def test_sighup_leaves_the_log_locked_against_a_second_server(chatws_server: Start, tmp_path: Path) -> None:
    broker = f"sqlite:///{tmp_path}/log.db"
    server = chatws_server("--broker", broker)
    os.kill(server.pid, signal.SIGHUP)
    server.expect_log("nothing has changed")
    words = ["-n", "--pidfile=", "chatws", "--port", str(free_port()), "--push-port", str(free_port())]
    second = subprocess.run(
        [*twistd_command(), *words, "--broker", broker],
        cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert second.returncode == 1, second.stdout
    assert "log.db" in second.stderr


def test_sighup_reloads_in_a_terminal_and_ends_the_server_when_the_terminal_has_gone(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    words = ["-n", "--pidfile=", "chatws", "--port", str(free_port()), "--push-port", str(free_port())]
    process = subprocess.Popen(
        ["setsid", "--ctty", *twistd_command(), *words, "--drain-timeout", "0"],
        cwd=tmp_path, env=clean_environment(), stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    output = b""
    try:
        while b"listening for browsers" not in output:
            output += os.read(ours, 4096)
        process.send_signal(signal.SIGHUP)
        while b"nothing has changed" not in output:
            output += os.read(ours, 4096)
        os.close(ours)  # the kernel sends SIGHUP
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
