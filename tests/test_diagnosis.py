"""Advice on runs whose answers are known: the edge, both noise scales, the price of a batch; what is said without an answer."""

import html
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from sgdscope import figures
from sgdscope.cli import app
from sgdscope.diagnosis import diagnose
from sgdscope.diagnosis.advice import batch_advice, edge_advice, noise_advice
from sgdscope.diagnosis.point import Edge, Noise, edge_at, noise_at, root_scale
from sgdscope.errors import ArgumentError, NotAvailableError
from sgdscope.experiment import Experiment, parts, run
from sgdscope.forecast import Method
from sgdscope.landscapes import NoisyQuadratic, walk
from sgdscope.quantities.averages import Averages
from sgdscope.recorder import Recorder, every
from sgdscope.report import report
from sgdscope.runs import open_trajectory
from sgdscope.stores.zarr import ZarrStore
from sgdscope.surface import LossSurface

CURVATURE = torch.tensor([3.1, 2.2, 1.4, 0.3, 0.05, 0.02], dtype=torch.float64)
NOISE = torch.tensor([0.7, 2.5, 0.4, 1.9, 0.6, 3.0], dtype=torch.float64)
SGD = Method("sgd", 0.9, 0.0, 0.9, False, 0.0, 20.0)


def seeded(number):
    return torch.Generator().manual_seed(number)


def rotated(diagonal):
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=seeded(1)))
    matrix = q @ torch.diag(diagonal) @ q.T
    return (matrix + matrix.T) / 2


@pytest.fixture(scope="module")
def quadratic():
    return NoisyQuadratic.with_noise(rotated(CURVATURE), rotated(NOISE), examples=300, generator=seeded(2))


@pytest.mark.parametrize(("name", "momentum", "threshold"), [("sgd", 0.0, 2 / 0.9), ("sgd", 0.4, 2.8 / 0.9)])
def test_the_edge_is_the_largest_eigenvalue_over_the_threshold(quadratic, name, momentum, threshold):
    method = replace(SGD, name=name, momentum=momentum)
    theta = quadratic.theta()
    edge = edge_at(quadratic, theta, method, torch.ones_like(theta), buffers=None, k=4, seed=0)
    assert edge.ratio == pytest.approx(3.1 / threshold, rel=1e-6)
    assert (edge.above, edge.k, edge.matrix) == (1 if momentum == pytest.approx(0) else 0 if threshold > 3.1 else 1, 4, "hessian")
    assert edge.stderr == pytest.approx(0, abs=1e-9)  # every example has the same Hessian


def test_the_error_of_the_edge_is_the_scatter_of_eight_parts():
    x, y = torch.randn(40, 3, dtype=torch.float64, generator=seeded(5)), torch.zeros(40, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    surface = LossSurface(model, lambda net, batch: (net(batch[0])[:, 0] - batch[1]).square(), (x, y))
    edge = edge_at(surface, surface.theta(), SGD, torch.ones(3, dtype=torch.float64), buffers=None, k=2, seed=0)
    values, vectors = torch.linalg.eigh(2 * x.T @ x / 40)
    parts = torch.stack([2 * (x[b::8] @ vectors[:, -1]).square().mean() for b in range(8)])
    assert edge.sharpness == pytest.approx(float(values[-1]), rel=1e-5)
    assert edge.stderr == pytest.approx(float(parts.std()) / 8**0.5 * 0.9 / 2, rel=1e-4)


def test_adam_is_held_against_its_own_threshold(quadratic):
    method = replace(SGD, name="adam", lr=0.02, beta1=0.8)
    scale = torch.tensor([0.3, 0.7, 1.1, 0.2, 0.9, 0.5], dtype=torch.float64)
    edge = edge_at(quadratic, quadratic.theta(), method, scale.rsqrt(), buffers=None, k=3, seed=0)
    root = torch.diag(scale.rsqrt())
    top = float(torch.linalg.eigvalsh(root @ rotated(CURVATURE) @ root)[-1])
    assert edge.ratio == pytest.approx(top * 0.2 * 0.02 / 3.6, rel=1e-5)
    assert edge.matrix == "preconditioned"


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_noise_scales_are_those_of_the_exact_covariance(quadratic, adaptive):
    theta = quadratic.theta()
    scale = torch.tensor([0.3, 0.7, 1.1, 0.2, 0.9, 0.5], dtype=torch.float64) if adaptive else torch.ones(6, dtype=torch.float64)
    inverse = torch.diag(1 / scale)
    h, c = rotated(CURVATURE), rotated(NOISE)
    g = quadratic.value_and_grad(theta)[1]
    simple = torch.trace(inverse @ c) / (g @ inverse @ g)
    curved = torch.trace(inverse @ h @ inverse @ c) / (g @ inverse @ h @ inverse @ g)
    told = [noise_at(quadratic, theta, SGD, scale.rsqrt(), buffers=None, seed=seed) for seed in range(24)]
    for name, truth in (("simple", float(simple)), ("curved", float(curved))):
        values = np.array([getattr(one, name) for one in told])
        errors = np.array([getattr(one, f"{name}_stderr") for one in told])
        assert values.mean() == pytest.approx(truth, abs=4 * values.std(ddof=1) / np.sqrt(24))
        assert 4 * values.std(ddof=1) / np.sqrt(24) < 0.4 * truth
        assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.4)
    assert told[0].trace == pytest.approx(told[0].simple * float(g @ inverse @ g))


def test_with_batchnorm_edge_and_noise_are_those_of_training_mode():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(160, 3, dtype=torch.float64), torch.randint(2, (160,))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    surface, trained = (LossSurface(model, loss, (x, y), batchnorm=mode) for mode in ("eval", "batch"))
    theta = surface.theta()
    edge = edge_at(surface, theta, SGD, torch.ones_like(theta), buffers=None, k=3, seed=0)
    eye = torch.eye(len(theta), dtype=torch.float64)
    tops = [float(torch.linalg.eigvalsh(torch.stack([one.hvp(theta, unit) for unit in eye]))[-1]) for one in (trained, surface)]
    assert edge.sharpness == pytest.approx(tops[0], rel=1e-3)
    assert edge.sharpness != pytest.approx(tops[1], rel=0.05)
    assert edge.stderr > 0
    told = [noise_at(surface, theta, SGD, torch.ones_like(theta), buffers=None, seed=seed) for seed in range(6)]
    batches = [torch.randint(160, (20,), generator=seeded(s)) for s in range(300)]
    gradients = torch.stack([trained.on_batch((x[b], y[b])).value_and_grad(theta)[1] for b in batches])
    trace = 20 * float(gradients.var(0).sum())
    values = np.array([one.trace for one in told])
    assert values.mean() == pytest.approx(trace, rel=0.3)
    still = slice(9, 12)  # part of the weights, and a bias before BatchNorm below
    assert float(gradients[:, 12:16].abs().max()) < 1e-12 < float(gradients[:, still].abs().max())


# --- sentences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "stderr", "answer"),
    [(0.7, 0.1, "below the edge"), (0.85, 0.1, "at the edge"), (1.15, 0.1, "at the edge"), (1.3, 0.1, "above the edge")],
)
def test_the_side_of_the_edge_is_told_by_the_interval(ratio, stderr, answer):
    told = edge_advice(Edge(ratio, stderr, 2, 5, 3.0, 3.0 / ratio, "hessian", True, 1e-4), SGD)
    assert told.answer == answer
    assert "2 of the 5 largest eigenvalues lie above it" in told.sentence
    assert told.numbers["lr_at_the_edge"] == pytest.approx(0.9 / ratio)
    all_above = edge_advice(Edge(ratio, stderr, 5, 5, 3.0, 3.0 / ratio, "hessian", True, 1e-4), SGD)
    assert "at least 5 eigenvalues lie above it" in all_above.sentence
    lost = edge_advice(Edge(ratio, stderr, 2, 5, 3.0, 3.0 / ratio, "hessian", False, 0.4), SGD)
    assert (lost.answer, lost.reason) == ("cannot tell", "the largest eigenvalue did not converge (residual 0.4)")


@pytest.mark.parametrize(
    ("curved", "answer"), [(90.0, "noise-dominated"), (8.0, "curvature-dominated"), (22.0, "neither dominates")]
)
def test_what_dominates_is_told_by_the_interval(curved, answer):
    told = noise_advice(Noise(50.0, 2.0, curved, 3.0, 0.3), SGD)
    assert told.answer == answer
    assert told.numbers["share_of_noise"] == pytest.approx(curved / (curved + 20))
    assert told.numbers["height_by_noise"] == pytest.approx(0.9 * 0.3 / 80)
    rolling = noise_advice(Noise(50.0, 2.0, curved, 3.0, 0.3), replace(SGD, momentum=0.6))
    assert rolling.numbers["height_by_noise"] == pytest.approx(0.9 / 0.4 * 0.3 / 80)
    assert noise_advice(Noise(50.0, 2.0, float("nan"), float("nan"), 0.3), SGD).answer == "cannot tell"


def test_a_batch_that_costs_a_tenth_more_and_its_rate():
    noise = Noise(900.0, 20.0, 400.0, 30.0, 0.3)
    told = batch_advice(SGD, noise, None)
    best = told.numbers["batch_size"]
    assert best == 62  # 1.1 x 20 + 0.1 x 400
    price = (1 + best / 400) / (1 + 20 / 400)
    assert price == pytest.approx(1.1, abs=1e-3)
    assert told.numbers["lr"] == pytest.approx(0.9 * 62 / 20)
    adam = batch_advice(replace(SGD, name="adamw", lr=1e-3), noise, None)
    assert adam.numbers["lr"] == pytest.approx(1e-3 * (62 / 20) ** 0.5)
    near = batch_advice(SGD, noise, Edge(0.8, 0.01, 0, 5, 3.0, 3.0 / 0.8, "hessian", True, 1e-4))
    assert "is 1.12 (times the factor, held at the edge: by the rule it were" in near.sentence
    assert near.numbers["lr"] == pytest.approx(near.numbers["lr_at_the_edge"]) == pytest.approx(0.9 / 0.8)
    few = batch_advice(SGD, noise, None, examples=told.numbers["batch_size"] - 1)
    assert few.numbers["batch_size"] == few.numbers["high"] == told.numbers["batch_size"] - 1
    assert few.numbers["lr"] < told.numbers["lr"]
    assert "and is the whole data set" in few.sentence
    assert "whole data set" not in told.sentence
    simple = batch_advice(SGD, replace(noise, curved=float("nan")), None)
    assert simple.numbers["critical_batch_size"] == pytest.approx(900)
    assert batch_advice(SGD, None, None).answer == "cannot tell"


# --- whole -------------------------------------------------------------------------------------------------------------


def test_a_walk_on_a_landscape_is_diagnosed(quadratic):
    walked = walk(quadratic, start=quadratic.theta(), lr=0.3, updates=1200, batch_size=20, generator=seeded(4))
    told = diagnose(walked, quadratic, budgets=(0.1, 0.02), k=3)
    assert told.step == 1200
    assert [one.subject for one in told.advice] == ["learning rate", "noise", "batch size", "annealing", "annealing"]
    assert told.advice[0].answer == "below the edge"
    assert told.advice[1].answer == "noise-dominated"
    falls = told.advice[3]
    assert falls.numbers["height"] + falls.numbers["progress"] == pytest.approx(falls.numbers["drop"])
    assert told.advice[4].answer == "cannot tell"
    assert told.lines[4].endswith(
        "Cannot tell: the budget is 24 updates; windows of fewer than 100 are shorter than the slow oscillations."
    )
    text = json.dumps(told.to_json(), allow_nan=False)
    assert json.loads(text)["advice"][4]["numbers"]["annealed"] is None
    with pytest.raises(ArgumentError, match="k: expected a whole number >= 1, got 0"):
        diagnose(walked, quadratic, k=0)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_a_loop_of_ones_own_is_diagnosed_live(optimizer):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(240, 4, generator=seeded(1)), torch.randint(3, (240,), generator=seeded(2))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    makers = {
        "momentum": lambda: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.8),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=1e-3),
    }
    walker, averages = makers[optimizer](), Averages()
    recorder = Recorder(None, model, walker, loss=loss, snapshots=every(5), live=[averages], store="memory")
    with recorder:
        for step in range(1050):
            chosen = torch.randperm(240, generator=seeded(step))[:16]
            walker.zero_grad()
            recorder.loss(model, (x[chosen], y[chosen])).mean().backward()
            walker.step()
        surface, held = LossSurface(model, loss, (x[:200], y[:200])), LossSurface(model, loss, (x[200:], y[200:]))
        options = {"held_out": held, "averages": averages, "budgets": (0.1,)}
        bare = diagnose(recorder.store.trajectory(), surface, **options)
        told = diagnose(recorder.store.trajectory(), surface, optimizer=walker, **options)
    assert told.step == 1046  # the last point that was kept so far
    closed = diagnose(recorder.store.trajectory(), surface, **options)
    assert closed.step == 1050
    for one in (told, closed):
        assert np.isfinite(one.annealing["annealed"].values).all()
        assert one.advice[0].numbers["ratio"] > 0
        assert one.advice[0].answer != "cannot tell"
        assert np.isfinite(one.annealing["quiet_loss"].values).all()
    assert closed.advice[0].numbers["ratio"] == pytest.approx(told.advice[0].numbers["ratio"], rel=0.5)
    if optimizer == "adamw":
        assert "preconditioner" in bare.advice[0].reason
        assert np.isnan(bare.annealing["quiet_loss"].values).all()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_second_moments_of_the_last_point_are_kept(amsgrad, tmp_path):
    torch.manual_seed(3)
    model = nn.Linear(4, 3)
    walker = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9), eps=1e-3, amsgrad=amsgrad)
    moments, most = torch.zeros(15, dtype=torch.float64), torch.zeros(15, dtype=torch.float64)
    with Recorder(tmp_path / "run", model, walker):
        for x in torch.randn(7, 5, 4):
            walker.zero_grad()
            (model(x) ** 2).mean().backward()
            gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).double()
            moments = 0.9 * moments + 0.1 * gradient**2
            most = torch.maximum(most, moments) if amsgrad else moments
            walker.step()
    expected = (most / (1 - 0.9**7)).sqrt() + 1e-3
    assert torch.allclose(open_trajectory(tmp_path / "run").preconditioner(7), expected, rtol=1e-5)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    experiment = Experiment(
        data={"dataset": "digits", "label_noise": 0.2, "train": 400},
        model={"name": "mlp", "hidden": [8]},
        phases=[{"walker": "adamw", "lr": 0.002, "batch_size": 16, "updates": 1010}],
        record={"averages": 64},
    )
    path = tmp_path_factory.mktemp("runs")
    bare = experiment.described()
    bare["record"].pop("averages")
    return run(experiment, path / "summed"), run(Experiment(**bare), path / "bare")


def test_the_command_line_diagnoses_a_run_and_keeps_the_advice(recorded):
    told = CliRunner().invoke(app, ["diagnose", str(recorded[0]), "--budget", "0.1", "--json"])
    assert told.exit_code == 0, told.output
    advice = json.loads(told.stdout)["advice"]
    assert [one["subject"] for one in advice] == ["learning rate", "noise", "batch size", "annealing", "annealing"]
    assert advice[0]["answer"] == "below the edge"
    kept = ZarrStore.measurements(recorded[0])
    assert kept["diagnosis"]["sentence"].values.tolist() == [one["sentence"] for one in advice]
    assert float(kept["annealing"]["annealed"][0, 0]) == pytest.approx(advice[3]["numbers"]["annealed"])


def test_a_replayed_run_without_sums_gives_the_same_forecast(recorded):
    summed, bare = (open_trajectory(path) for path in recorded)
    surface = LossSurface(*parts_of(summed))
    options = {"budgets": (0.1,), "k": 1}
    mine, theirs = (diagnose(one, surface, **options).annealing["annealed"].values.item() for one in (bare, summed))
    drop = diagnose(summed, surface, **options).annealing["drop"].values.item()
    assert mine == pytest.approx(theirs, abs=0.05 * abs(drop))
    assert root_scale(summed, Method("adamw", 0.002, 0.0, 0.9, False, 0.01, 16.0), 1010, surface.theta()).min() > 0


def test_the_page_shows_the_advice_and_the_forecast(recorded, tmp_path):
    told = diagnose(open_trajectory(recorded[0]), LossSurface(*parts_of(open_trajectory(recorded[0]))), budgets=(0.1, 0.05))
    page = report(recorded[0], tmp_path / "page.html").read_text(encoding="utf-8")
    section = page[page.index('<h3 id="run-1-diagnosis">') :]
    for line in told.advice:
        assert html.escape(line.sentence) in section
    assert html.escape(told.advice[-1].reason) in section
    assert section.count("<td>train, 10%</td>") == 1
    assert "<td>train, 5%</td>" not in section  # 50 updates are too few
    drawn = figures.annealing_forecast(told.annealing)
    names = {trace.name: trace for trace in drawn.data}
    assert names["annealed, 90 %"].y[0] == pytest.approx(told.advice[3].numbers["annealed"])
    assert names["annealed, 90 %"].x[0] == 1010 + 101
    assert names["average of the iterates"].x.tolist() == [1010 - 50.5, 1010 - 151.5, 1010 - 252.5]
    with pytest.raises(NotAvailableError, match="no forecast of annealing could be made"):
        figures.annealing_forecast(told.annealing.isel(budget=[1]))


def test_predicted_drops_are_drawn_against_real_ones():
    rows = [
        {"setting": "a", "real": 0.2, "predicted": 0.23, "half_width": 0.05},
        {"setting": "a", "real": 0.3, "predicted": 0.27, "half_width": 0.4},
        {"setting": "b", "real": -0.1, "predicted": 0.1, "half_width": 0.1},
    ]
    drawn = figures.predicted_against_real(rows)
    assert [trace.name for trace in drawn.data] == ["a", "predicted = real"]
    assert list(drawn.data[0].x) == [0.2, 0.3]
    assert drawn.data[0].error_y.arrayminus.tolist() == pytest.approx([0.05, 0.243])
    with pytest.raises(NotAvailableError, match="no row has a positive drop"):
        figures.predicted_against_real(rows[2:])


def parts_of(trajectory):
    model, loss, data = parts(Experiment(**trajectory.settings["experiment"]))
    return model, loss, (data.x, data.y)
