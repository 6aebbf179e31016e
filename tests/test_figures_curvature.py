"""Figures of the curvature, without pixels: which trace holds which numbers, and what is not drawn."""

import numpy as np
import pytest
import xarray as xr

from sgdscope import figures
from sgdscope.contracts import Evidence
from sgdscope.errors import NotAvailableError, Outcome

AT = np.array([0, 20, 40, 60, 100])
TOP = np.array([1.2, 3.1, 5.3, 4.7, 4.4])


def curvature(limit=4.0, **more) -> xr.Dataset:
    """Three eigenvalues at five points, of a method that becomes unstable at `limit`."""
    values = TOP[:, None] * np.array([1.0, 0.7, 0.3])
    data = {
        "loss": ("step", 2.0 - 0.01 * AT),
        "eigenvalue": (("step", "rank"), values),
        "eigenvalue_residual": (("step", "rank"), values / 1000),
        "eigenvalue_outcome": (("step", "rank"), np.zeros((5, 3), np.int8)),
        "sharpness": ("step", TOP),
        "edge": ("step", TOP / limit),
    }
    return xr.Dataset(data | more, {"step": AT, "rank": [1, 2, 3]})


def steps(updates=120, lr=0.5) -> xr.Dataset:
    t = np.arange(updates)
    return xr.Dataset({"loss": ("step", 2 + np.sin(t)), "lr": ("step", np.full(updates, lr))}, {"step": t})


def named(figure, name):
    found = [trace for trace in figure.data if trace.name == name]
    assert found, [trace.name for trace in figure.data]
    return found


def text_of(figure):
    return " ".join(a.text for a in figure.layout.annotations)


# --- the spectrum over the updates -----------------------------------------------------------------------------------------


def test_eigenvalues_residuals_threshold_and_loss_are_those_measured():
    data = curvature()
    figure = figures.spectrum_walk(data, steps())
    for rank, share in ((1, 1.0), (2, 0.7), (3, 0.3)):
        (trace,) = named(figure, f"λ<sub>{rank}</sub>")
        np.testing.assert_array_equal(trace.x, AT)
        np.testing.assert_allclose(trace.y, share * TOP, rtol=1e-12)
        np.testing.assert_allclose(trace.error_y.array, share * TOP / 1000, rtol=1e-12)
    np.testing.assert_allclose(named(figure, "threshold of the method")[0].y, 4.0, rtol=1e-12)
    np.testing.assert_allclose(named(figure, "L(θ<sub>t</sub>)")[0].y, 2.0 - 0.01 * AT, rtol=1e-12)
    assert named(figure, "L(θ<sub>t</sub>)")[0].yaxis == "y2"
    assert not [trace for trace in figure.data if trace.name == "not converged"]


def test_a_threshold_far_above_is_named_and_not_drawn():
    figure = figures.spectrum_walk(curvature(limit=40.0), steps())
    assert "threshold of the method above the axis: 40" in text_of(figure)
    assert not [trace for trace in figure.data if trace.name == "threshold of the method"]


def test_what_did_not_converge_is_marked():
    outcome = np.zeros((5, 3), np.int8)
    outcome[3, 1] = Outcome.not_converged
    figure = figures.spectrum_walk(curvature(eigenvalue_outcome=(("step", "rank"), outcome)), steps())
    (marked,) = named(figure, "not converged")
    np.testing.assert_array_equal(marked.x, [60])
    np.testing.assert_allclose(marked.y, [0.7 * 4.7], rtol=1e-12)


def test_a_preconditioned_edge_has_a_row_of_its_own_and_no_threshold_for_the_plain_eigenvalue():
    figure = figures.spectrum_walk(curvature(preconditioned_sharpness=("step", 7 * TOP)), steps())
    np.testing.assert_allclose(named(figure, "edge")[0].y, TOP / 4.0, rtol=1e-12)
    assert not [trace for trace in figure.data if trace.name == "threshold of the method"]
    assert np.isnan(figures.edge_threshold(curvature(preconditioned_sharpness=("step", 7 * TOP)))).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "sgdscope measure RUN curvature"),
        (curvature().drop_vars("eigenvalue"), "holds no eigenvalue"),
        (curvature(eigenvalue=(("step", "rank"), np.full((5, 3), np.nan))), "no eigenvalue is known"),
    ],
)
def test_without_eigenvalues_there_is_no_figure(data, message):
    with pytest.raises(NotAvailableError, match=message):
        figures.spectrum_walk(data, steps())


def test_density_shows_first_and_last_point_with_the_eigenvalues_and_the_damping_of_the_last():
    grid = np.linspace(-1, 5, 50) + np.zeros((5, 1))
    density = np.exp(-(grid**2)) * np.array([1.0, 2.0, np.nan, 3.0, np.nan])[:, None]
    more = {"density": (("step", "bin"), density), "density_at": (("step", "bin"), grid), "damping": ("step", TOP / 50)}
    figure = figures.spectral_density(curvature(**more))
    np.testing.assert_allclose(named(figure, "update 0")[0].y, density[0], rtol=1e-12)
    np.testing.assert_allclose(named(figure, "update 60")[0].y, density[3], rtol=1e-12)
    ticks = figure.data[-1]
    np.testing.assert_allclose(ticks.x, 4.7 * np.array([1.0, 0.7, 0.3]), rtol=1e-12)
    assert figure.layout.yaxis.type == "log"
    assert [shape.x0 for shape in figure.layout.shapes] == [4.7 / 50]


def test_no_density_says_how_to_get_one():
    empty = {name: (("step", "bin"), np.zeros((5, 0))) for name in ("density", "density_at")}
    with pytest.raises(NotAvailableError, match="density=10"):
        figures.spectral_density(curvature(**empty))


# --- the step against the sharpest directions ------------------------------------------------------------------------------

ARMS = ["e1", "e2", "random", "dominant", "bulk", "full"]
ALPHAS = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
BEND = np.array([0.4, 0.2, 0.0, 0.5, 0.1, 0.6])  # effect = BEND alpha (alpha - 2 BEST)
BEST = np.array([0.3, 0.8, np.nan, 0.4, 9.0, 0.45])


def sharpest(points=5, **more) -> xr.Dataset:
    """Effects that are parabolas with known vertices, growing by 10 % a point; shares, sections and widths that are known."""
    grown = 1 + 0.1 * np.arange(points)
    effect = BEND[:, None] * ALPHAS * (ALPHAS - 2 * np.nan_to_num(BEST)[:, None])
    position = np.array([-4.0, -1.0, 0.0, 1.0, 4.0])
    share = np.array([0.2, 0.5]) + 0.01 * np.arange(points)[:, None]
    data = {
        "loss": ("step", np.full(points, 2.0)),
        "subset_loss": ("step", np.full(points, 1.5)),
        "effect": (("step", "arm", "alpha"), grown[:, None, None] * effect),
        "effect_stderr": (("step", "arm", "alpha"), np.full((points, 6, 5), 0.02)),
        "alpha_star": (("step", "arm"), np.tile(BEST, (points, 1))),
        "section": (("step", "cross", "position"), 1.5 * (1 + grown[:, None, None] * np.array([[0.1], [0.02]]) * position**2)),
        "width": (("step", "cross", "level", "side"), np.full((points, 2, 1, 3), [[[[2.2, 3.3, 2.2]]]])),
        "gradient_share": (("step", "rank"), share),
        "batch_share": (("step", "rank"), share / 2),
        "batch_share_stderr": (("step", "rank"), share / 20),
        "update_share": (("step", "rank"), share / 4),
        "noise_share": (("step", "rank"), np.full((points, 2), np.nan)),
        "share_chance": ("rank", np.array([0.001, 0.002])),
    }
    coords = {"step": 30 * np.arange(points), "rank": [1, 2], "arm": ARMS, "alpha": ALPHAS, "cross": [1, 3]}
    coords |= {"position": position, "level": [1.1], "side": ["left", "right", "min"]}
    return xr.Dataset(data | more, coords)


def test_effects_start_at_nothing_and_carry_their_bars_at_first_middle_and_last_point():
    figure = figures.step_effect(sharpest())
    assert [a.text for a in figure.layout.annotations][:3] == ["update 0", "update 60", "update 120"]
    curves = [trace for trace in named(figure, "e<sub>2</sub>") if trace.mode == "lines+markers"]
    assert [trace.xaxis for trace in curves] == ["x", "x2", "x3"]
    np.testing.assert_allclose(curves[2].x, [0.0, *ALPHAS])
    np.testing.assert_allclose(curves[2].y[1:], 1.4 * 0.2 * ALPHAS * (ALPHAS - 1.6), rtol=1e-12)
    np.testing.assert_allclose(curves[2].error_y.array, [0.0, *[0.02 * 1.959964] * 5], rtol=1e-6)
    assert curves[0].y[0] == 0


def test_the_best_step_is_marked_on_the_zero_line_where_it_lies_on_the_axis():
    figure = figures.step_effect(sharpest(points=1))
    stars = {trace.name: (trace.x[0], trace.y[0]) for trace in figure.data if trace.mode == "markers"}
    expected = {"e<sub>1</sub>": 0.3, "e<sub>2</sub>": 0.8, "part in the K directions": 0.4, "full step": 0.45}
    assert stars == {name: (best, 0.0) for name, best in expected.items()}
    hidden = {trace.name for trace in figure.data if trace.visible == "legendonly"}
    assert hidden == {"part in the K directions", "part outside"}


def test_each_panel_holds_every_step_that_is_no_longer_than_sgds():
    data = sharpest(points=2)
    figure = figures.step_effect(data)
    for axis, effect in zip((figure.layout.yaxis, figure.layout.yaxis2), data["effect"].values, strict=True):
        near = effect[:, ALPHAS <= 1]
        assert axis.range[0] < effect.min()
        assert near.max() < axis.range[1] < effect.max()


def test_sections_end_their_widths_left_and_right_at_their_level():
    figure = figures.cross_sections(sharpest())
    last = next(trace for trace in named(figure, "e<sub>3</sub>") if trace.xaxis == "x3")
    np.testing.assert_allclose(last.y, 1.5 * (1 + 1.4 * 0.02 * last.x**2), rtol=1e-12)
    ends = named(figure, "widths along e<sub>3</sub>")[0]
    np.testing.assert_allclose(ends.x, [-2.2, 3.3])
    np.testing.assert_allclose(ends.y, [1.65, 1.65])  # of the subset's loss, not of the full one's
    assert figure.layout.yaxis.type == "log"


def test_losses_that_are_not_positive_are_drawn_on_a_plain_axis():
    data = sharpest()
    figure = figures.cross_sections(data.assign(section=data["section"] - 1.6))
    assert figure.layout.yaxis.type != "log"


def test_alignment_shows_each_share_with_its_bars_and_chance():
    figure = figures.alignment(sharpest())
    whole, first = (named(figure, f"batch gradients in e<sub>1</sub>{more}")[0] for more in ("…e<sub>2</sub>", ""))
    np.testing.assert_allclose(whole.y, 0.25 + 0.005 * np.arange(5), rtol=1e-12)
    np.testing.assert_allclose(first.y, 0.10 + 0.005 * np.arange(5), rtol=1e-12)
    np.testing.assert_allclose(whole.error_y.array, 1.959964 * whole.y / 10, rtol=1e-6)
    np.testing.assert_allclose(named(figure, "update in e<sub>1</sub>")[0].y, (0.2 + 0.01 * np.arange(5)) / 4, rtol=1e-12)
    np.testing.assert_allclose(named(figure, "chance, 2 / P")[0].y, 0.002)
    assert not [trace for trace in figure.data if "noise" in trace.name]


@pytest.mark.parametrize(
    ("draw", "variables", "message"),
    [
        (figures.step_effect, ["effect"], "effect is known at no measured point: because"),
        (figures.cross_sections, ["section"], "section is known at no measured point: because"),
        (figures.alignment, ["gradient_share", "batch_share", "update_share"], "no share of a gradient or update"),
    ],
)
def test_what_is_not_known_is_not_drawn(draw, variables, message):
    data = sharpest()
    unknown = {name: (data[name] * np.nan).assign_attrs(reason="because") for name in variables}
    with pytest.raises(NotAvailableError, match=message):
        draw(data.assign(unknown))
    with pytest.raises(NotAvailableError, match="sgdscope measure RUN sharpest"):
        draw(None)


# --- units and batches -----------------------------------------------------------------------------------------------------


def neurons() -> xr.Dataset:
    position = np.array([0.0, -1.0, 2.0, -2.0])  # in no order
    slopes = np.array([[0.03, 0.01], [0.002, 0.001], [0.02, 0.005], [np.nan, np.nan]])
    change = np.array([1.0, 1.5])[:, None, None, None] * slopes[..., None] * position
    data = {
        "saturation_change": (("step", "arm", "rank", "position"), change),
        "saturation_change_stderr": (("step", "arm", "rank", "position"), np.abs(change) / 4),
    }
    arms = ["sharp", "random", "gradient", "bottom"]
    return xr.Dataset(data, {"step": [0, 60], "arm": arms, "rank": [1, 2], "position": position})


def test_saturation_is_drawn_in_the_order_of_the_positions():
    figure = figures.saturation_along(neurons())
    second = named(figure, "e<sub>2</sub>")[1]
    np.testing.assert_array_equal(second.x, [-2, -1, 0, 2])
    np.testing.assert_allclose(second.y, 1.5 * 0.01 * second.x, atol=1e-15)
    random = named(figure, "random, of the length s<sub>1</sub>")[0]
    np.testing.assert_allclose(random.error_y.array, 1.959964 * 0.002 * np.abs(random.x) / 4, rtol=1e-6)
    with pytest.raises(NotAvailableError, match="at no measured point"):
        figures.saturation_along(neurons() * np.nan)


def batches(**more) -> xr.Dataset:
    data = {
        "alpha_star": ("step", np.array([0.4, 7.0, np.nan, 0.6])),
        "noise_scale": ("window", [30.0, 50.0]),
        "noise_scale_stderr": ("window", [3.0, 5.0]),
        "batch_sharpness": ("window", [3.0, 4.0]),
        "gni": ("window", [np.nan, np.nan]),
    }
    window = {"window_first": ("window", [0, 2]), "window_last": ("window", [2, 4])}
    return xr.Dataset(data | more, {"step": np.arange(4)} | window)


def test_batches_show_their_floors_and_the_windows_numbers_times_the_learning_rate():
    run = steps(4)
    run["lr"] = ("step", np.array([0.2, 0.4, 0.5, 0.5]))
    figure = figures.batch_walk(batches(), run)
    np.testing.assert_array_equal(figure.data[0].y, [0.4, 7.0, np.nan, 0.6])
    assert "(1 beyond the axis)" in figure.data[0].name
    scale = named(figure, "noise scale")[0]
    np.testing.assert_allclose((scale.x, scale.y), ([1, 3], [30, 50]))
    np.testing.assert_allclose(scale.error_y.array, [3 * 1.959964, 5 * 1.959964], rtol=1e-6)
    np.testing.assert_allclose(named(figure, "η·batch sharpness")[0].y, [0.3 * 3, 0.5 * 4], rtol=1e-12)
    assert not [trace for trace in figure.data if trace.name == "η·GNI"]


def test_batches_that_are_not_known_are_not_drawn():
    with pytest.raises(NotAvailableError, match="no number of an update on its own batch"):
        figures.batch_walk(batches() * np.nan, steps(4))


# --- several runs ----------------------------------------------------------------------------------------------------------


def arm(gamma, factor=1.0, accuracy=None) -> Evidence:
    phase = {"walker": "nudged", "gamma": gamma} if gamma < 1 else {"walker": "sgd"}
    data = curvature()
    data = data.assign(sharpness=factor * data["sharpness"])
    extra = {"name": f"run <{gamma}>"} | ({} if accuracy is None else {"accuracy": {"step": [0, 100], "test": [0.1, accuracy]}})
    return Evidence({"experiment": {"phases": [phase]}}, steps(), {"curvature": data}, extra)


def test_arms_of_nudged_sgd_are_told_by_gamma():
    runs = [arm(1.0), arm(0.1, 2.0), arm(0.1, 2.5)]
    assert figures.nudged(runs)
    assert not figures.nudged(runs[1:])
    figure = figures.sharpness_paths(runs)
    nudged = named(figure, "γ = 0.1")
    assert [trace.yaxis for trace in nudged] == ["y", "y2", "y", "y2"]
    np.testing.assert_allclose(nudged[2].y, 2.5 * TOP, rtol=1e-12)
    np.testing.assert_allclose(nudged[3].y, 2.0 - 0.01 * AT, rtol=1e-12)
    assert sum(bool(trace.showlegend) for trace in figure.data) == 2
    assert named(figure, "γ = 1 (plain SGD)")[0].line.color != nudged[0].line.color


def test_runs_of_one_gamma_are_told_by_their_escaped_names():
    figure = figures.sharpness_paths([arm(1.0)])
    assert {trace.name for trace in figure.data} == {"run &lt;1.0&gt;"}


def test_points_that_did_not_converge_are_left_out_of_the_path():
    outcome = np.zeros(5, np.int8)
    outcome[2] = Outcome.not_converged
    run = arm(1.0)
    data = run.measured["curvature"].assign(sharpness_outcome=("step", outcome))
    figure = figures.sharpness_paths([Evidence(run.settings, run.steps, {"curvature": data}, run.extra)])
    np.testing.assert_array_equal(figure.data[0].x, AT[[0, 1, 3, 4]])


def test_final_sharpness_is_held_against_the_accuracy_at_the_end():
    logged = arm(0.3, 3.0)
    series = np.full(120, np.nan)
    series[[10, 90]] = [0.5, 0.75]
    logged = Evidence(logged.settings, logged.steps.assign(test_accuracy=("step", series)), logged.measured, logged.extra)
    figure = figures.sharpness_against_accuracy([arm(1.0, accuracy=0.9), arm(0.1, 2.0, 0.8), logged, arm(0.1)])
    points = {trace.name: (trace.x, trace.y) for trace in figure.data}
    expected = {"γ = 1 (plain SGD)": (4.4, 0.9), "γ = 0.1": (8.8, 0.8), "γ = 0.3": (13.2, 0.75)}
    assert points.keys() == expected.keys()
    for name, (x, y) in expected.items():
        np.testing.assert_allclose((points[name][0][0], points[name][1][0]), (x, y), rtol=1e-12)


def test_runs_without_curvature_or_accuracy_are_not_drawn():
    bare = Evidence({}, steps(), {})
    with pytest.raises(NotAvailableError, match="sgdscope measure RUN curvature"):
        figures.sharpness_paths([bare])
    with pytest.raises(NotAvailableError, match="fewer than two runs"):
        figures.sharpness_against_accuracy([arm(1.0, accuracy=0.9), arm(0.1), bare])


def test_figures_of_the_curvature_change_nothing():
    data = {"curvature": curvature(), "sharpest": sharpest(), "neurons": neurons(), "batch": batches()}
    before = {name: each.copy(deep=True) for name, each in data.items()}
    figures.spectrum_walk(data["curvature"], steps())
    for draw in (figures.step_effect, figures.cross_sections, figures.alignment):
        draw(data["sharpest"])
    figures.saturation_along(data["neurons"])
    figures.batch_walk(data["batch"], steps())
    assert all(each.identical(before[name]) for name, each in data.items())
