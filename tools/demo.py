"""`make demo`: a database on a volume with three replicas, on three nodes. A node is killed under it, and it goes on.
The node that serves the volume is killed, another one takes over: the database waits for it, and not a commit is lost.
Then the machine of the database crashes; a table is dropped by mistake, and the volume taken back to the second before;
a second database runs on a clone, beside the first.

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

from iomesh.errors import IomeshError
from iomesh.sizes import exact_size, short_size, short_time
from iomesh_perf.cluster import until_written_again
from iomesh_perf.trial import Trial, TrialError, iomesh

GIB = 1 << 30
NODES = 3
DEVICE_BYTES = 16 * GIB  # of each node's; sparse
NEEDED_BYTES = 12 * GIB
VOLUME_BYTES = 4 * GIB
STEPS = 18
SCALE = 10
ACCOUNTS = SCALE * 100_000
SNAPSHOT = "before-the-mistake"
LOAD_SECONDS = 12
BACK_SECONDS = 8
WATCH_SECONDS = 4
TAKE_OVER_SECONDS = 60.0  # against hangs
REBUILD_SECONDS = 120.0  # likewise
PGBENCH_SECONDS = 600  # at most: it ends when the database does


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
    except (DemoError, TrialError, IomeshError, OSError) as error:
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
        default=6,
        help="how long pgbench runs before each of the two nodes is killed (default: 6)",
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
    needed = NEEDED_BYTES
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
        with story.step(
            "Start three nodes, each with a device (a file); create a volume with three replicas, serve it over NBD"
        ):
            trial = down.enter_context(
                Trial(
                    directory / "trial",
                    device_bytes=DEVICE_BYTES,
                    volume_bytes=VOLUME_BYTES,
                    prewrite=False,
                    nodes=NODES,
                    replicas=NODES,
                )
            )
        story.say(f"volume {exact_size(VOLUME_BYTES)}, served by node {trial.owner} at {trial.uri}")

        with story.step("fio writes 128 MiB at random in mixed sizes and reads them back, each block by its CRC32C"):
            verify(trial.uri)
        story.say("every block verified")

        outside = directory / "outside"
        outside.mkdir()
        shutil.chown(outside, USER, USER)
        database_story(story, trial, directory, outside, seconds)


def database_story(story: Story, trial: Trial, directory: Path, outside: Path, seconds: int) -> None:
    with contextlib.ExitStack() as down:
        through = trial.members[-1]
        disk = Disk(trial.uri_through(through), directory)
        down.callback(disk.give_up)
        with story.step(f"Make the volume a disk of this machine, with XFS on it, through node {through}"):
            device = disk.attach()
            disk.make_filesystem()
            disk.mount()
        story.say(f"{device} through {disk.how}, mounted at {disk.mount_point}")
        story.say(f"node {through} forwards its requests to the node that serves the volume, whichever that is")

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
        failures_story(story, trial, load, seconds)

        with story.step(
            "Now the machine of the database crashes: PostgreSQL, XFS and the disk are taken down by force"
        ):
            database.give_up()
            load.end()
            disk.give_up()
        transactions = load.transactions

        with story.step(f"Mount the volume from node {trial.owner}; PostgreSQL recovers from its log"):
            began = time.monotonic()
            disk.uri = trial.uri
            disk.attach()
            disk.mount()
            database.start()
        recovery = short_time(trial.recovery_seconds() * 1e9)
        story.say(f"recovery of the volume took {recovery}; database up {time.monotonic() - began:.1f} s later")

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


def failures_story(story: Story, trial: Trial, load: Load, seconds: int) -> None:
    """A member is killed under load and comes back; then the owner is killed. It ends with another owner."""
    member = trial.members[0]
    with story.step(
        f"Run pgbench and clients that keep a ledger outside; after {seconds} s kill node {member} with SIGKILL"
    ):
        load.start(PGBENCH_SECONDS)
        time.sleep(seconds)
        usual = load.longest_pause(0)
        committed, pid, at = load.committed, trial.pids[member], time.monotonic()
        trial.crash(member)
        time.sleep(WATCH_SECONDS)
        pause, more = load.longest_pause(at), load.committed - committed
    if not more:
        raise DemoError(f"the database has not gone on without node {member}")
    story.say(f"process {pid} is dead; {committed} commits in the ledger by then, {more} more since")
    story.say(
        f"the longest time without a commit was {short_time(pause * 1e9)}; before the kill {short_time(usual * 1e9)}"
    )

    with story.step(f"Start node {member} again, under load"):
        trial.start(member)
        until_written_again(trial, member)
    story.say("it takes the volume's writes again")

    with story.step("Wait until that node has copies of what was written without it, still under load"):
        made, took = until_redundant(trial)
    story.say(f"{short_size(made)} were copied in {took:.1f} s, without anyone asking: each block has {NODES} copies")

    owner = trial.owner
    with story.step(f"Run on; after {seconds} s kill node {owner}, which serves the volume, with SIGKILL"):
        time.sleep(seconds)
        usual = load.longest_pause(time.monotonic() - seconds)
        pid, began = trial.pid, time.monotonic()
        trial.crash(owner)
        committed = load.committed
    story.say(f"process {pid} is dead; {committed} commits in the ledger by then")

    with story.step("Wait until another node has taken the volume over; start the killed node again"):
        if not trial.await_take_over(TAKE_OVER_SECONDS):
            raise DemoError(f"no other node serves the volume {TAKE_OVER_SECONDS:g} s after node {owner} was killed")
        took = time.monotonic() - began
        trial.start(owner)
        time.sleep(WATCH_SECONDS)
        pause, more = load.longest_pause(began), load.committed - committed
    if not more:
        raise DemoError(f"the database has not gone on without node {owner}")
    story.say(f"node {trial.owner} served it {took:.2f} s after the kill; node {owner} runs again, as a member")
    story.say(
        f"the database waited and went on, {more} commits since: the longest time without a commit was "
        f"{short_time(pause * 1e9)}; before the kill {short_time(usual * 1e9)}"
    )


def until_redundant(trial: Trial) -> tuple[int, float]:
    """Waits until no copy is missing. The bytes that were copied, and the seconds."""
    began = time.monotonic()
    while (known := trial.redundancy())["exposed_bytes"] or not known["rebuilt_bytes"]:
        if time.monotonic() > began + REBUILD_SECONDS:
            raise DemoError(f"copies are still missing after {REBUILD_SECONDS:g} s: {known}")
        time.sleep(0.1)
    return known["rebuilt_bytes"], time.monotonic() - began


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
        "--blockalign=4k", "--size=128m", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
        "--randseed=7", seconds=600,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
