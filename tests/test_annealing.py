"""Annealing forecast of recorded walks: frozen updates, closed forms on a noisy quadratic, a curved river, reasons."""

import numpy as np
import pytest
import torch
from torch import nn

from sgdscope.errors import ArgumentError
from sgdscope.forecast import annealing, decay, method_of
from sgdscope.forecast.annealing import _cell
from sgdscope.forecast.projection import quiet_point
from sgdscope.forecast.windows import Losses, constant_since, losses_at, window_means
from sgdscope.landscapes import Noisy, NoisyQuadratic, River, walk
from sgdscope.quantities.averages import Averages
from sgdscope.records import steps_dataset
from sgdscope.surface import LossSurface
from sgdscope.surface.statistics import recalibrated


def seeded(number):
    return torch.Generator().manual_seed(number)


def test_a_linear_decay_with_frozen_updates_is_the_average_of_the_last_iterates_exactly():
    updates = torch.randn(96, 7, dtype=torch.float64, generator=seeded(1))
    walked = torch.cat([torch.full((1, 7), 3.0, dtype=torch.float64), updates]).cumsum(0)
    averages = Averages(blocks=16, width=8)
    for step in range(1, 97):
        averages.write_iterate(step, walked[step])
    width = 24
    means, seen = window_means(averages.blocks, 96, width, walked[0])
    assert seen == pytest.approx(1, abs=1e-12)
    for start, mean in zip((24, 48, 72), means, strict=True):
        left = 1 - torch.arange(width, dtype=torch.float64) / width
        decayed = walked[start] + left @ updates[start : start + width]
        assert torch.allclose(mean, decayed, rtol=0, atol=1e-12)
        late = walked[start] + (left - 1 / width) @ updates[start : start + width]  # the neighbour: off by one update
        assert not torch.allclose(mean, late, rtol=0, atol=1e-2)


CURVATURE = torch.logspace(-2.7, 0, 60, dtype=torch.float64)
LR, BATCH, UPDATES = 0.4, 4, 2000


@pytest.fixture(scope="module")
def quadratic():
    noise = torch.diag(2 * CURVATURE)
    start = torch.full((60,), 1.5, dtype=torch.float64)
    surface = NoisyQuadratic.with_noise(torch.diag(CURVATURE), noise, examples=400, generator=seeded(5), start=start)
    walked = walk(surface, start=start, lr=LR, updates=UPDATES, batch_size=BATCH, generator=seeded(1))
    return surface, walked


def expected_at_average(width):
    """E of the loss at the average of the last N iterates of a stationary AR(1) with pull a, above the minimum; a mean of 0."""
    pull = 1 - LR * CURVATURE
    variance = LR**2 * (2 * CURVATURE / BATCH) / (1 - pull**2)
    lags = torch.arange(1, width, dtype=torch.float64)[:, None]
    shared = 1 + 2 * ((1 - lags / width) * pull**lags).sum(0)
    return 0.5 * CURVATURE * variance * shared / width


def test_windows_of_a_noisy_quadratic_have_the_loss_of_the_closed_form(quadratic):
    surface, walked = quadratic
    told = annealing(walked, surface, budgets=(0.1,)).isel(data=0, budget=0)
    bottom = surface.value(surface.minimum)
    fast = LR * CURVATURE > 0.02  # settled long before the windows; the slow rest is taken off exactly
    points, _ = window_means(rebuilt(walked), UPDATES, 200, walked.theta(0))
    found = []
    for mean, loss in zip(points[::-1], told["window_loss"].values, strict=True):
        away = mean - surface.minimum
        assert loss == pytest.approx(bottom + float((0.5 * CURVATURE * away**2).sum()), rel=1e-9)
        found.append(float((0.5 * CURVATURE * away**2)[fast].sum()))
    truth = expected_at_average(200)[fast]
    spread = float((2 * truth**2).sum().sqrt()) / np.sqrt(3)  # chi-squared parts, three windows
    assert np.mean(found) == pytest.approx(float(truth.sum()), abs=3 * spread)
    assert 3 * spread < 0.5 * float(truth.sum())


def rebuilt(walked):
    averages = Averages(blocks=200, width=10)
    for step in range(1, UPDATES + 1):
        averages.write_iterate(step, walked.theta(step))
    return averages.blocks


def annealed_exactly(surface, theta, updates):
    """E of the loss after a linear decay from theta: mean and variance of each direction step by step."""
    mean, variance = theta - surface.minimum, torch.zeros_like(theta)
    for j in range(updates):
        rate = LR * (1 - j / updates)
        pull = 1 - rate * CURVATURE
        mean, variance = pull * mean, pull**2 * variance + rate**2 * 2 * CURVATURE / BATCH
    return surface.value(surface.minimum) + float((0.5 * CURVATURE * (mean**2 + variance)).sum())


@pytest.mark.parametrize("budget", [0.1, 0.2, 0.3])
def test_the_forecast_of_a_noisy_quadratic_meets_the_exact_decay(quadratic, budget):
    surface, walked = quadratic
    told = annealing(walked, surface, budgets=(budget,)).isel(data=0, budget=0)
    truth = annealed_exactly(surface, walked.theta(UPDATES), round(budget * UPDATES))
    real = float(told["loss_now"]) - truth
    assert float(told["drop"]) == pytest.approx(real, rel=0.06)
    assert told["annealed_low"] <= truth <= told["annealed_high"]
    assert told["annealed_high"] - told["annealed_low"] < 0.5 * real
    assert float(told["height"]) + float(told["progress"]) == pytest.approx(float(told["drop"]))
    assert told["reason"].item() == ""
    assert told["annealed_outcome"].item() == 0


@pytest.mark.parametrize("budget", [0.1, 0.2])
def test_a_curved_river_is_forecast_with_its_progress(budget):
    river = River(lambda x: 2.0 * torch.sin(0.1 * x), sharp=6.0, slope=0.05)
    pulls = torch.randn(200, 2, generator=seeded(2), dtype=torch.float64) * torch.tensor([0.02, 2.0], dtype=torch.float64)
    surface = Noisy(river, pulls)
    walked = walk(surface, start=surface.theta(), lr=0.2, updates=2000, batch_size=4, generator=seeded(3))
    told = annealing(walked, surface, budgets=(budget,)).isel(data=0, budget=0)
    width, real = round(budget * 2000), []
    rates = [0.2 * (1 - j / width) for j in range(width)]
    for seed in range(3):
        options = {"lr": 0.2, "lrs": rates, "updates": width, "batch_size": 4, "generator": seeded(100 + seed)}
        real.append(surface.value(walk(surface, start=walked.theta(2000), **options).theta(width)))
    drop = float(told["loss_now"]) - np.mean(real)
    assert float(told["drop"]) == pytest.approx(drop, rel=0.12)
    assert float(told["height"]) < 0.85 * drop  # the average alone is not the answer
    assert told["annealed_low"] <= np.mean(real) <= told["annealed_high"]


# --- reasons -----------------------------------------------------------------------------------------------------------


def test_it_says_why_it_cannot_tell(quadratic):
    surface, _ = quadratic
    rates = [LR] * 700 + [0.5 * LR] * 500
    options = {"start": surface.theta(), "lr": LR, "batch_size": BATCH, "generator": seeded(4)}
    walked = walk(surface, lrs=rates, updates=1200, **options)
    told = annealing(walked, surface, budgets=(0.05, 0.1, 0.2)).isel(data=0)
    assert constant_since(walked.steps, 1200) == 700
    reasons = told["reason"].values.tolist()
    assert reasons[0] == "the budget is 60 updates; windows of fewer than 100 are shorter than the slow oscillations"
    assert reasons[2].startswith("only 500 updates were made since the learning rate changed, expected at least 3 N = 720")
    assert np.isfinite(told["annealed"].values).tolist() == [False, True, False]
    assert told["annealed_outcome"].values.tolist()[::2] == [2, 2]
    assert np.isfinite(told["loss_now"])
    sparse = walk(surface, updates=1200, snapshots=[0, 1200], **options)
    why = annealing(sparse, surface, budgets=(0.1,))["reason"].values.item()
    assert why.startswith("the iterates were not summed: Recorder(..., live=[live('averages')]), or [record] averages = 64")


def test_a_hindcast_that_misses_is_told_and_the_value_kept():
    losses = Losses(np.array([2.0, 1.5, 1.45, 1.7]), None, None)
    cell = _cell(losses, 200, (2000, decay()), held_out=False)
    assert "predict the last one with an error of" in cell["reason"]
    assert np.isfinite(cell["annealed"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": (0.4,)}, r"budgets: expected shares of the updates so far, each in \(0, 1/3\], got \[0.4\]"),
        ({"at": 77777}, "at: expected a recorded point, got 77777"),
        ({"floor": -0.1}, "floor: expected the share"),
    ],
)
def test_wrong_use_is_refused(quadratic, options, message):
    surface, walked = quadratic
    with pytest.raises(ArgumentError, match=message):
        annealing(walked, surface, **options)


def test_a_rate_that_never_changed_or_was_not_recorded():
    steps = np.arange(3, 9)
    assert constant_since(steps_dataset(steps, {"lr": np.full(6, 0.1), "lr_1": np.array([1, 2, 2, 2, 2, 3.0])}), 8) == 4
    assert constant_since(steps_dataset(steps, {"lr": np.full(6, 0.1)}), 9) == 3
    assert constant_since(steps_dataset(steps, {"lr": np.full(6, np.nan)}), 9) is None


# --- held-out data, errors, statistics ---------------------------------------------------------------------------------


def test_the_error_over_examples_is_that_of_paired_differences():
    rng = np.random.default_rng(3)
    samples = rng.gamma(2.0, size=(2, 50)) + np.array([[1.0], [0.0]])
    losses = Losses(samples.mean(1), samples, np.full(50, 1 / 50))
    differences = 0.7 * samples[0] - 2.0 * samples[1]
    assert losses.stderr(np.array([0.7, -2.0])) == pytest.approx(differences.std(ddof=1) / np.sqrt(50), rel=1e-12)


def test_quiet_steps_on_all_examples_are_gradient_descent_at_half_the_effective_rate(quadratic):
    surface, _ = quadratic
    options = {"start": surface.theta(), "lr": 0.1, "batch_size": 50, "momentum": 0.6, "generator": seeded(4)}
    walked = walk(surface, updates=40, **options)
    assert method_of(walked, 40).effective_lr == pytest.approx(0.25)
    away = walked.theta(40) - surface.minimum
    expected = surface.minimum + (1 - 0.125 * CURVATURE) ** 32 * away
    assert torch.allclose(quiet_point(walked, surface, 40), expected, rtol=0, atol=1e-9)


def test_held_out_is_the_mean_of_two_with_an_error(quadratic):
    surface, walked = quadratic
    other = NoisyQuadratic(torch.diag(CURVATURE), surface.centres[:150] + 0.1)
    told = annealing(walked, surface, held_out=other, budgets=(0.1,), quiet_steps=True).isel(budget=0)
    assert told["data"].values.tolist() == ["train", "held_out"]
    held = told.sel(data="held_out")
    assert float(held["annealed"]) == pytest.approx((float(held["by_windows"]) + float(held["quiet_loss"])) / 2)
    assert float(held["quiet_loss"]) == pytest.approx(other.value(quiet_point(walked, surface, UPDATES)))
    assert float(told.sel(data="train")["annealed"]) == pytest.approx(float(told.sel(data="train")["by_windows"]))
    assert float(held["drop_stderr"]) > 0


def test_statistics_of_batchnorm_come_from_the_training_data():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(300, 4) * 3 + 1, torch.randint(3, (300,))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    train = LossSurface(model, loss, (x[:200], y[:200]), dtype=torch.float64)
    held = LossSurface(model, loss, (x[200:], y[200:]), dtype=torch.float64)
    theta = train.theta() * 1.3
    inside = torch.nn.functional.linear(x[:200].double(), theta[:24].view(6, 4), theta[24:30])
    found = recalibrated(train, theta)
    assert torch.allclose(found["1.running_mean"], inside.mean(0), atol=1e-9)
    assert torch.allclose(found["1.running_var"], inside.var(0), rtol=0.02)
    on_train, on_held = losses_at([train, held], [(theta, None)])
    assert on_held.values[0] == pytest.approx(held.value(theta, found))
    assert abs(on_held.values[0] - held.value(theta)) > 1e-3
    assert on_train.values[0] == pytest.approx(train.value(theta, found))
    assert on_held.samples.shape == (1, 100)
