"""Leaving no trace: the modes in which the recorder works, and the random states that live sinks must not move."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def unseen(device: torch.device, *, grad: bool = False) -> Generator[None]:
    """Work outside the user's autocast and inference mode, without (or, for sinks, with) gradients.

    Args:
        device: whose autocast is left.
        grad: whether gradients can be taken inside.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.set_grad_enabled(grad))
        yield


@contextmanager
def same_randomness(device: torch.device) -> Generator[None]:
    """Put the random states of torch, numpy and python back as they were, whatever happens inside.

    Args:
        device: whose generator is kept beside that of the CPU.

    Yields:
        Nothing.
    """
    cuda = device.type == "cuda"
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # ruff: ignore[numpy-legacy-random] (the user's, kept)
    gpu = torch.cuda.get_rng_state(device) if cuda else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # ruff: ignore[numpy-legacy-random] (the user's, put back)
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, device)
