# Commands on stores. See commands/stores.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from iomesh.engine.commands.command cimport Command
from iomesh.engine.replicas.served_store cimport ServedStore
from iomesh.engine.format.layout cimport Superblock
from iomesh.engine.store.scrub cimport Scrubbed, Scrubber, Sealed
from iomesh.engine.store.store cimport Store
from iomesh.engine.store.token_bucket cimport TokenBucket

cdef class FormatStore(Command):     # FormatStore(reactor, fd)
    cdef int fd
    cdef int device                  # its number in the Io while formatting
    cdef Superblock superblock

cdef class StoreCommand(Command):    # on a device that every reactor's Io registers: StoreCommand(store, ...)
    cdef Store store
    cdef void** reactors             # all reactors of the node
    cdef int reactor_count

    cdef int tell_reactors(self, int fd) noexcept nogil

cdef class OpenStore(StoreCommand):  # OpenStore(store, fd)
    cdef int fd
    cdef uint8_t cluster[16]
    cdef bint any_cluster            # `cluster` is not checked

cdef class NumberDevice(StoreCommand):   # NumberDevice(store, number): the device's number in its cluster
    cdef uint32_t number

cdef class CloseStore(StoreCommand):     # CloseStore(store, scrubber, served or None, the reactors' ServedStores)
    cdef Scrubber scrubber
    cdef ServedStore served
    cdef list known
    cdef void** tables               # the same

cdef class ListSealed(Command):      # ListSealed(scrubber)
    cdef Scrubber scrubber
    cdef Sealed* rows
    cdef uint32_t count

cdef class ScrubSegment(Command):    # ScrubSegment(scrubber, bucket)
    cdef Scrubber scrubber
    cdef TokenBucket bucket
    cdef uint64_t bytes_per_second
    cdef uint32_t share
    cdef uint8_t volume[16]
    cdef uint32_t segment
    cdef Scrubbed found

cdef class EraseVolume(Command):     # EraseVolume(reactor, stores, volume)
    cdef list kept                   # the stores
    cdef void** stores
    cdef int store_count
    cdef uint8_t volume[16]
    cdef uint64_t segments           # erased
