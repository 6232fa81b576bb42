"""The page in headless Chromium, from a file, as somebody opens it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from halp_probe.report.writing import write_report
from halp_store.reader import open_store

from .report_evaluation import make_evaluation, make_verdicts, write_store

pytestmark = pytest.mark.slow

HOSTILE = '"><img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>'


@pytest.fixture(scope="module", params=["plain", "hostile"])
def page(request, tmp_path_factory):
    """Of a store with pictures; and of one whose every text is hostile and long."""
    folder = tmp_path_factory.mktemp("report")
    evaluation = make_evaluation(rows=100)
    text = f"{HOSTILE} {'x' * 300}"
    texts = dict.fromkeys(("question_text", "answer", "ground_truth"), text)
    write_store(folder / "s.zarr", evaluation, **(texts if request.param == "hostile" else {}))
    return write_report(
        evaluation,
        open_store(folder / "s.zarr"),
        make_verdicts(evaluation),
        folder / "out",
        image_root=folder / "images",
        command="halp-probe report s.zarr out",
        made=datetime(2026, 11, 25, tzinfo=UTC),
    )


@pytest.fixture
def opened(chromium, page):
    """`opened(width, scheme, media)`: the driver, with the page in it."""

    def show(width=1200, scheme="light", media="screen"):
        chromium.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        chromium.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        chromium.get_log("browser")
        chromium.get(page.as_uri())
        return chromium

    return show


def test_no_request_leaves_and_nothing_is_refused(opened):
    """All that is loaded is in the page, and its policy allows all of it."""
    driver = opened()
    loaded = driver.execute_script(
        "return performance.getEntriesByType('resource').map((one) => one.name)"
    )
    assert [one for one in loaded if not one.startswith("data:")] == []
    assert driver.get_log("browser") == []
    assert driver.execute_script("return window.hacked") is None


def test_every_picture_is_drawn(opened):
    """Six plots and the examples, each with pixels and with words for it."""
    found = opened().execute_script(
        "return [...document.images].map((one) => [one.naturalWidth, one.alt])"
    )
    assert len(found) == 6 + 24
    assert all(width > 0 and alt for width, alt in found)


@pytest.mark.parametrize("width", [320, 400, 800, 1400])
def test_nothing_sticks_out_to_the_side(opened, width):
    """Wide tables and plots scroll by themselves."""
    driver = opened(width)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    outside = driver.execute_script(
        """return [...document.querySelectorAll('body *')].filter((one) =>
             !one.closest('.scroll') && !one.closest('details') &&
             one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML)"""
    )
    assert [one[:200] for one in outside] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_its_ground(opened, scheme):
    """A contrast of 4.5 at least (WCAG 2.1, AA) for body, muted text, links and warnings."""
    ratios = opened(scheme=scheme).execute_script(
        """
        const light = (colour) => {
          const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255)
            .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
          return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
        };
        const ground = (one) => {
          for (let at = one; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (!/^rgba\\(.*, 0(\\.\\d+)?\\)$/.test(colour)) return colour;
          }
          return 'rgb(255, 255, 255)';
        };
        return [...document.querySelectorAll('p, a, td, th, dt, dd, figcaption, .tile b, .warn')]
          .map((one) => {
            const [a, b] = [light(getComputedStyle(one).color), light(ground(one))].sort();
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.className];
          });
        """
    )
    assert len(ratios) > 100
    assert [one for one in ratios if one[0] < 4.5] == []


def test_it_prints_whole(opened):
    """On a sheet of A4 nothing is cut at the right, and what was folded is open."""
    driver = opened(width=703, scheme="dark", media="print")  # 186 mm at 96 dots an inch
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 703
    heights = driver.execute_script(
        "return [...document.querySelectorAll('details table')].map((one) => one.offsetHeight)"
    )
    assert heights
    assert min(heights) > 100
    ground = "return getComputedStyle(document.body).backgroundColor"
    assert driver.execute_script(ground) == "rgb(255, 255, 255)"
