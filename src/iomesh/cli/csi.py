"""`iomesh csi serve`: the CSI driver, for Kubernetes. docs/csi.md describes it."""

from pathlib import Path
from typing import Any

import click
import msgspec

from iomesh.cli.session import Session, answers
from iomesh.csi.settings import DRIVER, AttachServerSettings, Settings
from iomesh.errors import InvalidArgument

MODES = ("controller", "node", "both")


state_dir_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    default="/var/lib/iomesh-csi",
    show_default=True,
    metavar="DIR",
    help="What a node has attached. It must outlive the driver.",
)
log_level = click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
log_format = click.option(
    "--log-format", type=click.Choice(["auto", "json", "text"]), default="auto", show_default=True
)

check_option = click.option("--check", is_flag=True, help="Check the options, print what they mean, and exit.")


@click.group()
def csi() -> None:
    """Run the CSI driver, through which Kubernetes uses volumes."""


@csi.command("serve")
@click.option(
    "--endpoint",
    envvar="CSI_ENDPOINT",
    show_envvar=True,
    default="/run/iomesh/csi.sock",
    show_default=True,
    metavar="SOCKET",
    help="Path of the driver's unix socket; unix:// before it is accepted.",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="both",
    show_default=True,
    help="Which services: the controller's (one per cluster), the node's (one on each node), or both.",
)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    envvar="IOMESH_ADDRESS",
    show_envvar=True,
    default=["/run/iomesh/control.sock"],
    metavar="ADDRESS",
    help="Control API of a daemon: the path of a unix socket, or host:port. This node's first; more of them are "
    "asked if it does not answer.  [default: /run/iomesh/control.sock]",
)
@click.option(
    "--certificates",
    metavar="DIR",
    envvar="IOMESH_CERTIFICATES",
    show_envvar=True,
    default="",
    help="Certificates of a client, for a daemon at host:port that asks for them.",
)
@state_dir_option
@click.option("--driver-name", "driver", default=DRIVER, show_default=True, metavar="NAME", help="Name of the driver.")
@click.option(
    "--registration-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The kubelet's plugins_registry: the driver registers itself there.",
)
@click.option(
    "--registered-endpoint", metavar="SOCKET", help="The driver's socket as the kubelet sees it.  [default: --endpoint]"
)
@click.option("--health-listen", metavar="HOST:PORT", help="Serve /healthz and /readyz there.")
@click.option(
    "--volumes-max", type=click.IntRange(0), default=0, metavar="N", help="Most volumes of a node; 0: no limit."
)
@click.option(
    "--retry-seconds",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    metavar="N",
    help="How long requests to an attached volume wait for its daemon before they fail.",
)
@click.option(
    "--attach-server",
    metavar="SOCKET",
    help="Socket of `iomesh csi attach-server`, which then starts what serves attached volumes.  [default: the driver "
    "starts it itself]",
)
@click.option(
    "--attach-status",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write there, as JSON, by which method volumes are attached, and why not by a better one.",
)
@log_level
@log_format
@check_option
@answers(Settings)
def serve(
    session: Session,
    /,
    endpoint: str,
    addresses: tuple[str, ...],
    state_dir: Path,
    registration_dir: Path | None,
    registered_endpoint: str | None,
    health_listen: str | None,
    attach_server: str | None,
    attach_status: Path | None,
    check: bool,
    **others: Any,
) -> None:
    """Run the driver in the foreground. SIGTERM stops it; attached volumes stay attached."""
    settings = Settings(
        socket=socket_path(endpoint),
        addresses=list(addresses),
        state_dir=str(state_dir.absolute()),
        registration_dir=str(registration_dir.absolute()) if registration_dir else "",
        registered_socket=socket_path(registered_endpoint) if registered_endpoint else "",
        health_listen=health_listen or "",
        attach_server=socket_path(attach_server) if attach_server else "",
        attach_status=str(attach_status.absolute()) if attach_status else "",
        **others,
    )
    if settings.registration_dir and settings.mode == "controller":
        raise InvalidArgument("--registration-dir is for a node: the kubelet does not talk to a controller")
    if check:
        session.output.answer(settings, msgspec.json.format(msgspec.json.encode(settings), indent=2).decode())
        return
    from iomesh.csi.main import serve as run

    raise click.exceptions.Exit(run(settings))


@csi.command("attach-server")
@state_dir_option
@log_level
@log_format
@check_option
@answers(AttachServerSettings)
def attach_server(session: Session, /, state_dir: Path, check: bool, **others: Any) -> None:
    """Start and keep what serves attached volumes, so that it outlives the driver.

    Where the kernel has no NBD client, processes serve them, which end with the container that started them: this one.
    After SIGTERM it goes on until no volume is served any more.
    """
    settings = AttachServerSettings(state_dir=str(state_dir.absolute()), **others)
    if check:
        session.output.answer(settings, msgspec.json.format(msgspec.json.encode(settings), indent=2).decode())
        return
    from iomesh.csi.main import serve_attached

    raise click.exceptions.Exit(serve_attached(settings))


def socket_path(endpoint: str) -> str:
    """Raises InvalidArgument for an address that is no unix socket's."""
    path = endpoint.removeprefix("unix:")
    path = "/" + path.lstrip("/") if path.startswith("//") else path
    if not path.startswith("/"):
        raise InvalidArgument(
            f"{endpoint!r} is not the absolute path of a unix socket, such as unix:///run/iomesh/csi.sock"
        )
    return path
