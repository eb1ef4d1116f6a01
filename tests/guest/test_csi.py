"""The CSI driver on a kernel that has an NBD client: tests of tests/csi, in a guest that sees this machine's files."""

import sys
from pathlib import Path

import pytest

from support.amount import Amount
from support.guest import guest

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "guest"  # of the kernel
SECONDS = 3600  # for all of them; a guest is ten times slower than its machine
UNDER_LOAD = "tests/csi/test_nodes.py::test_load_does_not_notice_that_the_daemon_and_the_driver_are_killed"
EVERYTHING = "tests/csi/test_nodes.py tests/csi/test_volumes.py tests/csi/test_crashes.py"


@pytest.mark.timeout(2 * SECONDS)
def test_volumes_are_attached_with_the_kernels_nbd_client(room: Path, amount: Amount) -> None:
    wanted = EVERYTHING if amount.soak else UNDER_LOAD
    script = f"""
    cd {ROOT}
    failed=0
    {sys.executable} -m pytest -n 0 -v -rs -p no:cacheprovider --timeout=1800 {wanted} || failed=1
    dmesg | grep -q "XFS (nbd" || {{ echo "no volume was attached with the kernel's NBD client"; failed=1; }}
    dmesg | grep "I/O error" || true
    exit $failed
    """
    with guest(room, CACHE, script, whole=True, seconds=SECONDS) as lines:
        seen = list(lines)
    assert any(" passed" in line for line in seen)
    assert not any("I/O error" in line for line in seen), "\n".join(seen[-40:])
