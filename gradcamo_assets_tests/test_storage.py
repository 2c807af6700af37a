"""Test the module that accesses the file system for stored data, and that no other module does."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gradcamo_assets
from gradcamo_assets.storage import (
    atomic_file,
    atomic_folder,
    create_marker,
    list_scratch,
    list_visible,
    move,
    read_bytes,
    read_json,
    remove,
    write_bytes,
    write_json,
)

_FILE_SYSTEM_CALLS = {"write_text", "write_bytes", "touch", "unlink", "rmtree", "iterdir", "rglob", "rmdir"}
_ALLOWED = {
    "buckets.py", "storage.py",
    # Temporary files of one process.
    "training/explore.py", "training/mlflow_runs.py", "training/training.py", "training/training_run.py",
    # Sizes and listings of stored files.
    "training/model_registry.py",
}  # fmt: skip


def test_no_other_module_writes_lists_or_removes_files() -> None:
    package = Path(gradcamo_assets.__file__).parent
    found = {}
    for file in package.rglob("*.py"):
        name = file.relative_to(package).as_posix()
        calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        used = {call.attr for call in calls if isinstance(call, ast.Attribute)} & _FILE_SYSTEM_CALLS
        if used:
            found[name] = used
    assert found.keys() == _ALLOWED, found


def test_missing_files_read_as_none_and_hidden_files_are_not_listed(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.json"
    assert read_bytes(file) is None and read_json(file) is None and list_visible(tmp_path / "nowhere") == []
    write_json(file, {"x": 1})
    create_marker(tmp_path / "a" / ".hidden" / "c.json")
    write_bytes(tmp_path / "a" / ".d.json.0.tmp", b"half")
    assert read_json(file) == {"x": 1}
    assert list_visible(tmp_path / "a") == list_visible(tmp_path, "*/*.json") == [file]
    assert list_visible(tmp_path / "a", "**/*.json") == [file]
    write_bytes(file, b"{")
    with pytest.raises(ValueError):
        read_json(file)


def test_removing_a_link_keeps_its_target(tmp_path: Path) -> None:
    create_marker(tmp_path / "kept" / "file")
    create_marker(tmp_path / "gone" / "deeper" / "file")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove(tmp_path / "gone", tmp_path / "link", tmp_path / "never there")
    assert list_visible(tmp_path, "**/file") == [tmp_path / "kept" / "file"] and list_visible(tmp_path) == [
        tmp_path / "kept"
    ]
    move(tmp_path / "kept", tmp_path / "new" / "place")
    assert list_visible(tmp_path, "**/file") == [tmp_path / "new" / "place" / "file"]


def test_a_removal_that_is_killed_leaves_no_half_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_marker(tmp_path / "store" / "version" / "file")
    # Not by a signal: libraries that other tests load handle signals themselves.
    interrupt = KeyboardInterrupt()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", lambda _: (_ for _ in ()).throw(interrupt))
        remove(tmp_path / "store" / "version")
    assert list_visible(tmp_path / "store") == []
    (left,) = list_scratch(tmp_path, "*")
    assert (left / "file").exists()
    create_marker(tmp_path / "store" / ".hidden.tmp")
    remove(left)
    assert list_scratch(tmp_path, "*") == [] and list(tmp_path.rglob("*.tmp")) == [tmp_path / "store" / ".hidden.tmp"]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_new_folder_appears_whole_and_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "of" / "a"
    with pytest.raises(RuntimeError), atomic_folder(folder) as temporary:
        (temporary / "half").touch()
        raise RuntimeError
    assert list(folder.parent.iterdir()) == []
    with atomic_folder(folder) as slow:
        (slow / "slow").touch()
        assert not folder.exists()
        with atomic_folder(folder) as fast:
            (fast / "fast").touch()
        assert [path.name for path in folder.iterdir()] == ["fast"]
    assert [path.name for path in folder.iterdir()] == ["fast"]
    assert [path.name for path in folder.parent.iterdir()] == ["a"]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), atomic_folder(tmp_path / "file"):
        pass


def test_remains_of_a_killed_process_do_not_block_a_write(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    program = (
        "import os, sys; from pathlib import Path; from gradcamo_assets.storage import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as temporary:\n"
        "    (temporary / 'half').touch()\n"
        "    os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(folder)]).returncode == -9
    assert not folder.exists() and len(list(tmp_path.iterdir())) == 1
    with atomic_folder(folder) as temporary:
        (temporary / "whole").touch()
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_json_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
