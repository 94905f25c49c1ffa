"""Keeps config fields that are younger than the first stored hashes out of dumps while unused."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, SerializerFunctionWrapHandler


def dump_without_defaults(
    model: BaseModel, dump: SerializerFunctionWrapHandler, names: tuple[str, ...]
) -> dict[str, Any]:
    """Dump a config without those of the named fields that are at their defaults.

    So a config that does not use a younger option has the dump, and the hash, that it always had.

    Args:
        model: the config.
        dump: pydantic's own serialiser.
        names: fields to leave out at their defaults.
    """
    content: dict[str, Any] = dump(model)
    for name in names:
        if getattr(model, name) == type(model).model_fields[name].default:
            content.pop(name, None)
    return content
