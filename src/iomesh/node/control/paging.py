"""Pages of a list that is sorted by keys. A token is the key of the last item before it, so that a page neither repeats
nor leaves out what was there all the time, whatever is added or removed meanwhile."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from iomesh.errors import InvalidArgument

PAGE_MAX = 1000

ItemT = TypeVar("ItemT")


class PageRequest(Protocol):
    @property
    def page_size(self) -> int: ...

    @property
    def page_token(self) -> str: ...


def page(items: Sequence[ItemT], key: Callable[[ItemT], str], request: PageRequest) -> tuple[list[ItemT], str]:
    """The page that is requested, and the token of the next one; empty: there is none. Raises InvalidArgument."""
    after = _decode(request.page_token)
    left = [item for item in sorted(items, key=key) if not request.page_token or key(item) > after]
    count = min(request.page_size or PAGE_MAX, PAGE_MAX)
    found = left[:count]
    return found, _encode(key(found[-1])) if len(left) > count else ""


def _encode(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


def _decode(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise InvalidArgument(f"page_token {token[:64]!r} is not one of this API: begin with an empty one") from None
