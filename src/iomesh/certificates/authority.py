"""The cluster's certificate authority, and what it signs: the certificate of a node, of a client, of a join token.

What a certificate may do is its role, the first part of its common name: `node:NAME`, `client:NAME`, `join:ID`. Only a
node's is a server's, too: it has the name iomesh.api.channel.SERVER_NAME and no other. Keys are of the curve P-256.
"""

from __future__ import annotations

import datetime
import hashlib
import uuid
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from iomesh.api.channel import SERVER_NAME
from iomesh.errors import Damaged, InvalidArgument

AUTHORITY_DAYS = 36500
NODE_DAYS = 3650
CLIENT_DAYS = 365
EARLIER = datetime.timedelta(days=1)  # a certificate is valid from then on: clocks differ
UNIT = "iomesh cluster"

NODE, CLIENT, JOIN = "node", "client", "join"


class Signed(NamedTuple):
    """In PEM."""

    certificate: bytes
    key: bytes


class Role(NamedTuple):
    kind: str  # NODE, CLIENT, JOIN
    name: str


class Authority:
    def __init__(self, certificate: bytes, key: bytes) -> None:
        """In PEM. Raises Damaged."""
        try:
            self._certificate = x509.load_pem_x509_certificate(certificate)
            private = serialization.load_pem_private_key(key, None)
        except ValueError as error:
            raise Damaged(f"the cluster's certificate authority cannot be read: {error}") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise Damaged("the key of the cluster's certificate authority is of another kind than P-256")
        self._key = private

    @classmethod
    def create(cls, cluster: uuid.UUID) -> Signed:
        """A new one, for the cluster."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{UNIT} {cluster}")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - EARLIER)
            .not_valid_after(now + datetime.timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return Signed(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))

    def node(self, name: str, request: bytes | None = None) -> Signed:
        """request: the node's own key, as in `new_request`; None: make one. Raises InvalidArgument. The answer has no
        key for a request."""
        if request is None:
            key = ec.generate_private_key(ec.SECP256R1())
            return Signed(self._sign(key.public_key(), Role(NODE, name), NODE_DAYS), _key_pem(key))
        return Signed(self._sign(_requested(request), Role(NODE, name), NODE_DAYS), b"")

    def client(self, name: str, days: float = CLIENT_DAYS) -> Signed:
        return self._make(Role(CLIENT, name), days)

    def renewed(self, certificate: bytes, days: float) -> bytes:
        """Of the same key and role, valid anew."""
        key = x509.load_pem_x509_certificate(certificate).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return self._sign(key, role_of(certificate), days)

    def join(self, token: uuid.UUID, days: float) -> Signed:
        """Of a join token, which may do nothing but join."""
        return self._make(Role(JOIN, str(token)), days)

    def _make(self, role: Role, days: float) -> Signed:
        key = ec.generate_private_key(ec.SECP256R1())
        return Signed(self._sign(key.public_key(), role, days), _key_pem(key))

    def _sign(self, key: ec.EllipticCurvePublicKey, role: Role, days: float) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role.kind == NODE:
            usage.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{role.kind}:{role.name}"[:64])]))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - EARLIER)
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        )
        if role.kind == NODE:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def cluster_of(authority: bytes) -> uuid.UUID:
    """The cluster whose authority this is. Raises Damaged."""
    try:
        subject = x509.load_pem_x509_certificate(authority).subject
        (name,) = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return uuid.UUID(str(name.value).removeprefix(f"{UNIT} "))
    except ValueError as error:
        raise Damaged(f"the certificate authority is not that of an iomesh cluster: {error}") from None


def role_of(certificate: bytes) -> Role:
    """Of a certificate that TLS has verified. Raises Damaged."""
    try:
        subject = x509.load_pem_x509_certificate(certificate).subject
        (name,) = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError as error:
        raise Damaged(f"the certificate is not one of an iomesh cluster: {error}") from None
    return role_in(str(name.value))


def role_in(common_name: str) -> Role:
    kind, _, name = common_name.partition(":")
    return Role(kind, name)


def expires_at(certificate: bytes) -> datetime.datetime:
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of the certificate's public key, in hexadecimal: it stays the same when the certificate is renewed."""
    key = x509.load_pem_x509_certificate(certificate).public_key()
    raw = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(raw).hexdigest()


def new_request() -> Signed:
    """A request for a certificate, and the key, which stays with the one who makes it."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return Signed(request.public_bytes(serialization.Encoding.PEM), _key_pem(key))


def check_pair(certificate: bytes, key: bytes, authority: bytes) -> None:
    """Raises Damaged if the key is not the certificate's, or the authority has not signed it."""
    try:
        found = x509.load_pem_x509_certificate(certificate)
        private = serialization.load_pem_private_key(key, None)
        found.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except (ValueError, TypeError, InvalidSignature) as error:
        raise Damaged(f"the certificate is not one of this cluster's authority: {error or 'wrong signature'}") from None
    if private.public_key() != found.public_key():
        raise Damaged("the key is not that of the certificate")


def _requested(request: bytes) -> ec.EllipticCurvePublicKey:
    try:
        parsed = x509.load_pem_x509_csr(request)
    except ValueError as error:
        raise InvalidArgument(f"the request for a certificate cannot be read: {error}") from None
    key = parsed.public_key()
    if not parsed.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidArgument("the request for a certificate is not signed with a P-256 key of its own")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
