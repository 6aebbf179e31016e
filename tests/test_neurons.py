"""The units of a network, and how they saturate: against loops by hand, dense matrices and closed forms, in float64."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sgdscope import landscapes
from sgdscope.contracts import quantities
from sgdscope.errors import ArgumentError, Outcome
from sgdscope.measure import live, measure
from sgdscope.quantities.neurons import ARMS, neurons
from sgdscope.recorder import Recorder, every
from sgdscope.records import Header, Snapshot, Trajectory, steps_dataset
from sgdscope.runs import open_trajectory
from sgdscope.surface import LossSurface
from sgdscope.surface.units import STEEPEST
from sgdscope.vector import Layout

F64 = torch.float64


def entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def squares(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def data(n=30, inputs=4, classes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator, dtype=F64) + 0.3
    return x, torch.randint(0, classes, (n,), generator=generator)


def net(*activations, widths=(4, 6, 5, 3)):
    layers = []
    for a, b, activation in zip(widths[:-1], widths[1:], (*activations, None), strict=True):
        layers += [nn.Linear(a, b)] + ([activation] if activation is not None else [])
    return nn.Sequential(*layers).double()


def surface_of(model, loss=entropy, **options):
    return LossSurface(model, loss, data(), **options)


def by_hand(model, theta, x):
    """z and phi(z) of each activation of a Sequential, by writing theta into a copy and calling layer by layer."""
    model = copy.deepcopy(model).eval()
    nn.utils.vector_to_parameters(theta, model.parameters())
    seen = []
    with torch.no_grad():
        for layer in model:
            z, x = x, layer(x)
            if not isinstance(layer, nn.Linear):
                seen.append((z, x))
    return seen, x


# --- the units of a surface ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 0.4, 1.5])
def test_relu_units_against_a_plain_loop(scale):
    model = net(nn.ReLU(), nn.ReLU())
    surface = surface_of(model)
    theta = surface.theta() + scale * torch.randn(len(surface.theta()), dtype=F64, generator=torch.Generator().manual_seed(7))
    seen = surface.saturation(theta, thresholds=(0.1, 0.5))
    layers, logits = by_hand(model, theta, data()[0])
    inactive, pairs, dead, units = 0, 0, np.zeros(2), 0
    for row, (z, h) in enumerate(layers):
        count = sum(float(value) <= 0 for value in z.reshape(-1))
        assert seen.inactive_layer[row] == pytest.approx(count / z.numel(), rel=1e-12)
        for j in range(z.shape[1]):
            mean = sum(abs(float(h[i, j])) for i in range(len(h))) / len(h)
            dead += [mean <= 0.1, mean <= 0.5]
        inactive, pairs, units = inactive + count, pairs + z.numel(), units + z.shape[1]
    assert seen.layers == ("1", "3")
    assert seen.pairs.tolist() == [180.0, 150.0]
    assert 0 < inactive < pairs
    assert seen.inactive == pytest.approx(inactive / pairs, rel=1e-12)
    assert seen.saturation == pytest.approx(inactive / pairs, rel=1e-12)
    assert seen.slope_square == pytest.approx(1 - inactive / pairs, rel=1e-12)
    assert np.isnan(seen.smooth)
    np.testing.assert_allclose(seen.dead, dead / units, rtol=1e-12)
    p = logits.softmax(1)
    curvature = sum(float((torch.diag(q) - torch.outer(q, q)).trace()) for q in p) / len(p)
    assert seen.softmax_curvature == pytest.approx(curvature, rel=1e-12)
    assert seen.softmax == pytest.approx(1 - curvature / (2 / 3), rel=1e-9)
    assert seen.value == surface.value(theta)


SLOPES = {
    "tanh": (nn.Tanh(), lambda z: 1 - np.tanh(z) ** 2, 1.0),
    "sigmoid": (nn.Sigmoid(), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2, 0.25),
    "leaky": (nn.LeakyReLU(0.2), lambda z: np.where(z > 0, 1.0, 0.2), 1.0),
    "steep leaky": (nn.LeakyReLU(3.0), lambda z: np.where(z > 0, 1.0, 3.0), 3.0),
    "softplus": (nn.Softplus(beta=2.0), lambda z: 1 / (1 + np.exp(-2 * z)), 1.0),
    "elu": (nn.ELU(1.7), lambda z: np.where(z > 0, 1.0, 1.7 * np.exp(z)), 1.7),
}


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_against_their_formulas(name):
    activation, slope, steepest = SLOPES[name]
    model = net(activation, copy.deepcopy(activation))
    surface = surface_of(model)
    theta = 1.7 * surface.theta()
    seen = surface.saturation(theta)
    slopes = [slope(z.numpy()).reshape(-1) for z, _ in by_hand(model, theta, data()[0])[0]]
    for row, own in enumerate(slopes):
        assert seen.saturation_layer[row] == pytest.approx(1 - own.mean() / steepest, rel=1e-10)
        assert seen.slope_square_layer[row] == pytest.approx((own**2).mean(), rel=1e-10)
    both = np.concatenate(slopes)
    assert seen.saturation == seen.smooth == pytest.approx(1 - both.mean() / steepest, rel=1e-10)
    assert np.isnan(seen.inactive)
    assert 0.01 < seen.saturation < 0.99


def test_a_gelu_that_falls_is_no_more_saturated_than_one_that_rises():
    model = net(nn.GELU(), nn.SiLU())
    surface = surface_of(model)
    theta = 3.0 * surface.theta()
    (z, _), (other, _) = by_hand(model, theta, data()[0])[0]
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=F64), 1.0)
    slope = normal.cdf(z) + z * normal.log_prob(z).exp()
    assert (slope < 0).any()
    top = max(float(normal.cdf(t) + t * normal.log_prob(t).exp()) for t in torch.linspace(1.3, 1.5, 2001, dtype=F64))
    seen = surface.saturation(theta)
    assert seen.saturation_layer[0] == pytest.approx(1 - float(slope.abs().mean()) / top, rel=1e-6)
    silu = other.sigmoid() * (1 + other * (1 - other.sigmoid()))
    assert seen.slope_square_layer[1] == pytest.approx(float((silu**2).mean()), rel=1e-10)


FUNCTIONS = {
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "selu": F.selu,
    "celu": F.celu,
    "softsign": F.softsign,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_steepest_slope_is_the_steepest(name):
    z = torch.cat([torch.linspace(-40, 40, 40001, dtype=F64), torch.linspace(-3, 3, 60001, dtype=F64) - 1e-9])
    slopes = torch.autograd.grad(FUNCTIONS[name](z.requires_grad_()).sum(), z)[0].abs()
    assert float(slopes.max()) == pytest.approx(STEEPEST[name], rel=2e-4)
    assert float(slopes.max()) <= STEEPEST[name] * (1 + 1e-7)  # torch's 1/6 is float32


def test_learnt_and_random_slopes():
    prelu = nn.PReLU(6)
    prelu.weight = nn.Parameter(torch.tensor([0.1, 0.2, -0.3, 0.4, 1.5, 0.6]))
    model = net(prelu, nn.RReLU(0.1, 0.5))
    surface = surface_of(model)
    (z, _), (other, _) = by_hand(model, surface.theta(), data()[0])[0]
    seen = surface.saturation(surface.theta())
    slopes = torch.where(z > 0, 1.0, prelu.weight.detach()).abs()
    assert seen.saturation_layer[0] == pytest.approx(1 - float(slopes.mean()) / 1.5, rel=1e-6)
    assert seen.saturation_layer[1] == pytest.approx(1 - float(torch.where(other > 0, 1.0, 0.3).double().mean()), rel=1e-6)


def test_the_fused_paths_of_torch_are_not_taken():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, dtype=F64)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3, dtype=F64)).eval()
    x, y = torch.randn(9, 3, 4, dtype=F64), torch.arange(9) % 3
    surface = LossSurface(model, entropy, (x, y))
    seen = surface.saturation(surface.theta())
    assert seen.layers == ("0.relu()",)
    assert seen.pairs.tolist() == [9 * 3 * 8]
    z = layer.linear1(layer.norm1(x + layer.self_attn(x, x, x)[0]))
    assert seen.inactive == pytest.approx(float((z <= 0).double().mean()))
    assert 0 < seen.inactive < 1


class Functional(nn.Module):
    """Activations in every way in which people write them; the relu of the block is called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = self.b(x).tanh()
        x = self.relu(self.c(x)) + 0.1
        return self.d(self.relu(torch.sigmoid(x) - 0.6))


def test_functions_and_modules_are_seen_once_each():
    model = Functional().double()
    surface = surface_of(model)
    x = data()[0]
    with torch.no_grad():
        za = model.a(x)
        zb = model.b(za.relu())
        zc = model.c(zb.tanh())
        zs = zc.relu() + 0.1
        zd = zs.sigmoid() - 0.6
    seen = surface.saturation(surface.theta())
    assert seen.layers == ("relu()", "tanh()", "relu", "sigmoid()", "relu#2")
    gate = zs.sigmoid() * (1 - zs.sigmoid())
    truth = [(za <= 0).double(), zb.tanh() ** 2, (zc <= 0).double(), 1 - 4 * gate, (zd <= 0).double()]
    np.testing.assert_allclose(seen.saturation_layer, [float(t.mean()) for t in truth], rtol=1e-10)
    piecewise = [0, 2, 4]
    assert seen.inactive == pytest.approx(float(torch.cat([truth[i] for i in piecewise]).mean()), rel=1e-12)
    assert seen.smooth == pytest.approx(float(torch.cat([truth[1], truth[3]]).mean()), rel=1e-12)


def test_batches_of_unequal_size_do_not_matter():
    model = net(nn.ReLU(), nn.Tanh())
    x, y = data()
    pieces = [(x[:7], y[:7]), (x[7:8], y[7:8]), (x[8:], y[8:])]
    cut = LossSurface(model, entropy, pieces).saturation(1.3 * LossSurface(model, entropy, pieces).theta(), thresholds=(0.2, 0.4))
    whole = surface_of(model)
    seen = whole.saturation(1.3 * whole.theta(), thresholds=(0.2, 0.4))
    np.testing.assert_allclose(cut.saturation_layer, seen.saturation_layer, rtol=1e-12)
    np.testing.assert_allclose(cut.dead, seen.dead, rtol=1e-12)
    assert 0 < seen.dead[1] < 1
    assert cut.softmax == pytest.approx(seen.softmax, rel=1e-12)


@pytest.mark.parametrize("mode", ["eval", "batch", "recalibrate"])
def test_batchnorm_is_that_of_the_surface(mode):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    model(data(seed=5)[0] * 3 + 1)
    surface = surface_of(model, batchnorm=mode)
    theta = surface.theta() * 1.2
    buffers = {"1.running_mean": torch.full((6,), 0.4, dtype=F64), "1.running_var": torch.full((6,), 1.7, dtype=F64)}
    buffers["1.num_batches_tracked"] = torch.tensor(3)
    own = copy.deepcopy(model)
    nn.utils.vector_to_parameters(theta, own.parameters())
    z = own[0](data()[0])
    if mode == "eval":
        z = (z - buffers["1.running_mean"]) / (buffers["1.running_var"] + 1e-5).sqrt()
    else:
        z = (z - z.mean(0)) / (z.var(0, unbiased=mode == "recalibrate") + 1e-5).sqrt()
    z = z * own[1].weight + own[1].bias
    seen = surface.saturation(theta, buffers)
    assert seen.inactive == pytest.approx(float((z <= 0).double().mean()), rel=1e-12)
    assert seen.value == pytest.approx(surface.value(theta, buffers), rel=1e-12)


def test_images_have_a_unit_at_each_place():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 9, 3)).double()
    x = torch.randn(10, 1, 4, 4, dtype=F64)
    surface = LossSurface(model, entropy, (x, torch.arange(10) % 3))
    seen = surface.saturation(surface.theta(), thresholds=(0.15,))
    h = model[1](model[0](x))
    assert seen.units.tolist() == [18.0]
    assert seen.dead[0] == pytest.approx(float((h.mean(0) <= 0.15).double().mean()))
    assert 0 < seen.dead[0] < 1


def test_dead_units_are_told_by_their_height_and_not_by_their_mean():
    model = net(nn.Tanh(), nn.ELU(inplace=True))
    surface = surface_of(model)
    heights = [h.abs().mean(0) for _, h in by_hand(net(nn.Tanh(), nn.ELU()), surface.theta(), data()[0])[0]]
    seen = surface.saturation(surface.theta(), thresholds=(0.2, 0.35))
    for row, height in enumerate(heights):
        np.testing.assert_allclose(seen.dead_layer[row], [float((height <= t).double().mean()) for t in (0.2, 0.35)])
    assert 0 < seen.dead[0] < seen.dead[1] < 1


def test_what_is_not_there_is_said():
    linear = net(widths=(4, 3))
    seen = surface_of(linear).saturation(surface_of(linear).theta())
    assert np.isnan(seen.saturation)
    assert np.isnan(seen.dead).all()
    assert "no activation" in seen.reason
    assert np.isfinite(seen.softmax)
    x = data()[0]
    regression = LossSurface(net(nn.Tanh(), nn.Tanh()), squares, (x, torch.randn(30, 3, dtype=F64)))
    seen = regression.saturation(regression.theta())
    assert np.isnan(seen.softmax)
    assert "softmax" in seen.softmax_reason
    assert np.isfinite(seen.saturation)
    with pytest.raises(ArgumentError, match="thresholds: expected finite numbers >= 0"):
        regression.saturation(regression.theta(), thresholds=(-1e-3,))


def test_log_probabilities_have_the_same_softmax():
    model = net(nn.Tanh(), nn.Tanh())
    ending = nn.Sequential(*model, nn.LogSoftmax(1))
    plain = surface_of(model)
    other = LossSurface(ending, lambda m, batch: F.nll_loss(m(batch[0]), batch[1]), data())
    theta = plain.theta() * 2
    assert other.saturation(theta).softmax == pytest.approx(plain.saturation(theta).softmax, rel=1e-12)
    half = LossSurface(model, lambda m, batch: F.cross_entropy(m(batch[0]) / 2, batch[1]), data())
    halved = plain.theta().clone()
    halved[-18:] = halved[-18:] / 2  # of the last layer: 5 x 3 weights, 3 biases
    assert half.saturation(plain.theta()).softmax == pytest.approx(plain.saturation(halved).softmax, rel=1e-10)


def test_nothing_of_the_users_is_disturbed():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)).double().train()
    calls = []
    model[2].register_forward_hook(lambda *_: calls.append(1))
    entropy(model, data()).backward()
    surface = surface_of(model)
    calls.clear()
    gradients = [p.grad.clone() for p in model.parameters()]
    states, buffers = (torch.get_rng_state(), random.getstate()), copy.deepcopy(model.state_dict())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in surface._net.module.modules()]
    with torch.inference_mode():
        surface.saturation(surface.theta())
    assert not calls
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in surface._net.module.modules()] == hooks
    assert all(m.training for m in model.modules())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(torch.equal(value, buffers[name]) for name, value in model.state_dict().items())
    value = surface.value(surface.theta())
    assert surface.saturation(surface.theta()).value == value == surface.value(surface.theta())


# --- the quantity ---------------------------------------------------------------------------------------------------------


def walk(surface, *, lr=0.3, batch_size=8, updates=5):
    """A gradient walk on the surface, recorded by hand."""
    points = [surface.theta()]
    for _ in range(updates):
        points.append(points[-1] - lr * surface.value_and_grad(points[-1])[1])
    columns = {"lr": np.full(updates, lr), "batch_size": np.full(updates, float(batch_size))}
    return Trajectory(
        header=Header(surface.layout, Layout((), (), ()), {}),
        read_steps=lambda: steps_dataset(np.arange(updates), columns),
        snapshot_steps=np.arange(updates + 1),
        read_snapshot=lambda step: Snapshot(step, points[step], torch.zeros(0, dtype=torch.uint8)),
    )


def dense(surface, theta):
    eye = torch.eye(len(theta), dtype=F64)
    with surface.linearized(theta) as h:
        hessian = h.hvp(eye)
    return (hessian + hessian.T) / 2


def outer_products(model, theta):
    """G = 1/N sum_n J_n' (diag p_n - p_n p_n') J_n, from the Jacobian of each single example."""
    own = copy.deepcopy(model)
    names = [name for name, _ in own.named_parameters()]
    shapes = [p.shape for p in own.parameters()]
    sizes = [p.numel() for p in own.parameters()]
    total = torch.zeros(len(theta), len(theta), dtype=F64)
    x = data()[0]
    for row in x:

        def logits(flat, row=row):
            parts = {n: part.view(s) for n, s, part in zip(names, shapes, flat.split(sizes), strict=True)}
            return torch.func.functional_call(own, parts, (row[None],))[0]

        jacobian = torch.autograd.functional.jacobian(logits, theta)
        p = logits(theta).detach().softmax(0)
        total += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    return total / len(x)


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(3)
    model = net(nn.Tanh(), nn.ReLU())
    surface = surface_of(model)
    trajectory = walk(surface)
    return model, surface, trajectory, neurons(trajectory, surface, k=3, tolerance=1e-10, randoms=3, batches=4, bottom=True)


def test_the_baseline_is_that_of_the_surface(measured):
    _, surface, trajectory, found = measured
    assert found["step"].values.tolist() == [0]
    seen = surface.saturation(trajectory.theta(0))
    assert found["layer"].values.tolist() == ["1", "3"]
    np.testing.assert_array_equal(found["saturation_layer"][0], seen.saturation_layer)
    np.testing.assert_array_equal(found["dead"][0], seen.dead)
    numbers = {"saturation": seen.saturation, "inactive": seen.inactive, "smooth_saturation": seen.smooth}
    numbers |= {"slope_square": seen.slope_square, "softmax_saturation": seen.softmax, "loss": seen.value}
    for name, value in numbers.items():
        assert found[name].item() == value
    assert len(set(numbers.values())) == len(numbers)


def test_the_split_against_dense_matrices(measured):
    model, surface, trajectory, found = measured
    theta = trajectory.theta(0)
    whole, outer = dense(surface, theta), outer_products(model, theta)
    rest = torch.linalg.eigvalsh(whole - outer)
    assert found["gauss_newton_top"].item() == pytest.approx(float(torch.linalg.eigvalsh(outer)[-1]), rel=1e-8)
    assert found["rest_top"].item() == pytest.approx(float(rest[-1]), rel=1e-8)
    assert found["rest_bottom"].item() == pytest.approx(float(rest[0]), rel=1e-8)
    assert abs(float(rest[0]) + float(rest[-1])) > 1e-3 * float(rest[-1])  # a wrong sign would be seen
    assert (found["rest_top_outcome"] == Outcome.ok).all()
    values = torch.linalg.eigvalsh(whole).flip(0)[:3]
    np.testing.assert_allclose(found["eigenvalue"][0], values, rtol=1e-8)


def test_the_steps_of_sgd_along_the_eigenvectors(measured):
    _, surface, trajectory, found = measured
    theta = trajectory.theta(0)
    vectors = torch.linalg.eigh(dense(surface, theta))[1].flip(1)[:, :3]
    gradient = surface.value_and_grad(theta)[1]
    vectors = vectors * torch.sign(gradient @ vectors)
    np.testing.assert_allclose(found["slope"][0], gradient @ vectors, rtol=1e-6)
    single = torch.stack([surface.on_batch(surface.rows([i])).value_and_grad(theta)[1] for i in range(30)]) @ vectors
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([0, 0, 0]).generate_state(1)[0]))
    moves = torch.stack([0.3 * single[torch.randperm(30, generator=generator)[:8]].mean(0) for _ in range(4)])
    np.testing.assert_allclose(found["reach"][0], moves.abs().mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["mean_step"][0], moves.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["downhill"][0], (moves > 0).double().mean(0))
    np.testing.assert_allclose(found["reach_stderr"][0], moves.abs().std(0) / 2, rtol=1e-6)
    assert (moves.mean(0) < moves.abs().mean(0) - 1e-6).any()  # the mean of absolute values is not that of the values


def test_changes_along_each_arm(measured):
    _, surface, trajectory, found = measured
    theta = trajectory.theta(0)
    vectors = torch.linalg.eigh(dense(surface, theta))[1]
    gradient = surface.value_and_grad(theta)[1]
    base = surface.saturation(theta)
    places = found["position"].values.tolist()
    compared = 0
    for arm, basis in (("sharp", vectors.flip(1)), ("bottom", vectors), ("gradient", (gradient / gradient.norm())[:, None])):
        for rank in range(3):
            d = basis[:, min(rank, basis.shape[1] - 1)]
            d = d * torch.sign(gradient @ d)
            for j in (-4.0, -1.0, 0.5):
                there = surface.saturation(theta + j * float(found["reach"][0, rank]) * d)
                here = found.isel(step=0, arm=ARMS.index(arm), rank=rank, position=places.index(j))
                for name, value in (
                    ("saturation_change", there.saturation - base.saturation),
                    ("slope_square_change", there.slope_square - base.slope_square),
                    ("softmax_change", there.softmax - base.softmax),
                    ("loss_change", there.value - base.value),
                ):
                    assert here[name].item() == pytest.approx(value, rel=1e-4, abs=1e-9), (arm, rank, j, name)
                    assert here[f"{name}_stderr"].item() == 0
                    compared += value != 0
    assert compared > 80
    downhill = found["loss_change"].sel(position=-0.5, arm="gradient")
    assert (downhill < 0).all()  # j < 0 is where SGD goes


def test_random_directions_are_of_unit_length_and_uphill(measured):
    _, surface, trajectory, found = measured
    theta, gradient = trajectory.theta(0), surface.value_and_grad(trajectory.theta(0))[1]
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([0, 0, 1]).generate_state(1)[0]))
    lines = torch.randn(len(theta), 3, generator=generator).double().T
    base, seen = surface.value(theta), []
    for line in lines:
        d = line / line.norm() * torch.sign(gradient @ line)
        seen.append(surface.value(theta - 2 * float(found["reach"][0, 1]) * d) - base)
    here = found.sel(arm="random", position=-2.0).isel(step=0, rank=1)
    assert here["loss_change"].item() == pytest.approx(np.mean(seen), rel=1e-9)
    assert here["loss_change_stderr"].item() == pytest.approx(np.std(seen, ddof=1) / np.sqrt(3), rel=1e-9)
    assert here["loss_change"].item() < 0


def test_one_unit_saturates_exactly_where_it_should():
    """tanh(w x) with one weight: H is 1 x 1, e_1 = +-1, and the change is a difference of two closed forms."""
    x = torch.tensor([[0.7], [-1.3], [0.4], [2.0]], dtype=F64)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh()).double()
    nn.init.constant_(model[0].weight, 0.6)
    surface = LossSurface(model, squares, (x, torch.full((4, 1), 0.9, dtype=F64)))
    found = neurons(walk(surface, lr=0.2, batch_size=4), surface, k=2, randoms=2, batches=2)
    slope = surface.value_and_grad(surface.theta())[1].item()
    assert found["reach"][0, 0].item() == pytest.approx(0.2 * abs(slope), rel=1e-10)
    assert found["downhill"][0, 0].item() == 1
    for j in (-4.0, -1.0, 2.0):
        w = 0.6 + j * 0.2 * slope
        truth = float((torch.tanh(w * x) ** 2).mean() - (torch.tanh(0.6 * x) ** 2).mean())
        for arm in ("sharp", "random", "gradient"):
            assert found["saturation_change"].sel(arm=arm, position=j)[0, 0].item() == pytest.approx(truth, rel=1e-9)
    assert (found["saturation_change_outcome"].sel(rank=2) == Outcome.not_applicable).all()  # P = 1
    assert (found["saturation_change_outcome"].sel(arm="bottom") == Outcome.not_applicable).all()
    assert (found["softmax_change_outcome"] == Outcome.not_applicable).all()


def test_two_points_of_a_window_are_the_same_as_in_their_own_windows():
    model = net(nn.Tanh(), nn.ReLU())
    surface = surface_of(model)
    trajectory = walk(surface)
    options = {"k": 1, "randoms": 2, "batches": 2, "positions": (-1.0,), "split": False}
    both = neurons(trajectory, surface, points=2, **options)
    assert both["step"].values.tolist() == [0, 4]
    single = neurons(trajectory, surface, window=1, **options).sel(step=[0, 4])
    for name in ("saturation", "eigenvalue", "reach", "saturation_change", "loss_change_stderr"):
        np.testing.assert_array_equal(both[name].values, single[name].values)
        assert np.isfinite(both[name].sel(arm=["sharp", "random"]) if "arm" in both[name].dims else both[name]).all()
    assert both["reach"][0].item() != both["reach"][1].item()
    assert not both["rest_top"].notnull().any()
    other = neurons(trajectory, surface, points=2, **options, seed=1)
    assert (other["reach"].values != both["reach"].values).all()
    np.testing.assert_array_equal(other["saturation"].values, both["saturation"].values)


def test_the_loss_times_c_changes_what_is_declared():
    model = net(nn.Tanh(), nn.ReLU())
    plain = surface_of(model)
    scaled = surface_of(model, loss=lambda m, batch: 8 * entropy(m, batch))
    options = {"k": 2, "tolerance": 1e-10, "randoms": 2, "batches": 2, "positions": (-1.0, 2.0)}
    one = neurons(walk(plain, lr=0.4), plain, **options)
    two = neurons(walk(scaled, lr=0.05), scaled, **options)
    compared = 0
    for name, power in quantities["neurons"].scales.items():
        np.testing.assert_allclose(two[name], one[name].values * 8**power, rtol=1e-6, atol=1e-9 * 8**power, err_msg=name)
        compared += bool((one[name].values != 0).any() and np.isfinite(one[name].values).any())
    assert compared > 20


def test_without_a_network_the_eigenvalues_are_there():
    surface = landscapes.NoisyQuadratic(torch.diag(torch.tensor([5.0, 2.0, 0.5], dtype=F64)), torch.randn(12, 3, dtype=F64))
    found = neurons(landscapes.walk(surface, lr=0.1, updates=4, start=[1.0, 2.0, -1.0], batch_size=3), surface, k=2)
    np.testing.assert_allclose(found["eigenvalue"][0], [5.0, 2.0], rtol=1e-10)
    for name in ("saturation", "dead", "softmax_saturation", "rest_top", "gauss_newton_top", "saturation_change"):
        assert (found[f"{name}_outcome"] == Outcome.not_applicable).all()
        assert "no" in found[name].attrs["reason"]
    change = found["loss_change"].sel(arm="sharp", position=2.0)[0]
    along = 2 * found["reach"][0]
    np.testing.assert_allclose(change, along * found["slope"][0] + along**2 * found["eigenvalue"][0] / 2, rtol=1e-9)


def test_a_module_called_twice_has_no_split_and_unknown_settings_no_steps():
    model = net(nn.Tanh(), nn.Tanh())
    x, y = data()
    surface = LossSurface(model, lambda m, batch: F.cross_entropy(m(batch[0]) + m(-batch[0]), batch[1]), (x, y))
    trajectory = walk(surface)
    nameless = replace(trajectory, read_steps=lambda: trajectory.steps.drop_vars(["lr", "batch_size"]))
    found = neurons(nameless, surface, k=1, positions=(1.0,))
    assert (found["rest_top_outcome"] == Outcome.not_applicable).all()
    assert (found["eigenvalue_outcome"] == Outcome.ok).all()
    assert (found["reach_outcome"] == Outcome.not_applicable).all()
    assert found["layer"].values.tolist() == ["1", "3", "1#2", "3#2"]
    given = neurons(nameless, surface, k=1, positions=(1.0,), lr=0.3, batch_size=8)
    recorded = neurons(trajectory, surface, k=1, positions=(1.0,))
    assert given["reach"].item() == recorded["reach"].item() > 0


def test_data_given_in_batches_have_no_mini_batches():
    x, y = data()
    surface = LossSurface(net(nn.Tanh(), nn.ReLU()), entropy, [(x[:20], y[:20]), (x[20:], y[20:])])
    found = neurons(walk(surface), surface, k=1)
    assert (found["saturation_outcome"] == Outcome.ok).all()
    for name in ("reach", "mean_step", "downhill", "saturation_change", "loss_change"):
        assert (found[f"{name}_outcome"] == Outcome.not_applicable).all()
        assert "taken apart" in found["reach"].attrs["reason"]


def test_directions_are_looked_along_on_some_examples():
    surface = surface_of(net(nn.Tanh(), nn.ReLU()))
    trajectory = walk(surface)
    found = neurons(trajectory, surface, k=1, positions=(-1.0, 0.0), examples=10, batches=3)
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([0, 0, 3]).generate_state(1)[0]))
    part = surface.subset(torch.randperm(30, generator=generator)[:10])
    theta, gradient = trajectory.theta(0), surface.value_and_grad(trajectory.theta(0))[1]
    there = part.saturation(theta - found["reach"].item() * gradient / gradient.norm())
    change = found.sel(arm="gradient", position=-1.0)
    assert change["softmax_change"].item() == pytest.approx(there.softmax - part.saturation(theta).softmax, rel=1e-8)
    assert (found["loss_change"].sel(position=0.0, arm=["sharp", "random", "gradient"]) == 0).all()
    whole = neurons(trajectory, surface, k=1, positions=(-1.0, 0.0), batches=3)
    assert whole["softmax_change"].sel(arm="gradient", position=-1.0).item() != change["softmax_change"].item()
    for name in ("saturation", "eigenvalue", "reach"):
        np.testing.assert_array_equal(whole[name].values, found[name].values)
    assert found["passes"].item() == 1 + 1 + 1 + 5 + 1


def test_live_equals_offline_with_batchnorm(tmp_path):
    torch.manual_seed(2)
    x, y = (t.float() if t.is_floating_point() else t for t in data(40))
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    surface = LossSurface(model, entropy, (x, y))
    options = {"window": 3, "points": 2, "k": 2, "randoms": 2, "batches": 2, "positions": (-1.0, 1.0)}
    sink, optimizer = live("neurons", surface, **options), torch.optim.SGD(model.parameters(), lr=0.2)
    with Recorder(tmp_path / "run", model, optimizer, loss=entropy, snapshots=every(1), live=[sink]) as recorder:
        for batch in recorder.watch([(x[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)]):
            optimizer.zero_grad()
            recorder.loss(model, batch).backward()
            optimizer.step()
    offline = measure(open_trajectory(tmp_path / "run"), surface, "neurons", **options)["neurons"].to_dataset()
    assert sink.measured.sizes["step"] == 4
    assert set(sink.measured.data_vars) == set(offline.data_vars)
    for name in (*offline.data_vars, "step", "layer"):
        np.testing.assert_array_equal(sink.measured[name].values, offline[name].values, err_msg=str(name))
    for name in ("reach", "saturation_change", "rest_top", "dead"):
        assert offline[name].notnull().any()


def test_a_tolerance_out_of_reach_is_said():
    surface = surface_of(net(nn.Tanh(), nn.ReLU()))
    found = neurons(walk(surface), surface, k=1, tolerance=1e-18, positions=(-1.0,), split=False)
    for name in ("eigenvalue", "reach", "saturation_change"):
        assert (found[f"{name}_outcome"].isel(rank=0).values.ravel()[0] == Outcome.not_converged).all()
        assert np.isfinite(found[name].isel(rank=0).values.ravel()[0])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("k", 0, "k: expected a whole number >= 1"),
        ("randoms", 1, "randoms: expected a whole number >= 2"),
        ("positions", (1.0, 1.0), "positions: expected distinct finite numbers"),
        ("lr", -0.1, "lr: expected a finite number > 0"),
        ("batch_size", 0, "batch_size: expected a whole number >= 1"),
        ("examples", 1, "examples: expected a whole number >= 2"),
    ],
)
def test_wrong_options_are_refused(option, value, message):
    surface = surface_of(net(nn.Tanh(), nn.ReLU()))
    with pytest.raises(ArgumentError, match=message):
        neurons(walk(surface), surface, **{option: value})
    with pytest.raises(ArgumentError, match="surface: units are looked at"):
        neurons(walk(surface), None)
