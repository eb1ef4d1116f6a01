"""A node's directory of certificates: `cluster` in its state directory, for the daemon's user alone.

    ca.crt, ca.key        the cluster's certificate authority
    node.crt, node.key    this node's certificate
    cluster.key           the cluster's key, by which nodes know each other (iomesh.node.peers.key)

Always so: the directory is complete or is not there: it is filled under another name and renamed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import NamedTuple

from iomesh.api.channel import Credentials
from iomesh.certificates.authority import NODE_DAYS, Authority, Signed, check_pair, cluster_of, role_of
from iomesh.errors import AlreadyExists, Damaged, IomeshError, NotFound, PermissionDenied, Unsupported, from_errno

FOLDER = "cluster"
AUTHORITY_CERTIFICATE, AUTHORITY_KEY = "ca.crt", "ca.key"
NODE_CERTIFICATE, NODE_KEY = "node.crt", "node.key"
CLIENT_CERTIFICATE, CLIENT_KEY = "client.crt", "client.key"
CLUSTER_KEY = "cluster.key"
KEY_BYTES = 32


class Identity(NamedTuple):
    """What makes a node one of its cluster. All but `cluster` and `node` are the files' contents. A node without the
    authority's key or the cluster's, which are empty then, cannot let others join."""

    cluster: uuid.UUID
    node: str
    authority: Signed
    certificate: Signed
    key: bytes  # of the cluster

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.authority.certificate, *self.certificate)

    @property
    def may_sign(self) -> bool:
        return bool(self.authority.key and self.key)

    def sign(self) -> Authority:
        """`may_sign` holds."""
        return Authority(*self.authority)


def new_identity(cluster: uuid.UUID, node: str) -> Identity:
    """Of the first node of a new cluster."""
    authority = Authority.create(cluster)
    certificate = Authority(*authority).node(node)
    return Identity(cluster, node, authority, certificate, secrets.token_hex(KEY_BYTES).encode() + b"\n")


def has_identity(directory: Path) -> bool:
    return (directory / NODE_CERTIFICATE).exists()


def read_identity(directory: Path) -> Identity:
    """Raises NotFound, PermissionDenied, Damaged."""
    try:
        ca, crt, crt_key = (
            (directory / name).read_bytes() for name in (AUTHORITY_CERTIFICATE, NODE_CERTIFICATE, NODE_KEY)
        )
        ca_key, key = (
            (directory / name).read_bytes() if (directory / name).exists() else b""
            for name in (AUTHORITY_KEY, CLUSTER_KEY)
        )
    except FileNotFoundError as error:
        raise NotFound(
            f"{error.filename} does not exist: `iomesh cluster init` makes a cluster, `iomesh cluster join` joins one"
        ) from None
    except OSError as error:
        raise PermissionDenied(f"{error.filename} is not readable ({error.strerror})") from None
    try:
        check_pair(crt, crt_key, ca)
        return Identity(cluster_of(ca), role_of(crt).name, Signed(ca, ca_key), Signed(crt, crt_key), key)
    except Damaged as error:
        raise Damaged(f"{directory}: {error.message}") from None


def refuse_existing(directory: Path) -> None:
    """Raises AlreadyExists if the node belongs to a cluster already."""
    if directory.exists():
        of = ""
        with contextlib.suppress(IomeshError):
            of = f" {read_identity(directory).cluster}"
        raise AlreadyExists(
            f"this node belongs to a cluster{of} already ({directory}): remove that directory if it is to leave it"
        )


def write_identity(directory: Path, identity: Identity) -> None:
    """Raises AlreadyExists, and what the system refuses."""
    refuse_existing(directory)
    write_files(
        directory,
        {
            AUTHORITY_CERTIFICATE: identity.authority.certificate,
            AUTHORITY_KEY: identity.authority.key,
            NODE_CERTIFICATE: identity.certificate.certificate,
            NODE_KEY: identity.certificate.key,
            CLUSTER_KEY: identity.key,
        },
    )


def renew_node(directory: Path) -> Identity:
    """Replaces a node's certificate by one of the same key that is valid for NODE_DAYS from now on. Raises what
    read_identity does, and Unsupported without the authority's key."""
    found = read_identity(directory)
    if not found.may_sign:
        raise Unsupported(
            f"{directory} has no key of the cluster's certificate authority, so the certificate of node {found.node} "
            f"cannot be renewed here: copy {AUTHORITY_KEY} from another node's directory, or remove the node and let "
            "it join again"
        )
    made = found.sign().renewed(found.certificate.certificate, NODE_DAYS)
    replace_file(directory / NODE_CERTIFICATE, made)
    return found._replace(certificate=found.certificate._replace(certificate=made))


def renew_client(identity: Identity, directory: Path, days: float) -> bytes:
    """Replaces a client's certificate by one of the same key and name; returns it. identity: of a node that may sign.
    Raises NotFound, Damaged."""
    file = directory / CLIENT_CERTIFICATE
    try:
        certificate, key = file.read_bytes(), (directory / CLIENT_KEY).read_bytes()
    except OSError as error:
        raise NotFound(
            f"{error.filename} cannot be read ({error.strerror}): name the directory of a client's certificate; "
            "without --renew, one is made"
        ) from None
    try:
        check_pair(certificate, key, identity.authority.certificate)
    except Damaged as error:
        raise Damaged(f"{directory}: {error.message}") from None
    made = identity.sign().renewed(certificate, days)
    replace_file(file, made)
    return made


def replace_file(file: Path, content: bytes) -> None:
    """Atomically, for its owner alone."""
    new = file.with_name(f".{file.name}.new")
    try:
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        new.replace(file)
    except OSError as error:
        raise from_errno(error.errno or 0, f"{file} cannot be written: {error.strerror}") from None


def write_files(directory: Path, files: dict[str, bytes]) -> None:
    """A new directory with these files, for its owner alone. Raises AlreadyExists."""
    if directory.exists():
        raise AlreadyExists(f"{directory} exists already: name a directory that does not, or remove it")
    try:
        directory.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))  # mode 0700
        try:
            for name, content in files.items():
                descriptor = os.open(made / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            made.rename(directory)
        except BaseException:
            shutil.rmtree(made)
            raise
    except OSError as error:
        raise from_errno(error.errno or 0, f"{directory} cannot be written: {error.strerror}") from None
