"""The operator as kopf runs it: a change of an object begins a round at once, and time does.

Only events are handled, which leave no mark on the objects: no finalizer of an operator that is gone keeps an object
from being deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import kopf

from iomesh.errors import IomeshError
from iomesh.metadata.kubernetes_api import SERVICE_ACCOUNT, Access, KubernetesApi
from iomesh.node.logs import logger
from iomesh.operator.cluster import NODE_PODS, Reconciler
from iomesh.operator.objects import GROUP, VERSION, Objects

log = logger("operator")
ROUND_SECONDS = 15.0
GATHER_SECONDS = 0.5  # changes that come together cost one round


def run(access: Access, namespace: str, secret: str, listen: str) -> None:
    """Until it is stopped by a signal."""
    registry = kopf.OperatorRegistry()
    changed = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    @kopf.on.login(registry=registry)
    def login(**context: Any) -> kopf.ConnectionInfo | None:
        return _service_account(access) or kopf.login_with_kubeconfig(**context)

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.watching.server_timeout = 240
        tasks.append(asyncio.create_task(_rounds(access, namespace, secret, changed), name="rounds"))

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        for task in tasks:
            task.cancel()

    def on_event(**_: Any) -> None:
        changed.set()

    for plural in ("iomeshclusters", "storagenodes"):
        kopf.on.event(GROUP, VERSION, plural, registry=registry)(on_event)
    kopf.on.event("", "v1", "pods", labels=dict(NODE_PODS), registry=registry)(on_event)
    kopf.run(registry=registry, namespaces=[namespace], standalone=True, liveness_endpoint=f"http://{listen}/healthz")


def _service_account(access: Access) -> kopf.ConnectionInfo | None:
    """With the API server's address: kopf's own login needs the name kubernetes.default.svc, and so DNS. Called again
    when the token is refused."""
    if access.token_file is None:
        return None
    token = access.token_file.read_text().strip()
    return kopf.ConnectionInfo(server=access.server, ca_path=str(SERVICE_ACCOUNT / "ca.crt"), token=token)


async def _rounds(access: Access, namespace: str, secret: str, changed: asyncio.Event) -> None:
    api = KubernetesApi(access)
    reconciler, told = Reconciler(Objects(api, namespace), secret), ""
    try:
        while True:
            changed.clear()
            try:
                await reconciler.round()
                told = ""
            except IomeshError as error:
                if error.message != told:
                    log.warning("round failed; it is repeated", reason=error.message)
                told = error.message
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND_SECONDS):
                    await changed.wait()
            await asyncio.sleep(GATHER_SECONDS)
    finally:
        await api.close()
