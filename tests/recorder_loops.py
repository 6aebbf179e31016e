"""Loops and the slow route that the recorder's tests share."""

import itertools
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sgdscope.recorder import Recorder, every

DOUBLE = torch.float64


def loss(model, batch):
    x, y = batch
    return F.mse_loss(model(x), y)


def network(dtype=DOUBLE, width=7):
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 2)).to(dtype)


def batches(n, size=6, dtype=DOUBLE, seed=11):
    generator = torch.Generator().manual_seed(seed)
    shapes = [size] * n if isinstance(size, int) else size
    return [(torch.randn(k, 5, generator=generator).to(dtype), torch.randn(k, 2, generator=generator).to(dtype)) for k in shapes]


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad]).clone()


def gradient(model):
    parts = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([torch.zeros(p.numel(), dtype=p.dtype) if p.grad is None else p.grad.reshape(-1) for p in parts]).clone()


class Slow:
    """Keeps points and gradients of the loop and computes the scalars from them as they are defined."""

    def __init__(self, model):
        self.model, self.points, self.gradients, self.losses = model, [flat(model)], [], []

    def before(self, value):
        self.losses.append(value.item())
        self.gradients.append(gradient(self.model))

    def after(self):
        self.points.append(flat(self.model))

    def columns(self, lr):
        theta, g = torch.stack(self.points), torch.stack(self.gradients)
        d, lr = theta[1:] - theta[:-1], torch.as_tensor(lr, dtype=theta.dtype)
        cosine = [math.nan] + [float(F.cosine_similarity(a, b, dim=0, eps=0)) for a, b in itertools.pairwise(g)]
        return {
            "loss": np.array(self.losses),
            "gradient_norm": g.norm(dim=1).numpy(),
            "gradient_dot_update": (g * d).sum(1).numpy(),
            "gradient_cosine": np.array(cosine),
            "update_norm": d.norm(dim=1).numpy(),
            "distance": (theta[:-1] - theta[0]).norm(dim=1).numpy(),
            "descent_residual": ((d + lr * g).norm(dim=1) / d.norm(dim=1)).numpy(),
        }


def compare(steps, slow, lr, rtol=1e-9, residual_atol=1e-12):
    expected = slow.columns(lr)
    for name, values in expected.items():
        atol = residual_atol if name == "descent_residual" else 0.0
        np.testing.assert_allclose(steps[name].values, values, rtol=rtol, atol=atol, err_msg=name)


def record(model, optimizer, **options):
    options = {"loss": loss, "store": "memory", "snapshots": every(1)} | options
    return Recorder(None, model, optimizer, **options)


def plain_loop(model, optimizer, recorder, data, set_to_none=True, between=lambda: None):
    slow = Slow(model)
    for batch in recorder.watch(data):
        optimizer.zero_grad(set_to_none=set_to_none)
        value = recorder.loss(model, batch)
        value.backward()
        slow.before(value)
        optimizer.step()
        between()
        slow.after()
    return slow
