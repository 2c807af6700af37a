"""Do wells of the same treatment resemble each other more than wells of others? Mean average precision, by copairs."""

from __future__ import annotations

import polars as pl

from gradcamo_assets.profiling.aggregate import MODEL, TREATMENT, vectors


def replicate_map(profiles: pl.DataFrame, seed: int = 0, null_size: int = 2000) -> pl.DataFrame:
    """Replicate mAP (Kalinin et al. 2025) of well profiles, per model version and over all plates given.

    Each well ranks all others by cosine similarity; wells of its treatment (compound, dose, unit) are the hits.
    Controls are a treatment like the others. The p-value comes from ``null_size`` random rankings, uncorrected.

    Args:
        profiles: as from ``well_profiles`` or ``sphered_profiles``.

    Returns:
        One row a model version and treatment of two wells or more: ``model_name``, ``model_version``,
        ``Metadata_Compound``, ``Metadata_Dose``, ``Metadata_Dose_Unit``, ``mean_average_precision``, ``p_value``,
        ``n_wells``. No rows where no treatment has a replicate, or there is one treatment only.
    """
    from copairs.map import average_precision, mean_average_precision

    schema = {name: profiles.schema[name] for name in [*MODEL, *TREATMENT]}
    parts = [
        pl.DataFrame(
            schema={**schema, "mean_average_precision": pl.Float64, "p_value": pl.Float64, "n_wells": pl.Int64}
        )
    ]
    for _, wells in profiles.group_by(MODEL, maintain_order=True):
        # copairs takes no nulls, and controls may have no unit: treatments go in as numbers.
        treatments = wells.group_by([*MODEL, *TREATMENT], maintain_order=True).agg(
            pl.len().cast(pl.Int64).alias("n_wells")
        )
        treatments = treatments.with_row_index("treatment")
        if treatments.height < 2 or treatments["n_wells"].max() < 2:  # type: ignore[operator]
            continue
        numbers = wells.join(treatments, on=[*MODEL, *TREATMENT], nulls_equal=True, maintain_order="left")
        precision = average_precision(
            numbers.select(pl.col("treatment").cast(pl.Int64)).to_pandas(), vectors(wells["profile"]),
            pos_sameby=["treatment"], pos_diffby=[], neg_sameby=[], neg_diffby=["treatment"], progress_bar=False,
        )  # fmt: skip
        scores = mean_average_precision(
            precision, ["treatment"], null_size=null_size, threshold=0.05, seed=seed, progress_bar=False
        )
        found = pl.from_pandas(scores[["treatment", "mean_average_precision", "p_value"]])
        found = found.with_columns(pl.col("treatment").cast(treatments.schema["treatment"]))
        parts.append(
            treatments.join(found, on="treatment", maintain_order="left").select(parts[0].columns).drop_nulls("p_value")
        )
    return pl.concat(parts)
