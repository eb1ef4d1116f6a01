"""The CSI driver on a kernel that has an NBD client: it runs in a guest that sees this machine's files, and attaches
volumes of a daemon on this machine, which is killed under load; and it is killed itself."""

from __future__ import annotations

import asyncio
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from support import relay
from support.amount import Amount
from support.guest import guest
from support.trial import Trial

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "guest"  # of the kernel
SECONDS = 3600  # a guest is ten times slower than its machine
GATEWAY = "10.0.2.2"


@contextmanager
def relayed(path: str) -> Iterator[int]:
    """A port of this machine for a unix socket."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(relay.serve("127.0.0.1:0", path))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@contextmanager
def orders(act: Callable[[], None]) -> Iterator[int]:
    """A port at which every connection has this done."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            act()
            self.request.sendall(b"done")

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


@pytest.mark.skipif(
    any(ROOT.is_relative_to(folder) for folder in ("/tmp", "/var/tmp")), reason="the guest has folders of its own there"
)
@pytest.mark.timeout(2 * SECONDS)
def test_volumes_are_attached_with_the_kernels_nbd_client(
    new_trial: Callable[..., Trial], room: Path, amount: Amount
) -> None:
    trial = new_trial("--device-size", "8Gi", "--size", "16Mi")
    (nbd,) = parse_qs(urlsplit(trial.uri).query)["socket"]

    def restart() -> None:
        trial.crash()
        trial.start()

    with relayed(trial.control) as control_port, relayed(nbd) as nbd_port, orders(restart) as orders_port:
        relays = {trial.control: control_port, nbd: nbd_port}
        started = "\n".join(
            f"{sys.executable} -m support.relay {path} {GATEWAY}:{port} &" for path, port in relays.items()
        )
        script = f"""
        cd {ROOT}
        export PYTHONPATH={ROOT}/tests
        {started}
        {sys.executable} -m guest.csi_in_guest {trial.control} {GATEWAY}:{orders_port} {"soak" if amount.soak else ""}
        dmesg | grep "I/O error" || echo "no I/O error"
        """
        with guest(room, CACHE, script, whole=True, seconds=SECONDS) as lines:
            seen = list(lines)
    for line in ("killed under load", "killed at each step", "no I/O error"):
        assert line in seen, "\n".join(seen[-40:])
