"""Limits of the control group: a daemon that reaches one is killed, or stands still in the middle of its work."""

from __future__ import annotations

from pathlib import Path

from iomesh.node.config import EngineConfig
from iomesh.preflight.findings import Check, ok, skipped, warning
from iomesh.sizes import short_size

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
# Of a daemon without its map cache: Python, and of each reactor the buffers for requests in flight (56 MiB) and for
# those that a device has not given back.
BASE_BYTES, REACTOR_BYTES = 192 << 20, 128 << 20


def check_limits(config: EngineConfig) -> list[Check]:
    if not (GROUPS / "cgroup.controllers").exists():
        return [skipped("limits", "this machine's control groups are of version 1: look at its limits by hand")]
    return [_memory(config), _processors(config)]


def _memory(config: EngineConfig) -> Check:
    needed = BASE_BYTES + config.reactors * REACTOR_BYTES + config.map_cache_bytes
    limit = _least("memory.max")
    if limit is None:
        return ok("memory limit", "none")
    if limit < needed:
        return warning(
            "memory limit",
            f"{short_size(int(limit))}, and the daemon may use {short_size(needed)}: raise it (resources.limits, "
            "MemoryMax=), or lower engine.map_cache_bytes",
        )
    return ok("memory limit", f"{short_size(int(limit))}; the daemon may use {short_size(needed)}")


def _processors(config: EngineConfig) -> Check:
    limit = _least("cpu.max")
    if limit is None:
        return ok("CPU limit", "none")
    if limit < config.reactors + 1:
        return warning(
            "CPU limit",
            f"{limit:g} cores, and {config.reactors} reactor(s) and the daemon's other threads use "
            f"{config.reactors + 1}: without time they stop for up to 0.1 s at once; give no limit (resources.limits, "
            "CPUQuota=), or a higher one",
        )
    return ok("CPU limit", f"{limit:g} cores")


def _least(file: str) -> float | None:
    """The lowest limit of our control group and those above it; None: there is none, or no cgroup v2."""
    found = [limit for group in _groups() if (limit := _limit(group / file)) is not None]
    return min(found, default=None)


def _groups() -> list[Path]:
    own = next((line.partition("::")[2] for line in OWN.read_text().splitlines() if line.startswith("0::")), "/")
    place = GROUPS / own.strip("/")
    return [place, *(each for each in place.parents if each.is_relative_to(GROUPS))]


def _limit(file: Path) -> float | None:
    """memory.max in bytes, cpu.max in cores."""
    try:
        words = file.read_text().split()
    except OSError:
        return None
    if words[0] == "max":
        return None
    return int(words[0]) / (int(words[1]) if len(words) > 1 else 1)
