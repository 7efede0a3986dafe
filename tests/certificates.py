"""Certificates for tests of TLS: self-signed ones, and those of an authority with an intermediate."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["Authority", "SelfSigned", "Signed", "self_signed"]

_PEM = serialization.Encoding.PEM
_AUTHORITY_USAGE = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    crl_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)
_DAY = datetime.timedelta(days=1)


class SelfSigned(NamedTuple):
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes

    @property
    def both(self) -> bytes:
        """What a file may hold that serves as either."""
        return self.key + self.certificate

    def trusted(self) -> ssl.SSLContext:
        """For a client that trusts this certificate and no other."""
        return ssl.create_default_context(cadata=self.certificate.decode())


class Signed(NamedTuple):
    """A server's certificate, its key and its issuer's certificate, in PEM."""

    certificate: bytes
    key: bytes
    intermediate: bytes

    @property
    def fullchain(self) -> bytes:
        """What certbot calls fullchain.pem."""
        return self.certificate + self.intermediate


class Authority:
    """A certificate authority: a root, which clients trust, and an intermediate, which issues.

    :ivar root: the root's certificate, in PEM.
    """

    def __init__(self) -> None:
        root_key, self._key = new_key(), new_key()
        root = make_certificate("chatws test root", root_key, root_key, authority=True)
        self._intermediate = make_certificate(
            "chatws test intermediate", self._key, root_key, issuer=root.subject, authority=True
        )
        self.root = root.public_bytes(_PEM)
        self.intermediate = self._intermediate.public_bytes(_PEM)

    def issue(self, *names: str, start: float = -1, end: float = 1) -> Signed:
        """A certificate for 127.0.0.1 and these host names ("localhost" when there are none).

        :param start: its validity begins in so many days, and :param end: ends in so many.
        """
        key = new_key()
        certificate = make_certificate(
            (names or ("localhost",))[0], key, self._key, issuer=self._intermediate.subject, names=names, start=start,
            end=end,
        )  # fmt: skip
        return Signed(certificate.public_bytes(_PEM), private_pem(key), self.intermediate)

    def trusted(self) -> ssl.SSLContext:
        """For a client that trusts the root and no other."""
        return ssl.create_default_context(cadata=self.root.decode())


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: Any, passphrase: bytes = b"") -> bytes:
    """The private key in PEM, encrypted if there is a passphrase."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    pem: bytes = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, encryption)
    return pem


def make_certificate(
    subject: str,
    key: Any,
    signer: Any,
    *,
    issuer: x509.Name | None = None,
    names: tuple[str, ...] = (),
    authority: bool = False,
    start: float = -1,
    end: float = 1,
) -> x509.Certificate:
    """A certificate, signed with `signer`; validity in days from now."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    now = datetime.datetime.now(datetime.UTC)
    alternatives = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, names or ("localhost",))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer or name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start * _DAY)
        .not_valid_after(now + end * _DAY)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        # Python 3.13 and later verify with VERIFY_X509_STRICT, which requires the identifiers and an authority's usage.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if authority:
        builder = builder.add_extension(_AUTHORITY_USAGE, critical=True)
    return builder.sign(signer, hashes.SHA256())


def self_signed(*names: str) -> SelfSigned:
    """A certificate for 127.0.0.1 and these host names ("localhost" when there are none), valid for a day."""
    key = new_key()
    certificate = make_certificate("chatws test", key, key, names=names, authority=True)
    return SelfSigned(certificate.public_bytes(_PEM), private_pem(key))
