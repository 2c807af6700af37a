"""What do stored crops cost? ``python -m benchmarks.crops [--quick]``

A labelled synthetic field (5 stains with shot noise) is cut into single-cell crops and written through the package;
in turns with it the same crops, cut beforehand, are written to a store of the same configuration by zarr alone. Then
one random crop at a time is read back with its labels, in turns by the package, by zarr alone and by zarr with the
codec pipeline of zarrs, and what the store takes on disk is held against the raw bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import zarr
import zarrs  # noqa: F401  Registers its codec pipeline.
from tqdm import tqdm

from gradcamo_assets.cells import CropConfig, cell_table, cut_crops, open_crops, write_crops
from gradcamo_assets.provenance import Provenance
from gradcamo_assets.synthetic import SyntheticPlate, render_field

CHANNELS = ["DNA", "ER", "RNA", "AGP", "Mito"]
CONFIG = CropConfig((21, 128, 128), keep_border=True)
FILL = np.full(len(CHANNELS), 100.0)


def cut_and_write(path: Path, image: np.ndarray, cells: np.ndarray, table: pl.DataFrame) -> None:
    """Through the package, as the ``crops`` asset does it."""
    write_crops(
        path,
        cut_crops(image, cells, table, CONFIG, FILL),
        cell_ids=[f"P/A01/1/{label}" for label in table["label"]],
        shape=CONFIG.shape,
        channels=CHANNELS,
        statistics={"center": FILL.tolist(), "scale": FILL.tolist()},
        voxel_size=[1.0, 0.5, 0.5],
        provenance=Provenance("", {}, ""),
    )


def copy(path: Path, like: Path, crops: dict[str, np.ndarray]) -> None:
    """Crops in memory to arrays of the same chunks, shards and codecs, a shard at a time."""
    source, target = zarr.open_group(like, mode="r"), zarr.open_group(path, mode="w", zarr_format=3)
    for name, data in crops.items():
        array = source[name]
        assert isinstance(array, zarr.Array)
        copied = target.create_array(
            name, shape=data.shape, chunks=array.chunks, shards=array.shards, dtype=array.dtype,
            compressors=array.compressors,
        )  # fmt: skip
        step = (array.shards or array.chunks)[0]
        for start in range(0, len(data), step):
            copied[start : start + step] = data[start : start + step]


def readers(path: Path) -> dict[str, Callable[[int], tuple[Any, Any]]]:
    """Functions that read one crop and its labels, by the name of what reads."""

    def read_by(pipeline: str) -> Callable[[int], tuple[Any, Any]]:
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            group = zarr.open_group(path, mode="r")
            images, labels = (cast(zarr.Array, group[name]) for name in ("images", "labels"))
        return lambda row: (images[row], labels[row])

    return {
        "read": open_crops(path).read,
        "zarr_read": read_by("zarr.core.codec_pipeline.BatchedCodecPipeline"),
        "zarrs_read": read_by("zarrs.ZarrsCodecPipeline"),
    }


def seconds(work: Callable[..., object], *args: object) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    work(*args)
    return time.perf_counter() - began


def measure(shape: tuple[int, int, int], cells: int, rounds: int, reads: int) -> dict[str, float]:
    """The figures, over a field of ``shape``."""
    plate = SyntheticPlate(name="crops", wells=1, sites=1, shape=shape, channels=len(CHANNELS), cells=cells)
    field = render_field(plate, 0, 1)
    table = cell_table(field.cells, field.nuclei)
    images, labels = zip(*cut_crops(field.image, field.cells, table, CONFIG, FILL), strict=True)
    crops = {"images": np.stack(images), "labels": np.stack(labels)}
    del images, labels
    raw = crops["images"].nbytes
    taken: dict[str, list[float]] = {"cut": [], "copy": [], "cut in memory": [], "copy in memory": []}
    with tempfile.TemporaryDirectory() as scratch:
        ours, theirs = Path(scratch) / "ours.zarr", Path(scratch) / "theirs.zarr"
        cut_and_write(ours, field.image, field.cells, table)
        for _ in tqdm(range(rounds), desc="cutting and copying", disable=None):
            taken["copy"].append(seconds(copy, theirs, ours, crops))
            taken["cut"].append(seconds(cut_and_write, ours, field.image, field.cells, table))
            cutting = cut_crops(field.image, field.cells, table, CONFIG, FILL)
            taken["cut in memory"].append(seconds(deque, cutting, 0))
            copying = map(np.copy, (*crops["images"], *crops["labels"]))
            taken["copy in memory"].append(seconds(deque, copying, 0))
        stored = sum(path.stat().st_size for path in ours.rglob("*") if path.is_file())
        read_by = readers(ours)
        reading: dict[str, list[float]] = {name: [] for name in read_by}
        for row in np.random.default_rng(0).integers(0, len(table), reads).tolist():
            for name, read in read_by.items():
                reading[name].append(1000 * seconds(read, row))
        for read in read_by.values():
            np.testing.assert_array_equal(read(0)[0], crops["images"][0])
    typical = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "crops": len(table),
        "raw_mb": raw / 1e6,
        **{f"{name.replace(' ', '_')}_s": value for name, value in typical.items()},
        "bytes_a_cell": stored / len(table),
        "read_p95_ms": float(np.percentile(reading["read"], 95)),
        "copy_over_cut": typical["copy"] / typical["cut"],
        **{f"{name}_ms": statistics.median(values) for name, values in reading.items()},
        "size_ratio": stored / raw,
    }


def main() -> None:
    """Print the table and the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller field, under a minute")
    quick = parser.parse_args().quick
    found = measure((21, 400, 400), 40, 3, 100) if quick else measure((21, 1080, 1080), 300, 3, 300)
    print("| what | value |\n| --- | --- |")
    for name, value in found.items():
        print(f"| {name} | {value:.3f} |")
    figures = ("copy_over_cut", "read_ms", "size_ratio")
    print(json.dumps({name: round(found[name], 3) for name in figures}))


if __name__ == "__main__":
    main()
