"""Sizes as people write and read them: "10GiB", "512M", "1.5T", "4096".

One reading everywhere (flags, configuration, Kubernetes): a letter alone means powers of 1024, as it does for qemu-img, fio and LVM; so
do "Mi" and "MiB". Only "kB", "MB", "GB", ... mean powers of 1000. Fractions are taken when they come to whole bytes.
"""

import re
from fractions import Fraction

POWERS = "KMGTPE"
LARGEST = 2**63 - 1  # what a file offset can hold
UNITS: dict[str, int] = {"": 1, "B": 1}
for _power, _letter in enumerate(POWERS, start=1):
    UNITS |= {_letter: 1024**_power, f"{_letter}i": 1024**_power, f"{_letter}iB": 1024**_power, f"{_letter}B": 1000**_power}
_BY_FOLDED = {unit.lower(): factor for unit, factor in UNITS.items()}
_SIZE = re.compile(r"([+-]?)(\d+(?:\.\d+)?|\.\d+)\s*([^\d\s.].*)?", re.ASCII)


class SizeError(ValueError):
    """A text that is no size; the message names it, the reason and what would be one."""


def parse_size(text: str, *, least: int = 0, most: int = LARGEST, multiple: int = 1) -> int:
    """The bytes that `text` means. Raises SizeError for anything else than a whole number of them within the bounds."""
    stripped = text.strip()
    if not stripped:
        raise SizeError("an empty text is not a size: write a number and a unit, such as 10GiB or 512M")
    match = _SIZE.fullmatch(stripped)
    if match is None:
        raise SizeError(f"{text!r} is not a size: write a number and a unit, such as 10GiB or 512M")
    sign, number, unit = match[1], match[2], (match[3] or "").strip()
    if sign == "-":
        raise SizeError(f"{text!r} is negative: a size is zero bytes or more")
    factor = _BY_FOLDED.get(unit.lower())
    if factor is None:
        raise SizeError(
            f"{text!r} has the unknown unit {unit!r}: use K, M, G or T (powers of 1024, also Ki or KiB), or kB, MB, GB, TB (powers of 1000)"
        )
    size = Fraction(number) * factor
    if size.denominator != 1:
        raise SizeError(f"{text!r} is not a whole number of bytes")
    bytes_ = int(size)
    if bytes_ > most:
        raise SizeError(f"{text!r} is too large: at most {exact_size(most)}")
    if bytes_ < least:
        raise SizeError(f"{text!r} is too small: at least {exact_size(least)}")
    if bytes_ % multiple:
        above = bytes_ + multiple - bytes_ % multiple
        raise SizeError(f"{text!r} is {bytes_} bytes, not a multiple of {multiple}: the next that is one is {above}")
    return bytes_


def exact_size(size: int) -> str:
    """`size` in the largest unit of 1024 that it is a whole number of, so that parse_size gives it back: "10GiB", "4097B"."""
    for power in range(len(POWERS), 0, -1):
        whole, rest = divmod(size, 1024**power)
        if whole and not rest:
            return f"{whole}{POWERS[power - 1]}iB"
    return f"{size}B"


def short_size(size: float) -> str:
    """`size` for a table: three figures and a unit, "1.46 GiB", "512 MiB", "0 B"."""
    value, unit = float(size), "B"
    for letter in POWERS:
        if abs(value) < 1023.5:
            break
        value, unit = value / 1024, f"{letter}iB"
    return f"{value:.0f} {unit}" if unit == "B" else f"{_three_figures(value)} {unit}"


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
