"""Stored crops as a torch dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gradcamo_assets.cells.crop_store import CropField
from gradcamo_assets.errors import CropError
from gradcamo_assets.provenance import digest


def standardise(images: Tensor, center: Tensor, scale: Tensor, out: Tensor | None = None) -> Tensor:
    """(B, C, Z, Y, X) raw intensities to float32 by the plate's statistics (C,); never by the crop's own.

    Dividing a crop by its own mean and deviation would write the cell's phenotype into the background's pixels.

    Args:
        out: float32 memory of the images' shape to write to; made where it is not given.
    """
    shape = (1, -1, *[1] * (images.ndim - 2))
    if out is None:
        out = torch.empty(images.shape, device=images.device)
    return out.copy_(images).sub_(center.view(shape)).div_(scale.view(shape))


def channel_order(field: CropField, channels: Sequence[str]) -> list[int]:
    """Positions of ``channels`` in the field's crops; CropError where one is missing."""
    missing = [name for name in channels if name not in field.channels]
    if missing:
        problem = f"crops lack channel {', '.join(missing)} (they have {', '.join(field.channels)})"
        raise CropError(problem, "Score the plate with an encoder trained on its stains.", path=field.path)
    return [field.channels.index(name) for name in channels]


class CropDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Standardised crops, their labels and their class.

    Args:
        fields: stored fields. classes: ``Metadata_CellID`` to class index; cells it lacks are left out.
        channels: stains in the order the encoder takes them. memory: bytes of raw crops kept once read, so that later
            epochs need no disk.

    Items: (C, z, y, x) float32, (z, y, x) uint8, class index.
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
        self._free = memory
        self._read: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def targets(self) -> np.ndarray:
        """(N,) class index of every item."""
        return np.array([target for _, _, target in self.items], dtype=np.int64)

    @property
    def identity(self) -> str:
        """Digest of which crops these are, their classes and their stains, in order."""
        fields, orders = self.fields, self.orders
        return digest([(fields[i].version, fields[i].cell_ids[row], orders[i], y) for i, row, y in self.items])

    @property
    def cell_ids(self) -> list[str]:
        """``Metadata_CellID`` of every crop, in order."""
        return [self.fields[field].cell_ids[row] for field, row, _ in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor, int]:
        index, row, target = self.items[item]
        field, order = self.fields[index], self.orders[index]
        found = self._read.get(item)
        if found is None:
            found = field.read(row)
            if self._free > 0:
                self._read[item] = found
                self._free -= sum(array.nbytes for array in found)
        image, labels = found
        center, scale = torch.from_numpy(field.center[order]), torch.from_numpy(field.scale[order])
        return standardise(torch.from_numpy(image[order])[None], center, scale)[0], torch.from_numpy(labels), target


class BalancedSampler(Sampler[int]):
    """Items drawn with replacement so that every class is as likely, in every process of a training.

    An epoch's draw follows from ``seed`` and ``set_epoch`` alone: a training taken up again draws what it would have
    drawn, and each of ``ranks`` processes takes its own share of one balanced draw.

    Args:
        targets: (N,) class index of every item. total: items an epoch and process.
    """

    def __init__(self, targets: np.ndarray, total: int, seed: int, ranks: int = 1):
        self.weights = torch.from_numpy(1.0 / np.bincount(targets)[targets])
        self.total, self.seed, self.ranks, self.epoch = total, seed, ranks, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch))
        drawn = torch.multinomial(self.weights, self.total * self.ranks, replacement=True, generator=generator)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        return iter(drawn[rank :: self.ranks].tolist())


def mix_seeds(*seeds: int) -> int:
    """One seed made of several; neighbouring ones give unrelated streams."""
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])
