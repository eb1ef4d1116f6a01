"""`iomesh inspect`: the structures on a device at rest, valid or damaged."""
