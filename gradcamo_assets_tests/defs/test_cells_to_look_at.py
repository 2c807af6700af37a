"""Selection of the example cells of a report."""

from __future__ import annotations

import polars as pl

from gradcamo_assets.defs.cells_to_look_at import select_example_cells, select_median_cells_by_treatment


def scores(rows: list[tuple[str, float | None, str | None, float | None]]) -> pl.DataFrame:
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


def treatments_of(table: pl.DataFrame) -> list[tuple[str, float | None]]:
    return [(row["Metadata_Compound"], row["Metadata_Dose"]) for row in select_median_cells_by_treatment(table)]


def test_the_median_cell_of_each_treatment_with_compounds_side_by_side() -> None:
    table = scores(
        [("b", 10, "target", 0.4), ("a", 10, "target", 0.5), ("a", 10, "target", None)]
        + [("DMSO", 0, "target", score) for score in (0.1, 0.2, 0.6)]
    )
    assert treatments_of(table) == [("DMSO", 0), ("a", 10), ("b", 10)]
    assert select_median_cells_by_treatment(table)[0]["gradcamo"] == 0.2
    assert select_median_cells_by_treatment(table.clear()) == []


def test_compounds_with_many_doses_come_first_and_are_thinned() -> None:
    series = [("b", dose, "target", dose / 100) for dose in range(1, 20)]
    found = treatments_of(scores([("DMSO", 0, "target", 0.1), ("a", 1, "target", 0.5), *series]))
    assert found == [("DMSO", 0), *(("b", dose) for dose in (1, 4, 7, 10, 13, 16, 19)), ("a", 1)]


def test_a_plate_of_many_treatments_is_cut_at_whole_compounds() -> None:
    rows = [(f"c{number:02d}", dose, "target", 0.5) for number in range(12) for dose in range(1, 7)]
    found = treatments_of(scores([("DMSO", 0, "target", 0.1), *rows]))
    assert found == [("DMSO", 0), *((compound, dose) for compound, dose, _, _ in rows)]
    found = treatments_of(scores([(f"c{number:02d}", dose, "target", 0.5) for number in range(25) for dose in (1, 2)]))
    assert found == [(f"c{number:02d}", dose) for number in range(12) for dose in (1, 2)]
    library = [(f"c{number:03d}", None, "target", 0.5) for number in range(300)]
    assert len(treatments_of(scores(library))) == 73
