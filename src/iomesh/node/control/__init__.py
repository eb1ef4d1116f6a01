"""The control API of this node, which answers for the whole cluster (docs/api.md).

`server` binds its addresses and guards every call; `routing` says which node is to answer one, and `forwarding` passes
it on to that node, once; `service` has the calls themselves, `watching` the stream of changes, `paging` the pages of
lists.
"""

from iomesh.node.control.server import ControlServer

__all__ = ["ControlServer"]
