"""Take the pictures of the Dagster UI and of a report for ``docs/``.

Run it beside ``make ui``, after ``make demo``::

    python documentation/pictures.py http://127.0.0.1:3000 REPORT.html

It needs the package playwright and a Chromium, whose path ``--chromium`` names. Benchmarks make the other pictures of
``docs/``; the text below each picture names the command.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

DOCS = Path(__file__).resolve().parents[1] / "docs"
COLOURS = 128


GROUPS = ("plates", "cells", "models", "scores", "profiles", "qc")


def lineage(page: Any) -> None:
    """All assets, with every group open."""
    page.goto("/asset-groups?expanded=" + ",".join(f"global%40global%3A{group}" for group in GROUPS))
    page.get_by_text("gradcamo_scores", exact=True).first.wait_for()
    page.get_by_text("Hide navigation").click()


def scores_of_a_partition(page: Any) -> None:
    """The pictures of crops and maps that a partition of the scores holds."""
    page.goto("/assets/gradcamo_scores?view=partitions")
    page.locator("text=/^demo-/").first.click()
    page.get_by_text("1", exact=True).first.click()
    page.locator("img[src^='/pictures/']").first.scroll_into_view_if_needed()


def plots_of_scores(page: Any) -> None:
    """The numbers of every partition, plotted."""
    page.goto("/assets/gradcamo_scores?view=overview")
    page.get_by_text("Plots", exact=True).first.click()
    page.locator("canvas").first.wait_for()
    page.get_by_text("median_adjusted", exact=True).last.scroll_into_view_if_needed()


def check_of_scores(page: Any) -> None:
    """A check and its last evaluation."""
    page.goto("/assets/gradcamo_scores?view=checks&checkDetail=cells_scored")
    page.get_by_text("Latest execution").wait_for()


PAGES: dict[str, Callable[[Any], None]] = {
    "dagster_graph.png": lineage,
    "dagster_scores.png": scores_of_a_partition,
    "dagster_plots.png": plots_of_scores,
    "dagster_check.png": check_of_scores,
}


CLIPS = {"dagster_graph.png": {"x": 380, "y": 200, "width": 850, "height": 530}}
"""The part of a page that is shown: pixels of the window."""


def save(picture: bytes, path: Path) -> None:
    """Write a picture of few colours, which is a third of the size."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT).save(
        path, optimize=True
    )
    print(path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of a running UI")
    parser.add_argument("report", type=Path, help="a report in reports/ of GRADCAMO_HOME")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium)
        page = browser.new_page(base_url=options.url, viewport={"width": 1400, "height": 900}, device_scale_factor=1.5)
        for name, show in PAGES.items():
            show(page)
            page.wait_for_timeout(3000)  # Dagster draws in several steps.
            save(page.screenshot(clip=CLIPS.get(name), scale="device"), DOCS / name)
        page = browser.new_page(viewport={"width": 1060, "height": 1711})
        page.goto(options.report.resolve().as_uri())
        save(page.screenshot(), DOCS / "report.png")
        browser.close()


if __name__ == "__main__":
    main()
