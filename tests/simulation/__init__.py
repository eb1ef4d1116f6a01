"""Simulation runs of volumes, one per seed: `python -m simulation`."""
