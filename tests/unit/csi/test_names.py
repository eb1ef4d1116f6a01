"""Names and ids of CSI, pages of lists, parameters of classes, and sizes."""

import uuid

import pytest

from iomesh.csi import csi_pb2 as pb
from iomesh.csi import names, parameters, placement
from iomesh.csi.errors import OutOfRange
from iomesh.csi.paging import page
from iomesh.errors import Conflict, InvalidArgument
from iomesh.node.limits import check_name, check_snapshot_name


@pytest.mark.parametrize(
    "name", ["pvc-5f0c", "A.b_c-1", "a" * 128, "name with blanks", "-dash", "ü" * 64, "csi-clone-1"]
)
def test_every_csi_name_has_a_valid_name_of_its_own(name: str) -> None:
    check_name(names.volume_name(name))
    check_snapshot_name(names.snapshot_name(name))
    check_snapshot_name(names.clone_source_name(name))
    check_snapshot_name(names.group_snapshot_name(name))
    others = {names.volume_name(name + "x"[: 128 - len(name.encode())]), names.volume_name(name)}
    assert len(others) == (1 if len(name.encode()) == 128 else 2)


def test_a_name_that_is_valid_is_kept() -> None:
    assert names.volume_name("pvc-5f0c") == "pvc-5f0c"
    assert names.snapshot_name("snapshot-5f0c") == "snapshot-5f0c"


@pytest.mark.parametrize("name", ["", "a" * 129, "ü" * 65])
def test_a_name_that_csi_does_not_allow_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        names.volume_name(name)


def test_a_snapshots_id_is_read_back_and_nothing_else_is_one() -> None:
    identity = names.SnapshotId(str(uuid.uuid4()), str(uuid.uuid4()))
    assert names.parse_snapshot_id(str(identity)) == identity
    for other in ("", "x", f"{identity.volume}@", f"{identity.volume}@x", str(identity).upper(), f"{identity}@1"):
        assert names.parse_snapshot_id(other) is None


def test_pages_have_each_entry_once_although_others_come_and_go() -> None:
    entries, seen, token = list("adgjm"), [], ""
    while True:
        found, token = page(entries, str, most=2, token=token, valid=str.isalpha)
        seen += found
        if not token:
            break
        entries.remove(found[-1])  # the token's own
        entries.append({"d": "b", "j": "z"}[found[-1]])
    assert seen == ["a", "d", "g", "j", "m", "z"]


def test_a_token_of_no_list_and_a_negative_number_are_refused() -> None:
    with pytest.raises(Conflict):
        page(["a"], str, most=1, token="7", valid=str.isalpha)
    with pytest.raises(InvalidArgument):
        page(["a"], str, most=-1, token="", valid=str.isalpha)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"replica": "2"}, "did you mean replicas"),
        ({"replicas": "5"}, "1 to 4"),
        ({"replicas": "two"}, "1 to 4"),
        ({"window": "soon"}, "24h"),
        ({"fsType": "btrfs"}, "xfs or ext4"),
        ({"colour": "red"}, "there are replicas, window, fsType"),
    ],
)
def test_a_wrong_parameter_is_refused_with_what_there_is(given: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        parameters.parse(given, {})


def test_contradictory_parameters_are_refused() -> None:
    mounted = pb.VolumeCapability(mount=pb.VolumeCapability.MountVolume(fs_type="ext4"))
    with pytest.raises(InvalidArgument, match="give one of them"):
        parameters.parse({"fsType": "xfs"}, {}, [mounted])
    with pytest.raises(InvalidArgument, match="in one of them"):
        parameters.parse({"window": "1h"}, {"window": "2h"})
    assert parameters.parse({"window": "1h"}, {"window": "60m"}).window_seconds == 3600


def test_what_the_sidecars_add_is_no_parameter() -> None:
    assert parameters.parse({"csi.storage.k8s.io/pvc/name": "data"}, {}).context == {}


@pytest.mark.parametrize(
    ("required", "limit", "least", "size"),
    [
        (0, 0, 0, 1 << 30),
        (1, 0, 0, 1 << 20),
        (4096, 0, 0, 4096),
        (4097, 0, 0, 1 << 20),
        (4097, 9000, 0, 8192),
        (0, 9000, 0, 8192),
        (4096, 0, 300 << 20, 300 << 20),
        (10**9, 10**9 + 4096, 0, 10**9 + 1536),
    ],
)
def test_a_size_has_whole_blocks_within_the_range(required: int, limit: int, least: int, size: int) -> None:
    asked = pb.CapacityRange(required_bytes=required, limit_bytes=limit)
    assert placement.choose_size(asked, least=least, name="db") == size


@pytest.mark.parametrize(
    ("required", "limit", "least"), [(4097, 4098, 0), (1, 4095, 0), (0, 1 << 20, 300 << 20), (1 << 50, 0, 0)]
)
def test_a_range_without_a_possible_size_is_out_of_range(required: int, limit: int, least: int) -> None:
    with pytest.raises(OutOfRange):
        placement.choose_size(pb.CapacityRange(required_bytes=required, limit_bytes=limit), least=least, name="db")


def test_a_range_that_makes_no_sense_is_refused() -> None:
    for required, limit in ((-1, 0), (0, -1), (2, 1)):
        with pytest.raises(InvalidArgument):
            placement.choose_size(pb.CapacityRange(required_bytes=required, limit_bytes=limit), name="db")
