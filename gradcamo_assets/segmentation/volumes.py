"""The compact network on a whole volume: its answers in three sets of planes, Cellpose's dynamics in 3D on their sum.

What ``do_3D`` of Cellpose does (Stringer et al., Nature Methods 18, 100 (2021)), without square tiles: planes along z
are a few dozen pixels high, and the compact network takes them as they are. The dynamics run where voxels are cubes.
Large fields go in overlapping blocks of the plane: an object belongs, whole, to the block whose inner part has its
centre.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage as ndi

if TYPE_CHECKING:
    import torch

_RIM = 8
_STRIDE = 16
_CPU_PIXELS, _GPU_PIXELS = 300_000, 8_000_000
_SLACK = 2
"""Pixels by which inner parts overlap, since two blocks may put an object's centre a little apart."""
Window = tuple[slice, slice]


def volume_objects(
    network: Any, stack: np.ndarray, size: tuple[int, int, int], steps: int, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Objects of a stack at another size, with the flows and logits they come from.

    Args:
        network: turns (B, C, Y, X) with sides that are multiples of 16 into flows (times 5) and logit (B, 3, Y, X).
        stack: (C, Z, Y, X) float32.
        size: (Z, Y, X) at which voxels are cubes and objects as wide as the network likes them.
        steps: of the dynamics. threshold: least logit of a voxel inside an object.

    Returns:
        labels ``size``, 0 outside; flows (3, *size), unit length where the network is sure; logits ``size``.
    """
    import torch
    from cellpose.dynamics import resize_and_compute_masks
    from torch.nn.functional import interpolate

    device = next(network.parameters()).device
    scaled = interpolate(torch.from_numpy(stack)[None], size, mode="trilinear")[0]
    flows, logits = torch.zeros((3, *size)), torch.zeros(size)
    with torch.inference_mode():
        for normal in range(3):
            planes = scaled.movedim(1 + normal, 0)
            targets = [part.movedim(normal, 0) for axis, part in enumerate(flows) if axis != normal]
            targets.append(logits.movedim(normal, 0))
            pixels = _CPU_PIXELS if device.type == "cpu" else _GPU_PIXELS
            batch = max(1, pixels // (planes.shape[2] * planes.shape[3]))
            for start in range(0, len(planes), batch):
                answers = _answers(network, planes[start : start + batch].to(device)).cpu()
                for k, target in enumerate(targets):
                    target[start : start + batch] += answers[:, k]
    found = resize_and_compute_masks(
        flows.numpy(), logits.numpy(), steps, threshold, do_3D=True, min_size=-1, device=device
    )
    # Each component is the sum of two planes' flows, each 5 where the network is sure; the logit that of three.
    length = (flows**2).sum(0).sqrt_().clamp_(min=5)
    return found, (flows / length).numpy(), (logits / 3).numpy()


def _answers(network: Any, planes: torch.Tensor) -> torch.Tensor:
    """The network's answers to planes (B, C, Y, X) of any size, behind a dark rim as in training."""
    from torch.nn.functional import pad

    height, width = planes.shape[2:]
    sides = [-(-(length + 2 * _RIM) // _STRIDE) * _STRIDE - length for length in (width, height)]
    rims = [side // 2 for side in sides]
    padded = pad(planes, (rims[0], sides[0] - rims[0], rims[1], sides[1] - rims[1]))
    answers: torch.Tensor = network(padded)[0]
    return answers[:, :, rims[1] : rims[1] + height, rims[0] : rims[0] + width]


def at_size(labels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Labels at another size, each voxel that of the nearest."""
    near = [(np.arange(new) + 0.5) * old // new for new, old in zip(size, labels.shape, strict=True)]
    return labels[np.ix_(*[part.astype(int) for part in near])]


def blocks(shape: tuple[int, int], side: int, halo: int) -> Iterator[tuple[Window, Window]]:
    """Blocks that cover a plane (Y, X): what to segment, and the inner part, relative to it, that counts.

    Args:
        side: most pixels along y and x of what is segmented, as far as ``halo`` allows.
        halo: pixels around the inner part; objects may reach so far out of it.
    """
    if max(shape) <= side:
        whole = slice(0, shape[0]), slice(0, shape[1])
        yield whole, whole
        return
    counts = [-(-length // max(side - 2 * halo, halo, 1)) for length in shape]
    edges = [np.linspace(0, length, count + 1).round().astype(int) for length, count in zip(shape, counts, strict=True)]
    for y in range(counts[0]):
        for x in range(counts[1]):
            outer, inner = [], []
            for axis, at in enumerate((y, x)):
                first, last = int(edges[axis][at]), int(edges[axis][at + 1])
                start = max(0, first - halo)
                outer.append(slice(start, min(shape[axis], last + halo)))
                inner.append(slice(max(0, first - start - _SLACK), last - start + _SLACK))
            yield (outer[0], outer[1]), (inner[0], inner[1])


def paste(into: np.ndarray, objects: np.ndarray, inner: Window, first: int) -> np.ndarray:
    """Write a block's objects into what is there, in place; the labels in ``objects`` that were written.

    Objects with their centre outside ``inner`` are left to other blocks, and so are those of which others have written
    half already. What is written stays.

    Args:
        into: the block's part of the field (Z, Y, X).
        objects: labels of the block (Z, Y, X), 0 outside.
        inner: the part of (Y, X) that counts.
        first: label of the first object written; the others count on.
    """
    written: list[int] = []
    for label, box in enumerate(ndi.find_objects(objects), start=1):
        if box is None:
            continue
        mask = objects[box] == label
        _, y, x = (float(at.mean()) + part.start for at, part in zip(np.nonzero(mask), box, strict=True))
        if not (inner[0].start <= y < inner[0].stop and inner[1].start <= x < inner[1].stop):
            continue
        free = mask & (into[box] == 0)
        if 2 * np.count_nonzero(free) > np.count_nonzero(mask):
            into[box][free] = first + len(written)
            written.append(label)
    return np.array(written, int)
