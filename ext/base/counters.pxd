# The counters of a volume. Python maps the same memory as numpy arrays (engine.pyi); names and order are those of
# COUNTER_NAMES.

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    READS, READ_BYTES, WRITES, WRITTEN_BYTES, FLUSHES, TRIMS, TRIMMED_BYTES, ZEROES, ZEROED_BYTES,
    READ_ERRORS, WRITE_ERRORS, CHECKSUM_ERRORS, BLOCKS_REPAIRED, NO_SPACE_ERRORS,
    RECORDS, RECORD_BYTES, DATA_BLOCKS, MAP_BLOCKS, TABLE_BLOCKS, MERGES,
    SEGMENTS_SEALED, SEGMENTS_REMOVED, CHECKPOINTS, DEVICE_FLUSHES,
    SEGMENTS_COMPACTED, COMPACTION_BYTES, SEGMENTS_EVACUATED, EVACUATED_BYTES,
    COUNTERS

cdef enum Histogram:
    READ_LATENCY, WRITE_LATENCY, FLUSH_LATENCY,
    HISTOGRAMS

cdef enum:
    HISTOGRAM_BUCKETS = 256          # 4 per power of two; n ns: 4 * log2(n) + the two bits after the highest

cdef inline void observe(uint64_t* histograms, Histogram which, int64_t ns) noexcept nogil:
    cdef uint64_t n = <uint64_t>ns if ns > 4 else 4
    cdef int power = 63 - leading_zeros(n)
    histograms[which * HISTOGRAM_BUCKETS + 4 * power + ((n >> (power - 2)) & 3)] += 1

cdef extern from *:
    int leading_zeros "__builtin_clzll" (uint64_t bits) noexcept nogil
