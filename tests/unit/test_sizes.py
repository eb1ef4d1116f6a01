"""Sizes: what people write is read one way only, and what is printed reads back."""

import random

import pytest

from iomesh.sizes import SizeError, exact_size, parse_size, short_count, short_size, short_time, whole_blocks


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("1k", 1000),
        ("1Ki", 1024),
        ("1KiB", 1024),
        ("512M", 512 * 10**6),
        ("512Mi", 512 << 20),
        ("10G", 10**10),
        ("10Gi", 10 << 30),
        ("10GiB", 10 << 30),
        (" 10 Gi ", 10 << 30),
        ("1.5Ti", 3 << 39),
        (".5Mi", 1 << 19),
        ("64T", 64 * 10**12),
        ("2P", 2 * 10**15),
        ("1Pi", 1 << 50),
        ("3E", 3 * 10**18),
        ("1Ei", 1 << 60),
        ("1e9", 10**9),
        ("12E2", 1200),
        ("1.5e3", 1500),
        ("5000e-3", 5),
        ("+2G", 2 * 10**9),
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
        ("1e999", "unknown unit 'e999'"),
        ("10K", "write 10k (powers of 1000) or 10Ki (powers of 1024)"),
        ("10KB", "write 10k (powers of 1000) or 10Ki (powers of 1024)"),
        ("10kB", "write 10k (powers of 1000) or 10Ki (powers of 1024)"),
        ("10GB", "write 10G (powers of 1000) or 10Gi (powers of 1024)"),
        ("1.5tb", "write 1.5T (powers of 1000) or 1.5Ti (powers of 1024)"),
        ("10g", "write 10G (powers of 1000) or 10Gi (powers of 1024)"),
        ("10gib", "write 10G (powers of 1000) or 10Gi (powers of 1024)"),
        ("10m", "means thousandths in Kubernetes: write 10M (powers of 1000) or 10Mi (powers of 1024)"),
        ("0x10", "unknown unit 'x10'"),
        ("10GiBs", "unknown unit 'GiBs'"),
        ("10%", "unknown unit '%'"),
        ("-1G", "negative"),
        ("0.3", "whole number of bytes"),
        ("1.2.3G", "not a size"),
        ("1..2G", "not a size"),
        ("10E", "too large: at most"),
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
    with pytest.raises(SizeError, match="too large: at most 64Ti"):
        parse_size("65Ti", most=64 << 40)
    with pytest.raises(SizeError, match="too small: at least 1Mi"):
        parse_size("1k", least=1 << 20)


def test_a_size_between_blocks_is_rounded_up_to_the_next_mebibyte() -> None:
    assert [whole_blocks(size) for size in (0, 4096, 4097, 64 * 10**9)] == [0, 4096, 1 << 20, 64 * 10**9]
    assert exact_size(whole_blocks(parse_size("100G"))) == "95368Mi"


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
        (1024, "1 Ki"),
        (1536, "1.50 Ki"),
        (10 << 30, "10 Gi"),
        ((10 << 30) - 1, "10 Gi"),
        (999 << 20, "999 Mi"),
        (1 << 60, "1 Ei"),
        (1023 << 10, "1023 Ki"),
        ((1 << 20) - 1, "1 Mi"),
    ],
)
def test_a_short_size_has_three_figures(size: int, text: str) -> None:
    assert short_size(size) == text


def test_counts_and_times_are_printed_with_fitting_units() -> None:
    assert [short_count(n) for n in (0, 999, 1000, 12345, 999_600, 4_560_000)] == [
        "0",
        "999",
        "1k",
        "12.3k",
        "1M",
        "4.56M",
    ]
    assert [short_time(n) for n in (0, 850, 12_345, 4_560_000, 1_200_000_000, 65e9)] == [
        "0 ns",
        "850 ns",
        "12.3 µs",
        "4.56 ms",
        "1.20 s",
        "65 s",
    ]
