"""Figures without pixels: which trace holds which numbers."""

import numpy as np
import pytest
import xarray as xr

from sgdscope import figures
from sgdscope.contracts import Evidence
from sgdscope.errors import NotAvailableError
from sgdscope.records import NONFINITE

SHARP, CENTRE, LOWEST = 3.2, 0.7, 0.35  # L(x) = SHARP/2 (x - CENTRE)^2 + LOWEST


def loss(x):
    return SHARP / 2 * (x - CENTRE) ** 2 + LOWEST


def descend(lr, updates=12, start=2.5, curves_from=0, **settings) -> Evidence:
    """Gradient descent on a parabola, measured exactly: alpha* = 1/(lr SHARP), and its curve at 0, 1/4, ..., 1."""
    x = CENTRE + (start - CENTRE) * (1 - lr * SHARP) ** np.arange(updates + 1)
    t, d, g = np.arange(updates), np.diff(x), SHARP * (x[:-1] - CENTRE)
    cosine = np.append(np.nan, np.sign(g[1:] * g[:-1]))
    steps = {"loss": loss(x[:-1]), "lr": np.full(updates, lr), "gradient_cosine": cosine, "distance": np.abs(x[:-1] - x[0])}
    alpha, curved = np.linspace(0, 1, 5), np.arange(curves_from, updates)
    a1, a2 = g * d, SHARP / 2 * d**2
    heights = {"height_start": a1**2 / (4 * a2), "height_end": a2 * (1 + a1 / (2 * a2)) ** 2}
    points = {"loss_start": loss(x[:-1]), "loss_end": loss(x[1:]), "a1": a1, "a2": a2, "alpha_star": -a1 / (2 * a2)}
    half = updates // 2
    valley = xr.Dataset(
        {
            **{name: ("step", values) for name, values in (points | heights).items()},
            "curve": (("step_curve", "alpha"), loss(x[curved][:, None] + alpha * d[curved][:, None])),
            "mean_height": ("window", [0.04, 0.02]),
            "mean_height_stderr": ("window", [0.004, 0.003]),
        },
        coords={
            "step": t,
            "step_curve": curved,
            "alpha": alpha,
            "window_first": ("window", [0, half]),
            "window_last": ("window", [half, updates]),
        },
    )
    motion = xr.Dataset({"gradient_cosine_predicted": ("window", [-0.31, -0.62])}, valley[["window_first"]].coords)
    data = xr.Dataset({name: ("step", values) for name, values in steps.items()}, {"step": t})
    return Evidence(settings, data, {"valley": valley, "motion": motion}, {"name": "a <b>run</b>"})


def traces(figure, word):
    return [trace for trace in figure.data if word in (trace.name or "")]


def only(figure, word):
    found = traces(figure, word)
    assert len(found) == 1, [trace.name for trace in figure.data]
    return found[0]


def text_of(figure):
    return " ".join(a.text for a in figure.layout.annotations)


# --- the three panels --------------------------------------------------------------------------------------------------


def test_iterates_lie_at_their_updates_and_losses():
    run = descend(0.5)  # lr SHARP = 1.6
    marks = only(figures.valley_walk(run.measured, run.steps, (3, 9)), "iterates")
    np.testing.assert_array_equal(marks.x, np.arange(3, 10))
    x = CENTRE + 1.8 * (-0.6) ** np.arange(3, 10)
    np.testing.assert_allclose(marks.y, loss(x), rtol=1e-12)
    assert marks.mode == "markers"


def test_floor_lies_at_alpha_star_and_at_the_bottom():
    run = descend(0.5)
    floor = only(figures.valley_walk(run.measured, run.steps, (3, 9)), "floor")
    np.testing.assert_allclose(floor.x, np.arange(3, 9) + 1 / 1.6, rtol=1e-12)
    np.testing.assert_allclose(floor.y, LOWEST, rtol=1e-12)
    np.testing.assert_array_equal(floor.marker.opacity, 1)


def test_floor_of_a_crooked_step_lies_on_its_measured_curve():
    run = descend(0.5)
    valley = run.measured["valley"].copy(deep=True)
    valley["curve"][2] = [0.0, -5.0, -7.0, -6.0, 0.0]
    floor = only(figures.valley_walk({"valley": valley}, run.steps, (2, 3)), "floor")
    # through (1/4, -5), (1/2, -7), (3/4, -6): -7 - 2 u + 24 u^2 with u = alpha - 1/2, lowest at u = 1/24
    np.testing.assert_allclose((floor.x[0], floor.y[0]), (2.5 + 1 / 24, -7 - 1 / 24), rtol=1e-12)


def test_floor_beyond_the_step_is_the_lower_end_and_unmarked():
    run = descend(0.2)  # lr SHARP = 0.64: alpha* = 1.5625
    floor = only(figures.valley_walk(run.measured, run.steps, (0, 6)), "floor")
    np.testing.assert_array_equal(floor.x, np.arange(1, 7))
    np.testing.assert_allclose(floor.y, run.measured["valley"]["loss_end"].values[:6], rtol=1e-12)
    np.testing.assert_array_equal(floor.marker.opacity, 0)


def test_curve_is_drawn_at_fractional_updates():
    run = descend(0.5)
    path = only(figures.valley_walk(run.measured, run.steps, (2, 4)), "measured")
    x = CENTRE + 1.8 * (-0.6) ** np.arange(2, 5)
    np.testing.assert_allclose(path.x, [2, 2.25, 2.5, 2.75, 3, 3, 3.25, 3.5, 3.75, 4])
    np.testing.assert_allclose(path.y[2], loss((x[0] + x[1]) / 2), rtol=1e-12)
    np.testing.assert_allclose(path.y[6], loss(0.75 * x[1] + 0.25 * x[2]), rtol=1e-12)


def test_curve_outside_of_the_step_is_not_drawn():
    run = descend(0.5)
    valley = run.measured["valley"].assign_coords(alpha=[-0.5, 0.25, 0.5, 0.75, 1.5])
    path = only(figures.valley_walk({"valley": valley}, run.steps, (2, 3)), "measured")
    np.testing.assert_allclose(path.x, [2, 2.25, 2.5, 2.75, 3])
    np.testing.assert_allclose(path.y[[0, -1]], valley["loss_start"].values[2:4], rtol=1e-12)


def test_updates_without_a_curve_show_their_parabola_and_say_so():
    run = descend(0.5, curves_from=4)
    figure = figures.valley_walk(run.measured, run.steps, (2, 6))
    parabola, path = only(figure, "parabola"), only(figure, "measured")
    assert (parabola.x.min(), parabola.x.max(), path.x.min(), path.x.max()) == (2, 4, 4, 6)
    x = CENTRE + 1.8 * (-0.6) ** np.arange(2, 5)
    np.testing.assert_allclose(parabola.y[np.isclose(parabola.x, 2.3)], loss(0.7 * x[0] + 0.3 * x[1]), rtol=1e-12)


def test_a_gap_between_updates_is_not_bridged():
    run = descend(0.5)
    valley = run.measured["valley"].sel(step=[2, 5])
    path = only(figures.valley_walk({"valley": valley.isel(step_curve=[2, 5])}, run.steps, (2, 6)), "measured")
    assert np.isnan(path.y).sum() == 1
    assert not ((path.x > 3) & (path.x < 5)).any()


def test_panels_share_one_axis():
    run = descend(0.5)
    figure = figures.valley_walk(run.measured, run.steps, (3, 9))
    assert figure.layout.xaxis.matches == figure.layout.xaxis2.matches == "x3"
    assert [tuple(a.range) for a in (figure.layout.xaxis, figure.layout.xaxis2, figure.layout.xaxis3)] == [(2.5, 9.5)] * 3
    cosine, distance = only(figure, "cos(g"), only(figure, "|θ")
    assert (cosine.yaxis, distance.yaxis) == ("y2", "y3")
    np.testing.assert_array_equal(cosine.x, np.arange(3, 10))
    np.testing.assert_array_equal(cosine.y, -1)
    np.testing.assert_allclose(distance.y, np.abs(1.8 * ((-0.6) ** np.arange(3, 10) - 1)), rtol=1e-12)


def test_predicted_cosine_is_the_windows_own():
    run = descend(0.5)
    predicted = only(figures.valley_walk(run.measured, run.steps, (6, 12)), "if stationary")
    np.testing.assert_array_equal(predicted.y, [-0.62, -0.62])
    assert predicted.yaxis == "y2"


def test_what_was_not_recorded_is_said_in_its_panel():
    run = descend(0.5)
    figure = figures.valley_walk(run.measured, run.steps.drop_vars("distance"), (3, 9))
    assert "not recorded: distance" in text_of(figure)
    assert not traces(figure, "|θ")


def test_updates_that_are_not_finite_are_marked():
    run = descend(0.5)
    flags = np.zeros(12, np.int8)
    flags[[4, 7]] = NONFINITE
    figure = figures.valley_walk(run.measured, run.steps.assign(flags=("step", flags)), (3, 9))
    assert [s.x0 for s in figure.layout.shapes if s.x0 == s.x1] == [4, 7]
    assert "2 updates not finite" in text_of(figure)


@pytest.mark.parametrize(
    ("measured", "message"),
    [({}, "sgdscope measure RUN valley"), ({"valley": xr.Dataset(coords={"step": [0]})}, "holds no loss_start, alpha_star")],
)
def test_without_the_valley_the_error_says_how_to_get_it(measured, message):
    with pytest.raises(NotAvailableError, match=message):
        figures.valley_walk(measured, descend(0.5).steps, (0, 6))


def test_a_window_without_updates_is_an_error():
    run = descend(0.5)
    with pytest.raises(NotAvailableError, match="updates 40 to 59"):
        figures.valley_walk(run.measured, run.steps, (40, 60))


# --- across runs -------------------------------------------------------------------------------------------------------


def test_height_against_lr_has_one_point_a_window():
    runs = [descend(0.2, batch_size=64, walker="sgd"), descend(0.5, batch_size="full", walker="sgd")]
    figure = figures.height_against_lr(runs)
    assert [trace.name for trace in figure.data] == ["sgd, batch 64", "sgd, batch full"]
    np.testing.assert_array_equal(figure.data[0].y, [0.04, 0.02])
    np.testing.assert_allclose(figure.data[1].x, [0.5 / 1.03, 0.5], rtol=1e-12)
    np.testing.assert_allclose(figure.data[1].error_y.array, [0.004 * 1.96, 0.003 * 1.96], rtol=1e-4)
    assert [list(trace.marker.symbol) for trace in figure.data] == [["circle-open", "circle"], ["square-open", "square"]]
    assert figure.data[1].text[1].endswith("lr 0.5, height 0.0200 [0.0141, 0.0259]")  # 1.96 x 0.003
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")


@pytest.mark.parametrize(("height", "rounding"), [(-0.01, 0.0), (0.04, 0.015), (np.nan, 0.0)])
def test_heights_within_rounding_are_left_out_and_counted(height, rounding):
    run = descend(0.2)
    window = {"mean_height": ("window", [height, 0.05]), "noise_floor": ("window", [rounding, 0.015])}
    measured = {"valley": run.measured["valley"].assign(window)}
    figure = figures.height_against_lr([Evidence({}, run.steps, measured)])
    np.testing.assert_array_equal(figure.data[0].y, [0.05])
    assert "1 windows" in text_of(figure)


def test_no_height_at_all_is_an_error():
    with pytest.raises(NotAvailableError, match="measure the quantity 'valley'"):
        figures.height_against_lr([Evidence({}, descend(0.2).steps, {})])


def test_runs_are_told_apart_without_their_colours():
    figure = figures.distance_law([descend(0.2), descend(0.5)])
    walked = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [trace.marker.symbol for trace in walked] == ["circle", "square"]


def test_floor_position_has_one_box_a_run_and_marks_one_half():
    figure = figures.floor_position([descend(0.2), descend(0.5)])
    np.testing.assert_allclose(figure.data[0].x, 1 / 0.64, rtol=1e-9)
    np.testing.assert_allclose(figure.data[1].x, 1 / 1.6, rtol=1e-9)
    assert {shape.x0 for shape in figure.layout.shapes if shape.type == "line"} == {0, 0.5, 1}
    assert "stationary" in text_of(figure)


def test_floor_beyond_the_axis_is_counted():
    figure = figures.floor_position([descend(0.1)])  # alpha* = 3.125 everywhere
    assert "100% beyond" in figure.data[0].name


def test_names_are_escaped():
    figure = figures.floor_position([descend(0.5)])
    assert figure.data[0].name == "a &lt;b&gt;run&lt;/b&gt;"


def test_distance_law_draws_walk_power_and_logarithm():
    t = np.arange(0, 400)
    distance = 1.7 * t**0.3
    steps = xr.Dataset({"distance": ("step", distance)}, {"step": t + 50})  # attached at update 50
    motion = xr.Dataset({"distance_exponent": 0.6, "log_slope": 2.2, "log_r2": 0.9})
    figure = figures.distance_law([Evidence({}, steps, {"motion": motion}, {"name": "walk"})])
    walk, power, logarithm = figure.data
    assert walk.x[0] == 1
    assert walk.x[-1] == 399
    np.testing.assert_allclose(walk.y, 1.7 * walk.x**0.3, rtol=1e-12)
    np.testing.assert_allclose(power.y, walk.y, rtol=1e-10)  # c/2 = 0.3 and the prefactor fit exactly
    rises = np.diff(logarithm.y) / np.diff(np.log(logarithm.x))
    np.testing.assert_allclose(rises[np.isfinite(rises)], 2.2, rtol=1e-9)
    assert (walk.line.dash, power.line.dash, logarithm.line.dash) == ("solid", "dash", "dot")


def test_distance_law_without_fits_shows_the_walk_alone():
    assert len(figures.distance_law([descend(0.2)]).data) == 1


def test_no_distance_is_an_error():
    run = descend(0.5)
    with pytest.raises(NotAvailableError, match="two updates or more"):
        figures.distance_law([Evidence({}, run.steps.isel(step=slice(0, 2)), {})])


# --- series ------------------------------------------------------------------------------------------------------------


def test_series_of_the_user_are_drawn_with_the_recorders_own():
    run = descend(0.5)
    steps = run.steps.assign(accuracy=("step", np.linspace(0.1, 0.9, 12)), lr_1=("step", np.ones(12)))
    steps = steps.assign(theta_hash_high=("step", np.arange(12.0)))
    assert figures.user_series(steps) == ["accuracy"]
    figure = figures.scalar_series(steps)
    assert [trace.name for trace in figure.data] == ["loss", "lr", "accuracy"]
    np.testing.assert_array_equal(figure.data[2].y, steps["accuracy"].values)


def test_thinning_keeps_the_spike_and_the_dip():
    values = np.sin(np.arange(50_000) / 700)
    values[31_234], values[7_001], values[100:200] = 40.0, -30.0, np.nan
    steps = xr.Dataset({"loss": ("step", values)}, {"step": np.arange(50_000)})
    trace = figures.scalar_series(steps).data[0]
    assert len(trace.x) <= 2000
    np.testing.assert_array_equal(trace.y[trace.x == 31_234], [40.0])
    np.testing.assert_array_equal(trace.y[trace.x == 7_001], [-30.0])


def test_a_series_logged_now_and_then_is_joined():
    values = np.full(60, np.nan)
    values[[0, 20, 40]] = [0.2, 0.7, 0.9]
    trace = figures.scalar_series(xr.Dataset({"accuracy": ("step", values)}, {"step": np.arange(60)})).data[0]
    np.testing.assert_array_equal(trace.x, [0, 20, 40])
    np.testing.assert_array_equal(trace.y, [0.2, 0.7, 0.9])
    assert trace.mode == "lines+markers"


def test_a_run_that_diverged_is_drawn_up_to_there_and_marked():
    values = np.array([1.0, 2.0, 5.0, np.inf, np.nan])
    flags = np.array([0, 0, 0, NONFINITE, NONFINITE], np.int8)
    steps = xr.Dataset({"loss": ("step", values), "flags": ("step", flags)}, {"step": np.arange(5)})
    np.testing.assert_array_equal(figures.nonfinite_steps(steps), [3, 4])
    figure = figures.scalar_series(steps)
    assert [shape.x0 for shape in figure.layout.shapes] == [3, 4]


def test_no_finite_series_is_an_error():
    steps = xr.Dataset({"loss": ("step", [np.nan, np.nan])}, {"step": [0, 1]})
    with pytest.raises(NotAvailableError, match="no scalar of any update is finite"):
        figures.scalar_series(steps)


def test_figures_change_nothing():
    run = descend(0.5)
    before = {name: data.copy(deep=True) for name, data in run.measured.items()}, run.steps.copy(deep=True)
    figures.valley_walk(run.measured, run.steps, (0, 6))
    for draw in (figures.height_against_lr, figures.floor_position, figures.distance_law):
        draw([run])
    assert all(data.identical(before[0][name]) for name, data in run.measured.items())
    assert run.steps.identical(before[1])
