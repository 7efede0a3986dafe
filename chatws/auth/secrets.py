"""The secrets that sign tokens, from files and from the environment."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from typing import Protocol

from chatws.config.text_files import describe_mark
from chatws.errors import ConfigError
from chatws.runtime.regular_file import read_regular_file

__all__ = ["MAX_SECRETS", "MIN_SECRET_BYTES", "SecretSettings", "load_secrets", "read_secret_file"]

#: RFC 7518 §3.2: a key for HS256 has at least as many bits as the hash. A shorter one can be guessed offline.
MIN_SECRET_BYTES = 32
#: The new one and the previous one, for rotation without downtime.
MAX_SECRETS = 2
#: Bytes of a secret file. A larger file is another one.
MAX_SECRET_FILE = 65_536


class SecretSettings(Protocol):
    """The settings of `chatws.config.schema.Config` that this module uses."""

    @property
    def secret(self) -> tuple[str, ...]: ...
    @property
    def secret_files(self) -> tuple[str, ...]: ...
    @property
    def allow_world_readable_secrets(self) -> bool: ...


def read_secret_file(path: str, setting: str, *, allow_world_readable: bool = False) -> bytes:
    """Read a secret from a file, without the white space around it (an editor ends the last line).

    :param setting: the setting that names the file, for the error: "--secret-file".
    :param allow_world_readable: accept a file that every user can read. Docker's and Kubernetes' secrets have the mode
        0444, in containers without other users.
    :raises ConfigError: the file cannot be read, is empty, begins with a byte order mark, or every user of the
        machine can read it.
    """

    def check(status: os.stat_result) -> None:
        # Windows reports mode 666 for every file; access lists are not checked
        others_can_read = sys.platform != "win32" and status.st_mode & stat.S_IROTH
        if others_can_read and not allow_world_readable:
            raise ConfigError(
                f"{setting}: every user of this machine can read {path}; do chmod 640 {path}, and chgrp it to a "
                "group of chatws and the application; in a container without other users set "
                "allow_world_readable_secrets instead"
            )

    try:
        content = read_regular_file(path, MAX_SECRET_FILE, check)
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from None
    # a byte order mark is an error: the application reads the same file and would use it as a part of the secret
    problem = describe_mark(content)
    if problem:
        raise ConfigError(f"{setting}: {path} {problem}")
    content = content.strip()
    if not content:
        raise ConfigError(f"{setting}: {path} is empty")
    return content


def load_secrets(config: SecretSettings) -> tuple[bytes, ...]:
    """Return the secrets from the environment, or else those from the files; empty if none is configured.

    :raises ConfigError: a secret cannot be read, or is unsuitable.
    """
    import jwt  # imports cryptography, which is slow: programs that only read a secret file do not need it

    if config.secret:
        sources: Sequence[tuple[str, bytes]] = [("CHATWS_SECRET", text.strip().encode()) for text in config.secret]
    else:
        allow = config.allow_world_readable_secrets
        sources = [
            (f"--secret-file {path}", read_secret_file(path, "--secret-file", allow_world_readable=allow))
            for path in config.secret_files
        ]
    if len(sources) > MAX_SECRETS:
        raise ConfigError("--secret-file: at most two secrets, the new one and the previous one")
    for source, secret in sources:
        if len(secret) < MIN_SECRET_BYTES:
            raise ConfigError(
                f"{source}: a token secret has at least {MIN_SECRET_BYTES} bytes; make one with: openssl rand -hex 32"
            )
        try:
            jwt.get_algorithm_by_name("HS256").prepare_key(secret)
        except jwt.InvalidKeyError:
            raise ConfigError(f"{source}: this is a public or private key; a token secret is a random text") from None
    return tuple(secret for _, secret in sources)
