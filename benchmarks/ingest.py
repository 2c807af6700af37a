"""What does taking a plate in cost? ``python -m benchmarks.ingest [--quick]``

A TIFF export is taken in (checked, measured, written as OME-Zarr 0.5), and, in turns with it, its TIFFs are read with
tifffile and the same arrays written with zarr, nothing else. The memory an ingestion adds is held against the size of a
field, for a small plate and a larger one. And a night over an inbox of 200 plates that are all known.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tifffile
from tqdm import tqdm

from gradcamo_assets.plates import ingest_plate, list_known_plates
from gradcamo_assets.plates.companions import compute_signature
from gradcamo_assets.plates.inbox import InboxConfig, list_inbox, plate_states
from gradcamo_assets.plates.omezarr_writer import create_field
from gradcamo_assets.plates.plate_records import mark_known
from gradcamo_assets.synthetic import SyntheticPlate, render_field

CHANNELS = 5
VOXEL_SIZE = (1.0, 0.5, 0.5)
PATTERN = r"(?P<well>[A-P]\d\d)_s(?P<site>\d+)_(?P<channel>\w+)_z(?P<z>\d+)\.tif"


def write_export(folder: Path, fields: int, shape: tuple[int, int, int]) -> None:
    """Fields of one synthetic scene, each shifted against the last."""
    config = SyntheticPlate(name="scene", wells=1, sites=1, shape=shape, cells=max(3, shape[1] * shape[2] // 12_000))
    scene = render_field(config, 0, 1).image
    folder.mkdir(parents=True)
    for field in tqdm(range(fields), desc="writing TIFFs", unit="field", disable=None):
        moved = np.roll(scene, (37 * field, 53 * field), axis=(2, 3))
        well = f"{'ABCDEFGHIJKLMNOP'[field // 24]}{field % 24 + 1:02d}"
        write_field(folder, well, 1, config.stains, moved)
    write_description(folder)


def write_field(folder: Path, well: str, site: int, stains: Sequence[str], image: np.ndarray) -> None:
    """An image (C, Z, Y, X) as one TIFF a plane, as a microscope writes them."""
    for stain, stack in zip(stains, image, strict=True):
        for z, plane in enumerate(stack):
            tifffile.imwrite(folder / f"{well}_s{site}_{stain}_z{z:02d}.tif", plane)


def write_description(folder: Path) -> None:
    """What the file names mean, and the voxel size, beside an export."""
    folder.with_name(f"{folder.name}.toml").write_text(
        f"pattern = '{PATTERN}'\nvoxel_size = [{', '.join(map(str, VOXEL_SIZE))}]\n"
    )


def copy(export: Path, target: Path) -> None:
    """The same TIFFs read and the same arrays written, by tifffile and zarr alone."""
    import zarr

    fields: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(export.iterdir()):
        match = re.fullmatch(PATTERN, path.name)
        assert match is not None
        fields.setdefault(match["well"], {}).setdefault(match["channel"], []).append(path)
    for well, channels in fields.items():
        stacks = [np.stack([tifffile.imread(path) for path in paths]) for paths in channels.values()]
        create_field(target / well, (len(stacks), *stacks[0].shape), list(channels), VOXEL_SIZE)
        array = zarr.open_array(target / well / "0", mode="r+")
        for index, stack in enumerate(stacks):
            array[index] = stack


def against_copying(export: Path, scratch: Path, rounds: int) -> tuple[float, float]:
    """Seconds to ingest and to copy, medians of ``rounds`` in turns."""
    seconds: dict[str, list[float]] = {"ingest": [], "copy": []}
    for number in range(rounds):
        order = ("ingest", "copy") if number % 2 else ("copy", "ingest")
        for what in order:
            target = scratch / what
            begun = time.perf_counter()
            if what == "ingest":
                ingest_plate(export, target)
            else:
                copy(export, target)
            seconds[what].append(time.perf_counter() - begun)
            shutil.rmtree(target)
    return statistics.median(seconds["ingest"]), statistics.median(seconds["copy"])


def _peak() -> int:
    """Bytes this process ever had resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _measure_memory(warm: Path, export: Path, target: Path, answer: multiprocessing.SimpleQueue) -> None:
    ingest_plate(warm, target)
    before = _peak()
    ingest_plate(export, target)
    answer.put(_peak() - before)


def added_memory(warm: Path, export: Path, target: Path) -> int:
    """Bytes that ingesting ``export`` adds to the peak of a process that has ingested ``warm``, a small plate."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=_measure_memory, args=(warm, export, target, answer))
    process.start()
    process.join()
    shutil.rmtree(target)
    return answer.get()


def a_night(scratch: Path, plates: int, files: int) -> float:
    """Seconds that the inbox takes when every plate in it is known."""
    inbox, home = scratch / "inbox", scratch / "plates"
    for number in tqdm(range(plates), desc=f"plates of {files} files", unit="plate", disable=None):
        folder = inbox / f"plate{number:03d}"
        folder.mkdir(parents=True)
        (folder / "plate.HTD").touch()
        at = os.open(folder, os.O_RDONLY)
        for file in range(files):
            # Links to one empty file: a look at each costs as much, and the disk has the room.
            os.link("plate.HTD", f"plate_A01_s{file}_w1.tif", src_dir_fd=at, dst_dir_fd=at)
        os.close(at)
        mark_known(home, folder.name, compute_signature(folder))
    begun, settings = time.perf_counter(), InboxConfig()
    known = list_known_plates(home)
    states = plate_states(list_inbox(inbox, settings, known), known, {}, {}, datetime.now(UTC), settings)
    seconds = time.perf_counter() - begun
    assert {state.state for state in states} == {"known"} and len(states) == plates
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small fields and few files, under a minute")
    quick = parser.parse_args().quick
    shape = (8, 512, 512) if quick else (21, 1080, 1080)
    field = 2 * CHANNELS * int(np.prod(shape))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        few, many = (2, 4) if quick else (3, 9)
        write_export(scratch / "warm", 2, (2, 64, 64))
        write_export(scratch / "small", few, shape)
        write_export(scratch / "large", many, shape)
        ingest_plate(scratch / "warm", scratch / "ingest")
        ingest, copied = against_copying(scratch / "large", scratch, 3)
        megabytes = many * field / 1e6
        print(f"{many} fields of {CHANNELS} x {' x '.join(map(str, shape))}, {megabytes:.0f} MB of TIFFs")
        print(f"ingest {ingest:.2f} s ({megabytes / ingest:.0f} MB/s), tifffile and zarr alone {copied:.2f} s")
        peaks = {
            count: added_memory(scratch / "warm", scratch / which, scratch / "peak") / field
            for which, count in (("small", few), ("large", many))
        }
        for count, peak in peaks.items():
            print(f"peak memory of {count} fields: {peak:.2f} fields")
        plates, files = (200, 200) if quick else (200, 40_000)
        night = a_night(scratch / "night", plates, files)
        print(f"a night over {plates} known plates of {files} files: {night:.2f} s")
    figures = {"over_copy": ingest / copied, "peak_fields": max(peaks.values()), "night_seconds": night}
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
