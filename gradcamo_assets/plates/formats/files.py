"""List the files in a plate's folder, without those that operating systems and file servers leave there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import polars as pl

from gradcamo_assets.errors import PlateError
from gradcamo_assets.names import is_system_name, natural_key, printable

_UNSAFE_PATH = r"^/|(^|/)[A-Za-z]:|//|(^|/)\.\.?(/|$)|[\x00-\x1f\x7f\\]|^$"
_IMAGE = re.compile(r"(?i).*\.(tiff?|png)")


def list_names(folder: Path) -> list[str]:
    """The names of files and folders in ``folder``, sorted; empty if it is no folder.

    Bytes that are not UTF-8 are replaced, so that names can be shown and stored. No file can be opened by such a name.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(printable(entry.name) for entry in entries if not is_system_name(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_image(name: str) -> bool:
    """Whether a file is a TIFF or PNG by its name."""
    return _IMAGE.fullmatch(name) is not None


def find_images(folder: Path) -> list[str]:
    """The paths of all TIFF and PNG files below ``folder``, relative to it, in natural order. No link is followed."""
    images: list[str] = []
    folders = [""]
    while folders:
        parent = folders.pop()
        with os.scandir(folder / parent) as entries:
            for entry in entries:
                path = parent + printable(entry.name)
                if is_system_name(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if path == parent + entry.name:
                        folders.append(f"{path}/")
                elif is_image(path):
                    images.append(path)
    return sorted(images, key=natural_key)


def existing_files(folder: Path, files: pl.Series) -> pl.DataFrame:
    """The existing files of the folders in which ``files`` lie, as a column ``file``. Each folder is listed once.

    Raises:
        PlateError: one of ``files`` is outside the folder, a link, or behind a link.
    """
    outside = files.filter(files.str.contains(_UNSAFE_PATH) | (files.str.len_bytes() > 1000))
    if outside.len():
        problem = f"{outside[0][:200]!r} is not a path inside the plate's folder"
        raise PlateError(problem, "Copy the plate again, or export it again.")
    existing: list[str] = []
    links: list[str] = []
    for parent in files.str.extract("^(.*/)", 1).fill_null("").unique().sort():
        folders = [folder.joinpath(*parent.split("/")[:depth]) for depth in range(1, parent.count("/") + 1)]
        if link := next((path for path in folders if path.is_symlink()), None):
            problem = f"{link.relative_to(folder)} is a symbolic link"
            raise PlateError(problem, "Copy the folder that it points to.", path=link)
        if (folder / parent).is_dir():
            with os.scandir(folder / parent) as entries:
                for entry in entries:
                    if printable(entry.name) == entry.name:
                        (links if entry.is_symlink() else existing).append(parent + entry.name)
    if (linked := files.filter(files.is_in(links))).len():
        problem = f"{linked[0]} is a symbolic link"
        raise PlateError(problem, "Copy the file that it points to.", path=folder / linked[0])
    return pl.DataFrame({"file": existing}, schema={"file": pl.String})
