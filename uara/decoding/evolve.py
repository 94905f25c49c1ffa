"""Changed copies of frozen states."""

from __future__ import annotations

from msgspec import structs

evolve = structs.replace
