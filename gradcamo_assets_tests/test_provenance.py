"""Test versions of stored results."""

from __future__ import annotations

from pathlib import Path

from gradcamo_assets.provenance import Provenance, stored_version


def test_provenance_changes_with_every_part(tmp_path: Path) -> None:
    base = Provenance("in", {"a": 1}, "1")
    base.write(tmp_path)
    assert stored_version(tmp_path) == base.version
    for other in (Provenance("out", {"a": 1}, "1"), Provenance("in", {"a": 2}, "1"), Provenance("in", {"a": 1}, "2")):
        assert other.version != base.version
    assert stored_version(tmp_path / "nothing") is None
