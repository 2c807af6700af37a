"""Trains the compact network on synthetic images: ``python -m gradcamo_assets.segmentation.train --which cells``.

Cellpose's flow targets and loss; a pool of images, from which patches are cut, flipped, dimmed and made noisy.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from gradcamo_assets.segmentation.compact import INPUTS, CompactNetwork
from gradcamo_assets.segmentation.intensities import combined
from gradcamo_assets.segmentation.training_images import training_image

_PATCH = 128


def _sample(which: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of one synthetic image: inputs (C, Y, X); unit flows and being inside an object (3, Y, X); both float16."""
    from cellpose.dynamics import masks_to_flows_gpu

    torch.set_num_threads(1)
    image = training_image(seed)
    labels = image.cells if which == "cells" else image.nuclei
    present = np.unique(labels[labels > 0])
    labels = np.where(labels > 0, np.searchsorted(present, labels) + 1, 0)
    widest = 2 * int(np.sqrt(np.bincount(labels.ravel())[1:].max(initial=1)))
    flows, _ = masks_to_flows_gpu(labels.astype(np.int64), device=torch.device("cpu"), niter=widest + 10)
    stains = [image.cytoplasm, image.nucleus] if which == "cells" else [image.nucleus]
    inputs = np.stack([combined([stain]) for stain in stains])
    return inputs.astype(np.float16), np.concatenate([flows, labels[None] > 0]).astype(np.float16)


def _patch(rng: np.random.Generator, inputs: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A patch, turned and mirrored, with the brightness of a slice that need not be its stack's brightest."""
    y, x = rng.integers(0, np.array(inputs.shape[1:]) - _PATCH + 1)
    window = (slice(None), slice(y, y + _PATCH), slice(x, x + _PATCH))
    inputs, target = inputs[window].astype(np.float32), target[window].astype(np.float32)
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


def train(which: str, steps: int, seed: int, out: Path, images: int) -> Path:
    """Train one set of weights and write ``<out>/<which>.safetensors`` in float16.

    Args:
        which: ``cells`` or ``nuclei``.
        steps: optimiser steps, each of 8 patches of 128 x 128.
        seed: seeds images, patches and the initial weights.
        images: images in the pool.
    """
    from safetensors.torch import save_file

    with ProcessPoolExecutor(mp_context=get_context("spawn")) as executor:
        made = executor.map(partial(_sample, which), range(seed * images, (seed + 1) * images), chunksize=8)
        pool = list(tqdm(made, total=images, desc="images", unit="image"))
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = CompactNetwork(INPUTS[which]).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.15)
    for _ in (progress := tqdm(range(steps), desc=which, unit="step")):
        drawn = [_patch(rng, *pool[i]) for i in rng.integers(0, len(pool), 8)]
        inputs, target = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
        error = loss(network(inputs)[0], target)
        optimiser.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        progress.set_postfix(loss=f"{error.item():.3f}", refresh=False)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{which}.safetensors"
    state = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(state, path, metadata={"which": which, "steps": str(steps), "seed": str(seed)})
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--which", choices=sorted(INPUTS), required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    print(train(**vars(parser.parse_args())))
