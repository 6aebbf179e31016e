"""Covariance trace and noise scale against the bare gradients of the examples, all at once by vmap."""

import itertools
import statistics
import time

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from sgdscope.covariance import Covariance, DrawnBatches, stream
from sgdscope.covariance.gathering import gather
from sgdscope.surface import LossSurface

EXAMPLES, REPEATS = 512, 7
SIZES = {"MLP 64-100-100-10": (64, 100, 100, 10), "MLP 784-100-10": (784, 100, 10)}


def _loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def _model(sizes):
    pairs = [part for i, o in itertools.pairwise(sizes) for part in (nn.Linear(i, o), nn.Tanh())]
    return nn.Sequential(*pairs[:-1])


def _bare(model, x, y):
    """The gradients of the examples, one tensor a parameter, and nothing else."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def one(values, image, label):
        return cross_entropy(functional_call(model, values, (image[None],)), label[None])

    return vmap(grad(one), (None, 0, 0))(parameters, x, y)


def _streamed(surface):
    theta = surface.theta()
    gradient = surface.value_and_grad(theta)[1].double()
    return stream(surface, theta, gradient), gradient


def _gathered(surface):
    theta = surface.theta()
    gradient = surface.value_and_grad(theta)[1].double()
    found: Covariance = gather(surface, theta, None, gradient, most=EXAMPLES, order=torch.Generator()).covariance
    return found, gradient


def _scale(surface):
    """Tr C and Tr C / |g|^2, the gradient of the mean included."""
    found, gradient = _streamed(surface)
    trace, _ = found.trace()
    return trace / float(gradient.square().sum())


def _interval(surface):
    """Both without bias for the population, with an interval."""
    return _streamed(surface)[0].population_estimates()


def _kept(surface):
    """All of that from gradients that are kept for the structure of C."""
    found, gradient = _gathered(surface)
    return found.trace(), DrawnBatches.single(found).two_size_estimates(gradient)


def _seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def _measured(name, sizes):
    torch.manual_seed(0)
    model, x, y = _model(sizes), torch.randn(EXAMPLES, sizes[0]), torch.randint(10, (EXAMPLES,))
    surface = LossSurface(model, _loss, (x, y))
    setting = f"{name}, {EXAMPLES} examples, float32, 1 thread, processor time"
    works = ("Tr C and noise scale", _scale, "<= 1.5"), ("those of the population and interval", _interval, "")
    for what, work, aim in (*works, ("the same, all gradients kept", _kept, "")):
        work(surface), _bare(model, x, y)  # proved and warm
        ratios = [_seconds(lambda work=work: work(surface)) / _seconds(lambda: _bare(model, x, y)) for _ in range(REPEATS)]
        told = {"what": f"{what} / gradients of the examples by vmap", "ratio": statistics.median(ratios)}
        yield told | {"aim": aim, "setting": setting}


def rows() -> list[dict[str, object]]:
    """Measure on one thread.

    Returns:
        Medians of ratios of processor times within interleaved repetitions.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for name, sizes in SIZES.items() for row in _measured(name, sizes)]
    finally:
        torch.set_num_threads(threads)
