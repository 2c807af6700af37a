"""What all pictures share: colours that colour-blind readers can tell apart, composites, outlines, names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which vanishes on white.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]
MARKERS = "osD^vP*X"
GREY = "#6E6E6E"
SEQUENTIAL = "viridis"


def new_figure(width: float = 7.0, height: float = 4.0) -> Figure:
    """An empty figure with a constrained layout, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def empty_figure(message: str) -> Figure:
    """A figure that says in words why there is nothing to see."""
    figure = new_figure(7, 1.2)
    figure.text(0.5, 0.5, message, ha="center", va="center", color=GREY)
    return figure


def binned(image: np.ndarray, step_y: int, step_x: int) -> np.ndarray:
    """Block means over the last two axes, incomplete blocks left out: less shot noise, and so a smaller PNG."""
    y, x = image.shape[-2] // step_y, image.shape[-1] // step_x
    blocks = image[..., : y * step_y, : x * step_x].reshape(*image.shape[:-2], y, step_y, x, step_x)
    return blocks.mean(axis=(-3, -1), dtype=np.float32)


def intensity_limits(images: np.ndarray) -> np.ndarray:
    """Black and white points (C, 2) from images (N, C, ...): the same for all, so that intensities can be compared."""
    flat = np.moveaxis(images, 1, 0).reshape(images.shape[1], -1)
    return np.percentile(flat, [25, 99.8], axis=1).T


def composite(image: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Channels (C, Y, X) as one picture (Y, X, 3) in 0..1: grey for one channel, else one colour a channel, added."""
    from matplotlib.colors import to_rgb

    low, high = limits[:, 0, None, None], limits[:, 1, None, None]
    scaled = np.clip((image - low) / np.maximum(high - low, 1e-9), 0, 1)
    colours = np.array([to_rgb(COLOURS[c % 6]) for c in range(len(image))] if len(image) > 1 else [(1.0, 1.0, 1.0)])
    # Where all channels are bright the sum would be white, and outlines invisible.
    colours *= min(1.0, 1.1 / colours.sum(axis=0).max())
    return np.clip(np.einsum("cyx,cr->yxr", scaled, colours), 0, 1)


def outline(axes: Any, mask: np.ndarray, colour: str, style: str = "solid", **kwargs: Any) -> None:
    """Draw the border of a mask (Y, X), light over dark, so that it shows on any ground."""
    from matplotlib.patheffects import withStroke

    if mask.any() and not mask.all():
        lines = axes.contour(mask.astype(float), [0.5], colors=[colour], linestyles=[style], linewidths=1.2, **kwargs)
        lines.set_path_effects([withStroke(linewidth=2.4, foreground="black")])


def treatment_name(compound: Any, dose: Any, unit: Any) -> str:
    """``aspirin 0.3 uM``; a control, whose dose is 0, goes by its name."""
    return f"{compound} {dose:g} {unit or ''}".strip() if dose else str(compound)
