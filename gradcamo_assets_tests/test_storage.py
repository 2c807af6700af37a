"""The one module that calls the file system for what the platform stores."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gradcamo_assets
from gradcamo_assets.storage import children, mark, move, read_bytes, read_json, remove, write_bytes, write_json

_CALLS = {"write_text", "write_bytes", "touch", "unlink", "rmtree", "iterdir", "rglob", "rmdir"}
# Files of one process that nobody else reads, and lists of what others stored.
_SCRATCH = {
    "training/training.py", "training/training_run.py", "training/explore.py", "training/mlflow_runs.py",
    "plates/sources.py",
}  # fmt: skip
_SIZES = {"defs/prune.py", "training/model_registry.py"}


def test_no_other_module_writes_lists_or_removes_files() -> None:
    package, found = Path(gradcamo_assets.__file__).parent, {}
    for file in package.rglob("*.py"):
        name = file.relative_to(package).as_posix()
        calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        used = {call.attr for call in calls if isinstance(call, ast.Attribute)} & _CALLS
        if used and name not in {"storage.py", *_SCRATCH, *_SIZES} and not name.startswith("plates/formats/"):
            found[name] = used
    assert found == {}


def test_what_is_not_there_is_none_and_what_is_hidden_is_not_listed(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.json"
    assert read_bytes(file) is None and read_json(file) is None and children(tmp_path / "nowhere") == []
    write_json(file, {"x": 1})
    mark(tmp_path / "a" / ".hidden" / "c.json")
    write_bytes(tmp_path / "a" / ".d.json.0.tmp", b"half")
    assert read_json(file) == {"x": 1}
    assert children(tmp_path / "a") == children(tmp_path, "*/*.json") == [file]
    assert children(tmp_path / "a", "**/*.json") == [file]
    write_bytes(file, b"{")
    with pytest.raises(ValueError):
        read_json(file)


def test_removing_follows_no_link(tmp_path: Path) -> None:
    mark(tmp_path / "kept" / "file")
    mark(tmp_path / "gone" / "deeper" / "file")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove(tmp_path / "gone", tmp_path / "link", tmp_path / "never there")
    assert children(tmp_path, "**/file") == [tmp_path / "kept" / "file"] and children(tmp_path) == [tmp_path / "kept"]
    move(tmp_path / "kept", tmp_path / "new" / "place")
    assert children(tmp_path, "**/file") == [tmp_path / "new" / "place" / "file"]
