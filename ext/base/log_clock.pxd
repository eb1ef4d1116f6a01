# The clock of a volume's log (docs/decisions/0020-log-time.md).
#
# Log time counts nanoseconds. It never runs back, and no two records have the same. Within a run (from the opening of
# the volume to its end) it advances with the monotonic clock. The wall clock shows log time + offset_ns; offset_ns
# stays the same until the wall clock is stepped.
#
#     log time     0 ---- 1 ---- 2 ---- 3 ---- 4 ----
#     wall clock  10     11     12 | 62     63     64      a step of 49 between 2 and 3: until_ns = 2, since_ns = 3
#
# A new run continues at the end of the log. If the wall clock shows that at most CREDIT_SECONDS have passed since, and
# did not run back, log time advances by that and the offset stays. Otherwise log time stood still while the volume was
# closed, and the offset is a new one.

from libc.stdint cimport int64_t, uint64_t

from iomesh.engine.base.io cimport Io

cdef enum:
    STEP_NS = 5 * 1000 * 1000        # a smaller deviation of the wall clock counts as noise ...
    TOGETHER_NS = 250 * 1000         # ... two clock readings must be at most this far apart ...
    READINGS = 8                     # ... and are retried this often

cdef enum:
    CREDIT_SECONDS = 60

cdef struct LogClock:
    uint64_t opened_ns               # log time when the run began; 0: it has not
    int64_t opened_at_ns             # ... on the monotonic clock
    int64_t offset_ns                # wall clock minus log time
    uint64_t newest_ns               # the last time that was returned
    uint64_t checked_ns              # log time of the last check that the wall clock shows log time + offset_ns
    # Clock steps since the newest restore point; since_ns 0: none.
    uint64_t until_ns                # the offset of the newest restore point was right until this log time
    uint64_t since_ns                # offset_ns is right since this one. until_ns + 1: the log was closed in between


cdef inline bint read_clocks(Io io, int64_t* monotonic, int64_t* unix) noexcept nogil:
    """False: the two clocks could not be read close enough together to be compared."""
    cdef int64_t after = 0
    cdef int _i
    for _i in range(READINGS):
        monotonic[0] = io.monotonic_ns()
        unix[0] = io.unix_ns()
        after = io.monotonic_ns()
        if after - monotonic[0] <= TOGETHER_NS:
            monotonic[0] += (after - monotonic[0]) // 2
            return True
    return False


cdef inline void begin_log_clock(
    LogClock* clock, Io io, uint64_t newest_ns, int64_t offset_ns, uint64_t marked_ns, int64_t marked_offset_ns
) noexcept nogil:
    """newest_ns, offset_ns: the end of the log, 0 if it is empty. marked_*: the newest restore point, 0 if there is
    none."""
    cdef int64_t unix = 0, away
    read_clocks(io, &clock.opened_at_ns, &unix)
    clock.until_ns = clock.since_ns = 0
    if newest_ns == 0:
        clock.opened_ns, clock.offset_ns = <uint64_t>unix, 0
    else:
        clock.opened_ns, clock.offset_ns = newest_ns + 1, offset_ns
        away = unix - (<int64_t>newest_ns + offset_ns)
        if -STEP_NS <= away <= <int64_t>CREDIT_SECONDS * 1000000000:
            clock.opened_ns += <uint64_t>max(away, <int64_t>0)
        else:
            clock.offset_ns = unix - <int64_t>clock.opened_ns
        if marked_ns and (clock.offset_ns != marked_offset_ns or offset_ns != marked_offset_ns):
            clock.until_ns = newest_ns if offset_ns == marked_offset_ns else marked_ns
            clock.since_ns = clock.opened_ns
    clock.newest_ns = clock.checked_ns = clock.opened_ns


cdef inline uint64_t next_log_time(LogClock* clock, Io io) noexcept nogil:
    """The present log time, later than any before. Notices a step of the wall clock."""
    cdef int64_t monotonic = 0, unix = 0, offset
    cdef bint together
    if clock.opened_ns == 0:
        begin_log_clock(clock, io, 0, 0, 0, 0)
    together = read_clocks(io, &monotonic, &unix)
    clock.newest_ns = max(
        clock.newest_ns + 1, clock.opened_ns + <uint64_t>max(monotonic - clock.opened_at_ns, <int64_t>0)
    )
    if together:
        offset = unix - <int64_t>clock.newest_ns
        if not -STEP_NS <= offset - clock.offset_ns <= STEP_NS:
            clock.offset_ns = offset
            if clock.since_ns == 0:
                clock.until_ns = clock.checked_ns
            clock.since_ns = clock.newest_ns = max(clock.newest_ns, clock.until_ns + 2)
        clock.checked_ns = clock.newest_ns
    return clock.newest_ns


cdef inline void restore_point_made(LogClock* clock, uint64_t at_ns) noexcept nogil:
    """A restore point at that log time is durable, with the clock steps before it."""
    if clock.since_ns <= at_ns:
        clock.until_ns = clock.since_ns = 0
    else:
        clock.until_ns = at_ns                           # the clock was stepped again after it
