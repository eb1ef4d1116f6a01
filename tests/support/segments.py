"""Sealed segments on a store's device, whose blocks contain their own address."""

from pathlib import Path

from iomesh.engine.views.store import StoreView
from support.stores import BLOCK, V, write_at

FOOTER_BLOCKS = 4  # blocks per footer: compaction always keeps them


def block_of(segment: int, number: int) -> bytes:
    return (b"%d:%d " % (segment, number)).ljust(BLOCK, b".")


def fill(store: StoreView, path: Path, segment: int, blocks: int) -> None:
    assert store.create(V, segment, blocks) == 0
    written = 0
    while written < blocks:
        place = store.place(V, segment, written)
        assert place is not None
        count = min(place[1], blocks - written)
        write_at(path, place[0], b"".join(block_of(segment, number) for number in range(written, written + count)))
        written += count
    assert store.seal(V, segment, blocks, blocks - FOOTER_BLOCKS) == 0
