"""The whole scoring asset, from stored crops and from fields to rows. ``python -m benchmarks.scoring_asset [--quick]``

Against scoring crops that are in memory already, and its memory at 500 and at 5,000 cells. For the memory, the many
cells are one field's shards under many names, so that the disk holds them once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.field_scene import write_recorded_crops
from gradcamo_assets.cells import NEIGHBOUR, TARGET, CropField, field_crops, open_crops, store_pixels, write_crops
from gradcamo_assets.networks.bundle import BundleConfig, save_bundle
from gradcamo_assets.networks.efficientnet3d import EfficientNet3D
from gradcamo_assets.provenance import Provenance
from gradcamo_assets.scoring.scorer import Scorer
from gradcamo_assets.tables import Lake
from gradcamo_assets.tables.schema import lake_table

CHANNELS = ["DNA", "ER", "RNA", "AGP", "Mito"]
FIELD = 50
_FIELDS = 2


def peak_resident() -> float:
    """The most memory this process has held, MB. Linux's rusage would count the process that started this one too."""
    status = Path("/proc/self/status")
    if status.exists():
        row = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
        return int(row.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def crops_of(shape: tuple[int, int, int], n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blobs with shot noise, as dim and as noisy as stains are."""
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    cell = (z / 0.8) ** 2 + (y / 0.45) ** 2 + (x / 0.45) ** 2 < 1
    labels = np.where(cell, TARGET, np.where(y < -0.7, NEIGHBOUR, 0)).astype(np.uint8)
    for _ in range(n):
        yield rng.poisson(150 + 400 * cell + 100 * rng.random((5, 1, 1, 1)), (5, *shape)).astype(np.uint16), labels


def write_field(path: Path, shape: tuple[int, int, int], n: int = FIELD) -> None:
    """The stored crops of one field."""
    write_crops(
        path, crops_of(shape, n), cell_ids=[f"P/A01/1/{i}" for i in range(n)], shape=shape, channels=CHANNELS,
        statistics={"center": [150.0] * 5, "scale": [60.0] * 5}, voxel_size=[1.0, 0.3, 0.3],
        provenance=Provenance("", {}, "1"),
    )  # fmt: skip


def write_bundle(folder: Path, shape: tuple[int, int, int]) -> Path:
    """A fresh default encoder."""
    torch.manual_seed(0)
    config = BundleConfig("efficientnet3d-small", "activation", list("abcdefgh"), CHANNELS, list(shape), [1, 0.3, 0.3])
    save_bundle(folder, EfficientNet3D(5, 8).eval(), config)
    return folder


def score_to_lake(scorer: Scorer, fields: list[CropField], lake: Lake) -> int:
    """What the asset does with the fields of a partition: all are scored, then scores and embeddings are committed."""
    rows, vectors = [], []
    for number, field in enumerate(fields):
        scored = scorer.score(field)
        cells = [f"P/A01/{number}/{i}" for i in range(len(field))]
        rows.append(scored.scores.with_columns(pl.Series("Metadata_CellID", cells)))
        vectors.append(scored.embeddings)
    keys: dict[str, object] = {"Metadata_Plate": "P", "Metadata_Well": "A01", "Metadata_Site": 1}
    keys |= {"model_name": "m", "model_version": 1, "model_run": "r"}
    embedding = pl.Series("embedding", [row for part in vectors for row in part], dtype=pl.List(pl.Float32))
    scores = pl.concat(rows)
    for name, frame in (("scores", scores), ("embeddings", scores.select("Metadata_CellID").with_columns(embedding))):
        table = lake_table(name).empty()
        given = frame.with_columns(**{key: pl.lit(value) for key, value in keys.items()}, split=pl.lit("unseen"),
                                   mask_version=pl.lit("1"), crop_version=pl.lit("1"))  # fmt: skip
        whole = given.select(pl.col(c) if c in given.columns else pl.lit(None).alias(c) for c in table.columns)
        lake.write(name, whole, plate="P", site=1, model_run="r")
    return len(scores)


def score_in_memory(scorer: Scorer, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
    """The same score on standardised crops that are in memory, and nothing kept."""
    done = 0
    for images, labels in batches:
        done += len(scorer.explain(images, labels).columns()["gradcamo"])
    return done


def peak_of(cells: int, folder: Path) -> float:
    """Peak memory of a fresh process that scores so many cells, MB."""
    command = [sys.executable, "-m", "benchmarks.scoring_asset", "--peak", str(cells), str(folder)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def measure(quick: bool) -> dict[str, float]:
    """Speed from stored crops, from fields and from memory, disk and peak memory; prints a table."""
    shape = (8, 64, 64) if quick else (21, 128, 128)
    few, many = (100, 400) if quick else (500, 5000)
    # Only the field that was read last stays in memory, so that every field is read each time.
    field_crops._LOADED = field_crops._LoadedFields(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recorded = write_recorded_crops(folder / "home", CHANNELS, shape, _FIELDS)
        start = time.perf_counter()
        stored = [store_pixels(path, folder / "stored" / str(number)) for number, path in enumerate(recorded)]
        seconds_to_store = time.perf_counter() - start
        scorer = Scorer(write_bundle(folder / "bundle", shape))
        batches = []
        for field in map(open_crops, stored):
            rows = [slice(start, start + scorer.batch_size) for start in range(0, len(field), scorer.batch_size)]
            batches += [(images.clone(), labels.clone()) for images, labels in scorer.batches(field, rows)]
        cells = sum(len(labels) for _, labels in batches)
        lake = Lake(folder / "lake")
        runs: dict[str, Callable[[], int]] = {
            "memory": lambda: score_in_memory(scorer, batches),
            "stored crops": lambda: score_to_lake(scorer, [open_crops(path) for path in stored], lake),
            "fields": lambda: score_to_lake(scorer, [open_crops(path) for path in recorded], lake),
        }
        seconds: dict[str, list[float]] = {what: [] for what in runs}
        for number in range(3 if quick else 8):
            for what in random.sample(sorted(runs), len(runs)):
                start = time.perf_counter()
                runs[what]()
                if number:
                    seconds[what].append(time.perf_counter() - start)
        medians = {what: statistics.median(values) for what, values in seconds.items()}
        disk = {
            what: sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file()) / cells
            for what, paths in (("stored crops", stored), ("fields", recorded))
        }
        write_field(folder / "crops.zarr", shape)
        peaks = {cells: peak_of(cells, folder) for cells in (few, many)}
    print(f"\n{cells} cells of 5 x {' x '.join(map(str, shape))}, {scorer.precision}, {scorer.runtime}")
    print(f"{'scored from':14}{'seconds':>9}{'cells/s':>9}{'x memory':>10}{'bytes a cell on disk':>22}")
    for what, value in medians.items():
        ratio = value / medians["memory"]
        print(f"{what:14}{value:9.2f}{cells / value:9.1f}{ratio:10.3f}{disk.get(what, 0):22,.0f}")
    print(f"to store the crops, once: {seconds_to_store:.2f} s")
    print(f"peak memory from stored crops: {peaks[few]:.0f} MB at {few} cells, {peaks[many]:.0f} MB at {many}")
    return {
        "asset_over_memory": round(medians["stored crops"] / medians["memory"], 3),
        "fields_over_memory": round(medians["fields"] / medians["memory"], 3),
        "fields_speed": round(medians["stored crops"] / medians["fields"], 3),
        "fields_speed_first": round((seconds_to_store + medians["stored crops"]) / medians["fields"], 3),
        "fields_bytes_a_cell": round(disk["fields"]),
        "memory_growth": round(peaks[many] / peaks[few], 3),
    }


def print_peak(cells: int, folder: Path) -> None:
    scorer = Scorer(folder / "bundle")
    fields = [open_crops(folder / "crops.zarr") for _ in range(cells // FIELD)]
    assert score_to_lake(scorer, fields, Lake(folder / "lake")) == cells
    print(peak_resident())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small crops, few cells")
    parser.add_argument("--peak", nargs=2, metavar=("CELLS", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    if given.peak:
        print_peak(int(given.peak[0]), Path(given.peak[1]))
    else:
        print(json.dumps(measure(given.quick)))


if __name__ == "__main__":
    main()
