"""A real Kubernetes on this machine, for tests: its programs, images, a control plane and nodes (docs/testing.md)."""
