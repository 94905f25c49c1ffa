"""Records as Parquet files: one row per record, one column per field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from uara.files import whole_file


def write_parquet(path: Path, records: Sequence[msgspec.Struct]) -> None:
    """Write records of one kind; the file appears whole or not at all.

    Args:
        path: file.
        records: at least one, so that the columns have types.
    """
    assert records, f"no record for {path.name}"
    names = [field.name for field in msgspec.structs.fields(type(records[0]))]
    columns = {name: [getattr(record, name) for record in records] for name in names}
    with whole_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
