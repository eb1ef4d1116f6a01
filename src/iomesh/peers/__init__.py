"""Connections between nodes: how they recognize each other before the engine takes over (docs/protocols.md)."""
