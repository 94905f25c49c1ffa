"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from uara.files import whole_file


def write(path: Path, text: str, *, fails: bool = False) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text)
        if fails:
            raise RuntimeError("disk")


def test_a_file_appears_with_its_folder_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "note.txt"
    write(path, "here")
    assert path.read_text() == "here"
    assert list(path.parent.iterdir()) == [path]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write(path, "old")
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_writer_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write(path, "old")
    with pytest.raises(RuntimeError, match="disk"):
        write(path, "half", fails=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
