"""Measure with copairs whether wells of the same treatment resemble each other more than wells of other treatments."""

from __future__ import annotations

import polars as pl

from gradcamo_assets.profiles.well_profiles import MODEL, TREATMENT, stack_vectors


def replicate_map(profiles: pl.DataFrame, seed: int = 0, null_size: int = 2000) -> pl.DataFrame:
    """Compute the replicate mean average precision (Kalinin et al. 2025) of well profiles over all given plates.

    Each well ranks all other wells of its model version and population by cosine similarity; wells of the same
    treatment (compound, dose, unit) are the hits. Controls count as a treatment. The p-value comes from ``null_size``
    random rankings and is not corrected for multiple testing.

    Args:
        profiles: result of ``well_profiles`` or ``sphered_profiles``, with or without a column ``split``.

    Returns:
        One row per model version, population and treatment with two wells or more: ``model_name``, ``model_version``,
        ``population``, ``Metadata_Compound``, ``Metadata_Dose``, ``Metadata_Dose_Unit``, ``mean_average_precision``,
        ``p_value``, ``n_wells``, ``trained_share`` (share of wells in split ``train``; NULL without a split). Without a
        replicate, or with a single treatment, there is no row.
    """
    from copairs.map import average_precision, mean_average_precision

    groups = [*MODEL, "population"]
    if "split" not in profiles.columns:
        profiles = profiles.with_columns(split=pl.lit(None, pl.String))
    empty = profiles.clear().select(
        *groups, *TREATMENT, mean_average_precision=pl.lit(0.0), p_value=pl.lit(0.0), n_wells=pl.lit(0, pl.Int64),
        trained_share=pl.lit(0.0),
    )  # fmt: skip
    parts = [empty]
    # copairs does not accept nulls, and controls may have no unit: pass treatments as numbers.
    profiles = profiles.with_columns(pl.struct(TREATMENT).rank("dense").cast(pl.Int64).alias("treatment"))
    for _, wells in profiles.group_by(groups, maintain_order=True):
        treatments = wells.group_by(["treatment", *groups, *TREATMENT], maintain_order=True).agg(
            n_wells=pl.len(), trained_share=(pl.col("split") == "train").mean()
        )
        if treatments.height < 2 or treatments.height == wells.height:
            continue
        precision = average_precision(
            wells.select("treatment").to_pandas(), stack_vectors(wells["profile"]),
            pos_sameby=["treatment"], pos_diffby=[], neg_sameby=[], neg_diffby=["treatment"], progress_bar=False,
        )  # fmt: skip
        scores = mean_average_precision(
            precision, ["treatment"], null_size=null_size, threshold=0.05, seed=seed, progress_bar=False
        )
        precisions = pl.from_pandas(scores[["treatment", "mean_average_precision", "p_value"]]).drop_nulls("p_value")
        treatments = treatments.join(precisions, "treatment", maintain_order="left")
        parts.append(treatments.select(empty.columns).cast(empty.schema))
    return pl.concat(parts)
