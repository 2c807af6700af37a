"""How fast are cells cut out, against scPortrait? ``python -m benchmarks.crop_peers --scportrait PYTHON [--quick]``

``PYTHON`` is the interpreter of another environment (``python -m venv peer && peer/bin/pip install scportrait``), since
scPortrait needs an older Cellpose than this repository. Both have the same synthetic 2D field of 6 channels and its
masks of cells and nuclei on disk, in their own formats. From there, in turns, scPortrait extracts the cells to its HDF5
file (its defaults, one thread), and the package stores the crops of the same cells, or cuts them without storing them.
Then both read what they stored, cell by cell. Run it on one core: ``OMP_NUM_THREADS=1 taskset -c 0 python ...``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np

CHANNELS = ["DNA", "ER", "RNA", "AGP", "Mito", "Brightfield"]
EDGE = 128
"""Width of a crop in pixels."""


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call, by the clock and by the processor."""
    start, start_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - start_cpu


def extract(folder: Path) -> None:
    """In scPortrait's environment: load the field as a project, and extract its cells for each line of input."""
    from scportrait.io.h5sc import read_h5sc
    from scportrait.pipeline.extraction import HDF5CellExtraction
    from scportrait.pipeline.project import Project
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel

    with redirect_stdout(sys.stderr):
        array = np.load(folder / "image.npy")
        image = Image2DModel.parse(array, dims="cyx", c_coords=CHANNELS, scale_factors=[2, 4, 8])
        masks = {name: Labels2DModel.parse(np.load(folder / f"{name}.npy"), dims="yx") for name in ("nuclei", "cells")}
        SpatialData.init_from_elements({"image": image, **masks}).write(folder / "field.zarr")
        settings = {"HDF5CellExtraction": {"threads": 1, "image_size": EDGE, "cache": str(folder)}}
        (folder / "config.yml").write_text(json.dumps(settings))
        project = Project(folder / "project", folder / "config.yml", extraction_f=HDF5CellExtraction, overwrite=True)
        project.load_input_from_sdata(folder / "field.zarr", "image", *masks)
    for _ in sys.stdin:
        with redirect_stdout(sys.stderr):
            taken = {"scPortrait": timed(project.extract)}
            path = Path(project.extraction_f.output_path)
            images = read_h5sc(path).obsm["single_cell_images"]
            cells = len(images)
            taken["scPortrait, read"] = timed(partial(list, map(images.__getitem__, range(cells))))
            images.file.close()
        print(json.dumps({"taken": taken, "cells": cells, "bytes": path.stat().st_size}), flush=True)


def measure(python: str, across: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, float], int]:
    """Median seconds by the clock and by the processor, bytes on disk, and the number of cells."""
    import scipy

    from benchmarks.field_scene import write_recorded_crops
    from gradcamo_assets.cells import field_crops, open_crops, store_pixels

    taken: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder, stored = Path(scratch), Path(scratch) / "stored"
        recorded = write_recorded_crops(folder, CHANNELS, (1, EDGE, EDGE), 1, across=across, pad=False)[0]
        crops = open_crops(recorded)
        assert isinstance(crops, field_crops.FieldCrops)
        image, cells = (array.squeeze(-3) for array in crops.source.load())
        nuclei = scipy.ndimage.minimum_filter(cells, EDGE // 4)  # Shrinks the cells, which do not touch.
        for name, array in (("image", image), ("cells", cells), ("nuclei", nuclei)):
            np.save(folder / f"{name}.npy", array)
        ours: dict[str, Callable[[], object]] = {
            "stored": lambda: store_pixels(recorded, stored),
            "stored, read": lambda: list(map(open_crops(stored).read, range(len(crops)))),
            "cut": lambda: list(map(crops.read, range(len(crops)))),
        }
        command = [python, "-P", __file__, "--extract", scratch]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdin and worker.stdout
            for number in range(rounds + 1):
                print(file=worker.stdin, flush=True)
                theirs = json.loads(worker.stdout.readline() or '{"cells": "none, see its error above"}')
                if theirs["cells"] != len(crops):
                    raise SystemExit(f"scPortrait extracted cells: {theirs['cells']}; expected {len(crops)}")
                stored = folder / f"stored{number}"
                for what, work in ours.items():
                    field_crops._LOADED = field_crops._LoadedFields(1)  # The field is read from disk each time.
                    theirs["taken"][what] = timed(work)
                if number:  # The first round imports and compiles.
                    for what, seconds in theirs["taken"].items():
                        taken.setdefault(what, []).append(seconds)
        ours_on_disk = {"stored": stored, "cut": recorded}
        size = {k: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for k, path in ours_on_disk.items()}
    medians = {what: [statistics.median(part) for part in zip(*pairs, strict=True)] for what, pairs in taken.items()}
    return medians, size | {"scPortrait": theirs["bytes"]}, len(crops)


def main() -> None:
    """Print the table and the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scportrait", metavar="PYTHON", help="interpreter of an environment with scPortrait")
    parser.add_argument("--quick", action="store_true", help="a smaller field")
    parser.add_argument("--extract", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.extract:
        return extract(options.extract)
    if not options.scportrait:
        parser.error("--scportrait is required")
    medians, size, cells = measure(options.scportrait, 12 if options.quick else 22, 3)
    print(f"{cells} cells\n\n| what | cells/processor s | processor ms a cell | clock ms | on disk |\n{'| --- ' * 5}|")
    for what, (clock, processor) in medians.items():
        on_disk = f"{size[what] / cells:,.0f}" if what in size else ""
        each, each_cpu = 1e3 * clock / cells, 1e3 * processor / cells
        print(f"| {what} | {1e3 / each_cpu:.0f} | {each_cpu:.2f} | {each:.2f} | {on_disk} |")
    print(json.dumps({f"{k}_gain": round(medians["scPortrait"][1] / medians[k][1], 3) for k in ("stored", "cut")}))


if __name__ == "__main__":
    main()
