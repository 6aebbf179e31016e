"""Hessian and Gauss-Newton products against dense matrices by differences of gradients from a plain loop over examples."""

import copy

import pytest
import torch
from torch import nn

from sgdscope import landscapes
from sgdscope.errors import ArgumentError, DataError, SurfaceError
from sgdscope.surface import LossSurface
from test_surface import NETS, N, at, batches, batchnorm_net, examples, mean_loss, mlp, moved, slow, trained

F = nn.functional
FUSED = {"weight_norm", "old_weight_norm"}  # torch's fused weight_norm has a wrong second derivative


def smooth():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def times(model, theta, vector, step=1e-7):
    """H v by central differences of the gradient of a loop over single examples."""
    ends = [slow(model, theta + sign * step * vector)[2] for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * step)


def directions(surface, k=3, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return 1.3 * torch.randn(surface.layout.size, k, generator=generator, dtype=torch.float64)


def gap(got, expected):
    """The relative difference, of things that are large enough to have one."""
    assert got.shape == expected.shape
    assert float(expected.norm()) > 0.05
    return float((got - expected).norm() / expected.norm())


def agree(got, expected, tolerance=2e-6):
    assert gap(got, expected) <= tolerance


@pytest.mark.parametrize("name", [name for name in NETS if name not in FUSED])
def test_products_equal_the_dense_hessian(name):
    model = trained(NETS[name]())
    surface = LossSurface(model, mean_loss, batches())
    theta, vectors = moved(surface), directions(surface)
    expected = torch.stack([times(model, theta, v) for v in vectors.T], 1)
    with surface.linearized(theta) as h:
        assert h.way == "graph"
        assert h.kept == 1
        agree(h.hvp(vectors), expected)
        agree(h.hvp(vectors[:, 1]), expected[:, 1])
        assert h.products == 4
        value, gradient = surface.value_and_grad(theta)
        torch.testing.assert_close(h.gradient, gradient, rtol=1e-12, atol=1e-14)
        assert h.value == pytest.approx(value, rel=1e-13)
    agree(surface.hvp(theta, vectors[:, 0]), expected[:, 0])


@pytest.mark.parametrize("name", sorted(FUSED))
def test_fused_weight_norm_is_caught(name):
    surface = LossSurface(trained(NETS[name]()), mean_loss, batches())
    with pytest.raises(SurfaceError, match=r"Hessian products are wrong: in the parameter '0\."):
        surface.hvp(surface.theta(), surface.theta())


@pytest.mark.parametrize("name", ["mlp", "cnn", "attention", "layernorm", "lstm", "batchnorm"])
def test_products_in_float32_are_those_of_float64_to_rounding(name):
    model = trained(NETS[name]())
    model, data = model.float(), batches(torch.float32)  # numbers that both hold exactly
    narrow = LossSurface(model, mean_loss, data)
    wide = LossSurface(copy.deepcopy(model).double(), mean_loss, [(x.double(), y) for x, y in data])
    theta, vectors = narrow.theta(), directions(wide).float().double()
    with narrow.linearized(theta) as h, wide.linearized(theta.double()) as exact:
        assert h.way == "graph"
        assert h.hvp(vectors.float()).dtype == torch.float32
        agree(h.hvp(vectors.float()).double(), exact.hvp(vectors), 2e-5)
        agree(h.gauss_newton(vectors.float()).double(), exact.gauss_newton(vectors), 2e-5)


def test_weight_decay_is_part_of_the_hessian():
    model = trained(smooth())
    plain, decayed = (LossSurface(model, mean_loss, batches(), weight_decay=d) for d in (0.0, 0.37))
    theta, vectors = moved(plain), directions(plain)
    agree(decayed.hvp(theta, vectors) - plain.hvp(theta, vectors), 0.37 * vectors, 1e-10)
    with decayed.linearized(theta) as h:
        assert h.value == pytest.approx(decayed.value(theta), rel=1e-13)
        agree(h.gradient, decayed.value_and_grad(theta)[1], 1e-12)
        with plain.linearized(theta) as bare:
            agree(h.gauss_newton(vectors) - bare.gauss_newton(vectors), 0.37 * vectors, 1e-10)


def test_a_subset_of_the_parameters_has_its_block():
    model = trained(smooth())
    whole, part = LossSurface(model, mean_loss, batches()), LossSurface(model, mean_loss, batches(), parameters="2.*")
    rows = [
        i
        for name, s in zip(whole.layout.names, whole.layout.slices, strict=True)
        if name.startswith("2.")
        for i in range(s.start, s.stop)
    ]
    vectors = directions(part)
    wide = torch.zeros(whole.layout.size, 3, dtype=torch.float64)
    wide[rows] = vectors
    agree(part.hvp(part.theta(), vectors), whole.hvp(whole.theta(), wide)[rows], 1e-10)
    with pytest.raises(ArgumentError, match=r"the pattern '7\.\*' matches none of the parameters"):
        LossSurface(model, mean_loss, batches(), parameters="7.*")


@pytest.mark.parametrize("mode", ["eval", "batch", "recalibrate"])
def test_batchnorm_in_each_mode(mode):
    surface = LossSurface(trained(batchnorm_net()), mean_loss, batches(), batchnorm=mode)
    theta, vectors, step = moved(surface), directions(surface, 2), 1e-6
    frozen, buffers = surface, None
    if mode == "recalibrate":  # the gradient holds the statistics of theta fixed
        surface.value(theta)
        frozen, buffers = LossSurface(trained(batchnorm_net()), mean_loss, batches()), surface._net.read_buffers()
    for column in vectors.T:
        ends = [frozen.value_and_grad(theta + s * step * column, buffers)[1] for s in (1, -1)]
        assert gap(surface.hvp(theta, column), (ends[0] - ends[1]) / (2 * step)) < 1e-5


def test_the_memory_decides_what_is_kept_and_not_the_numbers():
    model = trained(NETS["cnn"]())
    surface = LossSurface(model, mean_loss, batches())
    theta, vectors = moved(surface), directions(surface)
    expected = surface.hvp(theta, vectors)
    need = surface._twins._bytes
    with surface.linearized(theta, memory=1) as none, surface.linearized(theta, memory=int(8 * need)) as some:
        assert none.kept == 0
        assert some.kept == pytest.approx(1 / 3)  # batches of 7, 7 and 3 examples
        torch.testing.assert_close(none.hvp(vectors), expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(some.hvp(vectors), expected, rtol=1e-12, atol=1e-14)


def test_chunks_change_nothing_but_rounding():
    surface = LossSurface(trained(mlp()), mean_loss, examples())
    theta, vectors = moved(surface), directions(surface)
    expected = surface.hvp(theta, vectors)
    for chunk in (1, 4, 5, 17, 100):
        with surface.linearized(theta, chunk=chunk) as h:
            assert len(h._chunks) == -(-N // chunk)
            torch.testing.assert_close(h.hvp(vectors), expected, rtol=1e-12, atol=1e-14)
    given = LossSurface(trained(mlp()), mean_loss, batches())
    with pytest.raises(ArgumentError, match="chunk: expected None: the batches were given as they are"):
        given.linearized(given.theta(), chunk=3)
    with pytest.raises(ArgumentError, match="chunk: expected at least 1, got 0"):
        surface.linearized(theta, chunk=0)


def test_the_surface_may_be_used_while_a_linearization_is_open():
    surface = LossSurface(trained(smooth()), mean_loss, batches())
    a, vectors = moved(surface), directions(surface)
    b = moved(surface, 2)
    expected = surface.hvp(a, vectors), surface.hvp(b, vectors)
    with surface.linearized(a) as first, surface.linearized(b) as second:
        surface.value_and_grad(moved(surface, 4))
        assert torch.equal(second.hvp(vectors), expected[1])
        assert torch.equal(first.hvp(vectors), expected[0])
    with pytest.raises(ArgumentError, match="the linearization was closed; make another"):
        first.hvp(vectors)


def test_the_user_is_not_disturbed():
    model = trained(batchnorm_net()).train()
    surface = LossSurface(model, mean_loss, batches())
    model[0].weight.grad = torch.full_like(model[0].weight, 2.0)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        product = surface.hvp(surface.theta(), surface.theta())
    assert torch.equal(product, surface.hvp(surface.theta(), surface.theta()))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.full_like(model[0].weight, 2.0))
    assert model.training


def gauss_newton(model, theta):
    """sum over examples of J' (diag p - p p') J / N, J by one backward pass an output."""
    inner, (x, _) = at(model, theta), examples()
    parameters, total = [p for p in inner.parameters() if p.requires_grad], 0.0
    for i in range(N):
        z = inner(x[i : i + 1])[0]
        rows = []
        for j in range(3):
            parts = torch.autograd.grad(z[j], parameters, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, parts, strict=True)])
            )
        jacobian, p = torch.stack(rows), torch.softmax(z.detach(), 0)
        total = total + jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / N
    return total


@pytest.mark.parametrize("name", ["mlp", "cnn", "attention", "tied", "lstm", "batchnorm", "compiled", "weight_norm"])
def test_gauss_newton_products(name):
    model = trained(NETS[name]())
    surface = LossSurface(model, mean_loss, batches())
    theta, vectors = moved(surface), directions(surface)
    if name in FUSED:
        with pytest.raises(SurfaceError, match="Hessian products are wrong"):
            surface.linearized(theta)
        return
    with surface.linearized(theta) as h:
        got = h.gauss_newton(vectors)
        agree(got, gauss_newton(model, theta) @ vectors, 1e-9)
        if name not in {"mlp"}:
            assert float((h.hvp(vectors) - got).norm()) > 1e-3 * float(got.norm())


def penalised(model, batch):
    return mean_loss(model, batch) + 0.1 * sum((p**2).sum() for p in model.parameters())


def twice(model, batch):
    return mean_loss(model, batch) + 0.1 * (model(batch[0]) ** 2).mean()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (penalised, r"depends on '0\.weight' in another way than through what the module returns"),
        (twice, "the module is called 2 times by the loss"),
        (lambda model, batch: F.cross_entropy(model[2](model[1](model[0](batch[0]))), batch[1]), "the module is not called"),
    ],
)
def test_gauss_newton_says_where_it_does_not_exist(loss, message):
    surface = LossSurface(trained(smooth()), loss, batches())
    with surface.linearized(surface.theta()) as h, pytest.raises(SurfaceError, match=message):
        h.gauss_newton(surface.theta())


def test_a_module_that_computes_its_own_loss_has_no_gauss_newton():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = smooth()

        def forward(self, x, y):
            return F.cross_entropy(self.net(x), y)

    surface = LossSurface(trained(Own()), lambda model, batch: model(*batch), batches())
    with surface.linearized(surface.theta()) as h, pytest.raises(SurfaceError, match="the module returns a tensor of shape"):
        h.gauss_newton(surface.theta())


class Once(torch.autograd.Function):
    """exp without a second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.exp())
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class Exponential(nn.Module):
    def forward(self, x):
        return Once.apply(0.3 * x)


class Plain(nn.Module):
    def forward(self, x):
        return (0.3 * x).exp()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 2e-3)])
def test_differences_where_there_is_no_second_derivative(dtype, tolerance):
    def net(layer):
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3), nn.Tanh()).to(dtype)

    once, twofold = (LossSurface(net(layer), mean_loss, batches(dtype)) for layer in (Exponential(), Plain()))
    theta, vectors = once.theta(), 100 * directions(once).to(dtype)  # a long vector must not matter
    with once.linearized(theta) as h, twofold.linearized(theta) as exact:
        assert (h.way, exact.way) == ("differences", "graph")
        agree(h.hvp(vectors), exact.hvp(vectors), tolerance)
        assert not h.hvp(torch.zeros(once.layout.size)).any()
        torch.testing.assert_close(h.gradient, exact.gradient)


def test_differences_are_refused_in_float32_where_there_are_kinks():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Exponential(), nn.Linear(8, 3))
    surface = LossSurface(net, mean_loss, batches(torch.float32))
    with pytest.raises(SurfaceError, match=r"differences of gradients say little in float32 .* as in '1' \(ReLU\)"):
        surface.linearized(surface.theta())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2, groups=2), (2, 7, 6)),
        (nn.Conv2d(2, 3, (3, 5), padding="same", bias=False), (2, 5, 6)),
        (nn.Conv1d(2, 3, 3, padding=1), (2, 9)),
        (nn.Conv3d(1, 2, 2), (1, 3, 3, 4)),
    ],
)
def test_convolutions_of_every_kind(layer, shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.conv = nn.Linear(6, torch.Size(shape).numel()), copy.deepcopy(layer)

        def forward(self, x):
            return self.conv(torch.tanh(self.first(x)).view(len(x), *shape)).tanh().flatten(1)[:, :3]

    model = trained(Net())
    surface = LossSurface(model, mean_loss, batches())
    theta = surface.theta()
    vector = directions(surface, 1)[:, 0]
    assert gap(surface.hvp(theta, vector), times(model, theta, vector)) < 2e-6


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.ones(3, dtype=torch.float64), r"vectors: expected a tensor of shape \(83,\) or \(83, k\), got \(3,\)"),
        (torch.full((83,), float("nan"), dtype=torch.float64), "vectors: expected finite numbers, got NaN"),
        ([1.0], "vectors: expected a tensor of shape .* got list"),
    ],
)
def test_vectors_out_of_range_are_refused(vectors, message):
    surface = LossSurface(trained(smooth()), mean_loss, batches())
    with pytest.raises(ArgumentError, match=message):
        surface.hvp(surface.theta(), vectors)
    with pytest.raises(ArgumentError, match="memory: expected a positive number of bytes, got 0"):
        surface.linearized(surface.theta(), memory=0)


def test_landscapes_give_the_same_methods():
    surface = landscapes.StyblinskiTang(3)
    theta = torch.tensor([0.3, -1.7, 2.2], dtype=torch.float64)
    vectors = torch.tensor([[1.0, 0.2], [-0.4, 3.0], [0.7, -1.1]], dtype=torch.float64)
    with surface.linearized(theta) as h:
        torch.testing.assert_close(h.hvp(vectors), surface.hessian(theta) @ vectors)
        torch.testing.assert_close(h.gradient, surface.value_and_grad(theta)[1])
        assert h.products == 2
        with pytest.raises(SurfaceError, match="a landscape is no function of a network's outputs"):
            h.gauss_newton(vectors)


def test_rows_and_subsets_are_some_of_the_examples():
    model, (x, y) = trained(smooth()), examples()
    surface = LossSurface(model, mean_loss, (x, y), memory=1)
    theta, chosen = moved(surface), [3, 16, 0, 7, 7]
    inner = at(model, theta)
    got = surface.rows(chosen)
    assert torch.equal(got[0], x[chosen])
    assert torch.equal(got[1], y[chosen])
    part = surface.subset(torch.tensor(chosen))
    assert part.value(theta) == pytest.approx(mean_loss(inner, (x[chosen], y[chosen])).item(), rel=1e-12)
    assert part.fingerprint()["examples"] == 5
    assert part.fingerprint()["data"] != surface.fingerprint()["data"]
    agree(part.hvp(theta, theta), LossSurface(model, mean_loss, (x[chosen], y[chosen])).hvp(theta, theta), 1e-12)
    with pytest.raises(ArgumentError, match=r"indices: expected numbers in \[0, 17\), at least one, got \[17\]"):
        surface.rows([17])
    with pytest.raises(DataError, match="data: they were given in batches"):
        LossSurface(model, mean_loss, batches()).subset([0, 1])
    noisy = landscapes.NoisyQuadratic(
        torch.diag(torch.tensor([2.0, 0.5])), torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
    )
    point = torch.tensor([0.3, -1.2], dtype=torch.float64)
    assert noisy.subset([1, 4]).value(point) == pytest.approx(float(noisy.losses(point)[[1, 4]].mean()), rel=1e-12)
    with pytest.raises(ArgumentError, match="indices: expected numbers"):
        noisy.subset([9])
