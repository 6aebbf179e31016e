"""The sections on gradient noise and stays: their words have the numbers and the regime; what is not there is not said."""

import html
import re

import numpy as np
import pytest
import torch
import xarray as xr

from sgdscope.contracts import Evidence
from sgdscope.errors import Outcome
from sgdscope.landscapes import NoisyQuadratic, walk
from sgdscope.measure import measure
from sgdscope.report import report
from sgdscope.report.page import with_error


def words(path) -> str:
    """The page without scripts, styles and markup."""
    page = re.sub(r"<(script|style)[^>]*>.*?</\1>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", page)))


def steps(updates=100, lr=0.5) -> xr.Dataset:
    t = np.arange(updates)
    return xr.Dataset({"loss": ("step", np.full(updates, 1.5)), "lr": ("step", np.full(updates, lr))}, {"step": t})


def page_of(tmp_path, walker="sgd", **measured) -> str:
    return words(report(Evidence({"walker": walker}, steps(), measured, {"name": "walk"}), tmp_path / "page.html"))


def noise(scale=120.0, error=6.0, size=64.0, n=1000, **more) -> xr.Dataset:
    """Two points; the second is known."""
    trace = np.array([np.nan, 50.0])
    shares = np.array([1 / size, (n - size) / (size * (n - 1))])
    data = {
        "trace": ("step", trace),
        "noise_scale": ("step", [np.nan, scale], {"reason": "not <finite>"}),
        "noise_scale_stderr": ("step", [np.nan, error]),
        "batch_trace": (("step", "drawing"), trace[:, None] * shares),
        "temperature": ("step", [np.nan, 0.0125]),
        "temperature_stderr": ("step", [np.nan, 0.0015]),
    }
    return xr.Dataset(data | more, {"step": [0, 60], "drawing": ["with", "without"]})


@pytest.mark.parametrize(
    ("scale", "error", "told"),
    [
        (128.0, 6.0, "the run has 64: noise-dominated, the noise of a batch being 2 times its signal in squared length."),
        (16.0, 6.0, "the run has 64: signal-dominated, the signal of a batch being 4 times its noise in squared length."),
        (80.0, 9.0, "the run has 64: neither dominates, the noise of a batch being 1.25 times its signal in squared length."),
    ],
)
def test_the_regime_is_that_of_the_interval_of_the_scale(tmp_path, scale, error, told):
    page = page_of(tmp_path, noise=noise(scale, error))
    assert page.count(told) == 2  # at the top of the page, and in its section
    assert f"At update 60 noise and signal of the gradient are equal at a batch of {with_error(scale, error)} examples" in page
    assert "The temperature is 0.0125 ± 0.0015 (loss)." in page


def test_the_price_of_a_batch_follows_the_curved_scale_and_else_the_simple_one(tmp_path):
    curved = {"curved_noise_scale": ("step", [np.nan, 32.0]), "curved_noise_scale_stderr": ("step", [np.nan, 2.5])}
    page = page_of(tmp_path, noise=noise(**curved))
    assert "that batch is 32.0 ± 2.5 (Bnoise), on the other side of the batch." in page
    assert "By 1 + B/Bnoise, twice the batch would need 1.67 times the examples and 0.833 times the updates" in page  # 5 / 3
    plain = page_of(tmp_path, noise=noise(64.0))
    assert "By 1 + B/Bsimple, twice the batch would need 1.5 times the examples and 0.75 times the updates" in plain
    assert "other side" not in plain


def test_a_batch_of_all_examples_has_no_noise(tmp_path):
    page = page_of(tmp_path, noise=noise(size=1000.0))
    assert "the run's batch of 1000 holds all examples: its gradient has no noise." in page
    assert "By 1 + B/Bsimple, half the batch would need 0.554 times the examples and 1.11 times the updates" in page
    assert "The temperature is" not in page


def test_the_population_is_told_with_its_interval_or_that_it_has_none(tmp_path):
    ends = {"population_noise_scale": 150.0, "population_noise_scale_low": 110.0, "population_noise_scale_high": 230.0}
    known = {name: ("step", [np.nan, value]) for name, value in ends.items()}
    page = page_of(tmp_path, noise=noise(**known))
    assert "For the population that the examples are a sample of, it is 150 [110, 230]." in page
    poor = known | {"population_noise_scale_outcome": ("step", np.array([1, Outcome.not_converged], np.int8))}
    page = page_of(tmp_path, noise=noise(**poor))
    assert "|G|² cannot be told from zero: its scale has no upper end." in page
    assert "150" not in page


@pytest.mark.parametrize(
    ("p", "isotropic", "told"),
    [
        (0.3, 0.01, "rank−1.4: a power law is not refused (p = 0.3)."),
        (0.01, 0.02, "rank−1.4: a power law is refused at 5 % (p = 0.01)."),
        (0.3, 0.5, "rank−1.4: a power law is not refused (p = 0.3), and isotropic noise would fall as steeply."),
        (np.nan, np.nan, "rank−1.4; whether that is a power law was not tested"),
    ],
)
def test_a_power_law_is_told_with_its_test(tmp_path, p, isotropic, told):
    values = {"spectrum_exponent": 1.4, "spectrum_p": p, "spectrum_isotropic_p": isotropic}
    page = page_of(tmp_path, noise=noise(**{name: ("step", [np.nan, v]) for name, v in values.items()}))
    assert told in page


def test_what_is_not_known_says_why_and_what_was_not_measured_is_not_there(tmp_path):
    unknown = noise().isel(step=slice(0, 1))
    page = page_of(tmp_path, noise=unknown)
    assert page.count("The noise scale is known at no measured point: not <finite>.") == 2
    assert "the measurement 'noise' holds no element, curvature_eigenvalue; measure it again" in page  # of an older run
    assert "The noise was measured at no point" in page_of(tmp_path, noise=noise().isel(step=slice(0, 0)))
    for measured in ({}, {"noise": xr.Dataset(), "escape": xr.Dataset()}):
        page = page_of(tmp_path, **measured)
        assert "Gradient noise" not in page
        assert "Stays in valleys" not in page
    no_batch = page_of(tmp_path, noise=noise().drop_vars("batch_trace"))
    assert "examples (Bsimple); the batch size of the run is not known." in no_batch


# --- measured for real ------------------------------------------------------------------------------------------------------


def measured_for_real(batch_size=4) -> tuple[dict[str, xr.Dataset], xr.Dataset]:
    """SGD that has settled in a noisy bowl, measured by the real quantities."""
    hessian = torch.diag(torch.tensor([3.1, 0.9, 0.6], dtype=torch.float64))
    generator = torch.Generator().manual_seed(3)
    surface = NoisyQuadratic(hessian, torch.randn(50, 3, generator=generator, dtype=torch.float64), offset=2.0)
    trajectory = walk(
        surface, lr=0.3, updates=40, start=torch.zeros(3).double() + 0.1, batch_size=batch_size, generator=generator
    )
    names = ["valley", "noise", "escape"]
    options = {"noise": {"k": 3, "points": 2, "currents": True}, "escape": {"radius": 0.1}}
    measured = measure(trajectory, surface, names, window=20, **options)
    return {str(name): group.to_dataset() for name, group in measured.children.items()}, trajectory.steps


def test_real_measurements_are_told_with_their_own_numbers(tmp_path):
    measured, scalars = measured_for_real()
    run = Evidence({"walker": "sgd", "batch_size": 4}, scalars, measured, {"name": "walk"})
    page = words(report(run, tmp_path / "page.html"))
    data, height = measured["noise"].isel(step=-1), measured["valley"].isel(window=-1)
    assert f"are equal at a batch of {with_error(float(data['noise_scale']), float(data['noise_scale_stderr']))} examples" in page
    assert f"correlation of {with_error(float(data['correlation']), float(data['correlation_stderr']))}" in page
    assert f"measured in that window: {with_error(float(height['mean_height']), float(height['mean_height_stderr']))}." in page
    assert "At update 40, η λ1 = 0.93, noise alone would hold the loss" in page
    risk, left = (float(measured["escape"][name].sum()) for name in ("at_risk", "escapes"))
    assert risk == 40
    assert f"The walk left the valley at {left:.0f} of 40 updates: a mean stay of" in page
    assert "Stays this short are steps out of the valley as it was given" in page
    drawn = (tmp_path / "page.html").read_text(encoding="utf-8")
    heads = [head for head in re.findall(r"<thead>.*?</thead>", drawn) if "<th>update</th>" in head]
    sizes, shape = (next(head for head in heads if label in head) for label in ("Tr C</th>", "slope of C on H"))
    assert "temperature" in sizes
    assert "slope" not in sizes
    assert "cos(C, H)" in shape
    for title in (
        "height above the floor (loss)",
        "share longer than t",
        "escapes an update",
        "temperature (loss)",
        "mean of signs drawn by chance",
    ):
        assert title in drawn


def test_heights_are_only_predicted_for_sgd_with_noise(tmp_path):
    measured, _ = measured_for_real()
    assert "noise alone would hold" not in page_of(tmp_path, walker="adam", **measured)
    whole, scalars = measured_for_real(batch_size=None)
    run = Evidence({"walker": "sgd"}, scalars, whole, {"name": "walk"})
    assert "none of the measured height is due to noise" in words(report(run, tmp_path / "page.html"))


def test_a_walk_that_stays_has_a_bound_on_its_mean_stay(tmp_path):
    data = xr.Dataset(
        {name: ("window", [value]) for name, value in {"escape_rate": 0.0, "at_risk": 60.0, "escapes": 0.0}.items()},
        {"window_first": ("window", [0]), "window_last": ("window", [60])},
    )
    assert "at none of 60 updates: its mean stay is above 20 updates (95 %)." in page_of(tmp_path, escape=data)
    lost = data.assign({name: ("window", [np.nan]) for name in ("at_risk", "escapes")})
    assert "No update began in a valley, or its points are not finite" in page_of(tmp_path, escape=lost)
