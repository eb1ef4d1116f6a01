"""Shared parts of the tests: a trial installation, a disk over it, a database on that, our own NBD client, a model of a
volume.
"""
