"""QEMU's block layer as a client: images converted in and out, compared, benchmarked; unaligned reads and writes."""

import os
import random
from pathlib import Path

import pytest

from support.run import run, tool

VOLUME_BYTES = 256 << 20


def qemu_img(*words: str | Path) -> str:
    return run([tool("qemu-img", "qemu-utils"), *words], timeout=300).stdout


def qemu_io(uri: str, *commands: str) -> str:
    """Every `read -P` must find its pattern: qemu-io only prints a mismatch and continues, so its output is checked."""
    said = run(
        [
            tool("qemu-io", "qemu-utils"),
            "-f",
            "raw",
            "-d",
            "unmap",
            *(word for command in commands for word in ("-c", command)),
            uri,
        ]
    ).stdout
    assert "verification failed" not in said.lower(), said
    return said


@pytest.fixture
def image(room: Path, draw: random.Random) -> Path:
    """A sparse qcow2 image with data here and there, as large as the volume."""
    raw, image = room / "image.raw", room / "image.qcow2"
    with raw.open("wb") as file:
        file.truncate(VOLUME_BYTES)
        for _ in range(40):
            file.seek(draw.randrange(VOLUME_BYTES - (1 << 20)) // 512 * 512)
            file.write(os.urandom(draw.randint(1, 1 << 20)))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, image)
    return image


def test_an_image_converted_in_compares_equal(volume: str, image: Path) -> None:
    qemu_img("convert", "-n", "-f", "qcow2", "-O", "raw", image, volume)
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", image, volume)


def test_parallel_out_of_order_conversion_compares_equal(volume: str, image: Path) -> None:
    qemu_img("convert", "-n", "-W", "-m", "8", "-f", "qcow2", "-O", "raw", image, volume)
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", image, volume)


def test_an_image_converted_over_an_older_one_leaves_nothing_of_it(volume: str, image: Path) -> None:
    qemu_io(volume, "write -P 9 0 64M", "write -P 9 130M 64M")
    qemu_img("convert", "-n", "-f", "qcow2", "-O", "raw", image, volume)
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", image, volume)


def test_an_image_converted_out_compares_equal(volume: str, image: Path, room: Path) -> None:
    qemu_img("convert", "-n", "-f", "qcow2", "-O", "raw", image, volume)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", volume, room / "out.qcow2")
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "qcow2", image, room / "out.qcow2")
    assert (room / "out.qcow2").stat().st_size < 64 << 20, "holes were copied as data"


@pytest.mark.parametrize("writes", [True, False])
def test_qemu_img_bench_runs_to_its_end(volume: str, writes: bool) -> None:
    qemu_img(
        "bench",
        "-f",
        "raw",
        "-t",
        "none",
        "-c",
        "20000",
        "-d",
        "64",
        "-s",
        "4096",
        "-S",
        "12288",
        *(("-w", "--pattern=3", "--flush-interval=500", "--no-drain") if writes else ()),
        volume,
    )
    if writes:
        qemu_io(volume, "read -P 3 0 4096", "read -P 0 4096 8192", "read -P 3 12288 4096")


def test_odd_places_hold_what_was_written_there(volume: str) -> None:
    qemu_io(
        volume,
        "write -P 1 0 16k",
        "write -P 2 4095 2",
        "write -P 3 8191 4098",
        "write -P 4 12289 511",
        "write -P 5 511 1",
    )
    qemu_io(
        volume,
        "read -P 1 0 511",
        "read -P 5 511 1",
        "read -P 1 512 3583",
        "read -P 2 4095 2",
        "read -P 1 4097 4094",
        "read -P 3 8191 4098",
        "read -P 4 12289 511",
        "read -P 1 12800 3584",
        "read -P 0 16k 1M",
    )


def test_unaligned_zeroes_do_not_change_their_neighbours(volume: str) -> None:
    qemu_io(volume, "write -P 1 0 64k", "write -z 1001 9999", "write -z -u 20001 4096", "write -z 32k 4k")
    qemu_io(
        volume,
        "read -P 1 0 1001",
        "read -P 0 1001 9999",
        "read -P 1 11000 9001",
        "read -P 0 20001 4096",
        "read -P 1 24097 8671",
        "read -P 0 32k 4k",
        "read -P 1 36k 28k",
    )


def test_trimmed_blocks_read_as_zeros_and_can_be_written_again(volume: str) -> None:
    qemu_io(
        volume,
        "write -P 1 1M 4M",
        "discard 2M 1M",
        "read -P 1 1M 1M",
        "read -P 0 2M 1M",
        "read -P 1 3M 2M",
        "write -P 6 2500k 100k",
        "read -P 0 2M 452k",
        "read -P 6 2500k 100k",
    )


def test_the_end_of_the_volume_is_the_end(volume: str) -> None:
    qemu_io(volume, f"write -P 8 {VOLUME_BYTES - 4097} 4097", f"read -P 8 {VOLUME_BYTES - 4097} 4097")
    beyond = run(
        [tool("qemu-io", "qemu-utils"), "-f", "raw", "-c", f"write -P 8 {VOLUME_BYTES} 512", volume], succeeds=False
    )
    assert beyond.returncode != 0


def test_writes_with_fua_and_flushes_are_there(volume: str) -> None:
    qemu_io(
        volume,
        "write -f -P 1 0 1M",
        "write -z -f 4k 4k",
        "flush",
        "read -P 1 0 4k",
        "read -P 0 4k 4k",
        "read -P 1 8k 1016k",
    )


def test_neighbours_in_flight_that_share_blocks_are_all_there(volume: str) -> None:
    qemu_io(
        volume,
        *(f"aio_write -P {number} {number * 1000} 1000" for number in range(1, 60)),
        "aio_flush",
        *(f"read -P {number} {number * 1000} 1000" for number in range(1, 60)),
    )


def test_a_large_request_is_one_request(volume: str) -> None:
    qemu_io(volume, "write -P 1 1M 32M", "read -P 1 1M 32M", "read -P 0 33M 32M")
