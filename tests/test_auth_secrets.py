"""The secrets that sign tickets: where they come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatws.auth.secrets import load_secrets, read_secret_file
from chatws.config import Config
from chatws.errors import OperatorError

GOOD = "0123456789abcdef" * 2


def secret_file(tmp_path: Path, content: str | bytes, mode: int = 0o600, name: str = "secret") -> str:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n", " \n\n"])
def test_the_end_of_the_line_is_no_part_of_the_secret(tmp_path: Path, end: str) -> None:
    path = secret_file(tmp_path, GOOD + end)
    assert load_secrets(Config(secret_file=(path,))) == (GOOD.encode(),)
    assert load_secrets(Config(secret=(GOOD + end,))) == (GOOD.encode(),)


def test_two_secrets_are_both_good_while_one_replaces_the_other(tmp_path: Path) -> None:
    paths = [secret_file(tmp_path, GOOD + str(n), name=str(n)) for n in range(3)]
    assert load_secrets(Config(secret_file=tuple(paths[:2]))) == ((GOOD + "0").encode(), (GOOD + "1").encode())
    with pytest.raises(OperatorError, match="two secrets"):
        load_secrets(Config(secret_file=tuple(paths)))


def test_no_secret_is_none() -> None:
    assert load_secrets(Config()) == ()


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o666, 0o777])
def test_a_file_that_everybody_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(OperatorError, match="chmod o-r"):
        read_secret_file(secret_file(tmp_path, GOOD, mode), "--secret-file")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_file_of_the_owner_and_the_servers_group_is_taken(tmp_path: Path, mode: int) -> None:
    assert read_secret_file(secret_file(tmp_path, GOOD, mode), "--secret-file") == GOOD.encode()


@pytest.mark.parametrize("content", ["", "\n", "  \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(OperatorError, match="is empty"):
        read_secret_file(secret_file(tmp_path, content), "--secret-file")


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(OperatorError, match=r"^--secret-file: cannot read .*") as caught:
            read_secret_file(str(path), "--secret-file")
        assert "\n" not in str(caught.value)


def test_a_secret_that_could_be_found_by_trying_is_refused_and_not_shown(tmp_path: Path) -> None:
    for config in (Config(secret=("hunter2",)), Config(secret_file=(secret_file(tmp_path, "hunter2" * 4),))):
        with pytest.raises(OperatorError, match="at least 32 bytes") as caught:
            load_secrets(config)
        assert "hunter2" not in str(caught.value)


def test_a_key_of_another_kind_is_refused() -> None:
    key = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----"
    with pytest.raises(OperatorError, match="random text"):
        load_secrets(Config(secret=(key,)))
