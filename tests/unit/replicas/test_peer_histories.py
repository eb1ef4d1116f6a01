"""Random calls over a connection that is cut again and again, compared with a model.

What a connection carries arrives as a prefix, and what has arrived is executed in order as far as order matters. So
after a cut the store is as after the first N calls, for one N that covers every call with a reply. After the holder's
process has died, that holds for each segment of which no call was under way.
"""

import copy
import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from iomesh.engine.format.peer import read_entries
from iomesh.engine.views.peer import Call
from iomesh.engine.views.world import cut
from support.peers import BLOCK, DEVICE, Pair, V, block_of, pair, record

SEGMENTS = range(1, 6)
BLOCKS = 64


@dataclass
class Segment:
    epoch: int
    blocks: int = BLOCKS
    sealed: bool = False
    data: dict[int, bytes] = field(default_factory=dict)  # by block, what was written


@dataclass
class Model:
    """The holder's store, as far as the volume V is concerned."""

    segments: dict[int, Segment] = field(default_factory=dict)
    fence: int = 0

    def create(self, segment: int, epoch: int) -> int:
        if segment in self.segments:
            return -errno.EEXIST if epoch >= self.fence else -errno.ESTALE
        if epoch < self.fence:
            return -errno.ESTALE
        self.segments[segment] = Segment(epoch)
        return 0

    def write(self, segment: int, epoch: int, block: int, data: bytes) -> int:
        if epoch < self.fence:
            return -errno.ESTALE
        if segment not in self.segments:
            return -errno.ENOENT
        it = self.segments[segment]
        if it.epoch != epoch:
            return -errno.ESTALE
        if it.sealed:
            return -errno.EROFS
        if block + len(data) // BLOCK > it.blocks:
            return -errno.EINVAL
        for at in range(0, len(data), BLOCK):
            it.data[block + at // BLOCK] = data[at : at + BLOCK]
        return 0

    def seal(self, segment: int, epoch: int, blocks: int) -> int:
        refusal = self._change(segment, epoch)
        if refusal:
            return refusal
        it = self.segments[segment]
        if blocks > it.blocks:
            return -errno.EINVAL
        it.sealed, it.blocks = True, blocks
        it.data = {block: data for block, data in it.data.items() if block < blocks}
        return 0

    def remove(self, segment: int, epoch: int) -> int:
        refusal = self._change(segment, epoch)
        if not refusal:
            del self.segments[segment]
        return refusal

    def raise_fence(self, epoch: int) -> int:
        if epoch < self.fence:
            return -errno.ESTALE
        self.fence = epoch
        return 0

    def _change(self, segment: int, epoch: int) -> int:
        if epoch < self.fence:
            return -errno.ESTALE
        if segment not in self.segments:
            return -errno.ENOENT
        return -errno.ESTALE if self.segments[segment].epoch > epoch else 0


@dataclass
class Step:
    """One call: how it is made, what it does to a model, and which segment it is about (0: all)."""

    words: str
    make: Callable[[], Call]
    apply: Callable[[Model], int]
    segment: int


class History:
    def __init__(self, seed: int, reactors: int) -> None:
        self.chance = random.Random(seed)
        self.it: Pair = pair(seed, reactors=reactors)
        self.model = Model()
        self.epoch = 1
        self.written = 0
        self.cuts = self.refusals = self.partial = 0

    def step(self) -> Step:
        chance, owner = self.chance, self.it.owner
        segment = chance.choice(SEGMENTS)
        epoch = self.epoch if chance.random() < 0.9 else max(1, self.epoch - 1)
        kind = chance.choices(["create", "write", "seal", "remove", "fence"], [6, 14, 2, 4, 0.4])[0]
        words = f"{kind} segment {segment} epoch {epoch}"
        if kind == "create":
            return Step(
                words,
                lambda: owner.create(DEVICE, V, segment, epoch=epoch, blocks=BLOCKS),
                lambda model: model.create(segment, epoch),
                segment,
            )
        if kind == "write":
            block = chance.randrange(BLOCKS - 4)
            self.written += 10
            data = record(segment, block, [block_of(self.written + k) for k in range(chance.randrange(5))], epoch=epoch)
            return Step(
                f"{words} block {block}, {len(data) // BLOCK} blocks",
                lambda: owner.write(DEVICE, V, segment, block, data, epoch=epoch),
                lambda model: model.write(segment, epoch, block, data),
                segment,
            )
        if kind == "seal":
            blocks = chance.randrange(BLOCKS // 2, BLOCKS + 1)
            return Step(
                f"{words} to {blocks}",
                lambda: owner.seal(DEVICE, V, segment, blocks, epoch=epoch),
                lambda model: model.seal(segment, epoch, blocks),
                segment,
            )
        if kind == "remove":
            return Step(
                words,
                lambda: owner.remove(DEVICE, V, segment, epoch=epoch),
                lambda model: model.remove(segment, epoch),
                segment,
            )
        self.epoch += chance.random() < 0.7
        raised = self.epoch
        return Step(
            f"fence {raised}", lambda: owner.fence(DEVICE, V, raised), lambda model: model.raise_fence(raised), 0
        )

    def round(self) -> None:
        """A batch of calls at once; perhaps a cut or a crash among them; then a look at the store."""
        steps = [self.step() for _ in range(self.chance.randrange(1, 25))]
        calls = [step.make() for step in steps]
        event = self.chance.choices(["none", "cut", "kill"], [3, 2, 1])[0]
        if event != "none":
            self.it.nodes.run(self.chance.randrange(80))
            self.cuts += 1
        if event == "cut" and self.it.owner.attached:
            cut(self.it.world, self.it.owner.connection)
        if event == "kill":
            self.it.holder.crash(power=False)
        self.it.nodes.settle()
        if self.it.owner.attached and event != "none":  # it died without a word
            self.it.owner.detach()
            self.it.nodes.settle()
        results = [call.result for call in calls]
        self.refusals += sum(result not in (0, -errno.ECONNRESET) for result in results)
        if event == "kill":
            self.it.holder.restart()
            self.after_kill(steps, results)
        else:
            self.after(steps, results)
        if not self.it.owner.attached:
            self.it.owner.attach(self.it.holder)
        self.look()

    def after(self, steps: list[Step], results: list[int]) -> None:
        """The model goes on from the one prefix that explains the results and the store."""
        shortest = max((number + 1 for number, result in enumerate(results) if result != -errno.ECONNRESET), default=0)
        model, problems = copy.deepcopy(self.model), []
        for number in range(len(steps) + 1):
            if number >= shortest:
                problem = self.difference(model)
                if problem is None:
                    self.partial += 0 < number < len(steps)
                    self.model = model
                    return
                problems.append(f"after {number} calls: {problem}")
            if number < len(steps):
                expected = steps[number].apply(model)
                assert results[number] in (expected, -errno.ECONNRESET), (
                    f"{steps[number].words}: {results[number]} instead of {expected}"
                )
        raise AssertionError("\n".join([*(step.words for step in steps), *problems]))

    def after_kill(self, steps: list[Step], results: list[int]) -> None:
        """Of segments without an unanswered call everything is as the model says; the others are taken as they are."""
        if -errno.ECONNRESET not in results:
            self.after(steps, results)
            return
        unknown = {step.segment for step, result in zip(steps, results, strict=True) if result == -errno.ECONNRESET}
        fenced = self.it.holder.fenced(DEVICE, V)
        if 0 in unknown:  # an unanswered fence: what came after it may have been refused
            unknown |= set(SEGMENTS)
            unknown.remove(0)
        model = copy.deepcopy(self.model)
        for step, result in zip(steps, results, strict=True):
            if result != -errno.ECONNRESET and step.segment not in unknown:
                expected = step.apply(model)
                assert step.segment == 0 or result == expected, step.words
        assert fenced >= model.fence
        model.fence = fenced
        self.epoch = max(self.epoch, fenced)
        found = self.it.holder.replicas(DEVICE)
        for segment in unknown:
            model.segments.pop(segment, None)
            if (V, segment) in found:
                state, blocks, epoch, _ = found[V, segment]
                model.segments[segment] = Segment(epoch, blocks, state == "sealed")
        self.model = model
        problem = self.difference(model)
        assert problem is None, problem

    def difference(self, model: Model) -> str | None:
        """How the store differs from a model, or None."""
        found = {segment: replica for (_, segment), replica in self.it.holder.replicas(DEVICE).items()}
        expected = {
            number: ("sealed" if it.sealed else "open", it.blocks, it.epoch, 0) for number, it in model.segments.items()
        }
        if found != expected:
            return f"the store has {found}, expected {expected}"
        if self.it.holder.fenced(DEVICE, V) != model.fence:
            return f"the fence is {self.it.holder.fenced(DEVICE, V)}, expected {model.fence}"
        for number, it in model.segments.items():
            for block, data in it.data.items():
                if self.it.holder.content(DEVICE, V, number, block, 1) != data:
                    return f"block {block} of segment {number} is another"
        return None

    def look(self) -> None:
        """What the protocol itself says about the store."""
        listed = self.it.owner.list(DEVICE, V)
        chosen = [(segment, block) for segment, it in self.model.segments.items() for block in it.data]
        wanted = self.chance.sample(chosen, min(len(chosen), 5))
        reads = [self.it.owner.read(DEVICE, V, *one) for one in wanted]
        assert self.it.done(listed, *reads) == [0] * (1 + len(reads))
        entries = read_entries("ListedReplica", listed.data[: listed.entries * 32])
        assert [entry["segment"] for entry in entries] == sorted(self.model.segments)
        assert listed.fence == self.model.fence
        for (segment, block), read in zip(wanted, reads, strict=True):
            assert read.data == self.model.segments[segment].data[block], f"block {block} of segment {segment}"


@pytest.mark.parametrize("seed", range(60))
def test_the_store_is_as_after_the_calls_that_arrived(seed: int) -> None:
    history = History(seed, reactors=1 + seed % 2)
    for _ in range(25):
        history.round()
    assert history.cuts > 3
    assert history.refusals > 3


def test_cuts_come_in_the_middle_of_batches() -> None:
    """Otherwise the histories above would show little."""
    partial = 0
    for seed in range(1000, 1006):
        history = History(seed, reactors=1)
        for _ in range(25):
            history.round()
        partial += history.partial
    assert partial > 5
