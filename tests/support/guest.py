"""A real Linux kernel other than this machine's: a Debian kernel in QEMU. Busybox and a few of this machine's programs
are in its initramfs. QEMU's user-mode network maps this machine's 127.0.0.1 to 10.0.2.2 in the guest.

The guest is emulated: KVM is not available everywhere, and nested KVM may be present and not work.

With `whole`, the script runs in this machine's own root: read-only over 9p, below an overlay that keeps what the
guest writes, on a disk of its own. So every program of this machine is there, and the checkout.

The kernel's package is downloaded and unpacked, never installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.run import tool

KERNEL = "linux-image-cloud-amd64"  # a meta package: depends on the newest kernel
MACHINE_KERNEL = "linux-image-amd64"  # with 9p
MODULES = ("virtio_pci", "virtio_net", "nbd", "ext4", "crc32c_generic")
MACHINE_MODULES = (*MODULES, "virtio_blk", "9p", "9pnet_virtio", "overlay", "xfs", "loop", "fuse")
PROGRAMS = {  # program, and the package that contains it
    "nbd-client": "nbd-client",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "fstrim": "util-linux",
    "blockdev": "util-linux",
}
ENDED = "the guest has ended with"
SECONDS = 300  # limit for everything a guest does
DISK_BYTES = 16 << 30  # sparse; for what the guest writes

BOOT = """#!/bin/sh
mkdir -p /proc /sys /dev /tmp /run /mnt /etc
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
while read -r module; do insmod "$module"; done < /modules
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
echo
"""
RUN = f"""
$ROOT sh -e /script </dev/null 2>&1
echo "{ENDED} $?"
poweroff -f
"""
MACHINE_ROOT = """
mkdir -p /host /own /machine
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host
mount -t ext4 /dev/vda /own
mkdir -p /own/upper /own/work /own/tmp
mount -t overlay -o lowerdir=/host,upperdir=/own/upper,workdir=/own/work overlay /machine
for folder in dev proc sys run; do mount -o bind /$folder /machine/$folder; done
mkdir -p /machine/dev/pts /machine/dev/shm
mount -t devpts devpts /machine/dev/pts
mount -t tmpfs tmpfs /machine/dev/shm
for folder in tmp var/tmp; do mount -o bind /own/tmp /machine/$folder; done
cp /script /machine/script
mount -t cgroup2 cgroup2 /machine/sys/fs/cgroup
ROOT="chroot /machine"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
"""


@dataclass(frozen=True)
class Kernel:
    image: Path
    tree: Path
    version: str


def fetch_kernel(cache: Path, package_name: str = KERNEL) -> Kernel:
    """Downloads and unpacks the kernel once. Skips the test if the package cannot be downloaded."""
    tool("apt-get", "apt")
    shown = subprocess.run(["apt-cache", "depends", package_name], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Depends: (linux-image-\S+)", shown)
    if found is None:
        pytest.skip(f"this machine's package lists have no {package_name}: apt-get update")
    tree = cache / found[1]
    if not tree.exists():
        cache.mkdir(parents=True, exist_ok=True)
        got = subprocess.run(
            ["apt-get", "download", "-qq", found[1]], cwd=cache, capture_output=True, text=True, check=False
        )
        if got.returncode:
            pytest.skip(f"{found[1]} cannot be downloaded: {got.stderr.strip()[-300:]}")
        package = next(cache.glob(f"{found[1]}_*.deb"))
        unpacked = cache / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
        package.unlink()
        subprocess.run([tool("depmod", "kmod"), "-b", unpacked, found[1].removeprefix("linux-image-")], check=True)
        unpacked.rename(tree)
    version = found[1].removeprefix("linux-image-")
    return Kernel(tree / "boot" / f"vmlinuz-{version}", tree, version)


def make_memory(kernel: Kernel, room: Path, script: str, *, whole: bool) -> Path:
    """The initramfs that the guest boots from and stays in."""
    root = room / "root"
    for folder in ("bin", "sbin", "usr/bin", "usr/sbin", "modules.d"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    busybox = root / "bin" / "busybox"
    shutil.copy(tool("busybox", "busybox-static"), busybox)
    for name in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    for name, package in () if whole else PROGRAMS.items():
        add_program(root, Path(tool(name, package)))
    paths = []
    for name in MACHINE_MODULES if whole else MODULES:
        words = [tool("modprobe", "kmod"), "-d", str(kernel.tree), "-S", kernel.version, "--show-depends", name]
        shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        paths += [line.split()[1] for line in shown.splitlines() if line.startswith("insmod")]
    modules = list(dict.fromkeys(paths))
    for path in modules:
        shutil.copy(path, root / "modules.d")
    (root / "modules").write_text("".join(f"/modules.d/{Path(path).name}\n" for path in modules))
    (root / "script").write_text(script)
    (root / "init").write_text(BOOT + (MACHINE_ROOT if whole else "") + RUN)
    (root / "init").chmod(0o755)
    image = room / "memory.cpio"
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with image.open("wb") as into:
        subprocess.run(
            [tool("cpio", "cpio"), "-o", "-H", "newc", "--quiet"],
            cwd=root,
            input=names.encode(),
            stdout=into,
            check=True,
        )
    return image


def add_program(root: Path, program: Path) -> None:
    """Replaces busybox' program of the same name; its libraries are copied too."""
    into = root / "bin" / program.name
    into.unlink(missing_ok=True)
    shutil.copy(program, into)
    for library in re.findall(
        r"(/\S+) \(0x", subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    ):
        copy = root / library.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, copy)


@contextmanager
def guest(
    room: Path, cache: Path, script: str, *, whole: bool = False, seconds: int = SECONDS
) -> Iterator[Iterator[str]]:
    """Boots, runs the script (sh -e) and yields its output lines as they are printed. The script has to succeed."""
    qemu = tool("qemu-system-x86_64", "qemu-system-x86")
    kernel = fetch_kernel(cache, MACHINE_KERNEL if whole else KERNEL)
    words = [
        *("timeout", str(seconds), qemu, "-accel", "tcg", "-cpu", "max", "-m", "3072" if whole else "512"),
        *(_machine(room) if whole else ()),
        *("-nographic", "-no-reboot", "-nodefaults"),
        *("-serial", "stdio", "-nic", "user,model=virtio-net-pci", "-kernel", str(kernel.image)),
        *("-initrd", str(make_memory(kernel, room, script, whole=whole))),
        *("-append", "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off"),
    ]  # fmt: skip
    seen: list[str] = []
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as machine:

        def lines() -> Iterator[str]:
            assert machine.stdout is not None
            for line in machine.stdout:
                seen.append(line.rstrip())
                yield seen[-1]

        try:
            yield lines()
            for _ in lines():
                pass
        finally:
            machine.kill()
    said = "\n".join(seen[-40:])
    assert any(line.startswith(f"{ENDED} 0") for line in seen), f"the guest failed:\n{said}"


def _machine(room: Path) -> list[str]:
    """QEMU's options for this machine's root and the guest's own disk."""
    disk = room / "disk"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run([tool("mkfs.ext4", "e2fsprogs"), "-q", "-F", disk], check=True)
    return [
        *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
        *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
    ]
