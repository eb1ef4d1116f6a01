"""A trial's directory: only what a trial made is ever removed, and only a living daemon counts as one."""

import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iomesh.cli.files import Allocation, make_device_file, require_direct_io
from iomesh.cli.trial import daemon
from iomesh.cli.trial.installation import MARKER, Installation, Process, TrialNode, birth, default_directory
from iomesh.errors import Damaged, Foreign, InUse, InvalidArgument, IomeshError, NoSpace, NotFound


def created(directory: Path) -> Installation:
    return Installation.create(directory, "00000000-0000-4000-8000-000000000000")


def test_a_new_directory_is_claimed_by_its_marker(tmp_path: Path) -> None:
    made = created(tmp_path / "a" / "b")
    assert Installation.load(tmp_path / "a" / "b") == made


def test_an_empty_directory_may_be_there_already(tmp_path: Path) -> None:
    created(tmp_path).remove()
    assert not tmp_path.exists()


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [("notes.txt", "mine", Foreign), (MARKER, "{", Damaged), (MARKER, '{"directory": 5}', Damaged)],
)
def test_a_directory_of_someone_else_is_refused_and_left_as_it_is(
    tmp_path: Path, name: str, content: str, error: type[IomeshError]
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=str(tmp_path)):
        created(tmp_path)
    assert (tmp_path / name).read_text() == content


def test_a_second_trial_in_the_same_place_is_refused_with_the_way_out(tmp_path: Path) -> None:
    created(tmp_path)
    with pytest.raises(InUse, match="end it with `iomesh trial down`"):
        created(tmp_path)


def test_a_directory_too_long_for_a_socket_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    with pytest.raises(InvalidArgument, match="choose a shorter --dir"):
        created(long)
    assert not long.exists()


def test_removing_takes_everything_that_the_trial_made_and_nothing_around_it(tmp_path: Path) -> None:
    (tmp_path / "neighbour").write_text("stays")
    made = created(tmp_path / "trial")
    device = made.nodes[0].devices[0]
    device.parent.mkdir(parents=True)
    device.write_bytes(b"x")
    (made.path / "link").symlink_to(tmp_path / "neighbour")
    made.remove()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["neighbour"]


def test_a_directory_that_lost_its_marker_is_not_removed(tmp_path: Path) -> None:
    made = created(tmp_path)
    made.marker.unlink()
    (tmp_path / "data").write_text("x")
    with pytest.raises(Foreign, match="is not a trial's directory and is not removed"):
        made.remove()
    assert (tmp_path / "data").exists()
    with pytest.raises(NotFound):
        Installation.load(tmp_path)


def node_of(directory: Path, pid: int, born: int) -> TrialNode:
    """A node whose daemon is this process."""
    node = created(directory).nodes[0]
    node.path.mkdir()
    node.record(Process(pid, born))
    return node


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_daemon_counts_as_running_while_its_own_process_runs(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    node = node_of(tmp_path, sleeper.pid, birth(sleeper.pid))
    assert (node.state, node.pid) == ("running", sleeper.pid)
    with pytest.raises(InUse, match="is running: stop it first"):
        Installation.load(tmp_path).remove()
    with pytest.raises(InUse, match=f"runs \\(process {sleeper.pid}\\)"):
        created(tmp_path)
    daemon.kill([node])
    assert birth(sleeper.pid) == 0
    assert (node.state, node.pid) == ("stopped", None)
    assert sleeper.wait() in (0, -signal.SIGKILL)


def test_a_daemon_that_ended_before_its_start_time_was_read_does_not_run(tmp_path: Path) -> None:
    assert node_of(tmp_path, os.getpid(), 0).state == "stopped"


def test_a_paused_daemon_is_resumed_stopped_and_killed(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    node = node_of(tmp_path, sleeper.pid, birth(sleeper.pid))
    states = []
    for change in (pause, daemon.resume, pause):
        change(node)
        states.append(node.state)
    assert states == ["paused", "running", "paused"]
    assert daemon.stop([node], 60.0) == []
    assert node.state == "stopped"


def pause(node: TrialNode) -> None:
    daemon.pause(node, node.path / "metadata.db")


def test_a_daemon_is_not_paused_while_it_has_the_lock_of_the_metadata(tmp_path: Path) -> None:
    write = """if True:
        import sqlite3, sys, time
        database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
        print(flush=True)
        while True:
            database.execute("BEGIN IMMEDIATE")
            time.sleep(0.05)
            database.execute("ROLLBACK")
            time.sleep(0.005)
        """
    metadata = tmp_path / "metadata.db"
    process = subprocess.Popen(
        [sys.executable, "-c", write, str(metadata)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        node = node_of(tmp_path / "trial", process.pid, birth(process.pid))
        for _ in range(3):
            daemon.pause(node, metadata)
            with contextlib.closing(sqlite3.connect(metadata, timeout=0.0)) as database:
                database.execute("BEGIN IMMEDIATE")
            daemon.resume(node)
    finally:
        process.kill()
        process.communicate()


def test_a_daemon_that_ignores_a_stop_is_reported_and_killed(tmp_path: Path) -> None:
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", ignore], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        node = node_of(tmp_path, process.pid, birth(process.pid))
        assert daemon.stop([node], 0.05) == [node]
        daemon.kill([node])
        assert node.state == "stopped"
    finally:
        process.kill()
        process.communicate()


def test_a_process_that_took_over_the_number_is_not_signalled(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    stranger = node_of(tmp_path, sleeper.pid, birth(sleeper.pid) - 1)
    assert stranger.state == "stopped"
    daemon.kill([stranger])
    pause(stranger)
    assert daemon.stop([stranger], 0.1) == []
    time.sleep(0.05)
    assert sleeper.poll() is None


def test_each_node_has_a_directory_of_its_own_and_a_name_that_is_found(tmp_path: Path) -> None:
    made = Installation.create(tmp_path, "00000000-0000-4000-8000-000000000000", nodes=3, devices=2)
    assert [node.name for node in made.nodes] == ["a", "b", "c"]
    assert made.node("b").devices == [tmp_path / "b" / "devices" / "0.img", tmp_path / "b" / "devices" / "1.img"]
    with pytest.raises(NotFound, match="has no node 'd': its nodes are a, b, c"):
        made.node("d")


def test_the_usual_place_follows_the_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert default_directory() == Path("/somewhere/iomesh/trial")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_directory() == Path.home() / ".local/state/iomesh/trial"


@pytest.mark.parametrize("allocation", list(Allocation))
def test_a_device_file_has_its_size_and_its_space(tmp_path: Path, allocation: Allocation) -> None:
    path, heard = tmp_path / "device", list[int]()
    make_device_file(path, (9 << 20) + 4096, allocation, heard.append)
    stored = path.stat()
    assert stored.st_size == heard[-1] == (9 << 20) + 4096
    assert heard == sorted(heard)
    assert (stored.st_blocks * 512 >= stored.st_size) == (allocation is not Allocation.SPARSE)
    assert any(path.read_bytes()) == (allocation is Allocation.PREWRITTEN)


def test_a_file_larger_than_what_is_free_is_refused_before_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(NoSpace, match="choose a smaller size or another directory"):
        make_device_file(tmp_path / "device", 1 << 60, Allocation.PREALLOCATED)
    assert not (tmp_path / "device").exists()


def test_a_file_larger_than_files_may_be_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))  # as a filesystem with such a limit answers
    try:
        with pytest.raises(InvalidArgument, match=r"2Mi exceeds the file size limit.*choose a smaller size"):
            make_device_file(tmp_path / "device", 2 << 20, Allocation.SPARSE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "device").write_text("mine")
    with pytest.raises(FileExistsError):
        make_device_file(tmp_path / "device", 4096, Allocation.SPARSE)
    assert (tmp_path / "device").read_text() == "mine"


def test_direct_io_is_probed_without_leaving_a_trace(tmp_path: Path) -> None:
    require_direct_io(tmp_path)
    assert not any(tmp_path.iterdir())
