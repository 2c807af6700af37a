"""How well are real cells found? ``python -m benchmarks.real_segmentation DATA [--quick] [--overlays DIR]``

DATA is the folder of the real images (``../shared/data``). Nuclei of ``lincs_a549`` are compared with the centres that
CellProfiler found: precision and recall, one to one within 10 pixels. CellProfiler left out nuclei that touch the
border, so ours there count only if they match; ``precision_with_border`` counts all of them. The two organoids are
compared with their authors' labels (average precision at an intersection over union of 0.5, in 3D). ``bbbc016_dose``
has no truth and no nucleus stain: cells are counted. ``--overlays`` draws the best, median and worst of each kind.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage as ndi
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree
from tqdm import tqdm

from benchmarks.real_images import RealField, read_lincs, read_organoid, read_transfluor
from benchmarks.segmentation import average_precision
from benchmarks.segmentation_overlays import overlay
from gradcamo_assets.cells import cell_table
from gradcamo_assets.segmentation import Masks, Segmenter

_DISTANCE = 10
_COLUMNS = (
    "cells", "no nucleus", "several nuclei", "nuclei", "by others", "precision", "recall", "AP nuclei", "AP cells",
    "seconds", "processor seconds",
)  # fmt: skip
_QUICK_STEP = {"lincs_a549": 10, "organoids_3d": 2, "bbbc016_dose": 12}
Row = dict[str, Any]


def find_matches(found: np.ndarray, truth: np.ndarray, distance: float) -> np.ndarray:
    """Which of the points ``found`` (n, 2) have a partner in ``truth`` (m, 2), one to one, with most pairs."""
    near = KDTree(found).sparse_distance_matrix(KDTree(truth), distance, output_type="coo_matrix")
    edges = coo_matrix((np.ones(near.nnz, bool), (near.row, near.col)), (len(found), len(truth)))
    return maximum_bipartite_matching(edges.tocsr(), perm_type="column") >= 0


def rate_nuclei(nuclei: np.ndarray, centres: np.ndarray) -> Row:
    """Numbers of our nuclei (Y, X): ``matched``, ``counted`` (matched, or off the border), ``found``; and ``truth``."""
    boxes = ndi.find_objects(nuclei)
    inner = []
    for box in boxes:
        inner.append(all(part.start > 0 and part.stop < size for part, size in zip(box, nuclei.shape, strict=True)))
    centres_of_ours = np.array(ndi.center_of_mass(nuclei > 0, nuclei, range(1, len(boxes) + 1)))
    matched = find_matches(centres_of_ours, centres, _DISTANCE)
    return {
        "matched": int(matched.sum()),
        "counted": int((matched | inner).sum()),
        "found": len(boxes),
        "truth": len(centres),
    }


def rate_field(field: RealField, masks: Masks) -> Row:
    """What is known about the masks of one field; ``score`` ranks it among its kind."""
    table = cell_table(masks.cells, masks.nuclei)
    row: Row = {"cells": len(table), "score": len(table)}
    if masks.nuclei is not None:
        row |= {"none": int((table["n_nuclei"] == 0).sum()), "several": int((table["n_nuclei"] > 1).sum())}
    if masks.nuclei is not None and field.centres is not None:
        row |= rate_nuclei(masks.nuclei[0].astype(np.int32), field.centres)
        row["score"] = 2 * row["matched"] / (row["counted"] + row["truth"])
    if masks.nuclei is not None and field.nuclei is not None and field.cells is not None:
        row["nuclei_ap50"] = average_precision(masks.nuclei, field.nuclei)
        row["cells_ap50"] = average_precision(masks.cells, field.cells)
        row["score"] = row["nuclei_ap50"] + row["cells_ap50"]
    return row


def fields_of(data: Path, quick: bool) -> Iterator[tuple[str, list[partial[RealField]]]]:
    """Functions that read the fields, by kind; a kind that is not in DATA has none."""
    readers: dict[str, list[partial[RealField]]] = {
        "lincs_a549": [partial(read_lincs, path) for path in data.glob("lincs_a549/locations/*/*-Nuclei.csv")],
        "organoids_3d": [partial(read_organoid, path) for path in data.glob("organoids_3d/object_*")],
        "bbbc016_dose": [partial(read_transfluor, path) for path in data.glob("bbbc016_dose/*.TIF")],
    }
    for kind, functions in readers.items():
        functions.sort(key=lambda function: function.args)
        yield kind, functions[:: _QUICK_STEP[kind] if quick else 1]


def draw(field: RealField, masks: Masks, path: Path) -> None:
    """Write outlines as PNG: cells yellow, nuclei red, and centres by others cyan; of a stack, its middle slice."""
    cut = (field.image.shape[1] // 2, slice(None))
    picture = overlay(field.image, field.channels, masks, cut, field.settings.nucleus)
    for y, x in () if field.centres is None else field.centres.round().astype(int):
        picture[max(0, y - 2) : y + 2, max(0, x - 2) : x + 2] = (0, 1, 1)
    Image.fromarray((255 * picture).astype(np.uint8)).save(path)


def summarise(rows: dict[str, list[Row]]) -> Row:
    """The figures of the last line."""
    figures: Row = {}
    for kind, found in rows.items():
        total = {name: sum(row.get(name, 0) for row in found) for name in sorted({key for row in found for key in row})}
        figures[f"{kind}_cells_a_field"] = round(total["cells"] / len(found), 1)
        figures[f"{kind}_seconds_a_field"] = round(total["seconds"] / len(found), 2)
        figures[f"{kind}_processor_seconds_a_field"] = round(total["processor"] / len(found), 2)
        if "none" in total:
            figures[f"{kind}_no_nucleus_share"] = round(total["none"] / total["cells"], 4)
            figures[f"{kind}_several_nuclei_share"] = round(total["several"] / total["cells"], 4)
        if "matched" in total:
            figures["nuclei_precision"] = round(total["matched"] / total["counted"], 4)
            figures["precision_with_border"] = round(total["matched"] / total["found"], 4)
            figures["nuclei_recall"] = round(total["matched"] / total["truth"], 4)
        if "nuclei_ap50" in total:
            figures["organoid_nuclei_ap50"] = round(total["nuclei_ap50"] / len(found), 4)
            figures["organoid_cells_ap50"] = round(total["cells_ap50"] / len(found), 4)
    return figures


def main(data: Path, quick: bool, overlays: Path | None) -> Row:
    """Print a row for every field; return the figures of the last line."""
    rows: dict[str, list[Row]] = {}
    print("| " + " | ".join(("data", "field", *_COLUMNS)) + " |")
    print("|" + " --- |" * (2 + len(_COLUMNS)))
    for kind, readers in fields_of(data, quick):
        for read in tqdm(readers, desc=kind, unit="field", disable=None):
            field = read()
            segmenter = Segmenter(field.settings)
            segmenter.segment(field.image[:, :1, :64, :64], field.channels)  # Loads the networks.
            wall, processor = time.perf_counter(), time.process_time()
            masks = segmenter.segment(field.image, field.channels)
            row = {"seconds": time.perf_counter() - wall, "processor": time.process_time() - processor}
            row |= rate_field(field, masks)
            rows.setdefault(kind, []).append(row)
            print(f"| {kind} | {field.name} | {_columns(row)} |", flush=True)
        if overlays is not None and readers:
            order = np.argsort([row["score"] for row in rows[kind]])
            for rank, index in (("best", order[-1]), ("median", order[len(order) // 2]), ("worst", order[0])):
                field = readers[index]()
                masks = Segmenter(field.settings).segment(field.image, field.channels)
                draw(field, masks, overlays / f"{kind}_{rank}_{field.name.replace(' ', '_')}.png")
    return summarise(rows)


def _columns(row: Row) -> str:
    values = [row["cells"], row.get("none"), row.get("several"), row.get("found"), row.get("truth")]
    values += [row["matched"] / row[name] if "matched" in row else None for name in ("counted", "truth")]
    values += [row.get("nuclei_ap50"), row.get("cells_ap50"), row["seconds"], row["processor"]]
    return " | ".join("" if v is None else str(v) if isinstance(v, int) else f"{v:.3f}" for v in values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true", help="every tenth field, one organoid")
    parser.add_argument("--overlays", type=Path, metavar="DIR")
    options = parser.parse_args()
    if options.overlays is not None:
        options.overlays.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print(json.dumps(main(options.data, options.quick, options.overlays)))
