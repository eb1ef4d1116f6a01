"""Converts a message of iomesh.proto to the struct of the same name in model.py, and back.

Fields are matched by name. So are enum values: VOLUME_STATE_SERVING is VolumeState.SERVING; a number that only a newer
node knows becomes UNSPECIFIED. Timestamps are datetimes in UTC; an absent one is None.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from google.protobuf.message import Message

from iomesh.api.model import Failure
from iomesh.api.status import error_of
from iomesh.errors import IomeshError, meaning

UNIONS = (UnionType, Union)  # `A | B` is one type or the other, depending on A
StructT = TypeVar("StructT", bound=msgspec.Struct)
MessageT = TypeVar("MessageT", bound=Message)


def to_struct(kind: type[StructT], message: Message) -> StructT:
    return kind(
        **{
            name: None
            if get_origin(hint) in UNIONS and not message.HasField(name)
            else _to_value(hint, getattr(message, name), message.DESCRIPTOR.fields_by_name[name].enum_type)
            for name, hint in _hints(kind).items()
        }
    )


def to_message(kind: type[MessageT], struct: msgspec.Struct) -> MessageT:
    message = kind()
    _fill(message, struct)
    return message


@cache
def _hints(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return get_type_hints(kind)


def _to_value(hint: Any, value: Any, values: Any) -> Any:
    if get_origin(hint) is list:
        (item,) = get_args(hint)
        return [_to_value(item, each, values) for each in value]
    if get_origin(hint) in UNIONS:  # with None
        return _to_value(get_args(hint)[0], value, values)
    if get_origin(hint) is dict:
        _, item = get_args(hint)
        return {key: _to_value(item, value[key], values) for key in value}
    if hint is Failure:
        error = error_of(value) or IomeshError(value.message)
        return Failure(kind=type(error).__name__, message=error.message, exit_code=meaning(error).exit_code)
    if hint is datetime:
        return value.ToDatetime(tzinfo=UTC)
    if issubclass(hint, msgspec.Struct):
        return to_struct(hint, value)
    if issubclass(hint, enum.StrEnum):
        known = values.values_by_number.get(value)
        name = known.name.removeprefix(_enum_prefix(hint)) if known else "UNSPECIFIED"
        return hint[name] if name in hint.__members__ else hint["UNSPECIFIED"]
    return value


def _fill(message: Message, struct: msgspec.Struct) -> None:
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        target = getattr(message, name)
        if isinstance(value, Mapping):
            for key, each in value.items():
                if isinstance(each, msgspec.Struct):
                    _fill(target[key], each)
                else:
                    target[key] = each
        elif isinstance(value, list):
            for each in value:
                if isinstance(each, msgspec.Struct):
                    _fill(target.add(), each)
                else:
                    target.append(each)
        elif isinstance(value, msgspec.Struct):
            target.SetInParent()
            _fill(target, value)
        elif isinstance(value, datetime):
            target.FromDatetime(value)
        elif isinstance(value, enum.StrEnum):
            setattr(message, name, _enum_prefix(type(value)) + value.name)
        elif value is not None:
            setattr(message, name, value)


def _enum_prefix(kind: type[enum.Enum]) -> str:
    """By protobuf's style, each value of an enum VolumeState begins with VOLUME_STATE_."""
    words = "".join("_" + letter if letter.isupper() else letter for letter in kind.__name__)
    return words.lstrip("_").upper() + "_"
