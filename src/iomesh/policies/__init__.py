"""Decisions over numpy views of the engine's tables. Nothing here calls the engine or waits: arrays in, choices out."""
