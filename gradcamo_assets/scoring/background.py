"""What the encoder makes of the background alone: a baseline, since a profile that needs no cell describes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from gradcamo_assets.cells import BACKGROUND, CropField
from gradcamo_assets.errors import CropError
from gradcamo_assets.explain.faithfulness import make_background_crops
from gradcamo_assets.explain.swap_test import run_network
from gradcamo_assets.scoring.scorer import Scorer

_BATCH = 32


def background_embeddings(
    scorer: Scorer, fields: Mapping[str, CropField], cells: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """The embeddings of crops whose cells, target and neighbours, gave way to the background of other crops.

    What is left of the image is where no cell is, and the shape of the hole.

    Args:
        fields: stored crops by the ``<plate>/<well>/<site>`` of their cells.
        cells: ``Metadata_CellID``, in any order; best from all over the plate, since 32 at a time lend each other
            their background.

    Returns:
        Embeddings by cell; and why a field could not be read, by its name: its cells are left out.

    Raises:
        BundleError: where crops do not fit the encoder. ExplainError: where no crop has background.
    """
    found: dict[str, list[float]] = {}
    damaged: dict[str, str] = {}
    for batch in np.array_split(np.asarray(cells, dtype=object), -(-len(cells) // _BATCH)):
        read = {}
        for cell in batch:
            name = cell.rsplit("/", 1)[0]
            row = fields[name].cell_ids.index(cell)
            try:
                ((image, labels),) = scorer.batches(fields[name], [slice(row, row + 1)])
            except CropError as error:
                damaged[name] = str(error)
            else:
                read[cell] = image.clone(), labels
        if len(read) < 2:
            continue
        images, labels = (torch.cat(parts) for parts in zip(*read.values(), strict=True))
        occupied = labels != BACKGROUND
        images = torch.where(occupied[:, None], make_background_crops(images, occupied), images)
        embeddings = run_network(scorer.model, images, scorer.config.layer, _BATCH).embedding.float().cpu().tolist()
        found |= dict(zip(read, embeddings, strict=True))
    return found, damaged
