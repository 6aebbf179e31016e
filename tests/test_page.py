"""The page in a real browser: nothing is fetched, nothing complains, every figure is drawn, in light and dark."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from sgdscope.contracts import Evidence, Verdict
from sgdscope.landscapes import NoisyQuadratic, walk
from sgdscope.measure import measure
from sgdscope.report import page_of_verdicts, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE = 120_000  # milliseconds

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    runs = [walked(0.05, "slow"), walked(0.5, "fast <i>&</i>")]
    verdicts = [
        Verdict("W1", "supported", 0.99, (0.97, 1.0), 120, 0.9, "Convex."),
        {
            "claim": "W9",
            "verdict": "not in regime",
            "statistic": None,
            "interval": None,
            "n": 0,
            "threshold": 0,
            "reason": "Flat.",
        },
    ]
    controls = [{"claim": "W1", "control": "positive", "verdict": "supported"}]
    return {
        "report": report(runs, folder / "report.html", verdicts=verdicts),
        "bad": report(Evidence({}, runs[0].steps.isel(step=slice(0, 0)), {}), folder / "bad.html"),
        "checks": page_of_verdicts(verdicts, controls, folder / "checks.html"),
    }


def walked(lr, name) -> Evidence:
    """SGD on a noisy bowl, measured by the real quantities."""
    hessian = torch.diag(torch.tensor([3.1, 0.4], dtype=torch.float64))
    generator = torch.Generator().manual_seed(3)
    surface = NoisyQuadratic(hessian, torch.randn(50, 2, generator=generator, dtype=torch.float64))
    start = torch.tensor([1.3, -2.1], dtype=torch.float64)
    trajectory = walk(surface, lr=lr, updates=120, start=start, batch_size=4, generator=generator)
    options = {"curvature": {"k": 2, "points": 3, "density": 2}, "sharpest": {"k": 2, "points": 2}, "neurons": {"k": 2}}
    options |= {"noise": {"k": 2, "points": 2, "currents": True}, "escape": {"radius": 0.5}}
    names = ["valley", "motion", "curvature", "noise", "sharpest", "neurons", "batch", "escape"]
    measured = measure(trajectory, surface, names, **options)
    groups = {str(key): group.to_dataset() for key, group in measured.children.items()}
    return Evidence({"walker": "sgd", "batch_size": 4}, trajectory.steps, groups, {"name": name})


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def show(browser, pages):
    """Open a page once and wait until it has drawn; returns it with its requests and complaints."""

    @cache
    def opened(name, scheme, width):
        page = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
        requests, complaints = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(pages[name].as_uri())
        page.wait_for_selector("body[data-ready]", timeout=PATIENCE)
        page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        count = page.locator(".plot").count()
        page.wait_for_selector(f"body[data-ready='{count}']", timeout=PATIENCE)
        return page, requests, complaints

    return lambda name, scheme="light", width=1200: opened(name, scheme, width)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_without_requests_or_complaints(show, pages, scheme):
    page, requests, complaints = show("report", scheme=scheme)
    assert requests == [pages["report"].as_uri()]
    assert complaints == []
    drawn = page.evaluate("Array.from(document.querySelectorAll('.plot')).map(p => p.querySelectorAll('svg.main-svg').length)")
    # two runs of two windows, spectrum, density, six of the noise, three of the sharpest directions, batches, two of stays and
    # the scalars; four that they share
    assert len(drawn) == 2 * (2 + 2 + 6 + 3 + 1 + 2 + 1) + 4
    assert all(drawn)


def test_closed_parts_are_drawn_when_asked_for_and_by_print(browser, pages):
    page = browser.new_context().new_page()
    page.goto(pages["report"].as_uri() + "#run-2-noise")
    page.wait_for_selector("body[data-ready]", timeout=PATIENCE)
    assert page.evaluate("document.getElementById('run-2-noise').open")
    assert not page.evaluate("document.getElementById('run-1-noise').open")
    undrawn = "Array.from(document.querySelectorAll('.plot')).filter(p => !p.dataset.drawn).length"
    assert page.evaluate(undrawn) > 0
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(undrawn) == 0
    assert page.evaluate("document.getElementById('run-1-noise').open")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert not page.evaluate("document.getElementById('run-1-noise').open")


def test_the_three_panels_hold_every_update(show):
    page, *_ = show("report")
    panels = page.locator("#run-2 .plot").first
    assert panels.locator("g.cartesianlayer g.subplot").count() == 3
    names = page.evaluate("document.querySelector('#run-2 .plot')._fullData.map(t => [t.name, t.x.length])")
    points = dict(names)
    assert points["iterates θ<sub>t</sub>"] == 61
    assert next(count for name, count in names if name.startswith("valley floor")) == 60


def test_the_sharpest_directions_are_drawn_side_by_side(show):
    page, *_ = show("report")
    titles = page.evaluate(
        "Array.from(document.querySelectorAll('#run-1 .plot')).map(p => (p.layout.annotations || []).map(a => a.text))"
    )
    panels = [own[:3] for own in titles if own[:1] == ["update 0"]]
    assert panels[0] == ["update 0", "update 60", "update 120"]  # noise: three of the two points of each window
    assert (
        panels[1:] == [["update 0", "update 60", "update 119"]] * 2
    )  # effects and cross-sections: first, middle and last of four
    legends = page.evaluate("Array.from(document.querySelectorAll('#run-1 .plot')).map(p => p._fullData.map(t => t.name))")
    assert sum("threshold of the method" in own or "λ<sub>1</sub>" in own for own in legends) == 1
    assert (
        page.locator("#run-1-curvature, #run-1-noise, #run-1-sharpest, #run-1-neurons, #run-1-batch, #run-1-escape").count() == 6
    )


def test_the_table_of_verdicts_is_there(show):
    page, *_ = show("report")
    rows = page.locator("table.verdicts tbody tr")
    assert rows.count() == 2
    assert "supported" in rows.nth(0).inner_text()
    assert "[0.97, 1.00]" in rows.nth(0).inner_text()
    assert "not in regime" in rows.nth(1).inner_text()


def test_names_of_runs_are_text(show):
    page, *_ = show("report")
    assert page.locator("#run-2 h2").inner_text() == "fast <i>&</i>"
    assert page.locator("i").count() == 0
    ticks = page.locator("#across .plot").nth(1).locator(".ytick text").all_text_contents()
    assert any("fast <i>&</i>" in tick for tick in ticks)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_figures_stand_out_from_the_paper(show, scheme):
    page, *_ = show("report", scheme=scheme)
    colours = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
        " getComputedStyle(document.querySelector('.plot .xtick text')).fill]"
    )
    paper, ink, ticks = (luminance(colour) for colour in colours)
    assert (paper > 0.5) == (scheme == "light")
    for colour in (ink, ticks):  # WCAG 2.1, contrast ratio of normal text
        assert (max(paper, colour) + 0.05) / (min(paper, colour) + 0.05) >= 4.5


def luminance(colour):
    """Relative luminance of WCAG 2.1 of ``rgb(r, g, b)``."""
    values = np.array([float(v) for v in colour.removeprefix("rgb(").rstrip(")").split(",")[:3]]) / 255
    return np.where(values <= 0.03928, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("width", [1200, 700])
def test_the_page_is_never_wider_than_the_window(show, width):
    page, *_ = show("report", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_legends_lie_above_their_figures(show):
    page, *_ = show("report")
    below = page.evaluate(
        """Array.from(document.querySelectorAll('.plot')).map(p => {
            const legend = p.querySelector('.legend'), plot = p.querySelector('.cartesianlayer .plot');
            return legend && plot ? legend.getBoundingClientRect().bottom - plot.getBoundingClientRect().top : -1;
        })"""
    )
    assert max(below) <= 1


@pytest.mark.parametrize("name", ["bad", "checks"])
def test_pages_without_figures_are_quiet(show, pages, name):
    page, requests, complaints = show(name)
    assert (requests, complaints) == ([pages[name].as_uri()], [])
    assert page.locator(".plot").count() == 0
    assert page.locator(".missing" if name == "bad" else "#controls table").count() >= 1
