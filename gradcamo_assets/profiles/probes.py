"""Probe embeddings for confounders such as site, well position and plate, with linear classifiers and silhouettes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import polars as pl

from gradcamo_assets.profiles.well_profiles import MODEL, TREATMENT, stack_vectors

_MAX_COMPONENTS = 64
_SCHEMA = {
    "Metadata_Plate": pl.String(), "target": pl.String(), "representation": pl.String(),
    "score": pl.Float64(), "chance": pl.Float64(), "silhouette": pl.Float64(), "n": pl.Int64(),
    "trained_share": pl.Float64(),
}  # fmt: skip
TARGETS = {
    "treatment": pl.struct(TREATMENT).rank("dense"),
    "dose": pl.col("Metadata_Dose"),
    "site": pl.col("Metadata_Site"),
    "well_row": pl.col("Metadata_Well").str.extract(r"^([A-Z]+)"),
    "well_column": pl.col("Metadata_Well").str.extract(r"(\d+)$"),
    "plate": pl.col("Metadata_Plate"),
}


def audit_confounders(cells: pl.DataFrame, seed: int = 0, max_cells: int = 3000) -> pl.DataFrame:
    """Measure how well ``TARGETS`` are predicted from an embedding, and how well it separates their groups.

    The probe is a class-balanced logistic regression on the leading 64 principal components of the standardised
    embedding, cross-validated over wells: training and test folds share no well. Therefore a class needs two wells, and
    a target needs two such classes to get a row. The silhouette (Rousseeuw 1987) is the mean over cells on the same
    components. Two representations are baselines: ``cell_count`` (cells in the field), because an embedding that is not
    better has learned cell density; and ``background``, if given.

    Args:
        cells: result of ``select_population``, with or without ``background`` (list of floats: the embedding of the
            crop without its cells; NULL: not computed) and ``split``.
        seed: of the sample, the folds and the components.
        max_cells: size of the random sample per population.

    Returns:
        ``model_name``, ``model_version``, ``population``, ``Metadata_Plate`` (NULL: several plates), ``target``,
        ``representation``, ``score`` (balanced accuracy), ``chance`` (1 / classes), ``silhouette`` (-1 to 1), ``n``
        (cells), ``trained_share`` (share of cells in split ``train``; NULL without a split).
    """
    from threadpoolctl import threadpool_limits

    groups = [*MODEL, "population"]
    schema = {name: cells.schema[name] for name in groups}
    cells = cells.drop_nulls("embedding").with_columns(
        pl.struct("Metadata_Plate", "Metadata_Well").rank("dense").alias("well"),
        (pl.col("split") == "train" if "split" in cells.columns else pl.lit(None, pl.Boolean)).alias("trained"),
        **{name: column.alias(name) for name, column in TARGETS.items()},
    )
    rows = []
    for group, part in cells.group_by(groups, maintain_order=True):
        sample = part.sample(min(max_cells, part.height), seed=seed)
        plate = part["Metadata_Plate"][0] if part["Metadata_Plate"].n_unique() == 1 else None
        # The matrices are small: more BLAS threads spend ten times the processor time waiting for each other.
        with threadpool_limits(1, user_api="blas"):
            for target in TARGETS:
                rows += [(*group, plate, target, *result) for result in _probe(sample, target, seed)]
    return pl.DataFrame(rows, {**schema, **_SCHEMA}, orient="row")


def _probe(cells: pl.DataFrame, target: str, seed: int) -> Iterator[tuple[object, ...]]:
    """Yield the columns from ``representation`` on, per representation; nothing if the target cannot be tested."""
    cells = cells.drop_nulls(target).filter(pl.col("well").n_unique().over(target) >= 2)
    representations = {"embedding": cells, "cell_count": cells}
    if "background" in cells.columns:
        representations["background"] = cells.drop_nulls("background")
    for name, rows in representations.items():
        if name == "cell_count":
            x = np.log1p(rows["cells_in_field"].to_numpy())[:, None]
        else:
            x = stack_vectors(rows[name]) if len(rows) else np.empty((0, 1))
        result = _separation(x, rows[target].rank("dense").to_numpy(), rows["well"].to_numpy(), seed)
        if result:
            yield name, *result, len(rows), rows["trained"].mean()


def _separation(
    x: np.ndarray, classes: np.ndarray, wells: np.ndarray, seed: int
) -> tuple[float, float, float | None] | None:
    """Return balanced accuracy, chance and silhouette; None for fewer than two classes or a class with one well."""
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, silhouette_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    wells_per_class = [len(np.unique(wells[classes == label])) for label in np.unique(classes)]
    if len(wells_per_class) < 2 or min(wells_per_class) < 2:
        return None
    folds = StratifiedGroupKFold(min(5, *wells_per_class), shuffle=True, random_state=seed)
    splits = list(folds.split(classes, classes, wells))
    if any(len(np.unique(classes[train])) < 2 for train, _ in splits):
        return None
    components = PCA(min(_MAX_COMPONENTS, x.shape[1], *(len(train) for train, _ in splits)), random_state=seed)
    projection = make_pipeline(StandardScaler(), components)
    probe = make_pipeline(projection, LogisticRegression(class_weight="balanced", max_iter=300))
    # A constant representation scores chance and is not an error. A probe need not converge to the last digit.
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        predicted = cross_val_predict(probe, x, classes, cv=splits)
        score = float(balanced_accuracy_score(classes, predicted))
        silhouette = None
        if len(x) > len(wells_per_class):
            silhouette = float(silhouette_score(projection.fit_transform(x), classes))
    return score, 1 / len(wells_per_class), silhouette
