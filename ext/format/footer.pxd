# Making a segment's footer. See format/footer.pyx.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from iomesh.engine.format.layout cimport FOOTER_ENTRIES, KIND_RECORD, Entry, Footer

# First what the segment is; the caller adds where the footer stands and what it says of the records; then the table, which lies behind
# the footer in memory or not. Returns how many blocks the two have. The table has room for whole blocks.
cdef void begin_footer(Footer* footer, const uint8_t* volume, uint32_t segment, uint64_t epoch, uint16_t stream) noexcept nogil
cdef uint32_t complete_footer(Footer* footer, Entry* table, uint32_t entry_count) noexcept nogil

# How many blocks a footer has, with its table.
cdef inline uint32_t footer_blocks(uint32_t entry_count) noexcept nogil:
    return 1 + (entry_count + FOOTER_ENTRIES - 1) // FOOTER_ENTRIES

# Adds a record and its entries to a footer's table, which has `listed` entries; returns how many it has then.
cdef inline uint32_t list_record(Entry* table, uint32_t listed, uint64_t sequence, uint32_t header_crc, const Entry* entries,
                                 uint32_t count) noexcept nogil:
    cdef Entry* record = &table[listed]
    record.position = sequence
    record.crc = header_crc
    record.count = count
    record.kind = KIND_RECORD
    record.flags = 0
    memcpy(record + 1, entries, count * sizeof(Entry))
    return listed + 1 + count
