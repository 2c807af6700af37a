"""Read untrusted XML, TIFF and PNG files safely: check what a file claims before parsing or decoding it.

XML with a DTD is rejected before it is parsed, because a DTD can declare entities.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from gradcamo_assets.errors import GradcamoError, PlateError, one_line
from gradcamo_assets.plates.counts import as_counts
from gradcamo_assets.plates.formats.png import is_png, png_shape, read_png
from gradcamo_assets.storage_errors import is_storage_failure

if TYPE_CHECKING:
    import tifffile

_COPY_AGAIN = "Copy it again from the microscope."
_MAX_SIDE, _MAX_PIXELS, MAX_PAGES = 65_536, 2**28, 65_536
# None, LZW, deflate, PackBits, LZMA, Zstandard. tifffile limits their output to the shape of the page; image codecs
# such as JPEG 2000 bring their own shape.
_ALLOWED_COMPRESSIONS = {1, 5, 8, 32946, 32773, 34925, 50000}
_WHITE_IS_ZERO = 0
"""The photometric interpretation MinIsWhite of TIFF 6.0."""
# A blank plane may also compress more than a thousandfold, so only large planes are checked for the ratio.
_MAX_COMPRESSION_RATIO, _MIN_CHECKED_BYTES = 1000, 2**26


def reject_dtd(path: Path) -> None:
    """Reject an XML file that has a DTD.

    A DTD can only precede the root element, so parsing stops at the root.

    Raises:
        PlateError: a DTD, or not XML.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import iterparse

    try:
        with path.open("rb") as file:
            next(iterparse(file, ("start",), forbid_dtd=True))
    except DefusedXmlException as error:
        raise _dtd_error().at(path=path) from error
    except (ElementTree.ParseError, StopIteration, OSError, ValueError, LookupError) as error:
        raise PlateError(f"it is not XML: {error}", _COPY_AGAIN, path=path) from error


def parse_xml(text: str) -> ElementTree.Element | None:
    """Parse XML text in memory; None if it is damaged.

    Raises:
        PlateError: a DTD.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root: ElementTree.Element = fromstring(text, forbid_dtd=True)
        return root
    except DefusedXmlException as error:
        raise _dtd_error() from error
    except (ElementTree.ParseError, ValueError, LookupError):
        return None


def _dtd_error() -> PlateError:
    return PlateError("its XML declares a DTD or entities", "Remove them; no microscope writes any.")


def iter_elements(path: Path, *tags: str) -> Iterator[tuple[str, ElementTree.Element]]:
    """Yield (tag, element) for the complete elements of an XML file with one of the tags, without namespaces.

    An element is cleared when the next one is requested, together with everything before it in the same parent.

    Raises:
        PlateError: a symbolic link, a DTD, or damaged XML.
    """
    if path.is_symlink():
        raise PlateError("it is a symbolic link", "Copy the file that it points to.", path=path)
    reject_dtd(path)
    parents: list[ElementTree.Element] = []
    try:
        # The C parser is ten times as fast as that of defusedxml, and safe because a DTD is ruled out.
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
        raise PlateError(f"its XML is damaged: {error}", _COPY_AGAIN, path=path) from error


def read_plane(path: Path, page: int = 0) -> NDArray[np.uint16]:
    """Read one page of a TIFF file, or a PNG file, as (Y, X) uint16; ``page`` counts from 0.

    Where the file says that 0 is white, the values are inverted, so that more light is always a higher value. Planes of
    one bit are read as they are.

    Raises:
        PlateError: not a TIFF or PNG file, damaged, no such page, not a greyscale plane, an implausible size, or values
            that 16-bit counts cannot hold.
    """
    if is_png(path):
        return read_png(path, page)
    with open_tiff(path) as tif:
        checked = _checked_page(tif, page)
        counts = as_counts(checked.asarray())
        # tifffile writes arrays of booleans with 0 as white and means False.
        if checked.photometric != _WHITE_IS_ZERO or checked.bitspersample == 1:
            return counts
        if checked.dtype.kind != "u" or checked.bitspersample > 16:
            problem = f"its page {page} says that 0 is white, and its pixels are {checked.dtype}"
            raise PlateError(problem, "Export the plate with 0 as black.")
        return 2**checked.bitspersample - 1 - counts


def plane_shape(path: Path, page: int = 0) -> tuple[int, int]:
    """The (y, x) shape of a page, read from its header. Raises ``PlateError`` as ``read_plane``, except for values."""
    if is_png(path):
        return png_shape(path, page)
    with open_tiff(path) as tif:
        y, x = _checked_page(tif, page).shape
        return y, x


@contextmanager
def open_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF file; exceptions of the ``with`` body become a ``PlateError`` with its path too."""
    import tifffile

    try:
        with tifffile.TiffFile(path, _multifile=False) as tif:
            yield tif
    except GradcamoError as error:
        raise error.at(PlateError, path=path) from error
    except FileNotFoundError as error:
        raise PlateError("the file does not exist", _COPY_AGAIN, path=path) from error
    # Codecs and parsers share no error class.
    except Exception as error:
        if is_storage_failure(error):
            raise
        problem = f"not a TIFF file, or a damaged one: {one_line(error)}"
        raise PlateError(problem, "Copy it again, or export it again.", path=path) from error


def _checked_page(tif: tifffile.TiffFile, index: int) -> Any:
    """Return the page if everything its header claims is plausible."""
    if (page := _get_page(tif, index)) is None:
        raise PlateError(f"there is no page {index} (counted from 0)", "Copy the file again.")
    if page.ndim != 2 or page.dtype is None:
        problem = f"its page {index} has shape {page.shape}, expected a greyscale plane"
        raise PlateError(problem, "Export one greyscale plane a page.")
    y, x = page.shape
    if max(y, x) > _MAX_SIDE or y * x > _MAX_PIXELS:
        raise PlateError(f"its page {index} claims {y} x {x} pixels", "Export the plate again.")
    if page.compression not in _ALLOWED_COMPRESSIONS:
        remedy = "Export TIFF without compression or with LZW."
        raise PlateError(f"its compression ({page.compression}) is not supported", remedy)
    if page.is_tiled and page.tilewidth * page.tilelength > _MAX_PIXELS:
        raise PlateError(f"its tiles claim {page.tilelength} x {page.tilewidth} pixels", "Export the plate again.")
    decoded_bytes = (y * x * page.bitspersample + 7) // 8
    offsets, counts = page.dataoffsets, page.databytecounts
    file_size = tif.filehandle.size
    segments = math.prod(page.chunked)
    complete = len(offsets) == len(counts) == segments and min(counts, default=0) > 0 and min(offsets) > 0
    if not complete or any(start + count > file_size for start, count in zip(offsets, counts, strict=True)):
        raise PlateError(f"the data of its page {index} are incomplete (truncated file?)", "Copy the file again.")
    stored_bytes = sum(counts)
    too_small = page.compression == 1 and stored_bytes < decoded_bytes
    suspicious = decoded_bytes > _MIN_CHECKED_BYTES and decoded_bytes > _MAX_COMPRESSION_RATIO * stored_bytes
    if too_small or suspicious:
        problem = f"its page {index} claims {decoded_bytes} bytes but stores {stored_bytes}"
        raise PlateError(problem, "Copy the file again.")
    return page


def count_pages(tif: tifffile.TiffFile) -> int:
    """Number of pages; raises ``PlateError`` from ``MAX_PAGES``. In a long cycle of pages tifffile counts for hours."""
    if _get_page(tif, MAX_PAGES - 1) is not None:
        raise PlateError(f"it has {MAX_PAGES} pages or more", "Split it, or export it again.")
    return len(tif.pages)


def _get_page(tif: tifffile.TiffFile, index: int) -> Any:
    try:
        return tif.pages[index] if 0 <= index < MAX_PAGES else None
    except IndexError:
        return None
