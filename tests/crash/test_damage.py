"""Injected damage on a device at rest: each case ends in repair or a clear error, never in wrong data or a crash.

A volume is written and its daemon stopped (cleanly, or by SIGKILL, so that recovery has to read much of what is
damaged). Then, case by case, one structure on the device is damaged, the daemon started, and the whole volume read:

* structures with a twin (superblocks, journal) are repaired: all data is readable;
* a damaged payload block is an I/O error for its block of the volume, and for no other;
* a damaged map node is an I/O error for the blocks below it, or the volume is refused with a reason;
* after any other damage everything is readable, or the volume is refused with a reason.
"""

import asyncio
import errno
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from iomesh.engine import engine
from support import forged, logs, rooms
from support.amount import Amount
from support.load import Load
from support.model import Model
from support.nbd import Connection, NbdError
from support.places import BLOCK, DeviceAtRest, Place
from support.run import run
from support.trial import Trial

VOLUME = 16 << 20
FILL = 30 << 20  # bytes written before the daemon is stopped
FILL_SOAK = 400 << 20  # enough for the journal to switch halves
SAMPLE = 1  # places of each kind in `make test`
ALL = 4  # and with --soak, which tries every form of damage and every field at each
REPAIRED = {"superblock", "superblock twin", "journal", "journal mirror"}


@dataclass(frozen=True)
class Damage:
    """Turns a structure's bytes into damaged ones."""

    name: str
    apply: Callable[[bytes, random.Random], bytes]

    def __str__(self) -> str:
        return self.name


def flip(data: bytes, first: int, count: int, draw: random.Random) -> bytes:
    """Flips one bit among `count` bytes from `first` on."""
    wrong = bytearray(data)
    wrong[first + draw.randrange(count)] ^= 1 << draw.randrange(8)
    return bytes(wrong)


def bit_of(name: str, first: int, count: int, draw: random.Random) -> Damage:
    return Damage(f"a bit of {name} flipped", lambda data, _: flip(data, first, count, draw))


FORMS = [
    Damage("one bit flipped", lambda data, draw: flip(data, 0, len(data), draw)),
    Damage("all zeros", lambda data, draw: bytes(len(data))),
    Damage("its end zeros, as if torn", lambda data, draw: data[: 512 * draw.randint(1, 7)].ljust(len(data), b"\0")),
    Damage("its beginning zeros", lambda data, draw: data[512 * draw.randint(1, 7) :].rjust(len(data), b"\0")),
    Damage("random bytes", lambda data, draw: draw.randbytes(len(data))),
    Damage("all ones", lambda data, draw: b"\xff" * len(data)),
]


@dataclass
class AtRest:
    """A trial that was written and stopped; each case starts with a copy of its bytes."""

    trial: Trial
    model: Model
    copy: Path
    how: str

    @property
    def device(self) -> Path:
        return self.trial.devices[0]

    def restore(self) -> None:
        self.trial.crash()
        logs.check_after(lambda: shutil.rmtree(self.trial.directory), self.trial.directory)
        run(["cp", "-a", "--sparse=always", self.copy, self.trial.directory])

    def overwrite(self, offset: int, data: bytes) -> None:
        with self.device.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def bytes_at(self, place: Place) -> bytes:
        with self.device.open("rb") as file:
            file.seek(place.offset)
            return file.read(place.length)


@pytest.fixture(scope="module", params=["stopped", "killed"])
def at_rest(request: pytest.FixtureRequest, amount: Amount) -> Iterator[AtRest]:
    with rooms.room(request.config) as folder:
        trial = Trial(folder / "trial", ["--device-size", "1Gi", "--size", str(VOLUME), "--checkpoint-bytes", "8Mi"])
        trial.up()
        try:
            model = Model(VOLUME)
            asyncio.run(fill(trial.uri, model, rooms.seed(request.config), FILL_SOAK if amount.soak else FILL))
            assert not model.open
            if request.param == "stopped":
                trial.stop()
            else:
                trial.crash()
            copy = folder / "at-rest"
            run(["cp", "-a", "--sparse=always", trial.directory, copy])
            yield AtRest(trial, model, copy, request.param)
        finally:
            trial.crash()
            logs.check(folder)


async def fill(uri: str, model: Model, seed: int, enough: int) -> None:
    """Operations of all kinds over several checkpoints, then idle until the log records that all of it is stable."""
    load = Load(uri, model, seed, enough=enough)
    async with asyncio.timeout(600):
        await load.run()
    connection = await Connection.connect(uri)
    await connection.flush()
    await asyncio.sleep(1)
    await connection.close()


@dataclass(frozen=True)
class Outcome:
    refused: str = ""  # why the volume was not served
    unreadable: frozenset[int] = frozenset()  # blocks that fail with EIO

    def __str__(self) -> str:
        return (
            f"refused: {self.refused.strip().splitlines()[-1]}"
            if self.refused
            else f"{len(self.unreadable)} blocks cannot be read"
        )


def outcome(at_rest: AtRest) -> Outcome:
    """Starts the daemon on the device and reads everything; fails on wrong data, death by a signal, or an unclear
    message.
    """
    trial = at_rest.trial
    started = trial.try_to_start()
    if started.returncode != 0:
        said = started.stdout + started.stderr
        for bad in ("Traceback", "Fatal Python error", "invariant", "Segmentation"):
            assert bad not in said, said
        assert started.returncode > 0, f"`iomesh trial start` ended by signal {-started.returncode}"
        assert said.strip(), "refused without a word"
        return Outcome(refused=said)
    unreadable = asyncio.run(read_and_compare(trial.uri, at_rest.model))
    assert trial.running(), "the daemon died while the volume was read"
    return Outcome(unreadable=unreadable)


async def read_and_compare(uri: str, model: Model) -> frozenset[int]:
    """Returns the unreadable blocks; all others must be correct."""
    connection = await Connection.connect(uri)
    unreadable = set()
    for start in range(0, model.size, 1 << 20):
        try:
            model.check(start, await connection.read(start, 1 << 20))
        except NbdError:
            for offset in range(start, start + (1 << 20), BLOCK):
                try:
                    model.check(offset, await connection.read(offset, BLOCK))
                except NbdError as error:
                    if error.errno != errno.EIO:
                        raise AssertionError(f"block {offset // BLOCK} was answered with {error}") from None
                    unreadable.add(offset // BLOCK)
    await connection.close()
    return frozenset(unreadable)


def blocks_under(place: Place) -> range:
    """The volume's blocks that depend on a payload block."""
    if place.kind == "data":
        return range(place.position, place.position + 1)
    span = 256 ** ((place.position >> 56) + 1)
    index = place.position & (1 << 56) - 1
    return range(index * span, (index + 1) * span)


def check_outcome(place: Place, got: Outcome, case: str) -> None:
    if place.kind in REPAIRED:
        assert not got.refused, f"{case}: has a twin, and was refused: {got.refused}"
        assert not got.unreadable, f"{case}: has a twin, and blocks {sorted(got.unreadable)[:8]} cannot be read"
    elif got.refused:
        assert place.kind != "data", (
            f"{case}: one block of data is damaged, and the whole volume was refused: {got.refused}"
        )
    elif place.kind in ("data", "map"):
        beside = [block for block in sorted(got.unreadable) if block not in blocks_under(place)]
        assert not beside, f"{case}: blocks {beside[:8]} cannot be read"
    else:
        assert not got.unreadable, f"{case}: blocks {sorted(got.unreadable)[:8]} cannot be read"


def chosen(places: list[Place], draw: random.Random, amount: Amount) -> Iterator[Place]:
    """A sample of each kind, always including the last of each: recovery depends on the end."""
    for kind in sorted({place.kind for place in places}):
        of_kind = [place for place in places if place.kind == kind]
        yield of_kind[-1]
        yield from draw.sample(of_kind[:-1], min(len(of_kind) - 1, ALL if amount.soak else SAMPLE))


def damages(place: Place, draw: random.Random, amount: Amount) -> list[Damage]:
    if not amount.soak:
        return [draw.choice(FORMS)]
    fields = engine.structures()[place.structure] if place.structure else []
    return FORMS + [bit_of(*field, draw) for field in fields]


@pytest.mark.timeout(7200)
def test_damage_anywhere_ends_in_repair_or_a_clear_error(at_rest: AtRest, draw: random.Random, amount: Amount) -> None:
    device = DeviceAtRest(at_rest.device)
    places = device.places()
    kinds = {place.kind for place in places}
    assert kinds >= {
        "superblock",
        "superblock twin",
        "journal",
        "journal mirror",
        "header",
        "data",
        "map",
        "table",
        "checkpoint",
        "footer",
        "footer table",
    }
    stable = device.stable()
    if at_rest.how == "killed":  # an end that no header calls stable looks torn: docs/decisions/0005
        places = [place for place in places if place.sequence <= stable]
    failures = []
    for place in chosen(places, draw, amount):
        for damage in damages(place, draw, amount):
            at_rest.restore()
            right = at_rest.bytes_at(place)
            wrong = damage.apply(right, draw)
            at_rest.overwrite(place.offset, wrong)
            case = f"{place}, {damage} ({at_rest.how})"
            try:
                got = outcome(at_rest)
                check_outcome(place, got, case)
                print(f"{case}: {got}")
            except AssertionError as error:
                failures.append(f"{case}: {error}")
    assert not failures, "\n".join([f"{len(failures)} cases:", *failures])


def test_undamaged_it_is_all_there(at_rest: AtRest) -> None:
    at_rest.restore()
    assert outcome(at_rest) == Outcome()


def test_a_device_without_both_superblocks_is_refused(at_rest: AtRest) -> None:
    at_rest.restore()
    for place in DeviceAtRest(at_rest.device).places()[:2]:
        at_rest.overwrite(place.offset, bytes(BLOCK))
    got = outcome(at_rest)
    assert at_rest.device.name in got.refused, f"the device is not named: {got.refused}"


def test_a_journal_block_missing_in_both_copies_is_refused(at_rest: AtRest, draw: random.Random) -> None:
    at_rest.restore()
    places = DeviceAtRest(at_rest.device).places()
    mirrors = [place for place in places if place.kind == "journal mirror"]
    newest = max(place.position for place in mirrors)
    # Without it the half counts as never written.
    mirror = draw.choice([place for place in mirrors if place.position == newest][:-1])
    journal = next(place for place in places if place.kind == "journal" and place.what == mirror.what)
    for place in (journal, mirror):
        at_rest.overwrite(place.offset, draw.randbytes(BLOCK))
    got = outcome(at_rest)
    assert got.refused, f"a block of the journal is in neither copy, and the device was opened: {got}"
    assert at_rest.device.name in got.refused, f"the device is not named: {got.refused}"


@pytest.mark.parametrize(("field", "value"), [("version", 2), ("flags", 1)])
def test_a_record_that_a_newer_program_wrote_is_refused_and_not_cut_off(
    at_rest: AtRest, field: str, value: int
) -> None:
    if at_rest.how == "stopped":
        pytest.skip("a volume that was stopped is read by its footers")
    at_rest.restore()
    headers = [place for place in DeviceAtRest(at_rest.device).places() if place.kind == "header"]
    newest = max(headers, key=lambda place: place.sequence)
    offset, size = next((offset, size) for name, offset, size in engine.structures()["RecordHeader"] if name == field)
    right = at_rest.bytes_at(newest)
    wrong = forged.resealed(right[:offset] + value.to_bytes(size, "little") + right[offset + size :])
    at_rest.overwrite(newest.offset, wrong)
    got = outcome(at_rest)
    assert "newer version of iomesh" in got.refused, f"{newest}: {got}"
    at_rest.trial.crash()
    at_rest.overwrite(newest.offset, right)
    assert outcome(at_rest) == Outcome(), "the program that wrote it no longer finds everything"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_a_device_cut_short_gives_no_wrong_data(at_rest: AtRest, share: float) -> None:
    at_rest.restore()
    with at_rest.device.open("r+b") as file:
        file.truncate(int(at_rest.device.stat().st_size * share) // BLOCK * BLOCK)
    got = outcome(at_rest)
    assert got.refused, "a device that is shorter than its superblock says was opened"
    assert at_rest.device.name in got.refused, f"the device is not named: {got.refused}"


def live(at_rest: AtRest, places: list[Place]) -> set[Place]:
    """Places of the volume's current data: the newest version of each block, neither overwritten nor trimmed since."""
    newest: dict[int, Place] = {}
    for place in sorted((place for place in places if place.kind == "data"), key=lambda place: place.sequence):
        newest[place.position] = place
    # Blocks of zeros may have been trimmed.
    written = (place for place in newest.values() if any(at_rest.bytes_at(place)))
    content = at_rest.model.content
    return {
        place for place in written if at_rest.bytes_at(place) == content[place.position * BLOCK :][:BLOCK].tobytes()
    }


@pytest.mark.parametrize("megabytes", [1, 8])
def test_a_wiped_stretch_gives_no_wrong_data(
    at_rest: AtRest, draw: random.Random, amount: Amount, megabytes: int
) -> None:
    """Exactly its blocks are unreadable, or the volume is refused."""
    at_rest.restore()
    places = DeviceAtRest(at_rest.device).places()
    held = live(at_rest, places)
    last = max((place for place in places if place.kind == "header"), key=lambda place: place.sequence)

    def wiped(start: Place) -> list[Place]:
        return [place for place in places if start.offset <= place.offset < start.offset + (megabytes << 20)]

    # The last header stays because it records what was stable: without it the log only ends earlier.
    starts = [
        place for place in places if place.kind == "header" and last not in (gone := wiped(place)) and held & set(gone)
    ]
    assert starts, "no stretch holds anything that the volume has: this shows nothing"
    for start in draw.sample(starts, min(len(starts), 20 if amount.soak else 1)):
        at_rest.restore()
        at_rest.overwrite(start.offset, bytes(megabytes << 20))
        got, gone = outcome(at_rest), wiped(start)
        case = f"{megabytes} MiB from {start} on ({at_rest.how})"
        print(f"{case}: {got}")
        if got.refused:
            continue
        must = {place.position for place in held.intersection(gone)}
        assert must <= got.unreadable, (
            f"{case}: blocks {sorted(must - got.unreadable)[:8]} are not on the device and were read"
        )
        under = [blocks_under(place) for place in gone if place.kind in ("data", "map")]
        beside = [block for block in got.unreadable if not any(block in blocks for blocks in under)]
        assert not beside, f"{case}: blocks {sorted(beside)[:8]} cannot be read"
