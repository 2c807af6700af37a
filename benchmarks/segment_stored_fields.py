"""Segment stored fields with whichever ``gradcamo_assets`` is on the path: ``segmentation --baseline`` runs this.

Each line of the input is a JSON object: ``image`` (path of a .npy file), ``channels``, ``voxel_size`` and ``masks``
(path of the .npz file to write). The answer is a line with the processor seconds.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import redirect_stdout

import numpy as np
import torch

from gradcamo_assets.segmentation import Segmenter


def main() -> None:
    torch.set_num_threads(1)
    segmenter = Segmenter()
    with redirect_stdout(sys.stderr):  # Loads the networks.
        segmenter.segment(np.random.default_rng(0).poisson(100, (1, 1, 64, 64)), ["DNA"])
    for line in sys.stdin:
        field = json.loads(line)
        image = np.load(field["image"])
        with redirect_stdout(sys.stderr):
            start = time.process_time()
            masks = segmenter.segment(image, field["channels"], field["voxel_size"])
            seconds = time.process_time() - start
        np.savez(field["masks"], cells=masks.cells, nuclei=masks.nuclei)
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
