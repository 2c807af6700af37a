"""Embed crops without their cells: a baseline that shows how much of a profile comes from the background."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from gradcamo_assets.cells import BACKGROUND, CropField
from gradcamo_assets.errors import CropError
from gradcamo_assets.explain.faithfulness import make_background_crops
from gradcamo_assets.explain.swap_test import run_network
from gradcamo_assets.scoring.scorer import Scorer

_BATCH_SIZE = 32
_POOL_SIZE = 256
"""Crops in memory, of several fields, from which batches are drawn."""

_Crops = dict[str, tuple[CropField, np.ndarray, np.ndarray]]


def compute_background_embeddings(
    scorer: Scorer, fields: Mapping[str, CropField], cells: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Embed crops after background of other crops replaces all cells, target and neighbours.

    The image keeps its own background and the outline of the replaced cells.

    Args:
        fields: stored crops by the ``<plate>/<well>/<site>`` of their cells.
        cells: ``Metadata_CellID``; fields are read one after the other, in the order in which their first cells come.
            Crops of several fields in a row change places, and each batch of 32 crops shares its background.

    Returns:
        Embeddings by cell, and the reasons why fields could not be read, by field. Cells of such fields are left out.

    Raises:
        BundleError: if the crops do not fit the encoder.
        ExplainError: if no crop has background.
    """
    embeddings: dict[str, list[float]] = {}
    unreadable: dict[str, str] = {}
    for crops in _mixed_batches(fields, cells, unreadable):
        images, labels = scorer.prepare(list(crops.values()))
        occupied = labels != BACKGROUND
        images = torch.where(occupied[:, None], make_background_crops(images, occupied), images)
        output = run_network(scorer.model, images, scorer.config.layer, _BATCH_SIZE)
        embeddings |= dict(zip(crops, output.embedding.float().cpu().tolist(), strict=True))
    return embeddings, unreadable


def _mixed_batches(
    fields: Mapping[str, CropField], cells: Sequence[str], unreadable: dict[str, str]
) -> Iterator[_Crops]:
    """Yield batches of at least two crops, drawn from a pool; add the reason of a field that cannot be read."""
    rng = np.random.default_rng(0)
    by_field: dict[str, list[str]] = {}
    for cell in cells:
        by_field.setdefault(cell.rsplit("/", 1)[0], []).append(cell)
    pool: _Crops = {}

    def draw(size: int) -> _Crops:
        return {cell: pool.pop(cell) for cell in rng.choice([*pool], size, replace=False).tolist()}

    for name, ids in by_field.items():
        field = fields[name]
        try:
            for cell in ids:
                pool[cell] = field, *field.read(field.cell_ids.index(cell))
                if len(pool) >= _POOL_SIZE:
                    yield draw(_BATCH_SIZE)
        except CropError as error:
            unreadable[name] = str(error)
    while len(pool) > 1:
        # The last batches are of one size, so that no crop is left alone.
        yield draw(-(-len(pool) // -(-len(pool) // _BATCH_SIZE)))
