# A volume as other nodes use it, which forward their clients' requests. See exports/forwarding/served_volume.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.log.request cimport Read, Request
from iomesh.engine.replicas.served_store cimport StoreRequest
from iomesh.engine.replicas.server cimport REQUESTS_MAX, Server
from iomesh.engine.volume.volume cimport Volume

cdef struct VolumeEntry:             # of a request that is not a READ
    Request request                  # first member: the volume returns a pointer to it
    Operation when                   # completed by the volume: retry now
    StoreRequest* asked
    void* served                     # ServedVolume
    VolumeEntry* next                # free
    uint64_t done                    # blocks
    int64_t began_ns
    int error                        # a negative errno
    bint with_volume                 # passed to the volume, which needs a complete() call

cdef struct ReadEntry:
    Read read                        # first member
    StoreRequest* asked
    void* served
    ReadEntry* next                  # free
    int64_t began_ns

cdef class ServedVolume:             # ServedVolume(volume, server): the connection of one node
    cdef Volume volume
    cdef Server server
    cdef void* next_served           # in the volume's list
    cdef VolumeEntry* entries
    cdef VolumeEntry* free_entries
    cdef ReadEntry* reads
    cdef ReadEntry* free_reads

    cdef void begin(self, StoreRequest* asked) noexcept nogil
    cdef int refusal(self, const StoreRequest* asked) noexcept nogil
    cdef void advance(self, VolumeEntry* entry) noexcept nogil
    cdef void finish(self, VolumeEntry* entry) noexcept nogil
    cdef void read_done(self, ReadEntry* entry) noexcept nogil
    cdef void account(self, const StoreRequest* asked, int64_t began_ns) noexcept nogil
    cdef int result_of(self, int error) noexcept nogil
    cdef bint is_lost(self) noexcept nogil
