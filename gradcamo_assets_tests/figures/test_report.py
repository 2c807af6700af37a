from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import polars as pl
import pytest
from PIL import Image

from gradcamo_assets.figures import qc_report_html, to_markdown, training_curves

HOSTILE = "<script>alert('\"&')</script>"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Elements with attributes, text, and a check that every element is closed."""

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
        self.text += data


@pytest.fixture(scope="module")
def figure():
    return training_curves(pl.DataFrame({"epoch": [0, 1], "train_loss": [1.0, 0.5]}))


@pytest.fixture(scope="module")
def page(figure):
    table = pl.DataFrame({HOSTILE: [HOSTILE, None], "score": [0.12345, None]})
    return qc_report_html(
        HOSTILE, HOSTILE, f"Do not trust.\n{HOSTILE}", [(HOSTILE, table)], [(HOSTILE, HOSTILE, figure)]
    )


def test_hostile_text_stays_text(page):
    parsed = Page(page)
    assert "script" not in {tag for tag, _ in parsed.elements}
    # title, plate, model, verdict, caption of the figure and of the table, head and cell
    assert parsed.text.replace(" ", "").count(HOSTILE.replace(" ", "")) == 8
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)


def test_nothing_is_fetched(page):
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page
    for tag, attributes in Page(page).elements:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert attributes.get("src", "data:").startswith("data:image/png;base64,") or "src" not in attributes


def test_is_readable_without_sight_and_says_the_verdict_first(page):
    elements = Page(page).elements
    tags = [tag for tag, _ in elements]
    assert dict(elements)["html"] == {"lang": "en"}
    assert [attributes["alt"] for tag, attributes in elements if tag == "img"] == [HOSTILE]
    assert all(attributes["scope"] == "col" for tag, attributes in elements if tag == "th")
    assert tags.count("h1") == 1
    assert page.index("Do not trust") < page.index("<img") < page.index("<table")


def test_long_tables_are_cut_and_say_so(figure):
    page = qc_report_html("P", "m 1", "Fine.", [("Wells", pl.DataFrame({"n": range(500)}))], [])
    assert "first 200 of 500 rows" in page
    assert page.count("<tr>") == 201


def test_markdown_carries_the_picture_whatever_the_text(figure):
    text = to_markdown(figure, "a](http://x) [b\n\n<i>")
    start = text.index("](data:image/png;base64,")
    assert "\n" not in text
    assert "](http" not in text[:start].replace("\\]", "")
    Image.open(io.BytesIO(base64.b64decode(text[start:].split(",")[1].rstrip(")")))).load()
