# Builds a segment's footer: a block that describes the segment, and the table of all its records' entries.
#
# Called when the log seals a segment, when recovery seals one that a crash left open, and when compaction rewrites one.
#
# Always true: a complete footer and its table are valid (layout.footer_fault); the rest of the table's last block is
# zero.
#
# Format: docs/formats.md, "Footer".

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from iomesh.engine.base.checksum cimport crc32c
from iomesh.engine.format.layout cimport (
    BLOCK_BYTES, FOOTER_ENTRIES, FOOTER_MAGIC, FORMAT_VERSION, Entry, Footer, block_crc
)


cdef void begin_footer(
    Footer* footer, const uint8_t* volume, uint32_t segment, uint64_t epoch, uint16_t stream
) noexcept nogil:
    memset(footer, 0, sizeof(Footer))
    footer.magic = FOOTER_MAGIC
    footer.version = FORMAT_VERSION
    memcpy(footer.volume, volume, 16)
    footer.segment = segment
    footer.epoch = epoch
    footer.stream = stream


cdef uint32_t complete_footer(Footer* footer, Entry* table, uint32_t entry_count) noexcept nogil:
    footer.entry_count = entry_count
    footer.table_blocks = footer_blocks(entry_count) - 1
    memset(&table[entry_count], 0, (footer.table_blocks * FOOTER_ENTRIES - entry_count) * sizeof(Entry))
    footer.table_crc = crc32c(table, footer.table_blocks * BLOCK_BYTES)
    footer.crc = block_crc(footer)
    return 1 + footer.table_blocks
