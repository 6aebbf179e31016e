"""LossSurface against independent slow routes: plain loops over single examples or batches on a fresh copy of the model."""

import copy
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from sgdscope.errors import ArgumentError, DataError, SurfaceError
from sgdscope.records import Line
from sgdscope.surface import LossSurface

F = nn.functional
SIZES = (7, 7, 3)  # an unequal last batch
N = sum(SIZES)


def mean_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def example_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(2, 12), nn.Linear(12, 3)

    def forward(self, x):
        q, k, v = self.qkv(x.view(len(x), 1, 3, 2)).view(len(x), 1, 3, 3, 4).unbind(3)  # with heads, or no fused kernel is taken
        return self.out(F.scaled_dot_product_attention(q, k, v).flatten(1))


class Checkpointed(nn.Module):
    def __init__(self, net, on=True):
        super().__init__()
        self.net, self.on = net, on

    def forward(self, x):
        if not self.on:
            return self.net(x)
        return self.net[2:](checkpoint(self.net[:2], x, use_reentrant=False))


class Tied(nn.Module):
    """Tied, frozen and unused parameters."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out, self.unused = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(2, 2)
        self.b.weight = self.a.weight
        self.out.bias.requires_grad_(False)

    def forward(self, x):
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(2, 5, num_layers=2, dropout=0.3, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.lstm(x.view(len(x), 3, 2))[0][:, -1])


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def batchnorm_net():
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)
    )


def old_weight_norm():
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))


NETS = {
    "mlp": mlp,
    "dropout": lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)),
    "batchnorm": batchnorm_net,
    "cnn": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    ),
    "attention": Attention,
    "layernorm": lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3), nn.GroupNorm(1, 3)),
    "checkpoint": lambda: Checkpointed(mlp()),
    "tied": Tied,
    "lstm": Recurrent,
    "weight_norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3)),
    "old_weight_norm": old_weight_norm,
    "compiled": lambda: torch.compile(mlp(), backend="eager"),
    "compiled_inside": lambda: nn.Sequential(torch.compile(mlp(), backend="eager"), nn.Tanh()),
}


def examples(dtype=torch.float64, n=N, seed=3):
    g = torch.Generator().manual_seed(seed)
    return 0.3 + 1.7 * torch.randn(n, 6, generator=g, dtype=dtype), torch.randint(0, 3, (n,), generator=g)


def batches(dtype=torch.float64):
    return list(zip(*(t.split(SIZES) for t in examples(dtype)), strict=True))


def trained(net, dtype=torch.float64):
    """A model away from its initialisation, with BatchNorm statistics of its own."""
    net = net.to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return net


def moved(surface, seed=1):
    g = torch.Generator().manual_seed(seed)
    theta = surface.theta()
    return theta + 0.3 * torch.randn(theta.shape, generator=g, dtype=theta.dtype)


def at(model, theta):
    """A fresh copy of the user's module with theta written parameter by parameter."""
    if hasattr(getattr(model, "0", None), "weight_g"):
        with torch.no_grad():
            model(examples()[0])  # leaves behind a weight without a graph, which deepcopy accepts
    inner = copy.deepcopy(getattr(model, "_orig_mod", model)).eval()
    offset = 0
    with torch.no_grad():
        for p in inner.parameters():
            if p.requires_grad:
                p.copy_(theta[offset : offset + p.numel()].view_as(p))
                offset += p.numel()
    assert offset == len(theta)
    return inner


def slow(model, theta, loss=mean_loss):
    """One example at a time: losses, their plain mean and its gradient by .backward()."""
    inner = at(model, theta)
    x, y = examples(theta.dtype)
    losses = torch.stack([loss(inner, (x[i : i + 1], y[i : i + 1])).mean() for i in range(N)])
    losses.mean().backward()
    gradient = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in inner.parameters() if p.requires_grad]
    )
    return losses.detach(), losses.mean().item(), gradient


def close(got, expected, tolerance=1e-10):
    got, expected = (torch.as_tensor(v, dtype=torch.float64) for v in (got, expected))
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("loss", [mean_loss, example_loss])
def test_value_gradient_and_examples(name, loss):
    model = trained(NETS[name]())
    surface = LossSurface(model, loss, batches())
    theta = moved(surface)
    losses, mean, gradient = slow(model, theta)
    close(surface.value(theta), mean)
    value, got = surface.value_and_grad(theta)
    close(value, mean)
    close(got, gradient)
    assert gradient.norm() > 0.05
    assert surface.per_example in ({"loss"} if loss is example_loss else {"vmap", "loop"})
    close(surface.losses(theta), losses)
    assert abs(surface.value(surface.theta()) - mean) > 1e-3


def test_equal_weights_for_batches_would_fail():
    model = trained(mlp())
    surface = LossSurface(model, mean_loss, batches())
    theta = moved(surface)
    inner = at(model, theta)
    wrong = np.mean([mean_loss(inner, batch).item() for batch in batches()])
    right = mean_loss(inner, examples()).item()
    assert abs(wrong - right) > 1e-3
    close(surface.value(theta), right)


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataset", "loader", "list", "list of lists"])
def test_data_of_every_kind_give_the_same_loss(kind):
    model, (x, y) = trained(mlp()), examples()
    data = {
        "tuple": (x, y),
        "dict": {"x": x, "y": y},
        "dataset": TensorDataset(x, y),
        "loader": DataLoader(TensorDataset(x, y), batch_size=7),
        "list": batches(),
        "list of lists": [list(b) for b in batches()],
    }[kind]

    def loss(model, batch):
        return mean_loss(model, (batch["x"], batch["y"]) if isinstance(batch, dict) else batch)

    surface = LossSurface(model, loss, data, memory=1 if kind in {"tuple", "dict"} else None)
    theta = moved(surface)
    losses, mean, _ = slow(model, theta)
    close(surface.value(theta), mean)
    close(surface.losses(theta), losses)
    assert surface.fingerprint()["examples"] == N
    assert surface.fingerprint()["batches"] == {"tuple": N, "dict": N, "dataset": 1}.get(kind, 3)  # memory=1: one example each


class Output:
    def __init__(self, loss):
        self.loss = loss


class OwnLoss(nn.Module):
    """Returns its own loss, a mean over the tokens that are not padding (-100)."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(11, 4), nn.Linear(4, 11)

    def forward(self, input_ids, labels):
        return Output(F.cross_entropy(self.head(torch.tanh(self.table(input_ids))).flatten(0, 1), labels.flatten()))


def tokens():
    g = torch.Generator().manual_seed(5)
    made = []
    for rows in (4, 4, 2):
        ids, labels = torch.randint(0, 11, (rows, 6), generator=g), torch.randint(0, 11, (rows, 6), generator=g)
        labels[torch.rand(rows, 6, generator=g) < 0.5] = -100
        labels[:, 0] = 3
        made.append({"input_ids": ids, "labels": labels})
    return made


def test_own_loss_and_token_weights():
    model = trained(OwnLoss())
    own = lambda model, batch: model(**batch).loss  # ruff: ignore[lambda-assignment]
    surface = LossSurface(model, own, tokens(), weight=lambda batch: (batch["labels"] != -100).sum())
    theta = moved(surface)
    inner = at(model, theta)
    together = {key: torch.cat([b[key] for b in tokens()]) for key in ("input_ids", "labels")}
    truth = own(inner, together)
    truth.backward()
    close(surface.value(theta), truth.item())
    close(surface.value_and_grad(theta)[1], torch.cat([p.grad.flatten() for p in inner.parameters()]))
    by_examples = LossSurface(model, own, tokens())
    assert abs(by_examples.value(theta) - truth.item()) > 1e-3
    assert surface.per_example == "batches", "means over unequal numbers of tokens cannot be parted"
    line = surface.along(theta, torch.zeros_like(theta), [0.7])
    close(line.samples[0], [own(inner, b).item() for b in tokens()])
    close(line.samples[0] @ line.weights, truth.item())


def test_weight_decay_enters_value_gradient_examples_and_lines():
    model = trained(mlp())
    plain, decayed = (LossSurface(model, example_loss, batches(), weight_decay=wd) for wd in (0.0, 0.03))
    theta = moved(plain)
    penalty = 0.5 * 0.03 * float(theta @ theta)
    close(decayed.value(theta) - plain.value(theta), penalty)
    close(decayed.value_and_grad(theta)[1] - plain.value_and_grad(theta)[1], 0.03 * theta)
    close(decayed.losses(theta).mean().item(), decayed.value(theta))
    line = decayed.along(theta, 2 * theta, [0.5])
    close(line.values[0] - plain.value(2 * theta), 0.5 * 0.03 * 4 * float(theta @ theta))
    assert decayed.fingerprint()["weight_decay"] == pytest.approx(0.03)


def test_a_subset_of_parameters_keeps_the_others():
    model = trained(mlp())
    surface = LossSurface(model, mean_loss, batches(), parameters="2.*")
    assert surface.layout.names == ("2.weight", "2.bias")
    theta = moved(surface)
    whole = torch.cat([model[0].weight.flatten(), model[0].bias, theta]).detach()
    _, mean, gradient = slow(model, whole)
    close(surface.value(theta), mean)
    close(surface.value_and_grad(theta)[1], gradient[-len(theta) :])


def by_hand(net, x, statistics=None):
    """The BatchNorm net written out; `statistics` [(mean, var), ...] or None for those of x."""
    h, used = x, []
    for module in net:
        if isinstance(module, nn.BatchNorm1d):
            mean, var = statistics[len(used)] if statistics else (h.mean(0), h.var(0, unbiased=False))
            used.append((h.mean(0), h.var(0, unbiased=True)))
            h = (h - mean) / (var + module.eps).sqrt() * module.weight + module.bias
        else:
            h = module(h)
    return h, used


@pytest.mark.parametrize("mode", ["eval", "batch", "recalibrate"])
def test_batchnorm_modes(mode):
    model = trained(batchnorm_net())
    model.train()
    surface = LossSurface(model, mean_loss, batches(), batchnorm=mode)
    theta = moved(surface)
    net = at(model, theta)
    shares = np.array(SIZES) / N
    if mode == "batch":
        truth = sum(s * F.cross_entropy(by_hand(net, x)[0], y) for s, (x, y) in zip(shares, batches(), strict=True))
    else:
        stats = [(m.running_mean, m.running_var) for m in net if isinstance(m, nn.BatchNorm1d)]
        if mode == "recalibrate":
            found = [by_hand(net, x)[1] for x, _ in batches()]
            stats = [tuple(sum(s * f[i][k] for s, f in zip(shares, found, strict=True)).detach() for k in (0, 1)) for i in (0, 1)]
        truth = F.cross_entropy(by_hand(net, examples()[0], stats)[0], examples()[1])
    truth.backward()
    close(surface.value(theta), truth.item())
    close(surface.value_and_grad(theta)[1], torch.cat([p.grad.flatten() for p in net.parameters()]))
    close(surface.value(theta), truth.item())
    assert surface.per_example == ("batches" if mode == "batch" else "vmap")
    line = surface.along(theta, torch.ones_like(theta), [0.0])
    close(line.values, [truth.item()])
    assert line.evaluations == (2 if mode == "recalibrate" else 1)
    assert surface.fingerprint()["batchnorm"] == mode
    others = [LossSurface(model, mean_loss, batches(), batchnorm=m).value(theta) for m in ("eval", "batch", "recalibrate")]
    assert min(abs(a - b) for a in others for b in others if a is not b) > 1e-3


def test_buffers_are_taken_from_the_snapshot_and_interpolated():
    model = trained(batchnorm_net())
    surface = LossSurface(model, mean_loss, batches())
    theta, direction = moved(surface), moved(surface, 9) - surface.theta()
    ends = []
    for shift in (0.4, 1.3):
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        for name, b in buffers.items():
            b += 7 if name.endswith("tracked") else shift
        ends.append(buffers)
    alphas = [-0.5, 0.0, 0.3, 1.0, 1.7]
    line = surface.along(theta, direction, alphas, tuple(ends))
    for alpha, value in zip(alphas, line.values, strict=True):
        a = min(max(alpha, 0.0), 1.0)
        net = at(model, theta + alpha * direction)
        stats = [
            tuple((1 - a) * ends[0][f"{i}.{s}"] + a * ends[1][f"{i}.{s}"] for s in ("running_mean", "running_var"))
            for i in (1, 4)
        ]
        close(value, F.cross_entropy(by_hand(net, examples()[0], stats)[0], examples()[1]).item())
    close(surface.value(theta, ends[0]), line.values[1])
    assert abs(surface.value(theta) - line.values[1]) > 1e-3
    assert line.values[1] == surface.along(theta, direction, [0.0], tuple(ends)).values[0]
    with pytest.raises(ArgumentError, match=r"buffers: '1.running_mean' .* missing"):
        surface.value(theta, {"foreign": torch.zeros(1)})


def test_frozen_batchnorm_stays_frozen_on_a_batch():
    model = trained(batchnorm_net()).train()
    model[1].eval()
    surface = LossSurface(model, mean_loss, batches())
    value = surface.on_batch(batches()[0]).value(surface.theta())
    close(value, mean_loss(copy.deepcopy(model), batches()[0]).item())
    assert abs(value - mean_loss(copy.deepcopy(model).train(), batches()[0]).item()) > 1e-3  # with the statistics of the batch


def test_on_batch_is_the_training_loss_without_dropout():
    model = trained(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))).train()
    surface = LossSurface(model, mean_loss, batches())
    before = surface.value(surface.theta())
    own = surface.on_batch(batches()[1])
    theta = moved(surface)
    net = at(model, theta).train()
    net[2].eval()
    truth = mean_loss(net, batches()[1])
    truth.backward()
    close(own.value(theta), truth.item())
    close(own.value_and_grad(theta)[1], torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert own.fingerprint()["examples"] == 7
    assert own.fingerprint()["batchnorm"] == "batch"
    assert own.along(theta, theta, [0.0, 0.1]).unit == "batch"
    assert surface.value(surface.theta()) == before
    one = LossSurface(trained(mlp()), mean_loss, batches())
    close(one.on_batch((examples()[0][:1], examples()[1][:1])).value(one.theta()), one.losses(one.theta())[0].item())


@pytest.mark.parametrize("loss", [mean_loss, example_loss])
def test_along_equals_values_and_samples_average_to_them(loss):
    model = trained(mlp())
    surface = LossSurface(model, loss, batches())
    theta, direction = moved(surface), moved(surface, 9) - surface.theta()
    alphas = [-0.5, 0.0, 0.25, 1.0, 2.5]
    line = surface.along(theta, direction, alphas)
    assert isinstance(line, Line)
    assert line.evaluations == 5
    assert line.unit == "example"
    close(line.values, [slow(model, theta + a * direction)[1] for a in alphas])
    close(line.samples, torch.stack([slow(model, theta + a * direction)[0] for a in alphas]))
    close(line.samples @ line.weights, line.values)
    close(line.weights, np.full(N, 1 / N))
    assert np.ptp(line.values) > 0.05


def test_the_end_of_a_step_is_bit_equal_to_the_start_of_the_next():
    surface = LossSurface(trained(mlp(), torch.float32), mean_loss, batches(torch.float32))
    a, b = surface.theta(), moved(surface)
    first = surface.along(a, b.double() - a.double(), [0.0, 1.0])
    second = surface.along(b, a.double() - b.double(), [0.0])
    assert first.values[1] == second.values[0]
    assert np.array_equal(first.samples[1], second.samples[0])


def test_float64_converts_the_copy_and_the_data():
    model = trained(mlp(), torch.float32)
    surface = LossSurface(model, mean_loss, batches(torch.float32), dtype=torch.float64)
    theta = moved(surface)
    assert theta.dtype == torch.float64
    wide = copy.deepcopy(model).double()
    x, y = examples(torch.float32)
    close(surface.value(theta), mean_loss(at(wide, theta), (x.double(), y)).item(), 1e-12)
    assert surface.value_and_grad(theta)[1].dtype == torch.float64
    assert surface.fingerprint()["dtype"] == "float64"
    assert model[0].weight.dtype == torch.float32


def test_gradient_under_activation_checkpointing_equals_that_without():
    net = trained(mlp())
    with_it, without = (LossSurface(Checkpointed(net, on), mean_loss, batches()) for on in (True, False))
    theta = moved(with_it)
    close(with_it.value_and_grad(theta)[1], without.value_and_grad(theta)[1], 1e-13)

    class Reentrant(Checkpointed):
        def forward(self, x):
            return self.net[2:](checkpoint(self.net[:2], x.requires_grad_(), use_reentrant=True))

    with pytest.raises(SurfaceError, match="use_reentrant=False"):
        LossSurface(Reentrant(net), mean_loss, batches())


def test_what_the_caller_set_does_not_matter():
    surface = LossSurface(trained(mlp(), torch.float32), mean_loss, batches(torch.float32))
    theta = moved(surface)
    value, gradient = surface.value_and_grad(theta)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with mode:
            again = surface.value_and_grad(theta)
            assert surface.value(theta) == surface.along(theta, theta, [0.0]).values[0] or surface.per_example == "vmap"
        assert again[0] == value
        assert torch.equal(again[1], gradient)


# --- nothing is disturbed --------------------------------------------------------------------------------------------


def random_states(*generators):
    return [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy(), *(g.get_state() for g in generators)]  # ruff: ignore[numpy-legacy-random]


def assert_same_states(a, b):
    for one, two in zip(a, b, strict=True):
        assert one == two if isinstance(one, tuple) else np.array_equal(np.asarray(one), np.asarray(two))


def test_the_user_s_objects_and_random_states_are_left_alone():
    model = trained(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))).train()
    mean_loss(model, batches()[0]).backward()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("pre"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[3].eval()
    own = torch.Generator().manual_seed(4)
    loader = DataLoader(TensorDataset(*examples()), batch_size=7, shuffle=True, generator=own)
    state = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    before = random_states(own)

    def loss(model, batch):
        calls.append("drawn") if torch.rand(1) + np.random.rand() + random.random() < 0 else None  # ruff: ignore[numpy-legacy-random]
        return mean_loss(model, batch)

    surface = LossSurface(model, loss, loader)
    theta = moved(surface)
    surface.value(theta)
    surface.value_and_grad(theta)
    surface.losses(theta)
    surface.along(theta, theta, [0.0, 0.5])
    surface.on_batch(batches()[0]).value_and_grad(theta)
    surface.fingerprint()
    assert calls == []
    assert_same_states(before, random_states(own))
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert modes == [m.training for m in model.modules()]
    assert len(model[0]._forward_hooks) == 1
    own.set_state(before[-1])
    torch.set_rng_state(before[0])
    shuffled = list(loader)
    truth = torch.cat([example_loss(at(model, theta), b).detach() for b in shuffled])
    close(surface.losses(theta), truth), "the order is the one the loader would have given"


def test_the_copy_does_not_follow_the_model_nor_the_data():
    model, (x, y) = trained(mlp()), examples()
    surface = LossSurface(model, mean_loss, (x, y))
    theta = surface.theta()
    value, mark = surface.value(theta), surface.fingerprint()
    with torch.no_grad():
        x.mul_(2)
        for p in model.parameters():
            p.zero_()
    theta2 = surface.theta()
    assert torch.equal(theta, theta2)
    assert surface.value(theta) == value
    theta2.zero_()
    assert torch.equal(theta, surface.theta())
    assert LossSurface(trained(mlp()), mean_loss, (x, y)).fingerprint()["data"] != mark["data"]


def test_a_loss_module_is_copied():
    class Criterion(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls, self.cross_entropy = 0, nn.CrossEntropyLoss()

        def forward(self, model, batch):
            self.calls += 1
            return self.cross_entropy(model(batch[0]), batch[1])

    model, criterion = trained(mlp()), Criterion()
    surface = LossSurface(model, criterion, batches())
    theta = moved(surface)
    close(surface.value(theta), slow(model, theta)[1])
    assert criterion.calls == 0


def test_fingerprint():
    surface = LossSurface(trained(mlp(), torch.float32), mean_loss, batches(torch.float32))
    mark = surface.fingerprint()
    assert mark | {"data": ""} == {
        "examples": N, "batches": 3, "batch_size": 7, "data": "", "batchnorm": "none", "dtype": "float32", "weight_decay": 0.0,
        "per_example": "vmap", "parameters": 83, "loss": "mean_loss", "proof": "float64", "memory_format": "contiguous",
    }  # fmt: skip
    assert len(mark["data"]) == 32


def test_not_finite_losses_are_returned():
    surface = LossSurface(trained(mlp()), mean_loss, batches())
    theta = surface.theta()
    theta[3] = float("nan")
    assert np.isnan(surface.value(theta))
    broken = trained(mlp())
    with torch.no_grad():
        broken[0].bias[2] = float("inf")
        broken[2].weight[0, 2] = 0.0
    surface = LossSurface(broken, mean_loss, batches())
    assert surface.fingerprint()["proof"] == "not finite"
    assert np.isnan(surface.value(surface.theta()))


# --- the proof and the errors -----------------------------------------------------------------------------------------


class Noisy(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.3)


class OffByAPercent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 1.01 * g


class WrongBackward(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return OffByAPercent.apply(self.net(x))


class WrongInside(WrongBackward):
    """The gradient of the first layer alone is lost by half: a stop-gradient on one of two equal branches."""

    def forward(self, x):
        h = self.net[0](x)
        return self.net[2](torch.tanh(0.5 * h + 0.5 * h.detach()))


def rounded(model, batch):
    return (model(batch[0]).argmax(1) != batch[1]).double().mean()


OTHER = trained(mlp())
REFUSED = {
    "noise": (lambda: nn.Sequential(nn.Linear(6, 8), Noisy(), nn.Linear(8, 3)), mean_loss, r"not deterministic.*module.* is '1'"),
    "noisy loss": (mlp, lambda m, b: mean_loss(m, b) * (1 + 0.01 * torch.rand(())), "not deterministic.*outside the modules"),
    "another model": (mlp, lambda _m, b: mean_loss(OTHER, b), "does the loss use the model that it is given"),
    "no model": (mlp, lambda _m, b: b[0].mean(), "does not move with theta; does the loss use the model"),
    "no gradient": (mlp, rounded, "moves with theta but its gradient is zero"),
    "detached": (mlp, lambda m, b: F.cross_entropy(m(b[0]).detach(), b[1]), "moves with theta but its gradient is zero"),
    "1 percent": (WrongBackward, mean_loss, "not that of its values"),
    "half a layer": (WrongInside, mean_loss, r"not that of its values.*parameter 'net\.0\.weight' alone"),
    "no reduction": (mlp, lambda m, b: m(b[0]), r"one loss per example \[7\], got a tensor of shape \(7, 3\)"),
    "one element": (mlp, lambda m, b: mean_loss(m, b).reshape(1), r"got a tensor of shape \(1,\).*\.mean\(\)"),
    "a number": (mlp, lambda m, b: mean_loss(m, b).item(), "got float"),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("name", REFUSED)
def test_a_loss_that_cannot_be_trusted_is_refused(name):
    net, loss, message = REFUSED[name]
    with pytest.raises(SurfaceError, match=message):
        LossSurface(trained(net()), loss, batches())


def test_kinks_at_the_start_do_not_fail_the_proof():
    """Zero biases and zero inputs put every unit exactly on the kink of its ReLU."""
    net = nn.Sequential(nn.Linear(6, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 3))
    nn.init.zeros_(net[0].bias)
    nn.init.zeros_(net[2].bias)
    x, y = examples(torch.float32)
    x[::2] = 0
    for seed in range(5):
        torch.manual_seed(seed)
        for module in (net[0], net[2], net[4]):
            module.reset_parameters()
        nn.init.zeros_(net[0].bias)
        surface = LossSurface(net, mean_loss, (x, y))
        assert surface.fingerprint()["proof"] == "float64"


def test_a_loss_that_is_bound_to_float32_is_proved_there():
    scale = torch.tensor([[1.0, 2.0, 0.5]])

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]) @ torch.diag(scale[0]), batch[1])

    assert LossSurface(trained(mlp(), torch.float32), loss, batches(torch.float32)).fingerprint()["proof"] == "float32"
    with pytest.raises(SurfaceError, match="not that of its values"):
        LossSurface(trained(WrongInside(), torch.float32), loss, batches(torch.float32))


def test_what_cannot_be_copied_is_said():
    model = mlp()
    model.lock = threading.Lock()
    with pytest.raises(SurfaceError, match=r"Sequential cannot be copied .*lock.* private copy"):
        LossSurface(model, mean_loss, batches())
    cached = trained(mlp())
    cached.features = cached[0](batches()[0][0])  # a non-leaf tensor, which deepcopy refuses
    LossSurface(cached, mean_loss, batches())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data: it is empty"),
        ((torch.zeros(0, 6), torch.zeros(0)), "data: no examples; expected at least two"),
        ((torch.zeros(1, 6), torch.zeros(1)), "data: 1 example; expected at least two"),
        ([(torch.zeros(1, 6), torch.zeros(1, dtype=torch.long))], "data: 1 example; expected at least two"),
        ((torch.zeros(5, 6), torch.zeros(4)), r"disagree .*\(5, 6\), \(4,\)"),
        ([(torch.zeros(5, 6), torch.zeros(4))], r"batch 0 have no common leading dimension .* weight="),
        ([(torch.zeros(0, 6), torch.zeros(0))], "batch 0 is empty"),
    ],
)
def test_unusable_data(data, message):
    with pytest.raises(DataError, match=message):
        LossSurface(mlp(), mean_loss, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batchnorm": "train"}, "batchnorm: expected one of eval, batch, recalibrate, got 'train'"),
        ({"dtype": torch.int64}, "dtype: expected a real floating point dtype"),
        ({"weight_decay": -0.1}, "weight_decay: expected .* >= 0, got -0.1"),
        ({"memory": 0}, "memory: expected a positive number"),
        ({"weight": lambda batch: -2}, "weight: batch 0 weighs -2"),
        ({"parameters": "layer.*"}, "the pattern 'layer.*' matches none"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ArgumentError, match=message):
        LossSurface(trained(mlp()), mean_loss, batches(), **options)


def test_wrong_model_loss_and_data():
    for arguments, message in [
        (("net", mean_loss, batches()), "model: expected a torch.nn.Module, got str"),
        ((mlp(), 3, batches()), "loss: expected a callable"),
        ((mlp(), mean_loss, iter(batches())), "data: .*iterator is not supported"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            LossSurface(*arguments)


def test_wrong_points():
    surface = LossSurface(trained(mlp()), mean_loss, batches())
    theta = surface.theta()
    with pytest.raises(ArgumentError, match=r"theta: expected shape \(83,\).*got \(82,\)"):
        surface.value(theta[1:])
    with pytest.raises(ArgumentError, match=r"theta: expected a floating point tensor of shape \(83,\), got torch.int64"):
        surface.losses(theta.long())
    with pytest.raises(ArgumentError, match=r"direction: expected shape \(83,\)"):
        surface.along(theta, theta[None], [0.5])
    for alphas in ([], [0.0, float("nan")], [[0.1]]):
        with pytest.raises(ArgumentError, match="alphas: expected at least one finite number"):
            surface.along(theta, theta, alphas)


@pytest.mark.parametrize("flat", [nn.Flatten(), "view"])
def test_convolutions_run_channels_last_where_they_can(flat):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.head = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)), nn.Linear(45, 3)

        def forward(self, x):
            h = self.net(x.view(-1, 1, 6, 1).expand(-1, 2, 6, 6))
            return self.head(h.view(len(h), 45) if flat == "view" else h.flatten(1))

    model = trained(Net())
    surface = LossSurface(model, mean_loss, batches())
    theta = moved(surface)
    losses, mean, gradient = slow(model, theta)
    close(surface.value(theta), mean)
    close(surface.value_and_grad(theta)[1], gradient)
    close(surface.losses(theta), losses)
    assert surface.fingerprint()["memory_format"] == ("contiguous" if flat == "view" else "channels_last")
    assert model.net[0].weight.is_contiguous()


def test_the_batch_size_follows_the_memory():
    model, data = trained(mlp(), torch.float32), examples(torch.float32, 500)
    small = LossSurface(model, mean_loss, data, memory=20_000)
    whole = LossSurface(model, mean_loss, data)
    assert small.fingerprint()["batch_size"] < 500
    assert whole.fingerprint()["batch_size"] == 500
    assert small.fingerprint()["examples"] == whole.fingerprint()["examples"] == 500
    close(small.value(small.theta()), whole.value(whole.theta()), 1e-6)


TWO_PROCESSES = """
import sys, json, torch, torch.distributed as dist
from sgdscope.surface import LossSurface
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
norm = torch.nn.BatchNorm1d(4)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), norm, torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
x, y = torch.randn(11, 3).double(), torch.randn(11, 1).double()
loss = lambda model, batch: ((model(batch[0]) - batch[1]) ** 2).mean()
batches = [(x[:5], y[:5]), (x[5:7], y[5:7]), (x[7:], y[7:])]
found = []
for own, group in ((batches[:2] if rank == 0 else batches[2:], dist.group.WORLD), (batches, None)):
    surface = LossSurface(model, loss, own, batchnorm="recalibrate", weight_decay=0.3, group=group)
    theta = 1.5 * surface.theta()
    value, gradient = surface.value_and_grad(theta)
    line = surface.along(theta, gradient, [0.0, -0.1])
    found.append([surface.value(theta), value, *gradient, *surface.losses(theta), *line.values, *(line.samples @ line.weights)])
    with surface.linearized(theta) as h:
        found[-1] += [surface.fingerprint()["examples"], h.value, *h.hvp(gradient)]
torch.testing.assert_close(torch.tensor(found[0]).double(), torch.tensor(found[1]).double(), rtol=1e-5, atol=1e-6)
dist.destroy_process_group()
print(len(found[0]), "compared")
"""


def test_two_processes_with_a_part_of_the_data_each_equal_one_with_all(tmp_path):
    runs = [
        subprocess.Popen([sys.executable, "-c", TWO_PROCESSES, str(rank), str(tmp_path)], stdout=-1, stderr=-1, text=True)
        for rank in (0, 1)
    ]
    for run in runs:
        out, error = run.communicate(timeout=120)
        assert run.returncode == 0, error
        assert "77 compared" in out
