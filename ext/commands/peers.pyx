# Commands on connections between nodes, and on the stores that are served to other nodes.
#
# A connection's command is answered when the connection has ended, so Python learns of its end as of any answer.

from libc.errno cimport EEXIST, EMFILE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release

from iomesh.engine.base.io cimport Operation
from iomesh.engine.base.reactor cimport Reactor, call_on
from iomesh.engine.base.task cimport wait, waited
from iomesh.engine.format.peer cimport ListedReplica
from iomesh.engine.replicas.peer cimport PEER_DETACHED
from iomesh.engine.replicas.remote cimport RemoteMember
from iomesh.engine.replicas.remote_node cimport RemoteNode
from iomesh.engine.replicas.served_store cimport ServedStore, ServedStores
from iomesh.engine.replicas.server cimport Server

from iomesh.engine.replicas.peer import PEER_ENDS
from iomesh.engine.replicas.server import SERVER_ENDS

cdef extern from "<unistd.h>" nogil:
    int close_descriptor "close" (int fd)


# ---------------------------------------------------------------------- served to another node

cdef class ServePeer(Command):
    def __cinit__(self, Server server, int fd):
        self.server, self.fd = server, fd
        self.reactor = server.reactor

    cdef int64_t run(self) noexcept nogil:
        cdef int number = self.server.io.add_connection(self.fd)
        if number < 0:
            close_descriptor(self.fd)
            return number
        self.server.connection = number
        self.server.ended.owner = <void*>self
        self.server.ended.done = served_ended
        self.server.start()
        return 0

    cdef void end(self, int64_t result) noexcept nogil:
        if result < 0:
            self.error = <int>-result
            self.tell()                                  # otherwise served_ended() does

    cdef object value(self):
        return {"requests": self.server.requests, "end": SERVER_ENDS[self.server.end]}


cdef void served_ended(Operation* operation) noexcept nogil:
    (<ServePeer>operation.owner).tell()


cdef class EndServedPeer(Command):
    def __cinit__(self, Server server):
        self.server = server
        self.reactor = server.reactor
        self.silent = True

    cdef int64_t run(self) noexcept nogil:
        self.server.stop()
        return 0


# ---------------------------------------------------------------------- another node

cdef class AttachPeer(Command):
    def __cinit__(self, RemoteNode node, Sources sources, int fd, uint32_t requests, uint64_t bytes):
        self.node, self.sources, self.fd, self.requests, self.bytes = node, sources, fd, requests, bytes
        self.reactor = node.reactor

    cdef int64_t run(self) noexcept nogil:
        cdef int number
        if self.node.peer.state != PEER_DETACHED:
            close_descriptor(self.fd)
            return -EEXIST
        number = self.node.io.add_connection(self.fd)
        if number < 0:
            close_descriptor(self.fd)
            return number
        self.node.owner = <void*>self
        self.node.lost = peer_ended
        self.sources.add(self.node)
        self.node.attach(number, self.requests, self.bytes)
        return 0

    cdef void end(self, int64_t result) noexcept nogil:
        if result < 0:
            self.error = <int>-result
            self.tell()                                  # otherwise peer_ended() does

    cdef object value(self):
        end = "silent" if self.node.silent else PEER_ENDS[self.node.peer.end]
        return {"calls": self.node.peer.calls, "end": end}


cdef void peer_ended(void* owner) noexcept nogil:
    (<AttachPeer>owner).node.lost = NULL
    (<AttachPeer>owner).tell()


cdef class DetachPeer(Command):
    def __cinit__(self, RemoteNode node):
        self.node = node
        self.reactor = node.reactor
        self.silent = True

    cdef int64_t run(self) noexcept nogil:
        self.node.detach()
        return 0


# ---------------------------------------------------------------------- the stores of this node

cdef struct TableCall:
    void* table                      # ServedStores
    void* served                     # ServedStore
    bint add


cdef int64_t table_body(void* argument) noexcept nogil:
    cdef TableCall* call = <TableCall*>argument
    if call.add:
        return 0 if (<ServedStores>call.table).add(<ServedStore>call.served) else -EMFILE
    (<ServedStores>call.table).remove(<ServedStore>call.served)
    return 0


cdef int tell_tables(
    ServedStore served, Reactor home, void** reactors, void** tables, int count, bint add
) noexcept nogil:
    cdef TableCall call
    cdef int i, result = 0
    call.served, call.add = <void*>served, add
    for i in range(count):
        call.table = tables[i]
        result = min(result, <int>call_on(<Reactor>reactors[i], home, table_body, &call))
    return result


cdef void withdraw_store(ServedStore served, Reactor home, void** reactors, void** tables, int count) noexcept nogil:
    cdef Operation stopped
    tell_tables(served, home, reactors, tables, count, False)
    waited(&stopped)
    served.stop(&stopped)
    wait(&stopped)


cdef class ServeStore(Command):
    def __cinit__(self, ServedStore served, list known):
        cdef int i
        self.served, self.known = served, known
        self.reactor = served.home
        self.silent = True
        self.tables = <void**>calloc(len(known), sizeof(void*))
        if self.tables is NULL:
            raise MemoryError("no memory for a list of reactors")
        for i in range(len(known)):
            self.tables[i] = <void*>known[i]

    def __dealloc__(self):
        release(self.tables)

    cdef int64_t run(self) noexcept nogil:
        return tell_tables(self.served, self.reactor, self.reactors, self.tables, self.reactor_count, True)


cdef class EraseCopies(Command):
    def __cinit__(self, Reactor reactor, list members, uint64_t epoch):
        cdef int i
        self.reactor, self.members, self.epoch, self.count = reactor, members, epoch, len(members)
        self.all = <void**>calloc(self.count + 1, sizeof(void*))
        if self.all is NULL:
            raise MemoryError("no memory for a list of devices")
        for i in range(self.count):
            self.all[i] = <void*>members[i]

    def __dealloc__(self):
        release(self.all)

    cdef int64_t run(self) noexcept nogil:
        cdef int i, result = 0
        for i in range(self.count):                      # as many as possible, whatever happens to others
            result = min(result, self.erase(<RemoteMember>self.all[i]))
        return result

    cdef int erase(self, RemoteMember member) noexcept nogil:
        cdef ListedReplica* listed = NULL
        cdef uint32_t count = 0, i
        cdef int result = member.list_there(&listed, &count)
        for i in range(count if result == 0 else 0):
            if result == 0:
                result = member.remove(listed[i].segment, self.epoch, NULL)
                self.segments += result == 0
        release(listed)
        return result

    cdef object value(self):
        return {"segments": self.segments}
