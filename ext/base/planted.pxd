# Planted bugs, which show that the simulation finds bugs of their kind (docs/testing.md, "Planted bugs").
#
# planted(name) is the constant 0, and the binary does not contain the name, unless the engine is compiled with
# -DIOMESH_PLANTED (`make planted`). Then it is 1 in a process whose environment variable IOMESH_PLANTED has this name.
# tests/simulation/planted.py lists the bugs and their effects.

cdef extern from *:
    r"""
    #ifdef IOMESH_PLANTED
    #include <stdlib.h>
    #include <string.h>
    static inline int iomesh_planted(const char* bug) {
        static const char* chosen;
        if (chosen == NULL) {
            chosen = getenv("IOMESH_PLANTED");
            if (chosen == NULL) chosen = "";
        }
        return strcmp(chosen, bug) == 0;
    }
    #define IOMESH_CAN_PLANT 1
    #else
    #define iomesh_planted(bug) 0
    #define IOMESH_CAN_PLANT 0
    #endif
    """
    int planted "iomesh_planted" (const char* bug) noexcept nogil
    const bint CAN_PLANT "IOMESH_CAN_PLANT"
