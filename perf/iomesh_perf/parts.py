"""The engine part that a function belongs to: every part is a module of its own, so its file's name identifies it."""

import re
from collections.abc import Mapping

_MANGLED = re.compile(r"__pyx_[a-z]+_6iomesh_6engine_(\d+)")


def part_of(object_file: str, function: str) -> str:
    """ "kernel", the name of a part of the engine ("log"), or the library's name."""
    name = object_file.rpartition("/")[2]
    if "kernel" in object_file or name in ("vmlinux", "[guest.kernel.kallsyms]"):
        return "kernel"
    if match := _MANGLED.search(function):
        # Cython prefixes each name with its length: 3log_3Log_append is append of the class Log in the module log.
        return function[match.end() :][: int(match[1])]
    return re.split(r"\.so|\.cpython", name)[0] or "?"


def short(function: str) -> str:
    """The readable name of a Cython function: __pyx_f_6iomesh_6engine_3log_3Log_append -> Log.append."""
    match = _MANGLED.search(function)
    if match is None:
        return function
    rest, words = function[match.end() :][int(match[1]) :], []
    while rest.startswith("_"):
        rest = rest[1:]
        sized = re.match(r"(\d+)", rest)
        if sized is None or len(rest) < sized.end() + int(sized[1]):
            words.append(rest)
            break
        words.append(rest[sized.end() : sized.end() + int(sized[1])])
        rest = rest[sized.end() + int(sized[1]) :]
    return ".".join(word for word in words if word) or function


def by_part(costs: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Costs by (object file, function) summed up by part, the greatest first."""
    parts: dict[str, float] = {}
    for (object_file, function), cost in costs.items():
        part = part_of(object_file, function)
        parts[part] = parts.get(part, 0) + cost
    return dict(sorted(parts.items(), key=lambda item: -item[1]))
