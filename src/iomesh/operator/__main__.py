"""`python -m iomesh.operator TASK`: `run` the operator, or the `agent` beside a daemon; `identity` gives a node its
certificates before the daemon starts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import sys
from pathlib import Path

from iomesh.api.client import DEFAULT_ADDRESS
from iomesh.errors import IomeshError, meaning
from iomesh.metadata.kubernetes_api import Access, KubernetesApi, find_access
from iomesh.node import logs
from iomesh.node.config import LogConfig
from iomesh.operator.identity import adopt_identity
from iomesh.operator.objects import Objects


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="iomesh.operator")
    parser.add_argument("task", choices=("run", "agent", "identity"))
    parser.add_argument("--kubeconfig", default="", help="default: the service account of the pod")
    parser.add_argument("--namespace", default="", help="default: the pod's, or that of the kubeconfig")
    parser.add_argument("--secret", default="iomesh-cluster", help="run: the Secret with the cluster's certificates")
    parser.add_argument("--listen", default="0.0.0.0:9745", help="run: health over HTTP")
    parser.add_argument(
        "--node", default=os.environ.get("NODE_NAME", platform.node()), help="agent, identity: the daemon's name"
    )
    parser.add_argument("--control", default=DEFAULT_ADDRESS, help="agent: the daemon's control API")
    parser.add_argument("--secret-dir", type=Path, default=Path("/etc/iomesh-secret"), help="identity: the Secret")
    parser.add_argument("--directory", type=Path, default=Path("/var/lib/iomesh/cluster"), help="identity: to fill")
    options = parser.parse_args(arguments)
    logs.configure(LogConfig())
    try:
        if options.task == "identity":
            made = adopt_identity(options.secret_dir, options.directory, options.node)
            print(f"{options.directory}: {'made' if made else 'unchanged'}")
            return 0
        access = find_access(options.kubeconfig)
        namespace = options.namespace or access.namespace
        if options.task == "agent":
            asyncio.run(_agent(access, namespace, options.node, options.control))
        else:
            from iomesh.operator.handlers import run  # kopf is in the operator's image alone

            run(access, namespace, options.secret, options.listen)
    except IomeshError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return meaning(error).exit_code
    except KeyboardInterrupt:
        pass
    return 0


async def _agent(access: Access, namespace: str, node: str, control: str) -> None:
    from iomesh.operator.agent import Agent

    api = KubernetesApi(access)
    running = asyncio.current_task()
    assert running is not None
    for number in (signal.SIGTERM, signal.SIGINT):  # the first process of a container has no default for these
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await Agent(Objects(api, namespace), node, control).run()
    finally:
        await api.close()


if __name__ == "__main__":
    sys.exit(main())
