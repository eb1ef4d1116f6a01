# Reading a journal when its store opens. See store/journal_replay.pyx.

from iomesh.engine.store.journal cimport Journal, Repairs
from iomesh.engine.format.layout cimport Superblock

# In a task: fills the journal's directory and prepares the journal for changes. 0, or a negative errno and `reason`
# (REASON_BYTES).
cdef int replay(Journal journal, const Superblock* superblock, Repairs* repairs, char* reason) noexcept nogil
cdef char* new_repair(Repairs* repairs) noexcept nogil         # buffer for REPAIR_BYTES of text
