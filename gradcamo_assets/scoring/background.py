"""What the encoder makes of the background alone: a baseline, since a profile that needs no cell describes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from gradcamo_assets.crops import BACKGROUND, CropField
from gradcamo_assets.explain.audit import background_of_others
from gradcamo_assets.explain.causal import respond
from gradcamo_assets.scoring.score import Scorer

_BATCH = 32


def background_embeddings(scorer: Scorer, fields: Mapping[str, CropField], cells: Sequence[str]) -> list[list[float]]:
    """The embeddings of crops whose cells, target and neighbours, gave way to the background of other crops.

    What is left of the image is where no cell is, and the shape of the hole.

    Args:
        fields: stored crops by the ``<plate>/<well>/<site>`` of their cells.
        cells: ``Metadata_CellID``, in any order; best from all over the plate, since 32 at a time lend each other
            their background.

    Raises:
        BundleError: where crops do not fit the encoder. CropError: where one cannot be read.
        ExplainError: for fewer than two cells, or where no crop has background.
    """
    rows: list[list[float]] = []
    batches = np.array_split(np.asarray(cells, dtype=object), -(-len(cells) // _BATCH))
    for batch in batches:
        read = []
        for cell in batch:
            field = fields[cell.rsplit("/", 1)[0]]
            row = field.cell_ids.index(cell)
            read += [(image.clone(), label) for image, label in scorer.batches(field, [slice(row, row + 1)])]
        images, labels = (torch.cat(parts) for parts in zip(*read, strict=True))
        occupied = labels != BACKGROUND
        images = torch.where(occupied[:, None], background_of_others(images, occupied), images)
        rows += respond(scorer.model, images, scorer.config.layer, _BATCH).embedding.float().cpu().tolist()
    return rows
