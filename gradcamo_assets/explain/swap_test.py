"""The swap test: does the network answer to the cell, or to what stands round it? Cells change surroundings and say.

A score that was trained for may be high for any reason; what a network answers to a cell that was moved is not a map.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gradcamo_assets.explain import maps as cam
from gradcamo_assets.explain.maps import Layer
from gradcamo_assets.explain.surroundings import moved_to

_HOSTS = 3
"""Partners that each cell changes places with; their answers are averaged."""


@dataclass(frozen=True)
class Response:
    """What a network answers to B images: its (B, classes) ``logits`` and its (B, K) ``embedding`` at the layer."""

    logits: Tensor
    embedding: Tensor

    def changes(self, other: Response, classes: Tensor) -> dict[str, Tensor]:
        """How far probability and logit of the classes (B,) fall, and the embedding turns (cosine distance): (B,)."""
        column = classes[:, None]
        probability = [answer.logits.softmax(1).gather(1, column)[:, 0] for answer in (self, other)]
        return {
            "probability_drop": probability[0] - probability[1],
            "logit_drop": (self.logits - other.logits).gather(1, column)[:, 0],
            "embedding_move": 1 - nn.functional.cosine_similarity(self.embedding, other.embedding),
        }


def respond(model: nn.Module, images: Tensor, layer: Layer, batch_size: int = 16) -> Response:
    """Ask the network, batch by batch, without a graph; the answers lie where the images do."""
    modules = dict([cam.find_layer(model, layer)])
    weight = next(model.parameters(), images)
    logits, embeddings = [], []
    with torch.inference_mode(False), torch.no_grad():
        for part in images.split(batch_size):
            output, activations = cam.captured(model, part.to(weight.device, weight.dtype), modules, graph=False)
            logits.append(cam.logits_of(output).float().to(images.device))
            pooled = next(iter(activations.values())).flatten(2).mean(2, dtype=torch.float32)
            embeddings.append(pooled.to(images.device))
    return Response(torch.cat(logits), torch.cat(embeddings))


def partners(treatments: Sequence[Hashable], rng: np.random.Generator) -> np.ndarray:
    """For each cell the index of one of another treatment, (B,); -1 for all where there is but one treatment."""
    number = np.unique([str(one) for one in treatments], return_inverse=True)[1]
    others = [np.flatnonzero(number != own) for own in number]
    return np.array([rng.choice(other) if len(other) else -1 for other in others])


def swap_test(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    neighbours: Tensor,
    layer: Layer,
    intact: Response,
    treatments: Sequence[Hashable],
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """What the network answers when cells change places with cells of another treatment: columns, (B,) float64 each.

    ``probability_drop_``, ``logit_drop_`` and ``embedding_move_`` of the predicted class when the cell stands in other
    surroundings (``swapped_surroundings``) and when another cell stands in its own (``swapped_target``), means over
    three partners. ``swapped_class``: index of the class with the highest mean probability in other surroundings.
    ``swap_margin``: by how much the predicted class is more probable there than any other, and than it is with another
    cell in its own surroundings, the lesser of the two. ``survives_swap``: 1 where that is above 0. NaN without cells
    of two treatments.

    Args:
        images: (B, C, *crop). target, neighbours: (B, *crop) bool. intact: the answer to the images as they are.
        treatments: of each cell; partners have another one.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    classes = intact.logits.argmax(1)
    sums: dict[str, Tensor] = {}
    staying = {name: torch.zeros_like(intact.logits) for name in ("swapped_surroundings", "swapped_target")}
    known = True
    for _ in range(_HOSTS):
        drawn = partners(treatments, rng)
        known = bool((drawn >= 0).all())
        other = torch.as_tensor(drawn, device=images.device)
        own = (images, target, neighbours)
        lent = (images[other], target[other], neighbours[other])
        for name, cell, ground in (("swapped_surroundings", own, lent), ("swapped_target", lent, own)):
            (seen, mask, _), (hosts, host_target, host_neighbours) = cell, ground
            moved = moved_to(seen, mask, hosts, host_target, host_neighbours, generator=generator)
            answer = respond(model, moved, layer)
            staying[name] += answer.logits.softmax(1) / _HOSTS
            for what, values in intact.changes(answer, classes).items():
                sums[f"{what}_{name}"] = sums.get(f"{what}_{name}", torch.zeros_like(values)) + values / _HOSTS
    here, there = (staying[name].gather(1, classes[:, None])[:, 0] for name in staying)
    sums["swapped_class"] = staying["swapped_surroundings"].argmax(1).float()
    rivals = staying["swapped_surroundings"].scatter(1, classes[:, None], 0).amax(1)
    sums["swap_margin"] = here - torch.maximum(rivals, there)
    sums["survives_swap"] = (sums["swap_margin"] > 0).float()
    missing = torch.zeros(len(images), device=images.device) if known else torch.full((len(images),), torch.nan)
    return {name: (values + missing.to(values)).cpu().double().numpy() for name, values in sums.items()}
