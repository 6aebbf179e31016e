"""The step against the sharpest directions: exact on rotated quadratics, and against a plain loop over a network."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn import functional as F

from sgdscope.directions import Basis, Probe, chance_cosine, minibatches, noise_share
from sgdscope.errors import ArgumentError, NotAvailableError, Outcome
from sgdscope.landscapes import NoisyQuadratic, Quadratic, River, StyblinskiTang, walk
from sgdscope.measure import live
from sgdscope.quantities.sharpest import ALPHAS, sharpest
from sgdscope.recorder import Recorder, every
from sgdscope.surface import LossSurface

F64 = torch.float64
VALUES = np.array([7.3, 3.1, 1.9, 0.6, -0.4, 0.05])
LR = 0.31


def rotation(size, seed=5):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=F64))[0]


def hessian(values=VALUES):
    turn = rotation(len(values))
    return turn @ torch.diag(torch.tensor(values)) @ turn.T, turn


@pytest.fixture(scope="module")
def bowl():
    """A rotated quadratic without noise, one step of descent: surface, measurement, e_i, exact gradient."""
    matrix, turn = hessian()
    centre = torch.tensor([1.0, -2.0, 0.3, 0.7, 2.0, -1.1], dtype=F64)
    surface = Quadratic(matrix, centre, offset=11.0)
    start = centre + turn @ torch.tensor([1.2, -0.9, 0.8, 1.5, 0.6, -2.0], dtype=F64)
    run = walk(surface, lr=LR, updates=3, start=start)
    found = sharpest(run, surface, k=4, cross=(1, 3, 4), tolerance=1e-12)
    return surface, run, found.isel(step=0), turn.numpy(), (matrix @ (start - centre)).numpy()


def test_the_effects_of_steps_on_a_quadratic_are_exact(bowl):
    surface, run, found, turn, gradient = bowl
    level, c = surface.value(run.theta(0)), turn.T @ gradient
    alphas = np.array(ALPHAS)
    assert found["eigenvalue"].values == pytest.approx(VALUES[:4], rel=1e-9)
    for i in range(4):
        exact = (-alphas * LR + VALUES[i] * (alphas * LR) ** 2 / 2) * c[i] ** 2 / level
        assert found["effect"].sel(arm=f"e{i + 1}").values == pytest.approx(exact, rel=1e-9, abs=1e-13)
        assert float(found["alpha_star"].sel(arm=f"e{i + 1}")) == pytest.approx(1 / (LR * VALUES[i]), rel=1e-8)
        assert bool(found["crosses"].sel(arm=f"e{i + 1}")) == (LR * VALUES[i] > 1)
    assert found["crosses"].values[:4].tolist() == [1, 0, 0, 0]
    for arm, chosen in {"dominant": c[:4], "bulk": c[4:], "full": c}.items():
        values = {"dominant": VALUES[:4], "bulk": VALUES[4:], "full": VALUES}[arm]
        slope, bend = (chosen**2).sum(), (values * chosen**2).sum()
        exact = (-alphas * LR * slope + bend * (alphas * LR) ** 2 / 2) / level
        assert found["effect"].sel(arm=arm).values == pytest.approx(exact, rel=1e-9, abs=1e-13)
    assert np.isnan(found["alpha_star"].sel(arm="bulk"))  # it bends down
    assert int(found["alpha_star_outcome"].sel(arm="bulk")) == int(found["crosses_outcome"].sel(arm="bulk")) == 2
    assert found["effect_stderr"].sel(arm=["e1", "full"]).values == pytest.approx(np.zeros((2, 7)), abs=1e-12)  # one batch: all


def test_a_random_direction_has_the_effect_of_its_expectation():
    """r'g r: mean of -alpha lr (r'g)^2 + ... over r on the sphere; off by 4 of its errors once in 10^4 seeds."""
    matrix, _ = hessian()
    surface = Quadratic(matrix, offset=11.0)
    run = walk(surface, lr=LR, updates=1, start=np.arange(1.0, 7.0))
    found = sharpest(run, surface, batches=4000, tolerance=1e-9, sections=False, critical=False).isel(step=0)
    g, p = (matrix @ run.theta(0)).numpy(), len(VALUES)
    h = matrix.numpy()
    curved = (2 * g @ h @ g + np.trace(h) * g @ g) / (p * (p + 2))  # E (r'g)^2 r'H r
    alphas = np.array(ALPHAS)
    exact = (-alphas * LR * (g @ g) / p + (alphas * LR) ** 2 / 2 * curved) / surface.value(run.theta(0))
    effect, error = (found[n].sel(arm="random").values for n in ("effect", "effect_stderr"))
    assert (np.abs(effect - exact) < 4 * error).all()
    assert (error < 0.04 * np.abs(exact)).sum() >= 6
    assert np.abs(effect[0] / exact[0] - 1) < 0.1


def test_shares_parts_and_critical_sharpness_on_a_quadratic(bowl):
    _, run, found, turn, gradient = bowl
    c, norm = turn.T @ gradient, np.linalg.norm(gradient)
    assert found["gradient_cosine"].values == pytest.approx(np.abs(c[:4]) / norm, rel=1e-9)
    assert found["gradient_share"].values == pytest.approx(np.cumsum(c[:4] ** 2) / norm**2, rel=1e-9)
    assert found["gradient_part"].values == pytest.approx([np.linalg.norm(c[:4]), np.linalg.norm(c[4:])], rel=1e-9)
    assert found["coefficient"].values == pytest.approx(np.repeat(np.abs(c[:4, None]), 10, 1), rel=1e-9)
    assert found["mean_alignment"].values == pytest.approx(np.abs(c[:4]).mean() / norm, rel=1e-9)
    assert found["update_share"].values == pytest.approx(np.cumsum(c[:4] ** 2) / norm**2, rel=1e-9)
    assert found["update_part"].values == pytest.approx(LR * found["gradient_part"].values, rel=1e-9)
    change = -LR * c**2 + VALUES * (LR * c) ** 2 / 2
    assert found["update_predicted"].values == pytest.approx([change[:4].sum(), change[4:].sum()], rel=1e-9)
    assert float(found["update_change"]) == pytest.approx(change.sum(), rel=1e-9)
    moved = turn.T @ (run.theta(3) - run.theta(0)).numpy()
    assert found["displacement_share"].values[0] == pytest.approx(np.cumsum(moved[:4] ** 2) / (moved @ moved), rel=1e-9)
    assert found["displacement_part"].values[0] == pytest.approx([np.linalg.norm(moved[:4]), np.linalg.norm(moved[4:])], rel=1e-9)
    rayleigh = (VALUES * c**2).sum() / norm**2
    assert rayleigh < 0.95 * VALUES[0]  # lambda_1 would be a wrong answer
    assert float(found["critical_sharpness"]) == pytest.approx(rayleigh, rel=6e-3)
    assert float(found["critical_batch_sharpness"]) == pytest.approx(rayleigh, rel=6e-3)
    assert float(found["critical_lr"]) == pytest.approx(2 / rayleigh, rel=6e-3)
    assert np.isnan(found["noise_share"].values).all()  # batches of all examples do not differ


def test_cross_sections_and_widths_on_a_quadratic(bowl):
    surface, run, found, turn, gradient = bowl
    c, level = np.abs(turn.T @ gradient), surface.value(run.theta(0))
    k = found["position"].values
    for n, i in enumerate((0, 2, 3)):
        s = LR * c[i]
        assert float(found["step_length"][i]) == pytest.approx(s, rel=1e-9)
        assert found["section"].values[n] == pytest.approx(level + c[i] * k * s + VALUES[i] * (k * s) ** 2 / 2, rel=1e-10)
        assert float(found["section_bend"][n]) == pytest.approx(VALUES[i] * s**2 / 2, rel=1e-8)
        root = np.sqrt(c[i] ** 2 + 2 * VALUES[i] * (found["level"].values - 1) * level)
        exact = {"right": (root - c[i]) / VALUES[i], "left": (root + c[i]) / VALUES[i]}  # uphill is shorter: e_i points up
        for side, distance in exact.items():
            seen = np.where(distance / s <= 16, distance, np.nan)
            assert found["width_distance"].sel(side=side).values[n] == pytest.approx(seen, rel=1e-9, nan_ok=True)
        steps = found["width"].sel(side="min").values[n]
        assert steps == pytest.approx(np.where(exact["right"] / s <= 16, exact["right"] / s, np.nan), rel=1e-9, nan_ok=True)
    assert np.isnan(found["width"].sel(side="left").values).any()


@pytest.fixture(scope="module")
def noisy():
    matrix, turn = hessian(np.array([5.2, 2.4, 0.9, 0.3]))
    spread = torch.randn(40, 4, generator=torch.Generator().manual_seed(11), dtype=F64) @ torch.diag(
        torch.tensor([0.9, 0.2, 1.4, 0.5], dtype=F64)
    )
    surface = NoisyQuadratic(matrix, spread @ rotation(4, 8) + 1.5, offset=0.7)
    run = walk(surface, lr=LR, updates=6, start=torch.tensor([2.0, 1.0, 3.0, 0.5], dtype=F64), batch_size=20)
    return surface, run, turn.numpy()


def test_mini_batches_are_drawn_without_replacement(noisy):
    """Mean and covariance over 4000 batches of 20 of 40; with replacement the variance would be 1.95 times as large."""
    surface, run, turn = noisy
    found = sharpest(run, surface, k=4, batches=4000, effects=False, critical=False).isel(step=0)
    theta = run.theta(0)
    exact = turn.T @ surface.gradient_covariance(theta, batch_size=20, replacement=False).numpy() @ turn
    signs = np.sign(turn.T @ surface.value_and_grad(theta)[1].numpy())
    drawn = found["coefficient"].values
    c = np.abs(turn.T @ surface.value_and_grad(theta)[1].numpy())
    error = np.sqrt(np.diag(exact) / 4000)
    assert (np.abs(drawn.mean(1) - c) < 4 * error).all()
    assert np.cov(drawn) == pytest.approx(exact * np.outer(signs, signs), rel=0.15, abs=0.08 * exact.max())
    assert np.diag(np.cov(drawn)) == pytest.approx(np.diag(exact), rel=0.12)
    share = np.cumsum(np.diag(exact)) / np.trace(exact)
    assert found["noise_share"].values == pytest.approx(share, abs=0.02)
    assert (np.abs(found["noise_share"].values - share)[:3] < 4 * found["noise_share_stderr"].values[:3]).all()
    norms = found["batch_norm"].values
    assert norms == pytest.approx(np.linalg.norm(drawn, axis=0), rel=1e-9)  # K = P
    cosines = drawn / norms
    for name, values in {"cosine": cosines, "alignment": np.abs(cosines), "batch_share": np.cumsum(cosines**2, 0)}.items():
        assert found[name].values == pytest.approx(values.mean(1), rel=1e-9)
        assert found[f"{name}_stderr"].values[:3] == pytest.approx(values.std(1, ddof=1)[:3] / np.sqrt(4000), rel=1e-7)
    assert found["cosine_spread"].values == pytest.approx(cosines.std(1, ddof=1), rel=1e-9)
    assert float(found["mean_alignment"]) == pytest.approx(np.abs(cosines).mean(), rel=1e-9)
    assert found["batch_cosine"].values == pytest.approx((c @ drawn / norms / np.linalg.norm(c)).mean(), rel=1e-9)


@pytest.mark.parametrize("interpolation", [0.0, 1e-3])
def test_with_noise_the_best_step_is_shorter(noisy, interpolation):
    surface, run, _ = noisy
    found = sharpest(run, surface, k=3, batches=30, batch_size=3, interpolation=interpolation).isel(step=0)
    level, drawn = surface.value(run.theta(0)), found["coefficient"].values
    c = found["gradient_cosine"].values * float(found["gradient_norm"])
    values = found["eigenvalue"].values
    alphas = np.array(ALPHAS)[:, None]
    for i in range(3):
        s = alphas * LR * drawn[i]
        exact = (-c[i] * s + values[i] * s**2 / 2) / level
        arm = found.sel(arm=f"e{i + 1}")
        assert arm["effect_batch"].values == pytest.approx(exact, rel=1e-7, abs=1e-10)
        assert arm["effect"].values == pytest.approx(exact.mean(1), rel=1e-7, abs=1e-10)
        assert arm["effect_stderr"].values == pytest.approx(exact.std(1, ddof=1) / np.sqrt(30), rel=1e-6)
        best = drawn[i].mean() * c[i] / (LR * values[i] * (drawn[i] ** 2).mean())
        assert float(arm["alpha_star"]) == pytest.approx(best, rel=1e-6)
        assert best < 0.97 / (LR * values[i])  # not the value without noise
        influence = drawn[i] * c[i] / drawn[i].mean() / c[i] - drawn[i] ** 2 / (drawn[i] ** 2).mean()
        assert float(arm["alpha_star_stderr"]) == pytest.approx(abs(best) * influence.std(ddof=1) / np.sqrt(30), rel=0.2)
    assert int(found["evaluations"]) == (1 + 4 * 30 * 7 + 3 * 9 + 2 * 15 if interpolation else 1 + 4 * 30 * 7 + 3 * 210 + 2 * 15)


def test_the_critical_sharpness_of_batches_is_that_of_their_own_loss():
    matrices = torch.stack([torch.diag(torch.tensor([1.0 + i * i, 0.5], dtype=F64)) for i in range(6)])
    surface = NoisyQuadratic(matrices, torch.arange(12, dtype=F64).reshape(6, 2) / 5)
    run = walk(surface, lr=0.1, updates=1, start=[4.0, -3.0], batch_size=1)
    found = sharpest(run, surface, batches=40, effects=False, sections=False).isel(step=0)
    own = [surface.on_batch([i]) for i in range(6)]
    gradients = [s.value_and_grad(run.theta(0))[1] for s in own]
    curved = [float(g @ s.hessian(run.theta(0)) @ g / (g @ g)) for g, s in zip(gradients, own, strict=True)]
    norms = [float(g.norm()) for g in gradients]
    drawn = [int(np.argmin([abs(n - b) for n in norms])) for b in found["batch_norm"].values]
    assert len(set(drawn)) > 4
    assert float(found["critical_batch_sharpness"]) == pytest.approx(np.mean([curved[i] for i in drawn]), rel=4e-3)
    full = surface.value_and_grad(run.theta(0))[1]
    along = float(full @ surface.hessian(run.theta(0)) @ full / (full @ full))
    assert float(found["critical_sharpness"]) == pytest.approx(along, rel=6e-3)
    assert abs(along / np.mean([curved[i] for i in drawn]) - 1) > 0.03  # the whole gradient would be a wrong answer


def test_chance_levels():
    assert chance_cosine(3) == pytest.approx(0.5, rel=1e-12)
    rows = torch.randn(40_000, 7, generator=torch.Generator().manual_seed(1), dtype=F64)
    assert float((rows[:, 2] / rows.norm(dim=1)).abs().mean()) == pytest.approx(chance_cosine(7), rel=0.015)
    surface = Quadratic(torch.diag(torch.arange(1.0, 8.0, dtype=F64)))
    found = sharpest(walk(surface, lr=0.1, updates=1, start=np.ones(7)), surface)
    assert float(found["alignment_chance"]) == pytest.approx(chance_cosine(7), rel=1e-15)
    assert found["share_chance"].values == pytest.approx(np.arange(1, 6) / 7, rel=1e-15)


def test_noise_share_needs_batches_that_differ():
    g = torch.tensor([1.0, 2.0, 2.0], dtype=F64)
    for gradients in ([g], [g, g.clone(), g.clone()]):
        assert np.isnan(noise_share(np.ones((2, len(gradients))), gradients)).all()


def test_noise_share_of_few_batches_has_the_error_of_a_ratio():
    gradients = [torch.tensor(g, dtype=F64) for g in ([1.0, 0.0, 2.0], [0.0, 3.0, 1.0], [2.0, 0.0, 0.0])]
    rows = torch.stack(gradients).numpy() - np.array([1.0, 1.0, 1.0])  # their mean is (1, 1, 1)
    inside, noise = rows[:, 0] ** 2, (rows**2).sum(1)
    share, error = noise_share(torch.stack(gradients).numpy().T[:2], gradients)
    assert share == pytest.approx([inside.sum() / noise.sum(), (rows[:, :2] ** 2).sum() / noise.sum()], rel=1e-12)
    spread = (inside - share[0] * noise).std(ddof=1) / np.sqrt(3)  # the mean of what is in it is 0
    assert error[0] == pytest.approx(spread / noise.mean(), rel=1e-12)


def test_a_batch_of_all_examples_is_made_once(bowl):
    surface, run, *_ = bowl
    found = sharpest(run, surface, k=2, sections=False).isel(step=0)
    searched = int(found["passes"]) - 3  # of the line search along g: the linearization takes 2, the update 1
    assert int(found["batch_passes"]) == 1 + searched
    assert int(found["evaluations"]) == 1 + 2 * 7 + (10 + 3) * 7  # ten random directions, once the other arms


def test_the_basis_turns_its_columns_and_takes_vectors_apart():
    turn = rotation(5)
    along = turn @ torch.tensor([-2.0, 3.0, 0.5, 0.0, 0.0], dtype=F64)
    basis = Basis(turn[:, :3], along)
    assert basis.vectors.T @ along == pytest.approx([2.0, 3.0, 0.5], rel=1e-12)
    zero = basis.split(torch.zeros(5, dtype=F64))
    assert np.isnan(zero["share"]).all()
    assert zero["part"].tolist() == [0, 0]


# --- a network against a plain loop -----------------------------------------------------------------------------------------


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def network(norm):
    torch.manual_seed(4)
    middle = [nn.BatchNorm1d(6)] if norm else []
    return nn.Sequential(nn.Linear(5, 6), *middle, nn.Tanh(), nn.Linear(6, 3)).double()


def examples(n=60):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 5, generator=generator, dtype=F64), torch.randint(3, (n,), generator=generator)


def trained(norm, updates=7, batch=9, live_sinks=()):
    """A recorded run on drawn batches, its surface and a copy of its model."""
    model, data = network(norm), examples()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    surface = LossSurface(model, loss, data)
    sinks = [live("sharpest", surface, **options) for options in live_sinks]
    recorder = Recorder(None, model, optimizer, loss=loss, snapshots=every(1), batches="bursts", store="memory", live=sinks)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(7))
    batches = [(data[0][order[i::updates]], data[1][order[i::updates]]) for i in range(updates)]
    for part in recorder.watch(batches):
        optimizer.zero_grad()
        recorder.loss(model, part).backward()
        optimizer.step()
    recorder.close()
    return recorder.store.trajectory(), surface, model, data, batches, sinks


def placed(model, run, step, theta=None, training=False):
    """The model at a point of the run, with the buffers of that point."""
    twin = copy.deepcopy(model)
    nn.utils.vector_to_parameters(run.theta(step) if theta is None else theta, twin.parameters())
    for name, buffer in twin.named_buffers():
        buffer.copy_(run.buffers(step)[name])
    return twin.train(training)


def flat(value, model):
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(model.parameters()))])


@pytest.mark.parametrize("norm", [False, True])
def test_a_network_against_a_plain_loop(norm):
    """Data in batches: the recorded ones serve, in training mode; losses with the running statistics of the point."""
    run, _, model, data, batches, _ = trained(norm)
    surface = LossSurface(model, loss, batches)
    t, k, lr = 2, 3, 0.4
    found = sharpest(run.between(t, 7), surface, k=k, tolerance=1e-9, batches=4, alphas=(0.5, 1.0, 2.0)).isel(step=0)
    theta, twin = run.theta(t), placed(model, run, t)
    names = [n for n, _ in twin.named_parameters()]
    shapes = [p.shape for p in twin.parameters()]

    def whole(point):
        parts = point.split([s.numel() for s in shapes])
        values = dict(zip(names, (p.view(s) for p, s in zip(parts, shapes, strict=True)), strict=True))
        return F.cross_entropy(torch.func.functional_call(twin, values, (data[0],)), data[1])

    values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(whole, theta))
    values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
    gradient = flat(loss(twin, data), twin)
    vectors = vectors * torch.sign(vectors.T @ gradient)
    assert found["eigenvalue"].values == pytest.approx(values.numpy(), rel=1e-8)
    assert float(found["loss"]) == pytest.approx(float(whole(theta)), rel=1e-12)
    start = float(whole(theta))
    drawn = []
    for b, part in enumerate(batches[t : t + 4]):
        own = placed(model, run, t, training=True)
        g = flat(loss(own, part), own)
        drawn.append(g)
        assert found["coefficient"].values[:, b] == pytest.approx((vectors.T @ g).numpy(), rel=1e-6, abs=1e-9)
        inside = vectors @ (vectors.T @ g)
        arms = {f"e{i + 1}": vectors[:, i] * (vectors[:, i] @ g) for i in range(k)}
        arms |= {"dominant": inside, "bulk": g - inside, "full": g}
        for arm, direction in arms.items():
            after = [float(whole(theta - alpha * lr * direction)) / start - 1 for alpha in (0.5, 1.0, 2.0)]
            assert found["effect_batch"].sel(arm=arm).values[:, b] == pytest.approx(after, rel=1e-6, abs=1e-9), arm
    length = np.array([np.mean([lr * abs(float(vectors[:, i] @ g)) for g in drawn]) for i in range(k)])
    assert found["step_length"].values == pytest.approx(length, rel=1e-7)
    section = [float(whole(theta + 4 * length[2] * vectors[:, 2])), float(whole(theta - 0.25 * length[2] * vectors[:, 2]))]
    assert found["section"].sel(cross=3, position=[4.0, -0.25]).values == pytest.approx(section, rel=1e-9)
    after = float(loss(placed(model, run, t + 1), data).detach()) - start
    assert float(found["update_change"]) == pytest.approx(after, rel=1e-9)
    assert float(found["batch_passes"]) > 4


def test_the_interpolation_keeps_its_error_and_saves_evaluations():
    run, surface, *_ = trained(False)
    options = {"k": 3, "batches": 12, "sections": False, "critical": False}
    plain = sharpest(run, surface, interpolation=0.0, **options).isel(step=0)
    quick = sharpest(run, surface, interpolation=1e-3, **options).isel(step=0)
    arms = ["e1", "e2", "e3"]
    miss = np.abs(plain["effect_batch"] - quick["effect_batch"]).sel(arm=arms).max(["alpha", "batch"]).values
    bound = quick["effect_error"].sel(arm=arms).values
    assert (bound > 0).all()
    assert (miss <= bound).all()
    assert (bound < 0.01 * np.abs(quick["effect"].sel(arm=arms)).max("alpha").values).all()
    assert (plain["effect_error"].values == 0).all()
    assert int(plain["evaluations"] - quick["evaluations"]) == 3 * (12 * 7 - 9)


def test_live_equals_offline_bit_for_bit():
    options = {"window": 3, "points": 2, "k": 2, "batches": 3, "alphas": (0.5, 1.0, 2.0), "critical": False}
    run, surface, *_, sinks = trained(True, live_sinks=[options])
    offline = sharpest(run, surface, **options)
    assert offline["step"].values.tolist() == [0, 2, 3, 5, 6]
    measured = sinks[0].measured
    for name in offline.variables:
        xr.testing.assert_equal(measured[name].drop_attrs(), offline[name].drop_attrs())


def test_losses_are_taken_on_an_even_subset_of_the_data():
    run, surface, _, data, *_ = trained(False)
    found = sharpest(run, surface, examples=7, k=1, sections=False, critical=False)
    rows = torch.tensor([0, 10, 20, 30, 39, 49, 59])  # 59 i / 6, rounded
    part = LossSurface(network(False), loss, (data[0][rows], data[1][rows]))
    assert float(found["subset_loss"][0]) == pytest.approx(part.value(run.theta(0)), rel=1e-12)
    assert abs(float(found["subset_loss"][0] / found["loss"][0]) - 1) > 1e-3


def test_what_is_drawn_depends_on_seed_and_step_alone(noisy):
    surface, run, _ = noisy
    options = {"k": 2, "batches": 3, "batch_size": 5}
    whole = sharpest(run, surface, points=3, **options)
    assert whole["step"].values.tolist() == [0, 2, 5]
    part = sharpest(run.between(2, 4), surface, **options, effects=False, critical=False)
    np.testing.assert_array_equal(whole["coefficient"].values[1], part["coefficient"].values[0])
    other = sharpest(run, surface, **options, seed=1)
    assert not np.isclose(other["coefficient"].values[0], whole["coefficient"].values[0]).any()
    assert not np.isclose(whole["effect"].sel(arm="random").values[0], other["effect"].sel(arm="random").values[0]).any()


# --- what is not there ---------------------------------------------------------------------------------------------------


def test_staleness_is_the_turn_of_the_directions():
    surface = River(lambda x: 0.3 * x * x, sharp=8.0, slope=3.0)
    run = walk(surface, lr=0.05, updates=9, start=[1.1, 2.0])
    found = sharpest(run, surface, points=3, k=1, cross=())
    pairs = [torch.linalg.eigh(surface.hessian(run.theta(t))) for t in (0, 4, 8)]
    assert found["step"].values.tolist() == [0, 4, 8]
    for n in (1, 2):
        turned = 1 - float(pairs[n - 1][1][:, 1] @ pairs[n][1][:, 1]) ** 2
        assert 1e-4 < turned < 0.9
        assert float(found["staleness"][n]) == pytest.approx(turned, rel=1e-6)
        change = float(pairs[n][0][1] / pairs[n - 1][0][1]) - 1
        assert float(found["eigenvalue_change"][n, 0]) == pytest.approx(change, rel=1e-6)
    assert found["staleness_outcome"].values.tolist() == [2, 0, 0]


def test_ranks_beyond_the_parameters_are_not_there():
    surface = StyblinskiTang(2)
    run = walk(surface, lr=0.01, updates=2, start=[1.3, -0.7])
    found = sharpest(run, surface, k=4).isel(step=0)
    assert found["eigenvalue_outcome"].values.tolist() == [0, 0, 2, 2]
    assert np.isnan(found["batch_share"].values[2:]).all()
    assert float(found["gradient_share"][1]) == pytest.approx(1, rel=1e-12)
    assert found["section_outcome"].sel(cross=3).values.tolist() == [2] * 15
    assert (found["effect_outcome"].values == 2).all()  # the loss is negative
    assert (found["width_outcome"].values == 2).all()
    assert np.isfinite(found["section"].sel(cross=1)).all()


def test_an_exhausted_budget_is_said_and_its_pairs_are_kept(noisy):
    run, surface, *_ = trained(False)
    found = sharpest(run, surface, k=3, budget=4, tolerance=1e-8).isel(step=0)
    assert (found["eigenvalue_outcome"].values == Outcome.not_converged).all()
    assert np.isfinite(found["eigenvalue"].values).all()
    assert (found["eigenvalue_residual"].values > 1e-8 * found["eigenvalue"].values).all()


def test_without_a_learning_rate_or_batches_the_steps_are_not_there(noisy):
    surface, run, _ = noisy
    bare = replace(run, read_steps=lambda: run.steps.drop_vars(["lr"]))
    found = sharpest(bare, surface).isel(step=0)
    assert (found["effect_outcome"].values == Outcome.not_applicable).all()
    assert np.isfinite(found["alignment"].values[:4]).all()
    assert np.isfinite(found["critical_sharpness"])
    given = sharpest(bare, surface, lr=LR)
    np.testing.assert_array_equal(given["effect"].values, sharpest(run, surface)["effect"].values)

    def nothing(step):
        raise NotAvailableError("not recorded")

    bare = replace(run, read_steps=lambda: run.steps.drop_vars(["batch_size"]), read_batch=nothing)
    found = sharpest(bare, surface).isel(step=0)
    assert (found["coefficient_outcome"].values == Outcome.not_applicable).all()
    assert (found["section_outcome"].values == Outcome.not_applicable).all()
    assert np.isfinite(found["gradient_share"].values[:4]).all()


def test_fewer_recorded_batches_than_asked_for_leave_gaps():
    run, _, model, _, batches, _ = trained(False)
    found = sharpest(run.between(4, 7), LossSurface(model, loss, batches), k=2, batches=5).isel(step=0)
    assert np.isfinite(found["coefficient"].values).sum(1).tolist() == [3, 3]
    assert np.isfinite(found["alignment_stderr"].values).all()
    made = minibatches(run, LossSurface(model, loss, batches), 5, span=(4, 7), count=9, size=9, generator=torch.Generator())
    own = [s.value(run.theta(5)) for s in made]
    assert own == pytest.approx([float(loss(placed(model, run, 5), batches[t]).detach()) for t in (5, 6, 4)], rel=1e-12)


def test_a_probe_counts_and_falls_back_where_the_polynomial_does_not_do():
    surface = NoisyQuadratic(torch.eye(2, dtype=F64), torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=F64))
    probe = Probe(surface, torch.zeros(2, dtype=F64), None, eps=2e-16)
    direction, steps = torch.tensor([0.6, -0.8], dtype=F64), np.linspace(-2, 3, 24).reshape(4, 6)
    values, error = probe.along(direction, steps, tolerance=1e-3)
    assert probe.evaluations == 9
    assert 0 < error < 1e-9
    assert values == pytest.approx(probe.losses(direction, steps.ravel()).reshape(4, 6), abs=error)
    few = probe.along(direction, np.array([[0.5, 0.5], [1.0, 0.5]]), tolerance=1e-3)
    assert not few[1]
    assert probe.evaluations == 9 + 24 + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: expected a whole number >= 1, got 0"),
        ({"points": 1.5}, "points: expected a whole number >= 1, got 1.5"),
        ({"batches": 0}, "batches: expected a whole number >= 1"),
        ({"batch_size": 0}, "batch_size: expected a whole number >= 1, got 0"),
        ({"examples": 1}, "examples: expected a whole number >= 2"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
        ({"alphas": (1.0, 0.5)}, "alphas: expected ascending finite numbers > 0"),
        ({"alphas": (0.0, 1.0)}, "alphas: expected ascending finite numbers > 0"),
        ({"alphas": (1.0, 3.0)}, "expected two alphas <= 2"),
        ({"positions": (-1.0, 1.0)}, "the positions -1, 0, 1"),
        ({"positions": (1.0, 0.0, -1.0)}, "positions: expected ascending finite numbers, got"),
        ({"levels": (0.9, 1.5)}, "levels: expected ascending finite numbers > 1"),
        ({"cross": (0,)}, "cross: expected a whole number >= 1, got 0"),
        ({"tolerance": 0.0}, "tolerance: expected a finite number > 0"),
        ({"interpolation": -0.1}, "interpolation: expected a finite number >= 0"),
        ({"lr": 0.0}, "lr: expected a finite number > 0"),
    ],
)
def test_bad_options_are_refused(noisy, options, message):
    with pytest.raises(ArgumentError, match=message.replace("(", r"\(")):
        sharpest(noisy[1], noisy[0], **options)


def test_a_missing_surface_is_refused(noisy):
    with pytest.raises(ArgumentError, match="surface: directions are those of a loss surface"):
        sharpest(noisy[1], None)
