"""What the tests stand on: a trial installation, a disk over it, a database on that, an NBD client of our own and a model of a volume."""
