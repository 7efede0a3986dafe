"""Where settings come from, which of them wins, and what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from chatws.config import SECTIONS, Config, settings
from chatws.configure import Loaded, Origin, expected, load
from chatws.errors import OperatorError


def configured(
    flags: Mapping[str, Sequence[str]] | None = None,
    file: str | None = None,
    tmp_path: Path | None = None,
    **environment: str,
) -> Loaded:
    path = None
    if file is not None:
        assert tmp_path is not None
        path = str(tmp_path / "chatws.toml")
        Path(path).write_text(file)
    return load(flags or {}, environment, path)


def refused(*args: object, **environment: object) -> str:
    with pytest.raises(OperatorError) as caught:
        configured(*args, **environment)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_nothing_given_is_the_defaults() -> None:
    loaded = configured()
    assert loaded.config == Config()
    assert set(loaded.origins.values()) == {Origin("default")}
    assert loaded.notes == []


def test_every_setting_belongs_to_a_section_and_says_what_it_is() -> None:
    for name, (setting, default, _) in settings().items():
        assert setting.section in SECTIONS, name
        assert setting.help, name
        assert isinstance(default, bool | int | float | str | tuple), name


# --- which one wins -------------------------------------------------------------------------------------------------


def test_flags_go_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    loaded = configured(
        {"port": ["1"]}, "port = 3\npush_port = 3\nrate = 3", tmp_path, CHATWS_PORT="2", CHATWS_PUSH_PORT="2"
    )
    assert (loaded.config.port, loaded.config.push_port, loaded.config.rate) == (1, 2, 3.0)
    assert [str(loaded.origins[name]) for name in ("port", "push_port", "rate", "demo")] == [
        "--port",
        "CHATWS_PUSH_PORT",
        f"rate in {tmp_path}/chatws.toml",
        "default",
    ]


def test_a_list_is_replaced_and_never_added_to(tmp_path: Path) -> None:
    loaded = configured({"auth": ["ticket", "database"]}, 'auth = ["trust"]', tmp_path)
    assert loaded.config.auth == ("ticket", "database")


def test_the_last_of_two_equal_flags_counts() -> None:
    assert configured({"port": ["1", "2"], "demo": ["true", "false"]}).config == Config(port=2, demo=False)


def test_a_flag_can_turn_off_what_the_file_turned_on(tmp_path: Path) -> None:
    assert not configured({"compression": ["false"]}, "compression = true", tmp_path).config.compression


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert configured(CHATWS_PORT="", CHATWS_DATABASE="").config == Config()


def test_an_empty_flag_empties_a_list_and_a_text_that_may_be_empty() -> None:
    config = configured({"trusted_proxy": [""], "conversation_query": [""]}).config
    assert (config.trusted_proxy, config.conversation_query) == ((), "")


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("port = 5")
    assert configured(CHATWS_CONFIG=str(tmp_path / "other.toml")).config.port == 5


# --- the environment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["ticket,database", "ticket database", " ticket, database ", "ticket\n database,"])
def test_a_list_in_the_environment_is_parted_by_commas_or_spaces(text: str) -> None:
    assert configured(CHATWS_AUTH=text).config.auth == ("ticket", "database")


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
def test_a_password_in_a_file_that_everybody_can_read_is_noted(
    tmp_path: Path, text: str, mode: int, notes: int
) -> None:
    file = tmp_path / "chatws.toml"
    file.write_text(f"[log]\n{text}\n")
    file.chmod(mode)
    found = load({}, {}, str(file)).notes
    assert (
        list(found) == [f"{file} holds a password and everybody on this machine can read it: chmod 640 {file}"] * notes
    )


def test_an_unknown_variable_is_passed_over_and_noted() -> None:
    loaded = configured(CHATWS_PROT="1", CHATWS_SERVICE_HOST="10.0.0.1")
    assert loaded.config == Config()
    assert (
        loaded.notes[0] == "the environment's CHATWS_PROT is no setting and is passed over; did you mean CHATWS_PORT?"
    )
    assert len(loaded.notes) == 2


def test_a_secret_is_not_shown_in_an_error() -> None:
    with pytest.raises(OperatorError) as caught:
        load({"database": ["x"]}, {"CHATWS_DATABASE_POOL": "many"}, None)
    assert str(caught.value) == 'CHATWS_DATABASE_POOL must be a whole number of connections above 0, not "many"'


# --- the file -------------------------------------------------------------------------------------------------------


def test_settings_may_stand_in_the_table_of_their_section(tmp_path: Path) -> None:
    file = '[listen]\nport = 9000\n[auth]\nauth = "trust"\nauth_cache = 0\n[door]\nmax_connections = 7\n'
    config = configured({}, file, tmp_path).config
    assert config == Config(port=9000, auth=("trust",), auth_cache=0.0, max_connections=7)
    assert isinstance(config.auth_cache, float)


@pytest.mark.parametrize("table", ["[audience]", "[chat.audience]"])
def test_audiences_may_be_a_table(table: str, tmp_path: Path) -> None:
    file = f'{table}\norder_paid = "everyone"\n"sla:breached" = "conversation"\n'
    assert configured({}, file, tmp_path).config.audience == ("order_paid=everyone", "sla:breached=conversation")


def test_audiences_may_be_flags_and_a_variable() -> None:
    assert configured({"audience": ["a=user", "b=none"]}).config.audience == ("a=user", "b=none")
    assert configured(CHATWS_AUDIENCE="a=user,b=none").config.audience == ("a=user", "b=none")


def test_paths_are_taken_from_where_chatws_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = configured({"secret_file": ["new", "/old"]}, CHATWS_PUSH_SECRET_FILE="push").config
    assert config.secret_file == (str(tmp_path / "new"), "/old")
    assert config.push_secret_file == str(tmp_path / "push")


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("prot = 1", "no setting is called prot; did you mean port?"),
        ("[listen]\nprot = 1", "no setting is called prot; did you mean port?"),
        ("xyzzy = 1", "no setting is called xyzzy"),
        ("[lisen]\nport = 1", "no table is called [lisen]; did you mean listen?"),
        ("[chat]\nport = 1", "port belongs in [listen], not in [chat]"),
        ("port = 1\n[listen]\nport = 2", "sets port twice, at the top and in [listen]"),
        ('secret = "x"', "secret is taken from CHATWS_SECRET only, or use secret_file"),
        ("port = [", "Invalid value"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(file: str, complaint: str, tmp_path: Path) -> None:
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
        ('auth = [""]', "auth in FILE must be a list of texts"),
        ("auth = [1]", "auth in FILE must be a list of texts"),
        ("rate = inf", 'rate in FILE must be a number of messages a second, 0 or more, not "inf"'),
        ("rate = 1" + "0" * 400, "rate in FILE must be a number of messages a second, 0 or more, not"),
        ('user_query = ""', "user_query in FILE must not be empty"),
        ("database = 5", "database in FILE must be a text"),
        ('[audience]\nx = "all"', 'must name an event and conversation, user, everyone or none, not "x=all"'),
        ('[audience]\n"a b" = "user"', 'not "a b=user"'),
        ("audience = 5", 'not "=5"'),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(file: str, complaint: str, tmp_path: Path) -> None:
    assert complaint in refused({}, file, tmp_path).replace(f"{tmp_path}/chatws.toml", "FILE")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"cannot read /nowhere/x\.toml: No such file or directory"):
        load({}, {}, "/nowhere/x.toml")
    (tmp_path / "latin.toml").write_bytes(b"broker = '\xe9'")
    with pytest.raises(OperatorError, match="is not UTF-8"):
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
        ("rate", "nan", '--rate must be a number of messages a second, 0 or more, not "nan"'),
        ("auth_timeout", "1e999", '--auth-timeout must be a number of seconds above 0, not "inf"'),
        ("send_buffer", "1.5", '--send-buffer must be a whole number of bytes above 0, not "1.5"'),
        ("max_connections", "9" * 5000, "--max-connections must be a whole number of connections, 0 or more"),
        ("broker", "", "--broker must not be empty"),
        ("audience", "x", '--audience must name an event and conversation, user, everyone or none, not "x="'),
    ],
)
def test_a_wrong_flag_is_refused_with_its_unit_and_range(name: str, text: str, line: str) -> None:
    assert refused({name: [text]}).startswith(line)


@pytest.mark.parametrize(
    ("flags", "environment", "line"),
    [
        ({"listen": ["tcp:1"], "port": ["1"]}, {}, "--listen and --port exclude each other: leave one out"),
        ({"listen": ["tcp:1"]}, {"CHATWS_INTERFACE": "::1"}, "--listen and CHATWS_INTERFACE exclude each other"),
        (
            {"push_port": ["1"]},
            {"CHATWS_PUSH_LISTEN": "tcp:1"},
            "CHATWS_PUSH_LISTEN and --push-port exclude each other",
        ),
    ],
)
def test_a_port_beside_an_endpoint_is_refused_wherever_they_stand(
    flags: dict[str, list[str]], environment: dict[str, str], line: str
) -> None:
    assert refused(flags, **environment).startswith(line)


def test_what_is_expected_can_be_said_of_every_setting() -> None:
    assert {name: expected(name) for name in ("demo", "auth", "broker", "rate_burst")} == {
        "demo": "true or false",
        "auth": "a list of texts",
        "broker": "a text",
        "rate_burst": "a whole number of messages above 0",
    }
