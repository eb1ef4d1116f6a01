"""The doors to a volume, as far as Python opens them: handshakes. What comes after is the engine's."""
