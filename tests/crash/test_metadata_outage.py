"""A daemon whose metadata is unwritable or locked by another process: writes go on, the outage is reported everywhere,
no data is lost.
"""

import asyncio
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from iomesh.api.client import Client
from iomesh.api.model import VolumeState
from iomesh.errors import Unavailable
from support.daemon import Daemon
from support.load import Load, read_volume
from support.model import Model
from support.small_file_system import SmallFileSystem

SIZE = 32 << 20
LOGGED = "metadata service does not answer: checkpoint not recorded; the volume stays served, retrying"
LOCK_SECONDS = 14.0  # longer than SQLite's lock timeout


@pytest.fixture
def small(room: Path) -> Iterator[SmallFileSystem]:
    made = SmallFileSystem(room / "small")
    yield made
    made.remove()


async def until(condition: Callable[[], Awaitable[object]], what: str) -> None:
    try:
        async with asyncio.timeout(120):
            while not await condition():  # noqa: ASYNC110  # the daemon sends no event for this
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"it never happened that {what}") from None


@asynccontextmanager
async def loaded(daemon: Daemon, model: Model, seed: int) -> AsyncIterator[Load]:
    """A verifying load on the volume; it must not stop before the end of the block."""
    async with daemon.client() as client:
        uri = (await client.volume("db")).exports[0].uris[0]
    load = Load(uri, model, seed, connections=2, depth=4)
    running = asyncio.create_task(load.run())
    try:
        yield load
    finally:
        load.stop()
        await running


async def goes_on(load: Load) -> None:
    before = load.counts.acknowledged

    async def more() -> bool:
        return load.counts.acknowledged > before + 300

    await until(more, "writes are acknowledged")


async def is_warned(client: Client) -> bool:
    return bool((await client.volume("db")).warnings)


async def serves_without_warning(client: Client) -> bool:
    volume = await client.volume("db")
    return volume.state is VolumeState.SERVING and not volume.warnings


async def start(daemon: Daemon, metadata: Path) -> None:
    daemon.settings |= {"metadata.path": str(metadata), "engine.checkpoint_bytes": 1 << 20}
    daemon.start()
    async with daemon.client() as client:
        await client.create_volume("db", SIZE)
        await client.export_volume("db")


async def settle(daemon: Daemon, model: Model) -> None:
    async with daemon.client() as client:
        uri = (await client.volume("db")).exports[0].uris[0]
    model.settle_with(await asyncio.to_thread(read_volume, uri, SIZE))


async def test_a_full_metadata_file_system_stops_no_volume(
    daemon: Daemon, small: SmallFileSystem, draw: random.Random
) -> None:
    model = Model(SIZE)
    await start(daemon, small.path / "metadata.db")
    async with daemon.client() as client:
        async with loaded(daemon, model, draw.getrandbits(32)) as load:
            small.fill()
            await until(
                lambda: is_warned(client), "the volume's description says that the metadata service does not answer"
            )
            await goes_on(load)
            volume = await client.volume("db")
            assert volume.state is VolumeState.SERVING
            assert "the metadata service has not answered since" in volume.warnings[0]
            assert "full" in volume.warnings[0]
            assert [volume.warnings for volume in await client.volumes()] == [volume.warnings]
            assert f"volume db: {volume.warnings[0]}" in (await client.status()).warnings
            health = await daemon.health()
            assert (health["status"], health["ready"]) == ("ok", True)
            assert health["warnings"] == (await client.status()).warnings
            assert health["volumes"][0]["writable"]
            assert health["volumes"][0]["warnings"][0].startswith("the metadata service has not answered")
            metrics = await daemon.page("/metrics")
            line = next(
                line
                for line in metrics.splitlines()
                if line.startswith('iomesh_volume_metadata_unanswered_seconds{volume="db"}')
            )
            assert float(line.split()[1]) > 0
            assert 'iomesh_volume_writable{volume="db"} 1.0' in metrics
            with pytest.raises(Unavailable, match=r"the metadata service does not answer \(.*full"):
                await client.create_snapshots(["db"], "one")
            await goes_on(load)
            load.expect_end()
            daemon.kill()
        assert (
            1
            <= len(
                daemon.logged(
                    "metadata service does not answer: checkpoint not recorded; the volume stays served, retrying"
                )
            )
            <= 2
        )
    daemon.start()
    async with daemon.client() as client:
        volume = await client.volume("db")
        assert volume.state is VolumeState.OPENING, "its epoch cannot be raised"
        assert "full" in volume.reason
        health = await daemon.health()
        assert (health["status"], health["ready"]) == ("degraded", False)
        assert health["problems"] == [f"volume db is not open yet: {volume.reason}"]
        small.free()
        await until(lambda: serves_without_warning(client), "the volume is opened once its metadata can be written")
        await settle(daemon, model)
        async with loaded(daemon, model, draw.getrandbits(32)) as load:
            await goes_on(load)
        await client.checkpoint("db")
        assert (await daemon.health())["status"] == "ok"
        assert (await daemon.health())["warnings"] == (await client.status()).warnings
        assert await client.snapshots("db") == []
    await settle(daemon, model)


async def test_a_lock_that_another_process_holds_stops_no_volume(
    daemon: Daemon, room: Path, draw: random.Random
) -> None:
    model = Model(SIZE)

    async def write_some() -> None:
        """In bursts: no space is freed meanwhile, so a continuous load would fill the device."""
        async with loaded(daemon, model, draw.getrandbits(32)) as load:
            await goes_on(load)

    await start(daemon, room / "metadata.db")
    other = sqlite3.connect(room / "metadata.db", isolation_level=None)
    async with daemon.client() as client:
        other.execute("BEGIN IMMEDIATE")
        held = time.monotonic()
        await write_some()
        await until(
            lambda: is_warned(client), "the volume's description says that the metadata service does not answer"
        )
        await write_some()
        await asyncio.sleep(LOCK_SECONDS - (time.monotonic() - held))
        await write_some()
        assert await is_warned(client)
        other.execute("ROLLBACK")
        await until(lambda: serves_without_warning(client), "it answers again")
        async with loaded(daemon, model, draw.getrandbits(32)) as load:
            await goes_on(load)
            load.expect_end()
            daemon.kill()
    other.close()
    daemon.start()
    await settle(daemon, model)


async def test_a_daemon_that_stops_while_its_metadata_is_full_loses_nothing(
    daemon: Daemon, small: SmallFileSystem, draw: random.Random
) -> None:
    model = Model(SIZE)
    await start(daemon, small.path / "metadata.db")
    async with daemon.client() as client:
        async with loaded(daemon, model, draw.getrandbits(32)) as load:
            small.fill()
            await until(
                lambda: is_warned(client), "the volume's description says that the metadata service does not answer"
            )
            await goes_on(load)
        assert daemon.stop() == 0
    small.free()
    daemon.start()
    await settle(daemon, model)


async def test_a_volume_is_made_and_deleted_once_the_metadata_service_answers(
    daemon: Daemon, small: SmallFileSystem
) -> None:
    """A deletion answered with UNAVAILABLE is completed later; a creation leaves nothing and can be repeated."""
    await start(daemon, small.path / "metadata.db")
    async with daemon.client() as client:
        small.fill()

        async def is_full() -> bool:
            try:
                await client.grow_volume("db", (await client.volume("db")).size_bytes + (1 << 20))
            except Unavailable:
                return True
            return False

        await until(is_full, "nothing can be written any more")
        with pytest.raises(Unavailable):
            await client.create_volume("other", SIZE)
        with pytest.raises(Unavailable):
            await client.delete_volume("db")
        small.free()

        async def names() -> list[str]:
            return [volume.name for volume in await client.volumes()]

        async def is_empty() -> bool:
            return await names() == []

        await until(is_empty, "both are gone")
        await client.create_volume("other", SIZE)
    daemon.kill()
    daemon.start()
    async with daemon.client() as client:
        assert [volume.name for volume in await client.volumes()] == ["other"]
