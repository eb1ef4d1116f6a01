"""The exports of volumes, as far as Python implements them: the handshakes. The transmission phase is the engine's."""
