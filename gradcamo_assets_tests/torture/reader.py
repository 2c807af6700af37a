"""A reader that never stops: it checks that every snapshot of the lake and of ``qc.duckdb`` is whole.

``python -m gradcamo_assets_tests.torture.reader HOME COUNTS END`` reads until the file END exists, and ends with an
error as soon as something is wrong. COUNTS is a JSON file with the numbers of rows that are right.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from gradcamo_assets.cells import open_crops
from gradcamo_assets.defs.field_results import crop_folder, mask_folder
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.segmentation import read_masks
from gradcamo_assets.storage import read_json
from gradcamo_assets.tables import Lake, find_violations, qc_table, run_sql
from gradcamo_assets.tables.columns import KEY_COLUMNS
from gradcamo_assets.tables.schema import lake_table

_PAUSE_SECONDS = 0.2
_ROWS_OF = {
    "mask_versions": {"masks": pl.col("mask_version").count()},
    "cell_versions": {"cells": pl.len()},
    "crop_versions": {"crops": pl.col("crop_index").count()},
    "score_versions": {"scores": pl.len(), "embeddings": pl.len()},
    "audit_versions": {"audit": pl.len()},
    "profile_versions": {"profiles": pl.len()},
    "umap_versions": {"umap": pl.len()},
}
"""By version table, the tables that a stage writes and how its ``n`` counts their rows."""
COUNTED = ("cells", "crops", "scores", "embeddings")
_COUNTS = " UNION ALL ".join(
    f"SELECT '{table}' AS counted, Metadata_Plate, Metadata_Site, count(*) AS n FROM lake.{table} GROUP BY ALL"
    for table in COUNTED
)
_HALF_WRITTEN = """
SELECT v.*, s.n AS scores, e.n AS embeddings FROM lake.score_versions v
LEFT JOIN (SELECT Metadata_Plate, Metadata_Site, model_run, count(*) AS n FROM lake.scores GROUP BY ALL) s
    USING (Metadata_Plate, Metadata_Site, model_run)
LEFT JOIN (SELECT Metadata_Plate, Metadata_Site, model_run, count(*) AS n FROM lake.embeddings GROUP BY ALL) e
    USING (Metadata_Plate, Metadata_Site, model_run)
WHERE v.made_from IS NOT NULL AND (v.n <> coalesce(s.n, 0) OR v.n <> coalesce(e.n, 0))"""
_TWICE = """
SELECT 'scores', Metadata_CellID, model_run, count(*) AS n FROM scores GROUP BY ALL HAVING n > 1
UNION ALL SELECT 'embeddings', Metadata_CellID, model_run, count(*) AS n FROM embeddings GROUP BY ALL HAVING n > 1"""


class Reader:
    """Reads a home and counts what it has read."""

    def __init__(self, home: Home, counts: Path):
        self.home, self.lake, self._counts = home, Lake(home.lake), counts
        self.read: Counter[str] = Counter()
        self._dice, self._published = random.Random(0), set[tuple[str, ...]]()

    def read_everything(self) -> None:
        """Check the database, then the lake, then the files of a field.

        Raises:
            AssertionError: if a snapshot is not whole.
        """
        if self.home.database.exists():
            self._check_database()
        for table, counted in _ROWS_OF.items():
            self._check_stage(table, counted)
        self._open_masks()
        self._open_crops()

    def _check_database(self) -> None:
        database = self.home.database
        assert not (violations := find_violations(database)), violations
        half_written, twice = run_sql(database, _HALF_WRITTEN), run_sql(database, _TWICE)
        assert half_written.is_empty(), f"half-written: {half_written.rows(named=True)}"
        assert twice.is_empty(), f"twice: {twice.rows()}"
        right = read_json(self._counts)
        found = {"/".join(map(str, place)): n for *place, n in run_sql(database, _COUNTS).rows()}
        wrong = {place: n for place, n in found.items() if n not in right[place]}
        assert not wrong, f"numbers of rows {wrong}, expected one of { ({place: right[place] for place in wrong}) }"
        assert found.keys() >= self._published, f"gone from the database: {self._published - found.keys()}"
        self._published = set(found)
        qc_table(database, by="plate")
        self.read["databases"] += 1

    def _check_stage(self, table: str, counted: dict[str, pl.Expr]) -> None:
        """Compare the number of rows of each partition with the one in its version, unless it is being written."""
        names = lake_table(table).keys
        for version in self.lake.partition_versions(table).rows(named=True):
            keys: dict[str, Any] = {name: version[KEY_COLUMNS[name]] for name in names}
            numbers = {name: self.lake.read(name, **keys).select(rows).item() for name, rows in counted.items()}
            if version["made_from"] is not None and self.lake.partition_version(table, **keys) == version:
                assert set(numbers.values()) == {version["n"]}, f"{version} has {numbers} rows"
                self.read["partitions"] += 1

    def _open_masks(self) -> None:
        rows = self.lake.read("masks").drop_nulls("mask_version")
        if row := self._draw(rows):
            place = (row["Metadata_Plate"], row["Metadata_Well"], row["Metadata_Site"])
            try:
                cells = int(read_masks(mask_folder(self.home, *place, row["mask_version"])).cells.max())
            except (GradcamoError, OSError) as error:
                assert not self._is_current("masks", row, "mask_version"), f"{row}: {error!r}"
            else:
                assert cells == row["n_cells"], f"{cells} cells in the masks of {row}"
                self.read["masks"] += 1

    def _open_crops(self) -> None:
        rows = self.lake.read("crops").drop_nulls("crop_index")
        if row := self._draw(rows):
            try:
                crops = open_crops(crop_folder(self.home, row))
                images, labels = crops.read(row["crop_index"])
                assert crops.cell_ids[row["crop_index"]] == row["Metadata_CellID"] and labels.any() and images.any()
            except (GradcamoError, OSError) as error:
                assert not self._is_current("crops", row, "crop_version"), f"{row}: {error!r}"
            else:
                self.read["crops"] += 1

    def _draw(self, rows: pl.DataFrame) -> dict[str, Any] | None:
        return rows.row(self._dice.randrange(len(rows)), named=True) if len(rows) else None

    def _is_current(self, table: str, row: dict[str, Any], version: str) -> bool:
        """Whether the lake still names a version whose files could not be read."""
        return row[version] in set(self.lake.read(table, plate=row["Metadata_Plate"])[version])


def main() -> None:
    """Read until the end, then print what was read."""
    root, counts, end = map(Path, sys.argv[1:])
    reader = Reader(Home(root), counts)
    while not end.exists():
        reader.read_everything()
        time.sleep(_PAUSE_SECONDS)
    print(dict(reader.read))


if __name__ == "__main__":
    main()
