"""Exports of microscopes: what planes there are, and how one plane is read. Nothing here writes."""

from __future__ import annotations

from pathlib import Path

from gradcamo_assets.plates.readers.export import PLANES, PROJECTION, Export

__all__ = ["PLANES", "PROJECTION", "Export", "format_of"]


def format_of(folder: Path) -> str | None:
    """The format of a plate folder, told from a few names and never by a walk, or None where it is none we read."""
    return None


def read_export(folder: Path) -> Export:
    raise NotImplementedError


def read_plane(path: Path, page: int):
    raise NotImplementedError
