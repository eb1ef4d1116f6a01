"""Opens the metadata service that the configuration names."""

from __future__ import annotations

from pathlib import Path

from iomesh.errors import Unsupported
from iomesh.metadata import Metadata
from iomesh.metadata.etcd import EtcdMetadata
from iomesh.metadata.etcd_api import etcd_access
from iomesh.metadata.sqlite import SqliteMetadata
from iomesh.node.config import MetadataConfig
from iomesh.node.supervisor import in_thread


async def open_metadata(config: MetadataConfig) -> Metadata:
    """Raises MetadataUnavailable while it does not answer, and other errors if it cannot be used."""
    if config.kind == "sqlite":
        return await SqliteMetadata.open(Path(config.path))
    if config.kind == "etcd":
        access = etcd_access(config.endpoints, config.ca_file, config.certificate_file, config.key_file)
        return await EtcdMetadata.open(access, config.prefix)
    try:
        from iomesh.metadata.kubernetes import KubernetesMetadata  # needs packages that no other kind needs
        from iomesh.metadata.kubernetes_api import find_access
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"metadata.kind is kubernetes, and the Python package {error.name} is missing: pip install "
            "'iomesh[kubernetes]'"
        ) from error
    found = await in_thread(lambda: find_access(config.kubeconfig))
    return await KubernetesMetadata.open(found, config.namespace)


def metadata_place(config: MetadataConfig) -> str:
    """For messages: where the records are."""
    match config.kind:
        case "sqlite":
            return config.path
        case "etcd":
            return f"etcd at {', '.join(config.endpoints)}"
        case "kubernetes":
            return "Kubernetes"
