"""Does the QC database stay quick at size? ``python -m benchmarks.warehouse [--quick]``

A lake of made-up cells, their crops, and their scores and embeddings by two model versions is written in bulk, one file
a plate and run as compaction leaves it, and published. Then every view is asked: those with a row a cell for one plate
and dose, all others whole. Last, one partition is scored anew and published, again and again: what a night costs must
follow from what changed. Seconds include opening the database.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from gradcamo_assets.tables import Lake, find_violations, needs_publication, publish, run_sql
from gradcamo_assets.tables.columns import DOSE_NAMES, Table
from gradcamo_assets.tables.schema import lake_table
from gradcamo_assets.tables.schema_scores import REGIONS

SITES, VERSIONS, MODEL, AUDITED, FEATURES = 4, (1, 2), "hepg2", 32, 64
NOW = datetime(2026, 1, 1)
RUNS = {version: f"{version:032x}" for version in VERSIONS}

# Views with a row a cell, and what is asked of them.
BY_CELL = {"scores": "plate and dose", "cells": "plate and dose", "current_scores": "plate and dose"}
BY_CELL |= {"embeddings": "plate and dose", "umap": "plate and dose"}


def plate_map() -> pl.DataFrame:
    """A plate of 384 wells: a column of controls, then 20 compounds in 6 doses, thrice each, and 8 wells to spare."""
    wells = [f"{row}{column:02d}" for column in range(1, 25) for row in "ABCDEFGHIJKLMNOP"]
    rank = np.r_[np.zeros(24, int), np.arange(360) % 6 + 1]
    compound = np.r_[np.zeros(24, int), np.arange(360) // 6 % 20 + 1]
    return pl.DataFrame(
        {
            "Metadata_Well": wells,
            "Metadata_Compound": ["DMSO" if number == 0 else f"compound-{number:02d}" for number in compound],
            "Metadata_Dose": np.where(rank, 0.1 * 3.0**rank, 0),
            "Metadata_Dose_Unit": "uM",
            "Metadata_Dose_Rank": rank,
            "Metadata_pert_type": np.where(rank, "trt", "negcon"),
        }
    )


def fitted(table: Table, known: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """``known`` with all columns of the table: the others hold random numbers, or nothing where they are text."""
    n, made = len(known), []
    for name, dtype in table.schema.items():
        if name in known.columns:
            continue
        if dtype == pl.List(pl.Float64):
            values = pl.Series(rng.random((n, 5))).arr.to_list()
        elif dtype.is_float():
            values = pl.Series(rng.random(n))
        elif dtype.is_integer():
            values = pl.Series(rng.integers(0, 2000, n))
        else:
            values = pl.Series([None]).extend_constant(None, n - 1)
        made.append(values.cast(dtype).alias(name))
    return known.with_columns(made).select(pl.col(name).cast(dtype) for name, dtype in table.schema.items())


def cells(rng: np.random.Generator, wells: pl.DataFrame, plate: str, n: int) -> pl.DataFrame:
    """The kept cells of a plate, in the order of sites and wells, with where their crops are."""
    known = pl.concat(
        wells[np.sort(rng.integers(0, len(wells), n // SITES))].with_columns(Metadata_Site=site)
        for site in range(1, SITES + 1)
    )
    known = known.with_columns(
        Metadata_Plate=pl.lit(plate),
        label=pl.int_range(1, pl.len() + 1).over("Metadata_Well", "Metadata_Site"),
        mask_version=pl.lit("0123456789abcdef"),
        crop_version=pl.lit("fedcba9876543210"),
        treatment_class=pl.format("{}_{}", "Metadata_Compound", "Metadata_Dose_Rank"),
        qc_flag=pl.lit(None, pl.String),
    )
    return known.with_columns(
        Metadata_CellID=pl.format("{}/{}/{}/{}", "Metadata_Plate", "Metadata_Well", "Metadata_Site", "label"),
        crop_index=pl.col("label") - 1,
    )


def of_model(version: int) -> dict[str, pl.Expr]:
    """The columns that name a model version."""
    return {"model_name": pl.lit(MODEL), "model_version": pl.lit(version), "model_run": pl.lit(RUNS[version])}


def scores(rng: np.random.Generator, found: pl.DataFrame, version: int) -> pl.DataFrame:
    """One version's scores of some cells, which hold what must hold; the later the version, the higher."""
    n = len(found)
    shares, evidence = rng.dirichlet([1 + version, 1, 2], n), rng.normal(size=(n, 3))
    regions = ("target", "neighbour", "background")
    names = [name for name in lake_table("scores").schema if name in found.columns]
    known = found.select(names).with_columns(
        **of_model(version),
        true_class=found["treatment_class"],
        predicted_class=found["treatment_class"].shuffle(seed=version),
        split=pl.lit("unseen"),
        gradcamo=shares[:, 0],
        gradcamo_max=pl.lit(1.0),
        mask_fraction=pl.lit(0.1),
        gradcamo_adjusted=(shares[:, 0] - 0.1) / 0.9,
        neighbour_share=shares[:, 1],
        background_share=shares[:, 2],
        looks_at=np.array(REGIONS)[rng.integers(0, 4, n)],
        on_target=shares[:, 0] > 0.5,
        logit_bias=pl.lit(0.25),
        logit=evidence.sum(axis=1) + 0.25,
        **{f"evidence_{region}": evidence[:, i] for i, region in enumerate(regions)},
        run_id=pl.lit("0123456789abcdef0123456789abcdef"),
        scored_at=pl.lit(NOW),
    )
    return fitted(lake_table("scores"), known, rng)


def versions_of(found: pl.DataFrame, version: int | None = None) -> pl.DataFrame:
    """The rows of ``crop_versions``, or of ``score_versions`` of a model version, for the partitions of some cells."""
    model = {} if version is None else {"model_run": pl.lit(RUNS[version])}
    made = {"version": pl.lit("v1"), "made_from": pl.lit("v0" if version is None else "v1")}
    return found.group_by("Metadata_Plate", "Metadata_Site").agg(**model, **made, n=pl.len())


def rows(rng: np.random.Generator, wells: pl.DataFrame, plate: str, number: int, n: int) -> dict[str, pl.DataFrame]:
    """All of a plate, by table."""
    found, at = cells(rng, wells, plate, n), pl.lit(plate)
    fields = wells.select("Metadata_Well").join(pl.DataFrame({"Metadata_Site": range(1, SITES + 1)}), how="cross")
    fields = fields.with_columns(Metadata_Plate=at, image_version=pl.lit("i1"), qc_flag=pl.lit(None, pl.String))
    of_version = {version: found.with_columns(**of_model(version)) for version in VERSIONS}
    vectors = {
        version: table.with_columns(embedding=pl.Series(rng.random((n // SITES * SITES, FEATURES), np.float32)))
        for version, table in of_version.items()
    }
    return {
        "plates": pl.DataFrame({"Metadata_Plate": plate, "ingested_at": NOW + timedelta(days=number)}),
        "wells": wells.with_columns(Metadata_Plate=at),
        **dict.fromkeys(("fields", "masks", "field_verdicts", "field_crops"), fields),
        "cells": found,
        "crops": found,
        "scores": pl.concat(scores(rng, found, version) for version in VERSIONS),
        "embeddings": pl.concat(vectors.values()),
        "umap": pl.concat(of_version.values()),
        "audit": pl.concat(table.sample(AUDITED, seed=0) for table in of_version.values()),
        "crop_versions": versions_of(found),
        "score_versions": pl.concat(versions_of(found, version) for version in VERSIONS),
    }


def append(lake: Lake, table: str, frame: pl.DataFrame, rng: np.random.Generator) -> None:
    """Add rows of several partitions in one commit."""
    from deltalake import write_deltalake

    description = lake_table(table)
    frame = frame.select(name for name in description.schema if name in frame.columns)
    if lake.delta_version(table) < 0:
        lake.replace(table, description.empty())
    write_deltalake(lake.root / table, fitted(description, frame, rng), mode="append")


def fill(lake: Lake, plates: int, total: int) -> None:
    """A lake with ``total`` scores. Plate names share their beginning, as in a real screen."""
    rng, wells = np.random.default_rng(0), plate_map()
    models = pl.DataFrame({"model_name": MODEL, "model_version": VERSIONS, "model_run": RUNS.values()})
    lake.append("models", fitted(lake_table("models"), models, rng))
    moves = {"alias": "champion", "promoted_at": [NOW, NOW + timedelta(days=1)]}
    moves |= {f"to_{what}": values for what, values in (("version", VERSIONS), ("run", RUNS.values()))}
    moves |= {"from_version": [None, VERSIONS[0]], "from_run": [None, RUNS[VERSIONS[0]]]}
    lake.append("promotions", fitted(lake_table("promotions"), pl.DataFrame({"model_name": MODEL, **moves}), rng))
    for number in tqdm(range(plates), desc="writing the lake", disable=None):
        plate = f"2026-HepG2-screen-{number:03d}"
        for table, frame in rows(rng, wells, plate, number, total // (plates * len(VERSIONS))).items():
            append(lake, table, frame, rng)


def rescore(lake: Lake, rng: np.random.Generator, plate: str, site: int, version: int) -> None:
    """One partition's scores, written anew."""
    found = lake.read("cells", plate=plate, site=site).with_columns(crop_version=pl.lit("fedcba9876543210"))
    lake.write("scores", scores(rng, found, version), plate=plate, site=site, model_run=RUNS[version])
    lake.write(
        "score_versions", versions_of(found, version), plate=plate,
        site=site, model_run=RUNS[version],
    )  # fmt: skip


def seconds(work: Callable[[], object], repeats: int = 1) -> tuple[float, float]:
    """Wall and processor seconds of some calls, medians."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    wall, processor = zip(*taken, strict=True)
    return statistics.median(wall), statistics.median(processor)


def slowest_view(database: Path, plate: str) -> float:
    """Milliseconds of the slowest view; prints how long each takes."""
    compound, dose, _ = plate_map().select(DOSE_NAMES).row(100)
    filtered = f"WHERE Metadata_Plate = '{plate}' AND Metadata_Compound = '{compound}' AND Metadata_Dose = {dose}"
    slowest = 0.0
    print("| what | ms | processor ms | rows |\n| --- | --- | --- | --- |")
    for name in run_sql(database, "SHOW TABLES")["name"]:
        ask = partial(run_sql, database, f"SELECT * FROM {name} {filtered if name in BY_CELL else ''}")
        found = len(ask())
        wall, processor = seconds(ask, 5)
        what = f"{name}, one {BY_CELL[name]}" if name in BY_CELL else name
        print(f"| {what} | {1000 * wall:.0f} | {1000 * processor:.0f} | {found} |", flush=True)
        slowest = max(slowest, 1000 * wall)
    return slowest


def publications(lake: Lake, database: Path, plate: str, changes: int) -> dict[str, float]:
    """What publishing one changed partition costs, again and again."""
    taken, rng, size = [], np.random.default_rng(1), database.stat().st_size
    for change in range(changes):
        rescore(lake, rng, plate, change % SITES + 1, VERSIONS[-1])
        taken.append(seconds(lambda: publish(lake, database)))
    wall, processor = zip(*taken, strict=True)
    return {
        "publish_seconds": statistics.median(wall),
        "publish_processor_seconds": statistics.median(processor),
        "needs_publication_seconds": seconds(lambda: needs_publication(lake, database), 5)[0],
        "check_plate_seconds": seconds(lambda: find_violations(database, [plate]))[0],
        "check_all_seconds": seconds(lambda: find_violations(database))[0],
        "megabytes": size / 1e6,
        "megabytes_after_changes": database.stat().st_size / 1e6,
    }


def measure(folder: Path, plates: int, total: int, changes: int) -> dict[str, float]:
    """The figures."""
    lake, database, plate = Lake(folder / "lake"), folder / "qc.duckdb", f"2026-HepG2-screen-{plates // 2:03d}"
    written, _ = seconds(lambda: fill(lake, plates, total))
    first, _ = seconds(lambda: publish(lake, database))
    slowest = slowest_view(database, plate)
    return {
        "slowest_view_ms": slowest,
        "write_lake_seconds": written,
        "first_publish_seconds": first,
        **publications(lake, database, plate, changes),
    }


def main() -> None:
    """Print the tables and the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a million scores of 10 plates")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), *((10, 500_000, 3) if quick else (50, 10_000_000, 5)))
    print("\n| what | value |\n| --- | --- |")
    for name, value in found.items():
        print(f"| {name} | {value:.2f} |")
    figures = ("slowest_view_ms", "publish_seconds", "first_publish_seconds", "megabytes")
    print(json.dumps({name: round(found[name], 2) for name in figures}))


if __name__ == "__main__":
    main()
