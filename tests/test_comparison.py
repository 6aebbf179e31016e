"""Two points held against each other, on surfaces whose barriers, curvatures, widths and noise are known."""

import json
import math

import numpy as np
import pytest
import torch

from sgdscope import landscapes
from sgdscope.cli import main
from sgdscope.comparison import compare, filter_normalised, interpolate
from sgdscope.errors import ArgumentError
from sgdscope.experiment import Experiment, run, surface_of
from sgdscope.landscapes.surfaces import Landscape
from sgdscope.runs import open_trajectory
from sgdscope.surface import LossSurface

A, B = torch.tensor([-0.5, 0.0, 0.0], dtype=torch.float64), torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64)


class Basins(Landscape):
    """Two parabolas in x, joined by the smaller one; curvatures that depend on the basin in the others."""

    def __init__(self, losses=(0.05, 0.0), curvatures=((4.0, 1.5, 0.7), (36.0, 5.0, 0.7))):
        self.own = losses, [torch.tensor(c, dtype=torch.float64) for c in curvatures]
        super().__init__(A.clone(), {"basins": str((losses, curvatures))})

    def _parts(self, theta):
        away = [self._point(theta) - end for end in (A, B)]
        values = [loss + float(0.5 * c @ x**2) for loss, c, x in zip(*self.own, away, strict=True)]
        near = int(values[1] < values[0])
        return values[near], self.own[1][near], away[near]

    def value_and_grad(self, theta, buffers=None):
        value, curvatures, away = self._parts(theta)
        return value, curvatures * away

    def hessian(self, theta):
        return torch.diag(self._parts(theta)[1])


def noisy(surface, n=64, scale=0.3, seed=0):
    pulls = scale * torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return landscapes.Noisy(surface, pulls), pulls - pulls.mean(0)


def test_line_between_two_basins():
    found = interpolate(Basins(), A, B, alphas=np.linspace(-1, 2, 301).tolist())
    x = found["alpha"].values - 0.5
    expected = np.minimum(0.05 + 2 * (x + 0.5) ** 2, 18 * (x - 0.5) ** 2)
    assert found["loss"].values == pytest.approx(expected, abs=1e-14)
    assert found["curvature"].values == pytest.approx([4.0, 36.0], rel=1e-9)
    assert float(found["distance"]) == pytest.approx(1.0, rel=1e-15)
    top = expected[(x >= -0.5) & (x <= 0.5)].max() - 0.05
    assert float(found["barrier"]) == pytest.approx(top, rel=1e-12)
    assert float(found["barrier"]) > 1.0


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_curvature_is_per_unit_of_theta(scale):
    surface = landscapes.Quadratic(torch.diag(torch.tensor([3.0, 0.5], dtype=torch.float64)))
    a, b = torch.tensor([0.2, 0.1], dtype=torch.float64), torch.tensor([0.2 + 1.3 * scale, 0.1], dtype=torch.float64)
    assert interpolate(surface, a, b)["curvature"].values == pytest.approx([3.0, 3.0], rel=1e-9)


def test_barrier_of_a_coarse_grid_is_within_its_bound():
    class Hump(landscapes.Quadratic):
        def value_and_grad(self, theta, buffers=None):
            x = float(theta[0])
            return math.sin(2.9 * x) ** 2, torch.tensor([2.9 * math.sin(5.8 * x)], dtype=torch.float64)

    surface = Hump(torch.eye(1, dtype=torch.float64))
    ends = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    found = interpolate(surface, *ends, alphas=[-0.3, 0.0, 0.3, 0.6, 1.0, 1.3])
    exact = 1 - math.sin(2.9) ** 2
    assert 0 < exact - float(found["barrier"]) <= found.attrs["barrier_bound"] < 0.15


def test_no_barrier_on_a_bowl_and_none_outside():
    surface = landscapes.Quadratic(torch.eye(2, dtype=torch.float64))
    a, b = torch.tensor([0.5, 0.3], dtype=torch.float64), torch.tensor([1.5, 0.3], dtype=torch.float64)
    found = interpolate(surface, a, b)
    assert float(found["barrier"]) == pytest.approx(0.0, abs=1e-15)
    assert float(found["loss"].max()) > float(found["loss"].sel(alpha=1.0))  # outside of [0, 1]


def network(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    x = torch.randn(40, 3)
    return model, x, (x[:, 0] > 0).long()


def ce(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def test_accuracy_and_held_out_on_a_network_with_batchnorm():
    model, x, y = network()
    model.eval()
    surface = LossSurface(model, ce, (x[:30], y[:30]))
    outside = LossSurface(model, ce, (x[30:], y[30:]))
    a = surface.theta()
    other = {n: (v + 0.5 if v.is_floating_point() else v) for n, v in model.named_buffers()}
    first, last = (a, dict(model.named_buffers())), (a + 0.3, other)
    seen = []

    def accuracy(theta, buffers):
        seen.append((theta.clone(), {n: v.clone() for n, v in buffers.items()}))
        return float(theta[0])

    alphas = [-0.5, 0.0, 0.25, 1.0, 1.5]
    found = interpolate(surface, first, last, alphas=alphas, held_out=outside, accuracy=accuracy)
    assert found["accuracy"].values == pytest.approx([float(a[0]) + 0.3 * alpha for alpha in alphas], abs=1e-6)
    shift = [float((b["1.running_mean"] - model[1].running_mean)[0]) for _, b in seen]
    assert shift == pytest.approx([0.0, 0.0, 0.125, 0.5, 0.5], abs=1e-6)
    point = {n: v + 0.125 if v.is_floating_point() else v for n, v in model.named_buffers()}
    assert float(found["held_out_loss"][2]) == pytest.approx(outside.value(a + 0.075, point), rel=1e-5)
    assert found["held_out_accuracy_outcome"].values.tolist() == [2] * 5
    assert found["accuracy_outcome"].values.tolist() == [0] * 5


def test_compare_says_height_width_and_crossover():
    surface, pulls = noisy(Basins())
    found = compare(surface, A, B, lr=0.02, batch_size=2, k=3, probes=12)
    assert found.a.loss == pytest.approx(0.05, abs=1e-12)
    assert found.a.eigenvalues == pytest.approx([4.0, 1.5, 0.7], rel=1e-6)
    assert found.b.eigenvalues == pytest.approx([36.0, 5.0, 0.7], rel=1e-6)
    assert found.half_log_det == pytest.approx([0.5 * math.log(4.2), 0.5 * math.log(126)], rel=1e-6)
    assert found.threshold.value == pytest.approx(0.05 / (0.5 * math.log(30)), rel=1e-6)
    variance = float(pulls.square().sum()) / 63 / 3
    assert found.a.variance[0] == pytest.approx(variance, rel=1e-9)
    assert found.noise == pytest.approx(0.02 * variance / 4, rel=1e-9)
    assert found.a.trace[0] == pytest.approx(6.2, rel=1e-6)
    assert found.b.frobenius[0] == pytest.approx(math.sqrt(36**2 + 25 + 0.49), rel=1e-6)
    assert "a is higher by 0.05, flatter by 1.7 of 1/2 log det (top 3, delta = 0)" in found.sentence
    assert "below the predicted crossover 0.0294" in found.sentence
    shown = repr(found).split("\n")
    assert shown[0] == f"Comparison: {found.sentence}"
    assert [line[:9] for line in shown[1:]] == ["  a: loss", "  b: loss"]
    louder = compare(surface, A, B, lr=0.02, batch_size=2, k=3, probes=12, momentum=0.99)
    assert louder.noise == pytest.approx(100 * found.noise)
    assert "above the predicted crossover" in louder.sentence


def test_damping_leaves_the_same_number_of_directions_out():
    surface, _ = noisy(Basins())
    found = compare(surface, A, B, lr=0.02, batch_size=2, k=3, probes=12, damping=1.7)
    assert found.directions == 1  # a has one eigenvalue above, b has two
    assert found.half_log_det == pytest.approx([0.5 * math.log(4), 0.5 * math.log(36)], rel=1e-6)


def test_reasons_against_the_law_of_gibbs():
    surface, _ = noisy(Basins())
    moved = A + torch.tensor([0.0, 0.4, 0.0], dtype=torch.float64)
    found = compare(surface, moved, B, lr=1.0, batch_size=2, k=3, probes=12)
    assert any("a is no minimum: a step of descent lowers the loss by 0.36" in reason for reason in found.reasons)
    assert any("lr lambda_1 is 36 at b" in reason for reason in found.reasons)
    assert not compare(surface, A, B, lr=0.02, batch_size=2, k=3, probes=12).reasons
    higher = Basins(losses=(0.0, 0.05))
    never = compare(noisy(higher)[0], A, B, lr=0.02, batch_size=2, k=3, probes=12)
    assert "no isotropic noise prefers the higher one" in never.sentence
    assert "a is lower by 0.05, flatter by 1.7" in never.sentence


def test_without_examples_the_noise_is_not_known():
    found = compare(Basins(), A, B, lr=0.02, batch_size=2, k=3, probes=12)
    assert math.isnan(found.noise)
    assert "the noise of SGD is not known" in found.sentence


def test_in_batch_mode_the_noise_is_not_known():
    model, x, y = network()
    surface = LossSurface(model, ce, (x, y), batchnorm="batch")
    a = surface.theta().double()
    point, buffers = a + 0.1, dict(model.named_buffers())
    found = compare(surface, (a, buffers), (point, buffers), lr=0.1, batch_size=4, k=2, probes=12)
    assert math.isnan(found.noise)
    assert found.b.loss == pytest.approx(surface.value(point, buffers), rel=1e-6)
    assert "the noise of SGD is not known" in found.sentence


def test_filter_normalised_directions():
    model, x, y = network()
    surface = LossSurface(model.double(), ce, (x.double(), y))
    theta = surface.theta()
    d = surface.layout.restore(filter_normalised(surface, theta, torch.Generator().manual_seed(3)))
    own = surface.layout.restore(theta)
    assert torch.allclose(d["0.weight"].norm(dim=1), own["0.weight"].norm(dim=1), rtol=1e-12)
    assert not torch.allclose(d["0.weight"], own["0.weight"])
    assert d["1.weight"].abs().max() == 0
    assert d["0.bias"].abs().max() == 0


def test_filter_curvature_does_not_change_with_the_scale_of_a_bowl():
    first = compare(landscapes.Quadratic(torch.eye(3, dtype=torch.float64)), 2 * A, 2 * B, lr=0.1, batch_size=1, k=2, probes=12)
    wide = landscapes.Quadratic(torch.eye(3, dtype=torch.float64) / 9)  # f(theta / 3) at 3 theta
    second = compare(wide, 6 * A, 6 * B, lr=0.1, batch_size=1, k=2, probes=12)
    assert first.a.filter_curvature[0] == pytest.approx(1.0, rel=1e-9)  # |theta|^2 = 1 times curvature 1
    assert second.a.filter_curvature[0] == pytest.approx(1.0, rel=1e-9)
    assert second.a.trace[0] == pytest.approx(first.a.trace[0] / 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"a": torch.zeros(2)}, "a: expected a vector of 3"), ({"b": A}, "b: the two points are the same"),
     ({"a": torch.full((3,), math.nan)}, "a: expected finite"), ({"alphas": [0, 0.5, 1]}, "alphas: expected at least 5"),
     ({"alphas": [-1, -0.5, 0, 0.5, 1]}, "alphas: expected"), ({"lr": 0.0}, "lr: expected > 0"),
     ({"momentum": 1.0}, "momentum: expected 0 <= momentum < 1"), ({"damping": -1.0}, "damping: expected >= 0"),
     ({"batch_size": 0}, "batch_size: expected >= 1"), ({"k": 0}, "k: expected at least 1")],
)  # fmt: skip
def test_bad_input(change, message):
    given = {"a": A, "b": B, "lr": 0.1, "batch_size": 4} | change
    with pytest.raises(ArgumentError, match=message):
        compare(Basins(), given.pop("a"), given.pop("b"), **given)


def test_the_numbers_go_out_as_json():
    surface, _ = noisy(Basins())
    found = compare(surface, A, B, lr=0.02, batch_size=2, k=3, probes=12)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["a"]["eigenvalues"] == pytest.approx([4.0, 1.5, 0.7], rel=1e-6)
    assert told["line"]["loss"] == pytest.approx(found.line["loss"].values.tolist())
    assert told["threshold"] == pytest.approx(0.05 / (0.5 * math.log(30)), rel=1e-6)
    assert told["line"]["held_out_loss"] == [None] * 31
    higher, _ = noisy(Basins(losses=(0.0, 0.05)))
    assert compare(higher, A, B, lr=0.02, batch_size=2, k=3, probes=12).to_json()["threshold"] is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    told = {"data": {"dataset": "wine"}, "model": {"name": "mlp", "hidden": [6]}, "loss": "cross_entropy"}
    record = {"snapshots": {"kind": "bursts", "length": 1, "at": [0, 9]}}
    for name, lr, change in (("a", 0.2, {}), ("b", 0.02, {}), ("other", 0.2, {"data": {"dataset": "wine", "train": 50}}),
                             ("wide", 0.2, {"model": {"name": "mlp", "hidden": [7]}}),
                             ("tanh", 0.2, {"model": {"name": "mlp", "hidden": [6], "activation": "tanh"}})):  # fmt: skip
        phases = [{"walker": "sgd", "lr": lr, "batch_size": 16, "updates": 10}]
        run(Experiment(**(told | {"name": name, "phases": phases, "record": record} | change)), folder / name)
    return folder


def test_command_compares_the_last_points(runs, monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["sgdscope", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    code, out, err = call(runs / "a", runs / "b", "--k", 3, "--json")
    assert code == 0, err
    told = json.loads(out)["comparison"]
    surface = surface_of(Experiment(**open_trajectory(runs / "a").settings["experiment"]))
    points = [open_trajectory(runs / name).theta(10).double() for name in "ab"]
    assert [told[name]["loss"] for name in "ab"] == pytest.approx([surface.value(point) for point in points], rel=1e-6)
    found = compare(surface, *points, lr=0.2, batch_size=16, k=3)
    assert told["noise"] == pytest.approx(found.noise, rel=1e-6)
    code, out, err = call(runs / "a", runs / "b", "--k", 3, "--lr", 0.1, "--batch-size", 4, "--json")
    assert json.loads(out)["comparison"]["noise"] == pytest.approx(2 * found.noise, rel=1e-6)
    assert found.sentence in call(runs / "a", runs / "b", "--k", 3)[1]
    for other, word in (("other", "network, loss and data"), ("tanh", "network, loss and data"), ("wide", "parameters of RUN_A")):
        code, _, err = call(runs / "a", runs / other)
        assert code == 2
        assert word in err
