"""Segment whole volumes with the compact network in 3D, and combine overlapping blocks of large fields.

The network runs on planes along three axes, and Cellpose's dynamics run in 3D on the sum of the flows, like Cellpose's
``do_3D`` (Stringer et al., Nature Methods 18, 100 (2021)). Cellpose tiles planes into squares; here planes stay whole,
because those along z are only a few dozen pixels high. Planes across y and x are left out where the planes across z
show no object. The dynamics run on cubic voxels. Large fields are split into overlapping blocks of the plane; an object
belongs to the block whose inner part contains its centre.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

if TYPE_CHECKING:
    import torch

_PLANE_STEP = 2
"""Distance of the planes that the network sees, in pixels of the network's scale."""
_MARGIN = 8
_STRIDE = 16
_DOUBT = 2.0
"""Objects are ruled out where the logit of all planes across z is this much below the threshold."""
_SURROUNDINGS, _NEIGHBOURS, _PART = 24, 4, 32
"""Pixels around likely objects that the network sees, within a plane and across planes, in parts of so many pixels:
few different lengths, because OpenVINO prepares itself for each.
"""
_LEAST_SAVING = 0.2
_CPU_BATCH_PIXELS, _GPU_BATCH_PIXELS = 300_000, 8_000_000
_INNER_OVERLAP = 2
"""Pixels by which inner parts overlap, because the centre of an object may differ slightly between two blocks."""
Window = tuple[slice, slice]


def segment_volume(
    network: Any, stack: np.ndarray, size: tuple[int, int, int], steps: int, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segment a stack at another size; also return the flows and logits.

    Args:
        network: maps (B, C, Y, X), with sides that are multiples of 16, to flows (times 5) and logit (B, 3, Y, X).
        stack: (C, Z, Y, X) float32.
        size: (Z, Y, X) at which voxels are cubic and objects have the width for which the network was trained.
        steps: number of steps of the dynamics.
        threshold: lowest logit of a voxel inside an object.

    Returns:
        labels of shape ``size``, 0 outside; flows (3, *size), of unit length where the network is certain; logits of
        shape ``size``.
    """
    import torch
    from cellpose.dynamics import resize_and_compute_masks
    from torch.nn.functional import interpolate

    device = next(network.parameters()).device
    flows, logits, likely = torch.zeros((3, *size)), torch.zeros(size), torch.ones(size[1:], dtype=torch.bool)
    lowest = threshold / 3 - _DOUBT
    with torch.inference_mode():
        for normal in range(3):
            # Neighbouring planes are nearly alike, so every second is enough, and no more than the image has.
            planes_size = list(size)
            planes_size[normal] = min(-(-size[normal] // _PLANE_STEP), stack.shape[1 + normal])
            scaled = interpolate(torch.from_numpy(stack)[None], planes_size, mode="trilinear")[0]
            planes = scaled.movedim(1 + normal, 0)
            if normal == 0:
                outputs = _predict_planes(network, planes)
            else:
                outputs = _predict_parts(network, planes, likely if normal == 1 else likely.T, lowest)
            outputs = outputs.movedim(0, 1 + normal)
            targets = [*(flows[axis] for axis in range(3) if axis != normal), logits]
            for part, target in zip(outputs, targets, strict=True):
                target += interpolate(part[None, None], size, mode="trilinear")[0, 0]
            if normal == 0:
                likely = (logits > lowest).any(0)
    labels = resize_and_compute_masks(
        flows.numpy(), logits.numpy(), steps, threshold, do_3D=True, min_size=-1, device=device
    )
    # Each flow component sums two planes' flows, each of length 5 if the network is certain; the logit sums three.
    length = (flows**2).sum(0).sqrt_().clamp_(min=5)
    return labels, (flows / length).numpy(), (logits / 3).numpy()


def _predict_parts(network: Any, planes: torch.Tensor, likely: torch.Tensor, lowest: float) -> torch.Tensor:
    """Run the network on planes (P, C, Y, X) near likely objects only, or on whole planes if that saves little.

    Args:
        likely: (positions across the planes, X) bool, whether an object may be there at any Y.
        lowest: the logit where the network does not run; the flows there are 0.

    Returns:
        (P, 3, Y, X) on the CPU.
    """
    import torch
    from torch.nn.functional import adaptive_max_pool2d, max_pool2d

    count, _, height, width = planes.shape
    reach = _NEIGHBOURS, _SURROUNDINGS
    wanted = max_pool2d(likely[None].float(), [2 * n + 1 for n in reach], stride=1, padding=reach)
    wanted = max_pool2d(adaptive_max_pool2d(wanted, (count, width)), (1, _PART), ceil_mode=True)[0]
    edges = np.diff(wanted.numpy(), axis=1, prepend=0, append=0)
    (rows, first), last = np.nonzero(edges > 0), np.nonzero(edges < 0)[1]
    starts, stops = _PART * first, np.minimum(_PART * last, width)
    lengths = stops - starts
    if (lengths + 2 * _MARGIN).sum() > (1 - _LEAST_SAVING) * count * (width + 2 * _MARGIN):
        return _predict_planes(network, planes)
    outputs = torch.zeros((count, 3, height, width))
    outputs[:, 2] = lowest
    for length in np.unique(lengths):
        chosen = lengths == length
        parts = [(row, ..., slice(at, at + length)) for row, at in zip(rows[chosen], starts[chosen], strict=True)]
        predicted = _predict_planes(network, torch.stack([planes[part] for part in parts]))
        for part, output in zip(parts, predicted, strict=True):
            outputs[part] = output
    return outputs


def _predict_planes(network: Any, planes: torch.Tensor) -> torch.Tensor:
    """Run the network in batches on planes (P, C, Y, X) of any size, padded with a dark margin as in training.

    Returns:
        (P, 3, Y, X) on the CPU.
    """
    import torch
    from torch.nn.functional import pad

    device = next(network.parameters()).device
    height, width = planes.shape[2:]
    padding = [-(-(length + 2 * _MARGIN) // _STRIDE) * _STRIDE - length for length in (width, height)]
    left, top = (total // 2 for total in padding)
    pixels = _CPU_BATCH_PIXELS if device.type == "cpu" else _GPU_BATCH_PIXELS
    outputs = []
    for batch in planes.split(max(1, pixels // (height * width))):
        padded = pad(batch.to(device), (left, padding[0] - left, top, padding[1] - top))
        outputs.append(network(padded)[0][:, :, top : top + height, left : left + width].cpu())
    return torch.cat(outputs)


def resize_labels(labels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize labels by nearest neighbours."""
    indices = [(np.arange(new) + 0.5) * old // new for new, old in zip(size, labels.shape, strict=True)]
    return labels[np.ix_(*[axis.astype(int) for axis in indices])]


def iter_blocks(shape: tuple[int, int], side: int, halo: int) -> Iterator[tuple[Window, Window]]:
    """Yield blocks that cover a plane (Y, X): the window to segment, and its inner part in coordinates of the window.

    Args:
        side: largest side of a window in pixels, unless ``halo`` requires more.
        halo: pixels around the inner part; an object may extend this far beyond it.
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
            for axis, index in enumerate((y, x)):
                first, last = int(edges[axis][index]), int(edges[axis][index + 1])
                start = max(0, first - halo)
                outer.append(slice(start, min(shape[axis], last + halo)))
                inner.append(slice(max(0, first - start - _INNER_OVERLAP), last - start + _INNER_OVERLAP))
            yield (outer[0], outer[1]), (inner[0], inner[1])


def paste_objects(target: np.ndarray, objects: np.ndarray, inner: Window, first: int) -> np.ndarray:
    """Write the objects of a block into ``target`` in place; return their labels in ``objects``.

    An object is skipped if its centre lies outside ``inner``, or if other blocks already cover half of it. Existing
    labels are never overwritten.

    Args:
        target: the part of the field that the block covers (Z, Y, X).
        objects: labels of the block (Z, Y, X), 0 outside.
        inner: the inner part of (Y, X).
        first: label of the first object written; the others follow consecutively.
    """
    written: list[int] = []
    for label, box in enumerate(scipy.ndimage.find_objects(objects), start=1):
        if box is None:
            continue
        mask = objects[box] == label
        _, y, x = (float(at.mean()) + part.start for at, part in zip(np.nonzero(mask), box, strict=True))
        if not (inner[0].start <= y < inner[0].stop and inner[1].start <= x < inner[1].stop):
            continue
        free = mask & (target[box] == 0)
        if 2 * np.count_nonzero(free) > np.count_nonzero(mask):
            target[box][free] = first + len(written)
            written.append(label)
    return np.array(written, int)
