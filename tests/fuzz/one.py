"""Runs one target under libFuzzer (atheris) until its time is up: `make fuzz` starts this, with the sanitizer preloaded.

Arguments: the target, then whatever libFuzzer takes (options, the folders of inputs). It never returns: libFuzzer ends the process.
"""

import sys

import atheris

from fuzz.targets import target


def main() -> None:
    with atheris.instrument_imports(include=["iomesh.exports"]):  # the one part that is Python; the compiler has instrumented the engine
        chosen = target(sys.argv[1])
    atheris.Setup([sys.argv[0], *sys.argv[2:]], chosen.fuzz_one)
    atheris.Fuzz()


main()
