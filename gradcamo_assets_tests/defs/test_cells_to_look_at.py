"""Selection of the example cells of a report."""

from __future__ import annotations

import polars as pl

from gradcamo_assets.defs.cells_to_look_at import select_example_cells, select_median_cells_by_dose


def scores(rows: list[tuple[str, float, str | None, float | None]]) -> pl.DataFrame:
    """compound, dose, looks_at, score"""
    return pl.DataFrame(
        {
            "Metadata_CellID": [f"P/A01/1/{n}" for n in range(len(rows))],
            "Metadata_Compound": [row[0] for row in rows],
            "Metadata_Dose": [row[1] for row in rows],
            "Metadata_Dose_Unit": "uM",
            "looks_at": [row[2] for row in rows],
            "gradcamo": [row[3] for row in rows],
            "gradcamo_adjusted": [row[3] for row in rows],
        }
    )


def test_best_median_and_worst_of_each_region() -> None:
    table = scores(
        [("a", 1, "target", score) for score in (0.1, 0.5, 0.9, 0.7, 0.3)]
        + [("a", 1, "background", 0.2), ("a", 1, None, None), ("a", 1, "none", 0.0)]
    )
    found = [(row["case"], row["gradcamo"]) for row in select_example_cells(table)]
    assert found == [("target, best", 0.9), ("target, median", 0.5), ("target, worst", 0.1), ("background, best", 0.2)]
    two = select_example_cells(scores([("a", 1, "neighbour", 0.1), ("a", 1, "neighbour", 0.2)]))
    assert [row["gradcamo"] for row in two] == [0.2, 0.1]
    assert select_example_cells(table.clear()) == []
    (nowhere,) = select_example_cells(scores([("a", 1, "none", 0.1)]))
    assert nowhere["case"] == "none, best"


def test_the_median_cell_of_the_controls_and_of_each_dose() -> None:
    table = scores(
        [("DMSO", 0, "target", score) for score in (0.1, 0.2, 0.6)]
        + [("b", dose, "target", dose / 100) for dose in range(1, 21)]
        + [("a", 1, "target", 0.5), ("b", 1, "target", None)]
    )
    found = [(row["Metadata_Compound"], row["Metadata_Dose"]) for row in select_median_cells_by_dose(table)]
    assert found[0] == ("DMSO", 0) and found[-1] == ("b", 20)
    assert len(found) == len(set(found)) == 8
    assert select_median_cells_by_dose(table)[0]["gradcamo"] == 0.2
    assert select_median_cells_by_dose(table.clear()) == []
