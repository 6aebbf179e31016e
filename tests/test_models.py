"""Networks: shapes, parameter counts by hand, first values, seeds, and gradients that reach everything."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from sgdscope import models
from sgdscope.errors import ArgumentError, UnknownNameError


def conv(k, i, o, bias=True):
    return k * k * i * o + o * bias


def linear(i, o):
    return i * o + o


def norm(n):
    return 2 * n


VGG = [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
VGG_PLAIN = sum(conv(3, i, o) for i, o in VGG) + 2 * linear(512, 512) + linear(512, 10)


def resnet_count(n, w, batchnorm, classes=10):
    bias, total, channels = not batchnorm, conv(3, 3, w, not batchnorm), w
    for stage in range(3):
        size = w * 2**stage
        for _ in range(n):
            total += conv(3, channels, size, bias) + conv(3, size, size, bias) + batchnorm * (norm(channels) + norm(size))
            total += (channels != size) * conv(1, channels, size, bias)
            channels = size
    return total + batchnorm * norm(channels) + linear(channels, classes)


LSTM = 65 * 200 + 2 * (4 * 200 * (200 + 200) + 2 * 4 * 200) + linear(200, 65)
GPT = (
    (65 + 32) * 64
    + 2 * (2 * norm(64) + linear(64, 192) + linear(64, 64) + linear(64, 256) + linear(256, 64))
    + norm(64)
    + 64 * 65
)
SIMPLE = conv(3, 3, 32) + conv(3, 32, 32) + conv(3, 32, 64) + conv(3, 64, 64) + linear(2304, 128) + linear(128, 10)
TINY = conv(3, 1, 2) + conv(3, 2, 2) + conv(3, 2, 4) + conv(3, 4, 4) + linear(4, 5) + linear(5, 4)

CASES = [  # name, inputs, classes, options, parameters
    ("logistic", (7,), 3, {}, linear(7, 3)),
    ("mlp", (1, 28, 28), 10, {"batchnorm": True}, linear(784, 500) + norm(500) + linear(500, 350) + norm(350) + linear(350, 10)),
    ("mlp", (64,), 10, {"hidden": [50] * 20, "activation": "tanh"}, linear(64, 50) + 19 * linear(50, 50) + linear(50, 10)),
    ("mlp", (5,), 3, {"hidden": [], "dropout": 0.5}, linear(5, 3)),
    ("mlp", (5,), 3, {"hidden": [4], "dropout": 0.25}, linear(5, 4) + linear(4, 3)),
    ("simplecnn", (3, 32, 32), 10, {}, SIMPLE),
    ("simplecnn", (1, 10, 12), 4, {"width": 2, "dense": 5}, TINY),
    ("vgg11", (3, 32, 32), 10, {"batchnorm": False}, VGG_PLAIN),
    ("vgg11", (3, 32, 32), 10, {}, VGG_PLAIN + sum(norm(o) for _, o in VGG)),
    ("vgg11", (1, 64, 33), 5, {"width": 1 / 64, "dropout": 0.5}, None),
    ("resnet", (3, 32, 32), 10, {}, resnet_count(9, 16, True)),
    ("resnet", (3, 32, 32), 10, {"depth": 32, "batchnorm": False}, resnet_count(5, 16, False)),
    ("resnet", (3, 8, 8), 10, {"depth": 8, "width": 3}, resnet_count(1, 3, True)),
    ("lstm", (20,), 65, {}, LSTM),
    ("lstm", (20,), 65, {"layers": 1, "width": 8, "dropout": 0.1}, 65 * 8 + 4 * 8 * 16 + 64 + linear(8, 65)),
    ("gpt", (32,), 65, {}, GPT),
]  # fmt: skip


def example(name, inputs, classes, batch=3):
    generator = torch.Generator().manual_seed(1)
    if name in {"lstm", "gpt"}:
        return torch.randint(classes, (batch, *inputs), generator=generator)
    return torch.randn(batch, *inputs, generator=generator)


@pytest.mark.parametrize(("name", "inputs", "classes", "options", "parameters"), CASES)
def test_shape_count_seed_and_gradients(name, inputs, classes, options, parameters):
    before = torch.get_rng_state()
    model = models.build(name, inputs=inputs, classes=classes, seed=3, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    if parameters is not None:
        assert sum(p.numel() for p in model.parameters()) == parameters
    torch.rand(5)  # the global generator moves on; the seed decides alone
    again, other = (models.build(name, inputs=inputs, classes=classes, seed=s, **options) for s in (3, 4))
    states = [m.state_dict() for m in (model, again, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])

    x = example(name, inputs, classes)
    output = model(x)
    assert output.shape == ((3, *inputs, classes) if name in {"lstm", "gpt"} else (3, classes))
    assert output.dtype == torch.float32
    functional.cross_entropy(output.reshape(-1, classes), torch.arange(output.numel() // classes) % classes).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(torch.isfinite(parameter.grad).all()), key
        if not (name == "vgg11" and options.get("width", 1) < 1):  # few units there, some of them silent
            assert float(parameter.grad.abs().max()) > 0, key


def test_simplecnn_has_the_known_number_of_parameters():
    assert SIMPLE == 361_898


def test_first_values_of_vgg():
    model = models.build("vgg11", inputs=(3, 32, 32), classes=10, seed=1)
    convs = [m for m in model if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [o for _, o in VGG]
    for layer in convs:
        wanted = (2 / (9 * layer.out_channels)) ** 0.5
        n = layer.weight.numel()
        assert float(layer.weight.detach().std()) == pytest.approx(wanted, rel=5 / (2 * n) ** 0.5)  # five standard errors
        assert bool((layer.bias == 0).all())
    assert sum(isinstance(m, nn.MaxPool2d) for m in model) == 5
    for m in model:
        if isinstance(m, nn.BatchNorm2d):
            assert bool((m.weight == 1).all())
            assert bool((m.bias == 0).all())
    linears = [m for m in model if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(512, 512), (512, 512), (512, 10)]
    assert all(bool((m.bias != 0).all()) and float(m.weight.detach().abs().max()) <= 512**-0.5 for m in linears)


def test_residual_block_is_pre_activation():
    block = models.Residual(4, 4, 1, True).eval()
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    inner = functional.conv2d(functional.relu(block.norm1(x)), block.conv1.weight, padding=1)
    expected = x + functional.conv2d(functional.relu(block.norm2(inner)), block.conv2.weight, padding=1)
    torch.testing.assert_close(block(x), expected)
    with torch.no_grad():
        block.conv2.weight.zero_()
    torch.testing.assert_close(block(x), x)


def test_deep_network_without_batchnorm_neither_dies_nor_explodes():
    model = models.build("resnet", inputs=(3, 16, 16), classes=10, seed=0, depth=56, batchnorm=False)
    size = float(model(example("resnet", (3, 16, 16), 10, 8)).detach().abs().mean())
    assert 0.01 < size < 10


def test_gpt_is_causal_and_matches_attention_written_out():
    model = models.build("gpt", inputs=(9,), classes=11, seed=0, width=12, heads=3, layers=2).double()
    tokens = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    first, second = model(tokens), model(changed)
    torch.testing.assert_close(first[:, :5], second[:, :5])
    assert float((first - second)[:, 5:].detach().abs().amax(-1).min()) > 1e-6
    block = model.blocks[0]
    x = model.tokens(tokens) + model.places(torch.arange(9))
    q, k, v = block.qkv(block.norm1(x)).split(12, dim=-1)
    heads = []
    for h in range(3):
        own = slice(4 * h, 4 * h + 4)
        scores = (q[..., own] @ k[..., own].mT / 2).masked_fill(torch.ones(9, 9).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(-1) @ v[..., own])
    middle = x + block.out(torch.cat(heads, -1))
    expected = middle + block.down(functional.gelu(block.up(block.norm2(middle))))
    torch.testing.assert_close(block(x), expected)
    assert models.build("gpt", inputs=(9,), classes=11, seed=0)(tokens[:, :4]).shape == (2, 4, 11)


def test_dropout_acts_in_training_only():
    for name, inputs, options in (
        ("mlp", (6,), {"hidden": [40]}), ("lstm", (6,), {"width": 40}), ("gpt", (6,), {}),
        ("vgg11", (3, 32, 32), {"width": 0.25}),
    ):  # fmt: skip
        model = models.build(name, inputs=inputs, classes=5, seed=0, dropout=0.5, **options)
        x = example(name, inputs, 5)
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("name", "inputs", "options", "message"),
    [
        ("mlp", (4,), {"width": 3}, "width: the model 'mlp' has no such option; it takes hidden, batchnorm, activation, dropout"),
        ("mlp", (4,), {"activation": "swish"}, "activation: expected one of .*relu.*; got 'swish'"),
        ("mlp", (4,), {"hidden": [3, 0]}, "hidden: expected a whole number >= 1, got 0"),
        ("mlp", (4,), {"hidden": 3}, "hidden: expected a list of widths, got 3"),
        ("mlp", (4,), {"dropout": 1.0}, "dropout: expected a number 0 <= dropout < 1, got 1.0"),
        ("mlp", (4,), {"batchnorm": "yes"}, "batchnorm: expected true or false, got 'yes'"),
        ("mlp", (), {}, "inputs: expected the shape of one example"),
        ("simplecnn", (64,), {}, r"inputs: simplecnn takes images \(C, H, W\) of at least 10 x 10, got \(64,\)"),
        ("simplecnn", (1, 9, 30), {}, "at least 10 x 10"),
        ("simplecnn", (1, 28, 28), {"kernel": 4}, "kernel: expected an odd number, got 4"),
        ("vgg11", (3, 31, 32), {}, "at least 32 x 32"),
        ("vgg11", (3, 32, 32), {"width": 0}, "width: expected a number 0 < width <= 16, got 0"),
        ("resnet", (3, 32, 32), {"depth": 18}, r"depth: expected 6n \+ 2 .* got 18"),
        ("lstm", (3, 4), {}, r"inputs: lstm takes windows of tokens \(T,\)"),
        ("gpt", (9,), {"width": 10}, "width: expected a multiple of heads = 4, got 10"),
    ],
)
def test_wrong_options_are_named(name, inputs, options, message):
    with pytest.raises(ArgumentError, match=message):
        models.build(name, inputs=inputs, classes=3, seed=0, **options)


def test_unknown_model_and_too_few_classes():
    with pytest.raises(UnknownNameError, match="no model is called 'vgg'; did you mean 'vgg11'"):
        models.build("vgg", inputs=(3, 32, 32), classes=10, seed=0)
    with pytest.raises(ArgumentError, match="classes: expected a whole number >= 2, got 1"):
        models.build("mlp", inputs=(4,), classes=1, seed=0)


def test_smallest_images_of_simplecnn_fit():
    for kernel in (1, 3, 5):
        side = 3 * kernel + 1
        model = models.build("simplecnn", inputs=(2, side, side), classes=3, seed=0, kernel=kernel, width=2)
        assert model(torch.randn(2, 2, side, side)).shape == (2, 3)


def test_the_catalogue_is_json():
    rows = models.catalogue()
    assert json.loads(json.dumps(rows)) == rows
    assert (
        [row["name"] for row in rows]
        == [name for name, _ in models.names()]
        == ["logistic", "mlp", "simplecnn", "vgg11", "resnet", "lstm", "gpt"]
    )
    assert {name for name, *_ in CASES} == {row["name"] for row in rows}
