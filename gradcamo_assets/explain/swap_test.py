"""Swap test: exchange the surroundings of cells and measure whether the prediction follows the cell.

The test depends on predictions, not on maps, so it is also valid for encoders whose score was optimised in training.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gradcamo_assets.explain.maps import Layer, capture_activations, find_layer
from gradcamo_assets.explain.surroundings import transplant_cells
from gradcamo_assets.explain.targets import class_logits, class_probabilities, extract_logits

_PARTNERS_PER_CELL = 3
"""Partners that each cell changes places with; results are averaged over them."""


@dataclass(frozen=True)
class NetworkOutput:
    """Output of a network for B images.

    Attributes:
        logits: (B, classes), as the network returns them.
        embedding: (B, K), the mean of the layer's activations over voxels.
    """

    logits: Tensor
    embedding: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Probability of every class, (B, classes); two classes for a single logit."""
        return class_probabilities(self.logits)

    def compare(self, other: NetworkOutput, classes: Tensor) -> dict[str, Tensor]:
        """Measure how another output differs: columns (B,).

        ``probability_drop`` and ``logit_drop`` refer to the given classes (B,); ``embedding_move`` is the cosine
        distance of the embeddings.
        """
        column = classes[:, None]
        before, after = (output.probabilities.gather(1, column)[:, 0] for output in (self, other))
        return {
            "probability_drop": before - after,
            "logit_drop": class_logits(self.logits - other.logits).gather(1, column)[:, 0],
            "embedding_move": 1 - nn.functional.cosine_similarity(self.embedding, other.embedding),
        }


def run_network(model: nn.Module, images: Tensor, layer: Layer, batch_size: int = 16) -> NetworkOutput:
    """Run the network in batches, without a graph. The output is on the images' device."""
    modules = dict([find_layer(model, layer)])
    weight = next(model.parameters(), images)
    logits, embeddings = [], []
    with torch.inference_mode(False), torch.no_grad():
        for batch in images.split(batch_size):
            batch = batch.to(weight.device, weight.dtype)
            output, activations = capture_activations(model, batch, modules, graph=False)
            logits.append(extract_logits(output).float().to(images.device))
            pooled = next(iter(activations.values())).flatten(2).mean(2, dtype=torch.float32)
            embeddings.append(pooled.to(images.device))
    return NetworkOutput(torch.cat(logits), torch.cat(embeddings))


def draw_partners(treatments: Sequence[Hashable], rng: np.random.Generator) -> np.ndarray:
    """Draw for each cell the index of a cell of another treatment, (B,); -1 for all if there is one treatment only."""
    codes = np.unique([str(treatment) for treatment in treatments], return_inverse=True)[1]
    candidates = [np.flatnonzero(codes != code) for code in codes]
    return np.array([rng.choice(indices) if len(indices) else -1 for indices in candidates])


def compute_swap_columns(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    neighbours: Tensor,
    layer: Layer,
    intact: NetworkOutput,
    treatments: Sequence[Hashable],
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Exchange cells with cells of another treatment and compare the network's outputs: columns (B,) float64.

    Two swaps are measured, each averaged over three partners: the cell in other surroundings
    (``swapped_surroundings``), and another cell in this cell's surroundings (``swapped_target``).

    - ``probability_drop_<swap>``, ``logit_drop_<swap>``: drop for the predicted class. ``embedding_move_<swap>``:
      cosine distance of the embeddings.
    - ``swapped_class``: index of the class with the highest mean probability in other surroundings.
    - ``swap_margin``: mean probability of the predicted class in other surroundings, minus the larger of two values:
      any other class's mean probability there, and the predicted class's mean probability with another cell in this
      cell's surroundings.
    - ``survives_swap``: 1 if ``swap_margin`` is above 0, else 0.

    All columns are NaN if the cells have one treatment only.

    Args:
        images: (B, C, *crop).
        target, neighbours: (B, *crop) bool.
        intact: output for the unchanged images.
        treatments: of each cell; partners have another treatment.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    classes = intact.probabilities.argmax(1)
    means: dict[str, Tensor] = {}
    mean_probabilities = {
        name: torch.zeros_like(intact.probabilities) for name in ("swapped_surroundings", "swapped_target")
    }
    has_partners = True
    for _ in range(_PARTNERS_PER_CELL):
        drawn = draw_partners(treatments, rng)
        has_partners = bool((drawn >= 0).all())
        partners = torch.as_tensor(drawn, device=images.device)
        cells = (images, target, neighbours)
        partner_cells = (images[partners], target[partners], neighbours[partners])
        swaps = (("swapped_surroundings", cells, partner_cells), ("swapped_target", partner_cells, cells))
        for swap, (moved_images, moved_target, _), (hosts, host_target, host_neighbours) in swaps:
            swapped = transplant_cells(
                moved_images, moved_target, hosts, host_target, host_neighbours, generator=generator
            )
            output = run_network(model, swapped, layer)
            mean_probabilities[swap] += output.probabilities / _PARTNERS_PER_CELL
            for measure, values in intact.compare(output, classes).items():
                column = f"{measure}_{swap}"
                means[column] = means.get(column, torch.zeros_like(values)) + values / _PARTNERS_PER_CELL
    elsewhere, replaced = (values.gather(1, classes[:, None])[:, 0] for values in mean_probabilities.values())
    means["swapped_class"] = mean_probabilities["swapped_surroundings"].argmax(1).float()
    rivals = mean_probabilities["swapped_surroundings"].scatter(1, classes[:, None], 0).amax(1)
    means["swap_margin"] = elsewhere - torch.maximum(rivals, replaced)
    means["survives_swap"] = (means["swap_margin"] > 0).float()
    if not has_partners:
        means = {name: torch.full_like(values, torch.nan) for name, values in means.items()}
    return {name: values.cpu().double().numpy() for name, values in means.items()}
