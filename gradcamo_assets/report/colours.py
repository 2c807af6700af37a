"""Convert stain intensities to colours for pictures of cells and fields."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradcamo_assets.report.style import COLOURS

_NAMES = ["blue", "orange", "green", "pink", "light blue", "red"]
"""Of the first six of ``COLOURS``, which a composite uses."""


def binned(image: np.ndarray, step_y: int, step_x: int) -> np.ndarray:
    """Average blocks over the last two axes and drop incomplete blocks; less shot noise gives a smaller PNG."""
    y, x = image.shape[-2] // step_y, image.shape[-1] // step_x
    blocks = image[..., : y * step_y, : x * step_x].reshape(*image.shape[:-2], y, step_y, x, step_x)
    return blocks.mean(axis=(-3, -1), dtype=np.float32)


def intensity_limits(images: np.ndarray) -> np.ndarray:
    """Return black and white points (C, 2), common to all images (N, C, Y, X) to keep intensities comparable."""
    return np.percentile(np.moveaxis(images, 1, 0).reshape(images.shape[1], -1), [25, 99.8], axis=1).T


def colour_key(channels: Sequence[str]) -> str:
    """Say which stain has which colour in a composite: ``DNA blue, ER orange``."""
    if len(channels) == 1:
        return f"{channels[0]} grey"
    return ", ".join(f"{channel} {_NAMES[number % 6]}" for number, channel in enumerate(channels))


def composite(image: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Merge channels (C, Y, X) to a picture (Y, X, 3) in 0..1: grey for one channel, else a sum of colours."""
    from matplotlib.colors import to_rgb

    low, high = limits[:, 0, None, None], limits[:, 1, None, None]
    scaled = np.clip((image - low) / np.maximum(high - low, 1e-9), 0, 1)
    colours = np.array([to_rgb(COLOURS[c % 6]) for c in range(len(image))] if len(image) > 1 else [(1.0, 1.0, 1.0)])
    # Without this limit, bright pixels of all channels would be white and hide the outlines.
    colours *= min(1.0, 1.1 / colours.sum(axis=0).max())
    return np.clip(np.einsum("cyx,cr->yxr", scaled, colours), 0, 1)
