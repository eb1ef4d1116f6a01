"""What the kernel shows of any block device."""

from __future__ import annotations

from pathlib import Path

SYS_BLOCK = Path("/sys/block")


def size_bytes(device: Path) -> int:
    return int((SYS_BLOCK / device.name / "size").read_text()) * 512


def number(device: Path) -> str:
    """ "major:minor"."""
    return (SYS_BLOCK / device.name / "dev").read_text().strip()
