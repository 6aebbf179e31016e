"""Every walker of the catalogue keeps the contract."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn

from sgdscope.contracts import walkers
from sgdscope.errors import ArgumentError, UnknownNameError
from sgdscope.surface import LossSurface

NAMES = sorted(walkers)
DEFAULTS = {"lr": 0.03}
OFF_LIMIT = (0.3, 3)  # a value off the limit case: the first that is in the range of the option


def network(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def batches(n=6):
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(9, 5, generator=generator, dtype=torch.float64) * 1.7 + 0.4 for _ in range(n)]


def loss(model, x):
    return (model(x) ** 2).sum(1).mean() + (model(x) * 1.3).sum()


def each_loss(model, x):
    return (model(x) ** 2).sum(1) + (model(x) * 1.3).sum(1)


def walk(model, optimizer, xs):
    for number, x in enumerate(xs):
        optimizer.zero_grad()
        loss(model, x).backward()
        if hasattr(optimizer, "use"):
            optimizer.use([number])
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def build(name, model, options=None, seed=5):
    """The walker round its default base if it wraps one; the options that it does not declare are those of the base."""
    entry, generator = walkers[name], torch.Generator().manual_seed(seed)
    options = DEFAULTS | dict(options or {})
    if entry.wraps is None:
        return entry.cls(model.parameters(), **options, generator=generator)
    inside = {key: value for key, value in options.items() if key == "lr" or key not in entry.ranges}
    own = {key: value for key, value in options.items() if key not in inside}
    surface = LossSurface(model, each_loss, torch.cat(batches()))
    return entry.cls(build(entry.wraps, model, inside, seed), model, surface, **own, generator=generator)


def test_the_catalogue_holds_the_walkers():
    assert {"sgd", "adam", "adamw"} <= set(NAMES)
    with pytest.raises(UnknownNameError, match="no walker is called 'adamm'; did you mean 'adam'"):
        walkers["adamm"]


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_it_is_an_optimizer_that_declares_itself(self, name):
        entry = walkers[name]
        assert issubclass(entry.cls, torch.optim.Optimizer)
        assert str(entry.source)
        assert "lr" in entry.ranges

    def test_the_hooks_of_a_step_are_called_once(self, name):
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # from here on torch calls hooks inside of SGD.step too
        model, calls = network(), []
        optimizer = build(name, model)
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_: calls.append("after"))
        walk(model, optimizer, batches(2))
        assert calls == ["before", "after"] * 2

    def test_it_touches_no_global_randomness(self, name):
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # ruff: ignore[numpy-legacy-random]
        model = network()
        start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        end = walk(model, build(name, model), batches())
        assert not torch.equal(start, end)
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])  # ruff: ignore[numpy-legacy-random]
        assert before[2] == random.getstate()

    def test_the_same_generator_gives_the_same_walk(self, name):
        first, second = network(), network()
        a = walk(first, build(name, first), batches())
        torch.manual_seed(77)
        b = walk(second, build(name, second), batches())
        assert torch.equal(a, b)

    def test_two_walkers_share_no_state(self, name):
        alone = network()
        expected = walk(alone, build(name, alone), batches())
        first, second = network(), network(seed=8)
        one, two = build(name, first), build(name, second, seed=6)
        for x in batches():
            got = walk(first, one, [x])
            walk(second, two, [x * 2])
        assert torch.equal(got, expected)

    def test_state_dict_resumes_the_walk(self, name):
        whole = network()
        expected = walk(whole, build(name, whole), batches())
        model = network()
        optimizer = build(name, model)
        walk(model, optimizer, batches()[:3])
        resumed = network(seed=1)
        resumed.load_state_dict(model.state_dict())
        fresh = build(name, resumed, seed=99)
        fresh.load_state_dict(optimizer.state_dict())
        assert torch.equal(walk(resumed, fresh, batches()[3:]), expected)

    @pytest.mark.parametrize("lr", [0.0, -0.1, float("nan"), float("inf")])
    def test_a_learning_rate_out_of_range_is_refused(self, name, lr):
        with pytest.raises(ArgumentError, match="lr: expected a finite number > 0"):
            build(name, network(), {"lr": lr})


def off_limit(name, model):
    """The walker with each option of its limit case elsewhere, the first of the combinations that it takes."""
    options = walkers[name].limit[0]
    for values in itertools.product(OFF_LIMIT, repeat=len(options)):
        try:
            return build(name, model, dict(zip(options, values, strict=True)))
        except ArgumentError:
            continue
    return pytest.fail(f"{name} takes none of {OFF_LIMIT} for {list(options)}")


@pytest.mark.parametrize("name", [name for name in NAMES if walkers[name].limit])
def test_the_limit_case_is_the_simpler_walker_bit_for_bit(name):
    options, simpler, simpler_options = walkers[name].limit
    first, second = network(), network()
    a = walk(first, build(name, first, options), batches())
    b = walk(second, build(simpler, second, simpler_options), batches())
    assert torch.equal(a, b)
    third = network()
    assert not torch.equal(a, walk(third, off_limit(name, third), batches()))


def test_sgd_without_momentum_is_the_plain_walk_bit_for_bit():
    by_hand, model = network(), network()
    end = walk(model, build("sgd", model), batches())
    for x in batches():
        gradients = torch.autograd.grad(loss(by_hand, x), list(by_hand.parameters()))
        with torch.no_grad():
            for p, g in zip(by_hand.parameters(), gradients, strict=True):
                p.add_(g, alpha=-0.03)
    assert torch.equal(end, torch.cat([p.detach().reshape(-1) for p in by_hand.parameters()]))


def test_momentum_and_weight_decay_follow_their_formula():
    model, by_hand = network(), network()
    end = walk(model, build("sgd", model, {"momentum": 0.7, "weight_decay": 0.2}), batches(3))
    velocity = None
    for x in batches(3):
        parameters = list(by_hand.parameters())
        gradients = [
            g + 0.2 * p.detach() for g, p in zip(torch.autograd.grad(loss(by_hand, x), parameters), parameters, strict=True)
        ]
        velocity = gradients if velocity is None else [0.7 * v + g for v, g in zip(velocity, gradients, strict=True)]
        with torch.no_grad():
            for p, v in zip(parameters, velocity, strict=True):
                p -= 0.03 * v
    expected = torch.cat([p.detach().reshape(-1) for p in by_hand.parameters()])
    torch.testing.assert_close(end, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sgd", {"momentum": 1.0}, "momentum: expected a finite number with 0 <= momentum < 1, got 1.0"),
        ("sgd", {"weight_decay": -0.1}, "weight_decay: expected a finite number >= 0"),
        ("sgd", {"nesterov": True}, "nesterov: needs momentum > 0"),
        ("adam", {"betas": (0.9, 1.0)}, r"betas\[1\]: expected"),
        ("adam", {"betas": (0.9,)}, "betas: expected two numbers"),
        ("adamw", {"eps": 0.0}, "eps: expected a finite number > 0"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(ArgumentError, match=message):
        build(name, network(), options)
