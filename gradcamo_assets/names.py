"""Check external names before they are used in paths, partition keys or SQL, and sort and convert well names."""

from __future__ import annotations

import re

from gradcamo_assets.errors import GradcamoError, PlateError

_PLATE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WELL = re.compile(r"([A-Za-z]{1,2})0*([1-9][0-9]?)")
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SYSTEM_NAMES = {
    ".ds_store", ".spotlight-v100", ".trashes", ".fseventsd", "thumbs.db", "desktop.ini", "$recycle.bin",
    "system volume information", "@eadir", "#recycle", "lost+found",
}  # fmt: skip


def check_plate_name(text: str) -> str:
    """Return a plate name unchanged if it is safe as a folder, a partition key and a SQL literal.

    A valid name has at most 100 letters, digits, '.', '_' and '-', begins with a letter or a digit, and does not
    contain '..'.

    Raises:
        PlateError: if the name is not valid.
    """
    if not _PLATE.fullmatch(text) or ".." in text:
        raise PlateError(
            f"{text[:140]!r} is not a valid plate name",
            "Rename the plate: only letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        )
    return text


def check_name(text: str, what: str = "name") -> str:
    """Return a name unchanged if it is safe as one path component.

    Args:
        what: kind of name, for error messages.

    Raises:
        GradcamoError: if the name is not safe.
    """
    if not _SLUG.fullmatch(text) or ".." in text:
        raise GradcamoError(f"{text[:140]!r} is not a valid {what}", "Use only letters, digits, '.', '_' and '-'.")
    return text


def is_system_name(name: str) -> bool:
    """Whether macOS, Windows or a file server creates files or folders of this name beside those of the user."""
    return name.startswith("._") or name.lower() in _SYSTEM_NAMES


def printable(text: str) -> str:
    """Replace the bytes of a file name that are not UTF-8. Python keeps them as surrogates, which cannot be stored."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def normalise_well_name(text: str) -> str:
    """Return a well's name in standard spelling: ``a1``, ``A1`` and ``A01`` become ``A01``.

    Rows range from A to AF and columns from 1 to 48, as on a 1536-well plate.

    Raises:
        PlateError: if the text is not a well.
    """
    match = _WELL.fullmatch(str(text).strip())
    if match:
        row, column = match.group(1).upper(), int(match.group(2))
        if column <= 48 and row_index(row) < 32:
            return f"{row}{column:02d}"
    raise PlateError(
        f"{str(text)[:40]!r} is not a well", "Name wells by row letters and column number, for example B03."
    )


def row_index(row: str) -> int:
    """Return the 0-based index of a row's letters: A is 0, Z is 25, AA is 26."""
    index = 0
    for letter in row.upper():
        index = index * 26 + ord(letter) - ord("A") + 1
    return index - 1


def row_letters(index: int) -> str:
    """Return the letters of a row by its 0-based index: 0 is A, 25 is Z, 26 is AA."""
    return ("A" if index >= 26 else "") + chr(ord("A") + index % 26)


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that places ``2`` before ``10`` and ``f9`` before ``f10``."""
    return tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", text) if part
    )
