"""The report as its reader has it: opened in Chromium, used with the keyboard and the mouse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gradcamo_assets_tests.report.browser import CHROMIUM, Page, chromium
from gradcamo_assets_tests.report.made_up import report_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not on this machine")
DOSES = "[...document.querySelectorAll('.rows')[0].tBodies[0].rows].map(row => row.cells[1].textContent)"
HEAD = ".rows th:nth-child(2)"
SORTED = f"document.querySelector('{HEAD}').getAttribute('aria-sort')"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("chromium")
    (folder / "report.html").write_text(report_page(), encoding="utf-8")
    with chromium(folder / "profile") as page:
        page.open(folder / "report.html")
        yield page
        assert page.problems == []


def test_a_table_is_sorted_by_keyboard_and_by_mouse(page: Page) -> None:
    assert page.ask(DOSES) == ["0", "3", "0.3", "30", "–"]  # noqa: RUF001
    assert page.ask(SORTED) is None
    page.ask(f"document.querySelector('{HEAD} button').focus()")
    page.press("Enter")
    assert page.ask(DOSES) == ["0", "0.3", "3", "30", "–"]  # noqa: RUF001
    assert page.ask(SORTED) == "ascending"
    page.press(" ")
    assert page.ask(DOSES) == ["30", "3", "0.3", "0", "–"]  # noqa: RUF001
    assert page.ask(SORTED) == "descending"
    page.click(".rows th:nth-child(1) button")
    assert page.ask(SORTED) is None
    assert page.ask(DOSES)[-2:] == ["0", "–"]  # noqa: RUF001
    page.click(f"{HEAD} button")
    assert page.ask(DOSES) == ["0", "0.3", "3", "30", "–"]  # noqa: RUF001


def test_wells_are_read_with_keyboard_and_mouse(page: Page) -> None:
    said = "document.getElementById('well').textContent"
    page.ask("document.querySelector('.plate td[tabindex=\"0\"]').focus()")
    assert page.ask(said).startswith("A01, ")
    page.press("ArrowDown")
    page.press("ArrowRight")
    assert page.ask(said).startswith("B02, ")
    page.click(".plate tbody tr:nth-child(8) td:nth-child(6)")
    assert page.ask(said).startswith("H05, ")
    assert page.ask("document.querySelectorAll('.plate [tabindex=\"0\"]').length") == 1


def test_what_has_the_focus_is_seen(page: Page) -> None:
    page.ask("document.activeElement.blur()")
    for _ in range(3):
        page.press("Tab")
        assert page.ask("getComputedStyle(document.activeElement).outlineWidth") == "3px"


def test_nothing_is_wider_than_a_narrow_window(page: Page) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=1, mobile=True)
    assert page.ask("document.documentElement.scrollWidth") <= 360
    page.call("Emulation.clearDeviceMetricsOverride")


def test_every_text_stands_out_from_what_is_behind_it(page: Page) -> None:
    faint = page.ask(
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
    assert faint == []


def test_every_picture_is_drawn_and_the_page_prints(page: Page, tmp_path: Path) -> None:
    assert page.ask("document.images.length") > 1
    assert page.ask("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 300)))") == [
        True
    ] * page.ask("document.images.length")
    printed = page.call("Page.printToPDF", preferCSSPageSize=True, transferMode="ReturnAsBase64")["data"]
    assert len(printed) > 20_000
