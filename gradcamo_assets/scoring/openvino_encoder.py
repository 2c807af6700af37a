"""Run an encoder with OpenVINO for the scoring pass, if its scores equal those of torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from gradcamo_assets.errors import BundleError, one_line
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.explain.maps import Layer, capture_activations, find_layer, find_pooled_head
from gradcamo_assets.explain.result import COLUMNS, GradcamoResult
from gradcamo_assets.explain.targets import extract_logits
from gradcamo_assets.openvino_runtime import CompiledNetwork
from gradcamo_assets.scoring.fast_path import BFLOAT16_TOLERANCE, logits_agree

_TOLERANCE = 1e-5
"""Largest float32 difference from torch: of columns relative to 1 or their largest value, of tensors to the latter."""

_TENSORS = ("logits", "embedding", "cam")

_REMEDY = "Set runtime = 'auto' in [scoring] to use torch for such encoders."


class OpenvinoEncoder(nn.Module):
    """An encoder that OpenVINO runs up to the explained layer; its pooling and linear layer follow in torch.

    ``gradcamo`` explains it like the network that it was made from, with its own ``layer``. It has no gradients.

    Args:
        model: in eval mode, float32, on the CPU.
        layer: the layer to explain.
        images: (B, C, \\*crop), a sample of the expected shape.
        precision: ``float32`` or ``bfloat16``.

    Raises:
        BundleError: if the layer does not feed global average pooling and a linear layer.
        Exception: whatever tracing and compiling the network raise.
    """

    def __init__(self, model: nn.Module, layer: Layer, images: Tensor, precision: str):
        super().__init__()
        modules = dict([find_layer(model, layer)])
        with torch.no_grad():
            output, activations = capture_activations(model, images, modules, graph=False)
        head = find_pooled_head(model, next(iter(activations.values())), extract_logits(output))
        if head is None:
            problem = "maps of the encoder need a backward pass, which OpenVINO lacks: its layer feeds no pooled head"
            raise BundleError(problem, _REMEDY)
        self.layer, self.head = nn.Identity(), head.linear
        body = _ExplainedLayer(model, modules).eval()
        self._activations = CompiledNetwork(body, images[:1], precision, streams=torch.get_num_threads())
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, \\*crop) to logits (B, classes)."""
        return self.head(self.layer(self._activations(images)).flatten(2).mean(2))


class _ExplainedLayer(nn.Module):
    """A network whose output is that of the explained layer, channels first."""

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module]):
        super().__init__()
        self.model, self.modules_by_name = model, modules

    def forward(self, images: Tensor) -> Tensor:
        _, activations = capture_activations(self.model, images, self.modules_by_name, graph=False)
        return next(iter(activations.values()))


def compile_encoder(model: nn.Module, layer: Layer, images: Tensor, precision: str = "float32") -> OpenvinoEncoder:
    """Compile an encoder, and compare its scores of a sample with torch's: all columns, the logits and the embedding.

    In bfloat16 only the logits are compared, as ``fast_path.convert_to_bfloat16`` does.

    Args:
        model: in eval mode, float32.
        images: (B, C, \\*crop), a sample of the expected shape.

    Raises:
        BundleError: if OpenVINO is not installed, the network is not on a CPU, cannot be compiled or has other scores.
    """
    if images.device.type != "cpu":
        raise BundleError(f"OpenVINO runs encoders on a CPU, the device is {images.device.type}", _REMEDY)
    try:
        compiled = OpenvinoEncoder(model, layer, images, precision)
        expected, actual = _score(model, layer, images), _score(compiled, compiled.layer, images)
    except BundleError:
        raise
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise
        raise BundleError("OpenVINO is not installed", "Install it: pip install 'gradcamo-assets[fast]'.") from error
    except Exception as error:  # Networks of users can fail in any way.
        raise BundleError(f"OpenVINO cannot run the encoder ({one_line(error)})", _REMEDY) from error
    is_half = precision == "bfloat16"
    if not (logits_agree(expected.logits, actual.logits, BFLOAT16_TOLERANCE) if is_half else _agree(expected, actual)):
        raise BundleError("the encoder's scores in OpenVINO differ from those in torch", _REMEDY)
    return compiled


def _score(model: nn.Module, layer: Layer, images: Tensor) -> GradcamoResult:
    """Score a sample with a target in the middle of each crop and a neighbour beside it."""
    target, neighbour = (torch.zeros(len(images), *images.shape[2:], dtype=torch.bool) for _ in range(2))
    target[:, *(slice(n // 4, n - n // 4) for n in images.shape[2:])] = True
    neighbour[..., : images.shape[-1] // 4] = True
    return gradcamo(model, images, target, layer, neighbour)


def _agree(expected: GradcamoResult, actual: GradcamoResult) -> bool:
    for name in (*COLUMNS, *_TENSORS):
        one, two = getattr(expected, name), getattr(actual, name)
        if isinstance(one, list):
            is_equal = one == two
        else:
            smallest_scale = 1e-6 if name in _TENSORS else 1.0
            allowed = _TOLERANCE * np.nanmax(np.abs(np.asarray(one)), initial=smallest_scale)
            is_equal = np.allclose(two, one, rtol=0, atol=allowed, equal_nan=True)
        if not is_equal:
            return False
    return True
