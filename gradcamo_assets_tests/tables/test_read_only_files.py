"""Check that several threads can read one file of the database, as DuckDB does."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import NamedTemporaryFile

from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.tables.read_only_files import ReadOnlyFiles, SharedFile

CONTENT = bytes(range(200))


def test_another_thread_does_not_move_the_position(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    with ReadOnlyFiles([str(path)]).open(str(path)) as file, ThreadPoolExecutor(1) as other:
        file.seek(50)
        assert other.submit(file.tell).result() == 0
        assert other.submit(file.read, 7).result() == CONTENT[:7]
        assert other.submit(file.seek, 190).result() == 190
        assert file.read(10) == CONTENT[50:60]
        assert other.submit(file.read).result() == CONTENT[190:]
        assert file.tell() == 60


_WHENCE = st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])


@given(st.lists(st.tuples(st.integers(0, 250), _WHENCE, st.one_of(st.none(), st.integers(-1, 250))), max_size=8))
def test_in_one_thread_it_reads_like_any_file(steps: list[tuple[int, int, int | None]]) -> None:
    expected = io.BytesIO(CONTENT)
    with NamedTemporaryFile() as written, SharedFile(written.name) as file:
        Path(written.name).write_bytes(CONTENT)
        for offset, whence, size in steps:
            moved = -min(offset, len(CONTENT)) if whence == os.SEEK_END else offset
            assert file.seek(moved, whence) == expected.seek(moved, whence)
            assert file.read(size) == expected.read(size)
            assert file.tell() == expected.tell()
