"""Files from outside, held against what they claim before they are believed: XML, and one plane of one TIFF.

Entities are declared in a DTD, so XML with one is refused before anything is parsed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from gradcamo_assets.errors import GradcamoError, PlateError
from gradcamo_assets.plates.omezarr import as_counts, out_of_reach

if TYPE_CHECKING:
    import tifffile

_DAMAGED = "Copy it again from the microscope."
_MAX_SIDE, _MAX_PIXELS, MAX_PAGES = 65_536, 2**28, 65_536
# None, LZW, deflate, PackBits, LZMA, Zstandard: codecs of bytes, whose output tifffile bounds by the page's shape;
# those of images (JPEG 2000) bring their own shape.
_CODECS = {1, 5, 8, 32946, 32773, 34925, 50000}
# A blank plane shrinks more than a thousandfold too; only where much memory is at stake is that suspect.
_MAX_RATIO, _HARMLESS = 1000, 2**26


def screen(source: Path | str) -> None:
    """Check an XML file, or a text in memory.

    A DTD can stand before the root element only: where the root is reached without one, there is none.

    Raises:
        PlateError: a DTD, or no XML.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import iterparse

    path = source if isinstance(source, Path) else None
    try:
        with path.open("rb") if path else io.BytesIO(str(source).encode()) as file:
            next(iterparse(file, ("start",), forbid_dtd=True))
    except DefusedXmlException as error:
        remedy = "Remove them: no microscope writes any."
        raise PlateError("its XML declares a DTD or entities", remedy, path=path) from error
    except (ElementTree.ParseError, StopIteration, OSError, ValueError, LookupError) as error:
        raise PlateError(f"it is no XML: {error}", _DAMAGED, path=path) from error


def elements(path: Path, *tags: str) -> Iterator[tuple[str, ElementTree.Element]]:
    """The elements of an XML file with one of the tags (less namespaces), whole, one after the other.

    Each is forgotten when the next one is asked for, with all that came before it in the same parent.

    Raises:
        PlateError: a link, a DTD, or damaged XML.
    """
    if path.is_symlink():
        raise PlateError("it is a link", "Copy the file that it points to.", path=path)
    screen(path)
    parents: list[ElementTree.Element] = []
    try:
        # The parser in C, ten times as fast as defusedxml's; no DTD can come any more.
        for event, element in ElementTree.iterparse(path, ("start", "end")):
            if event == "start":
                parents.append(element)
                continue
            parents.pop()
            if (tag := element.tag.rpartition("}")[2]) in tags:
                yield tag, element
                if parents:
                    parents[-1].clear()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise PlateError(f"its XML is damaged: {error}", _DAMAGED, path=path) from error


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
