"""Convert figures to small PNGs, GIFs, and data URIs for pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_METADATA_BYTES, _MAX_PAGE_BYTES = 80_000, 350_000


def to_png(figure: Figure, width_px: int = 700, max_bytes: int = _MAX_METADATA_BYTES) -> bytes:
    """Return a PNG of exactly ``width_px`` pixels width, with 256 colours, or 64 if it would exceed ``max_bytes``."""
    from PIL import Image

    raw = io.BytesIO()
    # The canvas rounds down, so add a little to get 700 and not 699 pixels.
    figure.savefig(raw, format="png", dpi=(width_px + 0.01) / figure.get_figwidth(), facecolor="white")
    for colours in (256, 64):
        small = io.BytesIO()
        # Pillow's default (median cut) uses its colours for the noise of dark images, which makes heat maps grey.
        picture = Image.open(raw).convert("RGB").quantize(colours, method=Image.Quantize.FASTOCTREE)
        picture.save(small, format="png", optimize=True)
        if small.tell() <= max_bytes:
            break
    return small.getvalue()


def to_gif(figures: Sequence[Figure], width_px: int = 420, seconds: float = 0.4) -> bytes:
    """Return an endless animation of figures of one size; the last one is shown four times as long."""
    from PIL import Image

    frames = [Image.open(io.BytesIO(to_png(figure, width_px))) for figure in figures]
    animation = io.BytesIO()
    pauses = [round(1000 * seconds)] * (len(frames) - 1) + [round(4000 * seconds)]
    frames[0].save(animation, format="gif", save_all=True, append_images=frames[1:], duration=pauses, loop=0)
    return animation.getvalue()


def to_data_uri(figure: Figure) -> tuple[str, int, int]:
    """Return a figure for a page and its width and height: as SVG or double-resolution PNG, whichever is smaller."""
    from matplotlib import rc_context

    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    vector = io.BytesIO()
    with rc_context({"svg.hashsalt": "figure"}):  # Otherwise element names differ from run to run.
        figure.savefig(vector, format="svg", facecolor="white", metadata={"Date": None})
    png = to_png(figure, 2 * width, _MAX_PAGE_BYTES)
    kind, content = ("svg+xml", vector.getvalue()) if vector.tell() < len(png) else ("png", png)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}", width, height
