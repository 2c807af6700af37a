"""Write the QC report as one self-contained HTML page: verdict, plate, pictures and tables.

The page is made from ``report.html`` and ``report.js``. Its content security policy forbids any other script or
request.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from gradcamo_assets.report.charts import plate_grid
from gradcamo_assets.report.png import to_data_uri
from gradcamo_assets.report.style import treatment_name
from gradcamo_assets.report.wording import Verdict, wells_with_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_ROWS = 400
_NO_VALUE = "\N{EN DASH}"


@dataclass(frozen=True)
class Picture:
    """A figure of the report; ``alt`` describes it in words."""

    title: str
    caption: str
    alt: str
    figure: Figure


@dataclass(frozen=True)
class Listing:
    """A table of the report; ``notes`` explain its columns."""

    title: str
    caption: str
    frame: pl.DataFrame
    notes: Mapping[str, str] = field(default_factory=dict)


def qc_report_html(
    plate: str,
    model: str,
    verdict: Verdict,
    pictures: Sequence[Picture] = (),
    tables: Sequence[Listing] = (),
    wells: pl.DataFrame | None = None,
    made: str = "",
) -> str:
    """Return a self-contained page: verdict first, then the plate, pictures and tables. All text is escaped.

    Args:
        plate, model: names of the plate and the model version.
        tables: the first 400 rows are shown; a single row is shown as a list.
        wells: one row per well: ``Metadata_Well``, ``on_target_fraction``, ``n_cells``, ``Metadata_Compound`` with dose
            and unit, ``has_cells`` (whether any cell was kept), ``trained`` (whether it is a training well) and
            ``reason`` (why to drop it, or NULL).
        made: a short note on when and by what the scores were made.

    Raises:
        PlateError: for an invalid well name.
    """
    from jinja2 import Environment

    this_file = Path(__file__)
    script = this_file.with_name("report.js").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters |= {
        "format_value": _format_value,
        "column_name": lambda name: name.removeprefix("Metadata_").replace("_", " "),
    }
    columns, filled = 0, ""
    grid: list[tuple[str, list[dict[str, Any] | None]]] = []
    if wells is not None and len(wells):
        columns, grid = _grid(wells)
        filled = wells_with_cells(wells.filter("has_cells")["Metadata_Well"].sort().to_list(), columns * len(grid))
    images = []
    for picture in pictures:
        uri, width, height = to_data_uri(picture.figure)
        texts = {"title": picture.title, "caption": picture.caption, "alt": picture.alt}
        images.append({**texts, "uri": uri, "width": width, "height": height})
    return environment.from_string(this_file.with_name("report.html").read_text(encoding="utf-8")).render(
        plate=plate, model=model, verdict=verdict, pictures=images, tables=tables, grid=grid, columns=columns,
        filled=filled, made=made, max_rows=MAX_ROWS,
        scale=", ".join(_colours(share)[0] for share in np.linspace(0, 1, 6)),
        script=script, digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def _format_value(value: Any, name: str = "") -> str:
    """Format a value for a table: three decimals, or six significant digits for doses, which may be smaller."""
    if value is None or value != value:
        return _NO_VALUE
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:g}" if "Dose" in name else f"{round(value, 3) + 0.0:.{4 if abs(value) < 1000 else 9}g}"
    return ", ".join(map(str, value)) if isinstance(value, list | pl.Series) else str(value)


def _grid(wells: pl.DataFrame) -> tuple[int, list[tuple[str, list[dict[str, Any] | None]]]]:
    """Return the number of columns, and the cells of each row by its letter; None for a position without a well."""
    shape, letters, positions = plate_grid(wells["Metadata_Well"])
    rows: list[tuple[str, list[dict[str, Any] | None]]] = [(letter, [None] * shape[1]) for letter in letters]
    for (row, column), well in zip(positions, wells.iter_rows(named=True), strict=True):
        rows[row][1][column] = _well_cell(well)
    return shape[1], rows


def _well_cell(well: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text, label and colours of a well in the plate map."""
    share = well["on_target_fraction"]
    name = ", ".join(filter(None, [well["Metadata_Well"], treatment_name(well)]))
    if share is not None:
        background, foreground = _colours(share)
        text, label = f"{share:.0%} of {well['n_cells']} cells on target", f"{100 * share:.0f}"
    else:
        background, foreground = "#eeeeee", "#000000"
        text, label = ("the model was trained on this well", "t") if well["trained"] else ("no cell has a score", "")
    if well["reason"]:
        text, label = f"{text}; drop it: {well['reason']}", f"{label}x"
    return {
        "text": f"{name}: {text}",
        "label": label,
        "drop": bool(well["reason"]),
        "background": background,
        "foreground": foreground,
    }


def _colours(share: float) -> tuple[str, str]:
    """Return a colour of the scale, and black or white text with the higher contrast, which is at least 4.58.

    Relative luminance: https://www.w3.org/TR/WCAG22/#dfn-relative-luminance
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    rgb = np.array(colormaps["cividis"](float(share))[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return to_hex(tuple(rgb)), "#000000" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "#ffffff"
