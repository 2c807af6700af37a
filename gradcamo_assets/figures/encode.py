"""Figures as small PNGs, and as text that carries them: markdown for asset metadata, HTML for the report."""

from __future__ import annotations

import base64
import html
import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BYTES = 80_000


def to_png(fig: Figure, width_px: int = 700) -> bytes:
    """A PNG of exactly ``width_px`` pixels across, with 256 colours, or 64 where it would take more than 80 KB.""" ""
    from PIL import Image

    # Pillow's default (median cut) spends its colours on the noise of dark images and turns heat maps grey.
    octree = Image.Quantize.FASTOCTREE
    raw = io.BytesIO()
    # The canvas rounds down: a hair more than the width keeps 700 from becoming 699.
    fig.savefig(raw, format="png", dpi=(width_px + 0.01) / fig.get_figwidth(), facecolor="white")
    picture = Image.open(raw).convert("RGB")
    small = b""
    for colours in (256, 64):
        buffer = io.BytesIO()
        picture.quantize(colours, method=octree).save(buffer, format="png", optimize=True)
        small = buffer.getvalue()
        if len(small) <= _MOST_BYTES:
            break
    return small


def _data_uri(fig: Figure, width_px: int) -> str:
    return "data:image/png;base64," + base64.b64encode(to_png(fig, width_px)).decode()


def to_markdown(fig: Figure, alt: str, width_px: int = 700) -> str:
    """A markdown image with the picture inside it; ``alt`` says in words what it shows."""
    safe = re.sub(r"([\\\[\]()<>`*_!])", r"\\\1", " ".join(alt.split()))
    return f"![{safe}]({_data_uri(fig, width_px)})"


def to_html_img(fig: Figure, alt: str, width_px: int = 700) -> str:
    """An ``<img>`` element with the picture inside it, ``alt`` escaped."""
    return f'<img src="{_data_uri(fig, width_px)}" width="{width_px}" alt="{html.escape(alt, quote=True)}">'
