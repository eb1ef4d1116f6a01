"""The certificates of the cluster in a Secret, and a node's own."""

from __future__ import annotations

import base64
import uuid
from pathlib import Path

import pytest

from iomesh.certificates.files import read_identity
from iomesh.errors import NotFound
from iomesh.operator.identity import adopt_identity, cluster_in_record, new_secret_data


def secret(folder: Path, cluster: uuid.UUID) -> Path:
    folder.mkdir()
    for name, content in new_secret_data(cluster).items():
        (folder / name).write_bytes(base64.b64decode(content))
    return folder


def test_a_node_makes_its_certificate_once_and_anew_for_another_secret(tmp_path: Path) -> None:
    cluster, directory = uuid.uuid4(), tmp_path / "cluster"
    first = secret(tmp_path / "first", cluster)
    assert adopt_identity(first, directory, "node1")
    made = read_identity(directory)
    assert (made.cluster, made.node) == (cluster, "node1")
    assert not adopt_identity(first, directory, "node1")
    assert read_identity(directory) == made
    assert adopt_identity(first, directory, "node2")
    assert adopt_identity(secret(tmp_path / "second", cluster), directory, "node2")
    assert read_identity(directory).authority != made.authority
    (directory / "node.key").write_text("damaged")
    assert adopt_identity(tmp_path / "second", directory, "node2")


def test_nodes_of_one_secret_have_one_authority_and_one_key(tmp_path: Path) -> None:
    given = secret(tmp_path / "secret", uuid.uuid4())
    for node in ("a", "b"):
        adopt_identity(given, tmp_path / node, node)
    a, b = (read_identity(tmp_path / node) for node in ("a", "b"))
    assert (a.authority, a.key) == (b.authority, b.key)
    assert a.certificate != b.certificate


def test_a_secret_that_lacks_something_is_refused(tmp_path: Path) -> None:
    given = secret(tmp_path / "secret", uuid.uuid4())
    (given / "ca.key").unlink()
    with pytest.raises(NotFound, match=r"ca\.crt, ca\.key, cluster\.key"):
        adopt_identity(given, tmp_path / "cluster", "a")


def test_a_secret_that_was_lost_is_made_anew_for_the_cluster_of_the_records() -> None:
    cluster = uuid.uuid4()
    text = f'{{"format":2,"id":"{cluster}","created_ns":1}}'
    record = {"metadata": {"name": "cluster", "resourceVersion": "7"}, "spec": {"key": "cluster", "text": text}}
    assert cluster_in_record(record) == cluster
    assert cluster_in_record(None) != cluster_in_record(None)
