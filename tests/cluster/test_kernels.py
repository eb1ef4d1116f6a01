"""A kernel without a feature that the engine uses: a clear refusal, or a warning with a remedy and the daemon runs."""

from __future__ import annotations

import sys

import pytest

from support import withheld
from support.daemon import MIB, Daemon
from support.nbd import Connection


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("ENOSYS", "this kernel has no io_uring: Linux 6.1 or newer is needed"),
        ("EPERM", "io_uring is disabled here: set the sysctl kernel.io_uring_disabled to 0"),
        ("EINVAL", "this kernel's io_uring is too old: Linux 6.1 or newer is needed"),
        ("ENOMEM", "no memory may be locked for the ring: raise RLIMIT_MEMLOCK"),
    ],
)
async def test_without_io_uring_the_daemon_says_what_is_needed(daemon: Daemon, error: str, words: str) -> None:
    daemon.under = [sys.executable, withheld.__file__, error]
    code, message = daemon.refuse()
    assert code != 0
    assert words in message


async def test_with_too_little_locked_memory_it_says_which_limit_and_serves_without_registration(
    daemon: Daemon,
) -> None:
    daemon.under = ["prlimit", f"--memlock={8 * MIB}", "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]
    daemon.start()
    warnings = [line for line in daemon.log.read_text().splitlines() if "buffers are not registered" in line]
    assert len(warnings) == 1, daemon.log.read_text()
    assert (
        "RLIMIT_MEMLOCK is 8 MiB" in warnings[0]
        and "LimitMEMLOCK=, ulimit -l" in warnings[0]
        and "CAP_IPC_LOCK" in warnings[0]
    )
    async with daemon.client() as client:
        await client.create_volume("db", 64 * MIB)
        connection = await Connection.connect((await client.export_volume("db")).uris[0])
        await connection.write(0, b"a" * MIB)
        assert await connection.read(0, MIB) == b"a" * MIB
        await connection.close()
