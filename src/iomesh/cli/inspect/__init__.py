"""`iomesh inspect`: what is on a device at rest, structure by structure, sound or damaged."""
