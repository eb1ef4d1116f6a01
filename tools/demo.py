"""`make demo`: a database on a volume, the engine killed under it, and not a commit lost; a table dropped by mistake,
and the volume taken back to the second before; a second database on a clone, beside the first. Then what the engine
costs and gains.

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
from datetime import datetime
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
STEPS = 15
SCALE = 20
ACCOUNTS = SCALE * 100_000
SNAPSHOT = "before-the-mistake"
LOAD_SECONDS = 14
BACK_SECONDS = 10

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
    """Prints the steps as they run."""

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
        self.console.print(
            f"[green]✓[/] {heading}  {seconds}" if self.console.is_terminal else f"       done, {seconds}"
        )

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
    console.print(
        f"\n[green bold]Every committed transaction was there.[/] {time.monotonic() - began:.0f} s; nothing is left "
        "behind."
    )
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("/var/tmp"),
        help="where its scratch directory is made (default: /var/tmp)",
    )
    parser.add_argument(
        "--seconds",
        type=int,
        default=20,
        help="how long pgbench runs; the engine is killed in the middle (default: 20)",
    )
    return parser.parse_args()


def interrupt(number: int, frame: object) -> None:
    """Acts on the first signal only: teardown follows, and must not be interrupted."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def require(directory: Path) -> None:
    """Raises DemoError with all missing tools in one message."""
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
    directory.chmod(0o755)  # so that PostgreSQL's user can traverse it
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
            trial = down.enter_context(
                Trial(directory / "trial", device_bytes=DEVICE_BYTES, volume_bytes=VOLUME_BYTES, prewrite=True)
            )
        story.say(f"device {exact_size(DEVICE_BYTES)}, replica-1 volume {exact_size(VOLUME_BYTES)} at {trial.uri}")

        with story.step("fio writes 256 MiB at random in mixed sizes and reads them back, each block by its CRC32C"):
            verify(trial.uri)
        story.say("every block verified")

        outside = directory / "outside"
        outside.mkdir()
        shutil.chown(outside, USER, USER)
        database_story(story, trial, directory, outside, seconds)

        with story.step("Measure the volume and a raw file on the same filesystem with fio"):
            iomesh("volume", "delete", trial.volume, "--yes", "--force", "--snapshots", "--address", trial.control)
            iomesh("volume", "create", "bench", str(BENCH_BYTES), "--export", "--address", trial.control)
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
        story.say(
            f"{database.ask('SHOW server_version')}, "
            f"{short_size(int(database.ask('SELECT pg_database_size(current_database())')))}"
        )

        ledger = outside / "ledger"
        load = Load(database, ledger)
        down.callback(load.end)
        with story.step(
            f"Run pgbench and clients that keep a ledger outside; after {seconds // 2} s kill the engine with SIGKILL"
        ):
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
        story.say(
            f"served {served:.2f} s after the start, {recovery} of it recovery of the volume; database up after "
            f"{up:.1f} s"
        )

        with story.step("Compare with the ledger; check every table, index and page"):
            acknowledged, missing, beside = missing_commits(database, ledger)
            rows = int(database.ask("SELECT count(*) FROM pgbench_history"))
            sums = database.balanced()
            database.amcheck()
        check_results(story, acknowledged, missing, beside, load.clients, transactions, rows, sums)
        restore_story(story, trial, disk, database)
        clone_story(story, trial, directory, database)

        with story.step("Stop PostgreSQL, unmount"):
            database.stop()
            disk.unmount()


def restore_story(story: Story, trial: Trial, disk: Disk, database: Database) -> None:
    """A table is dropped by mistake and restored: the volume is restored to the second before. PostgreSQL runs before
    and after.
    """
    with story.step(
        f"Run pgbench for {LOAD_SECONDS} s, with a snapshot under it; then DROP TABLE pgbench_accounts, by mistake"
    ):
        iomesh("volume", "set", trial.volume, "--window", "1h", "--address", trial.control)
        seen: list[tuple[float, int]] = []
        with database.under_load():
            for second in range(LOAD_SECONDS):
                seen.append((time.time(), transactions(database)))
                if second == 2:
                    began = time.monotonic()
                    iomesh("snapshot", "create", f"{trial.volume}@{SNAPSHOT}", "--address", trial.control)
                    took = time.monotonic() - began
                time.sleep(1)
            seen.append((time.time(), transactions(database)))
        database.ask("DROP TABLE pgbench_accounts; CHECKPOINT")
        dropped = time.time()
    story.say(
        f"snapshot {trial.volume}@{SNAPSHOT}: the command took {short_time(took * 1e9)}, at {seen[2][1]} transactions"
    )
    story.say(f"the table is gone, after {seen[-1][1]} transactions")

    with story.step(f"Stop PostgreSQL, unmount, take the volume back to {BACK_SECONDS} seconds ago"):
        database.stop()
        disk.unmount()
        time.sleep(max(0.0, dropped + 1 - time.time()))
        began = time.monotonic()
        done = json.loads(
            iomesh(
                "volume", "restore", trial.volume, "--at", f"{BACK_SECONDS}s ago", "--json", "--address", trial.control
            )
        )
        took = time.monotonic() - began
        restored_to = datetime.fromisoformat(done["at"]).timestamp()
    if restored_to > dropped:
        raise DemoError("the table was dropped too long ago: this machine is too slow for the demonstration")
    kept = f"what was there is kept as {trial.volume}@{done['before']}"
    story.say(
        f"restored to {dropped - restored_to:.1f} s before the mistake: the command took {short_time(took * 1e9)}; "
        f"{kept}"
    )

    with story.step("Mount; PostgreSQL recovers from its log; look for the table"):
        disk.attach()
        disk.mount()
        database.start()
        rows = look_for_the_table(database)
    least = max((count for at, count in seen if at <= restored_to), default=0)
    most = min((count for at, count in seen if at > restored_to), default=seen[-1][1])
    if not least <= rows <= most:
        raise DemoError(f"{rows} transactions are there, and at that second there were {least} to {most}")
    story.say(
        f"the table is back with {ACCOUNTS} rows, {rows} transactions are there; balances add up, pg_amcheck is clean"
    )


def clone_story(story: Story, trial: Trial, directory: Path, database: Database) -> None:
    """The snapshot is cloned, with a second PostgreSQL on the clone beside the first."""
    with contextlib.ExitStack() as down:
        with story.step(
            "Clone the snapshot; start a second PostgreSQL on the clone, beside the first, and run pgbench on both"
        ):
            began = time.monotonic()
            made = json.loads(
                iomesh(
                    "volume",
                    "clone",
                    f"{trial.volume}@{SNAPSHOT}",
                    "second",
                    "--export",
                    "--json",
                    "--address",
                    trial.control,
                )
            )
            took = time.monotonic() - began
            beside = directory / "second"
            sockets = beside / "outside"
            sockets.mkdir(parents=True)
            shutil.chown(sockets, USER, USER)
            disk = Disk(str(made["exports"][0]["uris"][0]), beside)
            down.callback(disk.give_up)
            disk.attach()
            disk.mount()
            second = Database(disk.mount_point / "postgresql", sockets)
            down.callback(second.give_up)
            second.start()
            before, before_second = transactions(database), look_for_the_table(second)
            with database.under_load(), second.under_load():
                time.sleep(4)
            after, after_second = look_for_the_table(database), look_for_the_table(second)
        if not (after > before and after_second > before_second):
            raise DemoError("one of the two databases has not gone on")
        story.say(
            f"cloned: the command took {short_time(took * 1e9)}; the second began with {before_second} transactions"
        )
        story.say(f"the first went from {before} to {after}, the second to {after_second}; both are whole")
        with story.step("Stop the second PostgreSQL, delete the clone"):
            second.stop()
            disk.unmount()
            iomesh("volume", "delete", "second", "--yes", "--address", trial.control)


def transactions(database: Database) -> int:
    return int(database.ask("SELECT count(*) FROM pgbench_history"))


def look_for_the_table(database: Database) -> int:
    """Number of transactions. Raises DemoError if the accounts are missing, or if any check of the database fails."""
    accounts = int(database.ask("SELECT count(*) FROM pgbench_accounts"))
    if accounts != ACCOUNTS or not database.balanced():
        raise DemoError(f"pgbench_accounts has {accounts} rows and not {ACCOUNTS}, or the balances do not add up")
    database.amcheck()
    return transactions(database)


def check_results(
    story: Story,
    acknowledged: int,
    missing: set[tuple[int, int]],
    beside: set[tuple[int, int]],
    clients: int,
    transactions: int,
    rows: int,
    sums: bool,
) -> None:
    """Prints the result; raises DemoError if it is not the expected one."""
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
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bsrange=4k-128k",
        "--blockalign=4k", "--size=256m", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
        "--randseed=7", seconds=600,
    )  # fmt: skip


def trial_uri(trial: Trial) -> str:
    shown = json.loads(iomesh("volume", "show", "bench", "--json", "--address", trial.control))
    return str(shown["exports"][0]["uris"][0])


def measure(raw: Path, uri: str) -> list[tuple[str, fio.Run, fio.Run]]:
    """Each workload on the raw file, then on the volume; both were fully written before."""
    make_device_file(raw, BENCH_BYTES, Allocation.PREWRITTEN)
    endpoints = (fio.File(raw), fio.Nbd(uri))
    fio.run(
        fio.Workload("write", random=False, block_bytes=MIB, depth=8),
        endpoints[1],
        fio.Extent(BENCH_BYTES, most_bytes=BENCH_BYTES),
    )
    results = []
    for workload, most in WORKLOADS:
        one, other = (
            fio.run(workload, endpoint, fio.Extent(BENCH_BYTES, seconds=4, most_bytes=most)) for endpoint in endpoints
        )
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
            short_time(raw.mean_us * 1e3), short_time(volume.mean_us * 1e3), short_time(raw.p99_us * 1e3),
            short_time(volume.p99_us * 1e3),
        )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main())
