"""One plane out of one TIFF file. What the header claims is held against the file before anything is decoded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradcamo_assets.common.errors import GradcamoError, PlateError
from gradcamo_assets.plates.hcs import as_counts, out_of_reach

if TYPE_CHECKING:
    import tifffile

_MAX_SIDE, _MAX_PIXELS, MAX_PAGES = 65_536, 2**28, 65_536
# None, LZW, deflate, PackBits, LZMA, Zstandard: codecs of bytes, whose output tifffile bounds by the page's shape;
# those of images (JPEG 2000) bring their own shape.
_CODECS = {1, 5, 8, 32946, 32773, 34925, 50000}
# A blank plane shrinks more than a thousandfold too; only where much memory is at stake is that suspect.
_MAX_RATIO, _HARMLESS = 1000, 2**26


def read_plane(path: Path, page: int = 0) -> NDArray[np.uint16]:
    """One page of a TIFF file, (Y, X) uint16; ``page`` from 0.

    Raises:
        PlateError: no TIFF, damaged, no such page, no greyscale plane, an absurd size, values beyond 16 bits.
    """
    with open_tiff(path) as tif:
        return as_counts(_page(tif, page).asarray())


def plane_shape(path: Path, page: int = 0) -> tuple[int, int]:
    """The (y, x) shape of a page, from its header alone; PlateError as ``read_plane``, but for the values."""
    with open_tiff(path) as tif:
        y, x = _page(tif, page).shape
        return y, x


@contextmanager
def open_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    """A TIFF file whose errors, also those in the body of the ``with``, become a ``PlateError`` with its path."""
    import tifffile

    try:
        with tifffile.TiffFile(path, _multifile=False) as tif:
            yield tif
    except GradcamoError as error:
        raise error.at(PlateError, path=path) from error
    except FileNotFoundError as error:
        raise PlateError("there is no such file", "Copy it again from the microscope.", path=path) from error
    # Codecs and parsers have no error in common.
    except Exception as error:
        if out_of_reach(error):
            raise
        problem = f"no TIFF, or a damaged one: {' '.join(str(error).split())[:200]}"
        raise PlateError(problem, "Copy it again, or export it again.", path=path) from error


def _page(tif: tifffile.TiffFile, index: int) -> Any:
    """The page, if what it claims can be true."""
    if (page := _page_at(tif, index)) is None:
        raise PlateError(f"there is no page {index} (counted from 0)", "Copy the file again.")
    if page.ndim != 2 or page.dtype is None:
        problem = f"its page {index} has the shape {page.shape} and is no greyscale plane"
        raise PlateError(problem, "Export planes one by one, in grey.")
    y, x = page.shape
    if max(y, x) > _MAX_SIDE or y * x > _MAX_PIXELS:
        raise PlateError(f"its page {index} claims {y} x {x} pixels", "Export the plate again.")
    if page.compression not in _CODECS:
        raise PlateError(f"its compression ({page.compression}) is not read here", "Export TIFF without, or with LZW.")
    if page.is_tiled and page.tilewidth * page.tilelength > _MAX_PIXELS:
        raise PlateError(f"its tiles claim {page.tilelength} x {page.tilewidth} pixels", "Export the plate again.")
    decoded = (y * x * page.bitspersample + 7) // 8
    starts, counts = page.dataoffsets, page.databytecounts
    size = tif.filehandle.size
    whole = len(starts) == len(counts) == math.prod(page.chunked) and min(counts, default=0) > 0 and min(starts) > 0
    if not whole or any(start + count > size for start, count in zip(starts, counts, strict=True)):
        raise PlateError(f"the data of its page {index} are not all in the file (truncated?)", "Copy the file again.")
    stored = sum(counts)
    if (page.compression == 1 and stored < decoded) or (decoded > _HARMLESS and decoded > _MAX_RATIO * stored):
        raise PlateError(f"its page {index} claims {decoded} bytes and holds {stored}", "Copy the file again.")
    return page


def pages_of(tif: tifffile.TiffFile) -> int:
    """The number of pages; PlateError for ``MAX_PAGES``. tifffile would count a wide circle of pages for hours."""
    if _page_at(tif, MAX_PAGES - 1) is not None:
        raise PlateError(f"it has {MAX_PAGES} pages or more", "Split it, or export it again.")
    return len(tif.pages)


def _page_at(tif: tifffile.TiffFile, index: int) -> Any:
    try:
        return tif.pages[index] if 0 <= index < MAX_PAGES else None
    except IndexError:
        return None
