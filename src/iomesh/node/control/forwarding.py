"""Calls to the control API of other nodes: a call is passed on once, to the node that is to answer it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from iomesh.api.channel import SERVICE, Channel, Credentials
from iomesh.errors import NotFound, Unavailable, Unreachable
from iomesh.metadata.nodes import NodeRecord
from iomesh.node.processes import boot_id

FORWARDED_BY = "iomesh-forwarded-by"  # invocation metadata: the node that passed the call on, which none does again


class _Open(NamedTuple):
    record: NodeRecord
    channel: Channel
    credentials: Credentials | None


class Forwarding:
    def __init__(self, me: str, nodes: Callable[[], dict[str, NodeRecord]]) -> None:
        """nodes: those of the cluster that run, by name."""
        self.credentials: Credentials | None = None
        self._me = me
        self._nodes = nodes
        self._open: dict[str, _Open] = {}
        self._former: list[Channel] = []

    async def call(self, node: str, method: str, request: Message, seconds: float | None, about: str = "") -> Message:
        """The other node's answer. about: for the message if it does not answer. Raises what it raises, and
        Unavailable."""
        channel = await self._channel(node, about)
        answer = GetMessageClass(SERVICE.methods_by_name[method].output_type)
        try:
            return await channel.call(method, request, answer, seconds=seconds, metadata=((FORWARDED_BY, self._me),))
        except Unreachable as error:
            raise Unavailable(
                f"node {node}{about} does not answer at {channel.address} ({error.reason}): try again, or see whether "
                "it runs (`iomesh status`)"
            ) from None

    async def close(self) -> None:
        while self._open:
            _, opened = self._open.popitem()
            await opened.channel.close()
        for channel in self._former:
            await channel.close()

    async def _channel(self, node: str, about: str) -> Channel:
        record = self._nodes().get(node)
        if record is None:
            known = ", ".join(sorted(self._nodes()))
            if about:
                raise Unavailable(f"node {node}{about} does not run: start it; nodes that run: {known}")
            raise NotFound(f"no node {node!r} of this cluster runs; these do: {known}")
        opened = self._open.get(node)
        if opened is not None and opened.record == record and opened.credentials is self.credentials:
            return opened.channel
        if not record.control_address or ("/" in record.control_address and record.boot != boot_id()):
            raise Unavailable(
                f"node {node}{about} has no address for clients on other machines: set control.listen in its "
                "configuration"
            )
        channel = Channel(record.control_address, self.credentials, name=f"node {node}")
        self._open[node] = _Open(record, channel, self.credentials)
        if opened is not None and opened.record == record:
            self._former.append(opened.channel)  # its calls are under way; a certificate is renewed once in years
        elif opened is not None:
            await opened.channel.close()
        return channel
