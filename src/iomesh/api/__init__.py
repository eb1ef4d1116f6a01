"""The control API of a node: its contract (iomesh.proto), what it speaks of (model) and a client."""
