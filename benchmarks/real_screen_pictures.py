"""Draw what ``benchmarks.real_screen`` measured: ``python -m benchmarks.real_screen_pictures [--out docs]``.

The images are not shown, because their repository states no licence: outlines come from the masks, colours from the
maps. Medians over seeds; lines from the lowest to the highest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch.utils.data import default_collate

from benchmarks.real_screen import ASKED, ENCODERS, QUESTIONS, Record, Screen
from gradcamo_assets.cells import NEIGHBOUR, TARGET
from gradcamo_assets.cells.cell_rows import cells_with_crops, sample_cells
from gradcamo_assets.cells.crop_store import open_crops
from gradcamo_assets.defs.assets.model_assets import crop_paths, kept_cells
from gradcamo_assets.explain import gradcamo
from gradcamo_assets.networks.bundle import load_bundle
from gradcamo_assets.report import to_png
from gradcamo_assets.report.style import COLOURS, GREY, MARKERS, new_figure
from gradcamo_assets.training.evaluation import best_median_worst
from gradcamo_assets.training.training_run import labelled_crops

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {"self_supervised": "self-supervised"}
_MAPPED_CELLS = 600
_CHANCE = {"treatment": 1 / 3, "null": 1 / 2}
_TITLES = {"treatment": "Which treatment?", "null": "Which of two DMSO wells?"}


class Figures:
    """The record's values by question, encoder and name."""

    def __init__(self, folder: Path):
        self.records = {question: Record(folder / question / "figures.jsonl") for question in QUESTIONS}

    def values(self, question: str, encoder: str, name: str) -> np.ndarray:
        """One value a seed."""
        rows = self.records[question].find(encoder=encoder, asked=list(ASKED))
        return np.array([row[name] for row in rows if name in row])

    def bars(self, axes: Axes, question: str, names: dict[str, str]) -> None:
        """Draw bars of several figures side by side for each encoder, with their ranges over seeds."""
        width = 0.8 / len(names)
        for place, (name, label) in enumerate(names.items()):
            found = [self.values(question, encoder, name) for encoder in ENCODERS]
            middle = np.array([np.median(values) if len(values) else np.nan for values in found])
            ends = [[values.min(), values.max()] if len(values) else [np.nan] * 2 for values in found]
            reach = np.abs(np.array(ends).T - middle)
            x = np.arange(len(ENCODERS)) + width * (place - (len(names) - 1) / 2)
            axes.bar(x, middle, 0.94 * width, yerr=reach, label=label, color=COLOURS[place],
                     error_kw={"ecolor": GREY, "capsize": 2, "linewidth": 1})  # fmt: skip
        labels = [_NAMES.get(name, name) for name in ENCODERS]
        axes.set_xticks(range(len(ENCODERS)), labels, rotation=20, ha="right")
        axes.set_ylim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)


def both_questions(figures: Figures, names: dict[str, str], chance: bool) -> Figure:
    """Draw the same figures for both questions."""
    figure = new_figure(9, 3.4)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, question in zip(panels, QUESTIONS, strict=True):
        figures.bars(axes, question, names)
        axes.set_title(_TITLES[question])
        if chance:
            axes.axhline(_CHANCE[question], color="black", linestyle=":", linewidth=1, label="chance")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def one_question(figures: Figures, names: dict[str, str], title: str, chance: float | None = None) -> Figure:
    """Draw figures of the question about treatments."""
    figure = new_figure(7, 3.4)
    axes = figure.subplots()
    figures.bars(axes, "treatment", names)
    axes.set_title(title)
    if chance:
        axes.axhline(chance, color="black", linestyle=":", linewidth=1, label="chance")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def crowding(screen: Screen) -> Figure:
    """Draw the number of kept cells in each field, by well and plate."""
    cells = cells_with_crops(screen.platform.lake).collect().drop_nulls("crop_index")
    counts = cells.group_by("Metadata_Plate", "Metadata_Well", "Metadata_Site", "Metadata_Compound").len()
    wells = counts.select("Metadata_Well", "Metadata_Compound").unique().sort("Metadata_Compound", "Metadata_Well")
    figure = new_figure(7, 3.2)
    axes = figure.subplots()
    for number, (plate, rows) in enumerate(sorted(counts.group_by("Metadata_Plate"))):
        x = [wells["Metadata_Well"].to_list().index(well) + 0.12 * (number - 2) for well in rows["Metadata_Well"]]
        axes.plot(x, rows["len"], MARKERS[number], color=COLOURS[number], markersize=5, label=str(plate[0]))
    names = [f"{compound}\n{well}" for well, compound in wells.iter_rows()]
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0)
    axes.set_ylabel("Cells in a field")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


class Explained:
    """Maps of one encoder on a sample of the asked plates' cells, the same cells for every encoder.

    Attributes:
        maps: (N, Y, X), each with a sum of 1, upsampled linearly to the crop.
        regions: (N, Y, X), the labels of the crops.
        cells: predicted class and score of each cell.
    """

    def __init__(self, screen: Screen, version: int):
        registry = screen.platform.registry
        (found,) = [each for each in registry.versions() if each.version == version]
        model, config = load_bundle(registry.fetch(found))
        cells = sample_cells(kept_cells(screen.platform, list(ASKED)), _MAPPED_CELLS)
        fields = [open_crops(path) for path in crop_paths(screen.platform, cells)]
        crops = labelled_crops(cells, fields, config.classes, config.channels)
        maps, regions, rows = [], [], []
        for start in range(0, len(crops), 50):
            images, labels, targets = default_collate([crops[k] for k in range(start, min(start + 50, len(crops)))])
            neighbours = labels == NEIGHBOUR
            result = gradcamo(model, images, labels == TARGET, layer=config.layer, neighbour_masks=neighbours)
            cam = torch.nn.functional.interpolate(result.cam[:, None].float(), images.shape[2:], mode="trilinear")
            maps.append(cam[:, 0, 0])
            regions.append(labels[:, 0])
            columns = result.columns()
            wanted = {name: columns[name] for name in ("gradcamo_adjusted", "predicted_class", "looks_at")}
            rows.append(pl.DataFrame(wanted).with_columns(true_class=pl.Series(targets.tolist())))
        stacked = torch.cat(maps)
        self.maps = (stacked / stacked.sum((1, 2), keepdim=True).clamp_min(1e-9)).numpy()
        self.regions, self.cells = torch.cat(regions).numpy(), pl.concat(rows)
        self.classes = config.classes


def _outline(axes: Axes, mask: np.ndarray, colour: str) -> None:
    if mask.any() and not mask.all():
        axes.contour(mask.astype(float), [0.5], colors=colour, linewidths=1)


def mean_maps(explained: dict[str, dict[str, Explained]]) -> Figure:
    """Draw the mean map of every encoder, and where half of the targets are."""
    figure = new_figure(1.5 * len(ENCODERS), 3.6)
    panels = figure.subplots(len(QUESTIONS), len(ENCODERS), squeeze=False)
    for row, question in zip(panels, QUESTIONS, strict=True):
        for axes, name in zip(row, ENCODERS, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            if name not in explained[question]:
                continue
            found = explained[question][name]
            mean = found.maps.mean(0)
            axes.imshow(mean / mean.max(), cmap="inferno", vmin=0, vmax=1)
            _outline(axes, (found.regions == TARGET).mean(0) > 0.5, "white")
            if question == QUESTIONS[0]:
                axes.set_title(_NAMES.get(name, name), fontsize=9)
        row[0].set_ylabel(_TITLES[question], fontsize=9)
    return figure


def single_maps(explained: dict[str, Explained], names: Sequence[str], each: int = 2) -> Figure:
    """Draw the maps of the cells with the highest, median and lowest adjusted score of some encoders."""
    figure = new_figure(1.5 * 3 * each, 1.75 * len(names))
    panels = figure.subplots(len(names), 3 * each, squeeze=False)
    for row, name in zip(panels, names, strict=True):
        found = explained[name]
        for axes, index in zip(row, best_median_worst(found.cells, each), strict=True):
            axes.imshow(found.maps[index], cmap="inferno")
            _outline(axes, found.regions[index] == NEIGHBOUR, "#56B4E9")
            _outline(axes, found.regions[index] == TARGET, "white")
            axes.set_title(f"{found.cells['gradcamo_adjusted'][index]:.2f}", fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(_NAMES.get(name, name))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("data/real_screen"), help="what real_screen kept")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    figures = Figures(arguments.folder)
    screens = {question: Screen(Path(), arguments.folder, question) for question in QUESTIONS}
    explained: dict[str, dict[str, Explained]] = {question: {} for question in QUESTIONS}
    for question, record in figures.records.items():
        for name in ENCODERS:
            first: dict[str, Any] | None = next(record.find(encoder=name, seed=0, asked=list(ASKED)), None)
            if first:
                explained[question][name] = Explained(screens[question], first["model_version"])
    compared = [name for name in ("plain", "recipe") if name in explained["treatment"]]
    own = {"accuracy": "in its own surroundings", "accuracy_swapped": "in other surroundings"}
    looks = {
        "looks_at_target": "look at the cell",
        "looks_at_neighbour": "at neighbours",
        "survives": "survive the swap",
    }
    plates = {f"accuracy_swapped_{ASKED[0]}": "same batch", f"accuracy_swapped_{ASKED[1]}": "other batch"}
    profiles = {"map_all": "all cells", "map_random": "as many random cells", "map_trusted": "trusted cells"}
    title = "Accuracy in other surroundings on unseen plates"
    drawn = {
        "crowding": crowding(screens["treatment"]),
        "mean_maps": mean_maps(explained),
        "single_maps": single_maps(explained["treatment"], compared),
        "accuracy": both_questions(figures, own, True),
        "looks": both_questions(figures, looks, False),
        "batches": one_question(figures, plates, title, _CHANCE["treatment"]),
        "replicability": one_question(figures, profiles, "Replicate mAP across the two unseen plates"),
    }
    for name, figure in drawn.items():
        (arguments.out / f"real_screen_{name}.png").write_bytes(to_png(figure, 1400, 200_000))


if __name__ == "__main__":
    main()
