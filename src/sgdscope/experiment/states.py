"""The state of a walk as a few long arrays and JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.vector import Layout


def place(layout: Layout, tensors: Mapping[str, Tensor], values: NDArray[Any]) -> None:
    """Write a vector into named tensors.

    Args:
        layout: of the vector.
        tensors: written in place.
        values: [P].
    """
    with torch.no_grad():
        for name, value in layout.restore(torch.from_numpy(np.array(values))).items():
            tensors[name].copy_(value)


def pack_state(state_dict: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], list[Any], list[Any]]:
    """Turn an optimizer's state into a few long arrays: one a name and dtype.

    Args:
        state_dict: of a ``torch.optim.Optimizer``.

    Returns:
        (arrays, entries [array, parameter, key, shape] in order, plain values [parameter, key, value]).
    """
    pieces: dict[str, list[NDArray[Any]]] = {}
    entries: list[Any] = []
    plain: list[Any] = []
    for index, values in state_dict["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                array = value.detach().cpu().contiguous().numpy()
                name = f"state_{key}_{array.dtype.name}"
                pieces.setdefault(name, []).append(array.reshape(-1))
                entries.append([name, index, key, list(array.shape)])
            else:
                plain.append([index, key, value])
    return {name: np.concatenate(parts) for name, parts in pieces.items()}, entries, plain


def unpack_state(arrays: Mapping[str, NDArray[Any]], entries: list[Any], plain: list[Any]) -> dict[int, dict[str, Any]]:
    """Turn `pack_state` back.

    Args:
        arrays: name -> [n].
        entries: which piece belongs where.
        plain: values that are no tensors.

    Returns:
        The ``"state"`` of a state dict.
    """
    state: dict[int, dict[str, Any]] = {}
    used: dict[str, int] = {}
    for name, index, key, shape in entries:
        first = used.get(name, 0)
        used[name] = first + int(np.prod(shape, dtype=np.int64))
        piece = np.array(arrays[name][first : used[name]]).reshape([int(n) for n in shape])
        state.setdefault(int(index), {})[str(key)] = torch.from_numpy(piece)
    for index, key, value in plain:
        state.setdefault(int(index), {})[str(key)] = value
    return state
