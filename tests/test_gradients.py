"""Gradients of single examples against one backward pass each on a fresh copy of the model, in float64."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from sgdscope import landscapes, models
from sgdscope.errors import ArgumentError, SurfaceError
from sgdscope.surface import LossSurface, gradients
from sgdscope.surface.rows import squares
from test_surface import (
    NETS,
    Recurrent,
    at,
    batches,
    batchnorm_net,
    close,
    example_loss,
    examples,
    mean_loss,
    mlp,
    moved,
    trained,
)

F = nn.functional
N = len(examples()[1])
BY_LOOP = {"checkpoint", "lstm"}


def truth(model, theta, data, loss=mean_loss, decay=0.0):
    """Row by row: .backward() of the loss of one example on a copy in eval mode."""
    inner, rows = at(model, theta), []
    for i in range(len(data[1])):
        inner.zero_grad()
        loss(inner, tuple(t[i : i + 1] for t in data)).mean().backward()
        chosen = [p for p in inner.parameters() if p.requires_grad]
        rows.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in chosen]))
    return torch.stack(rows) + decay * theta


@pytest.mark.parametrize("loss", [mean_loss, example_loss])
@pytest.mark.parametrize("name", NETS)
def test_rows_are_those_of_one_backward_an_example(name, loss):
    model = trained(NETS[name]())
    surface = LossSurface(model, loss, examples(), weight_decay=0.03)
    theta = moved(surface)
    rows = truth(model, theta, examples(), loss, decay=0.03)
    got = surface.per_example_grads(theta)
    close(got, rows)
    assert (rows.norm(dim=1) > 0.01).all()
    assert rows.std(0).norm() > 0.05
    assert got.dtype == torch.float64
    close(got.mean(0), surface.value_and_grad(theta)[1])
    assert surface.example_gradients == ("loop" if name in BY_LOOP else "vmap")


@pytest.mark.parametrize("loss", [mean_loss, example_loss])
@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "tied", "batchnorm"])
def test_a_weighted_gradient_is_the_weighted_sum_of_rows(name, loss):
    model = trained(NETS[name]())
    surface = LossSurface(model, loss, examples(), weight_decay=0.03)
    theta = moved(surface)
    rows = truth(model, theta, examples(), loss, decay=0.03)
    chosen = torch.tensor([4, 0, 16, 4, 9])  # one comes twice
    weights = torch.tensor([0.7, -1.9, 0.3, 2.2, -0.4], dtype=torch.float64)
    close(surface.weighted_grad(theta, weights, chosen), weights @ rows[chosen])
    close(surface.weighted_grad(theta, torch.full((5,), 0.2), chosen), rows[chosen].mean(0), tolerance=1e-7)  # 0.2 in float32
    every = torch.linspace(-1, 2, N, dtype=torch.float64)
    close(surface.weighted_grad(theta, every), every @ rows)
    close(surface.per_example_grads(theta, chosen), rows[chosen])
    close(surface.per_example_grads(theta, [11]), rows[[11]])


@pytest.mark.parametrize(
    ("name", "options", "way"),
    [("gpt", {"width": 8, "layers": 2, "heads": 2, "dropout": 0.2}, "vmap"), ("lstm", {"width": 6, "layers": 2}, "loop")],
)
def test_models_of_text_with_many_losses_an_example(name, options, way):
    words = torch.randint(0, 13, (6, 9), generator=torch.Generator().manual_seed(2))
    model = models.build(name, inputs=(8,), classes=13, seed=1, **options).double()

    def loss(model, batch):
        logits = model(batch[0][:, :-1])
        return F.cross_entropy(logits.reshape(-1, 13), batch[0][:, 1:].flatten())

    surface = LossSurface(model, loss, (words,))
    theta = surface.theta()
    rows = truth(model, theta, (words, words), loss)
    close(surface.per_example_grads(theta), rows)
    assert surface.example_gradients == way
    weights = torch.tensor([0.4, 1.3, -0.6], dtype=torch.float64)
    close(surface.weighted_grad(theta, weights, [5, 0, 2]), weights @ rows[[5, 0, 2]])


@pytest.mark.parametrize("memory", [1, 3 * 83 * 8 * 5, 2**26])
def test_streamed_rows_are_the_whole_and_hold_the_memory(memory):
    model = trained(mlp())
    surface = LossSurface(model, mean_loss, examples(), weight_decay=0.03)
    theta = moved(surface)
    assert surface.layout.size == 83
    whole = surface.per_example_grads(theta)
    pieces = []
    for piece in surface.gradient_chunks(theta, memory=memory):
        surface.value(surface.theta())  # the surface is used in between
        pieces.append(piece)
    assert [len(p) for p in pieces] == {1: [1] * N, 2**26: [N]}.get(memory, [5, 5, 5, 2])
    close(torch.cat(pieces), whole, tolerance=1e-13)
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("size", [1, 63, 64, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squares_are_those_of_float64(size, dtype):
    scales = torch.tensor([1e-35, 1e-12, 0.3, 1.0, 4e3, 1e25], dtype=torch.float64)
    rows = (scales[:, None] * torch.randn(6, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))).to(dtype)
    rows[3] = 0
    exact = rows.double().square().sum(1)
    assert (exact[[0, 1, 2, 4, 5]] > 0).all()
    torch.testing.assert_close(squares(rows), exact, rtol=1e-14 if dtype == torch.float64 else 3e-7, atol=0)
    rows[1, 0] = torch.nan
    assert squares(rows).isnan().tolist() == [False, True, False, False, False, False]


@pytest.mark.parametrize("name", ["mlp", *sorted(BY_LOOP)])
@pytest.mark.parametrize("memory", [4000, 2**26])
def test_norms_and_products_are_those_of_the_rows(name, memory, monkeypatch):
    surface = LossSurface(trained(NETS[name]()), mean_loss, examples(), weight_decay=0.03)
    theta, generator = moved(surface), torch.Generator().manual_seed(14)
    rows, sizes = truth(trained(NETS[name]()), theta, examples(), decay=0.03), []
    centre, along = rows.mean(0) + 0.3, torch.randn(len(theta), 2, dtype=torch.float64, generator=generator)
    assert surface.example_gradients == ("loop" if name in BY_LOOP else "vmap")
    for makes in ("rows_by_loop", "parts_by_vmap"):
        make = getattr(gradients, makes)
        monkeypatch.setattr(gradients, makes, lambda net, b, size, make=make: sizes.append(size) or make(net, b, size))
    for indices in (None, [6, 1, 3]):
        chosen = rows if indices is None else rows[indices]
        squared, products = surface.gradient_norms(theta, centre, indices, along=along, memory=memory)
        torch.testing.assert_close(squared, (chosen - centre).square().sum(1), rtol=1e-10, atol=0)
        torch.testing.assert_close(products, (chosen - centre) @ along, rtol=1e-9, atol=1e-11)
    assert sum(sizes) == N + 3
    assert max(sizes) <= max(1, memory // (8 * len(theta)))
    assert surface.gradient_norms(theta, centre)[1].shape == (N, 0)


def test_norms_refuse_what_does_not_fit():
    surface = LossSurface(trained(mlp()), mean_loss, examples())
    theta = surface.theta()
    with pytest.raises(ArgumentError, match=r"centre, along: expected \[83\] and \[83, k\].* got shapes \(82,\) and \(83, 0\)"):
        surface.gradient_norms(theta, theta[:-1])
    with pytest.raises(ArgumentError, match="centre, along: expected"):
        surface.gradient_norms(theta, theta, along=theta)


def test_rows_that_do_not_fit_are_refused():
    surface = LossSurface(trained(mlp()), mean_loss, examples())
    theta, needed = surface.theta(), N * 83 * 8
    assert surface.per_example_grads(theta, memory=needed).shape == (N, 83)
    with pytest.raises(ArgumentError, match="indices: 17 gradients of 83 parameters take 0 MiB, expected at most 0; name fewer"):
        surface.per_example_grads(theta, memory=needed - 1)
    assert surface.per_example_grads(theta, [3, 5], memory=needed - 1).shape == (2, 83)


def test_the_weighted_gradient_goes_through_chunks():
    data = examples(n=70)
    model = trained(mlp())
    surface = LossSurface(model, mean_loss, data, memory=4000)
    assert 1 < surface.fingerprint()["batch_size"] < 40
    theta, rows = moved(surface), truth(model, moved(surface), data)
    weights = torch.linspace(-1, 2, 70, dtype=torch.float64)
    close(surface.weighted_grad(theta, weights), weights @ rows)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    close(surface.weighted_grad(theta, weights, order), weights @ rows[order])
    close(surface.per_example_grads(theta, order), rows[order])


def test_batchnorm_uses_the_buffers_given_and_recalibrates_once_for_all_chunks():
    model = trained(batchnorm_net())
    surface = LossSurface(model, mean_loss, examples())
    theta = moved(surface)
    other = {name: b + 0.7 if b.is_floating_point() else b for name, b in model.named_buffers()}
    shifted = copy.deepcopy(model)
    for name, b in shifted.named_buffers():
        b.copy_(other[name])
    close(surface.per_example_grads(theta, buffers=other), truth(shifted, theta, examples()))
    close(surface.weighted_grad(theta, torch.ones(2), [3, 5], buffers=other), truth(shifted, theta, examples())[[3, 5]].sum(0))
    assert (surface.per_example_grads(theta) - truth(shifted, theta, examples())).norm() > 1e-2
    again = LossSurface(model, mean_loss, examples(), batchnorm="recalibrate")
    close(again.per_example_grads(theta).mean(0), again.value_and_grad(theta)[1])
    close(torch.cat(list(again.gradient_chunks(theta, memory=1))), again.per_example_grads(theta))


def test_part_of_the_parameters_and_parts_of_the_data():
    model = trained(mlp())
    surface = LossSurface(model, mean_loss, examples(), parameters="2.*")
    theta = moved(surface)
    whole = torch.cat([model[0].weight.flatten(), model[0].bias, theta]).detach()
    rows = truth(model, whole, examples())[:, -len(theta) :]
    close(surface.per_example_grads(theta), rows)
    close(surface.subset([8, 2, 5]).per_example_grads(theta, [2, 0]), rows[[5, 8]])
    close(surface.on_batch(surface.rows([8, 2])).per_example_grads(theta), rows[[8, 2]])


def test_where_no_example_has_a_gradient_of_its_own_the_reason_is_given():
    normal = LossSurface(trained(batchnorm_net()), mean_loss, examples(), batchnorm="batch")
    given = LossSurface(trained(mlp()), mean_loss, batches())
    theta = normal.theta()
    calls = (
        lambda s, p: s.per_example_grads(p),
        lambda s, p: s.gradient_chunks(p),
        lambda s, p: s.weighted_grad(p, torch.ones(2), [0, 1]),
        lambda s, _: s.example_gradients,
    )
    eval_mode = LossSurface(trained(batchnorm_net()), mean_loss, examples())
    for call in calls:
        with pytest.raises(SurfaceError, match="batchnorm='eval' or 'recalibrate', or take gradients of whole batches"):
            call(normal, theta)
        with pytest.raises(SurfaceError, match="examples of a batch influence each other"):
            call(eval_mode.on_batch(eval_mode.rows([1, 2, 3])), theta)
        with pytest.raises(SurfaceError, match="pass a Dataset or tensors"):
            call(given, given.theta())


def test_a_loss_that_is_no_mean_over_examples_is_refused():
    def tokens(model, batch):
        x, y = batch
        return (F.cross_entropy(model(x), y, reduction="none") * (y + 1)).sum() / (y + 1).sum()

    surface = LossSurface(trained(mlp()), tokens, examples())
    with pytest.raises(SurfaceError, match="the gradient of a batch is not the mean of the gradients of its examples"):
        surface.per_example_grads(surface.theta())


class WrongUnderVmap(torch.autograd.Function):
    """Right one by one, 1 % off under vmap."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad

    @staticmethod
    def vmap(info, in_dims, x):
        return 1.01 * WrongUnderVmap.apply(x), in_dims[0]


class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(torch.tanh(WrongUnderVmap.apply(self.a(x))))


def test_vmap_that_gives_other_numbers_is_not_used():
    model = trained(Wrong())
    surface = LossSurface(model, mean_loss, examples())
    theta = moved(surface)
    assert surface.example_gradients == "loop"
    rows = truth(model, theta, examples())
    close(surface.per_example_grads(theta), rows)
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    close(surface.weighted_grad(theta, weights), weights @ rows)


def test_the_user_s_model_and_random_states_are_left_alone():
    model = trained(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 3)))
    model.train()
    model(examples()[0]).sum().backward()
    kept = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    surface = LossSurface(model, mean_loss, examples())
    random.seed(3), torch.manual_seed(4), np.random.seed(5)  # ruff: ignore[numpy-legacy-random]
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # ruff: ignore[numpy-legacy-random]
    chunks = surface.gradient_chunks(surface.theta(), memory=1)
    next(chunks)
    assert torch.is_grad_enabled()
    surface.per_example_grads(surface.theta())
    surface.weighted_grad(surface.theta(), torch.tensor([0.3, 1.0]), [0, 2])
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert (np.random.get_state()[1] == before[2]).all()  # ruff: ignore[numpy-legacy-random]
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), kept[0].values(), strict=True))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), kept[1], strict=True))


@pytest.mark.parametrize(
    ("weights", "indices", "message"),
    [
        ([1.0, 2.0], [0, 1, 2], r"weights: expected 3 finite numbers, one for each example, got shape \(2,\)"),
        ([1.0, float("nan")], [0, 1], "weights: expected 2 finite numbers"),
        ([1.0], [N], rf"indices: expected numbers in \[0, {N}\)"),
        ([1.0], [-1], "indices: expected numbers"),
    ],
)
def test_wrong_weights_and_indices_are_refused(weights, indices, message):
    generator = torch.Generator().manual_seed(1)
    noisy = landscapes.NoisyQuadratic(torch.eye(3), torch.randn(N, 3, generator=generator, dtype=torch.float64))
    for surface in (LossSurface(trained(mlp()), mean_loss, examples()), noisy):
        with pytest.raises(ArgumentError, match=message):
            surface.weighted_grad(surface.theta(), torch.tensor(weights, dtype=torch.float64), indices)


def noisy_landscapes():
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    one = torch.tensor([[2.0, 0.3], [0.3, 0.7]], dtype=torch.float64)
    own = one + torch.diag_embed(torch.rand(7, 2, generator=generator, dtype=torch.float64))
    well = landscapes.Noisy(landscapes.DoubleWell(1.3, 0.8, walls=[2.0]), centres)
    turn = landscapes.Ravine(2.0, 0.5, angle=0.4).rotation
    inner = landscapes.NoisyQuadratic(own, centres)
    moved = landscapes.Moved(inner, rotation=turn, shift=torch.tensor([0.3, -1.0]), scale=2.5)
    return [landscapes.NoisyQuadratic(one, centres), inner, well, moved]


@pytest.mark.parametrize("number", range(4))
def test_rows_of_the_landscapes_are_differences_of_their_losses(number):
    surface = noisy_landscapes()[number]
    theta = torch.tensor([0.9, -0.6], dtype=torch.float64)
    rows = surface.per_example_grads(theta)
    for i in range(2):
        e = torch.zeros(2, dtype=torch.float64)
        e[i] = 1e-6
        close(rows[:, i], (surface.losses(theta + e) - surface.losses(theta - e)) / 2e-6, tolerance=1e-8)
    chosen = [6, 0, 6, 2]
    close(surface.per_example_grads(theta, chosen), rows[chosen])
    close(torch.cat(list(surface.gradient_chunks(theta, chosen))), rows[chosen])
    weights = torch.tensor([0.7, -1.9, 0.3, 2.2], dtype=torch.float64)
    close(surface.weighted_grad(theta, weights, chosen), weights @ rows[chosen])
    assert rows.std(0).min() > 0.1


def test_a_landscape_without_noise_has_one_row():
    surface = landscapes.StyblinskiTang(3)
    theta = torch.tensor([0.4, -1.2, 2.0], dtype=torch.float64)
    close(surface.per_example_grads(theta), surface.value_and_grad(theta)[1][None])
    close(surface.weighted_grad(theta, torch.tensor([0.7, 0.6]), [0, 0]), 1.3 * surface.value_and_grad(theta)[1], tolerance=1e-7)


def test_lstm_of_two_layers_goes_one_by_one_and_says_so():
    surface = LossSurface(trained(Recurrent()), mean_loss, examples())
    assert surface.example_gradients == "loop"


def test_a_mask_or_fractions_are_no_indices():
    model = nn.Linear(3, 2).double()
    surface = LossSurface(
        model,
        lambda net, b: nn.functional.cross_entropy(net(b[0]), b[1]),
        (torch.zeros(4, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1])),
    )
    for wrong in (torch.tensor([True, False, True, True]), torch.tensor([0.5, 2.0])):
        with pytest.raises(ArgumentError, match=f"indices: expected whole numbers, got {wrong.dtype}; of a mask name"):
            surface.per_example_grads(surface.theta(), wrong)
        with pytest.raises(ArgumentError, match="indices: expected whole numbers"):
            surface.subset(wrong)
