"""Changed copies of frozen states, some twenty times faster than `dataclasses.replace`."""

from __future__ import annotations

from typing import TypeVar

State = TypeVar("State")


def evolve(state: State, **changes: object) -> State:
    """Copy a frozen dataclass without slots, with some fields changed.

    Neither `__init__` nor `__post_init__` runs; unknown names are a defect of the caller.
    """
    copy = object.__new__(type(state))
    fields = copy.__dict__
    fields.update(state.__dict__)
    fields.update(changes)
    assert len(fields) == len(state.__dict__), f"unknown fields among {sorted(changes)}"
    return copy
