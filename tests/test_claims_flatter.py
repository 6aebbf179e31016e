"""The judges of F1-F5 on evidence made by hand, and the comparison of rescaled runs."""

import numpy as np
import pytest

from sgdscope.claims.flatter_minima import ratio_alone
from sgdscope.contracts import claims
from sgdscope.evidence.endpoints import equivalent
from sgdscope.evidence.rescaling import GRID, numbers, rescaled
from sgdscope.evidence.sharpness import made

STEPS = list(range(0, 100, 10))
WOBBLE = np.array([0.97, 1.02, 1.0, 0.99, 1.03])
LRS, BATCHES = (0.05, 0.1, 0.2), (16, 32, 64)


def walk(lr, batch, seed, *, top, trace=None, frobenius=None, losses=None, right=0.9, steps=STEPS):
    """A run; the numbers of the curvature [n], at the measured points."""
    n = len(steps)
    columns = [np.broadcast_to(np.asarray(top if v is None else v, float), n) for v in (top, trace, frobenius)]
    losses = np.linspace(2.0, 1.0, n) if losses is None else losses
    extra = {} if right is None else {"accuracy": {"step": list(steps), "test": np.broadcast_to(right, n).tolist()}}
    found = made({"lr": lr, "batch_size": batch, "seed": seed}, list(steps), columns[0], losses, **extra)
    data = found.measured["curvature"].assign(trace=("step", columns[1]), frobenius=("step", columns[2]))
    found.measured["curvature"] = data
    return found


def ended(batch):
    """Ten measured points of a run that sees 576 examples."""
    return (np.arange(10) * (64 // batch)).tolist()


def grid(of, seeds=5):
    runs = [(lr, batch, s) for lr in LRS for batch in BATCHES for s in range(seeds)]
    return [walk(*at, **({"steps": ended(at[1])} | of(*at))) for at in runs]


def judged(name, runs):
    return claims[name].judge(list(runs))


@pytest.mark.parametrize("sign", [1, -1])
def test_two_one_sided_tests_show_equality_and_an_interval_refutes_it(sign):
    near = sign * np.array([0.02, -0.01, 0.03, 0.0, 0.01])  # 0.01, stderr 0.00707: 0.0251 by t(0.95), 0.0296 by t(0.975)
    assert [equivalent("x", near, margin).answer for margin in (0.026, 0.024)] == ["supported", "undecided"]
    assert [equivalent("x", near + 0.05 * sign, m).answer for m in (0.040, 0.041)] == ["contradicted", "undecided"]
    assert equivalent("x", near, 0.026).interval == pytest.approx(sorted(sign * np.array([-0.00963, 0.02963])), abs=1e-5)


def power(b, c):
    return lambda lr, batch, s: 30 * WOBBLE[s] * (lr / 0.1) ** b * (batch / 32) ** c


# --- F1, F2 ----------------------------------------------------------------------------------------------------------------


def test_f1_and_f2_are_powers_of_the_norms():
    norm = power(-0.7, 0.4)
    runs = grid(lambda *at: {"top": norm(*at), "trace": norm(*at) ** 2, "frobenius": norm(*at) ** 0.5})
    lr, batch = judged("F1", runs), judged("F2", runs)
    assert (lr.verdict, batch.verdict) == ("supported", "supported")
    assert lr.statistic == pytest.approx(-0.35)  # of the norm that is nearest to failing
    assert batch.statistic == pytest.approx(0.2)
    assert lr.details["trace at the end"][0] == pytest.approx(-1.4)
    assert batch.details["trace at equal loss"][0] == pytest.approx(0.8)
    assert (lr.n, lr.smallest_p) == (5, pytest.approx(1 / 756756))  # 15! / 5!^3
    assert set(lr.details["training_loss_at_the_end"].values()) == {1.0}


@pytest.mark.parametrize("turned", ["top", "trace", "frobenius"])
def test_f1_and_f2_ask_each_norm(turned):
    right, wrong = power(-0.7, 0.4), power(0.7, -0.4)
    told = lambda *at: {name: (wrong if name == turned else right)(*at) for name in ("top", "trace", "frobenius")}  # ruff: ignore[lambda-assignment]
    assert judged("F1", grid(told)).verdict == "contradicted"
    assert judged("F2", grid(told)).verdict == "contradicted"


def test_f1_is_not_fooled_by_runs_that_came_less_far():
    # the curvature falls with the training loss alone; a larger learning rate comes farther
    def of(lr, batch, s):
        losses = 2 - np.arange(10) / 9 * (lr / 0.2) ** 0.3
        return {"losses": losses, "top": 10 * losses**3 * WOBBLE[s]}

    found = judged("F1", grid(of))
    assert found.details["sharpness at the end"][2] < 0
    assert found.details["sharpness at equal loss"][0] == pytest.approx(0, abs=0.02)
    assert found.verdict != "supported"


def test_f1_needs_three_seeds_of_a_whole_grid_and_a_loss_that_is_left():
    norm = power(-0.7, 0.4)
    of = lambda *at: {"top": norm(*at)}  # ruff: ignore[lambda-assignment]
    assert judged("F1", grid(of, 3)).verdict == "supported"
    assert judged("F1", grid(of, 2)).verdict == "undecided"
    assert judged("F1", grid(of)[15:]).verdict == "undecided"  # two learning rates
    gone = lambda lr, batch, s: of(lr, batch, s) | ({"losses": np.linspace(2, 0.09, 10)} if lr == LRS[1] and s > 1 else {})  # ruff: ignore[lambda-assignment]
    assert judged("F1", grid(gone)).verdict == "not in regime"
    apart = lambda lr, batch, s: of(lr, batch, s) | ({"losses": np.linspace(2, 1.85, 10)} if lr == LRS[0] else {})  # ruff: ignore[lambda-assignment]
    assert judged("F1", grid(apart)).verdict == "not in regime"  # nothing in common below 7.5 % of the initial loss


@pytest.mark.parametrize("name", ["F1", "F2", "F3", "F4"])
def test_ends_are_compared_after_equal_epochs_only(name):
    norm = power(-0.5, 0.5)

    def of(*at):
        losses = np.linspace(2, 0.5 + at[1] / 100 + at[0] / 10, 10)
        return {"top": norm(*at), "right": 1 - norm(*at) / 1000, "losses": losses}

    assert judged(name, grid(of)).verdict == "supported"
    equal_updates = judged(name, grid(lambda *at: of(*at) | {"steps": STEPS}))
    assert equal_updates.verdict == "undecided"
    assert "1440 to 5760 examples" in equal_updates.reason


# --- F3 --------------------------------------------------------------------------------------------------------------------


def uneven(b, c, spread=0.02):
    """|H|_F with powers that differ between seeds by `spread`, on average b and c."""
    shifts = spread * (np.arange(5) - 2)
    return lambda lr, batch, s: {"top": 30 * (lr / 0.1) ** (b + shifts[s]) * (batch / 32) ** (c - shifts[s])}


@pytest.mark.parametrize(
    ("b", "c", "answer"),
    [(-0.5, 0.5, "supported"), (-0.5, 0.43, "supported"), (-0.5, 0.37, "contradicted"), (-0.33, 0.5, "contradicted"),
     (0.5, 0.5, "contradicted"), (-0.5, -0.5, "contradicted")],
)  # fmt: skip
def test_f3_asks_for_equal_powers(b, c, answer):
    found = judged("F3", grid(uneven(b, c)))
    assert found.verdict == answer
    assert found.details["lr"][0] == pytest.approx(b)
    assert found.details["batch_size"][0] == pytest.approx(c)
    if b < 0 < c:
        shifts = 0.02 * (np.arange(5) - 2)
        assert found.statistic == pytest.approx(np.mean(2 * (b + c) / (c - b - 2 * shifts)))


def test_f3_is_unsure_where_seeds_differ():
    tilted = lambda lr, batch, s: {"top": 30 * (lr / 0.1) ** -0.5 * (batch / 32) ** (0.5 + 0.1 * (s - 2))}  # ruff: ignore[lambda-assignment]
    assert judged("F3", grid(tilted)).verdict == "undecided"
    assert judged("F3", grid(uneven(-0.5, 0.5), 4)).verdict == "undecided"


def test_the_ratio_alone_is_tested_by_the_drop_of_the_residuals():
    random = np.random.default_rng(4)
    keys = [(a, b, s) for a in LRS for b in BATCHES for s in (2, 5)]
    table = {k: float(np.exp(-0.5 * np.log(k[0]) + 0.3 * np.log(k[1]) + 0.1 * k[2] + 0.1 * random.normal())) for k in keys}
    x, y = np.log([[k[0], k[1]] for k in keys]).T
    z, dummies = np.log(list(table.values())), np.array([[k[2] == s for s in (2, 5)] for k in keys], float)
    rss = []
    for design in (np.c_[dummies, x - y], np.c_[dummies, x, y]):
        rest = z - design @ np.linalg.pinv(design) @ z
        rss.append(rest @ rest)
    found = ratio_alone(table, [2, 5])
    assert found["f"] == pytest.approx((rss[0] - rss[1]) / (rss[1] / (18 - 4)), rel=1e-9)
    assert found["aic_difference"] == pytest.approx(18 * np.log(rss[0] / rss[1]) - 2, rel=1e-9)
    assert found["p"] < 0.01


# --- F4 --------------------------------------------------------------------------------------------------------------------


def test_f4_is_the_tau_over_settings():
    norm = power(-0.5, 0.3)

    def of(sign):  # the training loss orders the settings by the batch size, then by the learning rate
        losses = lambda lr, batch: np.linspace(2, 0.5 + batch / 100 + lr / 10, 10)  # ruff: ignore[lambda-assignment]
        return lambda *at: {"top": norm(*at), "right": 0.5 + sign * norm(*at) / 1000, "losses": losses(*at[:2])}

    found = judged("F4", grid(of(-1)))
    assert (found.verdict, found.n) == ("supported", 5)
    assert found.statistic == pytest.approx(-1)
    assert judged("F4", grid(of(1))).verdict == "contradicted"
    assert judged("F4", grid(of(-1), 4)).verdict == "undecided"
    assert judged("F4", grid(lambda *at: of(-1)(*at) | {"right": None})).verdict == "not in regime"
    assert judged("F4", grid(lambda *at: of(-1)(*at) | {"losses": None})).verdict == "undecided"  # one loss orders nothing


def test_f4_asks_at_a_given_training_loss_too():
    # accuracy and norm both follow the training loss, with small parts of their own that go together or apart
    def of(sign):
        def told(lr, batch, s):
            i, j = LRS.index(lr), BATCHES.index(batch)
            loss, own = 0.5 + 0.1 * (3 * i + j), 0.16 * (((i + 2 * j + s) % 3) - 1)
            return {"losses": np.linspace(2, loss, 10), "top": 10 + 10 * (loss + own), "right": 0.9 - 0.1 * (loss + sign * own)}

        return told

    together, apart = judged("F4", grid(of(1))), judged("F4", grid(of(-1)))
    assert together.verdict == "supported"
    assert apart.details["frobenius, tau"][2] < 0
    assert apart.verdict == "contradicted"
    assert apart.statistic == pytest.approx(apart.details["frobenius, tau given the training loss"][0])


# --- F5 --------------------------------------------------------------------------------------------------------------------

BASE, DIAGONAL, ALONE = (0.1, 8), {2: (0.2, 16), 4: (0.4, 32), 8: (0.8, 64)}, (0.2, 8)


def rescaling(norm=1.0, curve=1.0, accuracy=0.0, *, broken=8, alone=2.0, seeds=5, sharp=3.0, noise=0.0):
    """Runs equal to the base; at beta 2 the norm and the loss are multiplied, at `broken` the norm by 3; lr alone by `alone`."""
    runs = []
    for s in range(seeds):
        random = np.random.default_rng(s)
        for lr, batch in (BASE, *DIAGONAL.values(), ALONE):
            at_two, breaks = (lr, batch) == DIAGONAL[2], batch >= 8 * broken
            factor = (norm if at_two else 3.0 if breaks else alone if (lr, batch) == ALONE else 1.0) * np.exp(
                noise * random.normal()
            )
            losses = np.linspace(2.0, 1.0, 10) * (WOBBLE[s] * (curve if at_two else 1.0))
            right = 0.85 + 0.005 * (s - 2) + (accuracy if at_two else 0.0)
            numbers = {"top": sharp, "frobenius": 10 * WOBBLE[s] * factor, "losses": losses, "right": right}
            runs.append(walk(lr, batch, s, steps=ended(batch), **numbers))
    return runs


SD = np.std(np.log(WOBBLE), ddof=1)


def test_rescaled_settings_are_found():
    found = rescaled(rescaling())
    assert found.base == BASE
    assert found.factors == DIAGONAL
    assert found.alone == ALONE
    short = [r if r.settings["batch_size"] != 16 else walk(0.2, 16, r.settings["seed"], top=3.0) for r in rescaling()]
    assert list(rescaled(short).factors) == [4, 8]  # beta 2 saw 1440 examples, not 576
    assert rescaled(short).alone is None
    assert rescaled([]) is None


def test_differences_are_in_units_of_two_standard_deviations_of_the_seeds():
    parts = {p.name: p for p in rescaled(rescaling(norm=1.1, curve=0.95, accuracy=0.004)).compared(DIAGONAL[2])}
    assert parts["norm at the end"].statistic == pytest.approx(np.log(1.1) / (2 * SD))
    assert parts["norm at the end"].answer == "contradicted"
    assert parts["early curve"].statistic == pytest.approx(np.log(0.95) / (2 * SD), rel=1e-6)
    assert parts["accuracy at the end"].statistic == pytest.approx(0.004 / (2 * np.std(0.005 * np.arange(5), ddof=1)))
    assert parts["accuracy at the end"].answer == "supported"


def test_curves_are_held_at_equal_shares_of_the_run():
    found = rescaled(rescaling())
    base = found.table[BASE][0]
    at = np.log(np.interp(GRID, np.linspace(0, 1, 10), np.linspace(2, 1, 10) * WOBBLE[0]))
    parts = {p.name: p for p in found.compared(DIAGONAL[4])}
    assert parts["late curve"].statistic == pytest.approx(0, abs=1e-9)
    assert numbers(base)["early curve"] == pytest.approx(at[:20].mean(), rel=2e-3)
    assert numbers(base)["late curve"] == pytest.approx(at[20:].mean(), rel=1e-2)


@pytest.mark.parametrize("changed", [{"norm": 1.1}, {"norm": 0.9}, {"curve": 1.1}, {"accuracy": -0.03}])
def test_f5_fails_where_the_least_factor_changes_something(changed):
    found = judged("F5", rescaling(**changed))
    assert found.verdict == "contradicted"
    assert abs(found.statistic) > 1
    assert found.details["limit"] == 2


def test_f5_tells_its_limit():
    found = judged("F5", rescaling(norm=1.01))
    assert found.verdict == "supported"
    assert found.statistic == pytest.approx(np.log(1.01) / (2 * SD))
    assert found.details["limit"] == 8
    assert judged("F5", rescaling(broken=4)).details["limit"] == 4
    assert judged("F5", rescaling(broken=100)).details["limit"] is None
    assert found.details["eta_sharpness_at_base"] == pytest.approx(0.3)


def test_f5_proves_nothing_where_the_learning_rate_alone_makes_no_difference():
    assert judged("F5", rescaling(alone=1.0)).verdict == "undecided"
    assert judged("F5", [r for r in rescaling() if (r.settings["lr"], r.settings["batch_size"]) != ALONE]).verdict == "undecided"
    assert judged("F5", rescaling(noise=0.08)).verdict == "undecided"  # not different, and not shown to be equal


def test_f5_needs_seeds_and_small_steps():
    assert judged("F5", rescaling(seeds=4)).verdict == "undecided"
    assert judged("F5", rescaling(sharp=9.9)).verdict == "supported"
    assert judged("F5", rescaling(sharp=10.1)).verdict == "not in regime"  # 2 x 0.1 x 10.1 > 2
