"""The node daemon: everything around the engine that is not on the way of a read or a write."""
