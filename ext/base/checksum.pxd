# CRC32C (Castagnoli), the only checksum in the on-disk format. ISA-L computes it at tens of gigabytes per second.

from libc.stdint cimport uint32_t

cdef extern from *:
    r"""
    #include <stdint.h>
    #include <stddef.h>
    #include <isa-l/crc.h>
    static inline uint32_t iomesh_crc32c(const void* data, size_t bytes) {
        return ~crc32_iscsi((unsigned char*)data, (int)bytes, 0xFFFFFFFFu);
    }
    """
    uint32_t crc32c "iomesh_crc32c" (const void* data, size_t bytes) noexcept nogil
