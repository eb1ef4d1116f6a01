"""The engine's nogil functions never call into Python: `make annotate` checks the C that Cython generated for them.

It turns the yellow lines of `cython --annotate` into a check. It covers every function declared `nogil`, in every part
of the engine: reads and writes, and also bring-up, recovery and checkpoints, which run on the same threads. It excludes
what Python calls: constructors, properties, and the methods of engine.pyx and of the views for tests. Cython does not
allow a nogil function to call those.

    tools/annotate.py BUILD_DIRECTORY
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ENGINE = Path("ext")
PACKAGE = "iomesh.engine"

CLASS = re.compile(r"^cdef\s+class\s+(\w+)")
START = re.compile(
    r"^(\s*)cdef\s+(?!class\b|extern\b|struct\b|packed\b|enum\b|union\b|public\b|readonly\b)[^=]*?(\w+)\s*\("
)
C_FUNCTION = re.compile(
    r"^(?:static|CYTHON_INLINE|__PYX_EXTERN_C)[^;={}]*?\b(?P<name>__pyx_f_\w+)\([^;{}]*\)\s*\{\n(?P<body>.*?)^\}$",
    re.MULTILINE | re.DOTALL,
)
PYTHON_CALL = re.compile(r"\b(?P<call>_?Py[A-Z]\w*|__Pyx_(?!RefNannyDeclarations|NOREFCOUNT)[A-Z]\w*)\s*\(")
SOURCE_LINE = re.compile(r'^\s*/\* "(?P<file>[^"]+)":(?P<line>\d+)$', re.MULTILINE)


@dataclass(frozen=True)
class Function:
    path: Path
    line: int
    name: str
    c_name: str


def main() -> int:
    build = Path(sys.argv[1])
    checked, unused, faults = 0, [], []
    bodies: dict[str, dict[str, str]] = {}
    for generated in sorted((build / "ext").rglob("*.pyx.c")):
        text = generated.read_text()
        bodies[str(generated)] = {found["name"]: found["body"] for found in C_FUNCTION.finditer(text)}
    for source in sorted([*ENGINE.rglob("*.pyx"), *ENGINE.rglob("*.pxd")]):
        for function in nogil_functions(source):
            found = [module[function.c_name] for module in bodies.values() if function.c_name in module]
            if not found and source.suffix == ".pyx":
                faults.append(f"{source}:{function.line}: {function.name} is not in the C code of {build}: build first")
            elif not found:
                unused.append(function.name)
            else:
                checked += 1
                faults += [fault for body in found[:1] for fault in python_calls(function, body)]
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{checked} nogil functions of the engine were read, {len(faults)} calls into Python found")
    if unused:
        print(f"inline and used by no part yet: {', '.join(unused)}")
    return 1 if faults or not checked else 0


def nogil_functions(path: Path) -> list[Function]:
    """Nogil functions that a file defines: their headers contain `nogil` and end in a colon."""
    functions = []
    lines = [line.split("#")[0].rstrip() for line in path.read_text().splitlines()]
    owner = ""
    for number, line in enumerate(lines):
        if line and not line[0].isspace():
            owner = found[1] if (found := CLASS.match(line)) else ""
        if not (start := START.match(line)):
            continue
        header, following = line, number + 1
        while header.count("(") > header.count(")"):
            header += " " + lines[following].strip()
            following += 1
        if header.endswith(":") and re.search(r"\)[^()]*\bnogil:$", header):
            words = [
                *PACKAGE.split("."),
                *path.relative_to(ENGINE).with_suffix("").parts,
                *([owner] if start[1] else []),
            ]
            c_name = "__pyx_f_" + "".join(f"{len(word)}{word}_" for word in words) + start[2]
            functions.append(Function(path, number + 1, f"{owner}.{start[2]}" if start[1] else start[2], c_name))
    return functions


def python_calls(function: Function, body: str) -> list[str]:
    faults = []
    places = [(found.start(), int(found["line"])) for found in SOURCE_LINE.finditer(body)]
    code = re.sub(r"/\*.*?\*/", lambda comment: " " * len(comment[0]), body, flags=re.DOTALL)
    for found in PYTHON_CALL.finditer(code):
        line = next((number for start, number in reversed(places) if start < found.start()), function.line)
        faults.append(f"{function.path}:{line}: {function.name} calls {found['call']}")
    return faults


if __name__ == "__main__":
    sys.exit(main())
