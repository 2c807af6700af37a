from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

import polars as pl
import pytest

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.report import Listing, Picture, Verdict, qc_report_html, training_curves
from gradcamo_assets_tests.report.made_up import report_page, wells

HOSTILE = "<script>alert('\"&')</script>"
VOID = {"meta", "img"}


class Parsed(HTMLParser):
    """Elements with attributes, and text outside scripts and styles; asserts that every element is closed."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def figure():
    return training_curves(pl.DataFrame({"epoch": [0, 1], "train_loss": [1.0, 0.5]}))


@pytest.fixture(scope="module")
def page(figure):
    frame = pl.DataFrame({HOSTILE: [HOSTILE, None], "score": [0.12345, None]})
    return qc_report_html(
        HOSTILE, HOSTILE, Verdict(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)]), [Picture(HOSTILE, HOSTILE, HOSTILE, figure)],
        [Listing(HOSTILE, HOSTILE, frame, {HOSTILE: HOSTILE})],
        wells().with_columns(Metadata_Compound=pl.lit(HOSTILE), reason=pl.lit(HOSTILE)), made=HOSTILE,
    )  # fmt: skip


def test_hostile_text_stays_text(page):
    parsed = Parsed(page)
    assert [tag for tag, _ in parsed.elements].count("script") == 1
    assert "alert(" not in page[page.index("</main>") :]
    # Title 2, header 3, verdict 4, contents 2, picture 2, table 7; attributes are not text.
    assert parsed.text.replace(" ", "").count(HOSTILE.replace(" ", "")) == 20
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)


def test_the_page_makes_no_request_and_allows_no_other_script(page):
    parsed = Parsed(page)
    assert not re.search(r"https?:|url\(|@import", page)
    for tag, attributes in parsed.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert (attributes.get("href") or "#").startswith("#")
    (policy,) = [meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    script = page[page.index("<script>") + len("<script>") : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy and "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_the_page_is_accessible_and_starts_with_the_verdict(page):
    parsed = Parsed(page)
    assert parsed.elements[0] == ("html", {"lang": "en"})
    assert [attributes["alt"] for attributes in parsed.all("img")] == [HOSTILE]
    assert {attributes["scope"] for attributes in parsed.all("th")} == {"col", "row"}
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.index("Verdict</h2>") < page.index('class="plate"') < page.index("<img") < page.index('class="rows"')
    names = {attributes["id"] for _, attributes in parsed.elements if "id" in attributes}
    assert {(attributes["href"] or "")[1:] for attributes in parsed.all("a")} <= names
    assert len(parsed.all("caption")) == 1


def test_every_well_has_a_text_and_legible_colours():
    page = report_page()
    wells_by_name = {(cell["title"] or "")[:3]: cell for cell in Parsed(page).all("td") if cell.get("title")}
    assert len(wells_by_name) == 384
    assert wells_by_name["B03"]["title"] == "B03, cpd-A 3 uM: 26% of 40 cells on target; drop it: far below its plate"
    assert wells_by_name["B03"]["class"] == "drop"
    assert "<p>383 of 384 wells have cells.</p>" in page
    assert "the model was trained on this well" in (wells_by_name["A02"]["title"] or "")
    assert "no cell has a score" in (wells_by_name["P24"]["title"] or "")
    for cell in wells_by_name.values():
        background, foreground = re.findall(r"#[0-9a-f]{6}", cell["style"] or "")
        assert contrast(background, foreground) >= 4.5, cell
    with pytest.raises(GradcamoError):
        qc_report_html("P", "m", Verdict("x", "", []), wells=wells().with_columns(Metadata_Well=pl.lit("17")))


def contrast(*colours: str) -> float:
    """Compute the contrast ratio per https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio, channel by channel."""

    def channel(text: str) -> float:
        value = int(text, 16) / 255
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    light = sorted(0.2126 * channel(c[1:3]) + 0.7152 * channel(c[3:5]) + 0.0722 * channel(c[5:7]) for c in colours)
    return (light[1] + 0.05) / (light[0] + 0.05)


def test_the_page_of_a_384_well_plate_is_small():
    assert len(report_page()) < 5e6


def test_long_tables_are_cut_with_a_note():
    page = qc_report_html(
        "P", "m 1", Verdict("Fine", "", []), [], [Listing("Wells", "All", pl.DataFrame({"n": range(500)}))]
    )
    assert "first 400 of 500 rows" in page
    assert page.count("<tr>") == 401


def test_small_doses_and_large_numbers_are_legible():
    row = {"Metadata_Dose": 0.00003, "x": 0.000123, "y": 123456.7, "n": 1234567, "z": -0.0001}
    frame = pl.DataFrame([row, row])
    page = qc_report_html("P", "m 1", Verdict("Fine", "", []), [], [Listing("T", "C", frame)])
    assert re.findall(r'<td class="n">([^<]*)</td>', page) == ["3e-05", "0", "123456.7", "1234567", "0"] * 2
    page = qc_report_html("P", "m 1", Verdict("Fine", "", []), [], [Listing("T", "C", frame.head(1))])
    assert re.findall(r'<th scope="row">([^<]*)</th><td>([^<]*)</td>', page)[0] == ("Dose", "3e-05")
