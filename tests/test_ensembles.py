"""Every ensemble of the catalogue keeps the contract."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from sgdscope.contracts import ensembles, walkers

NAMES = sorted(name for name in ensembles if hasattr(ensembles[name].cls, "combine"))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def batches(n, seed=11):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(9, 5, generator=generator, dtype=torch.float64) * 1.7 + 0.4 for _ in range(n)]


def gradients(models, xs):
    for model, x in zip(models, xs, strict=True):
        model.zero_grad()
        ((model(x) ** 2).sum(1).mean() + model(x).sum() * 0.3).backward()


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def build(name, count, *, momentum=0.0, seed=5, options=None):
    models = [network() for _ in range(count)]
    members = [walkers["sgd"].cls(m.parameters(), lr=0.03, momentum=momentum) for m in models]
    told = ensembles[name].limit[0] if options is None else options
    return models, ensembles[name].cls(members, generator=torch.Generator().manual_seed(seed), **told)


def go(models, ensemble, first, last):
    for t in range(first, last):
        gradients(models, [batches(1, 100 * t + i)[0] for i in range(len(models))])
        ensemble.step()
    return ensemble.combine().theta


def test_the_catalogue_holds_the_ensembles():
    assert "weighted_parallel" in NAMES


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_it_declares_itself(self, name):
        entry = ensembles[name]
        assert str(entry.source)
        assert entry.limit is not None
        assert (entry.cls.__doc__ or "").strip()

    def test_it_touches_no_global_randomness(self, name):
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # ruff: ignore[numpy-legacy-random]
        models, ensemble = build(name, 3)
        assert not torch.equal(go(models, ensemble, 0, 4), flat(network()))
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])  # ruff: ignore[numpy-legacy-random]
        assert before[2] == random.getstate()

    def test_the_same_generator_gives_the_same_walk(self, name):
        assert torch.equal(go(*build(name, 3), 0, 4), go(*build(name, 3), 0, 4))

    def test_one_member_is_the_plain_walker_bit_for_bit(self, name):
        options, simpler, further = ensembles[name].limit
        models, ensemble = build(name, 1, options=options)
        plain = network()
        walker = walkers[simpler].cls(plain.parameters(), lr=0.03, **further)
        end = go(models, ensemble, 0, 5)
        for t in range(5):
            gradients([plain], [batches(1, 100 * t)[0]])
            walker.step()
        assert torch.equal(end, flat(plain))
        assert torch.equal(flat(models[0]), flat(plain))

    def test_state_dict_resumes_the_walk(self, name):
        expected = go(*build(name, 3, momentum=0.6), 0, 6)
        models, ensemble = build(name, 3, momentum=0.6)
        go(models, ensemble, 0, 3)
        resumed, fresh = build(name, 3, momentum=0.6, seed=99)
        for new, old in zip(resumed, models, strict=True):
            new.load_state_dict(old.state_dict())
        fresh.load_state_dict(ensemble.state_dict())
        assert torch.equal(go(resumed, fresh, 3, 6), expected)
