"""Does the QC database stay quick at size? ``python -m benchmarks.warehouse [--quick]``

A lake of made-up cells and their scores by two model versions is written as the assets write it and published. Then
every ready-made table, a filter of ``current_scores`` and the questions are timed, and one partition is scored anew and
published: what a night costs must follow from what changed. Seconds include opening the database.
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

from gradcamo_assets.warehouse import Lake, publish, run_sql, violations
from gradcamo_assets.warehouse.columns import DOSE_NAMES, Table
from gradcamo_assets.warehouse.questions import QUESTIONS
from gradcamo_assets.warehouse.schema import lake_table
from gradcamo_assets.warehouse.schema_scores import QC_GROUPS, REGIONS

SITES, VERSIONS, MODEL = 4, (1, 2), "hepg2"
NOW = datetime(2026, 1, 1)


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
    for name, dtype in table.polars.items():
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
    return known.with_columns(made).select(pl.col(name).cast(dtype) for name, dtype in table.polars.items())


def cells(rng: np.random.Generator, wells: pl.DataFrame, plate: str, site: int, n: int) -> pl.DataFrame:
    """The kept cells of a plate x site, in the order of wells."""
    known = wells[np.sort(rng.integers(0, len(wells), n))].with_columns(
        Metadata_Plate=pl.lit(plate),
        Metadata_Site=site,
        label=pl.int_range(1, pl.len() + 1).over("Metadata_Well"),
        crop_index=pl.int_range(pl.len()).over("Metadata_Well"),
        mask_version=pl.lit("m1"),
        crop_version=pl.lit("c1"),
        treatment_class=pl.format("{}_{}", "Metadata_Compound", "Metadata_Dose_Rank"),
        qc_flag=pl.lit(None, pl.String),
    )
    known = known.with_columns(
        Metadata_CellID=pl.format("{}/{}/{}/{}", "Metadata_Plate", "Metadata_Well", "Metadata_Site", "label")
    )
    return fitted(lake_table("cells"), known, rng)


def scores(rng: np.random.Generator, found: pl.DataFrame, version: int) -> pl.DataFrame:
    """One version's scores of some cells, which hold what must hold; the later the version, the higher."""
    n = len(found)
    shares, evidence = rng.dirichlet([1 + version, 1, 2], n), rng.normal(size=(n, 3))
    regions = ("target", "neighbour", "background")
    names = [name for name in lake_table("scores").polars if name in found.columns]
    known = found.select(names).with_columns(
        model_name=pl.lit(MODEL),
        model_version=version,
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


def rescore(lake: Lake, rng: np.random.Generator, plate: str, site: int, version: int) -> None:
    """One partition's scores, written anew."""
    frame = scores(rng, lake.read("cells", plate=plate, site=site), version)
    lake.write("scores", frame, plate=plate, site=site, model_name=MODEL, model_version=version)


def fill(lake: Lake, plates: int, total: int) -> None:
    """A lake with ``total`` scores. Plate names share their beginning, as in a real screen."""
    rng, wells = np.random.default_rng(0), plate_map()
    models = pl.DataFrame({"model_name": MODEL, "model_version": VERSIONS})
    lake.write("models", fitted(lake_table("models"), models, rng))
    moves = {"alias": "champion", "from_version": [None, 1], "to_version": VERSIONS, "promoted_at": [NOW, NOW]}
    lake.write("promotions", fitted(lake_table("promotions"), pl.DataFrame({"model_name": MODEL, **moves}), rng))
    per_field = total // (plates * SITES * len(VERSIONS))
    for number in tqdm(range(plates), desc="writing the lake", disable=None):
        plate = f"2026-HepG2-screen-{number:03d}"
        here = pl.DataFrame({"Metadata_Plate": plate, "ingested_at": NOW + timedelta(days=number)})
        lake.write("plates", fitted(lake_table("plates"), here, rng), plate=plate)
        lake.write("wells", wells.with_columns(Metadata_Plate=pl.lit(plate)), plate=plate)
        for site in range(1, SITES + 1):
            lake.write("cells", cells(rng, wells, plate, site, per_field), plate=plate, site=site)
            for version in VERSIONS:
                rescore(lake, rng, plate, site, version)


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
    """Milliseconds of the slowest of what is asked most; prints how long everything takes."""
    compound, dose, _ = plate_map().select(DOSE_NAMES).row(100)
    filtered = f"WHERE Metadata_Plate = '{plate}' AND Metadata_Compound = '{compound}' AND Metadata_Dose = {dose}"
    asked, slowest = {f"qc_by_{by}": "" for by in QC_GROUPS} | {"current_scores": filtered}, 0.0
    print("| what | ms | processor ms | rows |\n| --- | --- | --- | --- |")
    for name in [*asked, *(view.name for view in QUESTIONS), "model_comparison"]:
        ask = partial(run_sql, database, f"SELECT * FROM {name} {asked.get(name, '')}")
        rows = len(ask())
        wall, processor = seconds(ask, 5 if name in asked else 1)
        what = f"{name}, one plate and dose" if name == "current_scores" else name
        print(f"| {what} | {1000 * wall:.0f} | {1000 * processor:.0f} | {rows} |", flush=True)
        slowest = max(slowest, 1000 * wall * (name in asked))
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
        "unchanged_publish_seconds": seconds(lambda: publish(lake, database))[0],
        "check_plate_seconds": seconds(lambda: violations(database, [plate]))[0],
        "check_all_seconds": seconds(lambda: violations(database))[0],
        "megabytes": size / 1e6,
        "megabytes_after_changes": database.stat().st_size / 1e6,
    }


def measure(folder: Path, plates: int, total: int, changes: int) -> dict[str, float]:
    """The figures."""
    lake, database, plate = Lake(folder / "lake"), folder / "qc.duckdb", f"2026-HepG2-screen-{plates // 2:03d}"
    fill(lake, plates, total)
    first, _ = seconds(lambda: publish(lake, database))
    slowest = slowest_view(database, plate)
    return {
        "slowest_view_ms": slowest,
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
