"""How nodes become a cluster, and who is let in: certificates, join tokens, and what is refused with which words."""

from __future__ import annotations

import asyncio
import json
import ssl
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from iomesh.api.client import Client, Credentials
from iomesh.api.model import MembershipState
from iomesh.certificates.authority import fingerprint
from iomesh.certificates.files import FOLDER, new_identity, read_identity, replace_file, write_identity
from iomesh.certificates.token import JoinToken, read_token
from iomesh.cli import joining
from iomesh.cli.joining import join
from iomesh.errors import AlreadyExists, Foreign, InUse, InvalidArgument, NotFound, PermissionDenied, Unavailable
from support import rooms
from support.daemon import Daemon
from support.nodes import Nodes, until
from support.run import run
from support.trial import iomesh_command

MIB = 1 << 20


@pytest.fixture(scope="module")
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """Nodes a and b: `trial up` made the cluster on a, and b joined it with a token."""
    with rooms.room(request.config) as folder:
        made = Nodes(folder / "trial", ["--nodes", "2", "--device-size", "1Gi", "--size", "16Mi"])
        made.up()
        yield made
        made.down()


def asked(*words: str, address: str = "", certificates: Path | None = None, code: int = 0) -> Any:
    options = ["--address", address] if address else []
    options += ["--certificates", str(certificates)] if certificates else []
    done = run([iomesh_command(), *words, *options, "--json"], succeeds=not code)
    assert done.returncode == code, done.stdout
    return json.loads(done.stdout)


async def new_token(nodes: Nodes, node: str = "a", seconds: int = 0) -> str:
    async with Client(nodes.control_of(node)) as client:
        return (await client.create_join_token(seconds)).token


async def tcp_address(nodes: Nodes, name: str) -> str:
    async with Client(nodes.control_of(name)) as client:
        return next(node.control_address for node in await client.nodes() if node.name == name)


def joins(text: str, name: str, directory: Path, **options: Any) -> Any:
    return join(text, name, directory / "cluster", version="test", **options)


async def test_a_client_needs_a_certificate_of_the_cluster(nodes: Nodes, tmp_path: Path) -> None:
    address = await tcp_address(nodes, "b")
    made = asked("cluster", "certificate", "backup", str(tmp_path / "own"), "--config", str(nodes.config))
    assert made["name"] == "backup"
    assert asked("status", address=address, certificates=tmp_path / "own")["node"]["node"] == "b"
    assert {node["name"] for node in asked("cluster", "nodes", address=nodes.control)["nodes"]} == {"a", "b"}
    assert stat.S_IMODE((tmp_path / "own" / "client.key").stat().st_mode) == 0o600
    assert "no daemon answers at" in asked("status", address=address, code=9)["error"]["message"]
    other = new_identity(uuid.uuid4(), "b")
    credentials = Credentials.read(tmp_path / "own")
    for wrong in (
        other.credentials,  # of another cluster, on both sides
        Credentials(credentials.authority, *other.certificate),
    ):
        async with Client(address, credentials=wrong, timeout_seconds=30) as client:
            with pytest.raises(Unavailable, match="it may not accept this certificate, or be of another cluster"):
                await client.status()


async def test_what_only_the_owner_can_do_goes_to_it_with_certificates(nodes: Nodes) -> None:
    async with Client(nodes.control_of("b")) as b:
        assert (await b.grow_volume("trial", 32 * MIB)).owner == "a"


async def test_a_token_lets_one_node_in_once(nodes: Nodes, tmp_path: Path) -> None:
    text = await new_token(nodes, "b")
    with pytest.raises(
        AlreadyExists, match="this cluster has a node a: join under another name, or, if that node is gone"
    ):
        await joins(text, "a", tmp_path)
    assert not any(tmp_path.iterdir()), "nothing half done"
    joined = await joins(text, "c", tmp_path)
    assert read_identity(tmp_path / "cluster") == joined
    assert joined == read_identity(nodes.directory / "a" / FOLDER)._replace(node="c", certificate=joined.certificate)
    assert stat.S_IMODE((tmp_path / "cluster").stat().st_mode) == 0o700
    with pytest.raises(AlreadyExists, match=f"this node belongs to a cluster {joined.cluster} already"):
        await joins(await new_token(nodes), "d", tmp_path)
    with pytest.raises(PermissionDenied, match=r"the join token was used by node c at 20.*, and it serves once: make"):
        await joins(text, "d", tmp_path / "d")
    with pytest.raises(AlreadyExists, match="this cluster has a node c"):
        await joins(await new_token(nodes), "c", tmp_path / "c")
    async with Client(nodes.control_of("a")) as client:
        with pytest.raises(InUse, match="node b runs: stop its daemon first"):
            await client.remove_node("b")
        await client.remove_node("c")
        with pytest.raises(NotFound, match="no node 'c' has joined this cluster"):
            await client.remove_node("c")
    assert (await joins(await new_token(nodes), "c", tmp_path / "c")).node == "c"
    async with Client(nodes.control_of("a")) as client:
        await client.remove_node("c")


async def test_of_two_nodes_with_one_token_one_joins(nodes: Nodes, tmp_path: Path) -> None:
    text = await new_token(nodes)
    found = await asyncio.gather(*(joins(text, name, tmp_path / name) for name in ("x", "y")), return_exceptions=True)
    refused = [each for each in found if isinstance(each, PermissionDenied)]
    (joined,) = [each.node for each in found if not isinstance(each, BaseException)]
    assert len(refused) == 1, found
    async with Client(nodes.control) as client:
        await client.remove_node(joined)
        with pytest.raises(NotFound):  # the other's name is free
            await client.remove_node("y" if joined == "x" else "x")


async def test_a_token_that_is_wrong_or_too_old_is_refused_with_the_reason(nodes: Nodes, tmp_path: Path) -> None:
    text = await new_token(nodes)
    token = read_token(text)

    async def refused(words: str, kind: type[Exception] = InvalidArgument, **changed: Any) -> None:
        changed_text = msgspec.structs.replace(token, **changed).text()
        with pytest.raises(kind, match=words):
            await joins(changed_text, "d", tmp_path)

    for wrong in ("secret", text[:-20], text.replace(text[200:210], "A" * 10)):
        with pytest.raises(InvalidArgument, match=r"the join token (is incomplete|does not begin with 'iomesh-join-1)"):
            await joins(wrong, "d", tmp_path)
    await refused("the join token expired at 20.*make another", expires_ns=time.time_ns() - 1)

    short = read_token(await new_token(nodes, seconds=1))
    await asyncio.sleep(max(0, (short.expires_ns - time.time_ns()) / 1e9) + 0.01)
    late = msgspec.structs.replace(short, expires_ns=time.time_ns() + 10**12)  # its node's clock is behind
    with pytest.raises(PermissionDenied, match="the join token expired at 20"):
        await joins(late.text(), "d", tmp_path)

    forged = read_identity(nodes.directory / "a" / FOLDER).sign().join(uuid.uuid4(), 1)
    await refused("is not known to this cluster", PermissionDenied, certificate=forged.certificate, key=forged.key)
    other = new_identity(uuid.uuid4(), "a")
    certificate, key = other.sign().join(token.id, 1)
    await refused(
        r"no node of cluster .*\(it may not accept this certificate", Unavailable, certificate=certificate, key=key
    )
    await refused("no node of cluster", Unavailable, authority=other.authority.certificate)
    assert not any(tmp_path.iterdir())

    credentials = Credentials(token.authority, token.certificate, token.key)
    async with Client(token.addresses[0], credentials=credentials) as client:
        with pytest.raises(PermissionDenied, match="ListVolumes: the certificate of a join token may do nothing but"):
            await client.volumes()
        with pytest.raises(PermissionDenied, match="Watch: the certificate of a join token may do nothing but join"):
            await anext(client.watch())


async def test_a_node_that_does_not_fit_is_refused_and_costs_no_token(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = await new_token(nodes)
    with pytest.raises(Foreign, match=r"the join token is of cluster .*, and the configuration says"):
        await joins(text, "d", tmp_path, cluster=uuid.uuid4())
    with pytest.raises(InvalidArgument, match="'d/e' is not a valid node name"):
        await joins(text, "d/e", tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(joining, "VERSIONS", (90, 91))
        with pytest.raises(Exception, match=r"node d \(iomesh test\) speaks versions 90 to 91 of the peer protocol"):
            await joins(text, "d", tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(joining, "now_ns", lambda: time.time_ns() - 3600 * 10**9)
        with pytest.raises(InvalidArgument, match=r"the clock of node d is 3600 s behind that of node a"):
            await joins(text, "d", tmp_path)
    assert not any(tmp_path.iterdir())
    await joins(text, "d", tmp_path)
    async with Client(nodes.control) as client:
        await client.remove_node("d")


async def test_a_node_is_refused_that_is_not_the_one_of_its_certificates(daemon: Daemon) -> None:
    daemon.settings["control.listen"] = "0.0.0.0:0"
    code, words = daemon.refuse()
    assert (code, "control.listen: 0.0.0.0:0 is reached from other machines, and this node has no certif" in words) == (
        2,
        True,
    )
    folder = daemon.directory / "state" / FOLDER
    write_identity(folder, new_identity(uuid.uuid4(), daemon.name))
    code, words = daemon.refuse()
    assert (code, "the certificates in" in words) == (6, True)
    daemon.cluster = read_identity(folder).cluster
    code, words = daemon.refuse()
    assert code == 6 and "is of cluster" in words, "its device is of another one"
    folder.rename(folder.with_name("other"))
    write_identity(folder, new_identity(daemon.cluster, "node-z"))
    code, words = daemon.refuse()
    assert code == 6 and "this is node node-a, and the certificate in" in words


async def certificate_of(address: str, credentials: Credentials, folder: Path) -> bytes:
    """In PEM, that a new connection meets."""
    host, _, port = address.rpartition(":")
    for name, content in (("ca", credentials.authority), ("crt", credentials.certificate), ("key", credentials.key)):
        (folder / name).write_bytes(content)
    context = ssl.create_default_context(cafile=str(folder / "ca"))
    context.load_cert_chain(folder / "crt", folder / "key")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="node.iomesh")
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return ssl.DER_cert_to_PEM_cert(found).encode()


async def test_a_node_renews_its_certificate_in_time_and_uses_it_without_a_restart(
    nodes: Nodes, tmp_path: Path
) -> None:
    folder, address = nodes.directory / "b" / FOLDER, await tcp_address(nodes, "b")
    before = read_identity(folder)
    short = before.sign().renewed(before.certificate.certificate, 10)
    replace_file(folder / "node.crt", short)

    async def renewed() -> bool:
        met = await certificate_of(address, before.credentials, tmp_path)
        assert fingerprint(met) == fingerprint(short), "the key stays"
        return met not in (short, before.certificate.certificate)

    await until(renewed, "the certificate is renewed, and used")
    again = asked("cluster", "certificate", "--renew", "--state-dir", str(folder.parent))
    assert again["name"] == "b" and again["expires_at"] > f"{time.gmtime().tm_year + 9}"
    ours = read_identity(folder).certificate.certificate

    async def used() -> bool:
        return await certificate_of(address, before.credentials, tmp_path) == ours

    await until(used, "what a command has renewed is used")
    async with Client(nodes.control_of("b")) as b:
        assert (await b.grow_volume("trial", 32 * MIB)).owner == "a", "as a client of other nodes, too"


async def test_a_certificate_that_has_expired_is_named_with_the_remedy(nodes: Nodes, tmp_path: Path) -> None:
    address, node = await tcp_address(nodes, "b"), read_identity(nodes.directory / "a" / FOLDER)
    own = tmp_path / "own"
    asked("cluster", "certificate", "backup", str(own), "--config", str(nodes.config))
    replace_file(own / "client.crt", node.sign().renewed((own / "client.crt").read_bytes(), -0.5))
    refused = asked("status", address=address, certificates=own, code=13)["error"]["message"]
    assert f"the certificate in {own} expired at 20" in refused and "--renew`)" in refused
    asked("cluster", "certificate", "backup", str(own), "--renew", "--config", str(nodes.config))
    assert asked("status", address=address, certificates=own)["node"]["node"] == "b"
    missing = asked("cluster", "certificate", "x", str(tmp_path), "--renew", "--config", str(nodes.config), code=3)
    assert "without --renew, one is made" in missing["error"]["message"]


@pytest.mark.logs("certificate not renewed")
async def test_a_node_that_cannot_renew_its_certificate_warns_weeks_ahead(daemon: Daemon) -> None:
    assert daemon.cluster is not None
    made = new_identity(daemon.cluster, daemon.name)
    short = made.sign().renewed(made.certificate.certificate, 30)
    folder = daemon.directory / "state" / FOLDER
    write_identity(
        folder,
        made._replace(
            certificate=made.certificate._replace(certificate=short), authority=made.authority._replace(key=b"")
        ),
    )
    daemon.start()
    async with daemon.client() as client:
        (warning,) = [each for each in (await client.status()).warnings if "certificate" in each]
    assert warning.startswith(f"the certificate of node {daemon.name} expires at 20")
    assert "has no key of the cluster's certificate authority" in warning and "--renew" in warning
    refused = asked("cluster", "certificate", "--renew", "--state-dir", str(folder.parent), code=10)
    assert "cannot be renewed here: copy ca.key from another node" in refused["error"]["message"]


async def test_a_removed_node_is_refused_until_it_joins_again(new_trial: Callable[..., Any], tmp_path: Path) -> None:
    nodes: Nodes = new_trial("--nodes", "2", "--device-size", "1Gi", "--size", "16Mi", kind=Nodes)
    address, state = await tcp_address(nodes, "a"), nodes.directory / "b"
    former = read_identity(state / FOLDER)

    async def answers(credentials: Credentials) -> None:
        async with Client(address, credentials=credentials) as client:
            await client.volumes()

    await answers(former.credentials)
    nodes.kill("b")
    async with nodes.client("a") as client:
        await until(lambda: gone(client, "b"), "node b is down")
        await client.remove_node("b")

    async def refused() -> bool:
        try:
            await answers(former.credentials)
        except PermissionDenied as error:
            return "the certificate of node b is not accepted any more: the node was removed" in error.message
        return False

    await until(refused, "its certificate is refused")
    done = run([iomesh_command(), "daemon", "run", "--config", str(state / "node.toml")], succeeds=False)
    assert done.returncode == 13
    assert "node b was removed from the cluster at 20" in done.stderr and "let it join again" in done.stderr

    (state / FOLDER).rename(tmp_path / "former")
    joined = await join(await new_token(nodes), "b", state / FOLDER, version="test")

    async def accepted() -> bool:
        try:
            await answers(joined.credentials)
        except PermissionDenied:
            return False
        return True

    await until(accepted, "its new certificate is accepted")
    assert await refused(), "and the former one is not"
    nodes.start_nodes("b")
    async with nodes.client("b") as client:
        assert (await client.volume("trial")).owner == "a"


async def gone(client: Client, name: str) -> bool:
    return all(each.name != name or each.state is MembershipState.DOWN for each in await client.nodes())


def test_a_cluster_is_made_with_commands(tmp_path: Path) -> None:
    options = ["--state-dir", str(tmp_path / "state"), "--name", "one"]
    made = asked("cluster", "init", *options)
    assert read_identity(tmp_path / "state" / FOLDER).cluster == uuid.UUID(made["cluster"])
    assert (made["node"], made["directory"]) == ("one", str(tmp_path / "state" / FOLDER))
    again = asked("cluster", "init", *options, code=4)
    assert f"this node belongs to a cluster {made['cluster']} already" in again["error"]["message"]
    refused = asked("cluster", "join", "nonsense", "--state-dir", str(tmp_path / "x"), "--name", "two", code=2)
    assert "the join token does not begin with" in refused["error"]["message"]


async def test_a_node_without_certificates_lets_nobody_join(node: Daemon) -> None:
    async with node.client() as client:
        with pytest.raises(Exception, match=r"node node-a has no certificates .*, so no other can join by it"):
            await client.create_join_token()


def test_a_token_hides_nothing_that_it_needs() -> None:
    authority = new_identity(uuid.uuid4(), "a")
    certificate, key = authority.sign().join(uuid.uuid4(), 1)
    token = JoinToken(
        id=uuid.uuid4(),
        cluster=authority.cluster,
        expires_ns=time.time_ns() + 10**12,
        addresses=["10.0.0.1:9740"],
        authority=authority.authority.certificate,
        certificate=certificate,
        key=key,
    )
    assert read_token(f"\n{token.text()}  \n") == token
    assert len(token.text()) < 2500, "it can be pasted"
