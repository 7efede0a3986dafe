"""Where settings come from, which of them wins, and what is said of wrong ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import chatws
from chatws.config.loader import LoadedConfig, ValueSource, expected, load
from chatws.config.names import (
    describe_former_flag,
    describe_unknown_variables,
    environment_name,
    without_service_variables,
)
from chatws.config.schema import SECTIONS, Config, settings
from chatws.errors import ConfigError


def configured(
    flags: Mapping[str, Sequence[str]] | None = None,
    file: str | None = None,
    tmp_path: Path | None = None,
    **environment: str,
) -> LoadedConfig:
    path = None
    if file is not None:
        assert tmp_path is not None
        path = str(tmp_path / "chatws.toml")
        Path(path).write_text(file)
    return load(flags or {}, environment, path)


def refused(*args: object, **environment: object) -> str:
    with pytest.raises(ConfigError) as caught:
        configured(*args, **environment)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_load_without_sources_returns_the_defaults() -> None:
    loaded = configured()
    assert loaded.config == Config()
    assert set(loaded.sources.values()) == {ValueSource("default")}
    assert loaded.warnings == []


def test_every_setting_has_a_section_and_a_help_text() -> None:
    for name, (setting, default, _) in settings().items():
        assert setting.section in SECTIONS, name
        assert setting.help, name
        assert isinstance(default, bool | int | float | str | tuple), name


# --- which one wins -------------------------------------------------------------------------------------------------


def test_flags_go_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    loaded = configured(
        {"port": ["1"]}, "port = 3\npush_port = 3\nmessage_rate = 3", tmp_path, CHATWS_PORT="2", CHATWS_PUSH_PORT="2"
    )
    assert (loaded.config.port, loaded.config.push_port, loaded.config.message_rate) == (1, 2, 3.0)
    assert [str(loaded.sources[name]) for name in ("port", "push_port", "message_rate", "demo")] == [
        "--port",
        "CHATWS_PUSH_PORT",
        f"message_rate in {tmp_path}/chatws.toml",
        "default",
    ]


def test_a_list_is_replaced_and_never_added_to(tmp_path: Path) -> None:
    loaded = configured({"auth_methods": ["token", "database"]}, 'auth_methods = ["trust"]', tmp_path)
    assert loaded.config.auth_methods == ("token", "database")


def test_the_last_of_two_equal_flags_counts() -> None:
    assert configured({"port": ["1", "2"], "demo": ["true", "false"]}).config == Config(port=2, demo=False)


def test_a_flag_overrides_true_in_the_file(tmp_path: Path) -> None:
    assert not configured({"compression": ["false"]}, "compression = true", tmp_path).config.compression


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert configured(CHATWS_PORT="", CHATWS_DATABASE="").config == Config()


def test_an_empty_flag_empties_a_list_and_a_text_that_may_be_empty() -> None:
    config = configured({"trusted_proxies": [""], "conversation_query": [""]}).config
    assert (config.trusted_proxies, config.conversation_query) == ((), "")


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("port = 5")
    assert configured(CHATWS_CONFIG=str(tmp_path / "other.toml")).config.port == 5


# --- the environment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["token,database", "token database", " token, database ", "token\n database,"])
def test_a_list_in_the_environment_is_parted_by_commas_or_spaces(text: str) -> None:
    assert configured(CHATWS_AUTH_METHODS=text).config.auth_methods == ("token", "database")


@pytest.mark.parametrize(("text", "value"), [("1", True), ("yes", True), ("TRUE", True), ("off", False), ("0", False)])
def test_a_switch_in_the_environment_takes_the_usual_words(text: str, value: bool) -> None:
    assert configured(CHATWS_DEMO=text).config.demo is value


def test_a_secret_is_taken_as_it_is_with_its_commas_and_spaces() -> None:
    assert configured(CHATWS_SECRET=" a, b ", CHATWS_SECRET_OLD="old").config.secret == (" a, b ", "old")


def test_an_old_secret_alone_is_refused() -> None:
    assert refused(CHATWS_SECRET_OLD="x") == "CHATWS_SECRET_OLD is set and CHATWS_SECRET is not"


@pytest.mark.parametrize(
    ("text", "mode", "notes"),
    [
        ('broker = "postgresql://u:secret@db/shop"', 0o644, 1),
        ('broker = "postgresql://u:secret@db/shop"', 0o640, 0),
        ('broker = "postgresql://u@db/shop"', 0o644, 0),
        ("broker = 'memory'", 0o644, 0),
    ],
)
def test_a_password_in_a_world_readable_file_is_a_warning(tmp_path: Path, text: str, mode: int, notes: int) -> None:
    file = tmp_path / "chatws.toml"
    file.write_text(f"[history]\n{text}\n")
    file.chmod(mode)
    result = load({}, {}, str(file)).warnings
    assert (
        list(result)
        == [f"{file} holds a password and every user of this machine can read it: chmod 640 {file}"] * notes
    )


def test_an_unknown_variable_is_an_error_with_the_nearest_name() -> None:
    assert refused(CHATWS_PROT="1") == "CHATWS_PROT is not a setting; did you mean CHATWS_PORT?"
    assert refused(CHATWS_ZZZZZZ="1") == "CHATWS_ZZZZZZ is not a setting: remove it"


def test_several_unknown_variables_are_reported_together() -> None:
    assert refused(CHATWS_PROT="1", CHATWS_AUTH="trust") == (
        "CHATWS_AUTH is now CHATWS_AUTH_METHODS. CHATWS_PROT is not a setting; did you mean CHATWS_PORT?"
    )


def test_an_unknown_empty_variable_counts_as_unset() -> None:
    assert configured(CHATWS_PROT="", CHATWS_AUTH="").config == Config()


#: Former names, in the file, with a value, and their successors in the file, as flags and as variables.
FORMER = [
    ("auth", '["trust"]', "auth_methods", "--auth", "CHATWS_AUTH_METHODS"),
    ("allowed_origin", '["null"]', "allowed_origins", "--allowed-origin", "CHATWS_ALLOWED_ORIGINS"),
    ("trusted_proxy", '["::1"]', "trusted_proxies", "--trusted-proxy", "CHATWS_TRUSTED_PROXIES"),
    ("secret_file", '["/x"]', "secret_files", "--secret-file", "CHATWS_SECRET_FILES"),
    ("ticket_audience", '"x"', "token_audience", "--token-audience", "CHATWS_TOKEN_AUDIENCE"),
    ("presence_lease", "15", "presence_ttl", "--presence-ttl", "CHATWS_PRESENCE_TTL"),
    ("drain_seconds", "5", "drain_timeout", "--drain-timeout", "CHATWS_DRAIN_TIMEOUT"),
    ("rate", "5", "message_rate", "--message-rate", "CHATWS_MESSAGE_RATE"),
    ("rate_burst", "5", "message_burst", "--message-burst", "CHATWS_MESSAGE_BURST"),
]


@pytest.mark.parametrize(("former", "value", "name", "flag", "variable"), FORMER)
def test_a_former_name_is_an_error_with_the_new_name(
    former: str, value: str, name: str, flag: str, variable: str, tmp_path: Path
) -> None:
    path = tmp_path / "chatws.toml"
    assert refused({}, f"{former} = {value}", tmp_path) == f"{path}: {former} is now {name}"
    section = settings()[name][0].section
    assert refused({}, f"[{section}]\n{former} = {value}", tmp_path) == f"{path}: {former} is now {name}"
    assert refused(**{environment_name(former): "1"}) == f"{environment_name(former)} is now {variable}"
    written = "--" + former.replace("_", "-")
    if written != flag:  # the flags of lists keep their names
        assert describe_former_flag(written) == f"{written} is now {flag}"


def test_durable_is_an_error_with_the_new_name_and_value(tmp_path: Path) -> None:
    line = f'{tmp_path}/chatws.toml: durable is now sqlite_synchronous = "full"'
    assert refused({}, "durable = true", tmp_path) == line
    assert refused({}, "[history]\ndurable = true", tmp_path) == line
    assert refused(CHATWS_DURABLE="1") == "CHATWS_DURABLE is now CHATWS_SQLITE_SYNCHRONOUS=full"
    assert describe_former_flag("--durable") == "--durable is now --sqlite-synchronous full"
    assert describe_former_flag("--no-durable") == "--no-durable is now --sqlite-synchronous normal"


def test_push_queue_is_an_error_that_names_its_removal(tmp_path: Path) -> None:
    end = " has been removed: clients repeat an unacknowledged push with its key"
    assert refused({}, "[push]\npush_queue = 5", tmp_path) == f"{tmp_path}/chatws.toml: push_queue{end}"
    assert refused(CHATWS_PUSH_QUEUE="5") == f"CHATWS_PUSH_QUEUE{end}"
    assert describe_former_flag("--push-queue") == f"--push-queue{end}"


@pytest.mark.parametrize(
    ("former", "names"), [("door", "[http] and [limits]"), ("log", "[history]"), ("listen", "[server]")]
)
def test_a_former_table_is_an_error_with_the_new_name(former: str, names: str, tmp_path: Path) -> None:
    line = f"{tmp_path}/chatws.toml: the table [{former}] is now {names}"
    assert refused({}, f"[{former}]\nport = 1", tmp_path) == line


#: From a pod beside Services named chatws, chatws-push and chatws-metrics.
SERVICES = {
    "CHATWS_SERVICE_HOST": "10.0.0.7",
    "CHATWS_SERVICE_PORT": "8080",
    "CHATWS_SERVICE_PORT_HTTP": "8080",
    "CHATWS_PORT": "tcp://10.0.0.7:8080",
    "CHATWS_PORT_8080_TCP": "tcp://10.0.0.7:8080",
    "CHATWS_PORT_8080_TCP_PROTO": "tcp",
    "CHATWS_PORT_8080_TCP_PORT": "8080",
    "CHATWS_PORT_8080_TCP_ADDR": "10.0.0.7",
    "CHATWS_PUSH_SERVICE_HOST": "10.0.0.8",
    "CHATWS_PUSH_PORT": "tcp://10.0.0.8:8081",
    "CHATWS_PUSH_PORT_8081_TCP_ADDR": "10.0.0.8",
    "CHATWS_METRICS_PORT": "tcp://10.0.0.9:9100",
}


def test_the_variables_of_kubernetes_services_are_ignored(tmp_path: Path) -> None:
    assert configured(**SERVICES) == configured()
    loaded = configured({}, "port = 9000\npush_port = 9001\nmetrics_port = 9002", tmp_path, **SERVICES)
    assert loaded.config == Config(port=9000, push_port=9001, metrics_port=9002)


def test_a_number_in_a_variable_of_a_services_name_is_the_setting() -> None:
    assert configured(**{**SERVICES, "CHATWS_PORT": "9000"}).config.port == 9000
    assert refused(**{**SERVICES, "CHATWS_PORT": "http://10.0.0.7"}).startswith("CHATWS_PORT must be a whole number")


def test_no_setting_has_the_form_of_a_services_variable() -> None:
    variables = {environment_name(name): "1" for name in settings()}
    assert without_service_variables(variables) == variables


def test_the_variables_of_the_php_client_are_accepted() -> None:
    source = (Path(chatws.__file__).parents[1] / "php" / "src" / "Config.php").read_text(encoding="utf-8")
    variables = re.findall(r"'(CHATWS_\w+)' =>", source)
    assert {"CHATWS_PUSH_ADDRESS", "CHATWS_SPOOL_DIR", "CHATWS_SECRET_FILES"} <= set(variables)
    assert describe_unknown_variables(dict.fromkeys(variables, "1")) == ""


def test_the_variables_of_the_command_are_accepted() -> None:
    files = (Path(chatws.__file__).parent / "cli").glob("*.py")
    variables = {name for file in files for name in re.findall(r"CHATWS_\w*[A-Z]", file.read_text(encoding="utf-8"))}
    assert {"CHATWS_TOKEN", "CHATWS_PUSH_SECRET", "CHATWS_TOKEN_AUDIENCE"} <= variables
    assert describe_unknown_variables(dict.fromkeys(variables, "1")) == ""


def test_a_secret_is_not_shown_in_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"database": ["x"]}, {"CHATWS_DATABASE_POOL": "many"}, None)
    assert str(caught.value) == 'CHATWS_DATABASE_POOL must be a whole number of connections above 0, not "many"'


# --- the file -------------------------------------------------------------------------------------------------------


def test_settings_in_the_table_of_their_section_are_accepted(tmp_path: Path) -> None:
    file = '[server]\nport = 9000\n[auth]\nauth_methods = "trust"\nauth_cache = 0\n[limits]\nmax_connections = 7\n'
    config = configured({}, file, tmp_path).config
    assert config == Config(port=9000, auth_methods=("trust",), auth_cache=0.0, max_connections=7)
    assert isinstance(config.auth_cache, float)


@pytest.mark.parametrize("table", ["[audience]", "[chat.audience]"])
def test_audiences_may_be_a_table(table: str, tmp_path: Path) -> None:
    file = f'{table}\norder_paid = "everyone"\n"sla:breached" = "conversation"\n'
    assert configured({}, file, tmp_path).config.audience == ("order_paid=everyone", "sla:breached=conversation")


def test_audiences_may_be_flags_and_a_variable() -> None:
    assert configured({"audience": ["a=user", "b=none"]}).config.audience == ("a=user", "b=none")
    assert configured(CHATWS_AUDIENCE="a=user,b=none").config.audience == ("a=user", "b=none")


def test_relative_paths_start_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = configured({"secret_files": ["new", "/old"]}, CHATWS_PUSH_SECRET_FILE="push").config
    assert config.secret_files == (str(tmp_path / "new"), "/old")
    assert config.push_secret_file == str(tmp_path / "push")


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("prot = 1", "no setting is called prot; did you mean port?"),
        ("[server]\nprot = 1", "no setting is called prot; did you mean port?"),
        ("xyzzy = 1", "no setting is called xyzzy"),
        ("[servr]\nport = 1", "no table is called [servr]; did you mean server?"),
        ("[chat]\nport = 1", "port belongs in [server], not in [chat]"),
        ("port = 1\n[server]\nport = 2", "sets port twice, at the top and in [server]"),
        ('secret = "x"', "secret is read from CHATWS_SECRET only; use secret_files for a file"),
        ("port = [", "Invalid value"),
    ],
)
def test_an_invalid_file_is_rejected_with_its_name(file: str, complaint: str, tmp_path: Path) -> None:
    line = refused({}, file, tmp_path)
    assert line.startswith(f"{tmp_path}/chatws.toml")
    assert complaint in line


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ('port = "8080"', 'port in FILE must be a whole number from 0 to 65535, not "8080"'),
        ("port = true", 'port in FILE must be a whole number from 0 to 65535, not "True"'),
        ("port = 1.5", 'port in FILE must be a whole number from 0 to 65535, not "1.5"'),
        ("demo = 1", 'demo in FILE must be true or false, not "1"'),
        ("broker = 1", 'broker in FILE must be a text, not "1"'),
        ('auth_methods = [""]', "auth_methods in FILE must be a list of texts"),
        ("auth_methods = [1]", "auth_methods in FILE must be a list of texts"),
        ("message_rate = inf", 'message_rate in FILE must be a number of messages a second, 0 or more, not "inf"'),
        ("message_rate = 1" + "0" * 400, "message_rate in FILE must be a number of messages a second, 0 or more, not"),
        ('user_query = ""', "user_query in FILE must not be empty"),
        ("database = 5", "database in FILE must be a text"),
        ('[audience]\nx = "all"', 'must name an event and conversation, user, agents, everyone or none, not "x=all"'),
        ('[audience]\n"a b" = "user"', 'not "a b=user"'),
        ("audience = 5", 'not "=5"'),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(file: str, complaint: str, tmp_path: Path) -> None:
    assert complaint in refused({}, file, tmp_path).replace(f"{tmp_path}/chatws.toml", "FILE")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read /nowhere/x\.toml: No such file or directory"):
        load({}, {}, "/nowhere/x.toml")
    (tmp_path / "latin.toml").write_bytes(b"broker = '\xe9'")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load({}, {}, str(tmp_path / "latin.toml"))


# --- the flags ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("port", "http", '--port must be a whole number from 0 to 65535, not "http"'),
        ("port", "65536", '--port must be a whole number from 0 to 65535, not "65536"'),
        ("port", "-1", '--port must be a whole number from 0 to 65535, not "-1"'),
        ("ping_timeout", "0", '--ping-timeout must be a number of seconds above 0, not "0"'),
        ("ping_interval", "-1", '--ping-interval must be a number of seconds, 0 or more, not "-1"'),
        ("message_rate", "nan", '--message-rate must be a number of messages a second, 0 or more, not "nan"'),
        ("auth_timeout", "1e999", '--auth-timeout must be a number of seconds above 0, not "inf"'),
        ("send_buffer", "1.5", '--send-buffer must be a whole number of bytes above 0, not "1.5"'),
        ("max_connections", "9" * 5000, "--max-connections must be a whole number of connections, 0 or more"),
        ("broker", "", "--broker must not be empty"),
        ("audience", "x", '--audience must name an event and conversation, user, agents, everyone or none, not "x="'),
    ],
)
def test_a_wrong_flag_is_refused_with_its_unit_and_range(name: str, text: str, line: str) -> None:
    assert refused({name: [text]}).startswith(line)


@pytest.mark.parametrize(
    ("flags", "environment", "file", "names"),
    [
        ({"listen": ["tcp:1"], "port": ["1"]}, {}, "", ("--listen", "--port")),
        ({"push_listen": ["tcp:1"], "push_port": ["0"]}, {}, "", ("--push-listen", "--push-port")),
        ({}, {"CHATWS_LISTEN": "tcp:1", "CHATWS_INTERFACE": "::1"}, "", ("CHATWS_LISTEN", "CHATWS_INTERFACE")),
        ({}, {"CHATWS_SECRET": "a", "CHATWS_SECRET_FILES": "b"}, "", ("CHATWS_SECRET", "CHATWS_SECRET_FILES")),
        ({}, {}, 'listen = ["tcp:1"]\ninterface = ""', ("listen in ", "interface in ")),
        ({}, {}, 'database = "sqlite:///a"\ndatabase_file = "b"', ("database in ", "database_file in ")),
        ({}, {}, 'broker_listen = "a"\nbroker_poll = 1', ("broker_listen in ", "broker_poll in ")),
        # a mistake in the file stays one when a flag would replace half of it
        ({"listen": ["tcp:1"]}, {}, 'listen = ["tcp:1"]\nport = 1', ("listen in ", "port in ")),
    ],
)
def test_settings_that_exclude_each_other_are_an_error(
    flags: dict[str, list[str]], environment: dict[str, str], file: str, names: tuple[str, str], tmp_path: Path
) -> None:
    line = refused(flags, file, tmp_path, **environment)
    assert line.startswith(names[0])
    assert f" and {names[1]}" in line
    assert line.endswith(" exclude each other: leave one out")


@pytest.mark.parametrize(
    ("flags", "environment", "file", "config", "replaced"),
    [
        # systemd's sockets over the README's file
        (
            {"listen": ["systemd:domain=INET:index=0"], "push_listen": ["systemd:domain=UNIX:index=1"]},
            {},
            "[server]\nport = 9000\npush_port = 9001",
            Config(listen=("systemd:domain=INET:index=0",), push_listen=("systemd:domain=UNIX:index=1",)),
            ["--listen replaces port in FILE", "--push-listen replaces push_port in FILE"],
        ),
        # the other way round
        ({"port": ["1"]}, {}, 'listen = ["tcp:2"]', Config(port=1), ["--port replaces listen in FILE"]),
        (
            {},
            {"CHATWS_PUSH_PORT": "0"},
            'push_listen = ["tcp:2"]',
            Config(push_port=0),
            ["CHATWS_PUSH_PORT replaces push_listen in FILE"],
        ),
        # the environment over the file, flags over both
        (
            {"interface": [""]},
            {"CHATWS_LISTEN": "tcp:1"},
            "port = 3",
            Config(interface=""),
            ["CHATWS_LISTEN replaces port in FILE", "--interface replaces CHATWS_LISTEN"],
        ),
        # the other settings that say the same thing
        (
            {},
            {"CHATWS_SECRET": "a"},
            'secret_files = ["/b"]',
            Config(secret=("a",)),
            ["CHATWS_SECRET replaces secret_files in FILE"],
        ),
        (
            {"secret_files": ["/b"]},
            {"CHATWS_SECRET": "a"},
            "",
            Config(secret_files=("/b",)),
            ["--secret-file replaces CHATWS_SECRET"],
        ),
        (
            {},
            {"CHATWS_DATABASE_FILE": "/b"},
            'database = "sqlite:///a"',
            Config(database_file="/b"),
            ["CHATWS_DATABASE_FILE replaces database in FILE"],
        ),
        (
            {"broker_poll": ["1"]},
            {},
            'broker_listen = "a"',
            Config(broker_poll=1.0),
            ["--broker-poll replaces broker_listen in FILE"],
        ),
        # the same setting with another value: a broker in the file that a flag hides
        (
            {"broker": ["redis://a"]},
            {},
            'broker = "redis://b"\nmessage_burst = 5',
            Config(broker="redis://a", message_burst=5),
            ["--broker replaces broker in FILE"],
        ),
        (
            {"workers": ["2"]},
            {"CHATWS_WORKERS": "3"},
            "workers = 2",
            Config(workers=2),
            ["CHATWS_WORKERS replaces workers in FILE", "--workers replaces CHATWS_WORKERS"],
        ),
        ({"workers": ["2"]}, {}, "workers = 2", Config(workers=2), []),
        # what is empty replaces nothing, and parts of one way are taken from both places
        ({"listen": [""]}, {}, "port = 3", Config(port=3), []),
        ({"port": ["1"]}, {}, 'interface = "::1"', Config(port=1, interface="::1"), []),
    ],
)
def test_what_a_higher_place_replaces_is_listed(
    flags: dict[str, list[str]],
    environment: dict[str, str],
    file: str,
    config: Config,
    replaced: list[str],
    tmp_path: Path,
) -> None:
    loaded = configured(flags, file, tmp_path, **environment)
    assert loaded.config == config
    assert [line.replace(f"{tmp_path}/chatws.toml", "FILE") for line in loaded.replaced] == replaced
    changed = {name for name, origin in loaded.sources.items() if origin.kind != "default"}
    assert all(getattr(loaded.config, name) == getattr(Config(), name) for name in set(settings()) - changed)


def test_every_setting_has_a_text_for_its_type() -> None:
    assert {name: expected(name) for name in ("demo", "auth_methods", "broker", "log_format", "message_burst")} == {
        "demo": "true or false",
        "auth_methods": "a list of texts",
        "broker": "a text",
        "log_format": "text or json",
        "message_burst": "a whole number of messages above 0",
    }
