"""The QC report of a plate: one HTML page that needs nothing else."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import polars as pl

from gradcamo_assets.figures.encode import to_html_img

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{margin-bottom:0}h2{margin-top:2rem}.verdict{font-size:1.2rem;border-left:.4rem solid #0072B2;padding:.5rem 1rem}
.table{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}
caption{text-align:left;font-weight:600;padding:.3rem 0}
th,td{border-bottom:1px solid #bbb;padding:.25rem .7rem;text-align:left}
.n{text-align:right;font-variant-numeric:tabular-nums}
figure{margin:1.5rem 0}img{max-width:100%;height:auto}figcaption{color:#333}
@media print{body{margin:0;max-width:none}figure,tr{break-inside:avoid}.table{overflow:visible}}
"""
_MOST_ROWS = 200


def qc_report_html(
    plate: str,
    model: str,
    verdict: str,
    tables: list[tuple[str, pl.DataFrame]],
    figures: list[tuple[str, str, Figure]],
) -> str:
    """A self-contained page: verdict first, then figures, then tables. All text is escaped, and nothing is fetched.

    Args:
        plate, model: what was judged, and by which model version.
        verdict: a sentence or a few; a line break begins a paragraph.
        tables: (title, frame) pairs; the first 200 rows are shown.
        figures: (caption, alternative text, figure).
    """
    text = html.escape
    said = "".join(f"<p>{text(line)}</p>" for line in verdict.splitlines() if line.strip())
    pictures = "".join(
        f"<figure>{to_html_img(figure, alt)}<figcaption>{text(caption)}</figcaption></figure>"
        for caption, alt, figure in figures
    )
    name = text(plate)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Quality report: {name}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><main>'
        f"<header><h1>{name}</h1><p>Grad-CAMO quality report, model {text(model)}</p></header>"
        f'<section class="verdict" aria-label="Verdict">{said}</section>'
        + (f"<section><h2>Pictures</h2>{pictures}</section>" if figures else "")
        + (f"<section><h2>Tables</h2>{''.join(_table(*pair) for pair in tables)}</section>" if tables else "")
        + "</main></body></html>\n"
    )


def _table(title: str, frame: pl.DataFrame) -> str:
    numeric = ['class="n"' if dtype.is_numeric() else "" for dtype in frame.dtypes]
    head = "".join(
        f'<th scope="col" {kind}>{html.escape(name.removeprefix("Metadata_").replace("_", " "))}</th>'
        for name, kind in zip(frame.columns, numeric, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f"<td {kind}>{_cell(value)}</td>" for value, kind in zip(row, numeric, strict=True)) + "</tr>"
        for row in frame.head(_MOST_ROWS).iter_rows()
    )
    rest = f" (first {_MOST_ROWS} of {frame.height} rows)" if frame.height > _MOST_ROWS else ""
    return (
        f'<div class="table"><table><caption>{html.escape(title)}{rest}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    if value is None:
        return '<span title="no value">-</span>'
    return html.escape(f"{value:.3g}" if isinstance(value, float) else str(value))
