"""Run torch networks on a CPU with OpenVINO, an optional package that is faster than torch there.

A network is traced and compiled from its weights in memory; nothing is stored.
Source: https://docs.openvino.ai/2026/openvino-workflow/model-preparation/convert-model-pytorch.html
"""

from __future__ import annotations

import sys
import warnings
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class CompiledNetwork:
    """A torch network compiled for the CPU that maps images (B, C, \\*axes) to one output (B, ...), both float32.

    Args:
        network: in eval mode, float32, on the CPU. Its forward must not depend on the values of the images.
        image: (1, C, \\*axes) float32, an image of the expected shape.
        precision: ``float32`` or ``bfloat16``, in which the network computes.
        streams: images that are computed at the same time, each by one thread.
        any_shape: accept images of other axes than ``image``, and compute a batch as a whole.

    Raises:
        ImportError: if OpenVINO is not installed.
        RuntimeError, ValueError, TypeError, ...: if the network cannot be traced or compiled.
    """

    def __init__(
        self, network: nn.Module, image: Tensor, precision: str = "float32", streams: int = 1, any_shape: bool = False
    ):
        openvino = _import_openvino()
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            # Tracing warns about every branch on a shape.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(network, image, check_trace=False, strict=False)
            # The weights are copied, since the torch network may be freed or changed later.
            model = openvino.convert_model(traced, example_input=image, share_weights=False)
        model.reshape([-1, image.shape[1], *[-1] * (image.ndim - 2)] if any_shape else list(image.shape))
        steps = openvino.preprocess.PrePostProcessor(model)
        channels_first, channels_last = ("NCHW", "NHWC") if image.ndim == 4 else ("NCDHW", "NDHWC")
        steps.input().tensor().set_layout(openvino.Layout(channels_last))
        steps.input().model().set_layout(openvino.Layout(channels_first))
        hint = _PRECISIONS[precision]
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
            # Several processes would be pinned to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = openvino.Core().compile_model(steps.build(), "CPU", options)
        compiled_hint = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if compiled_hint != hint:
            raise ValueError(f"this CPU computes in {compiled_hint}, not in {hint}")
        self._any_shape = any_shape
        self._requests: list[Any] = []
        self._arrays: list[Any] = []

    def __call__(self, images: Tensor) -> Tensor:
        """Run the network; images in channels-last memory format are not copied."""
        import openvino

        parts = [images] if self._any_shape else images.split(1)
        arrays = [part.movedim(1, -1).contiguous().numpy() for part in parts]
        # A request keeps the address of its last array without owning it.
        previous, self._arrays = self._arrays, arrays
        while len(self._requests) < len(arrays):
            self._requests.append(self._compiled.create_infer_request())
        requests = self._requests[: len(arrays)]
        # Written in place: a copy of all activations would cost a fiftieth of a forward pass.
        outputs = None if self._any_shape else torch.empty(len(parts), *self._compiled.output().shape[1:])
        # The requests use the arrays, so all of them must end before the arrays are freed, also after an error.
        with ExitStack() as running:
            for number, (request, array) in enumerate(zip(requests, arrays, strict=True)):
                request.set_input_tensor(openvino.Tensor(array, shared_memory=True))
                if outputs is not None:
                    request.set_output_tensor(openvino.Tensor(outputs[number, None].numpy(), shared_memory=True))
                request.start_async()
                running.callback(request.wait)
        del previous
        return torch.tensor(requests[0].get_output_tensor().data) if outputs is None else outputs


def _import_openvino() -> Any:
    # With this package, importing OpenVINO and converting a network report to Google Analytics.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino
