"""Figures as bytes: small PNGs, markdown for asset metadata, data URIs for pages."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SMALL, _FULL = 80_000, 350_000


def to_png(fig: Figure, width_px: int = 700, most: int = _SMALL) -> bytes:
    """A PNG of exactly ``width_px`` pixels across, with 256 colours, or 64 where it would take more than ``most``."""
    from PIL import Image

    raw = io.BytesIO()
    # The canvas rounds down: a hair more than the width keeps 700 from becoming 699.
    fig.savefig(raw, format="png", dpi=(width_px + 0.01) / fig.get_figwidth(), facecolor="white")
    for colours in (256, 64):
        small = io.BytesIO()
        # Pillow's default (median cut) spends its colours on the noise of dark images and turns heat maps grey.
        picture = Image.open(raw).convert("RGB").quantize(colours, method=Image.Quantize.FASTOCTREE)
        picture.save(small, format="png", optimize=True)
        if small.tell() <= most:
            break
    return small.getvalue()


def to_gif(figures: Sequence[Figure], width_px: int = 420, seconds: float = 0.4) -> bytes:
    """An animation of figures of one size, each for so long and the last four times as long, without end."""
    from PIL import Image

    frames = [Image.open(io.BytesIO(to_png(fig, width_px))) for fig in figures]
    film = io.BytesIO()
    pauses = [round(1000 * seconds)] * (len(frames) - 1) + [round(4000 * seconds)]
    frames[0].save(film, format="gif", save_all=True, append_images=frames[1:], duration=pauses, loop=0)
    return film.getvalue()


def to_markdown(fig: Figure | bytes, alt: str) -> str:
    """A markdown image with the picture, a figure or a GIF, inside it; ``alt`` says in words what it shows."""
    safe = re.sub(r"([\\\[\]()<>`*_!])", r"\\\1", " ".join(alt.split()))
    return f"![{safe}]({_uri('gif', fig) if isinstance(fig, bytes) else _uri('png', to_png(fig))})"


def to_data_uri(fig: Figure) -> tuple[str, int, int]:
    """A picture for a page, as SVG or as PNG of two pixels a point, whichever is smaller, and its width and height."""
    from matplotlib import rc_context

    width, height = (round(96 * inches) for inches in fig.get_size_inches())
    vector = io.BytesIO()
    with rc_context({"svg.hashsalt": "figure"}):  # Or its names would differ from run to run.
        fig.savefig(vector, format="svg", facecolor="white", metadata={"Date": None})
    png = to_png(fig, 2 * width, _FULL)
    smaller = ("svg+xml", vector.getvalue()) if vector.tell() < len(png) else ("png", png)
    return _uri(*smaller), width, height


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
