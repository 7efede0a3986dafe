"""TLS for a listener (`ssl:`): check its certificate, and replace it while the server runs.

The OpenSSL settings (versions, ciphers, curves) are those of Twisted's `CertificateOptions`. Three things differ. The
server sends the whole chain of a file. A client may offer any ALPN protocols (RFC 7301). A client that sends
`close_notify` still receives the responses to its requests (RFC 8446 §6.1: each direction is closed separately).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL
from twisted.internet import ssl
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IOpenSSLServerConnectionCreator,
    IProtocolNegotiationFactory,
)
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath
from zope.interface import alsoProvides, implementer

from chatws.runtime.regular_file import read_regular_file

__all__ = ["CertificateError", "ServerTls", "TlsFactory", "describe_certificate", "read_certificate"]

#: Bytes of a file: a chain of certificates with comments has some 20 KiB.
MAX_FILE = 1_048_576
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----\n?", re.DOTALL)


class CertificateError(ValueError):
    """A key or certificate is invalid. The text is one line for the operator."""


def read_certificate(arguments: Mapping[str, str], now: datetime.datetime | None = None) -> bytes:
    """Read and check the private key and the certificate chain that an endpoint string names.

    :param arguments: arguments of the endpoint string: `privateKey`; `certKey`, by default the same file;
        `extraCertChain`.
    :param now: the time at which the certificates must be valid, by default the present.
    :returns: PEM: the key, the server's certificate, and the certificates of its issuers in order.
    :raises CertificateError: a file is missing, unreadable or malformed, key and certificate do not belong together,
        the chain is in the wrong order, or one of the certificates is not valid at this time.
    """
    key_path = arguments.get("privateKey", "")
    if not key_path:
        raise CertificateError("the private key is missing: write ssl:443:privateKey=key.pem:certKey=fullchain.pem")
    certificate_path = arguments.get("certKey") or key_path
    key_pem = _key_block(_read(key_path, "private key"), key_path)
    chain = _certificates(_read(certificate_path, "certificate"), certificate_path)
    extra = arguments.get("extraCertChain")
    if extra:
        chain += _certificates(_read(extra, "certificate chain"), extra)
    _check_key(key_pem, key_path, chain, certificate_path)
    _check_chain(chain, certificate_path)
    now = now or datetime.datetime.now(datetime.UTC)
    for certificate in chain:
        subject = f"the certificate {_name(certificate)} in {certificate_path}"
        if now > certificate.not_valid_after_utc:
            raise CertificateError(f"{subject} expired on {_date(certificate.not_valid_after_utc)}: renew it")
        if now < certificate.not_valid_before_utc:
            start = _date(certificate.not_valid_before_utc)
            raise CertificateError(f"{subject} is not valid before {start}: wait, or correct this machine's clock")
    return key_pem + b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in chain)


def describe_certificate(pem: bytes) -> str:
    """Describe the certificate in `read_certificate`'s PEM for the log: its name and the end of its validity."""
    leaf = x509.load_pem_x509_certificates(pem)[0]
    return f"{_name(leaf)}, valid until {_date(leaf.not_valid_after_utc)}"


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """The TLS settings of one listener, for each new connection.

    :param pem: the result of `read_certificate`.
    :param arguments: arguments of the endpoint string: `sslmethod` and `dhParameters`.
    :raises CertificateError: OpenSSL does not accept them.
    :ivar pem: the key and the certificates in use.
    """

    def __init__(self, pem: bytes, arguments: Mapping[str, str]) -> None:
        self.pem = pem
        self._arguments = arguments
        self._context = _make_context(pem, arguments)

    def read(self) -> bytes:
        """Read the key and the certificate from the files again, without using them. See `read_certificate`.

        :raises CertificateError: they are invalid.
        """
        pem = read_certificate(self._arguments)
        _make_context(pem, self._arguments)
        return pem

    def use(self, pem: bytes) -> None:
        """Use another key and certificate from the next handshake on. Open connections keep theirs."""
        self._context = _make_context(pem, self._arguments)
        self.pem = pem

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """See `IOpenSSLServerConnectionCreator`."""
        return _Connection(self._context, protocol)


class TlsFactory(TLSMemoryBIOFactory):
    """Wraps a factory in TLS.

    :param tls: the listener's `ServerTls`.
    """

    def __init__(self, tls: Any, factory: Any) -> None:
        super().__init__(tls, False, factory)
        self.protocol = _TlsProtocol


class _TlsProtocol(BufferingTLSTransport):
    """TLS for a protocol that may be half-closed. The end of the TCP stream also ends only the input."""

    def makeConnection(self, transport: Any) -> None:
        super().makeConnection(transport)  # type: ignore[no-untyped-call]
        if self.getHandle().half_closes:  # type: ignore[no-untyped-call]
            alsoProvides(self, IHalfCloseableProtocol)

    def readConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`."""
        connection: _Connection = self.getHandle()  # type: ignore[no-untyped-call]
        # no close_notify can arrive after the end of the stream: do not wait for it when closing
        connection.set_shutdown(connection.get_shutdown() | SSL.RECEIVED_SHUTDOWN)
        connection.end_input()

    def writeConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        super().connectionLost(reason)
        # a producer that was not unregistered refers to this transport, a cycle that only the garbage collector frees
        self._producer = None

    def _tlsShutdownFinished(self, reason: Any) -> None:
        # the frames of its traceback refer to the failure, a cycle that only the garbage collector frees
        if reason is not None:
            reason.cleanFailure()
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]


class _Connection(SSL.Connection):
    """OpenSSL's side of one connection.

    :param protocol: the `TLSMemoryBIOProtocol` of the connection.
    :ivar half_closes: whether the wrapped protocol may still send after the end of its input. The first wrapped
        protocol decides this. A WebSocket, which later replaces its HTTP request, does not change it.
    """

    def __init__(self, context: SSL.Context, protocol: Any) -> None:
        super().__init__(context)
        self.protocol = protocol
        self.half_closes = IHalfCloseableProtocol.providedBy(protocol.wrappedProtocol)
        self._input_ended = False

    def recv(self, bufsiz: int, flags: int | None = None) -> bytes:
        """Return decrypted data.

        Twisted closes the connection when the peer has ended its input. This class notifies a protocol that can still
        send, and Twisted has nothing more to read.
        """
        try:
            return super().recv(bufsiz, flags)
        except SSL.ZeroReturnError:
            if not self.half_closes or self.protocol.disconnecting:
                raise
            self.end_input()
            raise SSL.WantReadError from None

    def end_input(self) -> None:
        """Notify the wrapped protocol of the end of its input, once."""
        if not self._input_ended:
            self._input_ended = True
            self.protocol.wrappedProtocol.readConnectionLost()


def _select_protocol(connection: Any, offered: Sequence[bytes]) -> Any:
    """Choose one of the ALPN protocols that a client offers (RFC 7301).

    Without a common protocol the server accepts the connection without ALPN. A client that requires one closes it.
    """
    factory: Any = IProtocolNegotiationFactory(connection.protocol.factory.wrappedFactory, None)
    for protocol in factory.acceptableProtocols() if factory is not None else ():
        if protocol in offered:
            return protocol
    return SSL.NO_OVERLAPPING_PROTOCOLS


def _make_context(pem: bytes, arguments: Mapping[str, str]) -> SSL.Context:
    leaf, *issuers = x509.load_pem_x509_certificates(pem)
    key: Any = serialization.load_pem_private_key(_blocks(pem, b"PRIVATE KEY")[0], None)
    options: dict[str, Any] = {}
    method = arguments.get("sslmethod")
    if method:
        if not hasattr(SSL, method):
            raise CertificateError(f'sslmethod: OpenSSL has no method "{method}": leave it out')
        options["method"] = getattr(SSL, method)
    dh_path = arguments.get("dhParameters")
    try:
        if dh_path:
            _read(dh_path, "Diffie-Hellman parameters")
            options["dhParameters"] = ssl.DiffieHellmanParameters.fromFile(FilePath(dh_path))  # type: ignore[no-untyped-call]
        context: SSL.Context = ssl.CertificateOptions(**options).getContext()
        context.use_certificate(leaf)
        for certificate in issuers:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(key)
    except SSL.Error as error:
        reasons = "; ".join(str(entry[-1]) for entry in error.args[0]) if error.args else "unknown reason"
        raise CertificateError(f"OpenSSL does not accept the certificate: {reasons}") from None
    context.set_alpn_select_callback(_select_protocol)
    return context


def _read(path: str, content: str) -> bytes:
    try:
        return read_regular_file(path, MAX_FILE)
    except OSError as error:
        raise CertificateError(f"cannot read the {content} {path}: {error.strerror}") from None


def _blocks(data: bytes, kind: bytes) -> list[bytes]:
    """Return the PEM blocks (RFC 7468) whose label ends with `kind`."""
    return [match.group() for match in _BLOCK.finditer(data) if match.group(1).endswith(kind)]


def _key_block(data: bytes, path: str) -> bytes:
    keys = _blocks(data, b"PRIVATE KEY")
    if not keys:
        hint = ": are privateKey and certKey swapped?" if _blocks(data, b"CERTIFICATE") else _hint(data, "pkey")
        raise CertificateError(f"{path} contains no private key in PEM form{hint}")
    if b"ENCRYPTED" in keys[0]:
        raise CertificateError(
            f"the private key {path} has a passphrase, and the server cannot enter one: "
            f"remove it with openssl pkey -in {path} -out plain.pem"
        )
    return keys[0].rstrip() + b"\n"


def _certificates(data: bytes, path: str) -> list[x509.Certificate]:
    blocks = _blocks(data, b"CERTIFICATE")
    if not blocks:
        hint = ": are privateKey and certKey swapped?" if _blocks(data, b"PRIVATE KEY") else _hint(data, "x509")
        raise CertificateError(f"{path} contains no certificate in PEM form{hint}")
    chain = []
    for number, block in enumerate(blocks, 1):
        try:
            chain.append(x509.load_pem_x509_certificate(block))
        except ValueError as error:
            raise CertificateError(f"certificate {number} in {path} is damaged: {_one_line(error)}") from None
    return chain


def _hint(data: bytes, command: str) -> str:
    # a DER file is an ASN.1 SEQUENCE, whose first byte is 0x30 (X.690 §8.9)
    return f": convert it with openssl {command} -inform der" if data.startswith(b"\x30") else ""


def _check_key(key_pem: bytes, key_path: str, chain: Sequence[x509.Certificate], path: str) -> None:
    try:
        key = serialization.load_pem_private_key(key_pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(
            f"the private key in {key_path} is damaged or of an unknown kind: {_one_line(error)}"
        ) from None
    public = _public_bytes(key.public_key())
    matching = [number for number, cert in enumerate(chain, 1) if _public_bytes(cert.public_key()) == public]
    if not matching:
        raise CertificateError(
            f"the private key {key_path} does not belong to the certificate {_name(chain[0])} in {path}"
        )
    if matching[0] > 1:
        raise CertificateError(
            f"the chain in {path} is in the wrong order: the certificate of the private key is number {matching[0]} "
            "and has to be the first, followed by its issuers"
        )


def _check_chain(chain: Sequence[x509.Certificate], path: str) -> None:
    for number, certificate in enumerate(chain[1:], 1):
        # each must be the issuer of any certificate before it: a chain may lead to two roots (RFC 8446 §4.4.2)
        if not any(_has_issued(certificate, other) for other in chain[:number]):
            raise CertificateError(
                f"the chain in {path} is in the wrong order or incomplete: certificate {number + 1}, "
                f"{_name(certificate)}, did not issue any certificate before it; write each one's issuer after it"
            )


def _has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, InvalidSignature):
        return False
    except (TypeError, UnsupportedAlgorithm):  # an unsupported signature; the names have been compared
        return True
    return True


def _public_bytes(key: Any) -> bytes:
    spki: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return spki


def _name(certificate: x509.Certificate) -> str:
    common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    if common:
        return f'"{common[0].value!s}"'
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return f'"{names[0].value}"'
    except (x509.ExtensionNotFound, IndexError, ValueError):
        return f'"{certificate.subject.rfc4514_string()}"'


def _date(time: datetime.datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
