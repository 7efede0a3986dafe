"""The certificates of TLS listeners: what is accepted, and the one line about what is not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from chatws.config.schema import Config
from chatws.config.validate import check
from chatws.errors import ConfigError
from chatws.net.listeners import make_listener
from chatws.net.tls import CertificateError, ServerTls, describe_certificate, read_certificate
from tests.certificates import Authority, Signed, make_certificate, new_key, private_pem
from tests.e2e.conftest import twistd_command
from tests.e2e.process import clean_environment

Files = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def signed(authority: Authority) -> Signed:
    return authority.issue("shop.example")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Writes files, and gives the arguments of an endpoint string that names them."""

    def write(**contents: bytes) -> dict[str, str]:
        for name, content in contents.items():
            (tmp_path / f"{name}.pem").write_bytes(content)
        return {name: str(tmp_path / f"{name}.pem") for name in contents}

    return write


def subjects(pem: bytes) -> list[str]:
    return [certificate.subject.rfc4514_string() for certificate in x509.load_pem_x509_certificates(pem)]


def refused(arguments: dict[str, str]) -> str:
    """The reason, which is to be one line."""
    with pytest.raises(CertificateError) as caught:
        ServerTls(read_certificate(arguments), arguments)
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- accepted -------------------------------------------------------------------------------------------------------


def test_read_certificate_of_a_full_chain_has_all_certificates_in_order(files: Files, signed: Signed) -> None:
    pem = read_certificate(files(privateKey=signed.key, certKey=signed.fullchain))
    assert subjects(pem) == ["CN=shop.example", "CN=chatws test intermediate"]
    assert describe_certificate(pem).startswith('"shop.example", valid until 20')


def test_read_certificate_of_one_file_takes_key_and_chain_in_any_order(files: Files, signed: Signed) -> None:
    expected = read_certificate(files(privateKey=signed.key, certKey=signed.fullchain))
    for content in (signed.key + signed.fullchain, signed.fullchain + signed.key):
        assert read_certificate(files(privateKey=content)) == expected


def test_read_certificate_with_extra_chain_appends_it(files: Files, signed: Signed) -> None:
    arguments = files(privateKey=signed.key, certKey=signed.certificate, extraCertChain=signed.intermediate)
    assert subjects(read_certificate(arguments)) == ["CN=shop.example", "CN=chatws test intermediate"]


def test_read_certificate_skips_text_parameters_and_windows_line_ends(files: Files, signed: Signed) -> None:
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    arguments = files(
        privateKey=(parameters + signed.key).replace(b"\n", b"\r\n"),
        certKey=b"Subject: CN = shop.example\n\n" + signed.certificate + b"\nIssuer:\n" + signed.intermediate,
    )
    assert len(subjects(read_certificate(arguments))) == 2
    ServerTls(read_certificate(arguments), arguments)


def test_read_certificate_accepts_two_issuers_of_one_certificate(files: Files, authority: Authority) -> None:
    signed = authority.issue()
    again = authority.intermediate + authority.root
    assert len(subjects(read_certificate(files(privateKey=signed.key, certKey=signed.fullchain + again)))) == 4


# --- refused --------------------------------------------------------------------------------------------------------


def test_read_certificate_without_a_private_key_shows_how_to_write_it() -> None:
    line = refused({})
    assert line == "the private key is missing: write ssl:443:privateKey=key.pem:certKey=fullchain.pem"


@pytest.mark.parametrize("missing", ["privateKey", "certKey", "extraCertChain", "dhParameters"])
def test_read_certificate_of_a_missing_file_names_it(files: Files, signed: Signed, missing: str) -> None:
    arguments = files(privateKey=signed.key, certKey=signed.certificate)
    assert refused({**arguments, missing: "/nowhere/x.pem"}).endswith("/nowhere/x.pem: No such file or directory")


def test_read_certificate_of_a_directory_names_it(files: Files, signed: Signed, tmp_path: Path) -> None:
    arguments = {**files(privateKey=signed.key), "certKey": str(tmp_path)}
    assert refused(arguments) == f"cannot read the certificate {tmp_path}: Is a directory"


def test_read_certificate_of_a_fifo_names_it_without_waiting(files: Files, signed: Signed, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CertificateError, match=r"cannot read the private key \S+fifo: it is not a regular file"):
        read_certificate({"privateKey": str(tmp_path / "fifo")})


def test_read_certificate_with_a_key_of_another_certificate_is_refused(files: Files, authority: Authority) -> None:
    first, other = authority.issue("one.example"), authority.issue("other.example")
    arguments = files(privateKey=first.key, certKey=other.fullchain)
    assert refused(arguments) == (
        f'the private key {arguments["privateKey"]} does not belong to the certificate "other.example" '
        f"in {arguments['certKey']}"
    )


def test_read_certificate_with_the_intermediate_first_is_in_the_wrong_order(files: Files, signed: Signed) -> None:
    line = refused(files(privateKey=signed.key, certKey=signed.intermediate + signed.certificate))
    assert "is in the wrong order: the certificate of the private key is number 2 and has to be the first" in line


def test_read_certificate_with_the_root_before_the_intermediate_is_in_the_wrong_order(
    files: Files, signed: Signed, authority: Authority
) -> None:
    line = refused(files(privateKey=signed.key, certKey=signed.certificate + authority.root + signed.intermediate))
    assert (
        'wrong order or incomplete: certificate 2, "chatws test root", did not issue any certificate before it' in line
    )


def test_read_certificate_with_an_intermediate_of_the_same_name_and_another_key_is_refused(
    files: Files, signed: Signed
) -> None:
    line = refused(files(privateKey=signed.key, certKey=signed.certificate + Authority().intermediate))
    assert '"chatws test intermediate", did not issue any certificate before it' in line


def test_read_certificate_that_has_expired_names_the_date(files: Files, authority: Authority) -> None:
    signed = authority.issue("old.example", start=-90, end=-2)
    line = refused(files(privateKey=signed.key, certKey=signed.fullchain))
    assert 'the certificate "old.example" in ' in line
    assert " expired on 20" in line
    assert line.endswith(" UTC: renew it")


def test_read_certificate_that_is_not_valid_yet_names_the_date(files: Files, authority: Authority) -> None:
    signed = authority.issue("new.example", start=2, end=90)
    line = refused(files(privateKey=signed.key, certKey=signed.fullchain))
    assert '"new.example"' in line
    assert " is not valid before 20" in line
    assert line.endswith("UTC: wait, or correct this machine's clock")


def test_read_certificate_with_an_expired_issuer_names_the_issuer(files: Files) -> None:
    issuer_key, key = new_key(), new_key()
    issuer = make_certificate("old issuer", issuer_key, issuer_key, authority=True, start=-9, end=-1)
    leaf = make_certificate("shop", key, issuer_key, issuer=issuer.subject)
    chain = b"".join(item.public_bytes(serialization.Encoding.PEM) for item in (leaf, issuer))
    assert 'the certificate "old issuer"' in refused(files(privateKey=private_pem(key), certKey=chain))


def test_read_certificate_with_swapped_files_is_an_error(files: Files, signed: Signed) -> None:
    assert refused(files(privateKey=signed.certificate, certKey=signed.key)).endswith(
        "contains no private key in PEM form: are privateKey and certKey swapped?"
    )
    assert refused(files(privateKey=signed.key, certKey=signed.key)).endswith(
        "contains no certificate in PEM form: are privateKey and certKey swapped?"
    )


@pytest.mark.parametrize("content", [b"", b"notes of a meeting\n", b"-----BEGIN CERTIFICATE-----\nMIIB\n"])
def test_read_certificate_of_a_file_without_pem_is_refused(files: Files, signed: Signed, content: bytes) -> None:
    assert refused(files(privateKey=signed.key, certKey=content)).endswith("contains no certificate in PEM form")
    line = refused(files(privateKey=content, certKey=signed.certificate))
    assert line.endswith("contains no private key in PEM form")


def test_read_certificate_in_der_form_names_the_conversion(files: Files, signed: Signed) -> None:
    der = x509.load_pem_x509_certificate(signed.certificate).public_bytes(serialization.Encoding.DER)
    assert refused(files(privateKey=signed.key, certKey=der)).endswith("convert it with openssl x509 -inform der")


def test_read_certificate_that_is_cut_off_or_damaged_is_refused(files: Files, signed: Signed) -> None:
    lines = signed.certificate.split(b"\n")
    damaged = b"\n".join([*lines[:3], *lines[5:]])
    assert "certificate 1 in " in refused(files(privateKey=signed.key, certKey=damaged))
    lines = signed.key.split(b"\n")
    line = refused(files(privateKey=b"\n".join([lines[0], *lines[2:]]), certKey=signed.certificate))
    assert "is damaged or of an unknown kind" in line


def test_read_certificate_with_a_passphrase_names_the_remedy(files: Files, authority: Authority) -> None:
    key = new_key()
    certificate = make_certificate("x", key, key, authority=True).public_bytes(serialization.Encoding.PEM)
    line = refused(files(privateKey=private_pem(key, b"hunter2"), certKey=certificate))
    assert "has a passphrase, and the server cannot enter one: remove it with openssl pkey -in " in line


def test_server_tls_with_a_key_that_openssl_finds_too_short_is_refused(files: Files) -> None:
    key = rsa.generate_private_key(65537, 1024)
    certificate = make_certificate("weak", key, key, authority=True).public_bytes(serialization.Encoding.PEM)
    line = refused(files(privateKey=private_pem(key), certKey=certificate))
    assert line == "OpenSSL does not accept the certificate: ee key too small"


def test_server_tls_with_an_unknown_method_is_refused(files: Files, signed: Signed) -> None:
    arguments = files(privateKey=signed.key, certKey=signed.certificate)
    assert refused({**arguments, "sslmethod": "SSLv9_METHOD"}).startswith("sslmethod: OpenSSL has no method")


# --- where an operator sees it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--listen", "--push-listen"])
def test_check_of_an_expired_certificate_is_one_line_with_the_setting(
    files: Files, authority: Authority, option: str
) -> None:
    signed = authority.issue("old.example", start=-90, end=-2)
    paths = files(privateKey=signed.key, certKey=signed.fullchain)
    description = f"ssl:0:privateKey={paths['privateKey']}:certKey={paths['certKey']}:interface=127.0.0.1"
    config = Config(**{option.removeprefix("--").replace("-", "_"): (description,)})
    with pytest.raises(ConfigError) as caught:
        check(config, None)
    assert str(caught.value).startswith(f'{option} "{description}": the certificate "old.example" in ')
    assert "\n" not in str(caught.value)


def test_make_listener_of_haproxy_and_tls_checks_the_certificate() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the private key /nowhere/key\.pem: No such file"):
        make_listener(None, "haproxy:ssl:443:privateKey=/nowhere/key.pem", "--listen")


@pytest.mark.parametrize("words", [["chatws", "--check"], ["-n", "chatws"], ["chatws"]])
def test_twistd_with_a_key_of_another_certificate_ends_with_one_line_and_status_78(
    tmp_path: Path, authority: Authority, words: list[str]
) -> None:
    (tmp_path / "key.pem").write_bytes(authority.issue().key)
    (tmp_path / "fullchain.pem").write_bytes(authority.issue("shop.example").fullchain)
    endpoint = "ssl:0:privateKey=key.pem:certKey=fullchain.pem:interface=127.0.0.1"
    done = subprocess.run(
        [*twistd_command(), *words, "--listen", endpoint, "--push-port", "0"],
        cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 78
    assert done.stdout + done.stderr == (
        f'twistd chatws: --listen "{endpoint}": the private key key.pem does not belong to the certificate '
        '"shop.example" in fullchain.pem\n'
    )
