"""Audit an encoder on a sample of stored crops with ``explain.faithfulness``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from gradcamo_assets.cells import NEIGHBOUR, TARGET, CropField
from gradcamo_assets.explain.faithfulness import audit
from gradcamo_assets.scoring.scorer import Scorer

_MAX_PART_SIZE = 64
"""Cells that are audited together and change places with each other."""


def split_into_parts(count: int) -> list[slice]:
    """Split ``count`` cells into slices of at most 64 cells, each spread over the whole list."""
    parts = -(-count // _MAX_PART_SIZE)
    return [slice(part, None, parts) for part in range(parts)]


def audit_crops(
    scorer: Scorer,
    fields: Mapping[str, CropField],
    cells: Sequence[str],
    treatments: Sequence[str | None] | None = None,
) -> pl.DataFrame:
    """Audit cells: ``Metadata_CellID`` and the columns of ``faithfulness.audit``, one row per cell in the given order.

    Args:
        fields: stored crops by the ``<plate>/<well>/<site>`` of their cells.
        cells: at least two ``Metadata_CellID``. Up to 64 from all over the list exchange surroundings and are in memory
            together.
        treatments: of each cell; cells exchange surroundings with cells of another treatment. By default the predicted
            classes.

    Raises:
        BundleError: if the crops do not fit the encoder.
        CropError: if a crop cannot be read.
        ExplainError: for fewer than two cells, or if no crop has background.
    """
    tables = [
        _audit_part(scorer, fields, cells[part], None if treatments is None else treatments[part])
        for part in split_into_parts(len(cells))
    ]
    order = pl.DataFrame({"Metadata_CellID": list(cells)})
    return order.join(pl.concat(tables), on="Metadata_CellID", how="left", maintain_order="left")


def _audit_part(
    scorer: Scorer, fields: Mapping[str, CropField], cells: Sequence[str], treatments: Sequence[str | None] | None
) -> pl.DataFrame:
    located = [(fields[cell.rsplit("/", 1)[0]], cell) for cell in cells]
    crops, regions = scorer.prepare([(field, *field.read(field.cell_ids.index(cell))) for field, cell in located])
    _, columns = audit(
        scorer.model, crops, regions == TARGET, scorer.config.layer, regions == NEIGHBOUR, treatments=treatments
    )
    table = pl.DataFrame({"Metadata_CellID": list(cells), **columns}).fill_nan(None)
    return table.with_columns(pl.col("survives_swap").cast(pl.Boolean))
