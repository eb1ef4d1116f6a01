# The leases that a node gives to the owners of volumes' logs: rule 3 of docs/ownership.md.
#
# The answer to a heartbeat is a lease for every volume of the asking node. It carries the number of fences that the
# node's devices have accepted. An owner that sees another number than before asks for its volumes' fences before it
# relies on the lease. So a lease says: no volume was fenced that you do not know of. A fence is answered once every
# lease that was given before it has run out.
#
# Always true:
#   - give() stores the time before it reads the number, fenced() raises the number before it reads the time: either the
#     lease tells of the fence, or the fence waits for the lease;
#   - a node that has just started waits as if it had given a lease at its start: it does not know.

from libc.stdint cimport int64_t, uint64_t

from iomesh.engine.base.planted cimport planted

cdef extern from *:
    r"""
    #define lease_load(place) __atomic_load_n(&(place), __ATOMIC_SEQ_CST)
    #define lease_store(place, value) __atomic_store_n(&(place), value, __ATOMIC_SEQ_CST)
    #define lease_increase(place) __atomic_add_fetch(&(place), 1, __ATOMIC_SEQ_CST)
    """
    uint64_t load_fences "lease_load" (uint64_t) noexcept nogil
    int64_t load_time "lease_load" (int64_t) noexcept nogil
    void store_time "lease_store" (int64_t, int64_t) noexcept nogil
    uint64_t increase "lease_increase" (uint64_t) noexcept nogil

cdef enum:
    LOOK_NS = 100 * 1000 * 1000      # a node's own logs store the time this often


cdef class Leases:
    """now: Io.monotonic_ns() at the node's start."""

    def __cinit__(self, int64_t now):
        self.given_ns = 0 if planted(b"lease_forgotten") else now

    cdef uint64_t give(self, int64_t now_ns) noexcept nogil:
        if now_ns > load_time(self.given_ns):            # of two reactors at the same time, either one: see LEASE_*_NS
            store_time(self.given_ns, now_ns)
        return load_fences(self.fences)

    cdef uint64_t look(self, int64_t now_ns) noexcept nogil:
        if now_ns > load_time(self.given_ns) + LOOK_NS:
            store_time(self.given_ns, now_ns)
        return load_fences(self.fences)

    cdef uint64_t count(self) noexcept nogil:
        return load_fences(self.fences)

    cdef int64_t fenced(self) noexcept nogil:
        increase(self.fences)
        return load_time(self.given_ns) + LEASE_GIVEN_NS
