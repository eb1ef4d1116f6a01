# A repeatable random generator: xoshiro256** seeded by splitmix64. A part whose draws must not affect another's has a
# Prng of its own.

from libc.stdint cimport uint64_t

cdef struct Prng:
    uint64_t state[4]

cdef inline uint64_t stirred(uint64_t value) noexcept nogil:
    """splitmix64's finalizer: every bit of the result depends on every bit of `value`."""
    value = (value ^ (value >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * <uint64_t>0x94D049BB133111EB
    return value ^ (value >> 31)

cdef inline void seed_prng(Prng* prng, uint64_t seed) noexcept nogil:
    cdef int i
    for i in range(4):
        seed += <uint64_t>0x9E3779B97F4A7C15
        prng.state[i] = stirred(seed)

cdef inline uint64_t draw(Prng* prng) noexcept nogil:
    cdef uint64_t* s = prng.state
    cdef uint64_t five = s[1] * 5
    cdef uint64_t answer = ((five << 7) | (five >> 57)) * 9
    cdef uint64_t shifted = s[1] << 17
    s[2] ^= s[0]
    s[3] ^= s[1]
    s[1] ^= s[2]
    s[0] ^= s[3]
    s[2] ^= shifted
    s[3] = (s[3] << 45) | (s[3] >> 19)
    return answer

cdef inline uint64_t below(Prng* prng, uint64_t limit) noexcept nogil:
    """0 to limit - 1; 0 for a limit of 0."""
    return draw(prng) % limit if limit else 0

cdef inline double fraction(Prng* prng) noexcept nogil:
    """0 up to 1, without 1."""
    return <double>(draw(prng) >> 11) * (1.0 / 9007199254740992.0)

cdef inline bint happens(Prng* prng, double probability) noexcept nogil:
    """Draws nothing at probability 0."""
    return probability > 0 and fraction(prng) < probability
