"""The sections on curvature, steps, units and batches: their words have the numbers; what is not there is not said."""

import html
import re

import numpy as np
import pytest
import torch
import xarray as xr

from sgdscope import demonstration
from sgdscope.contracts import Evidence, Verdict
from sgdscope.errors import Outcome
from sgdscope.landscapes import NoisyQuadratic, walk
from sgdscope.measure import measure
from sgdscope.report import report
from sgdscope.report.page import with_error

QUANTITIES = ["curvature", "sharpest", "neurons", "batch"]


def words(path) -> str:
    """The page without scripts, styles and markup."""
    page = re.sub(r"<(script|style)[^>]*>.*?</\1>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", page)))


def steps(updates=100, lr=0.5) -> xr.Dataset:
    t = np.arange(updates)
    return xr.Dataset({"loss": ("step", np.full(updates, 1.5)), "lr": ("step", np.full(updates, lr))}, {"step": t})


def run(**measured) -> Evidence:
    return Evidence({"walker": "sgd", "batch_size": 64}, steps(), measured, {"name": "walk"})


def curvature(top=(1.2, 5.3, 3.4), limit=4.0, **more) -> xr.Dataset:
    top = np.array(top)
    data = {
        "loss": ("step", np.full(len(top), 1.4)),
        "eigenvalue": (("step", "rank"), np.stack([top, top / 2], axis=1)),
        "eigenvalue_residual": (("step", "rank"), np.full((len(top), 2), 0.0012)),
        "eigenvalue_outcome": (("step", "rank"), np.zeros((len(top), 2), np.int8)),
        "sharpness": ("step", top),
        "sharpness_outcome": ("step", np.zeros(len(top), np.int8)),
        "edge": ("step", top / limit),
        "half_eta_sharpness": ("step", top / limit),
    }
    window = {"window_first": ("window", [0]), "window_last": ("window", [60])}
    return xr.Dataset(data | more, {"step": 30 * np.arange(len(top)), "rank": [1, 2]} | window)


def test_the_largest_eigenvalue_is_told_with_residual_edge_and_path(tmp_path):
    page = words(report(run(curvature=curvature()), tmp_path / "page.html"))
    told = "At update 60 the largest eigenvalue of the Hessian is 3.4 loss/θ² (residual 0.0012), 0.85 times the 4 at which"
    assert page.count(told) == 2  # at the top of the page, and in its section
    assert "becomes unstable: below the edge." in page
    assert "Of 3 measured points the first was 1.2 at update 0, the largest 5.3 at update 30." in page
    assert "λ1/edge" in page
    assert "ηλ1/2" not in page  # the same number for plain descent
    assert "trace" not in page.split("Curvature")[1].split("Scalars")[0].replace("trace and", "")


@pytest.mark.parametrize(
    ("top", "told"),
    [
        ((1.2, 3.0, 5.3), "This is the largest of 3 measured points; the first was 1.2 at update 0."),
        ((5.3, 3.0, 1.2), "The first of 3 measured points was the largest, 5.3 at update 0."),
        ((5.3,), "At update 0 the largest eigenvalue of the Hessian is 5.3"),
    ],
)
def test_the_path_is_told_by_where_its_peak_lies(tmp_path, top, told):
    page = words(report(run(curvature=curvature(top)), tmp_path / "page.html"))
    assert told in page
    assert ("measured points" in page) == (len(top) > 1)


def test_above_the_edge_and_preconditioned_edges_are_told(tmp_path):
    assert "1.7 times the 2 at which the method becomes unstable: above the edge." in words(
        report(run(curvature=curvature(limit=2.0)), tmp_path / "page.html")
    )
    adam = curvature(limit=2.0, preconditioned_sharpness=("step", np.array([6.0, 7.0, 8.0])))
    page = words(report(run(curvature=adam), tmp_path / "page.html"))
    assert "preconditioned as the method does, it is 1.7 times its threshold: above the edge." in page
    none = curvature(edge=("step", np.full(3, np.nan)))
    assert "unstable: " not in words(report(run(curvature=none), tmp_path / "page.html"))


def test_how_many_points_lie_above_the_edge_is_told_where_there_are_several(tmp_path):
    page = words(report(run(curvature=curvature((1.2, 5.3, 3.0), limit=2.0)), tmp_path / "page.html"))
    assert page.count("2 of 3 points lie above the edge, their median is 1.5 times it.") == 2  # at the top, and in its section
    unknown = curvature((1.2, 5.3, 3.0), edge=("step", np.array([np.nan, 2.0, np.nan])))
    assert "points lie above" not in words(report(run(curvature=unknown), tmp_path / "page.html"))


def test_what_did_not_converge_is_said_and_not_used(tmp_path):
    outcome = np.array([0, 0, Outcome.not_converged], np.int8)
    page = words(report(run(curvature=curvature(sharpness_outcome=("step", outcome))), tmp_path / "page.html"))
    assert "At update 30 the largest eigenvalue of the Hessian is 5.3" in page
    assert "At 1 of 3 measured points the largest eigenvalue did not converge" in page
    lost = curvature(sharpness_outcome=("step", np.full(3, Outcome.not_converged, np.int8)))
    assert "No largest eigenvalue of the Hessian converged" in words(report(run(curvature=lost), tmp_path / "page.html"))


def test_trace_rank_and_lowest_eigenvalue_are_told_where_they_were_measured(tmp_path):
    more = {"trace": [9.0, 20.0, 17.0], "trace_stderr": [1.0, 2.0, 1.5], "effective_rank": [4.0, 5.0, 6.5]}
    data = curvature(**{name: ("step", values) for name, values in more.items()}, lowest_eigenvalue=("step", [-1.0, -2.0, -0.7]))
    page = words(report(run(curvature=data), tmp_path / "page.html"))
    assert "The smallest eigenvalue is −0.7 loss/θ². The trace is 17.0 ± 1.5 loss/θ², of an effective rank of 6.5." in page


def test_a_long_table_is_thinned_and_it_is_said(tmp_path):
    data = curvature(tuple(1 + 0.1 * np.arange(40)))
    page = words(report(run(curvature=data), tmp_path / "page.html"))
    assert "12 of 40 measured points." in page


def test_measured_at_no_point_is_said(tmp_path):
    empty = {name: data.isel(step=slice(0, 0)) for name, data in measured_for_real().items()}
    page = words(report(run(**empty), tmp_path / "page.html"))
    assert page.count("there are no two consecutive snapshots") == len(QUANTITIES)


def test_nothing_is_shown_of_what_was_not_measured(tmp_path):
    page = words(report(run(), tmp_path / "page.html"))
    for title in ("Curvature", "sharpest directions of", "Saturation of the units", "own batch is"):
        assert title not in page.split("Scalars of all updates")[0]
    assert "Largest eigenvalue" not in page


# --- steps, units, batches -------------------------------------------------------------------------------------------------


def measured_for_real() -> dict[str, xr.Dataset]:
    """SGD on a noisy bowl, measured by the real quantities."""
    hessian = torch.diag(torch.tensor([3.1, 0.4, 0.1], dtype=torch.float64))
    generator = torch.Generator().manual_seed(3)
    surface = NoisyQuadratic(hessian, torch.randn(50, 3, generator=generator, dtype=torch.float64), offset=2.0)
    start = torch.tensor([1.3, -2.1, 0.4], dtype=torch.float64)
    trajectory = walk(surface, lr=0.5, updates=20, start=start, batch_size=4, generator=generator)
    options = {"curvature": {"k": 2, "points": 2}, "sharpest": {"k": 2, "points": 2}, "neurons": {"k": 2}}
    measured = measure(trajectory, surface, QUANTITIES, window=10, **options)
    return {str(name): group.to_dataset() for name, group in measured.children.items()}


def test_real_measurements_are_told_with_their_own_numbers(tmp_path):
    measured = measured_for_real()
    page = words(report(run(**measured), tmp_path / "page.html"))
    assert "At update 20 the largest eigenvalue of the Hessian is 3.1 loss/θ²" in page
    assert "0.775 times the 4 at which the method becomes unstable: below the edge" in page
    data = measured["sharpest"].isel(step=-1)
    share, chance = float(data["batch_share"].sel(rank=2)), float(data["share_chance"].sel(rank=2))
    assert abs(chance - 2 / 3) < 1e-12
    assert f"At update 19, {share:.0%} of the squared length of a batch gradient" in page
    assert "by chance 67 %" in page
    one = data.sel(arm="e1", alpha=1.0)
    change, error = (100 * float(one[name]) for name in ("effect", "effect_stderr"))
    sign = "+" if change > 0 else ""
    assert f"A step of SGD along e1 alone changes the loss by {sign}{with_error(change, error)} %; it" in page
    best = [float(data[name].sel(arm="full")) for name in ("alpha_star", "alpha_star_stderr")]
    side = "it goes beyond" if best[0] < 1 else "it stops before"
    assert f"{side} the lowest point, which lies at α* = {with_error(*best)} of it. Along" in page
    assert "No saturation of units is known at any measured point" in page


def test_units_are_told_with_their_change_along_the_first_direction(tmp_path):
    change = np.zeros((2, 4, 1, 3))
    change[1, 0, 0], change[1, 1, 0] = [-0.3, 0.0, 0.2], [0.004, 0.0, 0.1]
    data = xr.Dataset(
        {
            "saturation": ("step", [0.5, 0.62]),
            "saturation_change": (("step", "arm", "rank", "position"), change),
            "saturation_change_stderr": (("step", "arm", "rank", "position"), np.full((2, 4, 1, 3), 0.0031)),
        },
        {"step": [0, 60], "arm": ["sharp", "random", "gradient", "bottom"], "rank": [1], "position": [-1.0, 0.0, 1.0]},
    )
    page = words(report(run(neurons=data), tmp_path / "page.html"))
    assert "At update 60 the units are saturated to 0.62 (update 0: 0.5)" in page
    assert "along e1 changes that by −0.3, an equally long one in a random direction by +0.0040 ± 0.0031." in page


def test_batches_are_told_with_what_is_foreign_and_the_noise_scale(tmp_path):
    data = xr.Dataset(
        {
            "alpha_star": ("step", [0.4, 1.6, 0.8, np.nan]),
            "own_batch": ("step", np.array([0, 0, 0, 3], np.int8)),
            "noise_scale": ("window", [96.0]),
            "noise_scale_stderr": ("window", [11.0]),
            "batch_sharpness": ("window", [2.5]),
            "batch_sharpness_stderr": ("window", [0.31]),
        },
        {"step": np.arange(4), "window_first": ("window", [0]), "window_last": ("window", [4])},
    )
    page = words(report(run(batch=data), tmp_path / "page.html"))
    assert "the median update has its lowest point at α* = 0.8; 67% of 3 updates go beyond it." in page
    assert "1 of 4 updates have no recorded batch" in page
    assert "The noise scale of the last window is 96 ± 11 examples, 1.5 times the batch." in page
    assert "Its batch sharpness is 2.50 ± 0.31 (1/lr)." in page


# --- several runs, verdicts, the demonstration -----------------------------------------------------------------------------


def nudged(gamma, factor) -> Evidence:
    told = {"walker": "nudged", "gamma": gamma} if gamma < 1 else {"walker": "sgd"}
    return Evidence(told, steps(), {"curvature": curvature(tuple(factor * np.array([1.2, 5.3, 3.4])))}, {"name": f"g{gamma}"})


def test_arms_of_nudged_sgd_are_compared(tmp_path):
    page = words(report([nudged(1.0, 1.0), nudged(0.1, 2.0), nudged(0.1, 3.0)], tmp_path / "page.html"))
    assert "the largest eigenvalue is 8.5 ± 1.7 with γ = 0.1 (2 runs), 3.4 with γ = 1 (1 run)." in page
    assert "Colours are the factors γ" in page
    same = words(report([nudged(1.0, 1.0), nudged(1.0, 2.0)], tmp_path / "page.html"))
    assert "Largest eigenvalue" in same
    assert "γ" not in same.split("Largest eigenvalue")[1].split("Verdicts")[0]


def test_reasons_read_as_sentences_and_regimes_leave_out_what_is_not_known(tmp_path):
    reason = "fall by half a step -0.02 [-1e-05, 1.49e+03]; lambda_1 and e_1"
    verdict = Verdict(
        "S7", "supported", 0.1, (0.0, 0.2), 9, 0.0, reason, {"eta_gni": float("nan"), "loss_share": 0.4, "place": "x"}
    )
    page = words(report(run(), tmp_path / "page.html", verdicts=[verdict]))
    assert "Fall by half a step −0.02 [−1 × 10−5, 1.49 × 103]; λ1 and e1." in page
    assert "Regime: loss_share 0.4, place x." in page


def test_the_demonstration_says_where_the_walk_lies_relative_to_the_edge():
    seen = {
        "interior": 0.9,
        "alpha": 0.5,
        "height": 0.06,
        "loss": 0.9,
        "cosine": -0.3,
        "distance": 12.0,
        "scale": 121.0,
        "scale_error": 6.0,
        "curved": 43.0,
    }
    lines = demonstration.tell([seen | {"edge": edge} for edge in (0.85, 0.21, 1.82)], [])
    assert len(lines) == 5
    assert "0.85, 0.21 and 1.82 times the edge 2/lr" in lines[3]
    assert (
        "half noise at a batch of 121 [109, 133] examples, 43 weighted by the curvature; 64 lies below it, noise dominates"
        in lines[2]
    )
    unknown = seen | {"scale": float("nan")}
    assert "noise" not in demonstration.tell([unknown | {"edge": 0.5}] * 3, [])[2].lower()
