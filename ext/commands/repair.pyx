# Commands that repair what scrub has found damaged: on the owner of a volume single blocks, from copies; on any other
# node the whole replica, from a device that has the segment, too.

from libc.errno cimport ENOENT, ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from iomesh.engine.base.aligned cimport allocate_aligned
from iomesh.engine.base.task cimport wait, waited, wake_all
from iomesh.engine.format.layout cimport BLOCK_BYTES, POINTER_PRESENT, SEGMENT_SEALED, Pointer
from iomesh.engine.format.peer cimport PEER_PULL, PEER_REPLACES, PullRequest
from iomesh.engine.log.repair cimport read_copy
from iomesh.engine.replicas.served_store cimport ServedStore, StoreRequest
from iomesh.engine.store.directory cimport Replica
from iomesh.engine.volume.volume cimport Volume


cdef class RepairBlocks(VolumeCommand):
    def __cinit__(self, Volume volume, uint32_t segment, blocks):
        self.segment = segment
        for block, crc, header in blocks[:SCRUBBED_MAX]:
            self.blocks[self.count].block, self.blocks[self.count].crc = block, crc
            self.blocks[self.count].header = header
            self.count += 1

    cdef int64_t run(self) noexcept nogil:
        cdef char* buffer = <char*>allocate_aligned(BLOCK_BYTES)
        cdef Pointer pointer
        cdef uint32_t i
        if buffer is NULL:
            return -ENOMEM
        memset(&pointer, 0, sizeof(pointer))
        self.volume.readings += 1                        # closing waits
        for i in range(self.count):
            pointer.segment, pointer.block, pointer.crc = self.segment, self.blocks[i].block, self.blocks[i].crc
            pointer.flags = POINTER_PRESENT
            self.repaired += read_copy(
                self.volume.log.open_segments, pointer, buffer, self.blocks[i].header
            ) == 0
        self.volume.readings -= 1
        wake_all(&self.volume.connections_changed, 0)
        self.volume.io.release(buffer)
        return 0

    cdef object value(self):
        return self.repaired


cdef class RefetchSegment(Command):
    def __cinit__(self, ServedStore served, bytes volume, uint32_t segment, uint32_t source):
        self.served, self.segment, self.source = served, segment, source
        self.reactor = served.home
        memcpy(self.volume, <const char*>volume, 16)

    cdef int64_t run(self) noexcept nogil:
        cdef const Replica* replica = self.served.store.find(self.volume, self.segment)
        cdef PullRequest* frame = <PullRequest*>&self.request.frame
        cdef uint64_t fenced = self.served.store.directory.fenced(self.volume)
        if replica is NULL or replica.state != SEGMENT_SEALED:
            return -ENOENT
        memset(&self.request, 0, sizeof(StoreRequest))
        memcpy(frame.volume, self.volume, 16)
        frame.kind, frame.flags, frame.device, frame.source = PEER_PULL, PEER_REPLACES, self.served.number, self.source
        frame.segment, frame.segment_epoch, frame.epoch = self.segment, replica.epoch, max(fenced, replica.epoch)
        frame.end = replica.footer_block if replica.footer_block else replica.blocks
        self.request.done, self.request.owner = refetched, <void*>self
        waited(&self.done)
        self.served.begin(&self.request)
        return wait(&self.done)


cdef void refetched(StoreRequest* request) noexcept nogil:
    cdef Operation* done = &(<RefetchSegment>request.owner).done
    done.result = request.result
    done.done(done)
