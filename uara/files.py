"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Lend a temporary name beside a file and move what was written there into its place.

    Args:
        path: the file; its folder is made where it is missing.

    Yields:
        The name to write to. Where the block raises, nothing is left and the file stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # torch names the root of its archives after the file without its last suffix: the process
    # belongs into that suffix, or equal contents would not give equal bytes.
    temporary = path.with_name(f"{path.name}.partial{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
