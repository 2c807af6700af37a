"""Where pictures go: small PNGs, markdown for asset metadata, and the QC report, one HTML page on its own."""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_ROWS, _MOST_BYTES = 200, 80_000
# Rendered with autoescape: whatever is between braces stays text.
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Quality report: {{ plate }}</title>
<meta name="viewport" content="width=device-width"><style>
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{margin-bottom:0}h2{margin-top:2rem}.verdict{font-size:1.2rem;border-left:.4rem solid #0072B2;padding:.5rem 1rem}
.table{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}
caption{text-align:left;font-weight:600;padding:.3rem 0}
th,td{border-bottom:1px solid #bbb;padding:.25rem .7rem;text-align:left}
.n{text-align:right;font-variant-numeric:tabular-nums}
figure{margin:1.5rem 0}img{max-width:100%;height:auto}figcaption{color:#333}
@media print{body{margin:0;max-width:none}figure,tr{break-inside:avoid}.table{overflow:visible}}
</style></head><body><main>
<header><h1>{{ plate }}</h1><p>Grad-CAMO quality report, model {{ model }}</p></header>
<section class="verdict" aria-label="Verdict">{% for line in verdict %}<p>{{ line }}</p>{% endfor %}</section>
{% if figures %}<section><h2>Pictures</h2>{% for caption, alt, uri in figures %}
<figure><img src="{{ uri }}" width="700" alt="{{ alt }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}</section>{% endif %}
{% if tables %}<section><h2>Tables</h2>{% for title, frame in tables %}<div class="table"><table>
<caption>{{ title }}{% if frame.height > most %} (first {{ most }} of {{ frame.height }} rows){% endif %}</caption>
<thead><tr>{% for name, dtype in frame.schema.items() %}<th scope="col" class="{{ 'n' if dtype.is_numeric() }}">
{{- name.removeprefix("Metadata_").replace("_", " ") }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in frame.head(most).iter_rows() %}<tr>{% for value in row %}
<td class="{{ 'n' if frame.dtypes[loop.index0].is_numeric() }}">
{%- if value is none %}<span title="no value">-</span>
{%- else %}{{ "%.3g"|format(value) if value is float else value }}{% endif %}</td>
{%- endfor %}</tr>{% endfor %}</tbody></table></div>{% endfor %}</section>{% endif %}
</main></body></html>
"""


def to_png(fig: Figure, width_px: int = 700) -> bytes:
    """A PNG of exactly ``width_px`` pixels across, with 256 colours, or 64 where it would take more than 80 KB."""
    from PIL import Image

    raw = io.BytesIO()
    # The canvas rounds down: a hair more than the width keeps 700 from becoming 699.
    fig.savefig(raw, format="png", dpi=(width_px + 0.01) / fig.get_figwidth(), facecolor="white")
    for colours in (256, 64):
        small = io.BytesIO()
        # Pillow's default (median cut) spends its colours on the noise of dark images and turns heat maps grey.
        picture = Image.open(raw).convert("RGB").quantize(colours, method=Image.Quantize.FASTOCTREE)
        picture.save(small, format="png", optimize=True)
        if small.tell() <= _MOST_BYTES:
            break
    return small.getvalue()


def to_markdown(fig: Figure, alt: str) -> str:
    """A markdown image with the picture inside it; ``alt`` says in words what it shows."""
    safe = re.sub(r"([\\\[\]()<>`*_!])", r"\\\1", " ".join(alt.split()))
    return f"![{safe}]({_data_uri(fig)})"


def qc_report_html(
    plate: str, model: str, verdict: str, tables: list[tuple[str, pl.DataFrame]], figures: list[tuple[str, str, Figure]]
) -> str:
    """A self-contained page: verdict first, then figures, then tables. All text is escaped, and nothing is fetched.

    Args:
        plate, model: what was judged, and by which model version.
        verdict: a sentence or a few; a line break begins a paragraph.
        tables: (title, frame) pairs; the first 200 rows are shown.
        figures: (caption, alternative text, figure).
    """
    from jinja2 import Environment

    return Environment(autoescape=True).from_string(_PAGE).render(
        plate=plate, model=model, verdict=[line for line in verdict.splitlines() if line.strip()], most=_MOST_ROWS,
        tables=tables, figures=[(caption, alt, _data_uri(figure)) for caption, alt, figure in figures],
    )  # fmt: skip


def _data_uri(fig: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(to_png(fig)).decode()
