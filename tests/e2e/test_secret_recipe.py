"""The commands that create the secret: one recipe in all documents, and what it does for each Unix user."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from chatws.auth.secrets import read_secret_file
from chatws.errors import ConfigError
from tests.e2e.conftest import Server
from tests.requirements import UNIX_USERS, needs
from tests.unix_users import new_name, public_directory, remove_user, run_as, words_as

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "docs/security.md",
    "docs/pt-BR/WEBSOCKET.md",
    "php/README.md",
    "deploy/systemd/chatws.service",
    "deploy/supervisor/chatws.conf",
    "Dockerfile",
)


def recipe(document: str) -> list[str]:
    """The lines of the recipe, without the document's signs for a comment."""
    lines = [re.sub(r"^[#;]? *", "", line) for line in (ROOT / document).read_text(encoding="utf-8").splitlines()]
    (start,) = [number for number, line in enumerate(lines) if line.startswith("useradd ") and "10001" not in line]
    end = next(number for number, line in enumerate(lines) if number > start and line.startswith("chmod "))
    return lines[start : end + 1]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_document_has_the_same_recipe(document: str) -> None:
    assert recipe(document) == recipe("docs/security.md")
    # and no other
    text = (ROOT / document).read_text(encoding="utf-8")
    assert text.count("openssl rand") == 1


class Created(NamedTuple):
    """What the recipe has made.

    :ivar server: the user that runs chatws, :ivar php: PHP-FPM's, :ivar other: one of neither's group.
    """

    directory: Path
    server: str
    php: str
    other: str

    @property
    def secret(self) -> str:
        return str(self.directory / "secret")


@pytest.fixture
def created() -> Iterator[Created]:
    """The recipe of the documents, run by root with users and a directory of this test."""
    names = [new_name() for _ in range(3)]
    server, php, other = names
    try:
        with public_directory() as directory:
            for name in (php, other):
                subprocess.run(
                    ["useradd", "--system", "--user-group", "--no-create-home", name], check=True, timeout=60
                )
            script = "\n".join(recipe("docs/security.md")).replace("/etc/chatws", str(directory))
            script = re.sub(r"\bchatws\b", server, script).replace("www-data", php)
            subprocess.run(["sh", "-e", "-c", script], check=True, timeout=60)
            yield Created(directory, server, php, other)
    finally:
        for name in names:
            remove_user(name)


@needs(UNIX_USERS)
def test_the_secret_is_readable_by_chatws_and_the_application_only(created: Created) -> None:
    def read() -> bytes:
        return read_secret_file(created.secret, "--secret-file")

    expected = Path(created.secret).read_bytes().strip()
    assert len(expected) >= 32
    assert run_as(created.server, read) == expected
    assert run_as(created.php, lambda: Path(created.secret).read_bytes().strip()) == expected
    refused = run_as(created.other, read)
    assert isinstance(refused, ConfigError)
    assert str(refused) == f"--secret-file: cannot read {created.secret}: Permission denied"
    # neither may change it
    for name in (created.server, created.php):
        assert isinstance(run_as(name, lambda: Path(created.secret).write_bytes(b"x")), PermissionError)


@needs(UNIX_USERS)
@needs("php-cli")
def test_a_token_signed_by_php_as_its_own_user_authenticates(
    created: Created, chatws_server: Callable[..., Server]
) -> None:
    shutil.copytree(ROOT / "php", created.directory / "php")
    code = 'require $argv[1] . "/php/autoload.php"; echo (new Chatws\\Client())->token(5);'
    words = words_as(created.php, "php", "-r", code, "--", str(created.directory))
    environment = {"PATH": "/usr/bin:/bin", "CHATWS_SECRET_FILES": created.secret}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    token = done.stdout
    with chatws_server("--secret-file", created.secret).browser() as browser:
        assert browser.auth(5, token=token)["user_id"] == 5


@needs(UNIX_USERS)
def test_a_secret_of_mode_644_is_rejected_unless_the_option_allows_it(created: Created) -> None:
    path = Path(created.secret)
    path.chmod(0o644)
    refused = run_as(created.server, lambda: read_secret_file(created.secret, "--secret-file"))
    assert isinstance(refused, ConfigError)
    assert f"do chmod 640 {created.secret}" in str(refused)
    assert "allow_world_readable_secrets" in str(refused)
    path.chmod(0o444)
    accepted = run_as(
        created.server, lambda: read_secret_file(created.secret, "--secret-file", allow_world_readable=True)
    )
    assert accepted == path.read_bytes().strip()
