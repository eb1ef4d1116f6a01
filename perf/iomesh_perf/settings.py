"""Size and location of a benchmark."""

from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Settings:
    directory: Path  # scratch; everything in it is removed at the end
    runs: int = 5
    seconds: float = 5.0  # per run
    calibration_seconds: float = 3.0
    span_bytes: int = 4 * GIB  # range of the raw file and of the volume that runs use
    # A run of writes ends after this many bytes even if its time is not over: they must all fit in the device file.
    most_written_bytes: int = 4 * GIB
    device_bytes: int = 18 * GIB
    memory_volume_bytes: int = 100 * GIB
    memory_written_bytes: int = 20 * GIB
    memory_device_bytes: int = 48 * GIB
    restart_log_bytes: int = 4 * GIB
    idle_seconds: float = 30.0
    instruction_writes: int = 1_000
    reactors: int = 2  # of the node that is compared with one of a single reactor
    cluster_span_bytes: int = 2 * GIB  # the same of a volume with replicas on several nodes of this machine
    cluster_most_written_bytes: int = GIB
    cluster_device_bytes: int = 8 * GIB  # of each node
    amplification_device_bytes: int = 8 * GIB
    amplification_times: float = 3.0  # overwrites this many times the capacity


# Short runs: they show that the benchmark works, not how fast the engine is.
QUICK: dict[str, int | float] = {
    "runs": 2,
    "seconds": 1.0,
    "calibration_seconds": 1.0,
    "span_bytes": GIB // 2,
    "most_written_bytes": GIB // 2,
    "device_bytes": 4 * GIB,
    "memory_written_bytes": GIB,
    "memory_device_bytes": 4 * GIB,
    "restart_log_bytes": GIB // 2,
    "idle_seconds": 5.0,
    "instruction_writes": 500,
    "cluster_span_bytes": GIB // 4,
    "cluster_most_written_bytes": GIB // 4,
    "cluster_device_bytes": 2 * GIB,
    "amplification_device_bytes": GIB,
    "amplification_times": 1.0,
}
