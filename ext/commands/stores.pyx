# Commands on stores: format, open, close and scrub them, and erase a volume's segments.

from libc.errno cimport EBUSY, ENOMEM
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy

import numpy as np

from iomesh.engine.base.invariant cimport invariant
from iomesh.engine.base.reactor cimport Reactor, call_on
from iomesh.engine.commands.peers cimport withdraw_store
from iomesh.engine.store.calls cimport store_erase
from iomesh.engine.store.journal cimport REPAIRS_MAX
from iomesh.engine.store.scrub cimport Scrubber, Sealed
from iomesh.engine.store.store cimport Store, format_store, watch_store
from iomesh.engine.store.token_bucket cimport TokenBucket

SEALED_ROW = np.dtype([("volume", "V16"), ("segment", np.uint32), ("blocks", np.uint32)])     # store/scrub.pxd's Sealed


cdef class FormatStore(Command):
    def __cinit__(self, Reactor reactor, int fd):
        self.reactor = reactor
        self.fd = fd

    cdef int64_t run(self) noexcept nogil:
        cdef int device = self.reactor.io.add_device(self.fd)
        cdef int result
        if device < 0:
            return device
        result = format_store(self.reactor, device, &self.superblock)
        self.reactor.io.remove_device(device)
        return result


cdef class StoreCommand(Command):
    def __cinit__(self, Store store, *others):
        self.store = store
        self.reactor = store.home

    cdef int tell_reactors(self, int fd) noexcept nogil:
        """Register the device with every reactor's Io, under the same number. fd -1: remove it."""
        cdef DeviceCall call
        cdef int i, result = 0
        call.fd = fd
        call.store = <void*>self.store
        call.device = self.store.device
        for i in range(self.reactor_count):
            call.reactor = self.reactors[i]
            result = min(result, <int>call_on(<Reactor>self.reactors[i], self.reactor, device_body, &call))
        return result


cdef struct DeviceCall:
    void* reactor
    void* store
    int fd
    int device


cdef int64_t device_body(void* argument) noexcept nogil:
    cdef DeviceCall* call = <DeviceCall*>argument
    if call.fd < 0:
        (<Reactor>call.reactor).io.unwatch(call.device)
        (<Reactor>call.reactor).io.remove_device(call.device)
        return 0
    invariant((<Reactor>call.reactor).io.add_device(call.fd) == call.device, b"every reactor counts devices alike")
    watch_store((<Reactor>call.reactor).io, <Store>call.store)
    return 0


cdef class OpenStore(StoreCommand):
    def __cinit__(self, Store store, int fd):
        self.fd = fd

    cdef int64_t run(self) noexcept nogil:
        cdef int result = self.tell_reactors(self.fd)
        if result == 0:
            result = self.store.open(NULL if self.any_cluster else self.cluster)
            if result < 0:
                self.fail(self.store.reason)
        if result < 0:
            self.tell_reactors(-1)
        return result

    cdef object value(self):
        cdef Store store = self.store
        if self.error:
            return None
        return {
            "store": store.device,
            "cluster": store.superblock.cluster[:16],
            "device": store.superblock.device[:16],
            "tier": store.superblock.tier,
            "label": store.superblock.label.decode(errors="replace"),
            "device_bytes": store.superblock.device_bytes,
            "created_ns": store.superblock.created_ns,
            "number": store.superblock.number,
            "repaired": [
                store.repairs.lines[i].decode(errors="replace")
                for i in range(min(store.repairs.count, <uint32_t>REPAIRS_MAX))
            ],
        }


cdef class NumberDevice(StoreCommand):
    def __cinit__(self, Store store, uint32_t number):
        self.number = number

    cdef int64_t run(self) noexcept nogil:
        return self.store.set_number(self.number)


cdef class CloseStore(StoreCommand):
    def __cinit__(self, Store store, Scrubber scrubber, ServedStore served, list known):
        cdef int i
        self.scrubber, self.served, self.known = scrubber, served, known
        self.tables = <void**>calloc(len(known), sizeof(void*))
        if self.tables is NULL:
            raise MemoryError("no memory for a list of reactors")
        for i in range(len(known)):
            self.tables[i] = <void*>known[i]

    def __dealloc__(self):
        release(self.tables)

    cdef int64_t run(self) noexcept nogil:
        if self.served is not None:
            withdraw_store(self.served, self.reactor, self.reactors, self.tables, self.reactor_count)
        self.scrubber.stop()
        return self.tell_reactors(-1)


cdef class ListSealed(Command):
    def __cinit__(self, Scrubber scrubber):
        self.scrubber = scrubber
        self.reactor = scrubber.store.home

    def __dealloc__(self):
        release(self.rows)

    cdef int64_t run(self) noexcept nogil:
        self.count = self.scrubber.list(NULL, 0)
        self.rows = <Sealed*>calloc(self.count + 1, sizeof(Sealed))
        if self.rows is NULL:
            return -ENOMEM
        self.scrubber.list(self.rows, self.count)
        return 0

    cdef object value(self):
        return None if self.error else np.frombuffer((<char*>self.rows)[:self.count * sizeof(Sealed)], SEALED_ROW)


cdef class ScrubSegment(Command):
    def __cinit__(self, Scrubber scrubber, TokenBucket bucket):
        self.scrubber = scrubber
        self.bucket = bucket
        self.reactor = scrubber.store.home

    cdef int64_t run(self) noexcept nogil:
        if self.scrubber.busy:
            return -EBUSY                                # its bucket is in use
        self.bucket.start(self.reactor.io.now_ns(), self.bytes_per_second, self.share)
        return self.scrubber.scrub(self.volume, self.segment, &self.bucket.throttle, &self.found)

    cdef object value(self):
        return (
            None
            if self.error
            else {
                "blocks": self.found.blocks,
                "damaged": self.found.damaged,
                "first_damaged": self.found.first,
                "known": [
                    (self.found.known[i].block, self.found.known[i].crc, bool(self.found.known[i].header))
                    for i in range(self.found.known_count)
                ],
            }
        )


cdef class EraseVolume(Command):
    def __cinit__(self, Reactor reactor, list stores, bytes volume):
        cdef int i
        self.reactor = reactor
        self.kept = stores
        self.store_count = len(stores)
        self.stores = <void**>calloc(self.store_count + 1, sizeof(void*))
        if self.stores is NULL:
            raise MemoryError("no memory for a list of stores")
        for i in range(self.store_count):
            self.stores[i] = <void*>stores[i]
        memcpy(self.volume, <const char*>volume, 16)

    def __dealloc__(self):
        release(self.stores)

    cdef int64_t run(self) noexcept nogil:
        cdef int64_t result
        cdef int i
        for i in range(self.store_count):
            result = store_erase(self.stores[i], self.reactor, self.volume)
            if result < 0:
                return result
            self.segments += result
        return 0

    cdef object value(self):
        return {"segments": self.segments}
