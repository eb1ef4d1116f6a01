"""Sizes as people write and read them: "10Gi", "100G", "1.5Ti", "4096".

One syntax everywhere (flags, configuration, Kubernetes), that of Kubernetes quantities: k, M, G, T, P, E are powers of
1000; Ki, Mi, Gi, Ti, Pi, Ei powers of 1024; `1e9` is 10^9. Case matters. "GiB" is accepted for "Gi". Forms that other
tools read in either way (`10K`, `10GB`, `10g`) are refused, and so is Kubernetes' `m`, a thousandth. Fractions are
accepted if they yield whole bytes.
"""

import re
from fractions import Fraction

POWERS = "KMGTPE"
LARGEST = 2**63 - 1  # the largest file offset
BLOCK_BYTES = 4096  # the sizes of volumes and devices are multiples of it
# A size that is not a multiple of BLOCK_BYTES is rounded up to this: easy to read, and little waste.
WHOLE_BYTES = 1 << 20
UNITS: dict[str, int] = {"": 1, "B": 1}
_AMBIGUOUS: dict[str, str] = {}  # lower-case form -> the letter that it may mean
for _power, _letter in enumerate(POWERS, start=1):
    _decimal = "k" if _letter == "K" else _letter
    UNITS |= {_decimal: 1000**_power, f"{_letter}i": 1024**_power, f"{_letter}iB": 1024**_power}
    _AMBIGUOUS |= {f"{_letter}{_end}".lower(): _letter for _end in ("", "b", "i", "ib")}
_SIZE = re.compile(r"([+-]?)(\d+(?:\.\d+)?|\.\d+)(?:([eE][+-]?\d{1,2})|\s*([^\d\s.].*)?)", re.ASCII)
_EXAMPLE = "write a number and a unit, such as 10Gi (2^30 bytes each) or 100G (10^9)"


class SizeError(ValueError):
    """The text is not a size; the message names it, the reason and a valid example."""


def parse_size(text: str, *, least: int = 0, most: int = LARGEST) -> int:
    """The bytes that `text` means. Raises SizeError unless they are a whole number within the bounds."""
    stripped = text.strip()
    if not stripped:
        raise SizeError(f"an empty text is not a size: {_EXAMPLE}")
    match = _SIZE.fullmatch(stripped)
    if match is None:
        raise SizeError(f"{text!r} is not a size: {_EXAMPLE}")
    sign, number, exponent, unit = match[1], match[2], match[3] or "", (match[4] or "").strip()
    if sign == "-":
        raise SizeError(f"{text!r} is negative: a size is zero bytes or more")
    factor = UNITS.get(unit)
    if factor is None:
        raise SizeError(f"{text!r} has {_fault(unit, number)}")
    size = Fraction(number + exponent) * factor
    if size.denominator != 1:
        raise SizeError(f"{text!r} is not a whole number of bytes")
    bytes_ = int(size)
    if bytes_ > most:
        raise SizeError(f"{text!r} is too large: at most {exact_size(most)}")
    if bytes_ < least:
        raise SizeError(f"{text!r} is too small: at least {exact_size(least)}")
    return bytes_


def whole_blocks(size: int) -> int:
    """`size`, or if that is not a whole number of blocks, the next whole MiB: 100G becomes 95368Mi."""
    return size if size % BLOCK_BYTES == 0 else -(-size // WHOLE_BYTES) * WHOLE_BYTES


def exact_size(size: int) -> str:
    """`size` in the largest unit of 1024 that divides it, so that parse_size returns it again: "10Gi", "4097"."""
    for power in range(len(POWERS), 0, -1):
        whole, rest = divmod(size, 1024**power)
        if whole and not rest:
            return f"{whole}{POWERS[power - 1]}i"
    return str(size)


def short_size(size: float) -> str:
    """`size` for a table: three figures and a unit, "1.46 Gi", "512 Mi", "0 B"."""
    value, unit = float(size), "B"
    for letter in POWERS:
        if abs(value) < 1023.5:
            break
        value, unit = value / 1024, f"{letter}i"
    return f"{value:.0f} {unit}" if unit == "B" else f"{_three_figures(value)} {unit}"


def _fault(unit: str, number: str) -> str:
    """Describes what is wrong with a unit, and what to write instead."""
    letter = _AMBIGUOUS.get(unit.lower())
    if letter is None:
        return f"the unknown unit {unit!r}: use k, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024)"
    decimal = "k" if letter == "K" else letter
    why = "means thousandths in Kubernetes" if unit == "m" else "is read in different ways by different tools"
    return (
        f"the unit {unit!r}, which {why}: write {number}{decimal} (powers of 1000) or {number}{letter}i "
        "(powers of 1024)"
    )


def short_count(count: float) -> str:
    """A count or rate for a table: "0", "950", "12.3k", "4.56M"."""
    value = float(count)
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or unit == "T":
            break
        value /= 1000
    return f"{value:.0f}" if unit == "" else f"{_three_figures(value)}{unit}"


def short_time(nanoseconds: float) -> str:
    """A latency for a table: "850 ns", "12.3 µs", "4.56 ms", "1.20 s"."""
    value = float(nanoseconds)
    for unit in ("ns", "µs", "ms", "s"):
        if abs(value) < 999.5 or unit == "s":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "ns" else f"{_three_figures(value)} {unit}"


def _three_figures(value: float) -> str:
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits and float(text).is_integer() else text
