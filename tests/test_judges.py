"""Each judge on evidence made by hand: what a neighbouring wrong statistic, threshold or combination would answer differs."""

import numpy as np
import pytest
import xarray as xr

from sgdscope.contracts import Evidence, claims
from sgdscope.evidence.parts import Held, Part
from sgdscope.evidence.windows import windows_of

N = 60


def made(
    columns=None, *, lr=0.1, batch=8, seed=0, windows=1, distance=None, rates=None, eta_gni=2.0, cosine=None, loss=1.0, **told
):
    """Evidence of `windows` windows of 60 updates; columns and `told` replace values of the valley."""
    n, columns = N * windows, (columns or {}) | told
    t = np.arange(n, dtype=float)
    valley = {"loss_start": np.full(n, loss), "height_start": np.full(n, 0.2), "height_end": np.full(n, 0.2)}
    valley |= {"interior": np.ones(n), "convex": np.ones(n), "r2": np.full(n, 0.9999)}
    valley |= {"barrier": np.full(n, -1.0), "curve_error": np.full(n, 1e-9)}
    height, noise = columns.pop("mean_height", 0.2), columns.pop("noise_floor", 1e-6)
    valley |= {name: np.asarray(values, float) for name, values in columns.items()}
    firsts = np.arange(windows) * N
    whole = {"mean_height": height, "noise_floor": noise, "eta_gni": eta_gni, "eta_batch_sharpness": 0.5}
    variables = {k: ("step", v) for k, v in valley.items()} | {
        k: ("window", np.full(windows, float(v))) for k, v in whole.items()
    }
    coords = {"step": np.arange(n), "window_first": ("window", firsts), "window_last": ("window", firsts + N)}
    steps = {"loss": np.full(n, loss), "lr": np.full(n, lr) if rates is None else rates}
    steps |= {"distance": np.sqrt(t + 1) if distance is None else distance}
    steps |= {"gradient_cosine": np.full(n, -0.2) if cosine is None else cosine, "batch_size": np.full(n, 8.0)}
    law = {"distance_exponent": 0.8, "distance_r2": 0.9, "log_slope": 1.5, "log_r2": 0.7}
    return Evidence(
        {"lr": lr, "batch_size": batch, "seed": seed},
        xr.Dataset({k: ("step", np.asarray(v, float)) for k, v in steps.items()}, {"step": np.arange(n)}),
        {"valley": xr.Dataset(variables, coords), "motion": xr.Dataset(law)},
    )


def spread(mean, size, n=N):
    """Values of mean `mean` exactly, alternating by `size`."""
    return mean + size * (-1.0) ** np.arange(n)


def judged(name, *runs):
    return claims[name].judge(list(runs))


def test_the_windows_are_those_of_the_evidence():
    assert [(w.first, w.last) for w in windows_of(made(windows=2))] == [(0, 60), (60, 120)]


@pytest.mark.parametrize(
    ("columns", "answer"),
    [
        ({}, "supported"),
        ({"r2": spread(0.97, 0.001)}, "contradicted"),  # convex, and no parabola
        ({"convex": np.arange(N) % 2}, "contradicted"),  # a parabola, and not convex
        ({"convex": np.arange(N) % 8 > 0}, "undecided"),  # 88 %
    ],
)
def test_w1_needs_both_parts(columns, answer):
    found = judged("W1", made(columns))
    assert found.verdict == answer
    assert found.details["runs"] == [{"lr": 0.1, "batch_size": 8, "seed": 0}]


def test_w2_asks_for_most_windows():
    def run(*shares):
        flags = np.concatenate([np.random.default_rng(3).permutation(N) < s * N for s in shares])
        return made({"interior": flags}, windows=len(shares))

    assert judged("W2", run(0.9, 0.5, 0.5)).verdict == "undecided"
    assert judged("W2", run(0.9, 0.9, 0.5)).verdict == "supported"
    found = judged("W2", run(0.9, 0.1, 0.1))
    assert (found.verdict, found.n) == ("contradicted", 3)
    assert found.statistic == pytest.approx(0.1)


def test_w2_leaves_calm_full_batch_descent_out():
    calm = made({"interior": np.zeros(N)}, batch="full", eta_gni=0.4)
    assert judged("W2", calm).verdict == "not in regime"
    assert judged("W2", made({"interior": np.zeros(N)}, batch="full", eta_gni=1.4)).verdict == "contradicted"


@pytest.mark.parametrize(("mean", "answer"), [(-0.05, "supported"), (0.05, "contradicted"), (0.0, "undecided")])
def test_w3_is_about_zero(mean, answer):
    noisy = mean + 0.02 * np.random.default_rng(1).permutation(np.linspace(-1, 1, N))
    assert judged("W3", made(cosine=noisy)).verdict == answer


def test_w4_takes_the_lower_wall():
    even = np.arange(N) % 2 == 0
    one_sided = {"height_start": np.where(even, 0.4, 1e-9), "height_end": np.where(even, 1e-9, 0.4)}
    found = judged("W4", made(one_sided | {"noise_floor": 1e-3}))
    assert found.verdict == "contradicted"
    assert found.statistic == pytest.approx(1e-9)
    assert found.threshold == pytest.approx(3e-3)
    assert judged("W4", made({"noise_floor": 1e-3})).verdict == "supported"


def test_a_vanished_loss_and_a_height_in_the_noise_are_out_of_regime():
    share = made()
    share.steps["loss"].values[0] = 25.0  # 1 of 25 is below 5 %
    assert judged("W3", share).verdict == "not in regime"
    share.steps["loss"].values[0] = 15.0
    assert judged("W3", share).verdict == "supported"
    assert judged("W3", made(noise_floor=0.1)).verdict == "not in regime"  # 0.2 is below three times 0.1
    assert judged("W3", made(noise_floor=0.06)).verdict == "supported"


def test_w11_counts_a_barrier_only_above_error_and_noise():
    assert judged("W11", made({"barrier": np.full(N, 2e-6)})).statistic == 0
    assert judged("W11", made({"barrier": np.full(N, 2e-3), "curve_error": np.full(N, 1e-2)})).statistic == 0
    assert judged("W11", made({"barrier": np.full(N, 2e-3)})).verdict == "contradicted"
    assert judged("W11", made({"barrier": np.where(np.arange(N) % 10, -1, 2e-3)})).verdict == "undecided"


def heights(of):
    return [made(lr=lr, seed=s, mean_height=of(lr, s)) for lr in (0.1, 0.2, 0.4) for s in range(4)]


def test_w5_needs_interval_and_rank_test():
    wobble = {0: 1.0, 1: 1.1, 2: 0.95, 3: 1.05}
    rising = judged("W5", *heights(lambda lr, s: wobble[s] * lr**1.5 * 10))
    assert (rising.verdict, rising.n) == ("supported", 4)
    assert rising.statistic == pytest.approx(1.5)
    assert judged("W5", *heights(lambda lr, s: wobble[s] * lr**-1.5)).verdict == "contradicted"
    # each seed rises a little, seeds differ much: the slope is sure, the ranks are not
    hidden = judged("W5", *heights(lambda lr, s: 5.0**s * lr**0.1))
    assert hidden.interval[0] > 0
    assert hidden.verdict == "undecided"
    # slopes of both signs: the mean rises, its interval holds zero
    mixed = judged("W5", *heights(lambda lr, s: (lr / 0.1) ** (4.0 if s else -3.0)))
    assert mixed.statistic > 0
    assert mixed.verdict == "undecided"


@pytest.mark.parametrize(("factor", "answer"), [(2.0, "contradicted"), (5.0, "supported"), (3.16, "undecided")])
def test_w6_asks_for_half_an_order(factor, answer):
    wobble = [0.99, 1.0, 1.01, 1.005, 0.995]
    rates = np.where(np.arange(N) < 30, 0.1, 0.05)
    runs = [made(seed=s, mean_height=h, rates=r) for s in range(5) for h, r in ((0.4, None), (0.4 / factor * wobble[s], rates))]
    found = judged("W6", *runs)
    assert found.verdict == answer
    assert found.statistic == pytest.approx(factor, rel=0.01)
    assert found.smallest_p == pytest.approx(1 / 32)


def corner(large, small, partner, far=lambda lr, batch: 1.0):
    """Three runs a seed: mean cosines at (0.4, 32), (0.4, 8), (0.1, 8); `far` is their distance."""
    wobble = [-0.01, 0.01, 0.004, -0.004, 0.0]
    grid = ((0.4, 32, large), (0.4, 8, small), (0.1, 8, partner))
    return [
        made(lr=lr, batch=b, seed=s, cosine=np.full(N, c + (wobble[s] if b == 32 else 0)), distance=np.full(N, far(lr, b)))
        for lr, b, c in grid for s in range(5)
    ]  # fmt: skip


def test_w7_needs_both_differences():
    assert judged("W7", *corner(-0.5, -0.2, -0.1)).verdict == "supported"
    assert judged("W7", *corner(-0.5, -0.49, -0.1)).verdict == "contradicted"  # no effect of the batch size
    assert judged("W7", *corner(-0.5, -0.2, -0.49)).verdict == "contradicted"  # equal at equal ratio
    assert judged("W7", *corner(-0.2, -0.5, -0.6)).verdict == "contradicted"  # the effect has the other sign
    found = judged("W7", *corner(-0.5, -0.2, -0.1, far=lambda lr, _b: 3.0 if lr > 0.2 else 2.0))
    assert found.statistic == pytest.approx(-0.4)
    assert found.details["batch_effect"] == pytest.approx(-0.3)
    assert found.details["log_distance_ratio_at_equal_epochs"][0] == pytest.approx(np.log(1.5))
    assert found.details["log_height_ratio"][0] == pytest.approx(0)
    unsure = corner(-0.5, -0.46, -0.1)
    for run, shift in zip(unsure[5:10], (0.3, -0.3, 0.1, -0.2, 0.1), strict=True):
        run.steps["gradient_cosine"].values[:] += shift
    assert judged("W7", *unsure).verdict == "undecided"  # the ratio differs, the effect of the batch size is not known


def grid(power_lr, power_batch, c=0.6):
    t = np.arange(N)
    return [
        made(lr=lr, batch=b, seed=s, distance=(1 + 0.01 * s) * lr**power_lr * b**power_batch * t ** (c / 2))
        for lr in (0.1, 0.2, 0.4) for b in (2, 4, 8) for s in range(3)
    ]  # fmt: skip


def test_w8_powers_at_equal_updates_and_epochs():
    found = judged("W8", *grid(0.5, -0.2))
    assert found.verdict == "supported"
    assert found.statistic == pytest.approx(0.2)
    assert found.details["lr_at_equal_updates"][0] == pytest.approx(0.5)
    assert found.details["inverse_batch_at_equal_updates"][0] == pytest.approx(0.2)
    # 118 examples: 59, 29 and 14 updates; the distance grows with t^0.3
    x, y = np.log([1 / 2, 1 / 4, 1 / 8]), np.log([59, 29, 14])
    assert found.details["inverse_batch_at_equal_epochs"][0] == pytest.approx(0.2 + 0.3 * np.polyfit(x, y, 1)[0])
    assert found.details["lr_at_equal_epochs"][0] == pytest.approx(0.5)
    assert found.details["laws"][0] == {
        "lr": 0.1, "batch_size": 2, "seed": 0, "distance_exponent": 0.8, "distance_r2": 0.9, "log_slope": 1.5, "log_r2": 0.7
    }  # fmt: skip
    assert len(found.details["laws"]) == 27


@pytest.mark.parametrize("powers", [(0.5, 0.2), (-0.5, -0.2)])
def test_w8_fails_if_one_trend_fails(powers):
    assert judged("W8", *grid(*powers)).verdict == "contradicted"


def oscillation(cosine, ratio, late=1.0):
    """Full batch and SGD of five seeds; `late` multiplies distances after those of the shorter run."""
    sgd = np.r_[np.full(N, ratio), np.full(N, ratio * late)]
    wobble = [0.99, 1.0, 1.01, 1.02, 0.98]
    full = [made(batch="full", seed=s, cosine=np.full(N, cosine), distance=np.full(N, 1.0)) for s in range(5)]
    return [*full, *(made(seed=s, windows=2, distance=sgd * wobble[s]) for s in range(5))]


def test_w9_needs_both_parts_at_equal_updates():
    assert judged("W9", *oscillation(-0.9, 1.5)).verdict == "supported"
    assert judged("W9", *oscillation(-0.3, 1.5)).verdict == "contradicted"
    assert judged("W9", *oscillation(-0.9, 0.8)).verdict == "contradicted"
    late = judged("W9", *oscillation(-0.9, 0.8, late=10.0))  # farther only after more updates
    assert late.verdict == "contradicted"
    assert late.statistic == pytest.approx(0.8, rel=0.01)


@pytest.mark.parametrize(
    ("floor", "raw", "answer"),
    [(0.5, 0.0, "supported"), (0.5, 0.5, "undecided"), (0.5, 1.0, "contradicted"), (0.0, 0.0, "contradicted")],
)
def test_w10_asks_for_an_excess(floor, raw, answer):
    generator = np.random.default_rng(2)
    barriers = [np.where(generator.permutation(N) < share * N, 1e-3, -1.0).tolist() for share in (floor, raw)]
    run = made()
    run = Evidence(
        run.settings, run.steps, run.measured, {"floor": {"floor": barriers[0], "raw": barriers[1], "noise_floor": 1e-6}}
    )
    found = judged("W10", run)
    assert found.verdict == answer
    assert found.statistic == pytest.approx(floor)
    below = Evidence(run.settings, run.steps, run.measured, {"floor": run.extra["floor"] | {"noise_floor": 1e-3}})
    assert judged("W10", below).statistic == 0  # 1e-3 is below three noise floors


def test_a_part_is_told_in_the_notation_of_all_numbers():
    held = Held(Part("share over chance", [], 10.0), 1351.0, (1092.0, 1664.0), 5, "supported", 2.0)
    assert str(held) == "share over chance 1350 [1090, 1660] (claimed > 10)"
