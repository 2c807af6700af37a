"""Linear probes: what else than the treatment can be read from an embedding (site, well position, plate)?"""

from __future__ import annotations

from collections.abc import Iterator

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
    targets = {
        "treatment": pl.struct(TREATMENT).rank("dense"),
        "site": pl.col("Metadata_Site"),
        "well_row": pl.col("Metadata_Well").str.extract(r"^([A-Z]+)"),
        "well_column": pl.col("Metadata_Well").str.extract(r"(\d+)$"),
        "plate": pl.col("Metadata_Plate"),
    }
    cells = embeddings.drop_nulls("embedding").with_columns(
        well=pl.struct("Metadata_Plate", "Metadata_Well").rank("dense"),
        cell_count=pl.len().over([*MODEL, "Metadata_Plate", "Metadata_Well", "Metadata_Site"]),
        **targets,
    )
    rows = []
    for model, of_model in cells.group_by(MODEL, maintain_order=True):
        scopes = [(plate, part) for (plate,), part in of_model.group_by(["Metadata_Plate"], maintain_order=True)]
        if len(scopes) > 1:
            scopes.append((None, of_model))
        for plate, scope in scopes:
            sample = scope.sample(min(_MAX_CELLS, scope.height), seed=seed)
            for target in targets:
                rows += [(*model, plate, target, *result) for result in _probe(sample, target, seed)]
    schema = {name: embeddings.schema[name] for name in MODEL}
    return pl.DataFrame(rows, {**schema, **_SCHEMA}, orient="row")


def _probe(cells: pl.DataFrame, target: str, seed: int) -> Iterator[tuple[str, float, float, int]]:
    """(representation, score, chance, n) for each representation; nothing where the target cannot be tested."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    cells = cells.drop_nulls(target).filter(pl.col("well").n_unique().over(target) >= 2)
    wells_a_class = cells.group_by(target).agg(pl.col("well").n_unique())["well"].to_list()
    if len(wells_a_class) < 2:
        return
    classes, wells = cells[target].rank("dense").to_numpy(), cells["well"].to_numpy()
    folds = StratifiedGroupKFold(min(5, *wells_a_class), shuffle=True, random_state=seed)
    splits = list(folds.split(classes, classes, wells))
    if any(len(np.unique(classes[train])) < 2 for train, _ in splits):
        return
    counts = np.log1p(cells["cell_count"].to_numpy())[:, None]
    for name, x in (("embedding", vectors(cells["embedding"])), ("cell_count", counts)):
        probe = make_pipeline(
            StandardScaler(),
            PCA(min(_MAX_COMPONENTS, x.shape[1], *(len(train) for train, _ in splits)), random_state=seed),
            LogisticRegression(class_weight="balanced", max_iter=300),
        )
        with np.errstate(invalid="ignore"):  # a representation without any spread is at chance, not an error
            predicted = cross_val_predict(probe, x, classes, cv=splits)
        score = float(balanced_accuracy_score(classes, predicted))
        yield name, score, 1 / len(wells_a_class), len(x)
