"""Check the report in Chromium, with keyboard and mouse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gradcamo_assets_tests.report.browser import CHROMIUM, Page, chromium
from gradcamo_assets_tests.report.made_up import report_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
DOSES = "[...document.querySelectorAll('.rows')[0].tBodies[0].rows].map(row => row.cells[1].textContent)"
HEADER = ".rows th:nth-child(2)"
SORTED = f"document.querySelector('{HEADER}').getAttribute('aria-sort')"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("chromium")
    (folder / "report.html").write_text(report_page(), encoding="utf-8")
    with chromium(folder / "profile") as page:
        page.open(folder / "report.html")
        yield page
        assert page.problems == []


def test_keyboard_and_mouse_sort_a_table(page: Page) -> None:
    assert page.evaluate(DOSES) == ["0", "3", "0.3", "30", "–"]  # noqa: RUF001
    assert page.evaluate(SORTED) is None
    page.evaluate(f"document.querySelector('{HEADER} button').focus()")
    page.press("Enter")
    assert page.evaluate(DOSES) == ["0", "0.3", "3", "30", "–"]  # noqa: RUF001
    assert page.evaluate(SORTED) == "ascending"
    page.press(" ")
    assert page.evaluate(DOSES) == ["30", "3", "0.3", "0", "–"]  # noqa: RUF001
    assert page.evaluate(SORTED) == "descending"
    page.click(".rows th:nth-child(1) button")
    assert page.evaluate(SORTED) is None
    assert page.evaluate(DOSES)[-2:] == ["0", "–"]  # noqa: RUF001
    page.click(f"{HEADER} button")
    assert page.evaluate(DOSES) == ["0", "0.3", "3", "30", "–"]  # noqa: RUF001


def test_keyboard_and_mouse_show_the_details_of_a_well(page: Page) -> None:
    details = "document.getElementById('well').textContent"
    page.evaluate("document.querySelector('.plate td[tabindex=\"0\"]').focus()")
    assert page.evaluate(details).startswith("A01, ")
    page.press("ArrowDown")
    page.press("ArrowRight")
    assert page.evaluate(details).startswith("B02, ")
    page.click(".plate tbody tr:nth-child(8) td:nth-child(6)")
    assert page.evaluate(details).startswith("H05, ")
    assert page.evaluate("document.querySelectorAll('.plate [tabindex=\"0\"]').length") == 1


def test_the_focused_element_is_outlined(page: Page) -> None:
    page.evaluate("document.activeElement.blur()")
    for _ in range(3):
        page.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"


def test_nothing_is_wider_than_a_narrow_window(page: Page) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=1, mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.call("Emulation.clearDeviceMetricsOverride")


def test_every_text_has_enough_contrast(page: Page) -> None:
    low_contrast = page.evaluate(
        """[...document.querySelectorAll("main *")]
        .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
        .map(e => {
            const numbers = css => css.match(/[\\d.]+/g).map(Number);
            const clear = e => (numbers(getComputedStyle(e).backgroundColor)[3] ?? 1) === 0;
            let behind = e;
            while (behind && clear(behind)) behind = behind.parentElement;
            const light = css => numbers(css).slice(0, 3).map(v => v / 255)
                .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
            const front = light(getComputedStyle(e).color);
            const back = light(behind ? getComputedStyle(behind).backgroundColor : "rgb(255, 255, 255)");
            return [e.outerHTML.slice(0, 80), Math.max(front, back) / Math.min(front, back)];
        }).filter(([, ratio]) => ratio < 4.5)"""
    )
    assert low_contrast == []


def test_every_picture_is_drawn_and_the_page_prints(page: Page, tmp_path: Path) -> None:
    assert page.evaluate("document.images.length") > 1
    assert page.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 300)))") == [
        True
    ] * page.evaluate("document.images.length")
    printed = page.call("Page.printToPDF", preferCSSPageSize=True, transferMode="ReturnAsBase64")["data"]
    assert len(printed) > 20_000
