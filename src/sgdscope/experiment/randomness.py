"""The random state of a loop: its own, in the global generators only while it works."""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.experiment.schedules import derived_seed


class RandomState:
    """The states of the generators of torch (with cuda, if the machine uses it), numpy and python, as one object."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        with self.borrowed():
            torch.default_generator.manual_seed(derived_seed(seed, "torch"))
            if device.type == "cuda":
                torch.cuda.default_generators[device.index or 0].manual_seed(derived_seed(seed, "torch"))
            random.seed(derived_seed(seed, "python"))
            np.random.set_state(np.random.RandomState(derived_seed(seed, "numpy") % 2**32).get_state())  # ruff: ignore[numpy-legacy-random]
            self._state = self._read()

    def _read(self) -> tuple[Tensor, Any, Any, Tensor]:
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.empty(0, dtype=torch.uint8)
        return torch.get_rng_state(), np.random.get_state(), random.getstate(), cuda  # ruff: ignore[numpy-legacy-random]

    def _write(self, state: tuple[Tensor, Any, Any, Tensor]) -> None:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])  # ruff: ignore[numpy-legacy-random]
        random.setstate(state[2])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state[3], self.device)

    @contextmanager
    def borrowed(self) -> Generator[None]:
        """Put the global generators back as they were, whatever happens in the block."""
        outside = self._read()
        try:
            yield
        finally:
            self._write(outside)

    @contextmanager
    def installed(self, threads: int) -> Generator[None]:
        """Stand in the global generators for the duration of the block, with this number of threads; then leave no trace.

        Args:
            threads: of torch.
        """
        before = torch.get_num_threads()
        with self.borrowed():
            self._write(self._state)
            torch.set_num_threads(threads)
            try:
                yield
            finally:
                self._state = self._read()
                torch.set_num_threads(before)

    def capture(self) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The states while they are installed, as bytes and JSON (no pickle).

        Returns:
            (bytes, meta) for `put_back`.
        """
        torch_state, numpy_state, python_state, cuda = self._read()
        pieces = [
            torch_state.numpy(),
            np.asarray(numpy_state[1], "<u4").view(np.uint8),
            np.asarray(python_state[1], "<u4").view(np.uint8),
            cuda.numpy(),
        ]
        meta = {
            "bytes": [len(piece) for piece in pieces],
            "numpy": [int(numpy_state[2]), int(numpy_state[3]), float(numpy_state[4])],
            "python": [python_state[0], python_state[2]],
        }
        return np.concatenate(pieces), meta

    def put_back(self, values: NDArray[np.uint8], meta: Mapping[str, Any]) -> None:
        """Take the states that `capture` gave; they are in force at the next `installed`.

        Args:
            values: bytes.
            meta: lengths and the rest.
        """
        ends = np.cumsum(meta["bytes"])[:-1]
        own, numpy_keys, python_keys, cuda = np.split(np.asarray(values, np.uint8), ends)
        position, has_gauss, gauss = meta["numpy"]
        numpy_state = ("MT19937", numpy_keys.copy().view("<u4"), int(position), int(has_gauss), float(gauss))
        python_state = (meta["python"][0], tuple(int(k) for k in python_keys.copy().view("<u4")), meta["python"][1])
        self._state = (torch.from_numpy(own.copy()), numpy_state, python_state, torch.from_numpy(cuda.copy()))
