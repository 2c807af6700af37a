"""How well are cells and nuclei found? ``python -m benchmarks.segmentation [--quick] [--baseline DIR]``

Average precision as Cellpose means it, TP / (TP + FP + FN) with one-to-one matches of intersection over union 0.5 and
more in 3D, after stitching; a mean over fields. Fields: the hard ones (``segmentation_fields``), and the synthetic
plates of the package as easy ones. Methods: the compact network as shipped, with no setting but the voxel size; the
same with slices stitched; Otsu and watershed as one writes it with scikit-image; and the ceiling of stitching,
Cellpose's dynamics on the true flows of each slice. The last line is of the first method; ``overhead_share`` is the
share of its time outside the network and Cellpose's dynamics. ``--first-seed`` draws the hard fields anew.

With ``--baseline DIR``, another checkout of this repository segments the same hard fields, in turns with this one, and
nothing else is measured: ``segmentation_gain`` is its processor time over ours. ``--sparse`` takes wide easy fields
with few cells instead.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy import ndimage as ndi
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from tqdm import tqdm

from benchmarks.segmentation_fields import (
    CELL_WIDTH,
    FIRST_SEED,
    HARD,
    LEAST_CELL,
    LEAST_NUCLEUS,
    QUICK,
    Field,
    hard_field,
)
from gradcamo_assets.segmentation import Masks, Segmenter, SegmenterConfig
from gradcamo_assets.segmentation.compact_network import CompactNetwork
from gradcamo_assets.segmentation.intensities import combine_stains, find_channels
from gradcamo_assets.segmentation.masks import count_overlaps, remove_small_objects, stitch_slices
from gradcamo_assets.synthetic import SyntheticPlate, render_field

SPARSE = 5, (21, 768, 768)
"""Seed and shape of the sparse fields."""
EASY_VOXELS = (1.0, 0.5, 0.5)
EASY = ((0, (12, 160, 160), 10), (1, (12, 160, 160), 10), (2, (16, 256, 256), 28), (3, (20, 320, 320), 45))
"""Seed, shape and cells of the easy fields."""


def average_precision(predicted: np.ndarray, truth: np.ndarray, iou: float = 0.5) -> float:
    """TP / (TP + FP + FN) of two label arrays of one shape; 1 where both are empty."""
    first, second, shared = count_overlaps(predicted, truth)
    sizes, true_sizes = np.bincount(predicted.ravel()), np.bincount(truth.ravel())
    good = shared >= iou * (sizes[first] + true_sizes[second] - shared)
    edges = coo_matrix((np.ones(good.sum(), bool), (first[good], second[good])), (len(sizes), len(true_sizes)))
    hits = int((maximum_bipartite_matching(edges.tocsr()) >= 0).sum()) if good.any() else 0
    objects = np.count_nonzero(sizes[1:]) + np.count_nonzero(true_sizes[1:]) - hits
    return hits / objects if objects else 1.0


def easy_field(seed: int, shape: tuple[int, int, int], cells: int) -> Field:
    """One field of the package's own synthetic plates."""
    plate = SyntheticPlate(seed=seed, shape=shape, cells=cells)
    made = render_field(plate, seed, 1)
    return Field(
        f"plate, {shape[2]} wide, {cells} cells",
        made.image,
        plate.stains,
        EASY_VOXELS,
        made.cells.astype(int),
        made.nuclei.astype(int),
    )


def watershed_masks(made: Field) -> Masks:
    """Otsu's threshold and watersheds in 3D: nuclei split by their distance transform, cells grown from nuclei."""
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian, threshold_otsu
    from skimage.segmentation import watershed

    nuclear, stains = find_channels(made.channels, None, None)
    pixel = made.voxel_size[2]
    sigma = (pixel / made.voxel_size[0], 1, 1)
    smooth = gaussian(made.image[nuclear].astype(np.float32), sigma)
    inside = smooth > threshold_otsu(smooth)
    distance = ndi.distance_transform_edt(inside, sampling=made.voxel_size)
    apart = max(1, round(0.2 * CELL_WIDTH / pixel))
    peaks = peak_local_max(gaussian(distance, sigma), min_distance=apart, threshold_abs=0.1, exclude_border=False)
    markers = np.zeros(inside.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    nuclei = remove_small_objects(watershed(-distance, markers, mask=inside), LEAST_NUCLEUS)
    if stains:
        smooth = gaussian(combine_stains([made.image[k] for k in stains]), sigma)
    body = (smooth > threshold_otsu(smooth)) | (nuclei > 0)
    depth = ndi.distance_transform_edt(body, sampling=made.voxel_size)
    return Masks(remove_small_objects(watershed(-depth, nuclei.astype(np.int32), mask=body), LEAST_CELL), nuclei)


def ceiling_masks(made: Field) -> Masks:
    """The true masks, slice by slice turned into flows, by Cellpose's dynamics into masks, and stitched."""
    least = {"cells": LEAST_CELL, "nuclei": LEAST_NUCLEUS}
    return Masks(**{which: remove_small_objects(stitch_slices(_from_flows(getattr(made, which)), 0.25), least[which])
                    for which in least})  # fmt: skip


def _from_flows(truth: np.ndarray) -> np.ndarray:
    from cellpose.dynamics import compute_masks, masks_to_flows_gpu

    planes = np.zeros(truth.shape, np.int32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Hundreds of small steps, which further threads only slow.
    for z, plane in enumerate(truth):
        present, labels = np.unique(np.append(plane, 0), return_inverse=True)
        labels = labels[:-1].reshape(plane.shape).astype(np.int64)
        if len(present) > 1:
            widest = 2 * int(np.sqrt(np.bincount(labels.ravel())[1:].max()))
            flows, _ = masks_to_flows_gpu(labels, niter=2 * widest)
            planes[z] = compute_masks(5 * flows, np.where(plane > 0, 5.0, -5.0), niter=4 * widest, flow_threshold=0)
    torch.set_num_threads(threads)
    return planes


@dataclass
class Clock:
    """Seconds by part: ``total``, and within it ``network`` and ``dynamics``."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("total", "network", "dynamics"), 0.0))

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - start

        return run

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Times what runs inside; calls that enclose one another are not counted twice."""
        import cellpose.dynamics

        dynamics = cellpose.dynamics
        with (
            mock.patch.object(CompactNetwork, "forward", self.timed("network", CompactNetwork.forward)),
            mock.patch.object(
                dynamics, "resize_and_compute_masks", self.timed("dynamics", dynamics.resize_and_compute_masks)
            ),
        ):
            yield


@cache
def our_segmenter(mode: str, alone: bool) -> Segmenter:
    """The shipped segmenter, told nothing but channel names and voxel size, with its networks loaded."""
    segmenter = Segmenter(SegmenterConfig(mode=mode, cytoplasm=("DNA",) if alone else None))
    segmenter.segment(np.random.default_rng(0).poisson(100, (1, 1, 64, 64)), ["DNA"])
    return segmenter


def our_masks(made: Field, mode: str, clock: Clock) -> Masks:
    """Masks by our segmenter, and the clock moved on."""
    segmenter = our_segmenter(mode, len(made.channels) == 1)
    with clock.watching():
        return clock.timed("total", segmenter.segment)(made.image, made.channels, made.voxel_size)


def main(quick: bool, first_seed: int = FIRST_SEED) -> dict[str, float]:
    """Print the table of every field and method; the figures of the last line."""
    clocks, scores = {mode: Clock() for mode in OURS.values()}, {}
    todo = [("hard", hard_field, (k, first_seed)) for k in (QUICK if quick else range(len(HARD)))]
    todo += [("easy", easy_field, case) for case in (EASY[:1] if quick else EASY)]
    print("| field | kind | cells | nuclei | " + " | ".join(f"{m} cells | {m} nuclei" for m in METHODS) + " |")
    print("|" + " --- |" * (4 + 2 * len(METHODS)))
    for kind, make, case in tqdm(todo, desc="fields", unit="field", disable=None):
        made = make(*case)
        row = []
        for method in METHODS:
            mode = OURS.get(method)
            masks = our_masks(made, mode, clocks[mode]) if mode else METHODS[method](made)
            # A nucleus stain alone does not show where cells end.
            row.append(average_precision(masks.cells, made.cells) if len(made.channels) > 1 else np.nan)
            row.append(average_precision(masks.nuclei, made.nuclei))
        scores.setdefault(kind, []).append(row)
        print(f"| {made.name} | {kind} | {made.cells.max()} | {made.nuclei.max()} | {_columns(row)} |", flush=True)
    means = {kind: np.nanmean(rows, axis=0) for kind, rows in scores.items()}
    for kind, mean in means.items():
        print(f"| mean | {kind} | | | {_columns(mean)} |")
    for mode, clock in clocks.items():
        seconds = clock.seconds
        inner = seconds["network"] + seconds["dynamics"]
        print(
            f"{mode}: {seconds['total']:.1f} s, of which network {seconds['network']:.1f}, dynamics "
            f"{seconds['dynamics']:.1f}, the rest {seconds['total'] - inner:.1f}"
        )
    seconds = clocks["auto"].seconds
    return {
        "cells_ap50": round(float(means["hard"][0]), 4),
        "nuclei_ap50": round(float(means["hard"][1]), 4),
        "easy_cells_ap50": round(float(means["easy"][0]), 4),
        "easy_nuclei_ap50": round(float(means["easy"][1]), 4),
        "overhead_share": round(1 - (seconds["network"] + seconds["dynamics"]) / seconds["total"], 4),
    }


class Checkout:
    """A process that segments stored fields, on one thread, with the package of a checkout."""

    def __init__(self, folder: Path):
        program = Path(__file__).with_name("segment_stored_fields.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", program], env=os.environ | {"PYTHONPATH": str(folder)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def segment(self, made: Field, scratch: Path) -> tuple[Masks, float]:
        """Masks of a field and the processor seconds they took."""
        np.save(scratch / "image.npy", made.image)
        field = {"image": str(scratch / "image.npy"), "masks": str(scratch / "masks.npz")}
        field |= {"channels": made.channels, "voxel_size": made.voxel_size}
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(field), file=self._process.stdin, flush=True)
        seconds = float(self._process.stdout.readline())
        with np.load(scratch / "masks.npz") as masks:
            return Masks(masks["cells"], masks["nuclei"]), seconds

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def compare(baseline: Path, fields: Iterable[Field]) -> dict[str, float]:
    """Print the table of fields, this checkout and another in turns; the figures of the last line."""
    checkouts = {"ours": Checkout(Path(__file__).parents[1]), "baseline": Checkout(baseline.absolute())}
    rows: dict[str, list[list[float]]] = {name: [] for name in checkouts}
    columns = " | ".join(f"{name} cells | {name} nuclei | {name} processor s" for name in checkouts)
    print(f"| field | {columns} |\n|" + " --- |" * (1 + 3 * len(checkouts)))
    with TemporaryDirectory() as scratch:
        for made in fields:
            for name, checkout in checkouts.items():
                masks, seconds = checkout.segment(made, Path(scratch))
                scores = [average_precision(getattr(masks, which), getattr(made, which)) for which in MASKS]
                rows[name].append([*scores, seconds])
            print(f"| {made.name} | " + " | ".join(_columns(rows[name][-1]) for name in checkouts) + " |", flush=True)
    for checkout in checkouts.values():
        checkout.close()
    cells, nuclei, seconds = (dict(zip(rows, column, strict=True)) for column in np.mean(list(rows.values()), axis=1).T)
    return {
        "segmentation_gain": round(seconds["baseline"] / seconds["ours"], 3),
        "cells_ap50": round(cells["ours"], 4),
        "baseline_cells_ap50": round(cells["baseline"], 4),
        "nuclei_ap50": round(nuclei["ours"], 4),
        "baseline_nuclei_ap50": round(nuclei["baseline"], 4),
    }


def _columns(values: Any) -> str:
    return " | ".join("" if np.isnan(value) else f"{value:.3f}" for value in values)


MASKS = ("cells", "nuclei")
OURS = {"compact": "auto", "compact, stitched": "stitch"}
METHODS: dict[str, Callable[[Field], Masks] | None] = {
    **dict.fromkeys(OURS), "Otsu + watershed": watershed_masks, "true flows": ceiling_masks
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--baseline", type=Path, metavar="DIR", help="another checkout, to compare speed and AP with")
    parser.add_argument("--fields", type=int, nargs="+", default=QUICK, help="with --baseline: which hard fields")
    parser.add_argument("--sparse", type=int, nargs="+", metavar="CELLS", help="with --baseline: numbers of cells")
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.baseline:
        if options.sparse:
            fields = (easy_field(*SPARSE, cells) for cells in options.sparse)
        else:
            fields = (hard_field(index, options.first_seed) for index in options.fields)
        print(json.dumps(compare(options.baseline, fields)))
    else:
        print(json.dumps(main(options.quick, options.first_seed)))
