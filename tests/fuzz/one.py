"""Runs one target under libFuzzer (atheris) until its time is up: __main__.py starts it.

Arguments: the target, then whatever libFuzzer takes (options, the folders of inputs). It never returns: libFuzzer ends
the process.
"""

import shlex
import sys

import atheris

from fuzz.targets import target


def main() -> None:
    with atheris.instrument_imports(
        include=["iomesh.exports", "iomesh.peers"]
    ):  # the parts that are Python; the compiler has instrumented the engine
        chosen = target(sys.argv[1])
    # As a shell would start it again: -merge=1 does.
    itself = shlex.join([sys.executable, "-m", "fuzz.one", sys.argv[1]])
    atheris.Setup([itself, *sys.argv[2:]], chosen.fuzz_one)
    atheris.Fuzz()


main()
