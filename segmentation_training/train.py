"""Trains the compact network on synthetic images: ``python -m segmentation_training.train --out DIR``.

Cellpose's flow targets and loss; a pool of images, turned, scaled, dimmed and made noisy anew in every step.
Beside the weights: ``<which>.json`` with the loss curve and the average precision on images kept apart.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage as ndi
from torch.nn import functional as F
from tqdm import tqdm

from gradcamo_assets.cells.cell_table import match_labels
from gradcamo_assets.segmentation.compact_network import INPUTS, CompactNetwork
from gradcamo_assets.segmentation.intensities import combine_stains
from segmentation_training.images import training_image

HELD_OUT = 500_000
"""Seed of the first image that training never draws."""
REQUIRED = {"cells": 0.55, "nuclei": 0.55}
"""Average precision at 0.5 that new weights must reach on the images kept apart."""
_RIM = 8
_BATCH = 4
_KEPT = 60


class _Sample(NamedTuple):
    """By network: inputs (C, Y, X), labels (Y, X), target (3, Y, X) of flows and being inside."""

    kind: str
    inputs: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]


def _sample(seed: int) -> _Sample:
    torch.set_num_threads(1)
    image, rng = training_image(seed), np.random.default_rng([seed, 1])
    middle = len(image.nucleus) // 2
    nucleus = dna = combine_stains([image.nucleus])[middle]
    cytoplasm, cells = combine_stains(image.cytoplasm)[middle], image.cells
    if (case := rng.random()) < 0.09:
        # Where nothing fills the cells (the stain failed, or the nucleus stands in for it), a cell is its nucleus.
        cytoplasm, cells = nucleus if case < 0.05 else rng.normal(0, 0.08, nucleus.shape), image.nuclei
    elif case < 0.16:
        nucleus = rng.normal(0, 0.08, nucleus.shape)
    labels = {"cells": _numbered(cells), "nuclei": _numbered(image.nuclei)}
    inputs = {"cells": np.stack([cytoplasm, nucleus]).astype(np.float16), "nuclei": dna[None].astype(np.float16)}
    return _Sample(image.kind, inputs, labels, {which: _target(made) for which, made in labels.items()})


def _numbered(labels: np.ndarray) -> np.ndarray:
    return np.unique(np.append(0, labels), return_inverse=True)[1][1:].reshape(labels.shape).astype(np.int64)


def _target(labels: np.ndarray) -> np.ndarray:
    """Unit flows in y and x, and being inside an object; float16."""
    from cellpose.dynamics import masks_to_flows_gpu

    widest = 2 * int(np.sqrt(np.bincount(labels.ravel())[1:].max(initial=1)))
    flows, _ = masks_to_flows_gpu(labels, device=torch.device("cpu"), niter=2 * widest + 10)
    return np.concatenate([flows, labels[None] > 0]).astype(np.float16)


def _augmented(
    rng: np.random.Generator, inputs: np.ndarray, target: np.ndarray, side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A whole image, turned, mirrored, blurred, unevenly lit, noisy, as bright as any slice of a stack, and scaled to
    ``side`` pixels with the dark rim that Cellpose adds. Whole, since flows point to the middle of what is seen."""
    inputs, target = inputs.astype(np.float32), target.astype(np.float32)
    if rng.random() < 0.5:
        inputs, target = inputs[:, ::-1], target[:, ::-1] * np.array([-1, 1, 1], np.float32)[:, None, None]
    if rng.random() < 0.5:
        inputs, target = inputs[:, :, ::-1], target[:, :, ::-1] * np.array([1, -1, 1], np.float32)[:, None, None]
    if rng.random() < 0.5:
        inputs, target = inputs.transpose(0, 2, 1), target.transpose(0, 2, 1)[[1, 0, 2]]
    if (look := rng.random()) < 0.25:
        inputs = ndi.gaussian_filter(inputs, (0, *[rng.uniform(0.3, 1.3)] * 2), truncate=3)
    elif look < 0.55:
        inputs = _coarse(inputs, rng.uniform(1.5, 4.5))
    if rng.random() < 0.3:
        inputs = np.sign(inputs) * np.abs(inputs) ** rng.uniform(0.65, 1.5)
    gain = np.exp(rng.uniform(np.log(0.35), np.log(1.5))) * np.exp(rng.normal(0, 0.15, (len(inputs), 1, 1)))
    if rng.random() < 0.3:
        ramp = np.linspace(-1, 1, inputs.shape[1])
        gain = gain * np.exp(rng.uniform(-0.5, 0.5) * ramp[:, None] + rng.uniform(-0.5, 0.5) * ramp)
    noise = rng.normal(0, rng.uniform(0, 0.08) * (rng.random() < 0.5), inputs.shape)
    inputs = np.clip(inputs * gain + noise + rng.uniform(-0.05, 0.08, (len(inputs), 1, 1)), -0.5, 3)
    made = [torch.from_numpy(np.ascontiguousarray(part, np.float32))[None] for part in (inputs, target)]
    size = (side - 2 * _RIM, side - 2 * _RIM)
    scaled = F.interpolate(made[0], size, mode="bilinear"), F.interpolate(made[1], size)
    return F.pad(scaled[0][0], (_RIM,) * 4), F.pad(scaled[1][0], (_RIM,) * 4)


def _coarse(inputs: np.ndarray, step: float) -> np.ndarray:
    """Images as a cut along z shows them: a row in ``step`` is kept, and the rows between are interpolated."""
    rows = np.linspace(0, inputs.shape[1] - 1, round(inputs.shape[1] / step))
    kept = ndi.gaussian_filter1d(inputs, step / 3, axis=1, truncate=2)[:, np.rint(rows).astype(int)]
    at = np.linspace(0, len(rows) - 1, inputs.shape[1])
    low = np.minimum(at.astype(int), len(rows) - 2)
    share = (at - low)[:, None].astype(np.float32)
    return kept[:, low] * (1 - share) + kept[:, low + 1] * share


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cellpose's: half the mean squared error of the flows (times 5) and the cross-entropy of being inside.

    Args:
        output: (B, 3, Y, X), flows times 5 and the logit.
        target: (B, 3, Y, X), unit flows and 0 or 1.
    """
    flows = F.mse_loss(output[:, :2], 5 * target[:, :2]) / 2
    return flows + F.binary_cross_entropy_with_logits(output[:, 2], target[:, 2])


def accuracy(which: str, network: CompactNetwork, samples: list[_Sample]) -> dict[str, float]:
    """TP / (TP + FP + FN) at intersection over union 0.5, in 2D, by how the cells lie and for all ("all")."""
    from cellpose.dynamics import compute_masks

    counts: dict[str, np.ndarray] = {}
    for sample in samples:
        inputs = torch.from_numpy(sample.inputs[which].astype(np.float32))[None]
        with torch.inference_mode():
            output = network(inputs)[0][0].numpy()
        truth = sample.labels[which]
        made = compute_masks(output[:2], output[2], niter=100, flow_threshold=0.4)
        found = match_labels(made, truth)
        hits = int((found["iou"] >= 0.5).sum())
        for kind in (sample.kind, "all"):
            counts[kind] = counts.get(kind, 0) + np.array([hits, len(found) + truth.max() - hits])
    return {kind: round(float(hits / max(objects, 1)), 3) for kind, (hits, objects) in sorted(counts.items())}


def train(which: str, steps: int, seed: int, out: Path, pool: list[_Sample], kept: list[_Sample]) -> None:
    """Train one set of weights on one thread; write ``<out>/<which>.safetensors`` (float16) and ``<out>/<which>.json``.

    Args:
        which: ``cells`` or ``nuclei``.
        steps: optimiser steps, each of 4 images.
        seed: seeds augmentation and the initial weights.
        pool: what is trained on.
        kept: images kept apart, to measure on.

    Raises:
        SystemExit: where the average precision on these is below ``REQUIRED``; the files are there all the same.
    """
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = CompactNetwork(INPUTS[which]).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.15)
    curve: list[float] = []
    for _ in (progress := tqdm(range(steps), desc=which, unit="step", mininterval=10)):
        side = 16 * int(rng.integers(9, 18))
        chosen = [pool[i] for i in rng.integers(0, len(pool), _BATCH)]
        drawn = [_augmented(rng, made.inputs[which], made.targets[which], side) for made in chosen]
        inputs, target = (torch.stack(part) for part in zip(*drawn, strict=True))
        error = loss(network(inputs)[0], target)
        optimiser.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        curve.append(error.item())
        progress.set_postfix(loss=f"{curve[-1]:.3f}", refresh=False)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{which}.safetensors"
    state = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(state, path, metadata={"which": which, "steps": str(steps), "seed": str(seed)})
    means = [round(float(np.mean(part)), 3) for part in np.array_split(curve, max(1, steps // 100))]
    ap50 = accuracy(which, network.fold_batch_norm(), kept)
    report = {"steps": steps, "images": len(pool), "seed": seed, "ap50": ap50, "required": REQUIRED[which],
              "loss_every_100_steps": means}  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    if ap50["all"] < REQUIRED[which]:
        raise SystemExit(f"{which}: an average precision of {ap50['all']} is below the {REQUIRED[which]} required")


def main() -> int:
    """Make the images, then train both sets of weights side by side; 1 where either falls short."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--which", choices=sorted(INPUTS), nargs="*", default=sorted(INPUTS))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    first = options.seed * options.images
    seeds = [*range(first, first + options.images), *range(HELD_OUT, HELD_OUT + _KEPT)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        made = list(tqdm(executor.map(_sample, seeds, chunksize=8), total=len(seeds), desc="images", mininterval=10))
    pool, kept = made[:-_KEPT], made[-_KEPT:]
    # Forked, so that both read one pool of images.
    fork = get_context("fork")
    running = [fork.Process(target=train, args=(which, options.steps, options.seed, options.out, pool, kept))
               for which in options.which]  # fmt: skip
    for process in running:
        process.start()
    for process in running:
        process.join()
    return int(any(process.exitcode for process in running))


if __name__ == "__main__":
    raise SystemExit(main())
