"""The HTML report in a real browser: at every width, light and dark, on paper, by keyboard.

Needs Chromium and what drives it; skipped, with the reason, where either is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safeedit.records import RunRecord
from safeedit.report import html
from tests.report.test_evidence import recovered
from tests.report.test_formats import VARIANTS, hostile_record

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser: none of {', '.join(BROWSERS)} is on the PATH"
)

WIDTHS = (360, 768, 1200)


def attacked_record() -> RunRecord:
    from safeedit.records import AttackRecord

    record = VARIANTS["failed"]
    attack = AttackRecord(
        id="siblings", use="relearn", params={}, data_digests={}, tries="relearning",
        audits=("leakage",), headlines={"leakage": "leakage.extraction_rate"},
        points=tuple(
            point.model_copy(update={"notes": {"steps": steps, "learning_rate": 5e-05},
                                     "edited": (*point.edited, record.comparisons[0].after)})
            for steps in (10, 40) for point in [recovered(0.4, f"{steps} steps at 5e-05")]
        ),
    )  # fmt: skip
    return record.model_copy(update={"attacks": (attack,)})


PAGES = {
    "passed": VARIANTS["passed"],
    "attacked": attacked_record(),
    "undone": VARIANTS["undone"],
    "audit only": VARIANTS["audit only"],
    "hostile": hostile_record(),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        # Root, as in a container, has no sandbox.
        opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name, record in PAGES.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(html.render(record), encoding="utf-8")
    return found


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context()
    yield context.new_page()
    context.close()


def open_page(page: Any, file: Path, width: int, scheme: str = "light") -> list[str]:
    """Open a report; what it complains of, and what it asks for beside itself."""
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url))
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(file.as_uri())
    return [what for what in heard if what != file.as_uri()]


@pytest.mark.parametrize("name", PAGES)
def test_it_loads_in_silence_and_fits_every_width(
    page: Any, files: dict[str, Path], name: str
) -> None:
    assert open_page(page, files[name], WIDTHS[0]) == []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width


SPILLS = """() => [...document.querySelectorAll('td, dd, dt, figcaption, li')]
    .filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display != 'inline')
    .map(e => e.textContent.trim().slice(0, 60))"""
"""Cells whose content is wider than they are, and so runs into the next."""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["passed", "attacked", "undone"])
def test_no_figure_runs_into_another(
    page: Any, files: dict[str, Path], name: str, width: int
) -> None:
    open_page(page, files[name], width)
    assert page.evaluate(SPILLS) == []


BROKEN = """() => {
    const found = [];
    for (const e of document.querySelectorAll('.id, .name, th')) {
        const walker = document.createTreeWalker(e, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
            for (const word of walker.currentNode.data.matchAll(/[^\\s]+/g)) {
                const range = document.createRange();
                range.setStart(walker.currentNode, word.index);
                range.setEnd(walker.currentNode, word.index + word[0].length);
                const tops = new Set([...range.getClientRects()].map(r => Math.round(r.top)));
                if (tops.size > 1) found.push(word[0]);
            }
        }
    }
    return found;
}"""
"""Words that stand on two lines."""


@pytest.mark.parametrize("width", WIDTHS)
def test_no_name_breaks_within_a_word(page: Any, files: dict[str, Path], width: int) -> None:
    open_page(page, files["attacked"], width)
    assert page.evaluate(BROKEN) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(page: Any, files: dict[str, Path], name: str, scheme: str) -> None:
    for width in (WIDTHS[0], WIDTHS[-1]):
        open_page(page, files[name], width, scheme)
        found = axe.Axe().run(page)
        assert found.response["passes"], "it looked"
        assert found.violations_count == 0, found.generate_report()


def test_the_keyboard_reaches_everything(page: Any, files: dict[str, Path]) -> None:
    open_page(page, files["attacked"], 1200)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#gates"
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.tagName"))
        if reached[-1] == "SUMMARY" and not page.evaluate(
            "document.activeElement.parentElement.open"
        ):
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.parentElement.open")
    assert {"SUMMARY", "DIV"} <= set(reached)  # what opens, and what scrolls


def test_links_lead_somewhere(page: Any, files: dict[str, Path]) -> None:
    open_page(page, files["passed"], 1200)
    lost = page.evaluate(
        "() => [...document.querySelectorAll('a')].map(a => a.getAttribute('href'))"
        ".filter(h => !document.querySelector(h))"
    )
    assert lost == []


def test_on_paper_everything_is_open_and_light(page: Any, files: dict[str, Path]) -> None:
    open_page(page, files["passed"], 700, "dark")
    page.emulate_media(media="print")
    heights = page.evaluate(
        "() => [...document.querySelectorAll('details pre, details table')]"
        ".map(e => e.getBoundingClientRect().height)"
    )
    assert heights
    assert min(heights) > 0
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == "rgb(255, 255, 255)"
