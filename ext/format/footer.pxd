# Builds a segment's footer. See format/footer.pyx.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from iomesh.engine.format.layout cimport FOOTER_ENTRIES, KIND_RECORD, Entry, Footer

# begin_footer sets the fields of the segment. The caller then sets the footer's block and the fields about the records.
# complete_footer adds the table, which need not follow the footer in memory but must have room for whole blocks; it
# returns the number of blocks of both.
cdef void begin_footer(
    Footer* footer, const uint8_t* volume, uint32_t segment, uint64_t epoch, uint16_t stream
) noexcept nogil
cdef uint32_t complete_footer(Footer* footer, Entry* table, uint32_t entry_count) noexcept nogil

# Number of blocks of a footer, with its table.
cdef inline uint32_t footer_blocks(uint32_t entry_count) noexcept nogil:
    return 1 + (entry_count + FOOTER_ENTRIES - 1) // FOOTER_ENTRIES

# Append a record and its entries to a footer's table of `listed` entries; returns the new number of entries.
cdef inline uint32_t list_record(
    Entry* table, uint32_t listed, uint64_t sequence, uint32_t header_crc, const Entry* entries, uint32_t count
) noexcept nogil:
    cdef Entry* record = &table[listed]
    record.position = sequence
    record.crc = header_crc
    record.count = count
    record.kind = KIND_RECORD
    record.flags = 0
    memcpy(record + 1, entries, count * sizeof(Entry))
    return listed + 1 + count
