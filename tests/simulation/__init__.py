"""Lives of volumes in the simulated world, seed by seed: `python -m simulation`."""
