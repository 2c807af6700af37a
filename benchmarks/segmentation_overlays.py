"""Masks drawn over images, to be looked at: ``python -m benchmarks.segmentation_overlays [--data DIR] [--out PNG]``.

Real fields and stacks (see the notices beside the data for their sources) and two of the hard synthetic fields, by the
shipped network; stacks as a slice (xy) and a cut along z (xz). Prints what was counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import tifffile
import zarr
from PIL import Image
from scipy import ndimage as ndi

from benchmarks.segmentation_fields import hard_field
from gradcamo_assets.segmentation import Masks, Segmenter, SegmenterConfig
from gradcamo_assets.segmentation.intensities import combine_stains, find_channels

Case = tuple[str, np.ndarray, tuple[str, ...], tuple[float | None, ...], SegmenterConfig]


def cases(data: Path) -> Iterator[Case]:
    """Title, image (C, Z, Y, X), channels, voxel size (z, y, x; um) and settings of every picture."""
    unknown = (None, None, None)
    jump = zarr.open_array(data / "jump_rab30_mini" / "jump_rab30_mini" / "images.zarr" / "images", mode="r")[:]
    for image, title in zip(jump, ("JUMP, sparse", "JUMP, dense"), strict=True):
        channels = ("AGP", "DNA", "ER", "Mito", "RNA")
        yield title, image[:, None], channels, unknown, SegmenterConfig(diameter=50)
    stack = tifffile.imread(data / "plantseg_rgb3d" / "tests" / "resources" / "rgb_3D.tif").transpose(1, 0, 2, 3)
    yield "cultured cells in 3D", stack, ("nuclei", "cytoplasm"), unknown, SegmenterConfig(mode="3d", anisotropy=1.0)
    folder = data / "imagexpress_9987" / "resources" / "ImageXpress_exported" / "9987_Plate_3434" / "TimePoint_1"
    planes = [tifffile.imread(folder / "ZStep_0" / f"9987_B02_s1_w{wave}.TIF") for wave in (1, 2)]
    settings = SegmenterConfig(diameter=16, min_volume=40)
    yield "ImageXpress", np.stack(planes)[:, None], ("DAPI", "FITC"), (None, 1.3672, 1.3672), settings
    for index in (2, 4):
        made = hard_field(index)
        yield f"synthetic, {made.name}", made.image, made.channels, made.voxel_size, SegmenterConfig()


def overlay(
    image: np.ndarray,
    channels: tuple[str, ...],
    masks: Masks,
    cut: tuple[int | slice, ...],
    nucleus_name: str | None = None,
) -> np.ndarray:
    """A plane of (Z, Y, X) as RGB: stains grey, DNA bluish, outlines of cells yellow and of nuclei red."""
    nuclear, stains = find_channels(channels, nucleus_name, None)
    cytoplasm = combine_stains([image[k] for k in stains or (nuclear,)])[cut].clip(0, 1)
    nucleus = np.zeros_like(cytoplasm) if nuclear is None else combine_stains([image[nuclear]])[cut].clip(0, 1)
    picture = np.stack([0.8 * cytoplasm, 0.8 * cytoplasm + 0.1 * nucleus, 0.6 * cytoplasm + 0.5 * nucleus], -1).clip(
        0, 1
    )
    for labels, colour in ((masks.nuclei, (1, 0.35, 0.25)), (masks.cells, (1, 0.85, 0.2))):
        if labels is not None:
            part = labels[cut]
            picture[(ndi.morphological_gradient(part.astype(int), size=3) > 0) & (part > 0)] = colour
    return picture


def main(data: Path, out: Path) -> None:
    """Segment, count, draw."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pictures: list[tuple[str, np.ndarray, float]] = []
    for title, image, channels, voxels, settings in cases(data):
        masks = Segmenter(settings).segment(image, channels, voxels)
        print(f"{title}: {masks.nuclei.max()} nuclei, {masks.cells.max()} cells")
        depth, height = image.shape[1:3]
        pictures.append((title, overlay(image, channels, masks, (depth // 2, slice(None))), 1))
        if depth > 1:
            row = int((masks.nuclei > 0).sum((0, 2)).argmax()) if masks.nuclei.any() else height // 2
            pictures.append(
                (
                    f"{title}, xz",
                    overlay(image, channels, masks, (slice(None), row)),
                    (voxels[0] or 1) / (voxels[1] or 1),
                )
            )
    figure, axes = plt.subplots(3, 3, figsize=(12, 11))
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, picture, aspect) in zip(axes.flat, pictures, strict=False):
        axis.imshow(picture, interpolation="nearest", aspect=aspect)
        axis.set_title(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(out, dpi=80)
    Image.open(out).convert("RGB").quantize(96).save(out, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("docs/segmentation.png"))
    options = parser.parse_args()
    main(options.data, options.out)
