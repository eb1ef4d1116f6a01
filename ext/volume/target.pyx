# What an export reads and writes. See volume/target.pxd; each method is overridden.

from libc.errno cimport EOPNOTSUPP
from libc.stdint cimport int64_t, uint32_t, uint64_t

from iomesh.engine.base.io cimport Operation
from iomesh.engine.log.request cimport Read, Request


cdef class Target:
    cdef int64_t write(
        self, Request* request, uint64_t block, uint32_t count, const char* data, Operation* when
    ) noexcept nogil:
        return -EOPNOTSUPP

    cdef int64_t merge(
        self, Request* request, uint64_t block, uint32_t start, uint32_t bytes, const char* data, Operation* when
    ) noexcept nogil:
        return -EOPNOTSUPP

    cdef int64_t zero(self, Request* request, uint64_t block, uint64_t count, Operation* when) noexcept nogil:
        return -EOPNOTSUPP

    cdef void complete(self, Request* request) noexcept nogil:
        pass

    cdef void flush(self, Request* request) noexcept nogil:
        pass

    cdef void read(self, Read* read) noexcept nogil:
        pass

    cdef int64_t alike(self, uint64_t block, uint64_t most, bint* mapped, Operation* when) noexcept nogil:
        return -EOPNOTSUPP

    cdef void expect(self, uint64_t block) noexcept nogil:
        pass

    cdef void abandon(self, void* session) noexcept nogil:
        pass

    cdef bint inherit_write(self, Request* request, uint64_t block, uint32_t count, const char* data) noexcept nogil:
        return False

    cdef bint inherit_zero(self, Request* request, uint64_t block, uint64_t count) noexcept nogil:
        return False

    cdef bint inherit_merge(
        self, Request* request, uint64_t block, uint32_t start, uint32_t bytes, const char* data
    ) noexcept nogil:
        return False
