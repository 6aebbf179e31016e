"""Flat vectors: order, ties, patterns, dtypes, and messages that help."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sgdscope.errors import ArgumentError
from sgdscope.vector import Layout, inner_module, select_buffers, select_parameters, storage_dtype


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.mid = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.mid.bias.requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.head(self.norm(self.mid(self.embed(x))))


def test_tied_once_frozen_never_in_order():
    chosen = select_parameters(Tied())
    assert list(chosen) == ["embed.weight", "mid.weight", "norm.weight", "norm.bias"]
    assert Layout.of(chosen).size == 15 + 9 + 3 + 3


def test_compiled_models_have_the_names_of_the_inner_one():
    model = Tied()
    compiled = torch.compile(model, backend="eager")
    assert inner_module(compiled) is model
    assert list(select_parameters(compiled)) == list(select_parameters(model))


def test_patterns_choose_and_unmatched_ones_are_named():
    model = Tied()
    assert list(select_parameters(model, "mid.*")) == ["mid.weight"]
    assert list(select_parameters(model, ["norm.*", "*.weight"])) == list(select_parameters(model))
    with pytest.raises(ArgumentError, match=r"pattern 'conv\*' matches none"):
        select_parameters(model, ["mid.*", "conv*"])
    with pytest.raises(ArgumentError, match="no parameter requires a gradient"):
        select_parameters(nn.Flatten())


@given(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5), st.integers(0, 1000))
def test_pack_unpack_round_trip(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"p{i}": torch.randn(*s, generator=generator) if s else torch.randn((), generator=generator) for i, s in enumerate(shapes)
    }
    layout = Layout.of(tensors)
    theta = layout.pack(tensors)
    assert theta.shape == (layout.size,)
    assert layout == Layout.from_json(layout.to_json())
    for name, view in layout.unpack(theta).items():
        assert torch.equal(view, tensors[name])
    theta.add_(1)
    if layout.size:
        assert not torch.equal(theta, layout.pack(tensors))


def test_dtypes_widen_exactly():
    half = {"a": torch.tensor([1.5, -3.25e-5], dtype=torch.bfloat16), "b": torch.tensor([0.1], dtype=torch.float64)}
    layout = Layout.of(half)
    assert layout.storage_dtype == torch.float64
    back = layout.restore(layout.pack(half))
    assert all(torch.equal(back[n], half[n]) and back[n].dtype == half[n].dtype for n in half)
    assert storage_dtype([torch.bfloat16, torch.float16]) == torch.float32
    with pytest.raises(ArgumentError, match="complex64"):
        storage_dtype([torch.complex64])


def test_integer_buffers_survive():
    model = Tied()
    model.train()
    for _ in range(3):
        model(torch.randint(0, 5, (7,)))
    buffers = select_buffers(model)
    layout = Layout.of(buffers)
    back = layout.restore(layout.pack(buffers))
    assert back["norm.num_batches_tracked"].dtype == torch.int64
    assert back["norm.num_batches_tracked"].item() == 3
    assert torch.equal(back["norm.running_mean"], buffers["norm.running_mean"])


def test_wrong_shapes_are_named():
    layout = Layout.of({"w": torch.zeros(2, 3)})
    with pytest.raises(ArgumentError, match=r"'w' has shape \(3, 2\), expected \(2, 3\)"):
        layout.pack({"w": torch.zeros(3, 2)})
    with pytest.raises(ArgumentError, match=r"'w' .* is expected and missing"):
        layout.pack({"v": torch.zeros(2, 3)})
    with pytest.raises(ArgumentError, match=r"theta: expected shape \(6,\), got \(5,\)"):
        layout.unpack(torch.zeros(5))
