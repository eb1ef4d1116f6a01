"""What the CSI driver needs: a way to attach volumes, and the programs of file systems."""

from __future__ import annotations

import tempfile
from pathlib import Path

from iomesh.csi import commands
from iomesh.csi.attach.fuse import FuseAttacher
from iomesh.csi.attach.kernel import KernelAttacher
from iomesh.csi.attach.record import Records
from iomesh.errors import Unsupported
from iomesh.preflight.findings import Check, failed, ok

PROGRAMS = ("mount", "umount", "blkid", "mkfs.xfs", "xfs_growfs", "mkfs.ext4", "resize2fs", "e2fsck", "dumpe2fs")


def check_driver() -> list[Check]:
    return [*_attaching(), _programs()]


def _attaching() -> list[Check]:
    """The kernel's module is loaded if there is one, as the driver does."""
    with tempfile.TemporaryDirectory() as folder:
        records = Records(Path(folder))
        kernel = KernelAttacher(records, retry_seconds=0).lacking()
        fuse = FuseAttacher(records, retry_seconds=0).lacking()
    if not kernel:
        return [ok("attaching", "by the kernel's NBD client (module nbd)")]
    if not fuse:
        return [ok("attaching", f"by nbdfuse and a loop device, which is slower. {kernel}")]
    return [failed("attaching", f"the CSI driver cannot attach volumes. {kernel}. With nbdfuse: {fuse}")]


def _programs() -> Check:
    lacking = []
    for program in PROGRAMS:
        try:
            commands.find(program)
        except Unsupported as error:
            lacking.append(error.message)
    if lacking:
        return failed("file systems", "; ".join(lacking))
    return ok("file systems", "the programs for xfs and ext4 are installed")
