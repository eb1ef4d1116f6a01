"""Directories that the daemon makes, or makes files in."""

from __future__ import annotations

import os
from pathlib import Path


def why_unusable(folder: Path) -> str:
    """Why nothing can be made in a directory, which need not exist yet; empty: it can."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        return f"{there} is not a directory"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} is not writable: run as root, or set another path"
    return ""
