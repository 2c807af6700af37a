"""Homes in a bucket in memory, and requests to it that fail."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from gradcamo_assets import buckets


def memory_bucket() -> Path:
    """The scratch folder of a new, empty bucket in memory."""
    return buckets.mount(f"memory://{uuid.uuid4().hex}", MemoryStore())


def keys(root: Path) -> list[str]:
    """The keys of all objects of a bucket."""
    found = buckets.find(root)
    assert found is not None
    return [item.key for item in found[0].list_all("")]


def forget_copies(root: Path) -> None:
    """Delete the copies that this process has, as if it ran on another machine."""
    found = buckets.find(root)
    assert found is not None
    for path in list(found[0].copied):
        found[0].forget_copies(path)


def fail(monkeypatch: pytest.MonkeyPatch, name: str, after: int = 0, error: Exception | None = None) -> None:
    """Let a function of obstore fail, such as ``put``, from the ``after``-th call on."""
    working, calls = getattr(obstore, name), iter(range(after))

    def failing(*arguments: Any, **named: Any) -> Any:
        if next(calls, None) is None:
            raise error or GenericError("the server does not answer")
        return working(*arguments, **named)

    monkeypatch.setattr(obstore, name, failing)
