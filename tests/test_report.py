"""The page: what stands in it for good, bad, half and empty runs."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import xarray as xr

from sgdscope.contracts import Evidence, Verdict
from sgdscope.errors import ArgumentError
from sgdscope.records import NONFINITE, Header, Snapshot, StepBlock
from sgdscope.report import page_of_verdicts, report
from sgdscope.stores.zarr import ZarrStore
from sgdscope.vector import Layout

NASTY = "</script><img src=x onerror=alert(1)>"


def measured_walk(updates=120, windows=((0, 60), (60, 120)), **settings) -> Evidence:
    """A made-up walk whose numbers are told apart at a glance."""
    t = np.arange(updates)
    columns = {"loss": 2.0 + np.cos(t), "lr": np.full(updates, 0.35), "gradient_cosine": np.full(updates, -0.4)}
    steps = xr.Dataset({n: ("step", v) for n, v in (columns | {"distance": 0.3 * t**0.5}).items()}, {"step": t})
    per_step = {"loss_start": 1.2, "loss_end": 1.2, "a1": -0.4, "a2": 0.4, "alpha_star": 0.5, "height_start": 0.1}
    n = len(windows)
    per_window = {
        "interior_share": np.linspace(0.61, 0.83, n),
        "interior_share_low": np.linspace(0.52, 0.75, n),
        "interior_share_high": np.linspace(0.7, 0.9, n),
        "mean_height": np.linspace(0.0912, 0.0376, n),
        "mean_height_stderr": np.full(n, 0.0021),
        "eta_gni": np.full(n, 1.97),
    }
    coords = {"step": t, "window_first": ("window", [a for a, _ in windows]), "window_last": ("window", [b for _, b in windows])}
    valley = xr.Dataset(
        {**{k: ("step", np.full(updates, v)) for k, v in per_step.items()}, **{k: ("window", v) for k, v in per_window.items()}},
        coords,
        {"surface": json.dumps({"N": 1497, "hash": "c0ffee"}), "options": "{}"},
    )
    motion = xr.Dataset({"distance_exponent": 1.0}, {"window_first": valley["window_first"]})
    return Evidence(
        {"walker": "sgd", "batch_size": 64, **settings}, steps, {"valley": valley, "motion": motion}, {"name": "walk"}
    )


def stored(path, evidence=None, snapshots=(0, 1, 2), settings=None, **columns):
    """A run directory with scalars, snapshots and measurements."""
    layout = Layout.of({"w": torch.zeros(2, dtype=torch.float64)})
    store = ZarrStore(path)
    store.begin(Header(layout, Layout.of({}), settings or {"seed": 5, "torch": "2.13.0", "threads": 1}))
    if evidence is not None:
        columns = {str(name): evidence.steps[name].values for name in evidence.steps.data_vars}
    if columns:
        store.write_steps(StepBlock(np.arange(len(next(iter(columns.values())))), columns))
    for step in snapshots:
        store.write_snapshot(Snapshot(step, torch.full((2,), 1.0 + step, dtype=torch.float64), torch.zeros(0)))
    store.close()
    for name, data in (evidence.measured if evidence else {}).items():
        ZarrStore.write_measurement(path, name, data)
    return path


class Text(HTMLParser):
    """The words of a page, without scripts and styles, and its elements."""

    def __init__(self, page):
        super().__init__()
        self.words, self.tags, self.skipping = [], [], False
        self.feed(re.sub(r"(<script>).*?</script>", r"\1</script>", page.read_text(encoding="utf-8"), flags=re.DOTALL))
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.skipping = tag in {"script", "style"}

    def handle_endtag(self, tag):
        self.skipping = False

    def handle_data(self, data):
        if not self.skipping:
            self.words.append(data)

    @property
    def plots(self):
        return sum(attrs.get("class") == "plot" for _, attrs in self.tags)


def test_a_measured_run_directory_gives_the_whole_page(tmp_path):
    run = stored(tmp_path / "steep", measured_walk())
    page = Text(report(run, tmp_path / "deep" / "page.html"))
    assert "The walk with SGD: steep" in page.text
    assert "83% of the updates (median α* 0.5): it bounces between the walls" in page.text
    assert "0.0376 ± 0.0021" in page.text
    assert "point against each other on average (cosine −0.4" in page.text
    assert page.plots == 6  # two windows, scalars, height, floor, distance
    assert "torch" in page.text
    assert "2.13.0" in page.text
    assert "c0ffee" in page.text  # the surface's fingerprint
    assert "What α* near ½ does not show" in page.text


def test_runs_in_memory_and_several_of_one_name(tmp_path):
    page = Text(report([measured_walk(), measured_walk(seed=9)], tmp_path / "page.html", title="Two walks"))
    assert "Two walks" in page.text
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {"run-1", "run-2", "verdicts", "settings", "guide"} <= set(ids)
    links = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert links <= set(ids)
    assert "walk (2)" in page.text


def test_nothing_is_fetched_and_nothing_from_a_run_is_markup(tmp_path):
    run = measured_walk(walker=NASTY + "<sup>", batch_size=NASTY, experiment={"name": NASTY, NASTY: [NASTY]})
    run = Evidence(run.settings, run.steps.assign({NASTY: ("step", np.arange(120.0))}), run.measured, {"name": NASTY})
    verdict = Verdict("W1", "supported", 0.9, (0.8, 1.0), 5, 0.5, NASTY, {NASTY: 1.0})
    page = Text(report(run, tmp_path / "page.html", verdicts=[verdict], title=NASTY))
    assert not [attrs for tag, attrs in page.tags if tag in {"img", "link", "iframe"} and attrs.get("href") != "data:,"]
    assert not [attrs for _, attrs in page.tags if "src" in attrs or str(attrs.get("href", "")).startswith("http")]
    assert page.text.count(NASTY) >= 4
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_plotly_is_embedded_once(tmp_path):
    text = report([measured_walk()] * 3, tmp_path / "page.html").read_text()
    assert 4e6 < len(text) < 7e6
    assert text.count("Plotly.newPlot(plot") == 1


def test_figures_read_back_as_json(tmp_path):
    text = report(measured_walk(), tmp_path / "page.html").read_text()
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert len(found) == 6
    names = {trace.get("name") for figure in found for trace in json.loads(figure)["data"]}
    assert {"iterates θ<sub>t</sub>", "sgd, batch 64", "walk"} <= names


@pytest.mark.parametrize(("count", "drawn"), [(6, 6), (7, 3), (9, 3)])
def test_many_windows_are_thinned_and_it_is_said(tmp_path, count, drawn):
    run = measured_walk(updates=10 * count, windows=[(10 * i, 10 * i + 10) for i in range(count)])
    page = Text(report(run, tmp_path / "page.html"))
    assert page.plots == drawn + 4
    assert (f"{count} windows; the first, the middle and the last are drawn" in page.text) == (count > 6)
    assert f"{10 * count - 10} to {10 * count - 1}" in page.text


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.52, 0.7, "it bounces"), (0.2, 0.45, "most updates do not cross"), (0.4, 0.7, "cannot be told")],
)
def test_words_leave_open_what_the_interval_leaves_open(tmp_path, low, high, words):
    run = measured_walk()
    bounds = {"interior_share_low": ("window", [low, low]), "interior_share_high": ("window", [high, high])}
    run = Evidence(run.settings, run.steps, {"valley": run.measured["valley"].assign(bounds)}, {})
    assert words in Text(report(run, tmp_path / "page.html")).text


# --- bad, half and empty runs --------------------------------------------------------------------------------------------


def test_an_empty_run_says_what_is_missing(tmp_path):
    page = Text(report(stored(tmp_path / "empty", snapshots=()), tmp_path / "page.html"))
    assert "no update is on record" in page.text
    assert "sgdscope run EXPERIMENT.toml" in page.text
    assert page.plots == 0


def test_a_folder_that_is_no_run_says_so(tmp_path):
    (tmp_path / "other").mkdir()
    page = Text(report(tmp_path / "other", tmp_path / "page.html"))
    assert "The run cannot be read" in page.text


def test_an_unmeasured_run_names_the_command(tmp_path):
    run = stored(tmp_path / "raw", loss=np.array([2.0, 1.5]))
    page = Text(report(run, tmp_path / "page.html"))
    assert f"sgdscope measure {run} valley motion" in page.text
    assert page.plots == 1


def test_a_run_without_consecutive_snapshots_names_the_schedule(tmp_path):
    page = Text(report(stored(tmp_path / "sparse", snapshots=(0, 5), loss=np.ones(6)), tmp_path / "page.html"))
    assert "snapshots=sgdscope.bursts()" in page.text


def test_a_run_without_motion_asks_for_motion_only(tmp_path):
    run = measured_walk()
    run = stored(tmp_path / "half", Evidence(run.settings, run.steps, {"valley": run.measured["valley"]}))
    page = Text(report(run, tmp_path / "page.html"))
    assert f"sgdscope measure {run} motion" in page.text
    assert page.plots == 6


def test_a_valley_without_a_variable_gives_a_sentence_in_its_place(tmp_path):
    run = measured_walk()
    run = Evidence(run.settings, run.steps, {"valley": run.measured["valley"].drop_vars(["alpha_star", "mean_height"])})
    page = Text(report(run, tmp_path / "page.html"))
    assert "holds no alpha_star" in page.text
    assert "no run has a mean height" in page.text
    assert page.plots == 2


def test_a_diverged_run_is_marked(tmp_path):
    loss = np.array([1.0, 9.0, np.inf, np.nan])
    run = stored(tmp_path / "wild", loss=loss, flags=np.array([0.0, 0.0, NONFINITE, NONFINITE]))
    page = Text(report(run, tmp_path / "page.html"))
    assert "2 updates were not finite" in page.text
    assert "not finite: 2, 3." in page.text


def test_a_run_without_a_finite_loss_says_why_that_may_be(tmp_path):
    page = Text(report(stored(tmp_path / "nan", loss=np.full(3, np.nan)), tmp_path / "page.html"))
    assert "recorder.loss(model, batch)" in page.text


@pytest.mark.parametrize("part", ["steps", "measurements"])
def test_a_damaged_run_still_gives_the_rest(tmp_path, part):
    run = stored(tmp_path / "torn", measured_walk())
    chunks = [p for p in run.rglob("*") if p.is_file() and part in p.parts and p.name != "zarr.json" and p.stat().st_size > 100]
    assert chunks
    for chunk in chunks:
        chunk.write_bytes(chunk.read_bytes()[:50])
    page = Text(report(run, tmp_path / "page.html"))
    assert "cannot be read" in page.text
    assert "seed" in page.text  # settings are still there


@pytest.mark.parametrize(("run", "message"), [([], "empty list"), ("nowhere", "does not exist")])
def test_no_run_is_an_error(tmp_path, run, message):
    with pytest.raises(ArgumentError, match=message):
        report(tmp_path / run if run else run, tmp_path / "page.html")


# --- verdicts ------------------------------------------------------------------------------------------------------------

VERDICTS = [
    Verdict(
        "W3",
        "supported",
        -0.214,
        (-0.31, -0.12),
        60,
        0.0,
        "The mean cosine is below 0.",
        {"eta_gni": 1.98},
        0.03125,
        {"run": "steep"},
    ),
    {
        "claim": "W2",
        "verdict": "not in regime",
        "statistic": None,
        "interval": [None, None],
        "n": 0,
        "threshold": 0.5,
        "reason": "No.",
    },
]


def test_verdicts_show_every_number_and_the_note(tmp_path):
    page = Text(report(measured_walk(), tmp_path / "page.html", verdicts=VERDICTS))
    for part in (
        "−0.214",
        "[−0.31, −0.12]",
        "60",
        "The mean cosine is below 0.",
        "eta_gni 1.98",
        "0.0312",
        "✓ supported",
        "– not in regime",
    ):
        assert part in page.text
    assert "Reasons and numbers of steep" in page.text
    assert "not corrected for the number of claims" in page.text
    assert "Of 2 claims checked: 1 supported, 1 not in regime" in page.text


def test_what_verdicts_of_one_run_share_is_said_once(tmp_path):
    regime = {"eta_gni": 1.98, "batchnorm": "none"}
    both = [
        Verdict(claim, "supported", 0.9, (0.8, 1.0), 5, 0.5, "Yes.", {**regime, "own": own}, details={"run": "steep"})
        for claim, own in (("W1", 0.25), ("W2", 0.75))
    ]
    page = Text(report(measured_walk(), tmp_path / "page.html", verdicts=both))
    assert "Run steep." in page.text
    assert page.text.count("eta_gni 1.98") == 1
    assert "Regime of all: eta_gni 1.98, batchnorm none." in page.text
    assert all(f"Regime: own {own}." in page.text for own in (0.25, 0.75))
    assert "smallest p" not in page.text  # none of them has one


def test_verdicts_on_several_runs_stand_side_by_side(tmp_path):
    asked = [
        Verdict("W1", answer, 0.9, (0.8, 1.0), 5, 0.5, f"For {run}.", details={"run": run})
        for run, answer in (("steep", "supported"), ("flat", "contradicted"))
    ]
    page = Text(report([measured_walk(), measured_walk()], tmp_path / "page.html", verdicts=asked))
    assert re.search(
        r"claim\s*steep\s*flat\s*W1 The training loss along one update is roughly convex.\s*✓ supported\s*✗ contr", page.text
    )
    assert all(f"Reasons and numbers of {run}" in page.text and f"For {run}." in page.text for run in ("steep", "flat"))


def test_claims_stand_in_the_order_of_their_numbers(tmp_path):
    asked = [
        Verdict(claim, "supported", 0.9, (0.8, 1.0), 5, 0.5, "Yes.", details={"run": run})
        for run, claim in (("steep", "W11"), ("steep", "W2"), ("flat", "W9"), ("flat", "S10"), ("flat", "S6"))
    ]
    text = Text(report([measured_walk(), measured_walk()], tmp_path / "page.html", verdicts=asked)).text
    matrix = text[: text.index("Reasons and numbers")]
    assert re.findall(r"([SW]\d+) [A-Z]", matrix) == ["S6", "S10", "W2", "W9", "W11"]


def test_what_is_not_the_answer_is_folded_and_still_there(tmp_path):
    page = Text(report([measured_walk(), measured_walk(seed=9)], tmp_path / "page.html"))
    parts = [attrs["id"] for tag, attrs in page.tags if tag == "details" and "id" in attrs]
    assert {"run-1-scalars", "run-2-scalars"} <= set(parts)
    assert len([1 for tag, attrs in page.tags if tag == "details" and "open" in attrs]) == 0
    at = [tag for tag, _ in page.tags]
    assert at.index("details") > at.index("h2")
    assert all(attrs.get("aria-label") for _, attrs in page.tags if attrs.get("class") == "plot")


def test_several_runs_are_a_table_at_the_top_and_words_in_their_sections(tmp_path):
    page = Text(report([measured_walk(), measured_walk(seed=9)], tmp_path / "page.html"))
    top, rest = page.text.split("What was seen")[1].split("Height, floor and distance", 1)
    assert "bounces between the walls" in top
    assert "0.0376 ± 0.0021" in top
    assert "83% of the updates (median α* 0.5): it bounces between the walls" not in top
    assert "83% of the updates (median α* 0.5): it bounces between the walls" in rest


def test_no_verdicts_name_the_command(tmp_path):
    assert "sgdscope check --run RUN" in Text(report(measured_walk(), tmp_path / "page.html")).text


def test_page_of_verdicts_shows_controls_side_by_side(tmp_path):
    controls = [
        {"claim": "W3", "control": "positive", "verdict": "supported"},
        {"claim": "W3", "control": "negative", "verdict": "contradicted"},
        {"claim": "W2", "control": "positive", "verdict": "undecided"},
    ]
    page = Text(page_of_verdicts(VERDICTS, controls, tmp_path / "checks.html"))
    assert "✗ contradicted" in page.text
    assert "negative" in page.text
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == ["verdicts", "controls"]
    assert "--controls" in Text(page_of_verdicts(VERDICTS, [], tmp_path / "checks.html")).text
