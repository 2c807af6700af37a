"""Embed crops without their cells: a baseline that shows how much of a profile comes from the background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from gradcamo_assets.cells import BACKGROUND, CropField
from gradcamo_assets.errors import CropError
from gradcamo_assets.explain.faithfulness import make_background_crops
from gradcamo_assets.explain.swap_test import run_network
from gradcamo_assets.scoring.scorer import Scorer

_BATCH_SIZE = 32


def compute_background_embeddings(
    scorer: Scorer, fields: Mapping[str, CropField], cells: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Embed crops after background of other crops replaces all cells, target and neighbours.

    The image keeps its own background and the outline of the replaced cells.

    Args:
        fields: stored crops by the ``<plate>/<well>/<site>`` of their cells.
        cells: ``Metadata_CellID`` in any order, ideally spread over the plate: each batch of 32 crops shares its
            background.

    Returns:
        Embeddings by cell, and the reasons why fields could not be read, by field. Cells of such fields are left out.

    Raises:
        BundleError: if the crops do not fit the encoder.
        ExplainError: if no crop has background.
    """
    embeddings: dict[str, list[float]] = {}
    unreadable: dict[str, str] = {}
    for batch in np.array_split(np.asarray(cells, dtype=object), -(-len(cells) // _BATCH_SIZE)):
        crops = {}
        for cell in batch:
            name = cell.rsplit("/", 1)[0]
            field = fields[name]
            try:
                crops[cell] = field, *field.read(field.cell_ids.index(cell))
            except CropError as error:
                unreadable[name] = str(error)
        if len(crops) < 2:
            continue
        images, labels = scorer.prepare(list(crops.values()))
        occupied = labels != BACKGROUND
        images = torch.where(occupied[:, None], make_background_crops(images, occupied), images)
        output = run_network(scorer.model, images, scorer.config.layer, _BATCH_SIZE)
        embeddings |= dict(zip(crops, output.embedding.float().cpu().tolist(), strict=True))
    return embeddings, unreadable
