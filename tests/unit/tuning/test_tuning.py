"""What is proposed for machines whose /sys and /proc are written down in machines/, and that apply and undo leave
nothing half done."""

from pathlib import Path

import pytest

from iomesh.errors import Damaged, InUse, InvalidArgument
from iomesh.tuning import changes
from iomesh.tuning.changes import apply, undo
from iomesh.tuning.findings import examine
from iomesh.tuning.machine import Machine
from iomesh.tuning.rules import GOALS, Goal
from support.documents import faults
from unit.cli.conftest import iomesh as iomesh
from unit.cli.ran import Run

MACHINES = Path(__file__).parent / "machines"
NAMES = sorted(path.stem for path in MACHINES.glob("*.txt"))


def machine_of(name: str, root: Path) -> Machine:
    """The tree that machines/NAME.txt lists: `path: content`, more lines of the content indented by a tab."""
    for entry in (MACHINES / f"{name}.txt").read_text().replace("\n\t", "\t").splitlines():
        path, _, content = entry.partition(":")
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content.strip().replace("\t", "\n") + "\n")
    return Machine(root)


def proposals(machine: Machine, goal: Goal) -> dict[str, tuple[str, str]]:
    return {one.path: (one.proposed, one.by) for one in examine(machine, goal).findings if one.by != "nothing"}


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text().strip() for path in root.rglob("*") if path.is_file()}


def as_the_kernel_shows(root: Path) -> dict[str, str]:
    """A plain file shows what was written; the kernel's shows all choices, with this one in brackets."""
    return {path: next((w[1:-1] for w in text.split() if w[0] == "["), text) for path, text in contents(root).items()}


def test_what_an_nvme_server_gets(tmp_path: Path) -> None:
    machine = machine_of("nvme-server", tmp_path)
    assert proposals(machine, "latency") == {
        "/sys/block/nvme0n1/queue/scheduler": ("none", "apply"),
        "/sys/block/nvme0n1/queue/rq_affinity": ("2", "apply"),
        "/sys/block/nvme0n1/queue/nomerges": ("2", "apply"),
        "/proc/sys/kernel/numa_balancing": ("0", "apply"),
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": ("performance", "apply"),
        "/sys/devices/system/cpu/cpu0/cpuidle/state2/disable": ("1", "apply"),
        "/sys/kernel/mm/transparent_hugepage/enabled": ("madvise", "apply"),
        "/proc/sys/kernel/io_uring_disabled": ("1", "apply"),
        "/proc/sys/net/ipv4/tcp_slow_start_after_idle": ("0", "apply"),
        "/sys/module/nvme/parameters/poll_queues": ("1", "boot"),
        "/proc/self/limits#Max locked memory": ("67108864", "unit"),
    }
    assert proposals(machine, "throughput")["/proc/sys/net/core/rmem_max"] == ("4194304", "apply")
    assert "/proc/sys/net/core/wmem_max" not in proposals(machine, "throughput")


def test_a_disk_that_rotates_gets_another_scheduler_than_one_that_does_not(tmp_path: Path) -> None:
    assert proposals(machine_of("sata-hdd", tmp_path), "throughput") == {
        "/sys/block/sda/queue/scheduler": ("mq-deadline", "apply"),
        "/sys/block/sdb/queue/scheduler": ("none", "apply"),
        "/sys/block/sdb/queue/rq_affinity": ("2", "apply"),
    }, "no governor `performance` is on offer, and one NUMA node needs no change"


def test_a_virtual_disk_is_flash_whatever_it_says(tmp_path: Path) -> None:
    assert proposals(machine_of("virtio-vm", tmp_path), "quiet") == {
        "/sys/block/vda/queue/scheduler": ("none", "apply")
    }


def test_in_a_container_only_the_host_can_change_what_is_mounted_read_only(tmp_path: Path) -> None:
    machine = machine_of("container", tmp_path)
    before = contents(tmp_path)
    found = examine(machine, "latency")
    assert found.container
    assert {one.by for one in found.findings} == {"host"}
    assert apply(machine, "latency", found.findings, tmp_path / "state" / "tuning.json").changes == []
    assert contents(tmp_path) == before


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "container"])
def test_apply_sets_what_is_proposed_once_and_undo_restores_all_of_it(tmp_path: Path, name: str, goal: Goal) -> None:
    root, state = tmp_path / "root", tmp_path / "tuning.json"
    machine = machine_of(name, root)
    before = as_the_kernel_shows(root)
    done = apply(machine, goal, examine(machine, goal).findings, state)
    assert done.changes
    assert "apply" not in {by for _, by in proposals(machine, goal).values()}
    assert apply(machine, goal, examine(machine, goal).findings, state).changes == []
    assert undo(machine, state).left == []
    assert as_the_kernel_shows(root) == before
    assert not state.exists()
    assert undo(machine, state).restored == []


def test_undo_after_two_goals_restores_the_values_before_the_first(tmp_path: Path) -> None:
    root, state = tmp_path / "root", tmp_path / "tuning.json"
    machine = machine_of("nvme-server", root)
    before = as_the_kernel_shows(root)
    for goal in GOALS:
        apply(machine, goal, examine(machine, goal).findings, state)
    undo(machine, state)
    assert as_the_kernel_shows(root) == before


def test_a_refused_write_restores_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, state = tmp_path / "root", tmp_path / "tuning.json"
    machine = machine_of("nvme-server", root)
    before, real = as_the_kernel_shows(root), changes.set_value

    def refusing(machine: Machine, path: str, wanted: str) -> None:
        if path.endswith("scaling_governor"):
            raise InvalidArgument(f"{path}: {wanted!r} was refused: Invalid argument")
        real(machine, path, wanted)

    monkeypatch.setattr(changes, "set_value", refusing)
    with pytest.raises(InvalidArgument, match=r"scaling_governor.*what was changed before is restored"):
        apply(machine, "latency", examine(machine, "latency").findings, state)
    assert as_the_kernel_shows(root) == before
    assert not state.exists()


def test_undo_leaves_what_someone_else_changed_and_values_of_an_earlier_boot(tmp_path: Path) -> None:
    root, state = tmp_path / "root", tmp_path / "tuning.json"
    machine = machine_of("virtio-vm", root)
    apply(machine, "latency", examine(machine, "latency").findings, state)
    (root / "sys/block/vda/queue/scheduler").write_text("bfq\n")
    assert [one.path for one in undo(machine, state).left] == ["/sys/block/vda/queue/scheduler"]
    assert machine.read("sys/block/vda/queue/scheduler") == "bfq"
    assert machine.read("sys/block/vda/queue/rq_affinity") == "1"
    apply(machine, "latency", examine(machine, "latency").findings, state)
    (root / "proc/sys/kernel/random/boot_id").write_text("another\n")
    assert undo(machine, state).restored == []


def test_a_damaged_record_and_a_second_run_are_refused(tmp_path: Path) -> None:
    state = tmp_path / "tuning.json"
    machine = machine_of("virtio-vm", tmp_path / "root")
    state.write_text("{")
    with pytest.raises(Damaged, match="not a record of changes"):
        undo(machine, state)
    with changes.locked(state), pytest.raises(InUse, match="another"):
        apply(machine, "latency", examine(machine, "latency").findings, state)
    assert machine.read("sys/block/vda/queue/rq_affinity") == "1"


def test_the_commands_on_this_machine_and_on_a_tree(iomesh: Run, tmp_path: Path) -> None:
    for goal in GOALS:
        for verb in ("check", "plan"):  # they change nothing, so they may run on the machine of the test
            found = iomesh("tune", verb, "--for", goal, "--json")
            assert found.code == 0
            assert faults(f"tune {verb}", found.document) == []
    root = tmp_path / "root"
    machine_of("nvme-server", root)
    where = ("--root", str(root), "--state", str(tmp_path / "tuning.json"))
    assert "why:" in iomesh("tune", "plan", "--root", str(root)).out
    for verb in ("apply", "undo"):
        done = iomesh("tune", verb, *where, "--json")
        assert done.code == 0, done.err
        assert faults(f"tune {verb}", done.document) == []
    assert iomesh("tune", "undo", *where).out == "nothing to restore\n"
