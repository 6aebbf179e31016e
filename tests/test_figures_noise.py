"""Figures of gradient noise, heights and escapes, without pixels: which trace holds which numbers, and what is not drawn."""

import math

import numpy as np
import pytest
import xarray as xr

from sgdscope import figures
from sgdscope.contracts import Evidence
from sgdscope.errors import NotAvailableError, Outcome, UnknownNameError

AT = np.array([0, 40, 80])
SIZE, N, LR, EXAMPLES = 16.0, 200, 0.3, 50.0
BENT = np.array([3.0, 1.2])  # eigenvalues of H
MIXED = np.array([[2.5, 0.4], [0.4, 0.7]])  # C within them
TRACE, BEND = 4.1, 0.6  # Tr C, of which 3.2 within; g'H g
PRODUCT = 9.7  # Tr(HC)


def noise(size=SIZE, momentum=0.0, n=N, lr=LR, **more) -> xr.Dataset:
    """Three points of one covariance and Hessian, at which everything is known."""
    shares = np.array([1 / size, (n - size) / (size * (n - 1))])
    trace = TRACE * np.array([1.0, 2.0, 3.0])
    square = trace / EXAMPLES
    with np.errstate(divide="ignore"):
        signal = np.where(shares > 0, 1 / (shares * EXAMPLES), np.nan)
    data = {
        "trace": ("step", trace),
        "noise_scale": ("step", trace / square),
        "noise_scale_stderr": ("step", np.array([2.0, 3.0, 4.0])),
        "curved_noise_scale": ("step", np.full(3, PRODUCT / BEND)),
        "curved_noise_scale_stderr": ("step", np.full(3, 1.5)),
        "population_noise_scale": ("step", np.array([60.0, 70.0, -80.0])),
        "population_noise_scale_low": ("step", np.array([40.0, 45.0, -np.inf])),
        "population_noise_scale_high": ("step", np.array([90.0, 140.0, np.inf])),
        "population_noise_scale_outcome": ("step", np.array([0, 0, Outcome.not_converged], np.int8)),
        "batch_trace": (("step", "drawing"), trace[:, None] * shares),
        "signal_to_noise": (("step", "drawing"), np.tile(signal, (3, 1))),
        "signal_to_noise_stderr": (("step", "drawing"), np.tile(signal / 20, (3, 1))),
        "learning_ratio": ("step", np.full(3, lr / (size * (1 - momentum)))),
        "temperature": ("step", 1e-5 * trace),
        "temperature_stderr": ("step", 1e-6 * trace),
        "curvature_eigenvalue": (("step", "rank"), np.tile(BENT, (3, 1))),
        "element": (("step", "rank", "other"), np.tile(MIXED, (3, 1, 1))),
        "element_stderr": (("step", "rank", "other"), np.full((3, 2, 2), 0.1)),
        "slope": ("step", np.array([0.7, 0.8, 0.9])),
        "correlation": ("step", np.array([0.91, 0.92, 0.93])),
        "product_trace": ("step", np.full(3, PRODUCT)),
        "hessian_trace": ("step", np.full(3, 5.3)),
        "covariance_eigenvalue": (("step", "rank"), trace[:, None] * np.array([0.6, 0.2])),
        "covariance_eigenvalue_stderr": (("step", "rank"), np.full((3, 2), 0.05)),
        "spectrum_exponent": ("step", np.array([1.3, 1.4, 1.5])),
        "spectrum_p": ("step", np.array([0.5, np.nan, 0.03])),
    }
    coords = {"step": AT, "rank": [1, 2], "other": [1, 2], "drawing": ["with", "without"]}
    coords |= {"window_first": ("window", [0, 40, 80]), "window_last": ("window", [40, 80, 100])}
    return xr.Dataset(data | more, coords)


def steps(lr=LR, batch=SIZE) -> xr.Dataset:
    t = np.arange(100)
    return xr.Dataset({"lr": ("step", np.full(100, lr)), "batch_size": ("step", np.full(100, batch))}, {"step": t})


def valley(**more) -> xr.Dataset:
    data = {"mean_height": ("window", [0.2, 0.1, 0.3]), "mean_height_stderr": ("window", [0.02, 0.01, 0.03])}
    return xr.Dataset(data | more, {"window_first": ("window", [0, 40, 80]), "window_last": ("window", [40, 80, 100])})


def named(figure, start):
    found = [trace for trace in figure.data if trace.name.startswith(start)]
    assert found, [trace.name for trace in figure.data]
    return found


# --- scales -----------------------------------------------------------------------------------------------------------------


def test_the_batch_is_that_of_the_measurement_and_corrected_for_finite_data():
    np.testing.assert_allclose(figures.noise_batch_size(noise()), SIZE, rtol=1e-12)
    np.testing.assert_allclose(figures.noise_batch_size(noise(), finite=True), SIZE * (N - 1) / (N - SIZE), rtol=1e-12)
    assert np.isinf(figures.noise_batch_size(noise(size=200.0), finite=True)).all()
    assert np.isnan(figures.noise_batch_size(noise().drop_vars("batch_trace"))).all()


def test_scales_have_their_intervals_and_lie_beside_the_batch():
    figure = figures.noise_scales(noise(), steps(batch=24.0))
    (simple,) = named(figure, "B<sub>simple</sub> = Tr C")
    np.testing.assert_allclose(simple.y, EXAMPLES, rtol=1e-12)
    np.testing.assert_allclose(simple.error_y.array, 1.959964 * np.array([2.0, 3.0, 4.0]), rtol=1e-6)
    np.testing.assert_allclose(simple.error_y.arrayminus, 1.959964 * np.array([2.0, 3.0, 4.0]), rtol=1e-6)
    np.testing.assert_allclose(named(figure, "B<sub>noise</sub>")[0].y, 9.7 / 0.6, rtol=1e-12)
    np.testing.assert_array_equal(named(figure, "batch size in use")[0].y, 24.0)
    assert figure.layout.yaxis.type == "log"


def test_a_scale_without_an_upper_end_is_not_drawn_and_the_others_keep_their_lopsided_interval():
    (whole,) = named(figures.noise_scales(noise(), steps()), "B<sub>simple</sub> of the population")
    np.testing.assert_array_equal(whole.y, [60.0, 70.0, np.nan])
    np.testing.assert_allclose(whole.error_y.array[:2], [30.0, 70.0], rtol=1e-12)
    np.testing.assert_allclose(whole.error_y.arrayminus[:2], [20.0, 25.0], rtol=1e-12)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "sgdscope measure RUN noise"),
        (noise().drop_vars("noise_scale"), "holds no noise_scale"),
        (
            xr.Dataset({"noise_scale": ("step", [np.nan], {"reason": "not finite"})}, {"step": [0]}),
            "no noise scale is known at any measured point: not finite",
        ),
    ],
)
def test_without_a_scale_there_is_no_figure(data, message):
    with pytest.raises(NotAvailableError, match=message):
        figures.noise_scales(data, steps())


# --- against the Hessian, spectrum, over the updates ------------------------------------------------------------------------


def test_elements_lie_over_the_eigenvalues_and_pairs_at_zero():
    figure = figures.noise_alignment(noise())
    diagonal, pairs = (next(t for t in named(figure, name) if t.xaxis == "x3") for name in ("i = j", "i ≠ j"))
    np.testing.assert_array_equal(diagonal.x, BENT)
    np.testing.assert_array_equal(diagonal.y, [2.5, 0.7])
    np.testing.assert_allclose(diagonal.error_y.array, 0.1959964, rtol=1e-6)
    assert (list(pairs.x), list(pairs.y)) == ([0.0], [0.4])
    slope = next(t for t in named(figure, "slope") if t.xaxis == "x3")
    np.testing.assert_allclose(slope.y, [0.0, 0.9 * 3.0], rtol=1e-12)
    told = [a.text for a in figure.layout.annotations]
    assert "slope 0.90<br>r = 0.93" in told


def test_the_hessian_that_was_not_asked_for_is_said():
    unknown = noise(element=(("step", "rank", "other"), np.full((3, 2, 2), np.nan), {"reason": "not asked for"}))
    with pytest.raises(NotAvailableError, match="element is known at no measured point: not asked for"):
        figures.noise_alignment(unknown)


def test_the_fitted_law_is_drawn_where_its_prefactor_is_known_and_told_where_it_is_not():
    plain = figures.noise_spectrum(noise())
    assert [t.name for t in plain.data] == ["update 0: ~ r<sup>−1.30</sup>, p = 0.5", "update 80: ~ r<sup>−1.50</sup>, p = 0.03"]
    np.testing.assert_allclose(plain.data[1].y, 3 * TRACE * np.array([0.6, 0.2]), rtol=1e-12)
    fitted = figures.noise_spectrum(noise(spectrum_prefactor=("step", [2.0, 3.0, 4.0])))
    (law,) = named(fitted, "~ r<sup>−1.50")
    np.testing.assert_allclose(law.y, 4.0 * np.array([1.0, 2.0]) ** -1.5, rtol=1e-12)


def test_signal_to_noise_and_temperature_carry_their_bars():
    figure = figures.noise_walk(noise())
    np.testing.assert_allclose(named(figure, "with repl")[0].y, SIZE / EXAMPLES, rtol=1e-12)
    np.testing.assert_allclose(named(figure, "without")[0].y, SIZE * (N - 1) / (N - SIZE) / EXAMPLES, rtol=1e-12)
    heat = named(figure, "temperature")[0]
    np.testing.assert_allclose(heat.y, 1e-5 * TRACE * np.array([1, 2, 3]), rtol=1e-12)
    np.testing.assert_allclose(heat.error_y.array, 1.959964e-6 * TRACE * np.array([1, 2, 3]), rtol=1e-6)


def test_currents_are_drawn_beside_chance_with_their_p():
    more = {
        f"lag_asymmetry{end}": ("window", v)
        for end, v in (("", [0.3, 0.1, 0.2]), ("_chance", [0.1] * 3), ("_p", [0.01, 0.6, np.nan]))
    }
    figure = figures.lag_currents(noise(**more))
    walk, chance = figure.data
    np.testing.assert_array_equal(walk.x, [20.0, 60.0, 90.0])
    assert list(walk.text) == ["p = 0.01", "p = 0.6", "p not known"]
    np.testing.assert_array_equal(chance.y, 0.1)
    with pytest.raises(NotAvailableError, match="holds no lag_asymmetry"):
        figures.lag_currents(noise())


# --- heights ----------------------------------------------------------------------------------------------------------------


def settled(lr, size, momentum=0.0) -> float:
    """Tr(H Sigma) / 2 by summing the law of one update until it stays, in the eigenbasis of H."""
    h = np.diag(BENT)
    step = np.block([[np.eye(2) - lr * h, -lr * momentum * np.eye(2)], [h, momentum * np.eye(2)]])
    push = np.vstack([-lr * np.eye(2), np.eye(2)])
    total, kept = np.zeros((4, 4)), push @ MIXED @ push.T / size
    for _ in range(4000):
        total, kept = total + kept, step @ kept @ step.T
    return float(np.trace(h @ total[:2, :2]) / 2)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_heights_are_those_of_the_law_that_the_walk_settles_in(momentum):
    heights = figures.predicted_heights(noise(momentum=momentum), steps())
    size, trace = SIZE * (N - 1) / (N - SIZE), TRACE * np.array([1.0, 2.0, 3.0])
    scale = LR / (4 * size * (1 - momentum))
    np.testing.assert_allclose(heights.sde, scale * trace, rtol=1e-9)
    np.testing.assert_allclose(heights.three_factors, scale * 5.3, rtol=1e-9)
    np.testing.assert_allclose(heights.exact, settled(LR, size, momentum) + scale * (trace - 3.2), rtol=1e-9)
    np.testing.assert_allclose(heights.sharpness, LR * 3.0, rtol=1e-12)
    if momentum:
        assert np.isnan(heights.along).all()
    else:
        np.testing.assert_allclose(heights.along, LR**2 * (PRODUCT / size + BEND) / 8, rtol=1e-9)


def test_the_height_along_an_update_is_that_of_walks_on_a_parabola():
    """With alpha* = 1/2 on average and spread, the mean of a_2 ((alpha* - 1/2)^2 + 1/4) over drawn gradients is not less."""
    random = np.random.default_rng(5)
    gradient = np.array([0.3, -0.2])
    bend = float(gradient @ (BENT * gradient))
    product = float(BENT @ np.diag(MIXED))
    drawn = gradient + random.multivariate_normal(np.zeros(2), MIXED / SIZE, 200_000)
    second = LR**2 * (drawn**2 @ BENT) / 2
    data = noise(n=10**9, product_trace=("step", [product] * 3), curved_noise_scale=("step", [product / bend] * 3))
    assert abs(second.mean() / 4 / figures.predicted_heights(data, steps()).along[0] - 1) < 0.01  # 0.3 % standard error


def test_beyond_the_edge_and_without_noise_there_is_no_settled_height():
    beyond = figures.predicted_heights(noise(lr=0.7), steps(lr=0.7))  # lr lambda_1 = 2.1
    assert np.isnan(beyond.exact).all()
    assert (beyond.sde > 0).all()
    calm = figures.predicted_heights(noise(size=200.0), steps())
    np.testing.assert_array_equal(calm.exact, 0.0)
    with pytest.raises(NotAvailableError, match="the batch holds all examples"):
        figures.height_by_noise(noise(size=200.0), valley(), steps())
    unknown = figures.predicted_heights(noise().drop_vars(["batch_trace", "element", "product_trace"]), steps())
    assert np.isnan([unknown.exact, unknown.sde, unknown.along]).all()


def test_predicted_lines_and_measured_windows_share_the_figure():
    figure = figures.height_by_noise(noise(), valley(height_decay=("window", [0.4, np.nan, 0.6])), steps())
    heights = figures.predicted_heights(noise(), steps())
    np.testing.assert_allclose(named(figure, "E[L] − L*, exact")[0].y, heights.exact, rtol=1e-12)
    np.testing.assert_allclose(named(figure, "E[L] − L*, small lr")[0].y, heights.sde, rtol=1e-12)
    np.testing.assert_allclose(named(figure, "E[L] − L*, by Tr H")[0].y, heights.three_factors, rtol=1e-12)
    assert named(figure, "E[L] − L*, exact")[0].text[0] == "lr λ<sub>1</sub> = 0.9"
    (measured,) = named(figure, "measured along")
    np.testing.assert_array_equal(measured.x, [20.0, 60.0, 90.0])
    np.testing.assert_array_equal(measured.error_x.array, [20.0, 20.0, 10.0])
    np.testing.assert_array_equal(named(figure, "measured by decay")[0].y, [0.4, np.nan, 0.6])
    with pytest.raises(NotAvailableError, match="'valley' was not measured"):
        figures.height_by_noise(noise(), None, steps())


# --- escapes ----------------------------------------------------------------------------------------------------------------


def escape() -> xr.Dataset:
    """Stays of 2, 3 and (cut off) 3 updates in the first window, of 4 (cut off) in the second, which nothing left."""
    left = np.array([0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], float)
    rate = {"escape_rate": [0.25, 0.0], "escape_rate_low": [0.03, 0.0], "escape_rate_high": [0.7, 0.9]}
    data = {name: ("window", v) for name, v in rate.items()}
    data |= {"at_risk": ("window", [8.0, 4.0]), "escapes": ("window", [2.0, 0.0])}
    data |= {"inside": ("step", np.ones(12)), "left": ("step", left)}
    coords = {"step": np.arange(12), "window_first": ("window", [0, 8]), "window_last": ("window", [8, 12])}
    return xr.Dataset(data, coords)


def test_rates_have_their_intervals_and_a_window_without_escapes_its_upper_end():
    figure = figures.escape_rates(escape())
    (rate,), (most,) = named(figure, "rate"), named(figure, "at most")
    assert (list(rate.x), list(rate.y), list(most.x), list(most.y)) == ([4.0], [0.25], [10.0], [0.9])
    np.testing.assert_allclose([rate.error_y.array[0], rate.error_y.arrayminus[0]], [0.45, 0.22], rtol=1e-12)
    assert rate.text[0] == "2 escapes in 8 updates"
    unknown = escape().assign({f"escape_rate{end}": ("window", [np.nan] * 2) for end in ("", "_low", "_high")})
    with pytest.raises(NotAvailableError, match="no rate of escape is known"):
        figures.escape_rates(unknown)


def test_stays_that_are_cut_off_count_as_at_risk_until_then():
    figure = figures.dwell_times(escape())
    (curve,), (cut,), (odds,) = (
        named(figure, "stays"),
        named(figure, "cut off by the end"),
        named(figure, "equal"),
    )
    np.testing.assert_allclose(curve.x, [0.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(curve.y, [1.0, 0.75, 0.75 * 2 / 3, 0.75 * 2 / 3], rtol=1e-12)  # of the three at 3, one ended
    np.testing.assert_allclose(cut.x, [3.0, 4.0])
    np.testing.assert_allclose(cut.y, [0.5, 0.5], rtol=1e-12)
    np.testing.assert_allclose(odds.y[-1], (1 - 2 / 12) ** 4, rtol=1e-12)
    assert cut.name.endswith("(2 of 4)")
    assert odds.name == "equal odds at each update, mean 6"


def test_survival_of_equal_odds_is_that_of_the_law():
    random = np.random.default_rng(2)
    lengths, limit = random.geometric(0.2, 20_000).astype(float), random.geometric(0.1, 20_000).astype(float)
    at, share = figures.survival(np.minimum(lengths, limit), lengths > limit)
    near = at <= 10
    assert near.sum() == 10
    np.testing.assert_allclose(share[near], 0.8 ** at[near], atol=0.02)  # standard error at most 0.006


def test_no_escape_no_curve():
    with pytest.raises(NotAvailableError, match="no stay has ended"):
        figures.dwell_times(escape().isel(window=slice(1, 2)))


def study(batch, seed, tau, lr=0.5, escapes=400) -> Evidence:
    told = {"tau": tau, "escapes": escapes, "diverged": 0, "sharpness": 2.0, "exponential_p": 0.5}
    settings = {
        "seed": seed,
        "potential": {"kind": "wells"},
        "noise": {"kind": "shaped", "batch_size": batch},
        "lr": lr,
        "k": 1.0,
    }
    return Evidence(settings, xr.Dataset(), {}, told)


def test_waiting_times_lie_on_the_line_of_their_law():
    slope, constant = 0.9, 2.0  # log tau + log lr = slope B + constant
    runs = [study(b, seed, math.exp(slope * b + constant) / 0.5) for b in (1.0, 2.0, 4.0) for seed in (3, 4)]
    figure = figures.waiting_times([*runs, study(3.0, 3, 5.0, escapes=4)], "batch_size")
    markers, line = figure.data
    np.testing.assert_allclose(markers.y, slope * np.asarray(markers.x) + constant, rtol=1e-12)
    np.testing.assert_allclose(markers.error_y.array, 1.959964 / 20, rtol=1e-6)
    np.testing.assert_allclose(line.y, slope * np.array([1.0, 4.0]) + constant, rtol=1e-9)
    assert line.name.startswith("slope 0.900 [")
    assert line.name.endswith("r = 1.000")
    assert [a.text for a in figure.layout.annotations] == ["1 of 7 runs left out"]
    assert figure.layout.xaxis.title.text == "batch size B"


def test_a_law_that_is_not_known_or_not_asked_here_is_refused():
    with pytest.raises(UnknownNameError, match="no law is called 'batch'"):
        figures.waiting_times([study(2.0, 1, 90.0)], "batch")
    with pytest.raises(NotAvailableError, match="none of 1 escape experiments has the setting of the law 'temperature'"):
        figures.waiting_times([study(2.0, 1, 90.0)], "temperature")
