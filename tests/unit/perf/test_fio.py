"""fio is asked the same of every target, and what it says is read as it means it."""

import dataclasses
import json
from pathlib import Path

import pytest

from iomesh_perf import fio

RANDOM_WRITE = fio.Workload("write", random=True, block_bytes=4096, depth=32)
REAL = (Path(__file__).parent / "fio-write.json").read_text()


def test_targets_differ_in_their_endpoint_alone() -> None:
    extent = fio.Extent(1 << 30, seconds=5, seed=3)
    on_file = fio.command(RANDOM_WRITE, fio.File(Path("/data/raw")), extent)
    on_nbd = fio.command(RANDOM_WRITE, fio.Nbd("nbd+unix:///v?socket=/run/s"), extent)
    assert set(on_file) - set(on_nbd) == {"--ioengine=io_uring", "--direct=1", "--filename=/data/raw"}
    assert set(on_nbd) - set(on_file) == {"--ioengine=nbd", "--uri=nbd+unix:///v?socket=/run/s"}


def test_a_timed_run_starts_over_at_the_end_of_its_range() -> None:
    words = fio.command(RANDOM_WRITE, fio.Nbd("nbd://h/v"), fio.Extent(1 << 20, seconds=2.5))
    assert "--runtime=2500ms" in words
    assert "--time_based=1" in words


def test_a_bound_on_bytes_ends_a_run_before_its_time() -> None:
    words = fio.command(RANDOM_WRITE, fio.Nbd("nbd://h/v"), fio.Extent(1 << 20, seconds=2, most_bytes=1 << 30))
    assert f"--io_size={1 << 30}" in words
    assert "--time_based=1" not in words, "with time_based fio ignores io_size"


def test_a_mixed_run_reads_as_much_as_it_writes() -> None:
    mixed = fio.Workload("rw", random=True, block_bytes=4096, depth=8)
    assert "--rw=randrw" in fio.command(mixed, fio.Nbd("nbd://h/v"), fio.Extent(1 << 20)), (
        "half and half, unless fio is told another share"
    )


def test_names_are_those_of_the_tables() -> None:
    assert RANDOM_WRITE.name == "4 KiB random write, depth 32"
    assert fio.Workload("read", random=False, block_bytes=1 << 20, depth=8).name == "1 MiB sequential read, depth 8"


def test_a_real_document_of_fio_is_read() -> None:
    run = fio.parse(REAL, "write")
    side = json.loads(REAL)["jobs"][0]["write"]
    assert run.ios == 1024
    assert run.iops == side["iops"]
    assert run.mean_us == side["lat_ns"]["mean"] / 1000
    assert run.p50_us <= run.p99_us <= run.p999_us
    job = json.loads(REAL)["jobs"][0]
    assert run.client_cpu_us_per_io == pytest.approx((job["usr_cpu"] + job["sys_cpu"]) * job["job_runtime"] * 10 / 1024)


def test_what_fio_writes_before_its_json_is_skipped() -> None:
    assert fio.parse("fio: a warning\n" + REAL, "write") == fio.parse(REAL, "write")


def test_a_run_that_did_nothing_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(fio.FioError, match="no operation"):
        fio.parse(REAL, "read")


def test_an_error_that_fio_reports_is_not_taken_for_a_result() -> None:
    document = json.loads(REAL)
    document["jobs"][0]["error"] = 5
    with pytest.raises(fio.FioError, match="error 5"):
        fio.parse(json.dumps(document), "write")


@pytest.mark.parametrize("text", ["", "fio: failed", "{}", '{"jobs": []}', "{ not json"])
def test_anything_else_is_refused_with_words(text: str) -> None:
    with pytest.raises(fio.FioError):
        fio.parse(text, "write")


def test_workloads_can_be_told_apart_as_keys() -> None:
    assert len({RANDOM_WRITE, dataclasses.replace(RANDOM_WRITE, depth=1)}) == 2
