"""The cluster's certificates and join tokens (docs/certificates.md).

`authority` makes certificates, `files` has them in a node's directory, `token` is how a new node gets its own.
"""
