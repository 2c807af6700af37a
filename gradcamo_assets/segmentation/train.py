"""Trains the compact network on synthetic images: ``python -m gradcamo_assets.segmentation.train --which cells``.

Cellpose's flow targets and loss; a pool of images, from which patches are cut, flipped, dimmed and made noisy.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from gradcamo_assets.segmentation.compact import INPUTS, CompactNetwork, load_network
from gradcamo_assets.segmentation.intensities import normalised
from gradcamo_assets.segmentation.training_images import training_image

_HELD_OUT = 1_000_000_000
_PATCH = 128


@dataclass(frozen=True)
class _Sample:
    inputs: np.ndarray
    flows: np.ndarray
    labels: np.ndarray


def _sample(which: str, seed: int) -> _Sample:
    """Inputs (C, Y, X), unit flows (2, Y, X) and masks (Y, X) of one synthetic image."""
    from cellpose.dynamics import masks_to_flows_gpu

    torch.set_num_threads(1)
    image = training_image(seed)
    labels = image.cells if which == "cells" else image.nuclei
    present = np.unique(labels[labels > 0])
    labels = np.where(labels > 0, np.searchsorted(present, labels) + 1, 0)
    widest = 2 * int(np.sqrt(np.bincount(labels.ravel())[1:].max(initial=1)))
    flows, _ = masks_to_flows_gpu(labels.astype(np.int64), device=torch.device("cpu"), niter=widest + 10)
    nucleus = normalised(image.nucleus)
    inputs = np.stack([normalised(image.cytoplasm), nucleus] if which == "cells" else [nucleus])
    return _Sample(inputs.astype(np.float16), flows.astype(np.float16), labels.astype(np.int32))


def _pool(which: str, seeds: range, workers: int) -> list[_Sample]:
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        made = executor.map(partial(_sample, which), seeds, chunksize=8)
        return list(tqdm(made, total=len(seeds), desc="images", unit="image"))


def _patch(rng: np.random.Generator, sample: _Sample) -> tuple[np.ndarray, np.ndarray]:
    """A patch, turned and mirrored, with the brightness of a slice that need not be its stack's brightest."""
    y, x = rng.integers(0, np.array(sample.labels.shape) - _PATCH + 1)
    window = (slice(None), slice(y, y + _PATCH), slice(x, x + _PATCH))
    inputs = sample.inputs[window].astype(np.float32)
    target = np.concatenate([sample.flows[window], sample.labels[None][window] > 0]).astype(np.float32)
    if rng.random() < 0.5:
        inputs, target = inputs[:, ::-1], target[:, ::-1] * np.array([-1, 1, 1], np.float32)[:, None, None]
    if rng.random() < 0.5:
        inputs, target = inputs[:, :, ::-1], target[:, :, ::-1] * np.array([1, -1, 1], np.float32)[:, None, None]
    if rng.random() < 0.5:
        inputs, target = inputs.transpose(0, 2, 1), target.transpose(0, 2, 1)[[1, 0, 2]]
    gain = np.exp(rng.uniform(np.log(0.35), np.log(1.5))) * np.exp(rng.normal(0, 0.15, len(inputs)))
    noise = rng.normal(0, rng.uniform(0, 0.06) * (rng.random() < 0.5), inputs.shape)
    shifted = inputs * gain[:, None, None] + noise + rng.uniform(-0.05, 0.08, len(inputs))[:, None, None]
    return shifted.astype(np.float32), np.ascontiguousarray(target)


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cellpose's: half the mean squared error of the flows (times 5) and the cross-entropy of being inside.

    Args:
        output: (B, 3, Y, X), flows times 5 and the logit.
        target: (B, 3, Y, X), unit flows and 0 or 1.
    """
    flows = F.mse_loss(output[:, :2], 5 * target[:, :2]) / 2
    return flows + F.binary_cross_entropy_with_logits(output[:, 2], target[:, 2])


def train(which: str, steps: int, seed: int, out: Path, images: int = 300, batch: int = 8, workers: int = 2) -> Path:
    """Train one set of weights and write ``<out>/<which>.safetensors`` in float16.

    Args:
        which: ``cells`` or ``nuclei``.
        steps: optimiser steps, each of ``batch`` patches of 128 x 128.
        seed: seeds images, patches and the initial weights.
        images: images in the pool.
    """
    from safetensors.torch import save_file

    pool = _pool(which, range(seed * images, (seed + 1) * images), workers)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = CompactNetwork(INPUTS[which]).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.15)
    progress = tqdm(range(steps), desc=which, unit="step")
    smoothed = 0.0
    for step in progress:
        drawn = [_patch(rng, pool[i]) for i in rng.integers(0, len(pool), batch)]
        inputs, target = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
        error = loss(network(inputs)[0], target)
        optimiser.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        smoothed += (error.item() - smoothed) * max(0.02, 1 / (step + 1))
        progress.set_postfix(loss=f"{smoothed:.3f}", refresh=False)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{which}.safetensors"
    state = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(state, path, metadata={"which": which, "steps": str(steps), "seed": str(seed)})
    return path


def held_out_precision(which: str, path: Path | None = None, images: int = 32) -> float:
    """Average precision at IoU 0.5 (TP / (TP + FP + FN), pooled) on synthetic images that no training has seen."""
    from cellpose.dynamics import compute_masks
    from cellpose.metrics import average_precision

    network = load_network(which, path)
    counts = np.zeros(3)
    for seed in range(_HELD_OUT, _HELD_OUT + images):
        sample = _sample(which, seed)
        with torch.inference_mode():
            output = network(torch.from_numpy(sample.inputs[None].astype(np.float32)))[0][0].numpy()
        masks = compute_masks(output[:2], output[2], niter=60, flow_threshold=0.0, min_size=15)
        _, *found = average_precision(sample.labels, masks, threshold=[0.5])
        counts += [part[0] for part in found]
    return float(counts[0] / counts.sum())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--which", choices=sorted(INPUTS), required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    path = train(arguments.which, arguments.steps, arguments.seed, arguments.out, arguments.images)
    print(f"{path}: AP@0.5 on held-out images {held_out_precision(arguments.which, path):.3f}")


if __name__ == "__main__":
    main()
