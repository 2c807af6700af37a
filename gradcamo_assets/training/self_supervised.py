"""Training without classes: an encoder that knows a crop again in another view of it, then prototypes for a head.

Losses are pytorch-metric-learning's: VICReg (Bardes et al., ICLR 2022, arXiv 2105.04906) and SimCLR (Chen et al., ICML
2020, arXiv 2002.05709), whose loss is that of SupCon where a view has one positive. A view is a crop swapped and
augmented as in supervised training, and seen through other optics (MONAI). The labels of the training cells then place
one prototype a class; no weight of the encoder hears of them.
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
from gradcamo_assets.networks.encoders import is_2d
from gradcamo_assets.profiles.sphering import fit_sphering
from gradcamo_assets.training.lightning_module import Batch, EncoderModule, embedded

_TEMPERATURE = 0.5
"""By which SimCLR divides similarities."""
_CALIBRATED = 10_000
"""Training cells, at most, that the scale of the similarities is fitted to."""


class SelfSupervisedModule(EncoderModule):
    """The loss of two views a crop, behind a projector on the embedding that is thrown away after training.

    Args:
        width: of the embedding. The rest as of ``EncoderModule``.
    """

    def __init__(self, *args: Any, width: int, **further: Any):
        super().__init__(*args, **further)
        from monai.transforms import Compose, RandGaussianSmooth, RandZoom
        from pytorch_metric_learning.losses import SupConLoss, VICRegLoss
        from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

        wide, self.vicreg = 2 * width, self.config.objective == "vicreg"
        first, second = ((nn.Linear(n, wide, bias=False), nn.BatchNorm1d(wide)) for n in (width, wide))
        last = (nn.ReLU(), nn.Linear(wide, wide)) if self.vicreg else ()
        self.projector = nn.Sequential(*first, nn.ReLU(), *second, *last)
        self.criterion: nn.Module = VICRegLoss() if self.vicreg else SupConLoss(temperature=_TEMPERATURE)
        if self.config.processes > 1:
            self.criterion = DistributedLossWrapper(self.criterion)
        scale, blur = (0.95, 1.05), (0.2, 0.5)
        self.optics = Compose(
            [
                RandZoom(0.5, (1, scale[0], scale[0]), (1, scale[1], scale[1]), "trilinear", "constant"),
                RandGaussianSmooth((0, 0), blur, blur, prob=0.5),
            ]
        )

    def _changed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = super()._changed(images, labels)
        self.optics.set_random_state(int(torch.randint(1 << 31, ())))
        return torch.stack([self.optics(image).as_tensor() for image in images]), labels

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """As of ``EncoderModule``; in validation every crop is followed by a changed copy, the same in every epoch."""
        if not self.trainer.training:
            torch.manual_seed(self.config.seed)
            copies = (*self._changed(*batch[:2]), batch[2])
            batch = [torch.stack(pair, 1).flatten(0, 1) for pair in zip(batch, copies, strict=True)]
        return super().on_after_batch_transfer(batch, dataloader_idx)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One step on images of which each second one is a view of what the one before it shows."""
        return self._compared("train", embedded(self.model, self.layer, batch[0])[1])

    def validation_step(self, batch: Batch, index: int) -> None:
        """The loss of crops beside their changed copies."""
        embedding = embedded(self.model, self.layer, batch[0])[1]
        self.watch(embedding[::2])
        if len(embedding) > 2:  # A lone crop has no spread and no other crop to be told from.
            self._compared("val", embedding)

    def _compared(self, part: str, embedding: Tensor) -> Tensor:
        with torch.autocast(embedding.device.type, enabled=False):
            views, n = self.projector(embedding), len(embedding) // 2
            if self.vicreg:
                loss = self.criterion(views[::2], ref_emb=views[1::2])
            else:
                pairs = torch.arange(n, device=views.device) + n * self.global_rank
                loss = self.criterion(views, pairs.repeat_interleave(2))
        values = {"on_step": False, "on_epoch": True, "prog_bar": True, "sync_dist": True}
        # Of several processes the loss is their sum: each differentiates its own views alone, and DDP takes the mean.
        self.log(f"{part}_loss", loss / self.config.processes, batch_size=n, **values)
        return loss


class PairSampler(BalancedSampler):
    """Items, each followed by the one that its second view is of; draws as of ``BalancedSampler``.

    Args:
        wells: (N,) index of every item's well, to draw another crop of its class, from another well where there is one,
            from its own where there is not; None: the item itself follows, and classes are not balanced either.
    """

    def __init__(self, targets: np.ndarray, wells: np.ndarray | None, total: int, seed: int, ranks: int = 1):
        super().__init__(np.zeros_like(targets) if wells is None else targets, total, seed, ranks)
        self.others: np.ndarray | None = None
        if wells is not None:
            group = targets * (wells.max() + 1) + wells
            self.order = np.argsort(group, kind="stable")
            # Of every item: where in that order its class begins and ends, and within it the crops of its own well.
            self.others = np.stack(
                [np.searchsorted(key[self.order], key, side) for key in (targets, group) for side in ("left", "right")]
            )

    def __len__(self) -> int:
        return 2 * self.total

    def __iter__(self) -> Iterator[int]:
        drawn = np.fromiter(super().__iter__(), np.int64, self.total)
        follow = drawn
        if self.others is not None:
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            rng = np.random.default_rng([self.seed, self.epoch, rank])
            begin, end, own, own_end = self.others[:, drawn]
            own_end = np.where(own_end - own == end - begin, own, own_end)
            position = begin + rng.integers(end - begin - (own_end - own))
            follow = self.order[position + (position >= own) * (own_end - own)]
        return iter(np.stack([drawn, follow], 1).ravel().tolist())


def wells_of(dataset: CropDataset) -> np.ndarray:
    """(N,) index of the plate and well of every item."""
    names = [cell.rsplit("/", 2)[0] for cell in dataset.cell_ids]
    return np.unique(names, return_inverse=True)[1]


def pooled_linear(model: nn.Module, layer: str, dataset: CropDataset) -> nn.Linear:
    """The linear layer that the explained layer feeds through global average pooling: where prototypes will stand.

    Raises:
        GradcamoError: if there is none, or it has no bias.
    """
    images, maps = dataset[0][0][None], dict([cam.find_layer(model, layer)])
    with torch.no_grad():
        output, found = cam.capture_activations(
            model.eval(), images.squeeze(2) if is_2d(model) else images, maps, graph=False
        )
        head = cam.find_pooled_head(model, found[layer], cam.extract_logits(output))
    model.train()
    if head is None or head.linear.bias is None:
        raise GradcamoError(
            f"layer {layer!r} does not feed global average pooling and one linear layer with a bias",
            "Name the layer that does, another encoder, or train with objective = 'treatment'.",
        )
    return head.linear


@torch.no_grad()
def embeddings_of(model: nn.Module, layer: str, dataset: CropDataset, batch_size: int) -> Tensor:
    """(N, K) float32: the layer's mean over voxels of every crop as it is, on the host."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.eval().to(device)
    batches = (x.squeeze(2) if is_2d(model) else x for x, _, _ in DataLoader(dataset, batch_size))
    found = [embedded(model, layer, x.to(device))[1].cpu() for x in batches]
    model.cpu()
    return torch.cat(found)


def prototypes(embeddings: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight (classes, K) and bias (classes,) of the linear layer whose logits are similarities to the classes.

    The prototype of a class is the mean of its cells. A logit is how much nearer (in squares) a cell lies to it than to
    the mean of all prototypes, where embeddings are sphered, as profiles are, by the cells themselves: linear, because
    the cell's own square cancels. One scale for all logits makes their softmax a probability.

    Args:
        embeddings: (N, K) of training cells. targets: (N,) class index, none of them missing.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    means = np.stack([embeddings[targets == target].mean(0, np.float64) for target in range(targets.max() + 1)])
    middle, sphere = means.mean(0), fit_sphering(embeddings)
    apart = sphere(means) - sphere(middle[None])
    weight = apart @ sphere(sphere.mean + np.eye(len(middle)))
    bias = -(apart**2).sum(1) / 2 - weight @ middle
    some = slice(None, None, -(-len(embeddings) // _CALIBRATED))
    logits, true = embeddings[some] @ weight.T + bias, targets[some]

    def surprise(log_scale: float) -> float:
        scaled = np.exp(log_scale) * logits
        return float((logsumexp(scaled, 1) - scaled[np.arange(len(true)), true]).mean())

    scale = np.exp(minimize_scalar(surprise, bounds=(-8, 3), method="bounded").x)
    return scale * weight, scale * bias
