"""The nudged walker: against dense algebra, closed forms, and base bit for bit."""

import pytest
import torch
from torch import nn

from sgdscope.surface import LossSurface
from sgdscope.vector import Layout, select_parameters
from sgdscope.walkers.nudged import NudgedSGD

GAMMA = 0.3


def network(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batches(n=8):
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(9, 4, generator=generator, dtype=torch.float64) * 1.7 + 0.4 for _ in range(n)]


def loss(model, x):
    out = model(x)
    return (out**2).sum(1).mean() + 1.3 * (torch.sin(out) * x[:, :3]).sum(1).mean()


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def hessian(model, xs):
    """The dense Hessian of the mean loss, by autograd on a function of the flat vector."""
    layout = Layout.of(select_parameters(model))

    def value(theta):
        parts = layout.unpack(theta)
        return torch.stack([loss(lambda x: torch.func.functional_call(model, parts, (x,)), x) for x in xs]).mean()

    return torch.autograd.functional.hessian(value, flat(model))


def full_gradient(model, xs):
    return torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(sum(loss(model, x) for x in xs) / len(xs), list(model.parameters()))]
    )


def top(matrix, k):
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0)[:k], vectors.flip(1)[:, :k]


BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, weight_decay=0.02),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.7, 0.9), eps=1e-3),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.02, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.3, amsgrad=True),
}


def backward(model, optimizer, x):
    optimizer.zero_grad()
    value = loss(model, x)
    value.backward()
    return value


def steps(model, optimizer, xs):
    for x in xs:
        backward(model, optimizer, x)
        optimizer.step()
    return flat(model)


def nudged(model, base="sgd", surface=None, **options):
    surface = surface or LossSurface(model, loss, batches())
    options = {"k": 3, "gamma": GAMMA, "every": 1, "tolerance": 1e-12} | options
    return NudgedSGD(BASES[base](model.parameters()), model, surface, **options)


# --- against dense algebra ---------------------------------------------------------------------------------------------------


def rescaled(vector, vectors, gammas):
    return vector - vectors @ ((1 - gammas) * (vectors.T @ vector))


@pytest.mark.parametrize("base", ["sgd", "momentum"])
@pytest.mark.parametrize("every", [1, 3])
def test_the_update_of_any_base_is_rescaled_along_the_dense_eigenvectors(base, every):
    model, twin = network(), network()
    walker, plain = nudged(model, base, every=every), BASES[base](twin.parameters())
    for t, x in enumerate(batches(5)):
        if t % every == 0:
            values, vectors = top(hessian(twin, batches()), 3)
        before = flat(twin)
        backward(twin, plain, x)
        plain.step()
        expected = before + rescaled(flat(twin) - before, vectors, torch.full((3,), GAMMA, dtype=torch.float64))
        torch.nn.utils.vector_to_parameters(expected, twin.parameters())
        steps(model, walker, [x])
        torch.testing.assert_close(flat(model), expected, rtol=0, atol=1e-10)
        assert walker.refreshed_at == t - t % every
        torch.testing.assert_close(walker.eigenvalues, values, rtol=1e-7, atol=0)
    assert float((flat(model) - before).norm()) > 1e-3  # far above the tolerance


def test_gamma_one_is_base_bit_for_bit_while_the_directions_are_measured():
    for base in BASES:
        model, twin = network(), network()
        walker = nudged(model, base, gamma=1.0, every=2)
        assert torch.equal(steps(model, walker, batches()), steps(twin, BASES[base](twin.parameters()), batches()))
        assert walker.refreshed_at == 6
        assert walker.products > 6
