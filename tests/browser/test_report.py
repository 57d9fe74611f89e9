"""A study's report in Chromium: what is drawn, what a reader can do, and how it looks on paper and on a phone.

One browser and one page for the whole file: about ten seconds of CPU.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dashboards.report import write_report
from tests.browser.chromium import chromium, emulate, missing, resize
from tests.deadlines import HANG_SECONDS
from tests.quick.test_clip_factor import with_clipping
from tests.tracking.example_study import agc_sweep, write_journal

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

FACTORS = [*(number / 1000 for number in range(1, 30)), None]
TRIALS = 2 * len(FACTORS)  # two batch sizes
ROWS_OF_A_PAGE = 50
TOP1 = "top-1, last epoch"
A4_WIDTH = 688  # pixels between margins of 14 mm, at 96 pixels an inch


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("study")
    write_journal(directory, with_clipping(agc_sweep(FACTORS)))
    return write_report(directory).as_uri()


@pytest.fixture
def page(browser: WebDriver, address: str) -> Iterator[WebDriver]:
    """The report as a reader opens it; afterwards nothing has gone wrong in its scripts."""
    emulate(browser)
    resize(browser, 1280)
    if browser.current_url != address:
        browser.get(address)
    else:
        browser.execute_script("sessionStorage.clear(); scrollTo(0, 0)")
        browser.refresh()
    wait(browser, "return charts.every(chart => chart.drawn)")
    yield browser
    assert [line["message"] for line in browser.get_log("browser")] == []


def wait(browser: WebDriver, script: str) -> Any:
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, HANG_SECONDS, 0.05).until(lambda driver: driver.execute_script(script))


def click(page: WebDriver, selector: str, text: str = "") -> None:
    """Click what the selector finds with this text."""
    [element] = [each for each in page.find_elements("css selector", selector) if text in each.text]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def rows(page: WebDriver) -> list[dict[str, str]]:
    """The trials that are shown, in their order: {heading: text}."""
    return page.execute_script(
        "const names = [...document.querySelectorAll('#trials thead th')].map(cell => cell.innerText);"
        "return [...document.querySelectorAll('#trials tbody tr')].filter(row => row.offsetParent).map("
        "  row => Object.fromEntries([...row.cells].map((cell, i) => [names[i], cell.innerText])))"
    )


def shown(page: WebDriver) -> str:
    return page.find_element("css selector", ".rows").text


def type_filter(page: WebDriver, words: str) -> None:
    from selenium.webdriver import Keys

    field = page.find_element("css selector", ".pager input")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.DELETE, words)


def test_every_chart_has_axes_and_marks(page: WebDriver) -> None:
    charts = page.execute_script(
        "return charts.map(chart => ({id: chart.id, marks: chart.querySelectorAll("
        "  '.points path, .js-line, .hm image, .bars path').length,"
        "  titles: chart.querySelectorAll('.xtitle, .ytitle, .xtick text, .textpoint').length, html: chart.innerHTML}))"
    )
    assert len(charts) >= 6
    assert [chart["id"] for chart in charts if not chart["marks"]] == []
    # Each field has an axis of its own there, whose name is a label.
    titled = [chart for chart in charts if chart["id"] != "parallel-coordinates"]
    assert [chart["id"] for chart in titled if not chart["titles"]] == []
    assert [chart["id"] for chart in charts if re.search("NaN|undefined", chart["html"])] == []


def test_a_heading_sorts_best_first_and_then_the_other_way(page: WebDriver) -> None:
    click(page, "#trials th button", "epochs")
    for order in (True, False):
        click(page, "#trials th button", TOP1)
        accuracies = [float(row[TOP1].removesuffix("%")) for row in rows(page)]
        assert accuracies == sorted(accuracies, reverse=order)
        assert len(set(accuracies)) > 10
    sorted_by = "return [...document.querySelectorAll('[aria-sort]')].map(cell => cell.ariaSort)"
    assert page.execute_script(sorted_by) == ["ascending"]


def test_the_filter_finds_words_in_any_column(page: WebDriver) -> None:
    type_filter(page, "DIVERGED 256")
    found = rows(page)
    assert found
    assert all("diverged" in row["state"] and row["batch_size"] == "256" for row in found)
    assert shown(page) == f"Trials 1 to {len(found)} of {len(found)}"
    type_filter(page, "no such word")
    assert rows(page) == []
    assert shown(page) == "No trial matches."
    type_filter(page, "")
    assert len(rows(page)) == ROWS_OF_A_PAGE


def test_a_long_table_has_pages(page: WebDriver) -> None:
    first = rows(page)
    assert shown(page) == f"Trials 1 to {ROWS_OF_A_PAGE} of {TRIALS}"
    click(page, ".pager button", "Next")
    rest = rows(page)
    assert (len(first), len(rest)) == (ROWS_OF_A_PAGE, TRIALS - ROWS_OF_A_PAGE)
    assert not [row for row in rest if row in first]
    buttons = page.find_elements("css selector", ".pager button")
    assert [button.is_enabled() for button in buttons] == [True, False]
    page.refresh()
    assert rows(page) == rest, "a page that reloads itself has lost the reader's place"
    click(page, ".pager button", "Previous")
    assert rows(page) == first


def test_the_legend_hides_a_level(page: WebDriver) -> None:
    curves = "return charts.flatMap(chart => [...chart.querySelectorAll('.js-line')]).length"
    before = page.execute_script(curves)
    button = page.find_elements("css selector", ".legend button[data-level]")[0]
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert page.execute_script(curves) < before
    button.click()
    assert page.execute_script(curves) == before


def test_zoom_is_by_panel(page: WebDriver) -> None:
    ranges = "return charts.map(chart => chart.layout.yaxis.range?.[0])"
    before = page.execute_script(ranges)
    click(
        page, f".zoom[data-chart='{page.find_element('css selector', '.zoom').get_attribute('data-chart')}']"
    )
    after = page.execute_script(ranges)
    assert len([1 for low, high in zip(before, after, strict=True) if low != high]) == 1


def test_everything_can_be_done_with_the_keyboard(page: WebDriver) -> None:
    """Tab reaches every control, the one that has the focus is outlined, and Enter and Space press it."""
    from selenium.webdriver import ActionChains, Keys

    controls = page.execute_script(
        "return [...document.querySelectorAll('button, input, summary')].filter("
        "  each => each.offsetParent && !each.disabled).length"
    )
    focused = "const it = document.activeElement; return [it.tagName, it.innerText, getComputedStyle(it).outlineStyle]"
    reached = []
    page.execute_script("document.body.focus()")
    for _ in range(2 * controls + 20):
        ActionChains(page).send_keys(Keys.TAB).perform()
        tag, text, outline = page.execute_script(focused)
        if tag == "BODY":
            break
        if tag in {"BUTTON", "INPUT", "SUMMARY"}:
            reached.append(text)
            assert outline != "none", f"{tag} {text} has the focus, and one cannot see it"
        if text == "state":
            ActionChains(page).send_keys(Keys.ENTER).perform()
        elif tag == "SUMMARY":
            ActionChains(page).send_keys(Keys.SPACE).perform()
    assert len(reached) == controls
    heading = page.find_element("css selector", "#trials [aria-sort]")
    assert (heading.text, heading.get_attribute("aria-sort")) == ("state", "ascending")
    assert page.find_element("css selector", "details").get_attribute("open") == "true"


def brightness(color: str) -> float:
    """Relative luminance of a colour as getComputedStyle has it, from 0 to 1 (WCAG 2)."""
    channels = [float(number) / 255 for number in re.findall(r"[\d.]+", color)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def colors_of(page: WebDriver) -> dict[str, str]:
    return page.execute_script(
        "const paint = (selector, what) => getComputedStyle(document.querySelector(selector))[what];"
        "return {page: paint('body', 'backgroundColor'), text: paint('h1', 'color'), note: paint('.note', 'color'),"
        "  tick: paint('.chart .xtick text', 'fill')}"
    )


def test_dark_and_light(page: WebDriver) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        emulate(page, scheme=scheme)
        seen[scheme] = colors = colors_of(page)
        for ink in ("text", "note", "tick"):
            low, high = sorted([brightness(colors["page"]), brightness(colors[ink])])
            # WCAG 2.1, success criterion 1.4.3.
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, ink, colors)
    assert brightness(seen["dark"]["page"]) < 0.1 < 0.8 < brightness(seen["light"]["page"])


def test_on_paper_it_is_light_whole_and_without_controls(page: WebDriver) -> None:
    emulate(page, media="print", scheme="dark")
    resize(page, A4_WIDTH)
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert brightness(colors_of(page)["page"]) > 0.8
    assert brightness(colors_of(page)["tick"]) < 0.3
    assert len(rows(page)) == TRIALS
    assert page.execute_script("return document.querySelectorAll('details:not([open])').length") == 0
    controls = page.find_elements("css selector", ".pager, .zoom, .screen")
    assert [control.text for control in controls if control.is_displayed()] == []
    assert beyond_the_edge(page) == []
    page.execute_script("dispatchEvent(new Event('afterprint'))")
    printed = base64.b64decode(page.print_page())
    assert printed.startswith(b"%PDF")


def beyond_the_edge(page: WebDriver) -> list[str]:
    """What reaches over the right edge of the page, unless it is in a part that scrolls by itself."""
    return page.execute_script(
        "const edge = document.documentElement.clientWidth + 1;"
        "const scrolls = each => each && (['auto', 'scroll', 'hidden'].includes(getComputedStyle(each).overflowX)"
        "  || scrolls(each.parentElement));"
        "return [...document.querySelectorAll('main *')].filter(each => each.getBoundingClientRect().right > edge"
        "  && !scrolls(each)).map(each => `${each.tagName} ${each.className} ${each.textContent.slice(0, 40)}`)"
    )


def test_on_a_phone_nothing_is_beyond_the_edge(page: WebDriver) -> None:
    resize(page, 390)
    assert beyond_the_edge(page) == []
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    [first, *_] = rows(page)
    assert first


def test_no_two_labels_of_an_axis_are_the_same(page: WebDriver) -> None:
    page.execute_script("document.querySelectorAll('.zoom').forEach(button => button.click())")
    wait(
        page, "return [...document.querySelectorAll('.zoom')].every(button => button.ariaPressed === 'true')"
    )
    labels = page.execute_script(
        "return charts.map(chart => [...chart.querySelectorAll('.ytick text')].map(tick => tick.textContent))"
    )
    assert any(len(each) > 3 for each in labels)
    for each in labels:
        assert len(set(each)) == len(each)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_long_word_does_not_widen_the_page(browser: WebDriver, tmp_path: Path, width: int) -> None:
    address = "https://tracker.example.org/projects/vision/" + 12 * "normaliser-free-"
    started, *events = agc_sweep((0.01, 0.02), (64,))
    assert started["event"] == "study_started"
    started["study"] |= {"question": f"Is {address} right?", "notes": [address], "tags": {"issue": address}}
    write_journal(tmp_path, [started, *events])
    resize(browser, width)
    browser.get(write_report(tmp_path).as_uri())
    wait(browser, "return charts.every(chart => chart.drawn)")
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
