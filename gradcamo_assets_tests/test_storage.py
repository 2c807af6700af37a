"""Test the module that accesses the file system for stored data, and that no other module does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gradcamo_assets
from gradcamo_assets.storage import (
    create_marker,
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
    "storage.py",
    # Temporary files of one process.
    "training/explore.py", "training/mlflow_runs.py", "training/training.py", "training/training_run.py",
    # Sizes and listings of stored files.
    "defs/prune.py", "training/model_registry.py",
    # Listings of exported plates.
    "plates/formats/pattern.py",
}  # fmt: skip


def test_no_other_module_writes_lists_or_removes_files() -> None:
    package = Path(gradcamo_assets.__file__).parent
    violations = {}
    for file in package.rglob("*.py"):
        name = file.relative_to(package).as_posix()
        calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        used = {call.attr for call in calls if isinstance(call, ast.Attribute)} & _FILE_SYSTEM_CALLS
        if used and name not in _ALLOWED:
            violations[name] = used
    assert violations == {}


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
