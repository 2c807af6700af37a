"""Train an encoder without classes from two views of each crop, then fit a linear head of class prototypes.

The losses are those of pytorch-metric-learning: VICReg (Bardes et al., ICLR 2022, arXiv 2105.04906) and SimCLR (Chen et
al., ICML 2020, arXiv 2002.05709), which equals the SupCon loss with one positive per view. A view is a crop that is
swapped and augmented as in supervised training and then changed in zoom and blur (MONAI). The labels of the training
cells determine one prototype per class; they do not influence the encoder's weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradcamo_assets.cells.dataset import BalancedSampler, CropDataset
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.explain import maps as cam
from gradcamo_assets.explain.targets import extract_logits
from gradcamo_assets.networks.encoders import is_2d
from gradcamo_assets.profiles.sphering import fit_sphering
from gradcamo_assets.training.lightning_module import Batch, EncoderModule, forward_with_embedding

_TEMPERATURE = 0.5
"""Divisor of the similarities in SimCLR."""
_MAX_CALIBRATION_CELLS = 10_000
"""Upper limit of training cells to which the scale of the similarities is fitted."""


class SelfSupervisedModule(EncoderModule):
    """Train on two views per crop, with a projector on the embedding that is discarded after training.

    Args:
        width: length of the embedding. The other arguments are those of ``EncoderModule``.
    """

    def __init__(self, *args: Any, width: int, **options: Any):
        super().__init__(*args, **options)
        from monai.transforms import Compose, RandGaussianSmooth, RandZoom
        from pytorch_metric_learning.losses import SupConLoss, VICRegLoss
        from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

        hidden, self.is_vicreg = 2 * width, self.config.objective == "vicreg"
        first, second = ((nn.Linear(n, hidden, bias=False), nn.BatchNorm1d(hidden)) for n in (width, hidden))
        last = (nn.ReLU(), nn.Linear(hidden, hidden)) if self.is_vicreg else ()
        self.projector = nn.Sequential(*first, nn.ReLU(), *second, *last)
        self.criterion: nn.Module = VICRegLoss() if self.is_vicreg else SupConLoss(temperature=_TEMPERATURE)
        if self.config.processes > 1:
            self.criterion = DistributedLossWrapper(self.criterion)
        scale, blur = (0.95, 1.05), (0.2, 0.5)
        self.zoom_and_blur = Compose(
            [
                RandZoom(0.5, (1, scale[0], scale[0]), (1, scale[1], scale[1]), "trilinear", "constant"),
                RandGaussianSmooth((0, 0), blur, blur, prob=0.5),
            ]
        )

    def _swap_and_augment(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = super()._swap_and_augment(images, labels)
        self.zoom_and_blur.set_random_state(int(torch.randint(1 << 31, ())))
        return torch.stack([self.zoom_and_blur(image).as_tensor() for image in images]), labels

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Augment a training batch; insert an augmented copy after each validation crop, the same in every epoch."""
        if not self.trainer.training:
            torch.manual_seed(self.config.seed)
            copies = (*self._swap_and_augment(*batch[:2]), batch[2])
            batch = [torch.stack(pair, 1).flatten(0, 1) for pair in zip(batch, copies, strict=True)]
        return super().on_after_batch_transfer(batch, dataloader_idx)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of a batch in which every second image is the other view of the image before it."""
        return self._view_loss("train", forward_with_embedding(self.model, self.layer, batch[0])[1])

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log the loss of crops and their augmented copies."""
        embedding = forward_with_embedding(self.model, self.layer, batch[0])[1]
        self.track(embedding[::2])
        if len(embedding) > 2:  # The loss of a single crop is undefined.
            self._view_loss("val", embedding)

    def _view_loss(self, part: str, embedding: Tensor) -> Tensor:
        """Compute and log the loss of embeddings (2 B, K) in which pairs of views are adjacent."""
        with torch.autocast(embedding.device.type, enabled=False):
            views, n = self.projector(embedding), len(embedding) // 2
            if self.is_vicreg:
                loss = self.criterion(views[::2], ref_emb=views[1::2])
            else:
                pair_numbers = torch.arange(n, device=views.device) + n * self.global_rank
                loss = self.criterion(views, pair_numbers.repeat_interleave(2))
        options = {"on_step": False, "on_epoch": True, "prog_bar": True, "sync_dist": True}
        # With several processes the loss is their sum: each differentiates its own views only, and DDP averages.
        self.log(f"{part}_loss", loss / self.config.processes, batch_size=n, **options)
        return loss


class PairSampler(BalancedSampler):
    """Draw items as ``BalancedSampler`` does, each followed by the item that gives its second view.

    Args:
        wells: (N,) index of every item's well. The second item is then a random crop of the same class, from another
            well if the class has one, else from the same well. None: the item itself follows, and classes are not
            balanced.
    """

    def __init__(self, targets: np.ndarray, wells: np.ndarray | None, total: int, seed: int, ranks: int = 1):
        super().__init__(np.zeros_like(targets) if wells is None else targets, total, seed, ranks)
        self.ranges: np.ndarray | None = None
        if wells is not None:
            class_and_well = targets * (wells.max() + 1) + wells
            self.order = np.argsort(class_and_well, kind="stable")
            # For every item, in this order: first and end position of its class, and of its well within the class.
            self.ranges = np.stack(
                [
                    np.searchsorted(key[self.order], key, side)
                    for key in (targets, class_and_well)
                    for side in ("left", "right")
                ]
            )

    def __len__(self) -> int:
        return 2 * self.total

    def __iter__(self) -> Iterator[int]:
        first = np.fromiter(super().__iter__(), np.int64, self.total)
        second = first
        if self.ranges is not None:
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            rng = np.random.default_rng([self.seed, self.epoch, rank])
            class_start, class_end, well_start, well_end = self.ranges[:, first]
            # A class with a single well has no other well to draw from: exclude nothing.
            well_end = np.where(well_end - well_start == class_end - class_start, well_start, well_end)
            well_size = well_end - well_start
            position = class_start + rng.integers(class_end - class_start - well_size)
            second = self.order[position + (position >= well_start) * well_size]
        return iter(np.stack([first, second], 1).ravel().tolist())


def well_indices(dataset: CropDataset) -> np.ndarray:
    """Return (N,) the index of every item's plate and well."""
    names = [cell_id.rsplit("/", 2)[0] for cell_id in dataset.cell_ids]
    return np.unique(names, return_inverse=True)[1]


def find_pooled_head(model: nn.Module, layer: str, dataset: CropDataset) -> nn.Linear:
    """Return the linear layer that the explained layer feeds through global average pooling; it gets the prototypes.

    Raises:
        GradcamoError: if there is no such layer or it has no bias.
    """
    images, modules = dataset[0][0][None], dict([cam.find_layer(model, layer)])
    images = images.squeeze(2) if is_2d(model) else images
    with torch.no_grad():
        output, activations = cam.capture_activations(model.eval(), images, modules, graph=False)
        head = cam.find_pooled_head(model, activations[layer], extract_logits(output))
    model.train()
    if head is None or head.linear.bias is None:
        raise GradcamoError(
            f"layer {layer!r} does not feed global average pooling followed by one linear layer with a bias",
            "Set layer to one that does, choose another encoder, or set objective to 'treatment'.",
        )
    return head.linear


@torch.no_grad()
def compute_embeddings(model: nn.Module, layer: str, dataset: CropDataset, batch_size: int) -> Tensor:
    """Return the layer's mean over voxels for every crop without augmentation, (N, K) float32, in CPU memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.eval().to(device)
    batches = (images.squeeze(2) if is_2d(model) else images for images, _, _ in DataLoader(dataset, batch_size))
    embeddings = [forward_with_embedding(model, layer, images.to(device))[1].cpu() for images in batches]
    model.cpu()
    return torch.cat(embeddings)


def fit_prototypes(embeddings: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit weight (classes, K) and bias (classes,) of a linear layer whose logits are similarities to the classes.

    The prototype of a class is the mean of its cells. Distances are measured after sphering with the cells themselves,
    as for profiles. A logit is the cell's squared distance to the mean of all prototypes minus that to the class's
    prototype, which is linear in the cell. One common scale, fitted by maximum likelihood, turns the softmax of the
    logits into probabilities.

    Args:
        embeddings: (N, K) of training cells.
        targets: (N,) class index; every class occurs.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    means = np.stack([embeddings[targets == target].mean(0, np.float64) for target in range(targets.max() + 1)])
    centre, sphering = means.mean(0), fit_sphering(embeddings)
    directions = sphering(means) - sphering(centre[None])
    weight = directions @ sphering(sphering.mean + np.eye(len(centre)))
    bias = -(directions**2).sum(1) / 2 - weight @ centre
    calibration = slice(None, None, -(-len(embeddings) // _MAX_CALIBRATION_CELLS))
    logits, classes = embeddings[calibration] @ weight.T + bias, targets[calibration]

    def cross_entropy(log_scale: float) -> float:
        scaled = np.exp(log_scale) * logits
        return float((logsumexp(scaled, 1) - scaled[np.arange(len(classes)), classes]).mean())

    scale = np.exp(minimize_scalar(cross_entropy, bounds=(-8, 3), method="bounded").x)
    return scale * weight, scale * bias
