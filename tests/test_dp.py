"""Model-level privacy through opacus, audited by two independent accountants; skipped where the extra dp is not installed."""

import importlib.util
import math

import pytest
import torch
from torch import nn

from sgdscope.errors import ArgumentError, NotAvailableError, UnknownNameError
from sgdscope.integrations.accounting import epsilon
from sgdscope.integrations.opacus import dp_sgd

HISTORY = [(1.0, 0.125, 24)]
missing = importlib.util.find_spec("opacus") is None or importlib.util.find_spec("dp_accounting") is None
needs_dp = pytest.mark.skipif(missing, reason="needs the extra dp: pip install 'sgdscope[dp]'")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@needs_dp
def test_four_accountants_agree_as_they_should():
    # sampling 1/8, sigma 1, 24 steps, delta 1e-5: measured with opacus 1.6.0 and dp-accounting 0.6.0 (specification, section 4)
    found = {name: epsilon(HISTORY, 1e-5, name) for name in ("rdp", "pld", "opacus-rdp", "opacus-prv")}
    assert found["rdp"] == pytest.approx(5.414, abs=0.01)
    assert found["opacus-rdp"] == pytest.approx(5.411, abs=0.01)
    assert found["pld"] == pytest.approx(4.684, abs=0.01)
    assert found["opacus-prv"] == pytest.approx(4.695, abs=0.02)
    assert epsilon([(1.0, 0.125, 12)] * 2, 1e-5) == pytest.approx(found["pld"], rel=1e-6)
    # one step on all examples is the plain Gaussian mechanism: delta(eps) is known in closed form
    eps = epsilon([(2.0, 1.0, 1)], 1e-5)
    normal = torch.distributions.Normal(0.0, 1.0)
    a, b = (float(normal.cdf(torch.tensor(s * 0.25 - eps * 2.0, dtype=torch.float64))) for s in (1, -1))
    assert a - math.exp(eps) * b == pytest.approx(1e-5, rel=0.02)


@needs_dp
def test_an_update_has_the_noise_and_the_clipping_of_its_formula(tmp_path):
    from sgdscope.recorder import Recorder, every
    from sgdscope.runs import open_trajectory

    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 5, generator=generator) * 100  # every gradient is far longer than clip
    model = nn.Linear(5, 40, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    asked = {"batch_size": 16, "noise_multiplier": 2.0, "clip": 3.0, "generator": generator}
    parts = dp_sgd(model, optimizer, (x,), **asked)
    sizes, before = [], torch.get_rng_state()
    with Recorder(tmp_path / "run", model, parts.inner, snapshots=every(1)) as recorder:
        for _ in range(10):
            for (batch,) in parts.loader:
                parts.optimizer.zero_grad()
                parts.model(batch).square().sum(1).mean().backward()
                parts.optimizer.step()
                sizes.append(len(batch))
    assert torch.equal(before, torch.get_rng_state())
    run = open_trajectory(tmp_path / "run")
    assert recorder.stored_steps == len(sizes) == 40
    assert len(set(sizes)) > 5  # Poisson batches
    moves = torch.stack([run.theta(t + 1) - run.theta(t) for t in range(40)])
    # sd of a coordinate >= lr sigma clip / batch size = 0.1875 by the noise; the clipped gradients add little
    assert 0.17 < float(moves.std()) < 0.23
    assert parts.history(40) == [(2.0, 0.25, 40)]


def refused(**more):
    asked = {"batch_size": 2, "noise_multiplier": 1.0, "clip": 1.0, "generator": torch.Generator()} | more
    model = nn.Linear(1, 1)
    return dp_sgd(model, torch.optim.SGD(model.parameters(), lr=0.1), (torch.zeros(3, 1),), **asked)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: epsilon(HISTORY, 0.0), "delta: expected a probability"),
        (lambda: epsilon(HISTORY, 1.0), "delta: expected a probability"),
        (lambda: epsilon([(0.0, 0.1, 3)], 1e-5), "history: expected noise multiplier > 0"),
        (lambda: epsilon([(1.0, 1.1, 3)], 1e-5), "history: expected noise multiplier > 0"),
        (lambda: epsilon([], 1e-5), "history: expected at least one row"),
        (lambda: refused(noise_multiplier=0.0), "noise_multiplier: expected a finite number > 0"),
        (lambda: refused(clip=-1.0), "clip: expected a finite number > 0"),
        (lambda: refused(batch_size=4), "batch_size: expected 1"),
    ],
)
def test_wrong_use_is_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_an_unknown_accountant_is_refused():
    with pytest.raises(UnknownNameError, match="no accountant is called 'prv'; did you mean"):
        epsilon(HISTORY, 1e-5, "prv")


@pytest.mark.skipif(not missing, reason="the extra dp is installed")
def test_without_the_extra_the_way_out_is_told():
    with pytest.raises(NotAvailableError, match=r"pip install 'sgdscope\[dp\]'"):
        epsilon(HISTORY, 1e-5)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(NotAvailableError, match="opacus is not installed"):
        dp_sgd(model, optimizer, (torch.zeros(4, 2),), batch_size=2, noise_multiplier=1.0, clip=1.0, generator=torch.Generator())
