"""What a cluster has to agree on, and where it is kept. docs/metadata.md lists the keys and says what an implementation promises."""

from iomesh.metadata.protocol import Change, Delete, Entry, HistoryLost, Listing, Metadata, MetadataUnavailable, Operation, Put

__all__ = ["Change", "Delete", "Entry", "HistoryLost", "Listing", "Metadata", "MetadataUnavailable", "Operation", "Put"]
