"""`iomesh cluster`: makes a cluster, lets nodes join it, and shows its nodes."""

import asyncio
import sys
import uuid
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import click

from iomesh.api.client import Client
from iomesh.api.model import JoinToken
from iomesh.cli import documents
from iomesh.cli.output import Output, fields, local_time, table
from iomesh.cli.session import Session, Span, answers, asks
from iomesh.errors import InvalidArgument, Unsupported
from iomesh.node.config import Config, load_config

WAIT_SECONDS = 0.5  # between two looks at what is left on a node that is drained

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group()
def cluster() -> None:
    """Make a cluster of nodes, let nodes join it, and show them."""


def of_node(command: Command) -> Command:
    """The node of this machine: by its configuration."""
    for option in (
        click.option("--state-dir", type=click.Path(), metavar="DIR", help="As in the configuration."),
        click.option("--name", help="Name of the node, as in the configuration.  [default: the host's]"),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="The node's configuration.  [default: /etc/iomesh/node.toml, if there]",
        ),
    ):
        command = option(command)
    return command


def configuration(config: Path | None, name: str | None, state_dir: str | None) -> Config:
    given = {"name": name, "state_dir": state_dir}
    return load_config(config, {key: value for key, value in given.items() if value is not None})


@cluster.command("init")
@of_node
@click.option("--cluster", "wanted", type=click.UUID, metavar="UUID", help="Of the cluster.  [default: a new one]")
@answers(documents.ClusterMember)
def init(session: Session, config: Path | None, name: str | None, state_dir: str | None, wanted: uuid.UUID) -> None:
    """Make a cluster, with this node as its first: the cluster's key, its certificate authority, and this node's
    certificate.

    They are written to the directory `cluster` of the node's state, and used from the daemon's next start on.
    """
    from iomesh.certificates.files import new_identity, write_identity

    node = configuration(config, name, state_dir)
    made = new_identity(wanted or node.cluster or uuid.uuid4(), node.name)
    write_identity(Path(node.certificates), made)
    say(session, made.cluster, node)
    session.output.note("start its daemon; `iomesh cluster token` there lets another node join")


@cluster.command("token")
@click.option("--expires", type=Span(), default="1h", show_default=True, help="How long it may be used; at most 7d.")
@asks(JoinToken)
def token(session: Session, expires: int) -> None:
    """Print a token with which one node may join the cluster, once. It is a secret."""
    made = session.ask(lambda node: node.create_join_token(expires))
    session.output.answer(made, made.token)
    session.output.note(f"for one node, until {local_time(made.expires_at)}: `iomesh cluster join TOKEN` there")


@cluster.command("join")
@click.argument("token", metavar="TOKEN")
@of_node
@answers(documents.ClusterMember)
def join(session: Session, token: str, config: Path | None, name: str | None, state_dir: str | None) -> None:
    """Make this node one of the cluster of TOKEN, which `iomesh cluster token` prints on one of its nodes. With - it is
    read from standard input, so that it is not in the list of processes.

    The node gets the cluster's key, its certificate authority, and a certificate of its own.
    """
    from iomesh.cli import joining

    node = configuration(config, name, state_dir)
    text = sys.stdin.read() if token == "-" else token
    made = asyncio.run(
        joining.join(text, node.name, Path(node.certificates), version=version("iomesh"), cluster=node.cluster)
    )
    say(session, made.cluster, node)


@cluster.command("certificate")
@click.argument("name", required=False, default="")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), required=False)
@click.option("--renew", is_flag=True, help="One that exists: of the client, or without arguments of this node.")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long it is valid.")
@click.option("--state-dir", type=click.Path(), metavar="DIR", help="Of this node.  [default: the configuration's]")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The node's configuration.")
@answers(documents.ClientCertificate)
def certificate(
    session: Session,
    name: str,
    directory: Path | None,
    renew: bool,
    days: int,
    config: Path | None,
    state_dir: str | None,
) -> None:
    """Write a certificate for a client called NAME, its key and the authority to the new DIRECTORY. With it
    (--certificates, $IOMESH_CERTIFICATES) commands elsewhere ask the daemons at their TCP addresses.

    With --renew, the client's certificate in DIRECTORY is made valid for --days from now on; without NAME and
    DIRECTORY, this node's own, for ten years. Keys stay the same. Daemons renew theirs by themselves a year before it
    expires, and use a renewed one without a restart.
    """
    from iomesh.api.channel import AUTHORITY_FILE
    from iomesh.certificates.authority import expires_at
    from iomesh.certificates.files import read_identity, renew_client, renew_node, write_files

    folder = Path(configuration(config, None, state_dir).certificates)
    if renew and directory is None:
        if name:
            raise InvalidArgument(f"--renew {name}: name the directory of the client's certificate as well")
        renewed = renew_node(folder)
        written(session, renewed.node, folder, expires_at(renewed.certificate.certificate))
        return
    if directory is None:
        raise InvalidArgument("name the client and a new directory: `iomesh cluster certificate NAME DIRECTORY`")
    identity = read_identity(folder)
    if not identity.may_sign:
        raise Unsupported("this node has no key of the cluster's certificate authority: make it on one that has")
    if renew:
        written(session, name, directory, expires_at(renew_client(identity, directory, days)))
        return
    made = identity.sign().client(name, days)
    write_files(
        directory.absolute(),
        {AUTHORITY_FILE: identity.authority.certificate, "client.crt": made.certificate, "client.key": made.key},
    )
    written(session, name, directory, expires_at(made.certificate))


def written(session: Session, name: str, directory: Path, expires: datetime) -> None:
    session.output.answer(
        documents.ClientCertificate(name=name, directory=str(directory.absolute()), expires_at=expires),
        f"{directory.absolute()}: for {name}, until {local_time(expires)}",
    )


@cluster.command("nodes")
@asks(documents.NodeList)
def nodes(session: Session) -> None:
    """List the nodes of the cluster."""
    found = session.ask(lambda node: node.nodes())
    session.output.answer(
        documents.NodeList(nodes=found),
        table(
            "NODE",
            "STATE",
            ">DEVICES",
            "HOST",
            "VERSION",
            "CONTROL",
            "SINCE",
            rows=[
                (
                    each.name,
                    f"{each.state}, draining" if each.draining else each.state,
                    each.devices,
                    each.host or "-",
                    each.version or "-",
                    each.control_address or "-",
                    local_time(each.started_at) if each.started_at else "-",
                )
                for each in found
            ],
        ),
    )


@cluster.command("drain")
@click.argument("name", metavar="NODE")
@click.option("--undo", is_flag=True, help="It keeps what it has, and gets new segments again.")
@click.option("--wait", is_flag=True, help="Until nothing is left on its devices.")
@asks(documents.DrainedNode)
def drain(session: Session, name: str, undo: bool, wait: bool) -> None:
    """Give NODE's volumes and copies to other nodes.

    It gets no new segments from now on. Once nothing is left on its devices, its daemon can be stopped and the node
    removed; until then it works as before.
    """
    session.ask(lambda node: node.drain_node(name, undo=undo))
    left = session.ask(lambda node: copies_left(node, name, session.output)) if wait and not undo else 0
    session.output.answer(
        documents.DrainedNode(node=name, draining=not undo, copies=left),
        f"node {name} is not drained any more"
        if undo
        else f"nothing is left on node {name}: stop its daemon, then `iomesh cluster remove {name}`"
        if wait
        else f"node {name} is being drained; `iomesh cluster drain {name} --wait` shows how far it is",
    )


async def copies_left(node: Client, name: str, output: Output) -> int:
    """Waits until there are none."""
    most = 0
    with output.bytes_progress() as progress:
        task = progress.add_task(f"draining node {name}", total=None)
        while True:
            devices = await node.devices(name)
            left = sum(device.size_bytes - device.free_bytes for device in devices)
            most = max(most, left)
            if not sum(device.replicas for device in devices):
                return 0
            progress.update(task, total=most, completed=most - left)
            await asyncio.sleep(WAIT_SECONDS)


@cluster.command("remove")
@click.argument("name", metavar="NODE")
@click.option("--forget-devices", is_flag=True, help="They are lost, too.")
@asks(documents.RemovedNode)
def remove(session: Session, name: str, forget_devices: bool) -> None:
    """Forget NODE, which is gone for good, so that another may join under its name.

    The devices of a node that was drained are forgotten, too. Those of a node that was lost are with --forget-devices:
    what was on them is then only on other nodes, and copied there.
    """
    session.ask(lambda node: node.remove_node(name, forget_devices=forget_devices))
    session.output.answer(documents.RemovedNode(node=name), f"node {name} is forgotten")


def say(session: Session, identity: uuid.UUID, node: Config) -> None:
    session.output.answer(
        documents.ClusterMember(cluster=str(identity), node=node.name, directory=node.certificates),
        fields([("cluster", identity), ("node", node.name), ("directory", node.certificates)]),
    )
