# Clients of a simulation run, connected to its volumes over the world's network. See simulation/clients.pyx.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec
from iomesh.engine.simulation.prng cimport Prng
from iomesh.engine.base.io cimport Io, Operation
from iomesh.engine.exports.nbd.connection cimport NbdConnection
from iomesh.engine.volume.volume cimport Volume
from iomesh.engine.simulation.world cimport World

cdef enum:
    CLIENTS = 4                      # at once: several connections to one volume
    CALLS = 32                       # of one client at once
    CALLS_PER_SEND = 8
    RECEIVED_BYTES = 64 * 1024
    REPLY_BYTES_MAX = 64             # of a reply before its data

cdef enum ClientState:
    AWAY, CONNECTED, LEAVING

cdef struct ClientCall:              # a client's request
    void* tag                        # the caller's; NULL: free
    uint16_t command
    uint64_t cookie
    uint64_t offset                  # bytes
    uint32_t bytes
    uint32_t came                    # received of a read's data
    int error                        # of a read, from its chunks
    char* data                       # to write, or the buffer for a read's data
    char header[32]
    ClientCall* next                 # in the list of unsent ones

cdef struct Client:
    void* all                        # Clients
    uint32_t place
    ClientState state
    int connection                   # the client's end
    void* server                     # NbdConnection, the engine's end; NULL: ended and released
    bint server_ended
    bint structured
    bint parting                     # it is to disconnect
    bint over                        # nothing more will be received
    bint receiving
    bint sending
    bint watching                    # the timer `clock` is running
    Operation receive
    Operation send
    Operation clock
    int64_t heard_ns                 # when data was last received, or the first call made
    int64_t left_ns
    iovec parts[2 * CALLS_PER_SEND]
    ClientCall calls[CALLS]
    uint32_t open_calls
    ClientCall* unsent_first
    ClientCall* unsent_last
    # the reply being received
    char reply[REPLY_BYTES_MAX]
    uint32_t have                    # bytes of its header so far, of `need`
    uint32_t need
    ClientCall* reading              # whose data follow
    char* into
    uint32_t left
    bint ends                        # its answer is complete with this data
    char received[RECEIVED_BYTES]

cdef class Clients:
    cdef World world
    cdef Io io
    cdef Volume volume
    cdef int face
    cdef list servers                # keeps them alive
    cdef Client* all
    cdef uint32_t most
    cdef Prng prng
    cdef uint64_t cookies
    cdef bint leaving
    cdef bint lossy                  # sent data may never arrive: clients give up after a timeout
    cdef readonly uint64_t connections
    cdef readonly uint64_t calls
    cdef readonly uint64_t lost      # calls that are never answered
    cdef char words[128]             # the error message; empty: none
    cdef void* owner
    cdef void (*answered)(void* owner, void* tag, int error) noexcept nogil      # error: of the protocol, 0: none
    cdef void (*vanished)(void* owner, void* tag) noexcept nogil                 # never answered, and ended

    # A request of a block device's client: command and flags are NBD's. False: not now.
    cdef bint ask(
        self, uint16_t command, uint16_t flags, uint64_t offset, uint32_t bytes, char* data, void* tag
    ) noexcept nogil
    cdef void turn(self) noexcept nogil                  # between two turns of the reactor: releases ended clients
    cdef bint leave(self) noexcept nogil                 # all disconnect; call it until it returns True: none is left
    cdef bint connect(self, Client* client) noexcept with gil
    cdef void forget(self, Client* client) noexcept with gil
    cdef uint64_t draw(self, uint64_t limit) noexcept nogil
    cdef void begin_send(self, Client* client) noexcept nogil
    cdef void begin_receive(self, Client* client) noexcept nogil
    cdef void watch(self, Client* client) noexcept nogil
    cdef void heard(self, Client* client, const char* data, uint32_t bytes) noexcept nogil
    cdef void header_came(self, Client* client) noexcept nogil
    cdef ClientCall* call_of(self, Client* client) noexcept nogil
    cdef void data_comes(
        self, Client* client, ClientCall* call, uint64_t offset, uint32_t bytes, bint ends
    ) noexcept nogil
    cdef void end_call(self, Client* client, ClientCall* call, int error) noexcept nogil
    cdef void leave_politely(self, Client* client) noexcept nogil
    cdef void look(self, Client* client) noexcept nogil
    cdef void hang_up(self, Client* client) noexcept nogil
    cdef void settle(self, Client* client, NbdConnection server) noexcept nogil
    cdef void fault(self, const char* words, uint64_t a, uint64_t b) noexcept nogil
