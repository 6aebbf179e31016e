"""A run with the recorder equals the run without it, bit for bit, and was really recorded."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from sgdscope import contracts
from sgdscope.measure import live
from sgdscope.recorder import Recorder, every
from sgdscope.surface import LossSurface

UPDATES = 5


class Counted(nn.Module):
    """What users do in a forward: count, and draw from every generator."""

    def __init__(self):
        super().__init__()
        self.calls, self.seen = 0, []

    def user_code(self, x):
        if not self.training:
            return x
        self.calls += 1
        self.seen.append((random.random(), float(np.random.rand())))  # ruff: ignore[numpy-legacy-random]
        return x + 1e-3 * torch.randn_like(x) + 1e-4 * self.seen[-1][0]


class Mlp(Counted):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3))

    def forward(self, x):
        return self.layers(self.user_code(x))


class Cnn(Counted):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(4 * 12, 3)

    def forward(self, x):
        h = self.drop(torch.relu(self.norm(self.conv(self.user_code(x).view(-1, 1, 3, 4)))))
        return self.head(h.flatten(1))


class Transformer(Counted):
    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.norm = nn.Linear(3, 8), nn.Linear(8, 24), nn.LayerNorm(8)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(8, 3)

    def forward(self, x):
        h = self.embed(self.user_code(x).view(-1, 4, 3))
        q, k, v = self.qkv(self.norm(h)).view(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head((h + self.drop(attended.transpose(1, 2).flatten(2))).mean(1))


class Checkpointed(Counted):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.2), nn.Tanh())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(checkpoint(self.first, self.user_code(x), use_reentrant=False))


class Tied(Counted):
    def __init__(self):
        super().__init__()
        self.encode, self.decode, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.head(torch.tanh(self.decode(torch.tanh(self.encode(self.user_code(x))))))


class FrozenAndUnused(Counted):
    def __init__(self):
        super().__init__()
        self.frozen, self.head, self.unused = nn.Linear(12, 8), nn.Linear(8, 3), nn.Linear(5, 5)
        self.frozen.requires_grad_(False)
        self.partly = nn.BatchNorm1d(8).eval()  # one module in another mode than the rest

    def forward(self, x):
        return self.head(self.partly(torch.tanh(self.frozen(self.user_code(x)))))


MODELS = [Mlp, Cnn, Transformer, Checkpointed, Tied, FrozenAndUnused]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.3, max_iter=3, history_size=4),
}


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def data():
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(30, 12, generator=generator), torch.randint(3, (30,), generator=generator))


class Nosy:
    """A live sink that does what a badly written one would: evaluates, differentiates and draws random numbers."""

    def __init__(self, model):
        self.model, self.norms = copy.deepcopy(model), []

    def begin(self, header):
        self.header = header

    def write_steps(self, block):
        np.random.rand()  # ruff: ignore[numpy-legacy-random]
        random.random()

    def write_snapshot(self, snapshot):
        own = dict(self.model.named_parameters())
        for name, value in self.header.layout.restore(snapshot.theta).items():
            own[name].data.copy_(value)
        value = loss(self.model, (torch.randn(4, 12), torch.tensor([0, 1, 2, 0])))
        grads = torch.autograd.grad(value, [p for p in own.values() if p.requires_grad], allow_unused=True)
        self.norms.append(sum(float(g.norm()) for g in grads if g is not None))

    def write_record(self, record):
        torch.rand(1)

    def flush(self):
        pass

    def close(self):
        pass


def live_sinks(model):
    surface = LossSurface(model, loss, list(DataLoader(data(), batch_size=10)))
    thorough = {
        "curvature": {"points": 2, "k": 2, "bottom": True, "probes": 2, "invariant": True, "layers": True},
        "noise": {"points": 2, "k": 2, "currents": True, "fisher": True},
        "batch": {"eigenvalue": True, "probes": 2, "parts": 2, "sharpness": True, "gni": 1},
    }
    return [
        Nosy(model),
        live("averages", blocks=12, width=2),
        *(live(name, surface, window=3, **thorough.get(name, {})) for name in contracts.quantities),
    ]


def train(model_class, optimizer_name, recorded):
    random.seed(1), np.random.seed(2), torch.manual_seed(5)  # ruff: ignore[numpy-legacy-random]
    model = model_class()
    chosen = [p for p in model.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[optimizer_name](chosen)
    loader = DataLoader(data(), batch_size=6, shuffle=True)
    points, recorder = [], None
    sinks = live_sinks(model) if recorded else []
    random.seed(1), np.random.seed(2), torch.manual_seed(6)  # ruff: ignore[numpy-legacy-random]
    model.calls, model.seen = 0, []
    if recorded:
        recorder = Recorder(None, model, optimizer, loss=loss, snapshots=every(1), live=sinks, batches="bursts", store="memory")
    points.append(flat(chosen))
    call, batches = (recorder.loss, recorder.watch(loader)) if recorded else (loss, loader)
    for batch in batches:

        def closure(batch=batch):
            optimizer.zero_grad()
            value = call(model, batch)
            value.backward()
            return value

        if optimizer_name == "lbfgs":
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        points.append(flat(chosen))
    if recorded:
        recorder.close()
    return model, optimizer, points, recorder, sinks


def flat(params):
    return torch.cat([p.detach().reshape(-1) for p in params])


def state(model, optimizer):
    """Everything that a run leaves behind, as one flat dictionary."""
    kept = {f"parameter {n}": p.detach() for n, p in model.named_parameters()}
    kept |= {f"buffer {n}": b for n, b in model.named_buffers()}
    kept |= {f"gradient {n}": p.grad for n, p in model.named_parameters()}
    kept |= {f"requires_grad {n}": p.requires_grad for n, p in model.named_parameters()}
    kept |= {f"mode {n}": m.training for n, m in model.named_modules()}
    kept |= {f"hooks {n}": (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    for index, one in optimizer.state_dict()["state"].items():
        kept |= {f"optimizer {index} {key}": value for key, value in one.items()}
    kept["groups"] = optimizer.state_dict()["param_groups"]
    kept["counter"], kept["seen"] = model.calls, model.seen
    kept["torch"], kept["python"] = torch.get_rng_state(), random.getstate()
    kept["numpy"] = torch.from_numpy(np.random.get_state()[1].astype(np.int64))  # ruff: ignore[numpy-legacy-random]
    kept["numpy position"] = np.random.get_state()[2]  # ruff: ignore[numpy-legacy-random]
    return kept


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("model_class", MODELS)
def test_a_recorded_run_equals_the_run_without(model_class, optimizer_name):
    model, optimizer, points, _, _ = train(model_class, optimizer_name, recorded=False)
    plain = state(model, optimizer)
    model, optimizer, recorded_points, recorder, sinks = train(model_class, optimizer_name, recorded=True)
    watched = state(model, optimizer)
    assert plain.keys() == watched.keys()
    different = [key for key in plain if not same(plain[key], watched[key])]
    assert not different
    assert not same(points[0], points[-1])  # it trained
    assert plain["counter"] >= UPDATES
    trajectory = recorder.store.trajectory()
    assert trajectory.steps["step"].values.tolist() == list(range(UPDATES))
    assert trajectory.snapshot_steps.tolist() == list(range(UPDATES + 1))
    for step, point in enumerate(points):
        assert same(trajectory.theta(step), point), f"theta_{step}"
        assert same(recorded_points[step], point)
    assert np.isfinite(trajectory.steps["loss"].values).all()
    assert (trajectory.steps["batch_size"].values == 6).all()
    assert trajectory.batch(UPDATES - 1)[0].shape == (6, 12)
    assert len(sinks[0].norms) == UPDATES + 1
    assert min(sinks[0].norms) > 0
    assert len(sinks) >= 4
    assert sinks[1].blocks[-1].last == UPDATES
    for block in sinks[1].blocks:
        walk = torch.stack(points[block.first : block.last + 1]).double()
        assert torch.allclose(block.mean.double(), walk.mean(0), rtol=1e-6, atol=1e-7)
    for sink in sinks[2:]:
        assert sink.measured.sizes


def test_the_comparison_sees_a_difference():
    model, optimizer, *_ = train(Mlp, "sgd", recorded=False)
    before = state(model, optimizer)
    torch.rand(1)
    assert not same(before["torch"], torch.get_rng_state())
    model.layers[0].eval()
    after = state(model, optimizer)
    assert [key for key in before if not same(before[key], after[key])] == ["mode layers.0", "torch"]
