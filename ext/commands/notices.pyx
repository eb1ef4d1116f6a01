# The queue from the engine to Python: commands that have ended, and events of volumes. Reactors put notices and signal
# the eventfd; Python's thread takes them.

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free as release
from libc.string cimport memcpy

from iomesh.engine.format.layout cimport Pointer
from iomesh.engine.volume.volume cimport (
    EVENT_CHECKPOINT, EVENT_CHECKSUM, EVENT_DEVICE, EVENT_FRAGMENT, EVENT_FULL_BELOW, EVENT_NUMBERS, EVENT_SPACE_BELOW,
    EVENT_STALLED, Volume
)

cdef extern from *:
    r"""
    #include <stdint.h>
    #include <sys/eventfd.h>
    #include <unistd.h>
    #define newest_load(place) __atomic_load_n(&(place), __ATOMIC_ACQUIRE)
    #define newest_take(place) __atomic_exchange_n(&(place), NULL, __ATOMIC_ACQ_REL)
    #define newest_swap(place, old, new) \
        __atomic_compare_exchange_n(&(place), old, new, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)
    static inline void bell_ring(int fd) { uint64_t one = 1; ssize_t n = write(fd, &one, sizeof one); (void)n; }
    static inline void bell_still(int fd) { uint64_t count; ssize_t n = read(fd, &count, sizeof count); (void)n; }
    """
    Notice* newest_load(Notice*) noexcept nogil
    Notice* newest_take(Notice*) noexcept nogil
    bint newest_swap(Notice*, Notice**, Notice*) noexcept nogil
    int eventfd(unsigned count, int flags) noexcept nogil
    int EFD_NONBLOCK, EFD_CLOEXEC
    void bell_ring(int fd) noexcept nogil
    void bell_still(int fd) noexcept nogil

cdef extern from "<unistd.h>" nogil:
    int close_descriptor "close" (int fd)


cdef class Notices:
    """Raises OSError when no eventfd can be created."""

    def __cinit__(self):
        self.bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.bell < 0:
            raise OSError("no eventfd: too many open files; raise the limit (ulimit -n)")

    def __dealloc__(self):
        cdef Notice* notice = self.newest
        cdef Notice* following
        while notice is not NULL:
            following = notice.next
            release(notice)
            notice = following
        if self.bell >= 0:
            close_descriptor(self.bell)

    cdef void put(self, Notice* notice) noexcept nogil:
        notice.next = newest_load(self.newest)
        while not newest_swap(self.newest, &notice.next, notice):
            pass
        bell_ring(self.bell)

    cdef Notice* take(self) noexcept nogil:
        cdef Notice* oldest = NULL
        cdef Notice* newest
        cdef Notice* notice
        bell_still(self.bell)
        newest = newest_take(self.newest)
        while newest is not NULL:
            notice = newest
            newest = newest.next
            notice.next = oldest
            oldest = notice
        return oldest


# ---------------------------------------------------------------------- events of volumes

cdef bint volume_event(void* volume, int kind, uint64_t first, uint64_t second, uint64_t third) noexcept nogil:
    cdef Notice* notice = event_of(volume, kind)
    if notice is NULL:
        return False                                     # of most events the counters know as well
    if kind == EVENT_CHECKSUM:
        notice.block, notice.segment, notice.segment_block = first, <uint32_t>second, <uint32_t>third
    elif kind == EVENT_DEVICE:
        notice.store, notice.error = <int>first, <int>second
    elif kind == EVENT_NUMBERS:
        notice.next_segment = <uint32_t>first
    (<Notices>(<Volume>volume).listener).put(notice)
    return True


cdef void device_stalled(void* notices, int store) noexcept nogil:
    put_of_store(<Notices>notices, EVENT_STALLED, store)


cdef void device_full_below(void* notices, int store, bint full) noexcept nogil:
    put_of_store(<Notices>notices, EVENT_FULL_BELOW if full else EVENT_SPACE_BELOW, store)


cdef void put_of_store(Notices notices, int event, int store) noexcept nogil:
    cdef Notice* notice = <Notice*>calloc(1, sizeof(Notice))
    if notice is not NULL:
        notice.event = event
        notice.store = store
        notices.put(notice)


cdef bint fragment_begun(void* volume, uint32_t number, uint64_t first, const uint32_t* devices) noexcept nogil:
    cdef Notice* notice = event_of(volume, EVENT_FRAGMENT)
    if notice is NULL:
        return False
    notice.fragment, notice.sequence = number, first
    memcpy(notice.devices, devices, sizeof(notice.devices))
    (<Notices>(<Volume>volume).listener).put(notice)
    return True


cdef bint checkpoint_written(void* owner, uint64_t sequence, Pointer pointer) noexcept nogil:
    cdef Notice* notice = event_of(owner, EVENT_CHECKPOINT)
    if notice is NULL:
        return False
    notice.sequence = sequence
    notice.size_bytes = (<Volume>owner).checkpoints.writer.size_bytes
    notice.pointer = pointer
    notice.next_segment = (<Volume>owner).log.open_segments.next_segment
    (<Notices>(<Volume>owner).listener).put(notice)
    return True


cdef Notice* event_of(void* volume, int kind) noexcept nogil:
    """NULL: no memory."""
    cdef Notice* notice = <Notice*>calloc(1, sizeof(Notice))
    if notice is not NULL:
        memcpy(notice.volume, (<Volume>volume).identity, 16)
        notice.event = kind
    return notice
