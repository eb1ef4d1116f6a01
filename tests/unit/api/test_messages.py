"""The structs of the API have exactly the fields of its messages, and go over the wire unchanged."""

from __future__ import annotations

import enum
from datetime import UTC, datetime

import msgspec
import pytest
from google.protobuf.message import Message

from iomesh.api import iomesh_pb2 as pb
from iomesh.api import model
from iomesh.api.messages import to_message, to_struct

TIME = datetime(2026, 11, 27, 14, 5, 0, 123456, tzinfo=UTC)
EXPORT = model.Export(protocol="nbd", uris=["nbd+unix:///db?socket=/s", "nbd://h:1/db"], read_only=True, connections=3)
DEVICE = model.Device(
    id="i",
    path="/dev/x",
    tier="hdd",
    label="ä",
    size_bytes=1 << 60,
    free_bytes=2,
    reserve_bytes=3,
    replicas=4,
    volatile_cache=True,
    state=model.DeviceState.FAILED,
    reason="r",
    created_at=TIME,
    cluster="c",
)
SAMPLES: list[tuple[msgspec.Struct, type[Message]]] = [
    (DEVICE, pb.Device),
    (EXPORT, pb.Export),
    (
        model.Volume(
            name="db",
            id="i",
            size_bytes=1 << 46,
            segment_bytes=1 << 26,
            epoch=7,
            owner="a",
            state=model.VolumeState.FAILED,
            reason="its log is damaged",
            policy=model.Policy(replicas=2),
            created_at=TIME,
            exports=[EXPORT, EXPORT],
            live_bytes=1,
            log_bytes_since_checkpoint=2,
            segments=3,
            sequence=4,
            reactor=5,
            recovery_seconds=0.25,
            recovery_bytes=6,
            window_from=TIME,
            warnings=["it waits"],
        ),
        pb.Volume,
    ),
    (
        model.Status(
            node="a",
            cluster="c",
            version="0",
            process_id=1,
            started_at=TIME,
            ready=True,
            reactors=3,
            control_address="/c",
            metrics_address="h:1",
            nbd_addresses=["/n"],
            capacity_bytes=4,
            free_bytes=5,
            volumes=6,
            devices=7,
            warnings=["no"],
            state=model.NodeState.DEGRADED,
            step="recover",
            steps_done=8,
            steps=9,
            progress="2 of 5 volumes",
            problems=["why"],
            tasks=[model.BackgroundTask(name="scrub", up=False, restarts=10, reason="r")],
        ),
        pb.Status,
    ),
    (
        model.Counters(
            monotonic_ns=1,
            volumes=[
                model.VolumeCounters(
                    volume="db",
                    counters={"reads": 1, "writes": 2},
                    latencies={"read_latency": model.Latency([model.Bucket(4096, 2), model.Bucket(8192, 1)])},
                    connections=2,
                )
            ],
            reactors=[model.ReactorCounters(reactor=0, counters={"turns": 9})],
            devices=[DEVICE],
        ),
        pb.Counters,
    ),
]


@pytest.mark.parametrize(("struct", "kind"), SAMPLES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_struct_goes_over_the_wire_unchanged(struct: msgspec.Struct, kind: type[Message]) -> None:
    data = to_message(kind, struct).SerializeToString()
    assert to_struct(type(struct), kind.FromString(data)) == struct


@pytest.mark.parametrize("name", [name for name in dir(model) if name in pb.DESCRIPTOR.message_types_by_name])
def test_a_struct_has_the_fields_of_its_message(name: str) -> None:
    fields = [field.name for field in pb.DESCRIPTOR.message_types_by_name[name].fields]
    assert list(getattr(model, name).__struct_fields__) == fields


@pytest.mark.parametrize("kind", [model.DeviceState, model.VolumeState])
def test_an_enum_has_the_values_of_its_message(kind: type[enum.StrEnum]) -> None:
    names = [value.name for value in pb.DESCRIPTOR.enum_types_by_name[kind.__name__].values]
    prefix = {"DeviceState": "DEVICE_STATE_", "VolumeState": "VOLUME_STATE_"}[kind.__name__]
    assert [prefix + value.name for value in kind] == names


def test_a_state_that_only_a_newer_node_knows_is_unspecified() -> None:
    message = pb.Volume(name="db", id="i")
    message.state = 77  # type: ignore[assignment]
    assert to_struct(model.Volume, message).state is model.VolumeState.UNSPECIFIED


def test_latency_knows_its_quantiles_and_what_came_since() -> None:
    before = model.Latency([model.Bucket(1000, 10), model.Bucket(2000, 1)])
    after = model.Latency([model.Bucket(1000, 10), model.Bucket(2000, 4), model.Bucket(4000, 1)])
    since = after.since(before)
    assert since == model.Latency([model.Bucket(2000, 3), model.Bucket(4000, 1)])
    assert (since.count, since.quantile(0.5), since.quantile(0.75), since.quantile(0.99)) == (4, 2000, 2000, 4000)
    assert model.Latency().quantile(0.5) == 0
