"""Adai: against its recursion written out in numpy, and its limits."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sgdscope.errors import ArgumentError
from sgdscope.walkers.inertia import Adai


def points(*shapes, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64) + 0.7) for shape in shapes]


def gradients(parameters, t):
    """A gradient that depends on the point and on the update, of different size in each element."""
    generator = torch.Generator().manual_seed(100 + t)
    return [
        (p.detach() - 0.4) * torch.linspace(0.2, 3.0, p.numel(), dtype=torch.float64).reshape(p.shape)
        + 0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for p in parameters
    ]


def recursion(start, groups, updates):
    """The definition on one long vector a group; `groups` hold lr, betas, eps, weight_decay, decoupled."""
    theta = [s.detach().numpy().copy() for s in start]
    v, m, prod = ([np.full_like(x, value) for x in theta] for value in (0.0, 0.0, 1.0))
    for t in range(1, updates + 1):
        g = [x.numpy().copy() for x in gradients([torch.from_numpy(x) for x in theta], t)]
        for i, o in enumerate(groups):
            g[i] += 0 if o["decoupled"] else o["weight_decay"] * theta[i]
            theta[i] *= 1 - o["lr"] * o["weight_decay"] if o["decoupled"] else 1
            v[i] = o["betas"][1] * v[i] + (1 - o["betas"][1]) * g[i] ** 2
        hats = [x / (1 - o["betas"][1] ** t) for x, o in zip(v, groups, strict=True)]
        mean = np.concatenate([h.ravel() for h in hats]).mean()
        for i, o in enumerate(groups):
            beta1 = np.clip(1 - o["betas"][0] * hats[i] / mean, 0, 1 - o["eps"])
            prod[i] *= beta1
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            theta[i] -= o["lr"] * m[i] / (1 - prod[i])
    return theta


def walk(walker, parameters, updates):
    for t in range(1, updates + 1):
        for p, g in zip(parameters, gradients(parameters, t), strict=True):
            p.grad = g
        walker.step()


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_it_follows_its_recursion_with_both_weight_decays(decoupled, decay):
    start = points((4, 3), (5,))
    groups = [
        {"lr": 0.05, "betas": (0.1, 0.97), "eps": 1e-3, "weight_decay": decay, "decoupled": decoupled},
        {"lr": 0.11, "betas": (0.6, 0.9), "eps": 0.05, "weight_decay": 2 * decay, "decoupled": decoupled},
    ]
    expected = recursion(start, groups, 7)
    walker = Adai([{"params": [p], **o} for p, o in zip(start, groups, strict=True)], lr=9.0)
    walk(walker, start, 7)
    for p, e in zip(start, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), e, rtol=1e-12, atol=1e-14)
    clipped = walker.state[start[1]]["beta1_prod"]
    assert (clipped == 0).any()  # an element of large gradient lost its inertia
    assert (clipped > 0).any()


def test_the_decays_differ_and_the_gradient_of_the_user_is_left_alone():
    ends = []
    for decoupled in (False, True):
        (p,) = points((6,))
        walker = Adai([p], lr=0.1, weight_decay=0.4, decoupled=decoupled)
        p.grad = gradients([p], 1)[0]
        kept = p.grad.clone()
        walker.step()
        assert torch.equal(p.grad, kept)
        ends.append(p.detach())
    (p,) = points((6,))
    g = gradients([p], 1)[0]
    torch.testing.assert_close(ends[0], p - 0.1 * (g + 0.4 * p), rtol=1e-13, atol=0)  # the first update has no inertia
    torch.testing.assert_close(ends[1], (1 - 0.04) * p - 0.1 * g, rtol=1e-13, atol=0)
    assert float((ends[0] - ends[1]).detach().abs().max()) < 1e-12  # they agree in the first update of plain averages
    for decoupled in (False, True):
        (p,) = points((6,))
        walk(Adai([p], lr=0.1, weight_decay=0.4, decoupled=decoupled), [p], 4)
        ends.append(p.detach())
    assert float((ends[2] - ends[3]).abs().max()) > 1e-3


def test_the_mean_of_the_second_moment_runs_over_all_parameters():
    """Two scalars of gradient 1 and 3: v_bar = 5, beta1 = 1 - 0.3 (1, 9) / 5; alone each has beta1 = 1 - 0.3."""
    pair = [nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(3)]
    walker = Adai(pair, lr=0.1, betas=(0.3, 0.8))
    pair[0].grad, pair[1].grad = torch.tensor([1.0]).double(), torch.tensor([3.0]).double()
    walker.step()
    assert [float(walker.state[p]["beta1_prod"]) for p in pair[:2]] == pytest.approx([1 - 0.06, 1 - 0.54], rel=1e-14)
    assert pair[2] not in walker.state  # without a gradient it is left out, of the mean too


def test_inertia_of_a_constant_gradient_is_that_of_an_average_not_of_a_sum():
    (p,) = points((5,))
    start = p.detach().clone()
    walker = Adai([p], lr=0.1)
    for _ in range(20):
        p.grad = torch.linspace(0.5, 2.0, 5, dtype=torch.float64)
        walker.step()
    torch.testing.assert_close(p.detach(), start - 2.0 * torch.linspace(0.5, 2.0, 5, dtype=torch.float64), rtol=1e-12, atol=0)


def test_without_any_gradient_nothing_moves():
    (p,) = points((5,))
    start = p.detach().clone()
    walker = Adai([p], lr=0.1)
    walker.step()
    p.grad = torch.zeros_like(p)
    walker.step()
    assert torch.equal(p, start)
    assert torch.isfinite(walker.state[p]["beta1_prod"]).all()
    walk(walker, [p], 2)
    assert torch.isfinite(p).all()
    assert not torch.equal(p, start)


def test_a_closure_passes_through_with_gradients_on():
    (p,) = points((3,))

    def closure():
        p.grad = None
        loss = (p**2).sum()
        loss.backward()
        return loss

    before = float((p.detach() ** 2).sum())
    with torch.no_grad():
        assert Adai([p], lr=0.1).step(closure).item() == pytest.approx(before)
    assert float((p.detach() ** 2).sum()) == pytest.approx(0.64 * before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": 0.9}, "betas: expected two numbers, beta0 and beta2, got 0.9"),
        ({"betas": (0.1,)}, "betas: expected two numbers, beta0 and beta2"),
        ({"betas": (-0.1, 0.9)}, r"betas\[0\]: expected a finite number >= 0, got -0.1"),
        ({"betas": (0.1, 1.0)}, r"betas\[1\]: expected a finite number with 0 <= beta2 < 1, got 1.0"),
        ({"eps": 0.0}, "eps: expected a finite number with 0 < eps <= 1, got 0.0"),
        ({"eps": 1.1}, "eps: expected a finite number with 0 < eps <= 1, got 1.1"),
        ({"weight_decay": math.nan}, "weight_decay: expected a finite number >= 0, got nan"),
        ({"decoupled": 1}, "decoupled: expected true or false, got 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        Adai(points((2,)), **({"lr": 0.1} | options))


def test_a_group_that_would_climb_is_refused():
    with pytest.raises(ArgumentError, match=r"lr: expected a finite number > 0, got -0\.1"):
        Adai([{"params": points((2,)), "lr": -0.1}], lr=0.1)
    with pytest.raises(ArgumentError, match="weight_decay: expected a finite number >= 0, got -1"):
        Adai([{"params": points((2,)), "weight_decay": -1}], lr=0.1)
