"""The UMAP of embeddings or profiles, coloured by dose and by score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from gradcamo_assets.figures.style import GREY, MARKERS, SEQUENTIAL, empty_figure, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def umap_scatter(table: pl.DataFrame) -> Figure:
    """Two panels: colour for the dose and a marker for the site, and colour for Grad-CAMO.

    Args:
        table: ``umap_x``, ``umap_y``, ``Metadata_Dose``, ``Metadata_Dose_Unit``; and where there
            are any, ``Metadata_Site`` and ``gradcamo`` (a row without a score is drawn hollow).
    """
    if table.is_empty():
        return empty_figure("No embeddings to show")
    scored = "gradcamo" in table.columns
    figure = new_figure(7, 3.9 if scored else 4.5)
    axes = figure.subplots(1, 2 if scored else 1, sharex=True, sharey=True, squeeze=False)[0]
    x, y = table["umap_x"].to_numpy(), table["umap_y"].to_numpy()
    size = float(np.clip(3000 / table.height, 5, 40))

    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    sites = table["Metadata_Site"] if "Metadata_Site" in table.columns else pl.Series([1] * table.height)
    site_names = sorted(set(sites.drop_nulls()))
    pairs = [(dose or 0, unit or "") for dose, unit in table.select("Metadata_Dose", "Metadata_Dose_Unit").iter_rows()]
    names = np.array([f"{dose:g} {unit}" if dose else "control" for dose, unit in pairs])
    treated = [f"{dose:g} {unit}" for dose, unit in sorted(set(pairs)) if dose]

    handles = []
    for number, name in enumerate(["control", *treated]):
        # Without the palest end of the scale, which is hard to see on white.
        shade = colormaps[SEQUENTIAL]((number - 1) / len(treated) * 0.95) if number else GREY
        for index, site in enumerate(site_names):
            dots = (names == name) & (sites == site).fill_null(False).to_numpy()
            axes[0].scatter(x[dots], y[dots], s=size, color=shade, marker=MARKERS[index % 8], linewidths=0, alpha=0.8)
        handles.append(Line2D([], [], color=shade, marker="o", linestyle="", label=name))
    if len(site_names) > 1:
        handles += [
            Line2D([], [], color="black", marker=MARKERS[n % 8], linestyle="", label=f"site {site}")
            for n, site in enumerate(site_names)
        ]
    axes[0].set_title("Dose" + (" and site" if len(site_names) > 1 else ""), fontsize=10)
    if scored:
        score = table["gradcamo"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        known = np.isfinite(score)
        axes[1].scatter(x[~known], y[~known], s=size, facecolors="none", edgecolors=GREY, linewidths=0.6)
        points = axes[1].scatter(
            x[known], y[known], s=size, c=score[known], cmap="cividis", vmin=0, vmax=1, linewidths=0
        )
        figure.colorbar(points, ax=axes[1], label="Grad-CAMO")
        axes[1].set_title("Score", fontsize=10)
    for panel in axes:
        panel.set(xlabel="UMAP 1", ylabel="UMAP 2" if panel is axes[0] else "", xticks=[], yticks=[])
    figure.legend(handles=handles[:24], loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure
