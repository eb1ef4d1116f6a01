# Encoding of the NBD protocol's transmission phase: constants, reading and writing of headers (docs/nbd.md). All
# numbers are big-endian on the wire; a cookie is opaque.

from libc.errno cimport EDQUOT, EFBIG, EINVAL, EIO, ENOMEM, ENOSPC, EOPNOTSUPP, EOVERFLOW, EPERM, EROFS, ESHUTDOWN
from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef enum:
    REQUEST_MAGIC = 0x25609513
    SIMPLE_MAGIC = 0x67446698
    CHUNK_MAGIC = 0x668E33EF

cdef enum:
    REQUEST_BYTES = 28               # magic 4, flags 2, command 2, cookie 8, offset 8, length 4
    SIMPLE_BYTES = 16                # magic 4, error 4, cookie 8
    CHUNK_BYTES = 20                 # magic 4, flags 2, type 2, cookie 8, length 4
    HEADER_BYTES_MAX = CHUNK_BYTES + 14
    PAYLOAD_BYTES_MAX = 32 * 1024 * 1024     # of a write or a read

cdef enum:                           # commands
    CMD_READ = 0
    CMD_WRITE = 1
    CMD_DISC = 2
    CMD_FLUSH = 3
    CMD_TRIM = 4
    CMD_CACHE = 5
    CMD_WRITE_ZEROES = 6
    CMD_BLOCK_STATUS = 7

cdef enum:                           # command flags
    FLAG_FUA = 1
    FLAG_NO_HOLE = 2
    FLAG_DF = 4
    FLAG_REQ_ONE = 8
    FLAG_FAST_ZERO = 16

cdef enum:                           # chunk types, and their flag
    CHUNK_NONE = 0
    CHUNK_OFFSET_DATA = 1
    CHUNK_OFFSET_HOLE = 2
    CHUNK_BLOCK_STATUS = 5
    CHUNK_ERROR = 0x8001
    CHUNK_ERROR_OFFSET = 0x8002
    CHUNK_DONE = 1

cdef enum:                           # base:allocation
    STATE_HOLE = 1
    STATE_ZERO = 2
    STATE_CHANGED = 1                # of iomesh:changed-since

cdef enum:                           # transmission flags
    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11

cdef extern from *:
    r"""
    #include <stdint.h>
    #include <string.h>
    #include <endian.h>
    static inline uint16_t get16(const char* at) { uint16_t n; memcpy(&n, at, 2); return be16toh(n); }
    static inline uint32_t get32(const char* at) { uint32_t n; memcpy(&n, at, 4); return be32toh(n); }
    static inline uint64_t get64(const char* at) { uint64_t n; memcpy(&n, at, 8); return be64toh(n); }
    static inline void put16(char* at, uint16_t n) { n = htobe16(n); memcpy(at, &n, 2); }
    static inline void put32(char* at, uint32_t n) { n = htobe32(n); memcpy(at, &n, 4); }
    static inline void put64(char* at, uint64_t n) { n = htobe64(n); memcpy(at, &n, 8); }
    static inline uint64_t get_cookie(const char* at) { uint64_t n; memcpy(&n, at, 8); return n; }
    static inline void put_cookie(char* at, uint64_t n) { memcpy(at, &n, 8); }
    """
    uint16_t get16(const char* at) noexcept nogil
    uint32_t get32(const char* at) noexcept nogil
    uint64_t get64(const char* at) noexcept nogil
    void put16(char* at, uint16_t n) noexcept nogil
    void put32(char* at, uint32_t n) noexcept nogil
    void put64(char* at, uint64_t n) noexcept nogil
    uint64_t get_cookie(const char* at) noexcept nogil
    void put_cookie(char* at, uint64_t n) noexcept nogil

# Each function writes a header and returns its length.

cdef inline uint32_t put_simple(char* at, uint64_t cookie, uint32_t error) noexcept nogil:
    put32(at, SIMPLE_MAGIC)
    put32(at + 4, error)
    put_cookie(at + 8, cookie)
    return SIMPLE_BYTES

cdef inline uint32_t put_chunk(char* at, uint64_t cookie, uint16_t kind, bint last, uint32_t bytes) noexcept nogil:
    put32(at, CHUNK_MAGIC)
    put16(at + 4, CHUNK_DONE if last else 0)
    put16(at + 6, kind)
    put_cookie(at + 8, cookie)
    put32(at + 16, bytes)
    return CHUNK_BYTES

cdef inline uint32_t put_data_chunk(
    char* at, uint64_t cookie, bint last, uint64_t offset, uint32_t bytes
) noexcept nogil:
    put_chunk(at, cookie, CHUNK_OFFSET_DATA, last, 8 + bytes)
    put64(at + CHUNK_BYTES, offset)
    return CHUNK_BYTES + 8

cdef inline uint32_t put_hole_chunk(
    char* at, uint64_t cookie, bint last, uint64_t offset, uint32_t bytes
) noexcept nogil:
    put_chunk(at, cookie, CHUNK_OFFSET_HOLE, last, 12)
    put64(at + CHUNK_BYTES, offset)
    put32(at + CHUNK_BYTES + 8, bytes)
    return CHUNK_BYTES + 12

cdef inline uint32_t put_error_chunk(char* at, uint64_t cookie, bint last, uint32_t error) noexcept nogil:
    put_chunk(at, cookie, CHUNK_ERROR, last, 6)
    put32(at + CHUNK_BYTES, error)
    put16(at + CHUNK_BYTES + 4, 0)
    return CHUNK_BYTES + 6

cdef inline uint32_t put_error_offset_chunk(
    char* at, uint64_t cookie, bint last, uint32_t error, uint64_t offset
) noexcept nogil:
    put_chunk(at, cookie, CHUNK_ERROR_OFFSET, last, 14)
    put32(at + CHUNK_BYTES, error)
    put16(at + CHUNK_BYTES + 4, 0)
    put64(at + CHUNK_BYTES + 6, offset)
    return CHUNK_BYTES + 14

# The protocol defines few error codes; every other error is EIO to the client.
cdef inline uint32_t wire_error(int error) noexcept nogil:
    if error == ENOSPC or error == EDQUOT or error == EFBIG:
        return 28
    if error == EPERM or error == EROFS:
        return 1
    return (
        12 if error == ENOMEM
        else 22 if error == EINVAL
        else 75 if error == EOVERFLOW
        else 95 if error == EOPNOTSUPP
        else 108 if error == ESHUTDOWN
        else 5 if error
        else 0
    )
