"""The engine's events about volumes: checkpoints to record, errors to log, lack of space for the cleaner."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from iomesh.engine.engine import Event
from iomesh.node.logs import logger
from iomesh.node.pointers import Pointers
from iomesh.node.volumes.parts import Parts

log = logger("volumes")


class Events:
    def __init__(self, parts: Parts, pointers: Pointers) -> None:
        self._volumes = parts.volumes
        self._stores = parts.stores
        self._pointers = pointers
        self.on_no_space: Callable[[], None] = lambda: None
        self.on_tight: Callable[[], None] = lambda: None

    def on_event(self, event: Event) -> None:
        volume = self._volumes.by_id(uuid.UUID(bytes=event.volume)) if event.volume else None
        name = volume.record.name if volume else None
        match event.kind:
            case "checkpoint" if volume is not None:
                self._pointers.move(volume, event.value)
            case "numbers" if volume is not None:
                self._pointers.promise(volume, event.value)
            case "fragment" if volume is not None:
                self._pointers.begin_fragment(volume, event.value)
            case "checkpoint" | "numbers" | "fragment":
                pass  # of a volume that has been deleted
            case "checksum" | "device":
                log.error(f"{event.kind} error", volume=name, **event.value)
            case "stalled":
                self._stores.stalled(event.value["store"])
            case "full_below" | "space_below":
                self._stores.full_below(event.value["store"], full=event.kind == "full_below")
            case "tight":
                self.on_tight()
            case "no_space":
                if volume is None or volume.waiting.begins(time.monotonic()):
                    log.warning("no space: writes wait for the cleaner", volume=name)
                self.on_no_space()
            case "refused":
                if volume is None or volume.refusing.begins(time.monotonic()):
                    log.error(
                        "no space: writes are refused; delete or trim something, or add a device",
                        volume=name,
                    )
            case _:
                log.info(event.kind.replace("_", " "), volume=name, **event.value)
