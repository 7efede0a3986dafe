"""The secrets that sign tickets."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Protocol

from chatws.errors import OperatorError

__all__ = ["MAX_SECRETS", "MIN_SECRET_BYTES", "SecretSettings", "load_secrets", "read_secret_file"]

#: RFC 7518 §3.2: a key for HS256 has at least as many bits as the hash. Shorter ones can be found by trying.
MIN_SECRET_BYTES = 32
#: The new one and the one before.
MAX_SECRETS = 2


class SecretSettings(Protocol):
    """The settings (chatws.config.Config) that are looked at here."""

    @property
    def secret(self) -> tuple[str, ...]: ...
    @property
    def secret_file(self) -> tuple[str, ...]: ...


def read_secret_file(path: str, setting: str) -> bytes:
    """What a file holds, without the white space around it (an editor ends the last line).

    :param setting: who asks, for the error's sentence.
    :raises OperatorError: it cannot be read, is empty, or everybody on the machine may read it.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
                raise OperatorError(f"{setting}: everybody on this machine can read {path}; do chmod o-r {path}")
            content = file.read().strip()
    except OSError as error:
        raise OperatorError(f"{setting}: cannot read {path}: {error.strerror}") from None
    if not content:
        raise OperatorError(f"{setting}: {path} is empty")
    return content


def load_secrets(config: SecretSettings) -> tuple[bytes, ...]:
    """The secrets, those from the environment or else those from the files; none where none is configured.

    :raises OperatorError: one cannot be read or cannot be used.
    """
    import jwt  # takes its time, and who only reads a secret needs none of it

    if config.secret:
        found: Sequence[tuple[str, bytes]] = [("CHATWS_SECRET", one.strip().encode()) for one in config.secret]
    else:
        found = [(f"--secret-file {path}", read_secret_file(path, "--secret-file")) for path in config.secret_file]
    if len(found) > MAX_SECRETS:
        raise OperatorError("--secret-file: two secrets are the most, the new one and the old one")
    for source, secret in found:
        if len(secret) < MIN_SECRET_BYTES:
            raise OperatorError(
                f"{source}: a ticket secret has at least {MIN_SECRET_BYTES} bytes; make one with: openssl rand -hex 32"
            )
        try:
            jwt.get_algorithm_by_name("HS256").prepare_key(secret)
        except jwt.InvalidKeyError:
            raise OperatorError(
                f"{source}: this is a public or private key; a ticket secret is a random text"
            ) from None
    return tuple(secret for _, secret in found)
