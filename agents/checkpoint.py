"""Files of policies and of whole trainings: one dict each, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from envs.observation import ObservationSchema, schema
from uara.errors import UserError
from uara.files import whole_file

FORMAT = "uara-policy"
FORMAT_VERSION = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a dict of tensors and plain values, stamped with format and observation schema."""
    stamped = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "schema": schema().to_dict(),
        **content,
    }
    with whole_file(path) as temporary:
        torch.save(stamped, temporary)


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote; nothing in the file is executed.

    Raises:
        UserError: for a missing file, another kind of file, another format version, or another
            observation schema than this program's.
    """
    if not path.is_file():
        raise UserError(f"policy file '{path}' does not exist; give a file that `uara train` wrote")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for foreign bytes
        raise UserError(
            f"'{path}' cannot be read as a policy file ({type(error).__name__}); "
            "give a file that `uara train` wrote"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"'{path}' is no policy file; give a file that `uara train` wrote")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"'{path}' has format version {version}, this program reads {FORMAT_VERSION}; "
            "train the policy again"
        )
    stored = ObservationSchema.from_dict(content["schema"])
    if stored != schema():
        raise UserError(
            f"'{path}' was trained on observation schema version {stored.version}, this program "
            f"observes version {schema().version} ({_difference(stored)}); train the policy again"
        )
    return content


def _difference(stored: ObservationSchema) -> str:
    """Name the first group of features that differs."""
    for group in ("device", "pair", "server"):
        if getattr(stored, group) != getattr(schema(), group):
            return f"{group} features differ"
    return "features are equal"
