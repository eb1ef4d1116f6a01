"""The state that a cluster has to agree on, and its storage. docs/metadata.md lists the keys and the guarantees of an
implementation."""

from iomesh.metadata.protocol import (
    Change,
    Delete,
    Entry,
    HistoryLost,
    Listing,
    Metadata,
    MetadataUnavailable,
    Operation,
    Put,
)

__all__ = ["Change", "Delete", "Entry", "HistoryLost", "Listing", "Metadata", "MetadataUnavailable", "Operation", "Put"]
