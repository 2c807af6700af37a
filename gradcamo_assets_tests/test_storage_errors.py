"""A disk that refuses to write is explained by assets and commands, and changes no stored file."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import polars as pl
import pytest
import sqlalchemy
from click.testing import CliRunner
from deltalake.exceptions import DeltaError, TableNotFoundError

from gradcamo_assets.cli import main
from gradcamo_assets.defs.assets import ASSETS
from gradcamo_assets.errors import GradcamoError, PlateError, StoreError
from gradcamo_assets.storage import write_bytes
from gradcamo_assets.storage_errors import explain, explain_storage_errors, explained_storage_errors

FULL, READ_ONLY, NO_PERMISSION = "the disk is full", "the file system is read-only", "this user may not open the file"
# What the libraries raised on a full and on a read-only tmpfs.
RAISED = [
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), FULL),
    (sqlite3.OperationalError("database or disk is full"), FULL),
    (sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full")), FULL),
    (duckdb.IOException('IO Error: Could not write file "/lab/a.duckdb": No space left on device'), FULL),
    (DeltaError("Generic LocalFileSystem error: Unable to copy data to file: No space left on device"), FULL),
    (pl.exceptions.ComputeError("parquet: underlying IO error: No space left on device (os error 28)"), FULL),
    (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/lab/a"), "the disk quota of this user is used up"),
    (OSError(errno.EROFS, os.strerror(errno.EROFS), "/lab/a"), READ_ONLY),
    (OSError("Read-only file system (os error 30): /lab/a.parquet"), READ_ONLY),
    (duckdb.IOException('IO Error: Cannot open file "/lab/a.duckdb": Read-only file system'), READ_ONLY),
    (TableNotFoundError('Could not create directory: Os { code: 30, message: "Read-only file system" }'), READ_ONLY),
    (sqlite3.OperationalError("attempt to write a readonly database"), READ_ONLY),
    (sqlite3.OperationalError("unable to open database file"), NO_PERMISSION),
    (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/lab/a"), NO_PERMISSION),
    (PermissionError(errno.EPERM, os.strerror(errno.EPERM), "/lab/a"), NO_PERMISSION),
]  # fmt: skip


@pytest.mark.parametrize(("error", "problem"), RAISED, ids=lambda value: type(value).__name__)
def test_errors_of_each_library_are_explained(error: Exception, problem: str) -> None:
    with pytest.raises(GradcamoError) as raised, explained_storage_errors():
        raise error
    assert raised.value.problem.startswith(problem) and raised.value.__cause__ is error
    assert raised.value.path == getattr(error, "filename", None)
    wrapped = StoreError("the table cannot be written", "Try again.")
    wrapped.__cause__ = error
    explained = explain(wrapped)
    # With its place and reason, the error of a file that may not be opened is better than the explanation.
    assert explained is None if problem == NO_PERMISSION else explained.problem.startswith(problem)


@pytest.mark.parametrize(
    "error",
    [
        PlateError("the image is damaged", "Export it again.", plate="P1"),
        FileNotFoundError(errno.ENOENT, "No such file", "/lab/a"),
        ValueError("no"),
        dg.Failure("No field could be processed"),
    ],
)
def test_other_errors_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, explained_storage_errors():
        raise error
    assert raised.value is error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_device_is_explained() -> None:
    @explain_storage_errors
    def write() -> None:
        Path("/dev/full").write_bytes(b"0" * 100_000)

    with pytest.raises(GradcamoError, match=r"the disk is full \(\[Errno 28\].*gradcamo prune"):
        write()


def test_used_up_inodes_are_told_from_used_up_space(monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/lab/plates/a")
    for found, problem in (((1000, 0), "no inodes left"), ((1000, 5), FULL), ((0, 0), FULL)):
        values: Any = type("Found", (), dict(zip(("f_files", "f_favail"), found, strict=True)))
        monkeypatch.setattr(os, "statvfs", lambda _, values=values: values)
        assert problem in str(explain(error))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    result = CliRunner().invoke(main, ["synth", str(tmp_path / "new")])
    assert result.exit_code == 1 and NO_PERMISSION in result.stderr and str(tmp_path) in result.stderr


@pytest.mark.parametrize(("number", "problem"), [(errno.ENOSPC, FULL), (errno.EROFS, READ_ONLY)])
def test_commands_print_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, problem: str) -> None:
    def refuse(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    result = CliRunner().invoke(main, ["synth", str(tmp_path / "new")])
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"gradcamo: file {tmp_path / 'new'}: {problem}")


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_bytes(file, b"old")
    write = Path.write_bytes

    def write_a_part(path: Path, content: bytes) -> int:
        write(path, content[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_a_part)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(file, b"new")
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == b"old"


def test_every_asset_explains_errors_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for asset in ASSETS:
        if isinstance(asset, dg.AssetsDefinition) and asset.is_executable:
            function = asset.op.compute_fn.decorated_fn  # type: ignore[union-attr]
            assert function.__code__.co_filename.endswith("storage_errors.py"), asset.key


def test_generators_are_decorated_too() -> None:
    @explain_storage_errors
    def results() -> Any:
        yield 1
        raise OSError(errno.ENOSPC, "full")

    values = results()
    assert next(values) == 1
    with pytest.raises(GradcamoError, match=FULL):
        next(values)
