"""Vectors and batches as plain arrays and JSON, fit for a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.errors import ArgumentError, DataError


def cpu_vector(values: Tensor) -> Tensor:
    """Copy a vector to the CPU so that nobody else holds its memory.

    Args:
        values: any tensor.

    Returns:
        A contiguous CPU copy.
    """
    return torch.empty_like(values, device="cpu", memory_format=torch.contiguous_format).copy_(values.detach())


def pack_batch(batch: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Take a batch apart into plain arrays and a description of its structure, both fit for a `Record`.

    Use as ``arrays, spec = pack_batch(batch)`` and ``Record("batches", step, arrays, {"spec": spec})``. Mappings come back
    as dicts and named tuples as tuples. Tensor dtypes that numpy lacks (bfloat16, float8) are widened to float32,
    exactly, and narrowed again on the way back.

    Args:
        batch: nested mappings (string or integer keys), lists and tuples of tensors, arrays, numbers, strings and None.

    Returns:
        (name -> copied array, ``{"structure": ...}`` with JSON types).

    Raises:
        ArgumentError: something in the batch is none of these.
    """
    arrays: dict[str, NDArray[Any]] = {}
    return arrays, {"structure": _pack(batch, arrays, "batch")}


def unpack_batch(arrays: Mapping[str, NDArray[Any]], spec: Mapping[str, Any]) -> Any:
    """Put a batch together again.

    Args:
        arrays: name -> array, as from `pack_batch`.
        spec: as from `pack_batch`.

    Returns:
        The batch; its tensors are copies on the CPU, in their own dtypes.

    Raises:
        DataError: the description is malformed or does not fit the arrays.
    """
    try:
        return _unpack(arrays, spec["structure"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"the description of a batch does not fit its arrays ({error!r}); the record was not written whole"
        ) from error


def _pack(part: Any, arrays: dict[str, NDArray[Any]], where: str) -> dict[str, Any]:
    if part is None or isinstance(part, bool | int | str):
        return {"kind": "value", "value": part}
    if isinstance(part, float) and not isinstance(part, np.generic):
        return {"kind": "float", "value": part.hex()}
    if isinstance(part, Tensor | np.ndarray | np.generic):
        name = f"a{len(arrays)}"
        arrays[name] = _plain_array(part, where)
        if isinstance(part, Tensor):
            return {"kind": "tensor", "array": name, "dtype": str(part.dtype).removeprefix("torch.")}
        return {"kind": "array" if isinstance(part, np.ndarray) else "scalar", "array": name}
    if isinstance(part, Mapping):
        for key in part:
            if isinstance(key, bool) or not isinstance(key, str | int):
                raise ArgumentError(f"{where}: the key {key!r} of a mapping cannot be kept; expected a string or an integer")
        return {"kind": "dict", "items": [[k, _pack(v, arrays, f"{where}[{k!r}]")] for k, v in part.items()]}
    if isinstance(part, list | tuple):
        kind = "list" if isinstance(part, list) else "tuple"
        return {"kind": kind, "items": [_pack(v, arrays, f"{where}[{i}]") for i, v in enumerate(part)]}
    raise ArgumentError(
        f"{where}: a {type(part).__name__} cannot be kept; expected tensors, arrays, numbers, strings or None in nested "
        "dicts, lists and tuples; record with batches='none' instead"
    )


def _plain_array(part: Tensor | NDArray[Any] | np.generic, where: str) -> NDArray[Any]:
    if isinstance(part, Tensor):
        if part.layout != torch.strided or part.is_quantized:
            raise ArgumentError(f"{where}: a {part.layout} tensor of {part.dtype} cannot be kept; expected a dense one")
        part = cpu_vector(part)
        exotic = part.is_floating_point() and part.dtype not in (torch.float16, torch.float32, torch.float64)
        values = (part.float() if exotic else part.resolve_conj().resolve_neg()).numpy()
    else:
        values = np.array(part)
    if values.dtype.kind not in "biufc":
        raise ArgumentError(f"{where}: an array of dtype {values.dtype} cannot be kept; expected a numeric dtype")
    return values


def _unpack(arrays: Mapping[str, NDArray[Any]], spec: Mapping[str, Any]) -> Any:
    kind = spec["kind"]
    if kind == "value":
        if spec["value"] is not None and not isinstance(spec["value"], bool | int | str):
            raise ValueError("a value is neither None nor a bool, an integer or a string")
        return spec["value"]
    if kind == "float":
        return float.fromhex(spec["value"])
    if kind == "dict":
        return {key: _unpack(arrays, part) for key, part in spec["items"]}
    if kind in ("list", "tuple"):
        parts = [_unpack(arrays, part) for part in spec["items"]]
        return parts if kind == "list" else tuple(parts)
    values = np.array(arrays[spec["array"]])
    if kind == "tensor":
        dtype = getattr(torch, spec["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{spec['dtype']!r} is no dtype")
        return torch.from_numpy(values).to(dtype)
    if kind in ("array", "scalar"):
        return values if kind == "array" else values[()]
    raise ValueError(f"{kind!r} is no kind of part")
