from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.cells import CELL_SCHEMA
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.segmentation.cell_quality import (
    QcConfig,
    add_quality_flags,
    describe_outliers,
    judge_fields,
    over_split_share,
)


def table(n: int = 40, **columns: list) -> pl.DataFrame:
    """Ordinary cells; ``columns`` replace the values of the last cells."""
    rng = np.random.default_rng(0)
    values: dict[str, list] = {
        "label": list(range(1, n + 1)),
        "volume_voxels": rng.integers(900, 1100, n).tolist(),
        "solidity": rng.uniform(0.9, 0.95, n).tolist(),
        "mean_intensity": rng.uniform(90, 110, (n, 2)).tolist(),
        "cell_probability": rng.uniform(0.9, 0.95, n).tolist(),
        "flow_error": rng.uniform(0.1, 0.15, n).tolist(),
        "n_nuclei": [1] * n,
        "nearest_neighbour_um": [0.0] * n,
    }
    for name, last in columns.items():
        values[name] = [*values.get(name, [None] * n)[: n - len(last)], *last]
    known = pl.DataFrame(values, schema_overrides=CELL_SCHEMA | {"qc_flag": pl.String})
    return pl.concat([pl.DataFrame(schema=CELL_SCHEMA | {"qc_flag": pl.String}), known], how="diagonal")


def test_ordinary_cells_pass_and_outliers_are_described():
    assert describe_outliers(table(), QcConfig()).null_count() == 40
    cells = table(
        volume_voxels=[12300, 50, 1000, 1000], solidity=[0.92, 0.92, 0.4, 1.0], flow_error=[0.12, 0.12, 0.12, 0.9],
        mean_intensity=[[100.0, 100.0], [100.0, 900.0], [100.0, 100.0], [9.0, 100.0]],
        cell_probability=[0.93, 0.93, 0.2, 1.0],
    )  # fmt: skip
    flags = describe_outliers(cells, QcConfig(), ["DNA"])
    assert flags.null_count() == 36
    median = np.median(cells["volume_voxels"])
    last = flags.to_list()[-4:]
    assert last[0] == f"volume {12300 / median:.3g} x the median"
    assert last[1].startswith("volume 0.0496 ") and "; channel 2 intensity 8.9" in last[1]
    assert last[2] == "solidity 0.4, the median 0.93; cell probability 0.2, the median 0.93"
    assert last[3] == "flow error 0.9, the median 0.13; DNA intensity 0.09 x the median"
    assert describe_outliers(cells, QcConfig(outlier=0)).null_count() == 40
    assert describe_outliers(cells.tail(10), QcConfig()).null_count() == 10


@given(st.lists(st.integers(1, 10**6), min_size=20, max_size=60), st.sampled_from([2.0, 3.0, 5.0]))
def test_volume_outliers_agree_with_the_definition(volumes, k):
    cells = table(len(volumes), volume_voxels=volumes).with_columns(
        pl.lit(None, pl.Float64).alias(name) for name in ("solidity", "cell_probability", "flow_error")
    )
    log = np.log(volumes)
    spread = 1.4826 * np.median(np.abs(log - np.median(log)))
    expected = (np.abs(log - np.median(log)) > k * spread) & (spread > 1e-9)
    found = describe_outliers(
        cells.with_columns(mean_intensity=pl.lit(None, pl.List(pl.Float64))), QcConfig(outlier=k)
    ).is_not_null()
    assert found.to_list() == expected.tolist()


def test_empty_tables_and_missing_measures_give_no_flags():
    empty = table().clear()
    assert add_quality_flags(empty, QcConfig()).equals(empty)
    nothing = table().with_columns(
        pl.lit(None, pl.Float64).alias("solidity"), mean_intensity=pl.lit(None, pl.List(pl.Float64))
    )
    assert describe_outliers(nothing, QcConfig()).null_count() == 40


def test_outliers_get_warnings_and_are_left_out_only_on_request():
    cells = table(
        volume_voxels=[9000, 1000, 1000, 9000], n_nuclei=[0, 2, 0, 1], cell_probability=[0.93, 0.93, 0.6, 0.93],
        qc_warning=["no nucleus", "2 nuclei", "no nucleus", None], qc_flag=["bystander", None, None, None],
    )  # fmt: skip
    plain = add_quality_flags(cells, QcConfig()).tail(4)
    assert plain["qc_flag"].to_list() == ["bystander", None, "no nucleus", None]
    assert add_quality_flags(cells, QcConfig(need_nucleus=False))["qc_flag"].null_count() == 39
    unknown = cells.with_columns(n_nuclei=pl.lit(None, pl.Int32), qc_warning=pl.lit(None, pl.String))
    assert add_quality_flags(unknown, QcConfig(max_nuclei=1))["qc_flag"].null_count() == 39, "no nucleus stain"
    assert [str(text).partition(" 8.9")[0] for text in plain["qc_warning"]] == [
        "no nucleus; volume", "2 nuclei", "no nucleus; cell probability 0.6, the median 0.93", "volume",
    ]  # fmt: skip
    strict = QcConfig(drop_outliers=True, min_probability=0.7, max_nuclei=1, need_nucleus=True)
    flags = add_quality_flags(cells, strict)["qc_flag"]
    assert flags.to_list()[-4:-1] == ["bystander", "2 nuclei", "cell probability 0.6"]
    assert flags.to_list()[-1].startswith("volume 8.9")
    assert flags.null_count() == 36


def test_a_field_is_judged_in_comparison_with_the_others():
    verdicts = judge_fields(
        [50, 60, 0, 9, 300, 55, 50], [0.4, 0.97, 0, 0.4, 0.4, 0.4, 0.4], [0] * 6 + [0.6], QcConfig()
    )
    assert [verdict.unusable for verdict in verdicts] == [
        None, "97% of the field is inside cells", "no cell was found", None, None, None,
        "over-split, 60% of the cells are splinters that touch another",
    ]  # fmt: skip
    assert [verdict.warning for verdict in verdicts] == [
        None, None, None, "9 cells, the median of this site's fields is 50",
        "300 cells, the median of this site's fields is 50", None, None,
    ]  # fmt: skip
    few = judge_fields([50, 1, 50], [0.99, 0.4, 0.4], [0.9, 0, 0], QcConfig(max_foreground=1, max_over_split=1))
    assert all(verdict.unusable is verdict.warning is None for verdict in few)


def test_splinters_are_small_and_touch():
    cells = table(4, volume_voxels=[100, 100, 260, 1000], nearest_neighbour_um=[0.0, 2.0, 0.0, None])
    assert over_split_share(cells, 1000.0) == 0.25
    assert over_split_share(cells.clear(), 1000.0) == 0.0


@pytest.mark.parametrize("wrong", [{"outlier": -1}, {"min_probability": 2.0}, {"max_foreground": float("nan")}])
def test_invalid_settings_are_rejected(wrong):
    with pytest.raises(GradcamoError, match=next(iter(wrong))):
        QcConfig(**wrong)
