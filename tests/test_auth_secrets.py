"""The secrets that sign tickets: where they come from, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chatws.auth.auth_url import check_auth_url
from chatws.auth.secrets import load_secrets, read_secret_file
from chatws.config.schema import Config
from chatws.config.validate import check
from chatws.errors import ConfigError

GOOD = "0123456789abcdef" * 2


def secret_file(tmp_path: Path, content: str | bytes, mode: int = 0o600, name: str = "secret") -> str:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n", " \n\n"])
def test_the_end_of_the_line_is_no_part_of_the_secret(tmp_path: Path, end: str) -> None:
    path = secret_file(tmp_path, GOOD + end)
    assert load_secrets(Config(secret_files=(path,))) == (GOOD.encode(),)
    assert load_secrets(Config(secret=(GOOD + end,))) == (GOOD.encode(),)


def test_two_secret_files_are_both_accepted(tmp_path: Path) -> None:
    paths = [secret_file(tmp_path, GOOD + str(n), name=str(n)) for n in range(3)]
    assert load_secrets(Config(secret_files=tuple(paths[:2]))) == ((GOOD + "0").encode(), (GOOD + "1").encode())
    with pytest.raises(ConfigError, match="two secrets"):
        load_secrets(Config(secret_files=tuple(paths)))


def test_no_secret_is_none() -> None:
    assert load_secrets(Config()) == ()


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o666, 0o777])
def test_a_world_readable_secret_file_is_rejected(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="chmod 640"):
        read_secret_file(secret_file(tmp_path, GOOD, mode), "--secret-file")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_file_of_the_owner_and_the_servers_group_is_taken(tmp_path: Path, mode: int) -> None:
    assert read_secret_file(secret_file(tmp_path, GOOD, mode), "--secret-file") == GOOD.encode()


@pytest.mark.parametrize("content", ["", "\n", "  \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match="is empty"):
        read_secret_file(secret_file(tmp_path, content), "--secret-file")


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(ConfigError, match=r"^--secret-file: cannot read .*") as caught:
            read_secret_file(str(path), "--secret-file")
        assert "\n" not in str(caught.value)


def test_a_secret_that_could_be_found_by_trying_is_refused_and_not_shown(tmp_path: Path) -> None:
    for config in (Config(secret=("hunter2",)), Config(secret_files=(secret_file(tmp_path, "hunter2" * 4),))):
        with pytest.raises(ConfigError, match="at least 32 bytes") as caught:
            load_secrets(config)
        assert "hunter2" not in str(caught.value)


def test_a_key_of_another_kind_is_refused() -> None:
    key = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----"
    with pytest.raises(ConfigError, match="random text"):
        load_secrets(Config(secret=(key,)))


def test_file_that_is_not_regular_is_rejected_without_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (fifo, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="is not a regular file"):
            read_secret_file(str(path), "--secret-file", allow_world_readable=True)


def test_file_that_is_too_large_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has more than"):
        read_secret_file(secret_file(tmp_path, "x" * 70_000), "--secret-file")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://app.example/x\n", "control characters"),
        ("http://app.exa\nmple/x", "control characters"),
        ("http://app.example/a b", "spaces"),
        ("http://app.example:99999/", "[Pp]ort"),
        ("http://app.example:x/", "[Pp]ort"),
        ("ftp://app.example/", "http:// or https://"),
        ("http:///x", "http:// or https://"),
        ("http://ana:secret@app.example/", "password"),
        ("http://caf\u00e9.example/", "ascii"),
    ],
)
def test_auth_url_that_cannot_work_is_rejected_at_start(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        check(Config(auth_url=url), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/whoami?a=%20", "https://app.example/", "http://[::1]:80/"])
def test_auth_url_that_can_work_is_accepted(url: str) -> None:
    assert check_auth_url(url) == url.encode()
