"""Small networks, random or with known behaviour, and the score by brute force: autograd, upsample, multiply, sum."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

MODES = {2: "bilinear", 3: "trilinear"}


class Net(nn.Module):
    """Two convolutions and a head: ``gap`` (pooling and one linear layer), ``mlp`` or ``max``."""

    def __init__(
        self, axes: int, stride: int | tuple[int, ...] = 2, head: str = "gap", classes: int = 4, width: int = 6
    ):
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.first = conv(2, 5, 3, stride=1, padding=1)
        self.second = conv(5, width, 3, stride=stride, padding=1)
        self.act = nn.ReLU()
        self.head = head
        self.between = nn.Sequential(nn.Linear(width, width), nn.Tanh()) if head == "mlp" else nn.Identity()
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.act(self.second(torch.tanh(self.first(images))))
        pooled = features.flatten(2).amax(2) if self.head == "max" else features.mean(tuple(range(2, features.ndim)))
        return self.fc(self.between(pooled))


class ChannelsLast(nn.Module):
    """A strided convolution, a block with channels last as in ConvNeXt and Swin networks, and a linear head.

    ``block`` puts out (B, \\*grid, K), and ``first`` the same activations as (B, K, \\*grid).
    """

    def __init__(self, axes: int, width: int = 8, head: str = "gap"):
        super().__init__()
        self.embed = (nn.Conv2d if axes == 2 else nn.Conv3d)(2, width, 4, 4)
        self.block = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.first, self.head, self.fc = nn.Identity(), head, nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(self.block(self.embed(images).movedim(1, -1)).movedim(-1, 1)).flatten(2)
        return self.fc(features.mean(2) if self.head == "gap" else features.amax(2))


def random_case(
    seed: int, axes: int, batch: int, crop: tuple[int, ...], **options
) -> tuple[Net, Tensor, Tensor, Tensor]:
    """Make a network in eval mode, images, target masks and neighbour masks; no target mask is empty."""
    torch.manual_seed(seed)
    model = Net(axes, **options).eval()
    images = torch.randn(batch, 2, *crop)
    draw = torch.rand(batch, *crop)
    target = draw < 0.2
    target.view(batch, -1)[:, 0] = True
    neighbours = (draw > 0.7) & ~target
    return model, images, target, neighbours


def brute_maps(model: nn.Module, images: Tensor, layer: nn.Module, classes: Tensor | None = None) -> Tensor:
    """Compute Grad-CAM by its definition, with the whole graph: (B, *grid) float32."""
    outputs = []
    handle = layer.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    with torch.enable_grad():
        logits = model(images.clone().requires_grad_())
        handle.remove()
        classes = logits.argmax(1) if classes is None else classes
        gradient = torch.autograd.grad(sum(row[label] for row, label in zip(logits, classes, strict=True)), outputs[0])[
            0
        ]
    alpha = gradient.flatten(2).mean(2)
    return torch.einsum("bk,bk...->b...", alpha, outputs[0]).clamp_min(0).detach()


def brute_share(maps: Tensor, mask: Tensor) -> Tensor:
    """Upsample the maps with torch's own linear upsampler in float32, multiply by the masks, sum."""
    crop = tuple(mask.shape[1:])
    upsampled = functional.interpolate(maps[:, None], size=crop, mode=MODES[len(crop)], align_corners=False)[:, 0]
    return (upsampled * mask).flatten(1).double().sum(1) / upsampled.flatten(1).double().sum(1)


class Reads(nn.Module):
    """Three classes by the most frequent level, 1, 2 or 3, in the stain ``where``."""

    def __init__(self, where: int, axes: int):
        super().__init__()
        self.where, self.act = where, nn.Identity()
        self.fc = nn.Linear(3, 3)
        with torch.no_grad():
            self.fc.weight.copy_(40 * torch.eye(3))
            self.fc.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        one = images[:, self.where : self.where + 1]
        maps = self.act(torch.cat([torch.exp(-20 * (one - level) ** 2) for level in (1.0, 2.0, 3.0)], 1))
        return self.fc(maps.flatten(2).mean(2))


def scene(axes: int, cells: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make crops whose targets show their class in stain 0 and whose surroundings show it in stain 1."""
    crop = (2, 36, 36)[3 - axes :]
    classes = torch.arange(cells) % 3
    target, neighbours = (torch.zeros(cells, *crop, dtype=torch.bool) for _ in range(2))
    target[..., 8:28, 9:29] = True
    neighbours[..., :4, :18] = True
    level = (classes + 1.0).reshape(-1, *(1,) * len(crop))
    images = torch.stack([torch.where(target, level, 0), torch.where(target, 0, level)], 1)
    return images, target, neighbours, classes
