"""The certificates of the cluster, in a Secret, and those of a node, in its state directory (docs/certificates.md).

The operator makes the Secret once: the authority and the cluster's key. Each node makes its own certificate from it
before its daemon starts, so no node's key leaves the node.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import uuid
from pathlib import Path

from iomesh.certificates.authority import Authority, Signed, cluster_of
from iomesh.certificates.files import (
    AUTHORITY_CERTIFICATE,
    AUTHORITY_KEY,
    CLUSTER_KEY,
    Identity,
    has_identity,
    new_identity,
    read_identity,
    write_identity,
)
from iomesh.errors import Damaged, NotFound
from iomesh.metadata.kubernetes import entry_of
from iomesh.metadata.kubernetes_api import Object
from iomesh.metadata.records import ClusterRecord, decode

FILES = (AUTHORITY_CERTIFICATE, AUTHORITY_KEY, CLUSTER_KEY)


def new_secret_data(cluster: uuid.UUID) -> Object:
    """The `data` of the Secret of this cluster."""
    made = new_identity(cluster, "operator")  # whose own certificate is not kept
    contents = (made.authority.certificate, made.authority.key, made.key)
    return {name: base64.b64encode(content).decode() for name, content in zip(FILES, contents, strict=True)}


def adopt_identity(secret: Path, directory: Path, node: str) -> bool:
    """Gives the node its certificates, unless `directory` has those of this authority. Returns whether it did. Raises
    NotFound, Damaged, and what the system refuses."""
    try:
        ca, ca_key, key = ((secret / name).read_bytes() for name in FILES)
    except OSError as error:
        raise NotFound(f"the Secret of the cluster lacks {', '.join(FILES)}: {error.strerror}") from None
    authority = Signed(ca, ca_key)
    wanted = Identity(cluster_of(ca), node, authority, Authority(*authority).node(node), key)
    if has_identity(directory):
        with contextlib.suppress(Damaged):
            found = read_identity(directory)
            if found._replace(certificate=wanted.certificate) == wanted:
                return False
    if directory.exists():  # of an earlier Secret: it holds no data, and no other node accepts it
        shutil.rmtree(directory)
    write_identity(directory, wanted)
    return True


def cluster_in_record(record: Object | None) -> uuid.UUID:
    """The cluster of the metadata in this namespace: a Secret that was lost is made anew for the same one; without a
    record it is a new cluster."""
    if record is None:
        return uuid.uuid4()
    found, _ = decode(ClusterRecord, entry_of(record))
    return found.id
