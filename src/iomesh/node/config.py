"""The daemon's configuration: a TOML file, and settings that override it (flags). docs/configuration.md lists every
key.

An unknown key is an error that names the nearest known key; a value of the wrong type or out of bounds is an error too.
This module only reads: nothing is created or opened.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import platform
import re
import tomllib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from iomesh.errors import ConfigError, NotFound, PermissionDenied
from iomesh.sizes import SizeError, exact_size, parse_size, short_size

DEFAULT_FILE = Path("/etc/iomesh/node.toml")
SOCKET_PATH_BYTES_MAX = 107  # sun_path, and the zero behind it
WILDCARDS = ("0.0.0.0", "::")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)

Bytes = Annotated[int, msgspec.Meta(ge=0)]  # in a file also as text: "256Mi"
LEAST_BYTES = 1 << 20  # of the map cache, and of log between two checkpoints


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    reactors: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    mode: Literal["adaptive", "busy", "sleep"] = "adaptive"
    poll_microseconds: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 50
    map_cache_bytes: Bytes = 256 << 20
    checkpoint_bytes: Bytes = 1 << 30
    iopoll: bool = False
    register_buffers: bool = True
    request_timeout_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = (
        30.0  # a device that has not answered a read, write or flush for so long has failed
    )
    space_below_wait_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = (
        5.0  # how long writes wait when the storage under the devices has no space
    )


class CleaningConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    enabled: bool = True
    bytes_per_second: Bytes = 200 << 20  # 0: unlimited
    rest_seconds: Annotated[float, msgspec.Meta(ge=0)] = (
        3.0  # a segment in which nothing has died for so long is cleaned before space is short
    )


class ScrubConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    enabled: bool = True
    bytes_per_second: Bytes = 8 << 20  # of each device; 0: unlimited
    # From the end of one pass over a device to the next.
    interval_seconds: Annotated[float, msgspec.Meta(ge=0)] = 7 * 24 * 3600.0


class RebuildConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    enabled: bool = True
    bytes_per_second: Bytes = 128 << 20  # for all volumes that this node owns; 0: unlimited
    delay_seconds: Annotated[float, msgspec.Meta(ge=0)] = (
        60.0  # a device that has not answered for so long is lost: its copies are made elsewhere
    )


class ControlConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    socket: str = ""  # empty: control.sock in run_dir
    listen: str = ""  # host:port; empty: no TCP


class NbdConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    socket: str = ""  # empty: nbd.sock in run_dir
    listen: str = ""


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    listen: str = "127.0.0.1:9742"  # empty: none


class PeersConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    listen: str = ""  # host:port, under which other nodes reach this one; empty: this node has no connections to others
    key_file: str = ""  # of the cluster, the same on every node
    cut_file: str = ""  # while it exists, nothing from other nodes arrives: for trials


class MetadataConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["sqlite", "etcd", "kubernetes"] = "sqlite"
    path: str = ""  # of sqlite; empty: metadata.db in state_dir
    endpoints: list[str] = []  # of etcd: its members, host:port
    prefix: str = "/iomesh/"  # of etcd, of every key
    ca_file: str = ""  # of etcd; empty: without TLS
    certificate_file: str = ""  # of etcd, ours; empty: none
    key_file: str = ""
    namespace: str = ""  # of kubernetes; empty: the pod's, or that of the kubeconfig
    kubeconfig: str = ""  # of kubernetes; empty: the service account of the pod


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "text"] = "auto"  # auto: text on a terminal, JSON lines elsewhere


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str = ""  # empty: the machine's host name
    state_dir: str = "/var/lib/iomesh"
    run_dir: str = "/run/iomesh"
    cluster: uuid.UUID | None = None  # None: the metadata service's
    certificates: str = ""  # directory; empty: `cluster` in state_dir
    devices: list[str] = []
    lease_seconds: Annotated[float, msgspec.Meta(ge=1, le=60)] = (
        4.0  # a node that the metadata service has not heard of for so long is lost
    )
    engine: EngineConfig = EngineConfig()
    cleaning: CleaningConfig = CleaningConfig()
    rebuild: RebuildConfig = RebuildConfig()
    scrub: ScrubConfig = ScrubConfig()
    control: ControlConfig = ControlConfig()
    nbd: NbdConfig = NbdConfig()
    metrics: MetricsConfig = MetricsConfig()
    peers: PeersConfig = PeersConfig()
    metadata: MetadataConfig = MetadataConfig()
    log: LogConfig = LogConfig()


def load_config(file: Path | None = None, settings: Mapping[str, Any] | None = None) -> Config:
    """The configuration in `file` (None: /etc/iomesh/node.toml if it exists), overridden by `settings`:
    {"engine.reactors": 2}. Setting values are as in TOML; numbers and booleans may also be text, as flags give them."""
    explicit = file is not None
    file = file or DEFAULT_FILE
    source = str(file)
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        if explicit:
            raise NotFound(f"configuration {source} does not exist") from None
        values = {}
    except PermissionError:
        raise PermissionDenied(f"configuration {source} is not readable") from None
    except IsADirectoryError:
        raise ConfigError(f"configuration {source} is a directory") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {source}: {error}") from None
    config = _convert(values, f"configuration {source}", strict=True)
    for key, value in (settings or {}).items():
        _set(values, key, value)
    if settings:
        config = _convert(values, "settings", strict=False)
    return _resolve(config)


def is_node_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_address(address: str, key: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:9742", "[::1]:9742", "localhost:0"."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    bare = ":" in host and not address.startswith("[")
    if not colon or not host or bare or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{key}: {address!r} is not host:port, such as 127.0.0.1:9742 or [::1]:9742")
    return host, int(port)


def advertised(host: str, config: Config) -> str:
    """The host under which others reach what listens on `host`, which may be a wildcard."""
    if host not in WILDCARDS:
        return host
    return parse_address(config.peers.listen, "peers.listen")[0] if config.peers.listen else platform.node()


def address_text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *tables, name = key.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{key!r} is no key: {table!r} is not a table")
    values[name] = value


def _convert(values: dict[str, Any], source: str, *, strict: bool) -> Config:
    prepared = _prepare(values, Config, source, "", strict)
    try:
        return msgspec.convert(prepared, Config, strict=strict)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        raise ConfigError(f"{source}: {where.rstrip('`') or 'it'}: {what[:1].lower()}{what[1:]}") from None


def _prepare(
    values: dict[str, Any], kind: type[msgspec.Struct], source: str, table: str, strict: bool
) -> dict[str, Any]:
    """Rejects unknown keys and converts sizes to numbers and, unless strict, a,b to a list; msgspec checks the rest."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    prepared = {}
    for name, value in values.items():
        key = f"{table}{name}"
        if name not in fields:
            raise ConfigError(f"{source}: there is no key {key!r}{_nearest(key)}")
        default = fields[name].default
        if isinstance(default, msgspec.Struct) and isinstance(value, dict):
            value = _prepare(value, type(default), source, f"{key}.", strict)
        elif name.endswith(("_bytes", "bytes_per_second")) and isinstance(value, str):
            try:
                value = parse_size(value)
            except SizeError as error:
                raise ConfigError(f"{source}: {key}: {error}") from None
        elif get_origin(fields[name].type) is Literal and value not in get_args(fields[name].type):
            raise ConfigError(f"{source}: {key}: {value!r} is none of {', '.join(get_args(fields[name].type))}")
        elif fields[name].type == list[str] and isinstance(value, str) and not strict:
            value = value.split(",") if value else []
        prepared[name] = value
    return prepared


def _nearest(key: str) -> str:
    keys = all_keys()
    found = difflib.get_close_matches(key, keys, 1, 0.6)
    if not found:  # in the wrong table, or in none
        name = key.rpartition(".")[2]
        names = {each.rpartition(".")[2]: each for each in keys}
        found = [names[each] for each in difflib.get_close_matches(name, list(names), 1, 0.6)]
    return f"; did you mean {found[0]!r}?" if found else f"; there are {', '.join(keys)}"


def all_keys(kind: type[msgspec.Struct] = Config, table: str = "") -> list[str]:
    keys = []
    for field in msgspec.structs.fields(kind):
        keys.append(table + field.name)
        if isinstance(field.default, msgspec.Struct):
            keys += all_keys(type(field.default), f"{table}{field.name}.")
    return keys


def _resolve(config: Config) -> Config:
    """Fills in what follows from other keys, and checks what no type says."""
    name = config.name or platform.node()
    if not is_node_name(name):
        raise ConfigError(
            f"name: {name!r} is not a valid node name: use letters, digits, dots and dashes, at most 63 characters"
        )
    for key in ("state_dir", "run_dir"):
        if not getattr(config, key):
            raise ConfigError(f"{key} is empty: name a directory")
    run, state = Path(config.run_dir), Path(config.state_dir)
    config = msgspec.structs.replace(
        config,
        name=name,
        control=msgspec.structs.replace(config.control, socket=config.control.socket or str(run / "control.sock")),
        nbd=msgspec.structs.replace(config.nbd, socket=config.nbd.socket or str(run / "nbd.sock")),
        certificates=config.certificates or str(state / "cluster"),
        metadata=msgspec.structs.replace(config.metadata, path=config.metadata.path or str(state / "metadata.db")),
    )
    key_file = Path(config.certificates, "cluster.key")
    if not config.peers.key_file and key_file.exists():
        config = msgspec.structs.replace(config, peers=msgspec.structs.replace(config.peers, key_file=str(key_file)))
    for key, path in (("control.socket", config.control.socket), ("nbd.socket", config.nbd.socket)):
        if len(path.encode()) > SOCKET_PATH_BYTES_MAX:
            raise ConfigError(
                f"{key}: {path} is longer than the {SOCKET_PATH_BYTES_MAX} bytes that Linux allows for a socket: set "
                "a shorter one"
            )
    if config.control.socket == config.nbd.socket:
        raise ConfigError(f"control.socket and nbd.socket are both {config.nbd.socket}: set different paths")
    for key, address in (
        ("control.listen", config.control.listen),
        ("nbd.listen", config.nbd.listen),
        ("metrics.listen", config.metrics.listen),
        ("peers.listen", config.peers.listen),
    ):
        if address:
            parse_address(address, key)
    if config.peers.listen:
        if parse_address(config.peers.listen, "peers.listen")[0] in WILDCARDS:
            raise ConfigError(
                f"peers.listen: {config.peers.listen} is no address that other nodes can connect to: name one of this "
                "machine's"
            )
        if not config.peers.key_file:
            raise ConfigError(
                "peers.listen is set, and this node has no key of a cluster: `iomesh cluster init` makes a cluster, "
                "`iomesh cluster join` joins one, or peers.key_file names the file with the cluster's key"
            )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if not LEAST_BYTES <= config.engine.map_cache_bytes <= memory:
        raise ConfigError(
            f"engine.map_cache_bytes: {exact_size(config.engine.map_cache_bytes)} is not between "
            f"{exact_size(LEAST_BYTES)} and this machine's memory, {short_size(memory)}"
        )
    if config.engine.checkpoint_bytes < LEAST_BYTES:
        raise ConfigError(
            f"engine.checkpoint_bytes: {exact_size(config.engine.checkpoint_bytes)} is less than "
            f"{exact_size(LEAST_BYTES)}: a checkpoint would follow each write"
        )
    if "" in config.devices:
        raise ConfigError("devices: one of the paths is empty: name a block device or a file, or leave it out")
    repeated = {path for path in config.devices if config.devices.count(path) > 1}
    if repeated:
        raise ConfigError(f"devices: {', '.join(sorted(repeated))} is listed twice")
    return config
