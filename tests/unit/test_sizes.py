"""Sizes: what people write is read one way only, and what is printed reads back."""

import random

import pytest

from iomesh.sizes import SizeError, exact_size, parse_size, short_count, short_size, short_time


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("1K", 1024),
        ("1k", 1024),
        ("1Ki", 1024),
        ("1KiB", 1024),
        ("1kB", 1000),
        ("1KB", 1000),
        ("512M", 512 << 20),
        ("10GiB", 10 << 30),
        ("10 GiB", 10 << 30),
        (" 10gib ", 10 << 30),
        ("1.5T", 3 << 39),
        (".5M", 1 << 19),
        ("64TiB", 64 << 40),
        ("1TB", 10**12),
        ("+2G", 2 << 30),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("ten", "not a size"),
        ("10 10", "not a size"),
        ("1e9", "unknown unit 'e9'"),
        ("0x10", "unknown unit 'x10'"),
        ("10GiBs", "unknown unit 'GiBs'"),
        ("10%", "unknown unit '%'"),
        ("-1G", "negative"),
        ("0.3", "whole number of bytes"),
        ("1.2.3G", "not a size"),
        ("1..2G", "not a size"),
        ("9E", "too large: at most"),
        ("99999999999999999999999", "too large"),
        ("٣G", "not a size"),
        ("nan", "not a size"),
        ("inf", "not a size"),
        ("1_000", "unknown unit '_000'"),
        ("1,5G", "unknown unit ',5G'"),
    ],
)
def test_what_is_no_size_is_named_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(SizeError) as raised:
        parse_size(text)
    assert reason in str(raised.value)
    assert not text.strip() or repr(text) in str(raised.value)


def test_bounds_are_named_in_a_unit_that_can_be_typed_back() -> None:
    with pytest.raises(SizeError, match="too large: at most 64TiB"):
        parse_size("65TiB", most=64 << 40)
    with pytest.raises(SizeError, match="too small: at least 1MiB"):
        parse_size("1K", least=1 << 20)


def test_a_size_between_blocks_names_the_next_whole_one() -> None:
    with pytest.raises(SizeError, match="not a multiple of 4096: the next that is one is 8192"):
        parse_size("4097", multiple=4096)


def test_an_exact_size_reads_back() -> None:
    draw = random.Random(7)
    for _ in range(2000):
        size = draw.getrandbits(draw.randint(1, 62)) & ~(2 ** draw.randint(0, 40) - 1)
        assert parse_size(exact_size(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.50 KiB"),
        (10 << 30, "10 GiB"),
        ((10 << 30) - 1, "10 GiB"),
        (999 << 20, "999 MiB"),
        (1 << 60, "1 EiB"),
        (1023 << 10, "1023 KiB"),
        ((1 << 20) - 1, "1 MiB"),
    ],
)
def test_a_short_size_has_three_figures(size: int, text: str) -> None:
    assert short_size(size) == text


def test_counts_and_times_change_their_unit() -> None:
    assert [short_count(n) for n in (0, 999, 1000, 12345, 999_600, 4_560_000)] == ["0", "999", "1k", "12.3k", "1M", "4.56M"]
    assert [short_time(n) for n in (0, 850, 12_345, 4_560_000, 1_200_000_000, 65e9)] == [
        "0 ns",
        "850 ns",
        "12.3 µs",
        "4.56 ms",
        "1.20 s",
        "65 s",
    ]
