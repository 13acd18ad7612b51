"""The report on a phone and on paper: nothing lies on a legend, and nothing that cannot be scrolled to is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from browser.looks import serious
from karat.ledger.lineage import ArtifactRef, Manifest
from karat.records import Estimate, Finding
from karat.report.figures import Bin, Panel, Series
from karat.report.page import AttributedText, Curve, ReportInput, ResponseShown, SampleShown, write_page

pytestmark = pytest.mark.browser

GOLD = Estimate(-0.2915, -0.3624, -0.2163, 400, "mean over prompts, Student t interval, 95 %")
COLUMNS = ("gold", "proxy", "kl", "win_rate", "length", "distinct", "agrees_wrong", "reward_distance")
BEYOND = """(selector) => [...document.querySelectorAll(selector)].map((one) => one.getBoundingClientRect())
    .filter((box) => box.width && (box.right > innerWidth - 8 || box.left < 8)).length"""
"""How many of these elements reach beyond the page's margin."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every wide part."""
    series = Series("gold", (1.0, 4.0), (0.1, 0.3), (0.0, 0.2), (0.2, 0.4), ("a", "b"), "gold")
    ref = ArtifactRef("m", "data/demonstrations_of_a_longer_name.jsonl", "sha256:" + "1" * 64, "file")
    manifest = Manifest("demo", "evaluate", (ref,), (ref,), {}, {}, {}, None, "", "t", 3.0)
    long = "How many verdicts does an edit turn that keeps the meaning: reworded?"
    content = ReportInput(
        run_id="demo",
        title="A run",
        manifests=(manifest,),
        policies={name: dict.fromkeys(COLUMNS, GOLD) for name in ("sft", "best_of_16", "ppo")},
        findings=(
            Finding("challenge.D2", long, "not measured", None, "SFT 0.24, PPO 0.13"),
            Finding("inside.atlas", long, "info", GOLD),
        ),
        samples=(SampleShown("Why?", (ResponseShown("sft", "Because.", 0.5, 0.25),)),),
        attributed=(AttributedText("Why?", ("Because", "so", "."), (0.5, -0.5, 0.25), 1.0, "sft"),),
        curves=(Curve("c", "PPO", (Panel("loss", (series,)),) * 5, "rollouts"),),
        calibration=(Bin(0.5, 0.4, 0.3, 0.5, 10),),
        frontier=(Panel("gold", (series,)),),
        held_out=((long, GOLD),) * 3,
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_page(path, content)
    return path


def opened(chromium: Browser, report: Path, **options: object) -> Page:
    page = chromium.new_context(**options).new_page()
    page.goto(report.as_uri())
    page.wait_for_function("document.querySelectorAll('.main-svg').length > 0")
    return page


def test_on_a_phone_no_bar_lies_on_a_legend_and_every_status_is_seen(chromium: Browser, report: Path):
    page = opened(chromium, report, viewport={"width": 375, "height": 800}, is_mobile=True, has_touch=True)
    assert page.locator(".legend").count() > 0
    assert [one.is_visible() for one in page.locator(".modebar").all()].count(True) == 0
    assert page.evaluate(BEYOND, ".challenges .badge, .held-out td") == 0
    page.context.close()


def test_on_paper_every_column_is_there(chromium: Browser, report: Path):
    page = opened(chromium, report, viewport={"width": 794, "height": 1123})  # A4 at 96 dots an inch
    page.emulate_media(media="print")
    assert page.evaluate(BEYOND, ".policies td, .stages td code, .held-out td, .challenges .badge") == 0
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_a_report(chromium: Browser, report: Path, axe: str, scheme: str):
    page = opened(chromium, report, color_scheme=scheme, bypass_csp=True)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    page.evaluate(axe)
    assert serious(page) == []
    page.context.close()


STYLE = "([what, name]) => [...new Set([...document.querySelectorAll(what)].map(one => getComputedStyle(one)[name]))]"


def test_on_paper_no_heading_stands_alone_and_bars_are_printed(chromium: Browser, report: Path):
    page = opened(chromium, report, viewport={"width": 794, "height": 1123})
    page.emulate_media(media="print")
    assert page.evaluate(STYLE, ["h2, .lead", "breakAfter"]) == ["avoid"]
    assert page.evaluate(STYLE, [".card:has(.findings), .card:has(table)", "breakInside"]) == ["auto"]
    assert page.evaluate(STYLE, ["figure, .findings li, tr", "breakInside"]) == ["avoid"]
    assert page.evaluate(STYLE, [".track i, .meter i, .badge", "printColorAdjust"]) == ["exact"]
    page.context.close()


def test_on_paper_the_configuration_is_unfolded_and_whole(chromium: Browser, report: Path):
    page = opened(chromium, report, viewport={"width": 794, "height": 1123})
    folded = page.locator("details pre").first
    assert not folded.is_visible()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert folded.is_visible()
    assert page.evaluate(STYLE, ["details pre", "maxHeight"]) == ["none"]
    assert page.evaluate(BEYOND, "details pre") == 0
    cut = "[...document.querySelectorAll('details pre')].filter(one => one.scrollWidth > one.clientWidth).length"
    assert page.evaluate(cut) == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not folded.is_visible()
    page.locator("summary").last.click()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert folded.is_visible()  # what a reader has opened stays open
    page.context.close()


def test_on_paper_no_chart_is_higher_than_a_page(chromium: Browser, report: Path):
    page = opened(chromium, report, viewport={"width": 794, "height": 1123})
    height = "Math.max(...[...document.querySelectorAll('.plot')].map((one) => one.getBoundingClientRect().height))"
    high = page.evaluate(height)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(height) < 850 < high
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(height) == high
    page.context.close()


def test_a_dark_page_is_dark_again_after_it_was_printed(chromium: Browser, report: Path):
    page = opened(chromium, report, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(ground) != dark
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(ground) == dark
    page.context.close()
