"""Files and variables written on Windows: byte order marks, UTF-16 and CRLF are handled, or named in one line."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from chatws.auth.secrets import load_secrets
from chatws.brokers.redis.connection import _endpoint
from chatws.brokers.redis.url import RedisUrl
from chatws.cli.main import main
from chatws.config.loader import load
from chatws.config.reload import push_secret
from chatws.config.schema import Config
from chatws.config.text_files import own_variables
from chatws.config.validate import database_url
from chatws.errors import ConfigError
from tests.certificates import self_signed

SECRET = "0123456789abcdef" * 4
URL = "sqlite:////var/lib/chatws/shop.db"

#: What an editor makes of a line, and whether it is taken for what was meant.
WRITTEN = {
    "newline": (lambda text: f"{text}\n".encode(), ""),
    "CRLF": (lambda text: f"{text}\r\n".encode(), ""),
    "CR": (lambda text: f"{text}\r".encode(), ""),
    "BOM": (lambda text: codecs.BOM_UTF8 + f"{text}\r\n".encode(), "begins with a byte order mark"),
    "UTF-16": (lambda text: f"{text}\r\n".encode("utf-16"), "is UTF-16"),
    "UTF-16BE": (lambda text: codecs.BOM_UTF16_BE + f"{text}\r\n".encode("utf-16-be"), "is UTF-16"),
}


@pytest.mark.parametrize(("write", "problem"), WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("kind", ["secret", "push secret", "database", "the command's push secret"])
def test_a_secret_s_file_is_taken_or_its_encoding_is_named(
    write: object, problem: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(write)
    path = tmp_path / "file"
    path.write_bytes(write(URL if kind == "database" else SECRET))
    path.chmod(0o600)

    def read() -> object:
        if kind == "secret":
            return load_secrets(Config(secret_files=(str(path),)))
        if kind == "push secret":
            return push_secret(Config(push_secret_file=str(path)))
        return database_url(Config(database_file=str(path)))

    if kind == "the command's push secret":
        words = ["agents", "--push", "127.0.0.1:1", "--timeout", "0.1", "--push-secret-file", str(path)]
        assert main(words) == 1
        output = capsys.readouterr().err
        assert len(output.splitlines()) == 1
        # with a good secret it is the address that does not answer
        assert (f"{path} {problem}" if problem else "is this its push address") in output
    elif problem:
        with pytest.raises(ConfigError, match=f"^--[a-z-]+: {path} {problem}"):
            read()
    else:
        assert read() in ((SECRET.encode(),), SECRET.encode(), URL)


def test_a_binary_secret_may_hold_every_byte(tmp_path: Path) -> None:
    secret = bytes(range(128, 256)) + b"\0x"
    path = tmp_path / "secret"
    path.write_bytes(secret)
    path.chmod(0o600)
    assert load_secrets(Config(secret_files=(str(path),))) == (secret,)


TOML = 'port = 9000\nbroker = "memory"\n'


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + TOML.encode(),
        TOML.replace("\n", "\r\n").encode(),
        codecs.BOM_UTF8 + TOML.replace("\n", "\r\n").encode(),
    ],
    ids=["BOM", "CRLF", "both"],
)
def test_the_toml_file_may_have_a_byte_order_mark_and_crlf(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "chatws.toml"
    path.write_bytes(content)
    config = load({}, {}, str(path)).config
    assert (config.port, config.broker) == (9000, "memory")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (TOML.encode("utf-16"), "is UTF-16: save it as UTF-8 without BOM"),
        (TOML.encode("utf-16-le"), "is UTF-16 or binary: save it as UTF-8"),
        ('demo_database = "ol\xe1"'.encode("iso-8859-1"), "is not UTF-8"),
    ],
)
def test_a_toml_file_in_another_encoding_is_named(content: bytes, line: str, tmp_path: Path) -> None:
    path = tmp_path / "chatws.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load({}, {}, str(path))
    assert str(caught.value) == f"{path} {line}"


def test_values_of_an_environment_file_with_crlf_are_taken_without_it() -> None:
    environment = {
        "CHATWS_PORT": "9000\r",
        "CHATWS_DEMO": "true\r",
        "CHATWS_BROKER": "redis://127.0.0.1:6379\r",
        "CHATWS_TRUSTED_PROXIES": "10.0.0.1,10.0.0.2\r",
        "CHATWS_AUTH_URL": "\r",
        "CHATWS_SECRET": SECRET + "\r",
    }
    loaded = load({}, environment)
    config = loaded.config
    assert (config.port, config.demo, config.broker) == (9000, True, "redis://127.0.0.1:6379")
    assert config.trusted_proxies == ("10.0.0.1", "10.0.0.2")
    assert (config.auth_url, config.secret) == ("", (SECRET,))
    assert not loaded.warnings


def test_the_file_name_of_a_crlf_environment_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "chatws.toml"
    path.write_text("port = 9000\n")
    assert load({}, {"CHATWS_CONFIG": f"{path}\r"}).config.port == 9000


def test_a_flag_of_a_script_with_crlf_is_taken_without_it() -> None:
    assert load({"broker": ["redis://127.0.0.1:6379\r"], "port": ["9000\r"]}, {}).config.broker.endswith("6379")


@pytest.mark.parametrize("mark", ["\ufeff", "\udcef\udcbb\udcbf", "ï»¿"], ids=["UTF-8", "ASCII", "Latin-1"])
def test_a_byte_order_mark_before_the_first_variable_is_left_away(mark: str) -> None:
    environment = {f"{mark}CHATWS_PORT": "9000", "PATH": "x\r"}
    assert own_variables(environment) == {"CHATWS_PORT": "9000"}
    assert load({}, environment).config.port == 9000
    assert load({}, {**environment, "CHATWS_PORT": "9001"}).config.port == 9001


def test_the_command_s_variables_may_have_crlf(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHATWS_PUSH_ADDRESS", "127.0.0.1:1\r")
    monkeypatch.setenv("CHATWS_PUSH_SECRET_FILE", "\r")
    assert main(["agents", "--timeout", "0.1"]) == 1
    assert "is this its push address" in capsys.readouterr().err


# --- certificates ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pem() -> bytes:
    return self_signed("localhost").certificate


@pytest.mark.parametrize(
    ("prefix", "encoding", "output"),
    [
        (codecs.BOM_UTF8, "utf-8", ""),  # OpenSSL passes over it
        (b"", "utf-16", "is UTF-16"),
        (b"no certificate\n", "", "has no certificate in PEM"),
    ],
)
def test_an_invalid_authority_file_is_named(
    prefix: bytes, encoding: str, output: str, pem: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "ca.pem"
    path.write_bytes(prefix + (pem.decode().encode(encoding) if encoding else b""))
    monkeypatch.setenv("CHATWS_PUSH_TLS_CA", str(path))
    assert main(["agents", "--push", "tls://127.0.0.1:1", "--timeout", "0.1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert (f"CHATWS_PUSH_TLS_CA: {path} {output}" if output else "is this its push address") in line


def test_redis_authorities_may_have_a_byte_order_mark_and_crlf_and_must_be_there(pem: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    location = RedisUrl.parse(f"rediss://127.0.0.1:1?ca={path}")
    path.write_bytes(codecs.BOM_UTF8 + pem.replace(b"\n", b"\r\n"))
    assert _endpoint(location, "127.0.0.1", 1, 1.0, None)
    path.write_bytes(pem.decode().encode("utf-16"))
    with pytest.raises(ConfigError, match="has no certificate in PEM"):
        _endpoint(location, "127.0.0.1", 1, 1.0, None)
