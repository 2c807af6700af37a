"""The one module that calls the file system for what the platform stores."""

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

_CALLS = {"write_text", "write_bytes", "touch", "unlink", "rmtree", "iterdir", "rglob", "rmdir"}
# Files of one process that nobody else reads, and lists of what others stored.
_SCRATCH = {"learning/train.py", "learning/fit.py", "learning/explore.py", "learning/runs.py", "plates/sources.py"}
_SIZES = {"orchestration/prune.py", "learning/registry.py"}


def test_no_other_module_writes_lists_or_removes_files() -> None:
    package, found = Path(gradcamo_assets.__file__).parent, {}
    for file in package.rglob("*.py"):
        name = file.relative_to(package).as_posix()
        calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        used = {call.attr for call in calls if isinstance(call, ast.Attribute)} & _CALLS
        if used and name not in {"common/storage.py", *_SCRATCH, *_SIZES} and not name.startswith("plates/readers/"):
            found[name] = used
    assert found == {}


def test_what_is_not_there_is_none_and_what_is_hidden_is_not_listed(tmp_path: Path) -> None:
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


def test_removing_follows_no_link(tmp_path: Path) -> None:
    create_marker(tmp_path / "kept" / "file")
    create_marker(tmp_path / "gone" / "deeper" / "file")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove(tmp_path / "gone", tmp_path / "link", tmp_path / "never there")
    assert list_visible(tmp_path, "**/file") == [tmp_path / "kept" / "file"] and list_visible(tmp_path) == [
        tmp_path / "kept"
    ]
    move(tmp_path / "kept", tmp_path / "new" / "place")
    assert list_visible(tmp_path, "**/file") == [tmp_path / "new" / "place" / "file"]
