"""Linear probes: what else than the treatment can be read from an embedding (site, well position, plate)?"""

from __future__ import annotations

import numpy as np
import polars as pl

from gradcamo_assets.profiling.aggregate import MODEL, TREATMENT, vectors

_MAX_CELLS = 3000
_MAX_COMPONENTS = 64
_SCHEMA = {
    "Metadata_Plate": pl.String(), "target": pl.String(), "representation": pl.String(),
    "score": pl.Float64(), "chance": pl.Float64(), "n": pl.Int64(),
}  # fmt: skip


def confounder_audit(embeddings: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """How well ``treatment``, ``site``, ``well_row``, ``well_column`` and ``plate`` are predicted from an embedding.

    The probe is a logistic regression on the (standardised) leading 64 principal components, class-balanced and
    cross-validated over wells: no well is both learned from and predicted, so a class needs two wells to count, and
    a target with fewer than two such classes gets no row. The representation ``cell_count`` (cells in the field) is
    the baseline: an embedding that does no better has learned density. At most 3000 cells, drawn at random, a probe.

    Args:
        embeddings: as for ``well_profiles``.

    Returns:
        ``model_name``, ``model_version``, ``Metadata_Plate`` (NULL: over all plates, where there are several),
        ``target``, ``representation``, ``score`` (balanced accuracy), ``chance`` (1 / classes), ``n`` (cells).
    """
    field = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    cells = embeddings.drop_nulls("embedding").with_columns(
        pl.struct(TREATMENT).rank("dense").alias("treatment"),
        pl.col("Metadata_Site").alias("site"),
        pl.col("Metadata_Well").str.extract(r"^([A-Z]+)").alias("well_row"),
        pl.col("Metadata_Well").str.extract(r"(\d+)$").alias("well_column"),
        pl.col("Metadata_Plate").alias("plate"),
        pl.struct("Metadata_Plate", "Metadata_Well").rank("dense").alias("well"),
        pl.len().over([*MODEL, *field]).alias("cell_count"),
    )
    rows = []
    for model, of_model in cells.group_by(MODEL, maintain_order=True):
        scopes = [(plate, part) for (plate,), part in of_model.group_by(["Metadata_Plate"], maintain_order=True)]
        if len(scopes) > 1:
            scopes.append((None, of_model))
        for plate, scope in scopes:
            sample = scope.sample(min(_MAX_CELLS, scope.height), seed=seed)
            for target in ("treatment", "site", "well_row", "well_column", "plate"):
                rows += [(*model, plate, target, *result) for result in _probe(sample, target, seed)]
    schema = {name: embeddings.schema[name] for name in MODEL}
    return pl.DataFrame(rows, {**schema, **_SCHEMA}, orient="row")


def _probe(cells: pl.DataFrame, target: str, seed: int) -> list[tuple[str, float, float, int]]:
    """(representation, score, chance, n) for each representation; empty where the target cannot be tested."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    cells = cells.drop_nulls(target).filter(pl.col("well").n_unique().over(target) >= 2)
    wells_a_class = cells.group_by(target).agg(pl.col("well").n_unique())["well"]
    if len(wells_a_class) < 2:
        return []
    n_folds = min(5, int(wells_a_class.min()))  # type: ignore[arg-type]
    classes = cells[target].rank("dense").to_numpy().astype(int)
    folds = _folds(cells["well"].to_numpy(), classes, n_folds, seed)
    if any(len(np.unique(classes[folds != fold])) < 2 for fold in np.unique(folds)):
        return []
    results = []
    for name, x in (
        ("embedding", vectors(cells["embedding"])),
        ("cell_count", np.log1p(cells["cell_count"].to_numpy())[:, None]),
    ):
        smallest_training = int(len(x) - np.bincount(folds).max())
        probe = make_pipeline(
            StandardScaler(),
            PCA(min(_MAX_COMPONENTS, x.shape[1], smallest_training), random_state=seed),
            LogisticRegression(class_weight="balanced", max_iter=300),
        )
        with np.errstate(invalid="ignore"):  # a representation without any spread is at chance, not an error
            predicted = cross_val_predict(probe, x, classes, cv=PredefinedSplit(folds))
        score = float(balanced_accuracy_score(classes, predicted))
        results.append((name, score, 1 / len(wells_a_class), len(x)))
    return results


def _folds(wells: np.ndarray, classes: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """A fold a cell, one a well. Wells are dealt out in turn, class after class: every class of ``n_folds`` wells or
    more that has them to itself is in every fold, which a random draw would not promise on small plates."""
    names, first = np.unique(wells, return_index=True)
    order = np.lexsort([np.random.default_rng(seed).permutation(len(names)), classes[first]])
    fold_of_well = np.empty(len(names), int)
    fold_of_well[order] = np.arange(len(names)) % n_folds
    return fold_of_well[np.searchsorted(names, wells)]
