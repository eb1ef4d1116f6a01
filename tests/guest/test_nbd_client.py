"""The NBD client of the Linux kernel, with a volume as its disk."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from iomesh.api.client import Client
from support.guest import guest
from support.run import eventually
from support.trial import Trial

MIB = 1 << 20
SIZE = 256 * MIB
CACHE = Path(__file__).parents[2] / "build" / "guest"  # of the kernel


def served_over_tcp(new_trial: Callable[..., Trial]) -> tuple[Trial, int]:
    """The trial, and the port at which it listens, after a restart as well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    trial = new_trial("--device-size", "1Gi", "--size", str(SIZE))
    trial.stop()
    with trial.config.open("a") as config:
        config.write(f'\n[nbd]\nlisten = "127.0.0.1:{port}"\n')
    trial.start()
    return trial, port


def free_bytes(trial: Trial) -> int:
    async def ask() -> int:
        async with Client(trial.control) as client:
            return (await client.devices())[0].free_bytes

    return asyncio.run(ask())


def connections(trial: Trial) -> int:
    async def ask() -> int:
        async with Client(trial.control) as client:
            return (await client.volume("trial")).exports[0].connections

    return asyncio.run(ask())


def await_free(trial: Trial, wanted: int) -> None:
    eventually(lambda: free_bytes(trial) >= wanted, what="what was trimmed is free", seconds=60)


def attach(port: int, device: str) -> str:
    return (
        f"nbd-client 10.0.2.2 {port} {device} -N trial -C 4 -t 30 >/tmp/attach 2>&1 || {{ cat /tmp/attach; exit 1; }}\n"
    )


@pytest.mark.timeout(600)
def test_a_filesystem_on_the_kernels_nbd_device(new_trial: Callable[..., Trial], room: Path) -> None:
    trial, port = served_over_tcp(new_trial)
    script = f"""
    {attach(port, "/dev/nbd0")}
    echo "size $(blockdev --getsize64 /dev/nbd0)"
    echo "cache $(cat /sys/block/nbd0/queue/write_cache), fua $(cat /sys/block/nbd0/queue/fua)"
    [ "$(cat /sys/block/nbd0/queue/discard_max_bytes)" -gt 0 ]
    mkfs.ext4 -q -F /dev/nbd0
    mount -t ext4 /dev/nbd0 /mnt
    for i in $(seq 1 40); do dd if=/dev/urandom of=/mnt/file$i bs=1M count=4 2>/dev/null; done
    sync
    (cd /mnt; sha256sum file* > /tmp/sums)
    echo full; sleep 1
    rm /mnt/file[1-3]?
    sync
    fstrim /mnt
    echo trimmed
    umount /mnt
    nbd-client -d /dev/nbd0 >/dev/null
    {attach(port, "/dev/nbd1")}
    e2fsck -fn /dev/nbd1 >/tmp/check 2>&1 || {{ cat /tmp/check; exit 1; }}
    mount -t ext4 /dev/nbd1 /mnt
    cd /mnt
    echo "$(for name in file*; do grep " $name$" /tmp/sums; done | sha256sum -c | grep -c OK) files are what they were"
    cd /
    umount /mnt
    nbd-client -d /dev/nbd1 >/dev/null
    """
    seen: list[str] = []
    full = 0
    with guest(room, CACHE, script) as lines:
        for line in lines:
            seen.append(line)
            if line == "full":
                full = free_bytes(trial)
                assert connections(trial) == 4
            if line == "trimmed":
                await_free(trial, full + 90 * MIB)
    assert f"size {SIZE}" in seen
    assert "cache write back, fua 1" in seen
    assert "10 files are what they were" in seen, seen  # 1 to 9, and 40


@pytest.mark.timeout(600)
def test_what_was_synced_is_there_after_the_daemon_was_killed(new_trial: Callable[..., Trial], room: Path) -> None:
    trial, port = served_over_tcp(new_trial)
    script = f"""
    {attach(port, "/dev/nbd0")}
    mkfs.ext4 -q -F /dev/nbd0
    mount -t ext4 /dev/nbd0 /mnt
    sync
    i=0
    while [ $i -lt 10000 ]; do
        i=$((i + 1))
        head -c 200000 /dev/urandom > /tmp/new
        sum=$(sha256sum < /tmp/new)
        dd if=/tmp/new of=/mnt/file$i bs=200k conv=fsync 2>/dev/null || break
        echo "${{sum%% *}}  file$i" >> /tmp/sums
        [ $i -ne 8 ] || echo "under way"
    done
    echo "broken after $(wc -l < /tmp/sums) files"
    umount /mnt 2>/dev/null || umount -l /mnt
    nbd-client -d /dev/nbd0 >/dev/null 2>&1 || true
    until nbd-client 10.0.2.2 {port} /dev/nbd1 -N trial -C 4 -t 30 >/dev/null 2>&1; do sleep 0.2; done
    e2fsck -p /dev/nbd1 >/tmp/check 2>&1 || [ $? -le 1 ] || {{ cat /tmp/check; exit 1; }}
    mount -t ext4 /dev/nbd1 /mnt
    cd /mnt
    sha256sum -c /tmp/sums > /tmp/compared || {{ grep -v OK /tmp/compared; exit 1; }}
    echo "all $(wc -l < /tmp/compared) files are there"
    cd /
    umount /mnt
    nbd-client -d /dev/nbd1 >/dev/null
    """
    broken = there = ""
    with guest(room, CACHE, script) as lines:
        for line in lines:
            if line == "under way":
                trial.crash()
            if line.startswith("broken"):
                broken = line
                trial.start()
            if line.startswith("all "):
                there = line
    written = int(broken.split()[2])
    print(broken)
    assert written >= 8
    assert there == f"all {written} files are there"
