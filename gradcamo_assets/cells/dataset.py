"""Read crops as a torch dataset, and sample them with balanced classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gradcamo_assets.cells.crop_field import CropField
from gradcamo_assets.errors import CropError
from gradcamo_assets.provenance import digest

_BLOCK_BYTES = 1 << 20


def standardise(images: Tensor, center: Tensor, scale: Tensor, out: Tensor | None = None) -> Tensor:
    """Standardise raw intensities (B, C, Z, Y, X) to float32 by the plate's statistics, (C,) or (B, C).

    Statistics of the crop itself would carry the cell's phenotype into the background.

    Args:
        out: float32 tensor of the images' shape to write to; None allocates one.
    """
    shape = (-1, images.shape[1], *[1] * (images.ndim - 2))
    if out is None:
        out = torch.empty(images.shape, device=images.device)
    return out.copy_(images).sub_(center.view(shape)).div_(scale.view(shape))


def standardise_channels_last(
    images: np.ndarray, order: Sequence[int], center: np.ndarray, scale: np.ndarray, out: np.ndarray
) -> None:
    """Write what ``standardise`` returns with the channels last. It uses one thread, so that several can share a batch.

    Args:
        images: (B, stored channels, z, y, x) uint16.
        order: stored channels to use, C of them.
        center, scale: (C,) float32.
        out: (B, z, y, x, C) float32.
    """
    _, depth, height, width, channels = out.shape
    # A block that stays in the core's cache halves the time.
    step = max(1, _BLOCK_BYTES // (4 * channels * height * width))
    block = np.empty((channels, min(step, depth), height, width), np.float32)
    center, scale = (values[:, None, None, None] for values in (center, scale))
    for image, standardised in zip(images, out, strict=True):
        for first in range(0, depth, step):
            slices = slice(first, min(first + step, depth))
            part = block[:, : slices.stop - first]
            for channel, stored in enumerate(order):
                part[channel] = image[stored, slices]
            np.subtract(part, center, out=part)
            np.divide(part, scale, out=part)
            for channel, values in enumerate(part):
                standardised[slices, ..., channel] = values


def channel_order(field: CropField, channels: Sequence[str]) -> list[int]:
    """Return the positions of ``channels`` in the field's crops.

    Raises:
        CropError: if a channel is missing.
    """
    missing = [name for name in channels if name not in field.channels]
    if missing:
        problem = f"crops lack channel {', '.join(missing)}; they have {', '.join(field.channels)}"
        raise CropError(problem, "Score the plate with an encoder trained on its stains.", path=field.path)
    return [field.channels.index(name) for name in channels]


class CropDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Standardised crops with their labels and classes.

    An item is an image (C, z, y, x) float32, labels (z, y, x) uint8 and a class index.

    Args:
        fields: fields with the crops.
        classes: class index by ``Metadata_CellID``; cells without one are left out.
        channels: stains in the encoder's order.
        memory: bytes of raw crops to cache, so that later epochs need no disk. The crops of a field are cached
            together, since reading one of a field without stored pixels reads the whole field.
    """

    def __init__(
        self, fields: Sequence[CropField], classes: dict[str, int], channels: Sequence[str], memory: int = 2 << 30
    ):
        self.fields = list(fields)
        self.orders = [channel_order(field, channels) for field in self.fields]
        self.items = [
            (index, row, classes[cell_id])
            for index, field in enumerate(self.fields)
            for row, cell_id in enumerate(field.cell_ids)
            if cell_id in classes
        ]
        self._items_of_field: dict[int, list[int]] = {}
        for item, (index, _, _) in enumerate(self.items):
            self._items_of_field.setdefault(index, []).append(item)
        self._free_bytes = memory
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def targets(self) -> np.ndarray:
        """Class index of every item, (N,)."""
        return np.array([target for _, _, target in self.items], dtype=np.int64)

    @property
    def identity(self) -> str:
        """Digest of the crops, their classes and their stains, in order."""
        return digest(
            [
                (self.fields[index].version, self.fields[index].cell_ids[row], self.orders[index], target)
                for index, row, target in self.items
            ]
        )

    @property
    def cell_ids(self) -> list[str]:
        """``Metadata_CellID`` of every crop, in order."""
        return [self.fields[field].cell_ids[row] for field, row, _ in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor, int]:
        index, row, target = self.items[item]
        field, order = self.fields[index], self.orders[index]
        if item not in self._cache and self._free_bytes > 0:
            self._cache_field(index)
        image, labels = self._cache.get(item) or field.read(row)
        center, scale = torch.from_numpy(field.center[order]), torch.from_numpy(field.scale[order])
        return standardise(torch.from_numpy(image[order])[None], center, scale)[0], torch.from_numpy(labels), target

    def _cache_field(self, index: int) -> None:
        """Read the crops of a field into the cache, as far as there is room."""
        for item in self._items_of_field[index]:
            if self._free_bytes > 0:
                crop = self.fields[index].read(self.items[item][1])
                self._cache[item] = crop
                self._free_bytes -= sum(array.nbytes for array in crop)


class BalancedSampler(Sampler[int]):
    """Sample items with replacement so that all classes are equally likely.

    The sample depends only on ``seed`` and the epoch, so a resumed training draws the same items. Each of ``ranks``
    processes takes its share of one balanced sample.

    Args:
        targets: (N,) class index of every item.
        total: items per epoch and process.
    """

    def __init__(self, targets: np.ndarray, total: int, seed: int, ranks: int = 1):
        self.weights = torch.from_numpy(1.0 / np.bincount(targets)[targets])
        self.total, self.seed, self.ranks, self.epoch = total, seed, ranks, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch))
        drawn = torch.multinomial(self.weights, self.total * self.ranks, replacement=True, generator=generator)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        return iter(drawn[rank :: self.ranks].tolist())


def mix_seeds(*seeds: int) -> int:
    """Combine several seeds into one; neighbouring seeds give unrelated streams."""
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])
