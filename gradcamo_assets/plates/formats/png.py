"""Read untrusted PNG files of 8 or 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradcamo_assets.errors import GradcamoError, PlateError, one_line
from gradcamo_assets.storage_errors import is_storage_failure

if TYPE_CHECKING:
    from PIL.Image import Image

_GREYSCALE_MODES = ("L", "I;16", "I;16B", "I")
"""Pillow's names for 8 and 16 bits. Its mode ``I`` holds 16 bits in 32."""
_MAX_PIXELS = 2**26
"""Pillow decodes a whole image at once, so this limits the memory that a small damaged file can claim."""


def is_png(path: Path) -> bool:
    """Whether a file is a PNG by its name."""
    return path.suffix.lower() == ".png"


def read_png(path: Path, page: int = 0) -> NDArray[np.uint16]:
    """Read a PNG file as (Y, X) uint16. It has one page, 0.

    Raises:
        PlateError: not a PNG file, damaged, not greyscale of 8 or 16 bits, over 67 million pixels, or another page.
    """
    with _open_png(path, page) as image:
        return np.asarray(image).astype(np.uint16)


def png_shape(path: Path, page: int = 0) -> tuple[int, int]:
    """The (y, x) shape of a PNG file, read from its header. Raises ``PlateError`` as ``read_png``."""
    with _open_png(path, page) as image:
        return image.height, image.width


@contextmanager
def _open_png(path: Path, page: int) -> Iterator[Image]:
    import PIL.Image

    try:
        if page != 0:
            raise PlateError(f"there is no page {page}, a PNG file has one (0)", "Correct the page number.")
        with PIL.Image.open(path, formats=("PNG",)) as image:
            if image.mode not in _GREYSCALE_MODES:
                problem = f"its pixels have the mode {image.mode}, expected greyscale of 8 or 16 bits"
                raise PlateError(problem, "Export one greyscale plane a file.")
            if image.width * image.height > _MAX_PIXELS:
                raise PlateError(f"it claims {image.height} x {image.width} pixels", "Export the plate again.")
            yield image
    except GradcamoError as error:
        raise error.at(PlateError, path=path) from error
    except FileNotFoundError as error:
        raise PlateError("the file does not exist", "Copy it again from the microscope.", path=path) from error
    # Pillow's decoders share no error class.
    except Exception as error:
        if is_storage_failure(error):
            raise
        problem = f"not a PNG file, or a damaged one: {one_line(error)}"
        raise PlateError(problem, "Copy it again, or export it again.", path=path) from error
