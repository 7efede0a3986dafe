"""What is installed is what was tested: a wheel, in an environment of its own, started as a user would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.e2e.process import clean_environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("chatws", "twisted"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*dropin.cache*"))
    target = tmp_path_factory.mktemp("wheel")
    # by the setuptools of this environment, without looking at a package index
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (result,) = target.iterdir()
    return result


@pytest.mark.long
def test_wheel_contains_exactly_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {"twisted/plugins/chatws_plugin.py"}
    for path in (ROOT / "chatws").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            wanted.add(str(path.relative_to(ROOT)))
    assert held == wanted


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """The Python of an environment that has the wheel, and borrows what it depends on from this one."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)],
        check=True,
        timeout=300,
    )
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    # a path file's own path files are not read, so that our editable install stays out of sight
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.long
def test_an_installed_wheel_starts_and_serves(installed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "server"
    directory.mkdir()
    environment = clean_environment(PYTHONDONTWRITEBYTECODE="1")
    environment.pop("PYTHONPATH", None)
    where = subprocess.run(
        [installed, "-c", "import chatws; print(chatws.__file__)"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert str(tmp_path / "venv") in where.stdout

    class Installed(Server):
        def command(self) -> list[str]:
            words = super().command()
            return [str(installed), "-c", "from twisted.scripts.twistd import run; run()", *words[words.index("-n") :]]

    server = Installed(directory, (), environment)
    server.start()
    try:
        with server.agent(1, 1) as ana, server.backend() as backend:
            backend.push("new_message", {"conversation_id": 1, "message": {"id": 9}})
            ana.expect("new_message")
    finally:
        server.stop()
    assert "Traceback" not in server.log
    assert os.listdir(directory) == ["chatws.log"]
