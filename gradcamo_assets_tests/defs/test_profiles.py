"""The assets of profiles, UMAP and stain correlations."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest

from gradcamo_assets.cells import open_crops
from gradcamo_assets.defs.assets import ASSETS
from gradcamo_assets.defs.partitions import PLATES
from gradcamo_assets.tables import publish, run_sql
from gradcamo_assets_tests.defs.conftest import Bench


def make(bench: Bench, *assets: str, partition: str | None = None, **config: object) -> dict[str, dict]:
    """Materialise assets, each with ``config``. Returns their metadata by asset."""
    result = dg.materialize(
        [asset for asset in ASSETS if isinstance(asset, dg.AssetsDefinition)],
        selection=list(assets),
        resources={"platform": bench.platform},
        instance=bench.instance,
        partition_key=partition,
        run_config={"ops": {name: {"config": config} for name in assets} if config else {}},
    )
    return {
        event.asset_key.to_user_string(): {name: value.value for name, value in event.materialization.metadata.items()}
        for event in result.all_events
        if event.event_type_value == "ASSET_MATERIALIZATION" and event.asset_key
    }


def with_twin(bench: Bench) -> Bench:
    """Add a second plate, ``twin``, with the same embeddings and scores."""
    lake = bench.platform.lake
    for table in ("embeddings", "scores", "score_versions"):
        rows = lake.read(table)
        text = pl.col("Metadata_Plate", "^Metadata_CellID$").str.replace("^tiny", "twin")
        lake.replace(table, pl.concat([rows, rows.with_columns(text)]))
    return bench


def test_a_new_plate_is_placed_on_the_map_and_old_coordinates_remain(scored_bench: Bench, tmp_path: Path) -> None:
    bench = with_twin(scored_bench.copy(tmp_path / "copy"))
    lake = bench.platform.lake
    before = lake.snapshot("umap").files
    assert set(before["Metadata_Plate"]) == {"tiny"}
    found = make(bench, "profiles", "umap")
    assert found["umap"]["plates_placed"] == found["profiles"]["plates_made"] == 1
    assert lake.snapshot("umap").files.filter(Metadata_Plate="tiny").equals(before)
    old, new = (lake.read("umap", plate=plate).sort("Metadata_CellID") for plate in ("tiny", "twin"))
    # Equal vectors have equal coordinates.
    np.testing.assert_array_equal(new.select("umap_x", "umap_y").to_numpy(), old.select("umap_x", "umap_y").to_numpy())
    old, new = (lake.read("profiles", plate=plate) for plate in ("tiny", "twin"))
    assert new["profile"].to_list() == old["profile"].to_list()
    assert make(bench, "profiles", "umap")["umap"]["plates_placed"] == 0
    assert bench.ask("SELECT count(DISTINCT Metadata_Plate) FROM profiles") == [(2,)]


def test_all_populations_are_stored_and_exported(scored_bench: Bench) -> None:
    lake, home = scored_bench.platform.lake, scored_bench.home
    profiles = lake.read("profiles")
    counts = dict(profiles["population"].value_counts().iter_rows())
    on_target = lake.read("scores").filter("on_target")
    assert counts["all"] == 6
    assert counts.get("on_target", 0) == counts.get("matched", 0) == on_target["Metadata_Well"].n_unique()
    cells = profiles.filter(population="on_target")["n_cells"].sum()
    assert cells == profiles.filter(population="matched")["n_cells"].sum() == len(on_target)
    files = sorted((home.exports / "tiny").rglob("*.parquet"))
    assert {file.stem for file in files} == set(counts)
    for file in files:
        wide = pl.read_parquet(file)
        stored = profiles.filter(population=file.stem)
        assert wide["Metadata_Well"].to_list() == stored["Metadata_Well"].to_list()
        assert wide.drop(pl.selectors.starts_with("Metadata_")).to_numpy().tolist() == stored["profile"].to_list()
    assert set(profiles["split"]) <= {"train", "val", "test"}


def test_the_background_is_a_baseline_of_the_same_cells(scored_bench: Bench) -> None:
    audit = scored_bench.platform.lake.read("confounder_audit").filter(population="all", target="site")
    rows = {row["representation"]: row for row in audit.iter_rows(named=True)}
    assert set(rows) == {"embedding", "cell_count", "background"}
    assert rows["background"]["n"] == rows["embedding"]["n"]
    assert rows["background"]["score"] is not None


def test_the_launchpad_overrides_the_settings(scored_bench: Bench, tmp_path: Path) -> None:
    bench = with_twin(scored_bench.copy(tmp_path / "copy"))
    config = {"populations": ["all"], "scope": "screen", "fit_on": "all", "formats": ["h5ad"]}
    assert make(bench, "profiles", **config)["profiles"]["plates_made"] == 2
    profiles = bench.platform.lake.read("profiles")
    assert profiles["population"].unique().to_list() == ["all"]
    assert profiles["sphering"].n_unique() == 1
    np.testing.assert_allclose(np.array(profiles["profile"].to_list()).mean(axis=0), 0, atol=1e-4)
    assert [path.name for path in (bench.home.exports / "tiny").glob("*/*")] == ["all.h5ad"]
    stored = list(bench.home.fitted.rglob("_screen-all-0.01/all.safetensors"))
    written = stored[0].stat().st_mtime_ns
    make(bench, "profiles", **config)
    assert stored[0].stat().st_mtime_ns == written


def test_stains_are_compared_inside_the_cells_of_a_plate(scored_bench: Bench, tmp_path: Path) -> None:
    bench = scored_bench.copy(tmp_path / "copy")
    bench.instance.add_dynamic_partitions(str(PLATES.name), ["tiny"])
    found = make(bench, "channel_correlation", partition="tiny")
    publish(bench.platform.lake, bench.home.database)
    table = run_sql(bench.home.database, "SELECT * FROM channel_correlation")
    values = []
    for folder in (bench.home.crops / "tiny").glob("*/*"):
        field = open_crops(folder)
        for row in range(len(field)):
            image, labels = field.read(row)
            values.append(np.corrcoef(image[0][labels == 1], image[1][labels == 1])[0, 1])
    first = table.row(0, named=True)
    assert (first["channel_a"], first["channel_b"]) == tuple(field.channels[:2])
    assert first["median_correlation"] == pytest.approx(np.median(values))
    assert first["n_cells"] == len(values)
    assert len(table) == len(field.channels) * (len(field.channels) - 1) // 2
    assert "](/pictures/plates/tiny/channel_correlation/" in found["channel_correlation"]["correlations"]
