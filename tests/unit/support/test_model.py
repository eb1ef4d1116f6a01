"""The model that crash tests compare with: it finds wrong content, and accepts either outcome of writes in doubt."""

import numpy as np
import pytest

from support.model import BLOCK, Mismatch, Model, Operation, content

SIZE = 64 * BLOCK


def write(model: Model, offset: int, length: int) -> Operation:
    operation = model.begin("write", offset, length)
    assert operation is not None
    return operation


def acknowledged(model: Model, offset: int, length: int) -> Operation:
    operation = write(model, offset, length)
    model.acknowledge(operation)
    return operation


def image(model: Model) -> bytearray:
    """What a faultless volume holds."""
    return bytearray(model.content.tobytes())


def put(volume: bytearray, operation: Operation, offset: int, length: int) -> None:
    volume[offset : offset + length] = content(operation.tag, offset, length)


def test_what_was_acknowledged_must_be_there() -> None:
    model = Model(SIZE)
    acknowledged(model, 3 * BLOCK, BLOCK)
    model.settle_with(bytes(image(model)))
    with pytest.raises(Mismatch, match=r"block 3, .* expected write #1 .* read zeros"):
        model.settle_with(bytes(SIZE))


def test_an_older_write_in_place_of_a_newer_one_is_named() -> None:
    model = Model(SIZE)
    acknowledged(model, 0, 8 * BLOCK)
    old = image(model)
    acknowledged(model, 2 * BLOCK, BLOCK)
    with pytest.raises(Mismatch, match=r"expected write #2 .* read write #1"):
        model.settle_with(bytes(old))


def test_data_at_a_wrong_place_is_named() -> None:
    model = Model(SIZE)
    acknowledged(model, 0, 2 * BLOCK)
    wrong = image(model)
    wrong[:BLOCK], wrong[BLOCK : 2 * BLOCK] = wrong[BLOCK : 2 * BLOCK], wrong[:BLOCK]
    with pytest.raises(Mismatch, match="but of byte 4096"):
        model.settle_with(bytes(wrong))


@pytest.mark.parametrize("blocks_done", [0, 1, 2, 3])
def test_what_was_in_doubt_may_be_old_or_new_block_by_block(blocks_done: int) -> None:
    model = Model(SIZE)
    acknowledged(model, 0, 8 * BLOCK)
    volume = image(model)
    doubtful = write(model, BLOCK, 3 * BLOCK)
    put(volume, doubtful, BLOCK, blocks_done * BLOCK)
    model.settle_with(bytes(volume))
    assert not model.open
    assert model.content.tobytes() == volume, "what was found counts from now on"


def test_a_block_half_old_and_half_new_is_torn() -> None:
    model = Model(SIZE)
    volume = image(model)
    doubtful = write(model, 0, 2 * BLOCK)
    put(volume, doubtful, 0, BLOCK + 512)
    with pytest.raises(Mismatch, match=r"block 1,"):
        model.settle_with(bytes(volume))


def test_two_writes_in_flight_in_one_block_are_decided_each_on_its_own() -> None:
    model = Model(SIZE)
    volume = image(model)
    first, second = write(model, 100, 200), write(model, 300, 200)
    put(volume, second, 300, 200)
    model.settle_with(bytes(volume))
    assert not model.content[100:300].any()
    assert np.array_equal(model.content[300:500], np.frombuffer(content(second.tag, 300, 200), np.uint8))
    assert first.tag != second.tag


def test_overlapping_operations_are_not_let_into_flight_together() -> None:
    model = Model(SIZE)
    write(model, 0, BLOCK)
    assert model.begin("trim", BLOCK - 1, BLOCK) is None
    assert model.begin("trim", BLOCK, BLOCK) is not None


def test_a_trim_in_doubt_is_old_or_zeros() -> None:
    model = Model(SIZE)
    acknowledged(model, 0, 4 * BLOCK)
    volume = image(model)
    assert model.begin("trim", BLOCK, 2 * BLOCK) is not None
    volume[BLOCK : 2 * BLOCK] = bytes(BLOCK)
    model.settle_with(bytes(volume))
    assert model.content.tobytes() == volume
