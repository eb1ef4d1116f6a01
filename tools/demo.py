"""`make demo`: a database on a volume, the engine killed under it, and not a commit lost; a table dropped by mistake, and back with a
snapshot. Then what the engine costs and gains.

Everything it makes lies in one directory of its own and is taken down again: at the end, after a failure, after Ctrl-C.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "perf"))

from demo_database import USER, Database, Load, missing_commits, postgres_programs
from demo_disk import DemoError, Disk, free_nbd_device, run
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iomesh.cli.files import Allocation, make_device_file
from iomesh.errors import IomeshError
from iomesh.sizes import exact_size, short_count, short_size, short_time
from iomesh_perf import fio
from iomesh_perf.trial import Trial, TrialError, iomesh

GIB = 1 << 30
MIB = 1 << 20
DEVICE_BYTES = 10 * GIB
VOLUME_BYTES = 4 * GIB
BENCH_BYTES = 2 * GIB
STEPS = 13
SCALE = 20
ACCOUNTS = SCALE * 100_000

WORKLOADS = [
    (fio.Workload("write", random=True, block_bytes=4096, depth=1), 256 * MIB),
    (fio.Workload("write", random=True, block_bytes=4096, depth=32), GIB),
    (fio.Workload("read", random=True, block_bytes=4096, depth=1), None),
    (fio.Workload("read", random=True, block_bytes=4096, depth=32), None),
    (fio.Workload("write", random=False, block_bytes=MIB, depth=8), GIB),
    (fio.Workload("read", random=False, block_bytes=MIB, depth=8), None),
]


TITLE = "\niomesh over NBD beside the raw file (one short run each; `make bench` measures properly)"


class Story:
    """Tells the steps as they happen."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.number = 0

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        self.number += 1
        began = time.monotonic()
        heading = f"[bold]{self.number:2}/{STEPS}[/]  {title}"
        if self.console.is_terminal:
            with self.console.status(heading):
                yield
        else:
            self.console.print(heading)
            yield
        seconds = f"[dim]{time.monotonic() - began:.1f} s[/]"
        self.console.print(f"[green]✓[/] {heading}  {seconds}" if self.console.is_terminal else f"       done, {seconds}")

    def say(self, text: str) -> None:
        self.console.print(f"       {text}", highlight=False, markup=False)


def main() -> int:
    options = arguments()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    began = time.monotonic()
    try:
        require(options.directory)
        with scratch(options.directory, console) as directory:
            demonstrate(Story(console), directory, options.seconds)
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything was taken down.")
        return 130
    except (DemoError, TrialError, fio.FioError, IomeshError, OSError) as error:
        console.print(f"\n[red]The demonstration failed:[/] {escape(str(error))}")
        return 1
    console.print(f"\n[green bold]Every committed transaction was there.[/] {time.monotonic() - began:.0f} s; nothing is left behind.")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where its scratch directory is made (default: /var/tmp)")
    parser.add_argument("--seconds", type=int, default=20, help="how long pgbench runs; the engine is killed in the middle (default: 20)")
    return parser.parse_args()


def interrupt(number: int, frame: object) -> None:
    """Once: what follows is the way down, and that is not to be interrupted."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def require(directory: Path) -> None:
    """Raises DemoError with everything that is missing, in one message."""
    missing = []
    if os.geteuid() != 0:
        missing.append("root, for mounts and loop devices: run `sudo make demo`")
    programs = {"fio": "fio", "mkfs.xfs": "xfsprogs", "losetup": "mount", "mount": "mount"}
    if free_nbd_device() is None:
        programs |= {"nbdfuse": "libnbd-bin", "fusermount3": "fuse3"}
        if not Path("/dev/fuse").exists():
            missing.append("/dev/fuse: the kernel's module fuse (or nbd, with nbd-client)")
    absent = sorted({package for program, package in programs.items() if shutil.which(program) is None})
    if postgres_programs() is None:
        absent.append("postgresql")
    if absent:
        missing.append(f"programs: `apt-get install {' '.join(absent)}`")
    needed = DEVICE_BYTES + BENCH_BYTES + GIB
    if not directory.is_dir():
        missing.append(f"the directory {directory}")
    elif shutil.disk_usage(directory).free < needed:
        free = short_size(shutil.disk_usage(directory).free)
        missing.append(f"{exact_size(needed)} free in {directory} (there are {free}): --directory names another")
    if missing:
        raise DemoError("it needs\n" + "\n".join(f"  - {each}" for each in missing))


@contextlib.contextmanager
def scratch(parent: Path, console: Console) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="iomesh-demo-", dir=parent))
    directory.chmod(0o755)  # PostgreSQL's user goes through it
    try:
        yield directory
    finally:
        with console.status("taking everything down") if console.is_terminal else contextlib.nullcontext():
            shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            console.print(f"[yellow]{directory} could not be removed whole[/]")


def demonstrate(story: Story, directory: Path, seconds: int) -> None:
    with contextlib.ExitStack() as down:
        with story.step("Make a device (a file), format it, start the engine, create a volume, serve it over NBD"):
            trial = down.enter_context(Trial(directory / "trial", device_bytes=DEVICE_BYTES, volume_bytes=VOLUME_BYTES, prewrite=True))
        story.say(f"device {exact_size(DEVICE_BYTES)}, replica-1 volume {exact_size(VOLUME_BYTES)} at {trial.uri}")

        with story.step("fio writes 256 MiB at random in mixed sizes and reads them back, each block by its CRC32C"):
            verify(trial.uri)
        story.say("every block verified")

        outside = directory / "outside"
        outside.mkdir()
        shutil.chown(outside, USER, USER)
        database_story(story, trial, directory, outside, seconds)

        with story.step("Measure the volume and a raw file on the same filesystem with fio"):
            iomesh("volume", "delete", trial.volume, "--yes", "--force", "--snapshots", "--control", trial.control)
            iomesh("volume", "create", "bench", str(BENCH_BYTES), "--export", "--control", trial.control)
            shown = trial_uri(trial)
            results = measure(directory / "raw", shown)
        story.console.print(comparison(results))


def database_story(story: Story, trial: Trial, directory: Path, outside: Path, seconds: int) -> None:
    with contextlib.ExitStack() as down:
        disk = Disk(trial.uri, directory)
        down.callback(disk.give_up)
        with story.step("Make the volume a disk of this machine, with XFS on it"):
            device = disk.attach()
            disk.make_filesystem()
            disk.mount()
        story.say(f"{device} through {disk.how}, mounted at {disk.mount_point}")

        database = Database(disk.mount_point / "postgresql", outside)
        down.callback(database.give_up)
        with story.step(f"Put PostgreSQL on it and fill pgbench's tables (scale {SCALE})"):
            database.create()
            database.start()
            database.fill(SCALE)
        story.say(f"{database.ask('SHOW server_version')}, {short_size(int(database.ask('SELECT pg_database_size(current_database())')))}")

        ledger = outside / "ledger"
        load = Load(database, ledger)
        down.callback(load.end)
        with story.step(f"Run pgbench and clients that keep a ledger outside; after {seconds // 2} s kill the engine with SIGKILL"):
            load.start(seconds)
            time.sleep(max(1, seconds // 2))
            committed = load.committed
            pid = trial.pid
            trial.crash()
        story.say(f"process {pid} is dead; {committed} commits in the ledger by then")

        with story.step("To the database the machine has crashed: take down PostgreSQL, XFS and the disk by force"):
            database.give_up()
            load.end()
            disk.give_up()
        transactions = load.transactions

        with story.step("Start the engine again; mount; PostgreSQL recovers from its log"):
            began = time.monotonic()
            trial.start()
            served = time.monotonic() - began
            disk.attach()
            disk.mount()
            database.start()
        recovery = short_time(trial.recovery_seconds() * 1e9)
        up = time.monotonic() - began
        story.say(f"served {served:.2f} s after the start, {recovery} of it recovery of the volume; database up after {up:.1f} s")

        with story.step("Compare with the ledger; check every table, index and page"):
            acknowledged, missing, beside = missing_commits(database, ledger)
            rows = int(database.ask("SELECT count(*) FROM pgbench_history"))
            sums = database.balanced()
            database.amcheck()
        judge(story, acknowledged, missing, beside, load.clients, transactions, rows, sums)
        restore_story(story, trial, disk, database)

        with story.step("Stop PostgreSQL, unmount"):
            database.stop()
            disk.unmount()


def restore_story(story: Story, trial: Trial, disk: Disk, database: Database) -> None:
    """A table is lost by a mistake, and comes back with the volume's snapshot. PostgreSQL runs before and after."""
    name = f"{trial.volume}@before-the-mistake"
    with story.step("Run pgbench; take a snapshot under it; then DROP TABLE pgbench_accounts, by mistake"):
        with database.under_load():
            time.sleep(2)
            before = int(database.ask("SELECT count(*) FROM pgbench_history"))
            began = time.monotonic()
            iomesh("snapshot", "create", *name.split("@"), "--control", trial.control)
            took = time.monotonic() - began
            after = int(database.ask("SELECT count(*) FROM pgbench_history"))
            time.sleep(2)
        database.ask("DROP TABLE pgbench_accounts; CHECKPOINT")
    story.say(f"snapshot {name}: the command took {short_time(took * 1e9)}, while pgbench went from {before} to {after} transactions")
    story.say("the table is gone")

    with story.step("Stop PostgreSQL, unmount, take the volume back to the snapshot"):
        database.stop()
        disk.unmount()
        began = time.monotonic()
        kept = json.loads(iomesh("volume", "restore", name, "--json", "--control", trial.control))["before"]
        took = time.monotonic() - began
    story.say(f"restored: the command took {short_time(took * 1e9)}; what was there is kept as {trial.volume}@{kept}")

    with story.step("Mount; PostgreSQL recovers from its log; look for the table"):
        disk.attach()
        disk.mount()
        database.start()
        accounts = int(database.ask("SELECT count(*) FROM pgbench_accounts"))
        rows = int(database.ask("SELECT count(*) FROM pgbench_history"))
        sums = database.balanced()
        database.amcheck()
    if accounts != ACCOUNTS or not sums:
        raise DemoError(f"pgbench_accounts has {accounts} rows and not {ACCOUNTS}, or the balances do not add up")
    if not before <= rows <= after:
        raise DemoError(f"{rows} transactions are there, and at the snapshot there were {before} to {after}")
    story.say(f"the table is back with {accounts} rows, {rows} transactions are there; balances add up, pg_amcheck is clean")


def judge(
    story: Story,
    acknowledged: int,
    missing: set[tuple[int, int]],
    beside: set[tuple[int, int]],
    clients: int,
    transactions: int,
    rows: int,
    sums: bool,
) -> None:
    """Says what was found; raises DemoError if it is not what must be."""
    table = Table("", "acknowledged", "in the database", "missing", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("ledger", str(acknowledged), str(acknowledged - len(missing) + len(beside)), str(len(missing)))
    table.add_row("pgbench", str(transactions), str(rows), str(max(0, transactions - rows)))
    story.console.print(table)
    if missing:
        raise DemoError(f"{len(missing)} acknowledged commits are missing, the first (client, number) {min(missing)}")
    if not acknowledged or not transactions:
        raise DemoError("nothing was committed before the kill, so nothing was shown: give it more --seconds")
    if len(beside) > clients:
        raise DemoError(f"{len(beside)} rows are there that nobody was told of, {clients} are possible")
    if rows < transactions:
        raise DemoError(f"pgbench was told of {transactions} commits, the database has {rows}")
    if not sums:
        raise DemoError("pgbench's balances do not add up")
    story.say("balances add up, pg_amcheck is clean, page checksums hold")


def verify(uri: str) -> None:
    run(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bsrange=4k-128k", "--blockalign=4k",
        "--size=256m", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=7", seconds=600,
    )  # fmt: skip


def trial_uri(trial: Trial) -> str:
    shown = json.loads(iomesh("volume", "show", "bench", "--json", "--control", trial.control))
    return str(shown["exports"][0]["uris"][0])


def measure(raw: Path, uri: str) -> list[tuple[str, fio.Run, fio.Run]]:
    """Each workload on the raw file, then on the volume; both were written from end to end before."""
    make_device_file(raw, BENCH_BYTES, Allocation.PREWRITTEN)
    doors = (fio.File(raw), fio.Nbd(uri))
    fio.run(fio.Workload("write", random=False, block_bytes=MIB, depth=8), doors[1], fio.Extent(BENCH_BYTES, most_bytes=BENCH_BYTES))
    results = []
    for workload, most in WORKLOADS:
        one, other = (fio.run(workload, door, fio.Extent(BENCH_BYTES, seconds=4, most_bytes=most)) for door in doors)
        results.append((workload.name, one, other))
    raw.unlink()
    return results


def comparison(results: list[tuple[str, fio.Run, fio.Run]]) -> Table:
    table = Table(
        title=TITLE,
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("", header_style="bold")
    for column in ("raw IOPS", "iomesh IOPS", "×", "raw mean", "iomesh mean", "raw p99", "iomesh p99"):
        table.add_column(column, justify="right", header_style="bold")
    for name, raw, volume in results:
        table.add_row(
            name, short_count(raw.iops), short_count(volume.iops), f"{volume.iops / raw.iops:.2f}",
            short_time(raw.mean_us * 1e3), short_time(volume.mean_us * 1e3), short_time(raw.p99_us * 1e3), short_time(volume.p99_us * 1e3),
        )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main())
