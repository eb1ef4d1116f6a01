"""An etcd of three members on loopback, with TLS in both directions. Each member can be killed, paused and started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path

from iomesh.metadata.etcd_api import EtcdAccess, etcd_access
from support.kubernetes.cluster import free_port
from support.run import pause

PROGRAM = shutil.which("etcd")
READY_SECONDS = 120.0  # against hangs alone


def etcd_is_missing() -> str:
    """Why the tests that need it are skipped; empty: it is there."""
    return "" if PROGRAM else "etcd is not installed (Debian's etcd-server)"


class Etcd:
    def __init__(self, folder: Path, members: int = 3, certificates: Path | None = None) -> None:
        """certificates: the folder of another one, whose certificates it has; None: new ones."""
        self.folder = folder
        folder.mkdir(parents=True)
        if certificates is None:
            self._make_certificates()
        else:
            for file in ("tls.crt", "tls.key"):
                shutil.copyfile(certificates / file, folder / file)
        self.ports = [(free_port(), free_port()) for _ in range(members)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def endpoints(self) -> list[str]:
        return [f"127.0.0.1:{client}" for client, _ in self.ports]

    @property
    def files(self) -> dict[str, str]:
        """By name of the key in the configuration's section metadata."""
        return {
            key: str(self.folder / file)
            for key, file in (("ca_file", "tls.crt"), ("certificate_file", "tls.crt"), ("key_file", "tls.key"))
        }

    def access(self, members: list[int] | None = None) -> EtcdAccess:
        endpoints = self.endpoints if members is None else [self.endpoints[member] for member in members]
        return etcd_access(endpoints, *self.files.values())

    def start(self) -> None:
        """Until every member has a leader."""
        for member in range(len(self.ports)):
            self.start_member(member)
        for member in range(len(self.ports)):
            self.wait(member)

    def start_member(self, member: int) -> None:
        client, peer = self.ports[member]
        tls = [
            flag
            for side in ("", "peer-")
            for flag in (f"--{side}cert-file=tls.crt", f"--{side}key-file=tls.key", f"--{side}trusted-ca-file=tls.crt",
                         f"--{side}client-cert-auth")
        ]  # fmt: skip
        everybody = ",".join(f"m{each}=https://127.0.0.1:{peer}" for each, (_, peer) in enumerate(self.ports))
        with (self.folder / f"m{member}.log").open("ab") as log:
            self._processes[member] = subprocess.Popen(
                [str(PROGRAM), "--name", f"m{member}", "--data-dir", f"m{member}", *tls,
                 "--listen-client-urls", f"https://127.0.0.1:{client}",
                 "--advertise-client-urls", f"https://127.0.0.1:{client}",
                 "--listen-peer-urls", f"https://127.0.0.1:{peer}",
                 "--initial-advertise-peer-urls", f"https://127.0.0.1:{peer}",
                 "--initial-cluster", everybody, "--heartbeat-interval", "100", "--election-timeout", "1000"],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder,
            )  # fmt: skip

    def wait(self, member: int) -> None:
        """Until it has a leader."""
        files = self.files
        tls = ssl.create_default_context(cafile=files["ca_file"])
        tls.load_cert_chain(files["certificate_file"], files["key_file"])
        give_up = time.monotonic() + READY_SECONDS
        while True:
            try:
                with urllib.request.urlopen(
                    f"https://{self.endpoints[member]}/health", context=tls, timeout=5
                ) as answer:
                    if json.load(answer)["health"] == "true":
                        return
                    reason: object = "it has no leader"
            except OSError as error:
                reason = error
            if time.monotonic() > give_up:
                log = (self.folder / f"m{member}.log").read_text()
                raise AssertionError(f"etcd is not ready ({reason}): {log[-2000:]}")
            time.sleep(0.1)

    def kill(self, member: int) -> None:
        process = self._processes.pop(member)
        process.kill()
        process.wait()

    def pause(self, member: int) -> None:
        pause(self._processes[member].pid)

    def go_on(self, member: int) -> None:
        os.kill(self._processes[member].pid, signal.SIGCONT)

    def stop(self) -> None:
        for member in list(self._processes):
            self.kill(member)

    def _make_certificates(self) -> None:
        """One for all, which is its own authority: of a server at 127.0.0.1, and of a client."""
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", "/CN=etcd", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", "tls.key", "-out", "tls.crt"],
            cwd=self.folder, check=True, capture_output=True,
        )  # fmt: skip
