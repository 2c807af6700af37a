"""The QC report, one HTML page on its own: verdict, plate, pictures, tables. Its words are made in ``verdict``.

The page is ``report.html`` with the script ``report.js``; the page's own policy lets nothing else run or be fetched.
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
from gradcamo_assets.report.wording import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 400
_NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Picture:
    """A figure of the report; ``alt`` says in words what is seen."""

    title: str
    caption: str
    alt: str
    figure: Figure


@dataclass(frozen=True)
class Listing:
    """A table of the report; ``notes`` say what its columns mean."""

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
    """A self-contained page: verdict first, then the plate, pictures and tables. All text is escaped.

    Args:
        plate, model: what was judged, and by which model version.
        tables: the first 400 rows are shown; a single row is shown as a list.
        wells: one row a well: ``Metadata_Well``, ``on_target_fraction``, ``n_cells``, ``Metadata_Compound`` with dose
            and unit, ``trained`` (whether the model learned from it) and ``reason`` (why to drop it, or NULL).
        made: when and by what, a few words.

    Raises:
        PlateError: for a name that is no well.
    """
    from jinja2 import Environment

    here = Path(__file__)
    script = here.with_name("report.js").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters |= {"shown": _shown, "named": lambda name: name.removeprefix("Metadata_").replace("_", " ")}
    columns, grid = _grid(wells) if wells is not None and len(wells) else (0, [])
    images = []
    for picture in pictures:
        uri, width, height = to_data_uri(picture.figure)
        about = {"title": picture.title, "caption": picture.caption, "alt": picture.alt}
        images.append({**about, "uri": uri, "width": width, "height": height})
    return environment.from_string(here.with_name("report.html").read_text(encoding="utf-8")).render(
        plate=plate, model=model, verdict=verdict, pictures=images, tables=tables, grid=grid, columns=columns,
        made=made, most=MOST_ROWS, scale=", ".join(_colour(share)[0] for share in np.linspace(0, 1, 6)),
        script=script, digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def _shown(value: Any, name: str = "") -> str:
    """A value as a table shows it: to three decimals, but for doses, which may be smaller."""
    if value is None or value != value:
        return _NOTHING
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:g}" if "Dose" in name else f"{round(value, 3) + 0.0:.{4 if abs(value) < 1000 else 9}g}"
    return ", ".join(map(str, value)) if isinstance(value, list | pl.Series) else str(value)


def _grid(wells: pl.DataFrame) -> tuple[int, list[tuple[str, list[dict[str, Any] | None]]]]:
    """The number of columns, and by row letter what each well shows, None where the plate has no such well."""
    shape, letters, places = plate_grid(wells["Metadata_Well"])
    rows: list[tuple[str, list[dict[str, Any] | None]]] = [(letter, [None] * shape[1]) for letter in letters]
    for (row, column), well in zip(places, wells.iter_rows(named=True), strict=True):
        rows[row][1][column] = _well(well)
    return shape[1], rows


def _well(well: Mapping[str, Any]) -> dict[str, Any]:
    share = well["on_target_fraction"]
    named = ", ".join(filter(None, [well["Metadata_Well"], treatment_name(well)]))
    if share is not None:
        back, front = _colour(share)
        text, short = f"{share:.0%} of {well['n_cells']} cells on target", f"{100 * share:.0f}"
    else:
        back, front = "#eeeeee", "#000000"
        text, short = ("the model was trained on it", "t") if well["trained"] else ("no cell has a score", "")
    if well["reason"]:
        text, short = f"{text}; drop it: {well['reason']}", f"{short}x"
    return {"text": f"{named}: {text}", "short": short, "drop": bool(well["reason"]), "back": back, "front": front}


def _colour(share: float) -> tuple[str, str]:
    """A colour of the scale, and black or white on it: the better of the two has a contrast of 4.58 or more.

    Relative luminance: https://www.w3.org/TR/WCAG22/#dfn-relative-luminance
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    rgb = np.array(colormaps["cividis"](float(share))[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return to_hex(tuple(rgb)), "#000000" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "#ffffff"
