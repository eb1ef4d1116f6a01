"""A real Kubernetes on this machine: etcd, API server, controllers, scheduler, and nodes of containerd and kubelet.

`ControlPlane` alone runs on loopback, without root, and serves tests of the API. `Cluster` gives the control plane and
each node a network namespace of its own, with a bridge between them; it needs root. Up in 10 to 30 s, 1 GiB with two
nodes. For people: `python -m support.kubernetes.cluster up [NODES]`, then `kubectl ARGS...`, `helm ARGS...`,
`load IMAGE.tar...`, `run COMMAND...` (in the control plane's namespace), `down`.

- Never `ip netns exec` for kubelet or containerd: it hides the cgroup mounts. `nsenter --net=` does not.
- Each kubelet has a cgroup root and a folder of pod logs of its own, else they end each other's pods.
- Each node has a mount namespace of its own, in which OWN_PLACES are folders of its own. /dev is everybody's.
- Pods reach pods of other nodes, and the API server as 10.0.0.1; there is no kube-proxy and no DNS.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from support.kubernetes import images, programs

READY_SECONDS = 300.0  # against hangs alone
CONTROL, CONTROL_ADDRESS, SERVICE_ADDRESS = "iomesh-control", "10.77.0.1", "10.0.0.1"
PAUSE_IMAGE = "iomesh.test/pause:1"
STATE = Path("/var/tmp/iomesh-kubernetes")  # short: a socket's path has at most 107 bytes
CGROUPS = Path("/sys/fs/cgroup")
KUBELET = "/var/lib/kubelet"
OWN_PLACES = (KUBELET, "/var/lib/iomesh", "/var/lib/iomesh-csi", "/run/iomesh")


class Processes:
    """Started in a network namespace or none, each with a log and a file with its number, so that another run of this
    program can end them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, command: Sequence[str], network: str = "", *, beside: str = "") -> None:
        """beside: name of a process whose mount namespace it shares."""
        if beside:
            command = ["nsenter", f"--mount=/proc/{self.number(beside)}/ns/mnt", *command]
        environment = os.environ | {"PATH": programs.search_path()}
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                inside(network, command), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
                start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        self._started.append(process)
        (self.folder / f"{name}.pid").write_text(str(process.pid))

    def number(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def stop(self, name: str) -> None:
        file = self.folder / f"{name}.pid"
        if not file.exists():
            return
        number = self.number(name)
        for sign, seconds in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 20.0)):
            if not _signal(number, sign):
                break
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and _signal(number, 0):
                for process in self._started:
                    process.poll()
                time.sleep(0.05)
        file.unlink()

    def kill(self, name: str) -> None:
        """At once, as a crash does."""
        _signal(self.number(name), signal.SIGKILL)
        self.stop(name)

    def stop_all(self) -> None:
        for file in self.folder.glob("*.pid"):
            self.stop(file.stem)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]


def inside(network: str, command: Sequence[str]) -> list[str]:
    return [*(["nsenter", f"--net=/var/run/netns/{network}"] if network else []), *command]


class ControlPlane:
    """etcd and an API server; `kubeconfig` makes its user the administrator."""

    def __init__(
        self, folder: Path, *, address: str = "127.0.0.1", network: str = "", nodes: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.network = network
        self.address = address
        self.port = 443 if network else free_port()
        self.etcd_ports = (12379, 12380) if network else (free_port(), free_port())
        self.processes = Processes(folder)
        self.kubeconfig = folder / "admin.kubeconfig"
        self.nodes = nodes

    def start(self) -> None:
        names = {"admin": "/O=system:masters/CN=admin", "controllers": "/CN=system:kube-controller-manager"}
        names["scheduler"] = "/CN=system:kube-scheduler"
        names |= {node: f"/O=system:nodes/CN=system:node:{node}" for node in self.nodes}
        self._make_certificates(names)
        self.start_etcd()
        self.start_server()

    def start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in self.etcd_ports)
        self.processes.start(
            "etcd",
            ["etcd", "--data-dir", str(self.folder / "etcd"), "--listen-client-urls", client, "--advertise-client-urls",
             client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster",
             f"default={peer}", "--unsafe-no-fsync"],
            self.network,
        )  # fmt: skip

    def start_server(self) -> None:
        keys = self.folder / "pki"
        client = f"http://127.0.0.1:{self.etcd_ports[0]}"
        self.processes.start(
            "apiserver",
            [programs.program("kube-apiserver"), "--etcd-servers", client, "--secure-port", str(self.port),
             "--bind-address", "0.0.0.0" if self.network else self.address, "--advertise-address", self.address,
             "--tls-cert-file", f"{keys}/apiserver.crt", "--tls-private-key-file", f"{keys}/apiserver.key",
             "--client-ca-file", f"{keys}/ca.crt", "--cert-dir", str(keys), "--service-account-issuer",
             "https://kubernetes.default.svc", "--service-account-key-file", f"{keys}/sa.pub",
             "--service-account-signing-key-file", f"{keys}/sa.key", "--service-cluster-ip-range", "10.0.0.0/24",
             "--authorization-mode", "Node,RBAC", "--allow-privileged", "--enable-aggregator-routing",
             "--kubelet-preferred-address-types", "InternalIP", "--endpoint-reconciler-type", "none",
             "--kubelet-client-certificate", f"{keys}/admin.crt", "--kubelet-client-key", f"{keys}/admin.key"],
            self.network,
        )  # fmt: skip
        self.wait("the API server", lambda: self.kubectl_succeeds("get", "--raw", "/readyz"), "apiserver")

    def start_controllers(self) -> None:
        keys = self.folder / "pki"
        self.processes.start(
            "controllers",
            [programs.program("kube-controller-manager"), "--kubeconfig", str(self.folder / "controllers.kubeconfig"),
             "--use-service-account-credentials", "--service-account-private-key-file", f"{keys}/sa.key",
             "--root-ca-file", f"{keys}/ca.crt", "--leader-elect=false", "--secure-port", "0"],
            self.network,
        )  # fmt: skip
        self.processes.start(
            "scheduler",
            [programs.program("kube-scheduler"), "--kubeconfig", str(self.folder / "scheduler.kubeconfig"),
             "--leader-elect=false", "--secure-port", "0"],
            self.network,
        )  # fmt: skip

    def stop(self) -> None:
        for name in ("scheduler", "controllers", "apiserver", "etcd"):
            self.processes.stop(name)

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """What it prints. Raises with what it said."""
        return self.run([programs.program("kubectl"), *arguments], input=input)

    def kubectl_succeeds(self, *arguments: str) -> bool:
        try:
            self.kubectl(*arguments)
        except AssertionError:
            return False
        return True

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", "-o", "json", *arguments))

    def apply(self, thing: Any) -> None:
        self.kubectl("apply", "--filename", "-", input=json.dumps(thing))

    def run(self, command: Sequence[str], input: str | None = None, folder: Path | None = None) -> str:
        """Any program, in the control plane's network, as the administrator."""
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig), "PATH": programs.search_path()}
        done = subprocess.run(
            inside(self.network, command), capture_output=True, text=True, input=input, env=environment, cwd=folder
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
        return done.stdout

    def wait(self, what: str, ready: Callable[[], bool], log: str = "") -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not ready():
            assert time.monotonic() < deadline, f"{what} is not ready: {self.processes.log(log) if log else ''}"
            time.sleep(0.2)

    def _make_certificates(self, names: dict[str, str]) -> None:
        keys = self.folder / "pki"
        keys.mkdir(exist_ok=True)

        def openssl(*arguments: str) -> None:
            subprocess.run(["openssl", *arguments], cwd=keys, check=True, capture_output=True)

        new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl(
            "req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=iomesh-test", "-days", "30"
        )
        addresses = ",".join(f"IP:{ip}" for ip in dict.fromkeys(("127.0.0.1", SERVICE_ADDRESS, self.address)))
        alternatives = {"apiserver": f"DNS:localhost,DNS:kubernetes.default.svc,{addresses}"}
        alternatives |= {node: f"DNS:{node},IP:{node_address(number)}" for number, node in enumerate(self.nodes, 1)}
        for name, subject in {"apiserver": "/CN=kube-apiserver", **names}.items():
            extensions = f"subjectAltName={alternatives.get(name, f'DNS:{name}')}\n"
            (keys / f"{name}.ext").write_text(f"{extensions}extendedKeyUsage=serverAuth,clientAuth\n")
            openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject)
            openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                    "-out", f"{name}.crt", "-days", "30", "-extfile", f"{name}.ext")  # fmt: skip
            if name != "apiserver":
                self._write_kubeconfig(name)
        openssl("genrsa", "-out", "sa.key", "2048")
        openssl("rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")

    def _write_kubeconfig(self, user: str) -> None:
        keys = self.folder / "pki"
        server = {"server": f"https://{self.address}:{self.port}", "certificate-authority": str(keys / "ca.crt")}
        certificate = {"client-certificate": str(keys / f"{user}.crt"), "client-key": str(keys / f"{user}.key")}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": user, "user": certificate}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": "default"}}],
            "current-context": "test",
        }
        (self.folder / f"{user}.kubeconfig").write_text(json.dumps(config))  # JSON is YAML


class Cluster(ControlPlane):
    """With nodes `node1`, `node2`, ..., of this machine."""

    def __init__(self, folder: Path = STATE, nodes: int = 2) -> None:
        names = [f"node{number}" for number in range(1, nodes + 1)]
        super().__init__(folder, address=CONTROL_ADDRESS, network=CONTROL, nodes=names)

    def up(self) -> None:
        self._make_networks()
        self.start()
        self.start_controllers()
        images.make_image(self.folder / "pause.tar", [PAUSE_IMAGE], ["/bin/sleep", "2147483647"])
        for number in range(1, len(self.nodes) + 1):
            self._start_node(number)
        for node in self.nodes:
            ready = ("wait", "--for=condition=Ready", f"node/{node}", "--timeout=5s")
            self.wait(node, lambda ready=ready: self.kubectl_succeeds(*ready), f"{node}-kubelet")  # type: ignore[misc]

    def down(self) -> None:
        """Ends everything, also what another run left."""
        for file in sorted(self.folder.glob("node*-kubelet.pid")):
            self.processes.stop(file.stem)
            node = file.stem.removesuffix("-kubelet")
            for container in self._ctr(node, "container", "ls", "-q").split():
                self._ctr(node, "task", "rm", "-f", container)
            self.processes.stop(f"{node}-containerd")
        self.stop()
        self.processes.stop_all()
        places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in sorted(places, reverse=True):
            if place.startswith((f"{self.folder}/", "/run/iomesh-kube-")):
                subprocess.run(["umount", "-l", place], capture_output=True)
        for name in [path.name for path in Path("/var/run/netns").glob("*")]:
            if name.startswith(("iomesh-", "cni-")):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)
        for path in sorted(CGROUPS.glob("*/iomesh-node*/**/"), reverse=True):
            path.rmdir()
        for path in Path("/run").glob("iomesh-kube-*"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)  # shims end yet
        shutil.rmtree(self.folder, ignore_errors=True)

    def load(self, *archives: Path) -> None:
        """Images, into every node's containerd."""
        for node in self.nodes:
            for archive in archives:
                self._ctr(node, "images", "import", "--all-platforms", str(archive), check=True)

    def tag(self, image: str, name: str) -> None:
        """Gives a loaded image another name."""
        for node in self.nodes:
            self._ctr(node, "images", "tag", "--force", image, name, check=True)

    def daemon(self, node: str) -> int:
        """The number of the process that is the daemon of iomesh on this node."""
        wanted = {"daemon", "run", f"--set=name={node}"}
        return next(number for number, arguments in _running().items() if wanted.issubset(arguments))

    def processes_of_volumes(self) -> list[str]:
        """Commands of iomesh and those that serve attached volumes, on any node."""
        ours = ("iomesh", "nbdkit", "nbdfuse")
        own = {"--set=name=" + node for node in self.nodes} | {"/var/lib/iomesh-csi"}
        return [
            " ".join(arguments)
            for arguments in _running().values()
            if any(Path(each).name in ours for each in arguments[:2])
            and any(each.startswith(tuple(own)) for each in arguments)
        ]

    def helm(self, *arguments: str) -> str:
        return self.run([programs.program("helm"), *arguments])

    def _ctr(self, node: str, *arguments: str, check: bool = False) -> str:
        command = [programs.program("ctr"), "-a", _socket(node), "-n", "k8s.io", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def _make_networks(self) -> None:
        def ip(*arguments: str) -> None:
            subprocess.run(["ip", *arguments], check=True)

        ip("netns", "add", CONTROL)
        ip("-n", CONTROL, "link", "set", "lo", "up")
        ip("-n", CONTROL, "link", "add", "br0", "type", "bridge")
        ip("-n", CONTROL, "addr", "add", f"{CONTROL_ADDRESS}/24", "dev", "br0")
        ip("-n", CONTROL, "addr", "add", f"{SERVICE_ADDRESS}/32", "dev", "lo")  # the Service `kubernetes`
        ip("-n", CONTROL, "link", "set", "br0", "up")
        subprocess.run(inside(CONTROL, ["sysctl", "-qw", "net.ipv4.ip_forward=1"]), check=True)
        for number, node in enumerate(self.nodes, 1):
            network, address = _network(node), node_address(number)
            ip("netns", "add", network)
            ip("-n", network, "link", "set", "lo", "up")
            ip("-n", CONTROL, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", network)
            ip("-n", CONTROL, "link", "set", f"v{number}", "master", "br0", "up")
            ip("-n", network, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", network, "link", "set", "eth0", "up")
            ip("-n", network, "route", "add", "default", "via", CONTROL_ADDRESS)
            ip("-n", CONTROL, "route", "add", f"10.88.{number}.0/24", "via", address)

    def _start_node(self, number: int) -> None:
        node = self.nodes[number - 1]
        folder, network, cgroup = self.folder / node, _network(node), f"iomesh-{node}"
        (folder / "cni").mkdir(parents=True)
        for controller in [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]:
            if (controller / "cgroup.controllers").exists():
                continue
            (controller / cgroup).mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (controller / name).exists():
                    (controller / cgroup / name).write_text((controller / name).read_text())
        (folder / "cni" / "10-net.conflist").write_text(json.dumps(_pod_network(folder, number)))
        (folder / "containerd.toml").write_text(_CONTAINERD.format(
            folder=folder, node=node, socket=_socket(node), pause=PAUSE_IMAGE,
            shim=programs.program("containerd-shim-runc-v2"), runc=shutil.which("runc", path=programs.search_path()),
        ))  # fmt: skip
        keys = self.folder / "pki"
        (folder / "kubelet.json").write_text(json.dumps({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "failCgroupV1": False,
            "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{cgroup}", "podLogsDir": str(folder / "pod-logs"),
            "failSwapOn": False, "containerRuntimeEndpoint": f"unix://{_socket(node)}",
            "localStorageCapacityIsolation": False, "evictionHard": {},
            "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(keys / "ca.crt")}},
            "authorization": {"mode": "AlwaysAllow"}, "nodeStatusUpdateFrequency": "4s",
            "syncFrequency": "10s",  # how often it looks whether a volume has grown; 1m is usual
            "tlsCertFile": str(keys / f"{node}.crt"), "tlsPrivateKeyFile": str(keys / f"{node}.key"),
        }))  # fmt: skip
        self.processes.start(
            f"{node}-containerd",
            _in_own_places(folder, [programs.program("containerd"), "-c", str(folder / "containerd.toml")]),
            network,
        )
        self.wait("containerd", lambda: "Server:" in self._ctr(node, "version"), f"{node}-containerd")
        self._ctr(node, "images", "import", str(self.folder / "pause.tar"), check=True)
        self.processes.start(
            f"{node}-kubelet",
            [programs.program("kubelet"), "--kubeconfig", str(self.folder / f"{node}.kubeconfig"), "--config",
             str(folder / "kubelet.json"), "--hostname-override", node, "--node-ip", node_address(number), "--root-dir",
             KUBELET, "--cert-dir", str(folder / "kubelet-pki")],
            network,
            beside=f"{node}-containerd",
        )  # fmt: skip
        self.wait(node, lambda: self.kubectl_succeeds("get", "node", node), f"{node}-kubelet")


_CONTAINERD = """\
version = 3
root = "{folder}/containerd"
state = "/run/iomesh-kube-{node}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true     # without CAP_SYS_RESOURCE a pod's sandbox may not lower its score
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "{folder}/cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  runtime_path = "{shim}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "{runc}"
"""


def _in_own_places(folder: Path, command: Sequence[str]) -> list[str]:
    """The command in a new mount namespace, which ends with the last process in it."""
    steps = []
    for place in OWN_PLACES:
        own = folder / "places" / place.strip("/").replace("/", "-")
        own.mkdir(parents=True, exist_ok=True)
        Path(place).mkdir(parents=True, exist_ok=True)
        steps += [f"mount --bind {own} {place}", f"mount --make-rshared {place}"]  # for pods that mount for others
    script = " && ".join([*steps, 'exec "$@"'])
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh", *command]


def _pod_network(folder: Path, number: int) -> dict[str, Any]:
    addresses = {
        "type": "host-local",
        "dataDir": str(folder / "ipam"),
        "ranges": [[{"subnet": f"10.88.{number}.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "ipam": addresses}
    return {"cniVersion": "1.0.0", "name": "net", "plugins": [bridge, {"type": "loopback"}]}


def node_address(number: int) -> str:
    return f"10.77.0.{10 + number}"


def _network(node: str) -> str:
    return f"iomesh-{node}"


def _socket(node: str) -> str:
    return f"/run/iomesh-kube-{node}.sock"


def _signal(number: int, sign: int) -> bool:
    """Whether the process is there."""
    try:
        os.kill(number, sign)
    except ProcessLookupError:
        return False
    return True


def _running() -> dict[int, list[str]]:
    """The arguments of every process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            found[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(command: str, *arguments: str) -> None:
    found = len(list(STATE.glob("node*-kubelet.pid")))
    cluster = Cluster(nodes=int(arguments[0]) if command == "up" and arguments else found or 2)
    match command:
        case "up":
            cluster.down()
            cluster.__init__(nodes=len(cluster.nodes))  # type: ignore[misc]
            cluster.up()
        case "down":
            cluster.down()
        case "load":
            cluster.load(*map(Path, arguments))
        case "kubectl" | "helm" | "run":
            environment = os.environ | {"KUBECONFIG": str(cluster.kubeconfig), "PATH": programs.search_path()}
            wanted = [*([] if command == "run" else [command]), *arguments]
            os.execvpe("nsenter", inside(CONTROL, wanted), environment)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["help"]))
