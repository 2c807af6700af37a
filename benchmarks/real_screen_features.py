"""What can be told from a cell alone, without an encoder? ``python -m benchmarks.real_screen_features``

Classical features are measured inside the mask of each cell of ``benchmarks.real_screen``: spread, texture at four
scales, correlation between stains, distribution from the rim to the middle, nucleus. Each is divided by the cell's own
mean or spread, so that brightness is not among them, and neither is anything outside the mask. A logistic regression
learns from the learnt plates. What it can tell is in the cells themselves, so that no cure for surroundings removes it.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import ndimage as ndi
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from benchmarks.real_screen import ASKED, LEARNT, QUESTIONS, Screen
from gradcamo_assets.cells import TARGET
from gradcamo_assets.cells.crop_store import open_crops
from gradcamo_assets.defs.assets.model_assets import crop_paths, kept_cells

_SCALES = (1, 2, 4, 8)
_FLOOR = 0.02
"""Added to divisors, in standardised units."""


def measure_cell(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the features of one cell, (n,).

    Args:
        image: (C, Y, X), standardised; the first channel is DNA.
        mask: (Y, X) bool.
    """
    inside = image[:, mask]
    mean, spread = inside.mean(1), inside.std(1) + _FLOOR
    brightness = mean + 0.05
    features = [spread / brightness, np.sort(inside, 1)[:, -40:].mean(1) / brightness]
    # Blurred within the mask only, so that no light from outside gets in.
    weight = mask.astype(float)
    blurred = [image] + [
        ndi.gaussian_filter(image * weight, (0, scale, scale)) / (ndi.gaussian_filter(weight, scale) + 1e-6)
        for scale in _SCALES
    ]
    for finer, coarser in pairwise(blurred):
        detail = (finer - coarser)[:, mask]
        features += [np.sqrt((detail**2).mean(1)) / spread, np.cbrt((detail**3).mean(1)) / spread]
    features.append(np.corrcoef(inside + 1e-6 * np.arange(inside.shape[1]))[np.triu_indices(len(image), 1)])
    depth = ndi.distance_transform_edt(mask)[mask]
    ring = np.minimum(4 * depth / depth.max(), 3).astype(int)
    features += [inside[:, ring == k].mean(1) / brightness for k in range(4) if (ring == k).any()]
    features += [np.zeros(len(image))] * (4 - len(np.unique(ring)))
    nucleus = inside[0] > mean[0] + 0.5 * spread[0]
    for part in (nucleus, ~nucleus):
        features.append(inside[:, part].mean(1) / brightness if part.any() else np.zeros(len(image)))
    axes = np.sqrt(np.linalg.eigvalsh(np.cov(np.nonzero(mask))))
    features.append(np.array([mask.sum() ** 0.5, axes[0] / axes[1], depth.max(), nucleus.mean()]))
    return np.nan_to_num(np.concatenate(features))


def features_of(screen: Screen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, n), treatment class and plate of every kept cell."""
    cells = kept_cells(screen.platform, []).drop_nulls("treatment_class")
    classes = dict(cells.select("Metadata_CellID", "treatment_class").iter_rows())
    rows, names, plates = [], [], []
    for path in tqdm(crop_paths(screen.platform, cells), desc=screen.question):
        field = open_crops(path)
        images, labels = field.read(slice(0, len(field)))
        center, scale = (np.asarray(values)[:, None, None] for values in (field.center, field.scale))
        for cell, image, regions in zip(field.cell_ids, images, labels, strict=True):
            rows.append(measure_cell((image[:, 0] - center) / scale, regions[0] == TARGET))
            names.append(classes[cell])
            plates.append(cell.split("/")[0])
    return np.stack(rows), np.array(names), np.array(plates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("data/real_screen"), help="what real_screen kept")
    arguments = parser.parse_args()
    figures = {}
    for question in QUESTIONS:
        features, classes, plates = features_of(Screen(Path(), arguments.folder, question))
        learnt = np.isin(plates, LEARNT)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, class_weight="balanced", max_iter=500))
        model.fit(features[learnt], classes[learnt])
        for plate in ASKED:
            there = plates == plate
            predicted = model.predict(features[there])
            figures[f"{question}_{plate}"] = round(balanced_accuracy_score(classes[there], predicted), 3)
            for name in np.unique(classes):
                recall = (predicted == classes[there])[classes[there] == name].mean()
                print(f"{question:10} {plate} {name:20} recall {recall:.2f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
