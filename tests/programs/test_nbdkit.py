"""nbdkit's nbd plugin as a client, with filters on top that ask in ways of their own."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.run import end, eventually, run, tool


@contextmanager
def nbdkit_over(uri: str, room: Path, *words: str | Path, filters: Sequence[str] = ()) -> Iterator[str]:
    """An nbdkit that is a client of the volume and itself a server; yields its URI."""
    socket = room / "nbdkit.sock"
    listens = socket.with_suffix(".pid")  # written once it listens; the socket exists earlier
    process = subprocess.Popen(
        [
            tool("nbdkit", "nbdkit"),
            "-f",
            "-U",
            str(socket),
            "-P",
            str(listens),
            *(f"--filter={one}" for one in filters),
            "nbd",
            f"uri={uri}",
            *(str(word) for word in words),
        ]
    )
    try:
        eventually(lambda: listens.exists() or process.poll() is not None, what="nbdkit listens")
        assert process.poll() is None, f"nbdkit could not connect to {uri}"
        yield f"nbd+unix:///?socket={socket}"
    finally:
        end(process.pid)
        process.wait()
        socket.unlink(missing_ok=True)
        listens.unlink(missing_ok=True)


def qemu_io(uri: str, *commands: str) -> None:
    said = run(
        [
            tool("qemu-io", "qemu-utils"),
            "-f",
            "raw",
            "-d",
            "unmap",
            *(word for command in commands for word in ("-c", command)),
            uri,
        ]
    ).stdout
    assert "verification failed" not in said.lower(), said


def test_data_through_nbdkit_is_the_volumes_data(volume: str, room: Path) -> None:
    with nbdkit_over(volume, room) as through:
        qemu_io(through, "write -P 1 1M 3M", "write -P 2 4097 5", "discard 2M 1M", "write -z 3M 100k", "flush")
        qemu_io(through, "read -P 1 1M 1M", "read -P 2 4097 5", "read -P 0 2M 1M", "read -P 0 3M 100k")
    qemu_io(volume, "read -P 1 1M 1M", "read -P 2 4097 5", "read -P 0 2M 1M", "read -P 0 3M 100k")


def test_four_connections_through_nbdkit_copy_the_volume(volume: str, room: Path) -> None:
    qemu_io(volume, "write -P 3 0 20M", "write -P 4 200M 8M")
    copy = room / "copy"
    with nbdkit_over(volume, room) as through:
        run([tool("nbdcopy", "libnbd-bin"), "--connections=4", through, copy])
    assert (
        "identical"
        in run([tool("qemu-img", "qemu-utils"), "compare", "-f", "raw", "-F", "raw", volume, copy], timeout=120).stdout
    )


def test_block_by_block_and_without_extents_it_is_the_same_volume(volume: str, room: Path) -> None:
    qemu_io(volume, "write -P 3 5000 70000", "write -P 4 100M 64k")
    with nbdkit_over(volume, room, "maxlen=4096", filters=["blocksize", "noextents"]) as through:
        qemu_io(through, "read -P 0 0 5000", "read -P 3 5000 70000", "read -P 4 100M 64k", "write -P 5 99999 9999")
    qemu_io(volume, "read -P 5 99999 9999")
