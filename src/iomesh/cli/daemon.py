"""`iomesh daemon run`: the node daemon. A flag overrides the configuration file."""

from pathlib import Path
from typing import Any

import click
import msgspec

from iomesh.cli.session import Session, answers
from iomesh.errors import InvalidArgument
from iomesh.node.config import Config, load_config

FLAGS: dict[str, str] = {  # option -> key in the configuration
    "name": "name",
    "state_dir": "state_dir",
    "run_dir": "run_dir",
    "cluster": "cluster",
    "control_socket": "control.socket",
    "control_listen": "control.listen",
    "nbd_socket": "nbd.socket",
    "nbd_listen": "nbd.listen",
    "metrics_listen": "metrics.listen",
    "reactors": "engine.reactors",
    "mode": "engine.mode",
    "poll_us": "engine.poll_microseconds",
    "map_cache": "engine.map_cache_bytes",
    "checkpoint_bytes": "engine.checkpoint_bytes",
    "iopoll": "engine.iopoll",
    "log_level": "log.level",
    "log_format": "log.format",
}


@click.group()
def daemon() -> None:
    """Run the node daemon of this machine."""


@daemon.command("run")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML file.  [default: /etc/iomesh/node.toml, if there]",
)
@click.option("--check", is_flag=True, help="Check the configuration, print it with all defaults, and exit.")
@click.option("--name", help="Name of the node.  [default: the host's]")
@click.option(
    "--device",
    "devices",
    multiple=True,
    type=click.Path(),
    metavar="PATH",
    help="A formatted device; repeat it for several.",
)
@click.option("--cluster", metavar="UUID", help="Refuse devices of any other cluster.")
@click.option(
    "--state-dir",
    type=click.Path(),
    metavar="DIR",
    help="Persistent state, such as metadata.  [default: /var/lib/iomesh]",
)
@click.option("--run-dir", type=click.Path(), metavar="DIR", help="Sockets.  [default: /run/iomesh]")
@click.option(
    "--control-socket",
    type=click.Path(),
    metavar="PATH",
    help="Socket of the control API.  [default: control.sock in the run directory]",
)
@click.option("--control-listen", metavar="HOST:PORT", help="Also serve the control API over TCP.")
@click.option(
    "--nbd-socket", type=click.Path(), metavar="PATH", help="Socket of NBD.  [default: nbd.sock in the run directory]"
)
@click.option("--nbd-listen", metavar="HOST:PORT", help="Also serve NBD over TCP.")
@click.option(
    "--metrics-listen", metavar="HOST:PORT", help="Metrics and health; empty for none.  [default: 127.0.0.1:9742]"
)
@click.option("--reactors", metavar="N", help="Polling threads, one core each.  [default: 1]")
@click.option("--mode", metavar="adaptive|busy|sleep", help="How a reactor waits.  [default: adaptive]")
@click.option("--poll-us", metavar="N", help="Microseconds that an adaptive reactor polls after work.  [default: 50]")
@click.option("--map-cache", metavar="SIZE", help="Memory for maps of all volumes.  [default: 256Mi]")
@click.option("--checkpoint-bytes", metavar="SIZE", help="Log between two checkpoints of a volume.  [default: 1Gi]")
@click.option("--iopoll", is_flag=True, default=None, help="Poll devices for completions; they must support it.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.  [default: info]")
@click.option("--log-format", metavar="FORMAT", help="json, text, or auto: text on a terminal.  [default: auto]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any key of the configuration: engine.register_buffers=false.",
)
@answers(Config)
def run(
    session: Session,
    /,
    config: Path | None,
    check: bool,
    devices: tuple[str, ...],
    settings: tuple[str, ...],
    **flags: Any,
) -> None:
    """Run the daemon in the foreground. SIGTERM stops it cleanly."""
    given = {FLAGS[name]: value for name, value in flags.items() if value is not None}
    if devices:
        given["devices"] = list(devices)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InvalidArgument(f"--set: {setting!r} is not KEY=VALUE, such as engine.reactors=2")
        given[key.strip()] = value
    loaded = load_config(config, given)
    if check:
        session.output.answer(
            msgspec.to_builtins(loaded), msgspec.json.format(msgspec.json.encode(loaded), indent=2).decode()
        )
        return
    from iomesh.node.main import run_node

    raise click.exceptions.Exit(run_node(loaded))
