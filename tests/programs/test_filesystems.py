"""XFS and ext4 on a volume: files come back, deleted ones give their space back, and fsck finds nothing."""

import json
import os
import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from support.disk import Disk
from support.run import eventually, run, tool
from support.trial import Trial

KINDS = pytest.mark.parametrize("kind", ["xfs", "ext4"])


@pytest.fixture
def volume_bytes() -> int:
    return 1 << 30  # mkfs.xfs wants 300 MiB at least


def data_bytes(uri: str) -> int:
    """How much of the volume is mapped."""
    extents = json.loads(run([tool("nbdinfo", "libnbd-bin"), "--map", "--json", uri]).stdout)
    return sum(extent["length"] for extent in extents if extent["description"] == "data")


def write_files(folder: Path, draw: random.Random, count: int) -> dict[str, bytes]:
    """Files of many sizes in folders; returns their digests."""
    digests = {}
    for number in range(count):
        path = folder / f"folder{number % 7}" / f"file{number}"
        path.parent.mkdir(exist_ok=True)
        data = os.urandom(draw.choice((1, 700, 4096, 50_000, 300_000, 1_500_000)))
        path.write_bytes(data)
        digests[str(path.relative_to(folder))] = sha256(data).digest()
    return digests


def files_differ(folder: Path, digests: dict[str, bytes]) -> list[str]:
    return [name for name, digest in digests.items() if sha256((folder / name).read_bytes()).digest() != digest]


@KINDS
def test_files_are_there_after_unmount_and_mount(disk: Disk, draw: random.Random, kind: str) -> None:
    disk.make(kind)
    digests = write_files(disk.mount(), draw, 200)
    disk.unmount()
    disk.check(kind)
    assert files_differ(disk.mount(), digests) == []


@KINDS
def test_fstrim_gives_the_space_of_deleted_files_back(disk: Disk, draw: random.Random, kind: str) -> None:
    disk.make(kind)
    folder = disk.mount()
    before = data_bytes(disk.uri)
    (folder / "big").write_bytes(os.urandom(200 << 20))
    kept = write_files(folder, draw, 30)
    os.sync()
    assert data_bytes(disk.uri) > before + (200 << 20)
    (folder / "big").unlink()
    os.sync()

    def trimmed() -> bool:  # XFS frees the blocks of a deleted file in the background, so the first may come too early
        run([tool("fstrim", "util-linux"), folder])
        return data_bytes(disk.uri) < before + (100 << 20)

    eventually(trimmed, what="the deleted file's space is not mapped any more")
    disk.unmount()
    disk.check(kind)
    assert files_differ(disk.mount(), kept) == []


@KINDS
def test_synced_files_are_there_after_the_daemon_is_killed(
    new_trial: Callable[..., Trial], new_disk: Callable[[str], Disk], draw: random.Random, kind: str
) -> None:
    trial = new_trial("--device-size", "8Gi", "--size", "1Gi")
    disk = new_disk(trial.uri)
    disk.make(kind)
    folder = disk.mount()
    digests = write_files(folder, draw, 100)
    os.sync()
    write_files(folder / "folder0", draw, 20)  # in flight as the daemon dies
    trial.crash()
    disk.detach()
    trial.start()
    again = new_disk(trial.uri)
    folder = again.mount()  # replays the filesystem's log
    assert files_differ(folder, digests) == []
    again.unmount()
    again.check(kind)


def test_the_disk_supports_trim(disk: Disk) -> None:
    queue = Path("/sys/block") / Path(disk.device).name / "queue"
    assert int((queue / "discard_max_bytes").read_text()) > 0
