# Commands that repair what scrub has found damaged, from copies on other nodes. See commands/repair.pyx.

from libc.stdint cimport uint8_t, uint32_t
from iomesh.engine.base.io cimport Operation
from iomesh.engine.commands.command cimport Command, VolumeCommand
from iomesh.engine.replicas.served_store cimport ServedStore, StoreRequest
from iomesh.engine.store.scrub cimport SCRUBBED_MAX, DamagedBlock

cdef class RepairBlocks(VolumeCommand):      # RepairBlocks(volume, segment, blocks): (block, crc, header) each
    cdef uint32_t segment
    cdef uint32_t count
    cdef uint32_t repaired
    cdef DamagedBlock blocks[SCRUBBED_MAX]

cdef class RefetchSegment(Command):          # RefetchSegment(served, volume, segment, source)
    cdef ServedStore served
    cdef uint8_t volume[16]
    cdef uint32_t segment
    cdef uint32_t source
    cdef StoreRequest request
    cdef Operation done
