"""From stained pixels to colours, alike in pictures of cells and of fields."""

from __future__ import annotations

import numpy as np

from gradcamo_assets.report.style import COLOURS


def binned(image: np.ndarray, step_y: int, step_x: int) -> np.ndarray:
    """Block means over the last two axes, incomplete blocks left out: less shot noise, and so a smaller PNG."""
    y, x = image.shape[-2] // step_y, image.shape[-1] // step_x
    blocks = image[..., : y * step_y, : x * step_x].reshape(*image.shape[:-2], y, step_y, x, step_x)
    return blocks.mean(axis=(-3, -1), dtype=np.float32)


def intensity_limits(images: np.ndarray) -> np.ndarray:
    """Black and white points (C, 2) from images (N, C, Y, X): the same for all, so that intensities can be compared."""
    return np.percentile(np.moveaxis(images, 1, 0).reshape(images.shape[1], -1), [25, 99.8], axis=1).T


def composite(image: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Channels (C, Y, X) as one picture (Y, X, 3) in 0..1: grey for one channel, else one colour a channel, added."""
    from matplotlib.colors import to_rgb

    low, high = limits[:, 0, None, None], limits[:, 1, None, None]
    scaled = np.clip((image - low) / np.maximum(high - low, 1e-9), 0, 1)
    colours = np.array([to_rgb(COLOURS[c % 6]) for c in range(len(image))] if len(image) > 1 else [(1.0, 1.0, 1.0)])
    # Where all channels are bright the sum would be white, and outlines invisible.
    colours *= min(1.0, 1.1 / colours.sum(axis=0).max())
    return np.clip(np.einsum("cyx,cr->yxr", scaled, colours), 0, 1)
