"""Measure whether wells of the same treatment resemble each other more than wells of other treatments."""

from __future__ import annotations

import numpy as np
import polars as pl

from gradcamo_assets.profiles.well_profiles import MODEL, TREATMENT, stack_vectors

_TIE_TOLERANCE = 1e-9
"""Cosine similarities that differ by less are equal: profiles are float32, and rounding must not rank them."""
_P_VALUE_MARGIN = 1e-6


def replicate_map(profiles: pl.DataFrame, seed: int = 0, null_size: int = 2000) -> pl.DataFrame:
    """Compute the replicate mean average precision (Kalinin et al. 2025) of well profiles over all given plates.

    Each well ranks all other wells of its model version and population by cosine similarity; wells of the same
    treatment (compound, dose, unit) are the hits. Controls count as a treatment. Wells of equal similarity count as
    ranked in random order, by the expected precision; a profile of zeros is equally similar to all others. The p-value
    is the share of ``null_size`` random rankings by copairs that do as well, and is not corrected for multiple testing.

    Args:
        profiles: result of ``well_profiles`` or ``sphered_profiles``, with or without a column ``split``.

    Returns:
        One row per model version, population and treatment with two wells or more: ``model_name``, ``model_version``,
        ``population``, ``Metadata_Compound``, ``Metadata_Dose``, ``Metadata_Dose_Unit``, ``mean_average_precision``,
        ``p_value``, ``n_wells``, ``trained_share`` (share of wells in split ``train``; NULL without a split). Without a
        replicate, or with a single treatment, there is no row.
    """
    from copairs.map import mean_average_precision

    groups = [*MODEL, "population"]
    if "split" not in profiles.columns:
        profiles = profiles.with_columns(split=pl.lit(None, pl.String))
    empty = profiles.clear().select(
        *groups, *TREATMENT, mean_average_precision=pl.lit(0.0), p_value=pl.lit(0.0), n_wells=pl.lit(0, pl.Int64),
        trained_share=pl.lit(0.0),
    )  # fmt: skip
    parts = [empty]
    # copairs does not accept nulls, and controls have no unit: pass treatments as numbers.
    profiles = profiles.with_columns(pl.struct(TREATMENT).rank("dense").cast(pl.Int64).alias("treatment"))
    for _, wells in profiles.group_by(groups, maintain_order=True):
        treatments = wells.group_by(["treatment", *groups, *TREATMENT], maintain_order=True).agg(
            n_wells=pl.len(), trained_share=(pl.col("split") == "train").mean()
        )
        if treatments.height < 2 or treatments.height == wells.height:
            continue
        precision = _average_precisions(stack_vectors(wells["profile"]), wells["treatment"].to_numpy())
        # copairs counts random rankings that are better. The margin makes it count equal ones too.
        lowered = precision.with_columns(pl.col("average_precision") - _P_VALUE_MARGIN).to_pandas()
        tested = mean_average_precision(
            lowered, ["treatment"], null_size=null_size, threshold=0.05, seed=seed, progress_bar=False
        )
        means = precision.group_by("treatment").agg(mean_average_precision=pl.col("average_precision").mean())
        precisions = pl.from_pandas(tested[["treatment", "p_value"]]).join(means, "treatment")
        treatments = treatments.join(precisions, "treatment", maintain_order="left")
        parts.append(treatments.select(empty.columns).cast(empty.schema))
    return pl.concat(parts)


def _average_precisions(profiles: np.ndarray, treatments: np.ndarray) -> pl.DataFrame:
    """Return the average precision of every well that has a replicate, (n, d), as the columns that copairs takes.

    ``copairs.map.average_precision`` ranks replicates before other wells of equal similarity and divides by the norm of
    a profile of zeros, so that profiles which are all alike would score 1.
    """
    norms = np.linalg.norm(profiles.astype(np.float64), axis=1, keepdims=True)
    directions = np.divide(profiles, norms, out=np.zeros(profiles.shape), where=norms > 0)
    rows = []
    for well, treatment in enumerate(treatments):
        others = np.arange(len(treatments)) != well
        is_hit = (treatments == treatment)[others]
        if is_hit.any():
            precision = expected_precision((directions @ directions[well])[others], is_hit)
            rows.append((treatment, precision, int(is_hit.sum()), len(is_hit)))
    names = ["treatment", "average_precision", "n_pos_pairs", "n_total_pairs"]
    return pl.DataFrame(rows, names, orient="row").with_columns(normalized_average_precision=pl.lit(0.0))


def expected_precision(similarity: np.ndarray, is_hit: np.ndarray) -> float:
    """Return the average precision of a ranking, expected over random orders of tied items (McSherry & Najork 2008).

    Args:
        similarity: (n,); the highest comes first.
        is_hit: (n,) bool, at least one True.
    """
    order = np.argsort(-similarity, kind="stable")
    similarity, is_hit, rank = similarity[order], is_hit[order], np.arange(1, len(order) + 1)
    starts = np.flatnonzero(np.diff(similarity, prepend=np.inf) < -_TIE_TOLERANCE)
    sizes, hits = np.diff(starts, append=len(order)), np.add.reduceat(is_hit.astype(int), starts)
    # From here on one value per rank: of its group of ties, and the number of hits in groups before it.
    size, hit, start = (np.repeat(values, sizes) for values in (sizes, hits, starts))
    earlier_hits = np.repeat(np.cumsum(hits) - hits, sizes)
    tied_hits = (rank - 1 - start) * (hit - 1) / np.maximum(size - 1, 1)
    precision_of_hit = (earlier_hits + tied_hits + 1) / rank
    return float((hit / size * precision_of_hit).sum() / is_hit.sum())
