"""The configuration: what is there, what follows from it, and what is said of what is wrong."""

from __future__ import annotations

import os
import platform
import re
import tomllib
import uuid
from pathlib import Path
from typing import Any

import pytest

from iomesh.errors import ConfigError, NotFound, PermissionDenied
from iomesh.node import config as module
from iomesh.node.config import address_text, load_config, parse_address


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "node.toml"
        path.write_text(text)
        return path

    return write


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEFAULT_FILE", tmp_path / "absent.toml")
    config = load_config()
    assert config.name == platform.node()
    assert config.control.socket == "/run/iomesh/control.sock"
    assert config.nbd.socket == "/run/iomesh/nbd.sock"
    assert config.metadata.path == "/var/lib/iomesh/metadata.db"
    assert (config.engine.reactors, config.engine.mode, config.engine.map_cache_bytes) == (1, "adaptive", 256 << 20)


def test_a_file_is_read_whole(written: Any) -> None:
    cluster = uuid.uuid4()
    path = written(f"""
        name = "node-a"
        state_dir = "/s"
        run_dir = "/r"
        cluster = "{cluster}"
        devices = ["/dev/a", "/dev/b"]
        [engine]
        reactors = 2
        mode = "busy"
        map_cache_bytes = "64Mi"
        checkpoint_bytes = 1073741824
        iopoll = true
        [nbd]
        listen = "127.0.0.1:10809"
        [metrics]
        listen = ""
        [log]
        level = "debug"
    """)
    config = load_config(path)
    assert (config.name, config.cluster, config.devices) == ("node-a", cluster, ["/dev/a", "/dev/b"])
    assert (config.engine.reactors, config.engine.mode, config.engine.iopoll) == (2, "busy", True)
    assert (config.engine.map_cache_bytes, config.engine.checkpoint_bytes) == (64 << 20, 1 << 30)
    assert (config.control.socket, config.nbd.socket, config.metadata.path) == (
        "/r/control.sock",
        "/r/nbd.sock",
        "/s/metadata.db",
    )
    assert (config.nbd.listen, config.metrics.listen, config.log.level) == ("127.0.0.1:10809", "", "debug")


def test_settings_go_before_the_file_and_may_be_text(written: Any) -> None:
    path = written('name = "a"\n[engine]\nreactors = 2\niopoll = true\n')
    config = load_config(
        path, {"engine.reactors": "3", "engine.map_cache_bytes": "1Gi", "engine.iopoll": "false", "devices": ["/dev/x"]}
    )
    assert (config.name, config.engine.reactors, config.engine.map_cache_bytes) == ("a", 3, 1 << 30)
    assert config.engine.iopoll is False
    assert config.devices == ["/dev/x"]
    assert load_config(path, {"devices": "/dev/x,/dev/y"}).devices == ["/dev/x", "/dev/y"]


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ('nmae = "x"', "nmae", "name"),
        ("[engine]\nreactor = 2", "engine.reactor", "engine.reactors"),
        ("reactors = 2", "reactors", "engine.reactors"),
        ("[ngine]\nreactors = 2", "ngine", "engine"),
        ("[engine]\nmap_cache = 2", "engine.map_cache", "engine.map_cache_bytes"),
        ('[control]\nsockets = "x"', "control.sockets", "control.socket"),
    ],
)
def test_a_key_that_does_not_exist_is_named_with_the_nearest_that_does(
    written: Any, text: str, key: str, nearest: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(written(text))
    assert f"there is no key {key!r}; did you mean {nearest!r}?" in raised.value.message
    assert "node.toml" in raised.value.message


def test_a_key_like_none_gets_the_list_of_all(written: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape("there are name, state_dir")):
        load_config(written("zzzzqqqq = 1"))


def test_a_setting_that_does_not_exist_is_named_too(written: Any) -> None:
    with pytest.raises(ConfigError, match=r"settings: there is no key 'engine\.mod'; did you mean 'engine\.mode'"):
        load_config(written(""), {"engine.mod": "busy"})
    with pytest.raises(ConfigError, match="'name' is not a table"):
        load_config(written('name = "a"'), {"name.x": "1"})


def test_a_byte_order_mark_is_no_part_of_the_file(written: Any) -> None:
    assert load_config(written('\ufeffname = "a"')).name == "a"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[engine]\nreactors = "2"', "engine.reactors: expected `int`, got `str`"),
        ("[engine]\nreactors = 0", "engine.reactors: expected `int` >= 1"),
        ("[engine]\nreactors = 1000", "engine.reactors: expected `int` <= 256"),
        ('[engine]\nmode = "lazy"', "engine.mode: 'lazy' is none of adaptive, busy, sleep"),
        ('[engine]\nmap_cache_bytes = "100PiB"', "100Pi is not between 1Mi and this machine's memory"),
        ("[engine]\nmap_cache_bytes = 1", "1 is not between 1Mi and this machine's memory"),
        ("[engine]\ncheckpoint_bytes = 1", "engine.checkpoint_bytes: 1 is less than 1Mi"),
        ('devices = [""]', "devices: one of the paths is empty"),
        ('[metrics]\nlisten = "::1:9742"', "metrics.listen: '::1:9742' is not host:port"),
        ('[engine]\nmap_cache_bytes = "many"', "engine.map_cache_bytes: 'many' is not a size"),
        ("[engine]\nmap_cache_bytes = -1", "engine.map_cache_bytes: expected `int` >= 0"),
        ("engine = 3", "engine: expected `object`, got `int`"),
        ('devices = "/dev/a"', "devices: expected `array`, got `str`"),
        ('devices = ["/dev/a", "/dev/a"]', "devices: /dev/a is listed twice"),
        ('cluster = "mine"', "cluster: invalid UUID"),
        ('name = "a b"', "name: 'a b' is not a valid node name"),
        ('state_dir = ""', "state_dir is empty"),
        ('[nbd]\nlisten = "10809"', "nbd.listen: '10809' is not host:port"),
        ('[metrics]\nlisten = "localhost:99999"', "metrics.listen: 'localhost:99999' is not host:port"),
        (f'run_dir = "/{"x" * 100}"', "control.socket: /xxx"),
        (
            '[nbd]\nsocket = "/s"\n[control]\nsocket = "/s"',
            "control.socket and nbd.socket are both /s: set different paths",
        ),
        ('[peers]\nlisten = "a"', "peers.listen: 'a' is not host:port"),
        (
            '[peers]\nlisten = "10.0.0.1:9743"',
            "peers.listen is set, and this node has no key of a cluster: `iomesh cluster init`",
        ),
        (
            '[peers]\nlisten = "0.0.0.0:9743"',
            "peers.listen: 0.0.0.0:9743 is no address that other nodes can connect to",
        ),
        ('[peers]\nlisten = "[::]:9743"', "peers.listen: [::]:9743 is no address that other nodes can connect to"),
        ("name = ", "node.toml: Invalid value"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_its_key(written: Any, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(written(text))
    assert words in raised.value.message


def test_a_file_that_was_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"absent\.toml does not exist"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="is a directory"):
        load_config(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_is_not_ours_to_read_is_named(written: Any) -> None:
    path = written("")
    path.chmod(0)
    with pytest.raises(PermissionDenied, match=r"node\.toml"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "host", "port"), [("127.0.0.1:1", "127.0.0.1", 1), ("[::1]:0", "::1", 0), ("name:65535", "name", 65535)]
)
def test_addresses_are_host_and_port(text: str, host: str, port: int) -> None:
    assert parse_address(text, "key") == (host, port)
    assert address_text(host, port) == text


def test_the_documentation_names_every_key_and_no_other() -> None:
    text = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", text, re.MULTILINE))
    tables = {"engine", "cleaning", "rebuild", "scrub", "control", "nbd", "metrics", "peers", "metadata", "log"}
    assert documented == set(module.all_keys()) - tables


def test_the_example_in_the_documentation_holds(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    example = text.split("```toml\n")[1].split("```")[0]
    assert tomllib.loads(example)["devices"]
    path = tmp_path / "node.toml"
    path.write_text(example)
    load_config(path)
