"""The loads. Each job is one fio process of its own kind; jobs of a profile run at once."""

from __future__ import annotations

from typing import NamedTuple


class Job(NamedTuple):
    name: str
    mode: str  # fio's rw=
    block_bytes: int
    depth: int
    read_percent: int = 50  # of mode randrw
    sync_each: int = 0  # writes between two flushes; 0: none


# PostgreSQL's pages have 8 KiB (block_size, postgresql.org/docs/current/runtime-config-preset.html), so have the blocks
# of its log (wal_block_size there), which a commit flushes with fdatasync (wal_sync_method, runtime-config-wal.html).
# It reads tables in requests of 128 KiB (io_combine_limit, runtime-config-resource.html). 70 reads to 30 writes is a
# common ratio in benchmarks of transactions, not a measurement.
PAGES = Job("pages", "randrw", 8 << 10, 16, read_percent=70)
LOG = Job("log", "write", 8 << 10, 1, sync_each=1)
SCAN = Job("scan", "read", 128 << 10, 4)

PROFILES: dict[str, tuple[Job, ...]] = {
    "oltp": (PAGES,),
    "log": (LOG,),
    "scan": (SCAN,),
    "mixed": (PAGES, LOG, SCAN),
}
