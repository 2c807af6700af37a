"""What would int8 gain? ``python -m benchmarks.segmentation_int8 [--fields K ...]``, after ``pip install nncf``

The compact network runs in OpenVINO in float32, as shipped on this CPU (bfloat16 where the CPU has it), and in int8,
quantised by NNCF after training on what it sees in easy fields. Each segments the hard fields: average precision as in
``segmentation``, and processor seconds of the network.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.segmentation import EASY, MASKS, average_precision, easy_field
from benchmarks.segmentation_fields import HARD, Field, hard_field
from gradcamo_assets.segmentation import Segmenter, SegmenterConfig
from gradcamo_assets.segmentation.compact_network import CompactNetwork, use_openvino


def segment(segmenter: Segmenter, field: Field) -> tuple[tuple[float, float, float], dict[int, list[np.ndarray]]]:
    """Average precision of cells and nuclei and processor seconds of the networks; their images by channels."""
    seconds, forward = [0.0], CompactNetwork.forward
    images: dict[int, list[np.ndarray]] = {1: [], 2: []}

    def timed(network: CompactNetwork, x: torch.Tensor) -> Any:
        images[network.inputs].append(x[:, : network.inputs].float().numpy())
        start = time.process_time()
        output = forward(network, x)
        seconds.append(time.process_time() - start)
        return output

    with mock.patch.object(CompactNetwork, "forward", timed):
        masks = segmenter.segment(field.image, field.channels, field.voxel_size)
    cells, nuclei = (average_precision(getattr(masks, kind), getattr(field, kind)) for kind in MASKS)
    # A nucleus stain alone does not show where cells end.
    return (cells if len(field.channels) > 1 else np.nan, nuclei, sum(seconds)), images


def quantise(segmenter: Segmenter) -> None:
    """Run the networks of a segmenter in int8 from now on."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # It would report to Google Analytics.
    import nncf
    import openvino

    convert, seen = openvino.convert_model, [segment(segmenter, easy_field(*case))[1] for case in EASY[:3]]
    for engine in segmenter._engines.values():
        images = [image for part in seen for image in part[engine.net.inputs]][::3]

        def convert_to_int8(*args: Any, images: list[np.ndarray] = images, **kwargs: Any) -> Any:
            return nncf.quantize(convert(*args, **kwargs), nncf.Dataset(images))

        engine.net.compiled, agree = None, "gradcamo_assets.segmentation.compact_network._outputs_agree"
        with mock.patch.object(openvino, "convert_model", convert_to_int8), mock.patch(agree, return_value=True):
            use_openvino(engine.net)
        assert engine.net.compiled, "OpenVINO cannot run the quantised network"


def main(fields: Iterable[int]) -> dict[str, list[float]]:
    """Print the table of fields; the means of its columns."""
    segmenters = {name: Segmenter(SegmenterConfig()) for name in ("float32", "shipped", "int8")}
    with mock.patch("torch.cpu.get_capabilities", return_value={}):
        segmenters["float32"].runtime  # noqa: B018  # Loads the networks.
    quantise(segmenters["int8"])
    rows = []
    columns = "".join(f" {name}: cells, nuclei, network s |" for name in segmenters)
    print(f"| field |{columns}\n|" + " --- |" * (1 + len(segmenters)))
    for made in map(hard_field, fields):
        rows.append([segment(each, made)[0] for each in segmenters.values()])
        print(f"| {made.name} |" + "".join(f" {a:.3f}, {b:.3f}, {s:.2f} |" for a, b, s in rows[-1]), flush=True)
    means = np.nanmean(rows, axis=0)
    return {name: [round(float(value), 4) for value in mean] for name, mean in zip(segmenters, means, strict=True)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fields", type=int, nargs="+", default=range(len(HARD)))
    torch.set_num_threads(1)
    print(json.dumps(main(parser.parse_args().fields)))
