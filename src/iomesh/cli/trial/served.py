"""Which volumes a trial has, and which of its nodes serves each at present. The daemons are asked: a volume's owner may
have changed since the trial was set up."""

import asyncio

from iomesh.api.client import Client
from iomesh.api.model import Volume, VolumeState
from iomesh.cli.documents import ListedTrialVolume
from iomesh.cli.trial.installation import Installation, TrialNode
from iomesh.errors import Unavailable

ANSWER_SECONDS = 5.0


def volumes_of(trial: Installation) -> list[ListedTrialVolume]:
    """The volume of `trial up` first, also while no node lists it, then the others by name."""
    found = {name: _listed(name, answers) for name, answers in _by_name(trial).items()}
    if trial.volume and trial.volume not in found:
        found[trial.volume] = ListedTrialVolume(name=trial.volume, size=trial.volume_bytes, uri=None, owner=None)
    return sorted(found.values(), key=lambda volume: (volume.name != trial.volume, volume.name))


def _by_name(trial: Installation) -> dict[str, list[tuple[TrialNode, Volume]]]:
    """What the running nodes answer about each volume. Paused ones do not answer, and stopped ones serve nothing."""
    nodes = [node for node in trial.nodes if node.state in ("running", "cut")]
    found: dict[str, list[tuple[TrialNode, Volume]]] = {}
    for node, volumes in zip(nodes, asyncio.run(_ask(nodes)) if nodes else [], strict=True):
        for volume in volumes:
            found.setdefault(volume.name, []).append((node, volume))
    return found


async def _ask(nodes: list[TrialNode]) -> list[list[Volume]]:
    return await asyncio.gather(*map(_volumes, nodes))


async def _volumes(node: TrialNode) -> list[Volume]:
    """None of them while the daemon does not answer."""
    try:
        async with Client(node.control, timeout_seconds=ANSWER_SECONDS) as client:
            return await client.volumes()
    except Unavailable:
        return []


def _listed(name: str, answers: list[tuple[TrialNode, Volume]]) -> ListedTrialVolume:
    """A node that has not noticed yet that it has lost a volume has the lower epoch."""
    serving = [
        (volume.epoch, node.name, volume)
        for node, volume in answers
        if volume.owner == node.name and volume.state in (VolumeState.SERVING, VolumeState.READ_ONLY)
    ]
    if not serving:
        return ListedTrialVolume(name=name, size=max(volume.size_bytes for _, volume in answers), uri=None, owner=None)
    _, owner, volume = max(serving, key=lambda each: each[0])
    uri = volume.exports[0].uris[0] if volume.exports else None
    return ListedTrialVolume(name=name, size=volume.size_bytes, uri=uri, owner=owner)
