"""Structures at rest as tables for people. An invalid structure shows its fault first, in red."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from iomesh.cli.inspect.at_rest import ReplicaAtRest
from iomesh.cli.inspect.structures import Fields
from iomesh.cli.output import fields, jsonable, table
from iomesh.sizes import exact_size, short_size

STATES = {"live": "live", "dropped": "dropped by compaction"}
SKIPPED = {"valid", "fault", "entries", "index", "pointers", "empty", "payload_faults", "at", "offset"}


def verdict(found: Fields) -> Text:
    if found["valid"]:
        return Text("valid", style="green")
    return Text(f"not valid: {found.get('fault', 'unknown')}", style="yellow" if found.get("empty") else "red")


def value_of(name: str, value: Any) -> str:
    """One field in the form in which people compare it."""
    if isinstance(value, bytes):
        return value.hex()
    if name in ("crc", "previous_crc", "last_crc", "table_crc", "checksum") and isinstance(value, int):
        return f"{value:08x}"
    if name.endswith(("_bytes", "_offset", "offset")) and isinstance(value, int):
        return f"{value} ({exact_size(value)})"
    if isinstance(value, tuple):
        return pointer_text(value)
    if value is None:
        return "-"
    return str(jsonable(value))


def whole(found: Fields, title: str) -> RenderableType:
    """All fields of one structure below each other."""
    rows: list[tuple[str, object]] = [("", verdict(found))]
    rows += [(name.replace("_", " "), value_of(name, value)) for name, value in found.items() if name not in SKIPPED]
    return fields(rows, title=title)


def superblock(found: Fields, current: int | None) -> RenderableType:
    title = f"superblock at {exact_size(found['offset'])}" + (
        ", the one that counts" if found["offset"] == current else ""
    )
    return Group(whole(found, title), "")


def journal_area(area: Fields, entries: bool) -> RenderableType:
    lines: list[RenderableType] = [Text(f"{area['name']} (area {area['area']})", style="bold")]
    rows = [
        (
            exact_size(one["offset"]),
            one.get("index", "-"),
            one.get("generation", "-"),
            one.get("kind", "-"),
            len(one.get("entries", [])),
            verdict(one),
        )
        for one in area["blocks"]
    ]
    lines.append(
        table(">AT", ">INDEX", ">GENERATION", "KIND", ">ENTRIES", "", rows=rows) if rows else Text("empty", style="dim")
    )
    if entries:
        listed = [entry for one in area["blocks"] if one["valid"] for entry in one["entries"]]
        lines += [
            "",
            table(
                "CHANGE",
                "VOLUME",
                ">SEGMENT",
                "STATE",
                ">EPOCH",
                ">BLOCKS",
                ">FOOTER",
                "EXTENTS",
                rows=[
                    (
                        one["kind"],
                        bytes(one["volume"]).hex()[:8],
                        one["segment"],
                        one["state"],
                        one["epoch"],
                        one["blocks"],
                        one["footer_block"] or "-",
                        extents(one["extents"]),
                    )
                    for one in listed
                ],
            ),
        ]
    return Group(*lines, "")


def directory(document: Fields, replicas: list[ReplicaAtRest]) -> Iterator[RenderableType]:
    if document["half"] is None:
        yield Text("no directory", style="red")
    else:
        taken = document["slabs_taken"]
        yield Text(
            f"half {document['half']}, generation {document['generation']}, {document['journal_blocks']} journal "
            f"blocks; {taken} of {document['slabs']} slabs taken"
        )
    for note in document["notes"]:
        yield Text(note, style="yellow")
    rows = [
        (
            one.volume.hex()[:8],
            one.segment,
            one.state,
            one.epoch,
            one.stream,
            one.blocks,
            one.footer_block or "-",
            short_size(one.room * 4096),
            extents(one.extents),
        )
        for one in replicas
    ]
    yield (
        table("VOLUME", ">SEGMENT", "STATE", ">EPOCH", ">STREAM", ">BLOCKS", ">FOOTER", ">ROOM", "EXTENTS", rows=rows)
        if rows
        else Text("no segments", style="dim")
    )


def segment(document: Fields, with_entries: bool) -> Iterator[RenderableType]:
    it = document["segment"]
    yield Text(
        f"segment {it['segment']} of volume {it['volume'].hex()}: {it['state']}, {it['blocks']} blocks", style="bold"
    )
    if document["compacted"] is not None:
        yield from compacted(document["compacted"], with_entries)
    else:
        yield from records(document, with_entries)
    if document["footer"] is not None:
        yield ""
        yield whole(document["footer"], f"footer at {it['segment']}:{it['footer_block']}")


def compacted(found: Fields, with_entries: bool) -> Iterator[RenderableType]:
    """The remaining blocks of a compacted segment. Without entries only the faults are listed."""
    kept, dropped = found["live_blocks"], found["dropped_blocks"]
    yield Text(
        f"compacted: {kept} blocks live, its footer included; {dropped} dropped by compaction, with the records' "
        "headers"
    )
    if found["fault"]:
        yield Text(f"not valid: {found['fault']}", style="red")
    rows = [
        (one["at"], *entry_row(one), Text(one["fault"], style="red") if one["fault"] else STATES[one["state"]])
        for one in found["blocks"]
        if with_entries or one["fault"]
    ]
    if rows:
        yield table("AT", "KIND", "POSITION", ">COUNT", "CHECKSUM", "", rows=rows)


def records(document: Fields, with_entries: bool) -> Iterator[RenderableType]:
    yield table(
        "AT",
        ">SEQUENCE",
        ">STABLE",
        ">EPOCH",
        ">ENTRIES",
        ">PAYLOAD",
        "HOLDS",
        "",
        rows=[
            (
                one["at"],
                one.get("sequence", "-"),
                one.get("stable", "-"),
                one.get("epoch", "-"),
                one.get("entry_count", "-"),
                one.get("payload_blocks", "-"),
                holds(one),
                Text("; ".join(one["payload_faults"]), style="red") if one["payload_faults"] else verdict(one),
            )
            for one in document["records"]
        ],
    )
    if with_entries:
        for one in document["records"]:
            if one["valid"]:
                yield Text(f"\nrecord {one['sequence']} at {one['at']}", style="bold")
                yield entry_table(one)
    if document["ends"]:
        yield Text(f"nothing written from {document['ends']} on", style="dim")


def record(found: Fields) -> Iterator[RenderableType]:
    yield whole(found, f"record at {found['at']}")
    for fault in found["payload_faults"]:
        yield Text(fault, style="red")
    if found["valid"]:
        yield ""
        yield entry_table(found)


def footer(found: Fields, replica: ReplicaAtRest) -> Iterator[RenderableType]:
    yield whole(found, f"footer at {replica.segment}:{replica.footer_block}")
    if found.get("entries"):
        yield ""
        yield table("KIND", "POSITION", ">COUNT", "CHECKSUM", rows=[entry_row(one) for one in found["entries"]])


def checkpoint(found: Fields) -> Iterator[RenderableType]:
    yield whole(found, f"checkpoint at {found['at']}")
    index = [one for one in found.get("index", []) if one is not None]
    if index:
        yield table("SEGMENT TABLE'S INDEX", rows=[(pointer_text(one),) for one in index])


def node(found: Fields, *, whole: bool) -> Iterator[RenderableType]:
    level, index = found.get("level"), found.get("index")
    title = f"map node at {found['at']}" + (f", level {level}, index {index}" if level is not None else "")
    yield Text.assemble((title, "bold"), "  ", verdict(found))
    pointers: list[Any] = found.get("pointers", [])
    if "slot" in found and pointers:
        there = pointers[found["slot"]]
        yield Text(f"  slot {found['slot']}: {pointer_text(there) if there is not None else 'nothing is mapped'}")
    if whole and pointers:
        rows = [
            (slot, covers(level, index, slot), pointer_text(one))
            for slot, one in enumerate(pointers)
            if one is not None
        ]
        yield table(">SLOT", "COVERS", "POINTER", rows=rows) if rows else Text("nothing is mapped", style="dim")


def covers(level: int | None, index: int | None, slot: int) -> str:
    """The offset in the volume where a slot's range begins."""
    if level is None or index is None:
        return "-"
    return f"from {exact_size(((index << 8) + slot << 8 * level) * 4096)}"


def pointer_text(pointer: Any) -> str:
    segment, block, crc = pointer
    return f"{segment}:{block} crc {crc:08x}"


def holds(found: Fields) -> str:
    """The number of entries of each kind in a record."""
    counts: dict[str, int] = {}
    for entry in found.get("entries", []):
        kind = entry["kind"]
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def entry_table(found: Fields) -> RenderableType:
    segment, block = found["at"].split(":")
    at, rows = int(block) + 1, []
    for one in found["entries"]:
        has_payload = one["kind"] != "zero"
        rows.append((f"{segment}:{at}" if has_payload else "-", *entry_row(one)))
        at += has_payload
    return table("PAYLOAD AT", "KIND", "POSITION", ">COUNT", "CHECKSUM", rows=rows)


def entry_row(one: Fields) -> tuple[str, str, str, str]:
    position = str(one["position"])
    if one["kind"] == "map":
        position = f"level {one['level']}, index {one['index']}"
    elif one["kind"] == "table" and one["flags"]:
        position = f"index {position}"
    return one["kind"], position, str(one["count"]), f"{one['crc']:08x}" if one["kind"] != "zero" else "-"


def extents(found: Any) -> str:
    return " ".join(f"{first}+{count}" for first, count in found)
