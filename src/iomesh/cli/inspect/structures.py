"""The engine's readers of structures at rest, with names for its numbers: a kind without a name stays a number."""

from typing import Any

from iomesh.engine import engine
from iomesh.times import exact_time

BLOCK = engine.BLOCK_BYTES
TIERS = {number: name for name, number in engine.TIERS.items()}
STATES = {1: "open", 2: "sealed"}
JOURNAL_KINDS = {1: "snapshot", 2: "snapshot end", 3: "changes"}
JOURNAL_ENTRY_KINDS = {1: "put", 2: "delete", 3: "fence"}
ENTRY_KINDS = {1: "data", 2: "zero", 3: "map", 4: "table", 5: "snapshot", 6: "checkpoint", 7: "record"}

Fields = dict[str, Any]


def superblock(data: bytes) -> Fields:
    return _timed(_named(engine.read_superblock(data), tier=TIERS), "created_ns", "created_at")


def journal_block(data: bytes, slab_bytes: int) -> Fields:
    found = _named(engine.read_journal_block(data, slab_bytes), kind=JOURNAL_KINDS)
    return found | {"entries": [_named(one, kind=JOURNAL_ENTRY_KINDS, state=STATES) for one in found["entries"]]}


def bitmap(data: bytes) -> Fields:
    return engine.read_bitmap(data)


def record(data: bytes) -> Fields:
    found = _by_the_wall_clock(engine.read_record(data), "written_at")
    return found | {"entries": [_named(one, kind=ENTRY_KINDS) for one in found["entries"]]}


def footer(data: bytes) -> Fields:
    """data: the footer's block, alone or with all blocks of its table; without these "entries" is None."""
    found = engine.read_footer(data)
    return found | {
        "entries": None if found["entries"] is None else [_named(one, kind=ENTRY_KINDS) for one in found["entries"]]
    }


def checkpoint(data: bytes) -> Fields:
    return dict(engine.read_checkpoint(data))


def node(data: bytes) -> Fields:
    """A map node has no checksum of its own: the pointer to it has it."""
    return {"valid": True, "fault": None, "pointers": list(engine.read_node(data))}


def crc32c(data: bytes) -> int:
    return engine.crc32c(data)


def _timed(fields: Fields, name: str, shown: str) -> Fields:
    """Shows the Unix time in `name` as RFC 3339 under the name `shown`. In a damaged structure the year may be out of
    range."""
    return {shown if key == name else key: _time_text(value) if key == name else value for key, value in fields.items()}


def _by_the_wall_clock(fields: Fields, shown: str) -> Fields:
    """Adds log time, and the wall clock's time then under the name `shown`; both as RFC 3339."""
    log_ns, clock_ns = fields["time_ns"], fields["clock_ns"]
    others = {key: value for key, value in fields.items() if key not in ("time_ns", "clock_ns")}
    return others | {"log_time": _time_text(log_ns), shown: _time_text(log_ns + clock_ns)}


def _time_text(nanoseconds: int) -> str:
    try:
        return exact_time(nanoseconds)
    except (ValueError, OverflowError, OSError):
        return f"{nanoseconds} ns"


def _named(fields: Fields, **names: dict[int, str]) -> Fields:
    return fields | {field: known.get(fields[field], fields[field]) for field, known in names.items()}
