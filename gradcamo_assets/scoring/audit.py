"""The audit of an encoder on a sample of stored crops: which cells, and what ``explain.faithfulness`` says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl
import torch

from gradcamo_assets.cells import NEIGHBOUR, TARGET, CropField
from gradcamo_assets.explain.faithfulness import audit
from gradcamo_assets.scoring.scorer import Scorer

_TOGETHER = 64


def sample_cells(cells: pl.DataFrame, n: int) -> pl.DataFrame:
    """Up to ``n`` kept cells, the same ones every time, spread over the wells as the cells are."""
    kept = cells.filter(pl.col("crop_index").is_not_null()).sort("Metadata_CellID")
    return kept if len(kept) <= n else kept.sample(n, seed=0).sort("Metadata_CellID")


def split_into_parts(count: int) -> list[slice]:
    """Slices of so many cells, at most 64 from all over the list in each: the cells that change places."""
    parts = -(-count // _TOGETHER)
    return [slice(part, None, parts) for part in range(parts)]


def audit_crops(
    scorer: Scorer,
    fields: Mapping[str, CropField],
    cells: Sequence[str],
    treatments: Sequence[str | None] | None = None,
) -> pl.DataFrame:
    """What the audit says of some cells: ``Metadata_CellID`` and its columns, a row a cell, in their order.

    Args:
        fields: stored crops by the ``<plate>/<well>/<site>`` of their cells.
        cells: at least two ``Metadata_CellID``; up to 64 from all over the list take each other's place, and all are in
            memory at once.
        treatments: of each cell; they change places with cells of another one. By default what was predicted.

    Raises:
        BundleError: where crops do not fit the encoder. CropError: where one cannot be read.
        ExplainError: for fewer than two cells, or none with background.
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
    images, labels = [], []
    for cell in cells:
        field = fields[cell.rsplit("/", 1)[0]]
        row = field.cell_ids.index(cell)
        for image, label in scorer.batches(field, [slice(row, row + 1)]):
            images.append(image.clone())
            labels.append(label)
    crops, regions = torch.cat(images), torch.cat(labels)
    _, columns = audit(
        scorer.model, crops, regions == TARGET, scorer.config.layer, regions == NEIGHBOUR, treatments=treatments
    )
    found = pl.DataFrame({"Metadata_CellID": list(cells), **columns}).fill_nan(None)
    return found.with_columns(pl.col("survives_swap").cast(pl.Boolean))
