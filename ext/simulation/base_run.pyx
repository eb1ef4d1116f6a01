# What every kind of simulation run has: its draws, the trace of its events, and its first failure. `run` is the base of
# runs of one node, `cluster_run` of those of several.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport fprintf, snprintf, stderr


cdef class BaseRun:
    """seed: 0 to 2**64 - 1. A run also creates its `world`."""

    def __cinit__(self, uint64_t seed, *_, **__):
        self.seed = seed
        self.state = seed * <uint64_t>0x9E3779B97F4A7C15 + 1

    cdef uint64_t draw(self, uint64_t below) noexcept nogil:
        """0 to below - 1 (splitmix64)."""
        cdef uint64_t x
        self.state += <uint64_t>0x9E3779B97F4A7C15
        x = self.state
        x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
        x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
        return (x ^ (x >> 31)) % below

    cdef bint chance(self, uint32_t of_256) noexcept nogil:
        return self.draw(256) < of_256

    # ------------------------------------------------------------------ for people

    cdef void note(self, const char* words, int64_t a, int64_t b, int64_t c) noexcept nogil:
        cdef TraceEvent* event = &self.events[self.event_count % TRACED]
        self.event_count += 1
        event.now_ns = self.world.event_queue.now
        event.words, event.a, event.b, event.c = words, a, b, c
        if self.loud:
            fprintf(stderr, b"%12.3f ms  ", <double>event.now_ns / 1e6)
            fprintf(stderr, words, a, b, c)
            fprintf(stderr, b"\n")

    cdef void fault(self, const char* words, int64_t a, int64_t b) noexcept nogil:
        """Records a failure; only the first one is kept."""
        if not self.wrong:
            self.wrong = True
            snprintf(self.words, sizeof(self.words), words, a, b)
            self.note(b"WRONG", 0, 0, 0)

    def trace(self, last=100):
        """The last events, oldest first."""
        cdef char[256] line
        cdef TraceEvent* event
        lines = []
        for number in range(max(0, self.event_count - min(last, <uint64_t>TRACED)), self.event_count):
            event = &self.events[<uint64_t>number % TRACED]
            snprintf(line, sizeof(line), event.words, event.a, event.b, event.c)
            lines.append(f"{event.now_ns / 1e6:12.3f} ms  {line.decode(errors='replace')}")
        return lines
