"""What does a score cost? ``python -m benchmarks.scoring [--quick]``

One batch of crops; for the shipped encoder and for a stock depthwise 3D EfficientNet-B0: a plain forward pass, ours
(logits, embedding, every column of the score), and what users of other CAM libraries write for the same. Runs are
interleaved, in another order each time; medians. The whole scoring asset is in ``benchmarks.scoring_asset``.

The last line, in float32 unless a name ends in ``bfloat16``: ``runtime_gain``, a plain forward pass of the shipped
encoder in torch over one in OpenVINO; ``over_forward_<network>``, ours over a plain forward pass, in OpenVINO, and with
``_torch`` in torch; ``over_forward``, the largest of these; ``ratio_<network>``, pytorch-grad-cam over ours, likewise;
``grad_cam_forwards_<network>``, pytorch-grad-cam over a plain forward pass in torch.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import scoring_asset
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.networks.efficientnet3d import EfficientNet3D
from gradcamo_assets.openvino_runtime import CompiledNetwork
from gradcamo_assets.scoring.fast_path import convert_to_bfloat16_if_native, fold_batchnorm
from gradcamo_assets.scoring.openvino_encoder import compile_encoder

CLASSES, CHANNELS = 8, 5


class SamePadding(nn.Module):
    """Padding worked out from the input, where MONAI's is fixed when the network is built (and wrong for 21 slices)."""

    def __init__(self, conv: Any):
        super().__init__()
        self.kernel, self.stride = conv.kernel_size, conv.stride

    def forward(self, x: Tensor) -> Tensor:
        sides: list[int] = []
        for n, k, s in zip(x.shape[:1:-1], self.kernel[::-1], self.stride[::-1], strict=True):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            sides += [total // 2, total - total // 2]
        return F.pad(x, sides)


def stock() -> tuple[nn.Module, str]:
    """MONAI's 3D EfficientNet-B0 and the name of the layer to explain: its last activation."""
    from monai.networks.nets import EfficientNetBN

    model = EfficientNetBN("efficientnet-b0", True, False, spatial_dims=3, in_channels=CHANNELS, num_classes=CLASSES)
    for module in list(model.modules()):
        for conv, padding in (("_conv_stem", "_conv_stem_padding"), ("_depthwise_conv", "_depthwise_conv_padding")):
            if hasattr(module, padding):
                setattr(module, padding, SamePadding(getattr(module, conv)))
    model._avg_pooling = nn.Sequential(nn.Identity(), model._avg_pooling)  # type: ignore[arg-type]
    return model, "_avg_pooling.0"


def network(name: str) -> tuple[nn.Module, str]:
    """A network with weights and statistics that are not all 0 and 1, in eval mode."""
    torch.manual_seed(0)
    model, layer = stock() if name == "stock" else (EfficientNet3D(CHANNELS, CLASSES), "activation")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval(), layer


def batch(crops: int, shape: tuple[int, int, int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised noise, a target ellipsoid in the middle of each crop and a neighbour at its edge."""
    z, y, x = (torch.linspace(-1, 1, n) for n in shape)
    radius = (z[:, None, None] / 0.8) ** 2 + (y[:, None] / 0.45) ** 2 + (x / 0.45) ** 2
    target = (radius < 1).expand(crops, *shape).contiguous()
    neighbour = torch.zeros_like(target)
    neighbour[:, :, : shape[1] // 5] = True
    return torch.randn(crops, CHANNELS, *shape).to(device), target.to(device), neighbour.to(device)


def by_grad_cam(model: nn.Module, layer: str, images: Tensor, target: Tensor) -> Callable[[], np.ndarray]:
    """An embedding pass, GradCAM, the share in the mask: as users of pytorch-grad-cam write it."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    kept: dict[str, Tensor] = {}
    inside = target.cpu().numpy()

    def run() -> np.ndarray:
        hook = model.get_submodule(layer).register_forward_hook(lambda _m, _i, out: kept.update(features=out))
        with torch.no_grad():
            classes = model(images).argmax(1).tolist()
        hook.remove()
        _ = kept["features"].mean((2, 3, 4)).cpu().numpy()
        with GradCAM(model=model, target_layers=[model.get_submodule(layer)]) as cam:
            maps = cam(input_tensor=images, targets=[ClassifierOutputTarget(k) for k in classes])
        return (maps * inside).sum((1, 2, 3)) / maps.sum((1, 2, 3))

    return run


def by_captum(model: nn.Module, layer: str, images: Tensor, target: Tensor) -> Callable[[], np.ndarray]:
    """The same with captum's LayerGradCam."""
    from captum.attr import LayerAttribution, LayerGradCam

    explainer = LayerGradCam(model, model.get_submodule(layer))

    def run() -> np.ndarray:
        with torch.no_grad():
            classes = model(images).argmax(1)
        maps = explainer.attribute(images, target=classes, relu_attributions=True)
        fine = LayerAttribution.interpolate(maps.detach(), tuple(images.shape[2:]), "trilinear")[:, 0]
        return ((fine * target).sum((1, 2, 3)) / fine.sum((1, 2, 3))).cpu().numpy()

    return run


def by_torchcam(model: nn.Module, layer: str, images: Tensor, target: Tensor) -> Callable[[], np.ndarray]:
    """The same with torch-cam's GradCAM."""
    from torchcam.methods import GradCAM

    def run() -> np.ndarray:
        with GradCAM(model, target_layer=layer, input_shape=tuple(images.shape[1:])) as extractor:
            logits = model(images)
            maps = extractor(logits.argmax(1).tolist(), logits, normalized=False)[0]
        fine = F.interpolate(maps[:, None], images.shape[2:], mode="trilinear")[:, 0]
        return ((fine * target).sum((1, 2, 3)) / fine.sum((1, 2, 3))).detach().cpu().numpy()

    return run


def arms(name: str, crops: int, shape: tuple[int, int, int], device: str) -> dict[str, Callable[[], Any]]:
    """What is compared for one network."""
    plain, layer = network(name)
    plain = plain.to(device)
    images, target, neighbour = batch(crops, shape, device)
    fast_images = images.to(memory_format=torch.channels_last_3d)
    folded = fold_batchnorm(plain, images[:1], keep=[layer]).to(memory_format=torch.channels_last_3d)
    half = convert_to_bfloat16_if_native(folded, images[:1])

    def forward(model: Callable[[Tensor], Tensor], inputs: Tensor) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode():
                return model(inputs)

        return run

    def ours(model: nn.Module, inputs: Tensor, layer: Any = layer) -> Callable[[], Any]:
        return lambda: gradcamo(model, inputs, target, layer, neighbour).columns()

    found: dict[str, Callable[[], Any]] = {"forward": forward(folded, fast_images), "ours": ours(folded, fast_images)}
    if half is not None:
        half = half.to(memory_format=torch.channels_last_3d)
        found["forward, bfloat16"] = forward(half, fast_images.to(torch.bfloat16))
        found["ours, bfloat16"] = ours(half, fast_images.to(torch.bfloat16))
    if device == "cpu":
        for precision in ("float32", "bfloat16")[: 1 if half is None else 2]:
            suffix = ", openvino" + (", bfloat16" if precision == "bfloat16" else "")
            plain_pass = CompiledNetwork(folded, fast_images[:1], precision, torch.get_num_threads())
            found[f"forward{suffix}"] = forward(plain_pass, fast_images)
            encoder = compile_encoder(folded, layer, fast_images[:2], precision)
            found[f"ours{suffix}"] = ours(encoder, fast_images, encoder.layer)
    foreign = {"pytorch-grad-cam": by_grad_cam, "captum": by_captum, "torch-cam": by_torchcam}
    return found | {arm: make(plain, layer, images, target) for arm, make in foreign.items()}


def timed(runs: dict[str, Callable[[], Any]], repeats: int, device: str, minimum: int = 3) -> dict[str, list[float]]:
    """Seconds of each run, interleaved. Slow ones run less often; the first round is thrown away."""
    seconds: dict[str, list[float]] = {arm: [] for arm in runs}
    for number in range(repeats + 1):
        order = [arm for arm in runs if number <= minimum or arm.startswith(("forward", "ours"))]
        random.shuffle(order)
        for arm in order:
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            runs[arm]()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[arm].append(time.perf_counter() - start)
    return seconds


def peak_megabytes(name: str, arm: str, crops: int, shape: tuple[int, int, int], device: str) -> float:
    """What one run of an arm adds to the memory of a fresh process (or of the GPU)."""
    command = [sys.executable, "-m", "benchmarks.scoring", "--peak", name, arm, "--crops", str(crops),
               "--shape", *map(str, shape), "--device", device]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.splitlines()[-1])


def print_peak(name: str, arm: str, crops: int, shape: tuple[int, int, int], device: str) -> None:
    run = arms(name, crops, shape, device)[arm]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        print((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    status = Path("/proc/self/status")
    if not status.exists():
        print(float("nan"))
        return

    def kilobytes(name: str) -> int:
        return int(next(row for row in status.read_text().splitlines() if row.startswith(name)).split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # Forget the peak so far (proc(5)).
    before = kilobytes("VmRSS:")
    run()
    print((kilobytes("VmHWM:") - before) / 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller crops, few repeats, no memory, a small asset")
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--shape", type=int, nargs=3, default=(21, 128, 128), metavar=("Z", "Y", "X"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-asset", action="store_true", help="without the scoring asset")
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "ARM"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = (8, 64, 64) if given.quick else tuple(given.shape)
    if given.peak:
        print_peak(*given.peak, given.crops, shape, given.device)
        return
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{given.crops} crops of {CHANNELS} x {' x '.join(map(str, shape))}, {where}, torch {torch.__version__}")
    print(f"{'network':10}{'what':28}{'seconds':>9}{'cells/s':>9}{'x forward':>11}{'x ours':>9}{'peak MB':>9}")
    figures: dict[str, float] = {}
    for name in ("default", "stock"):
        runs = arms(name, given.crops, shape, given.device)
        seconds = timed(runs, 15 if given.quick else 25, given.device, 2 if given.quick else 5)
        medians = {arm: statistics.median(values) for arm, values in seconds.items()}
        has_openvino = any("openvino" in arm for arm in medians)
        for arm, value in medians.items():
            suffix = arm.partition(",")[1] + arm.partition(",")[2]
            peak = float("nan") if given.quick else peak_megabytes(name, arm, given.crops, shape, given.device)
            print(f"{name:10}{arm:28}{value:9.4f}{given.crops / value:9.1f}{value / medians['forward' + suffix]:11.3f}"
                  f"{value / medians['ours']:9.2f}{peak:9.0f}", flush=True)  # fmt: skip
            if arm.startswith("ours"):
                key = name + ("_torch" if has_openvino and "openvino" not in arm else "")
                key += "_bfloat16" if "bfloat16" in arm else ""
                figures[f"ratio_{key}"] = round(medians["pytorch-grad-cam"] / value, 2)
                figures[f"over_forward_{key}"] = round(value / medians["forward" + suffix], 3)
        figures[f"grad_cam_forwards_{name}"] = round(medians["pytorch-grad-cam"] / medians["forward"], 2)
        if has_openvino and name == "default":
            figures["runtime_gain"] = round(medians["forward"] / medians["forward, openvino"], 3)
    exact = [value for key, value in figures.items() if key.startswith("over_forward") and "bfloat16" not in key]
    figures["over_forward"] = max(exact)
    if not given.no_asset:
        figures |= scoring_asset.measure(given.quick)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
