# Bugs that are planted, to see whether the simulated world finds them (docs/testing.md, "Planted bugs").
#
# planted(name) is the constant 0, and the name is nowhere, unless the engine was compiled with -DIOMESH_PLANTED (`make planted`): then it is 1 in
# a process whose environment names this bug in IOMESH_PLANTED. The list, with what each does, is tests/simulation/planted.py.

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
