"""The data of a surface: taken once, in a fixed order, as batches with weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sgdscope.errors import ArgumentError, DataError

Weight = Callable[[Any], float]


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Rebuild nested tuples, lists and mappings with each tensor replaced.

    Args:
        function: tensor -> tensor.
        tree: tensors and anything else in nested containers; anything else is kept, arrays are copied.

    Returns:
        The same structure.
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, np.ndarray):
        return tree.copy()
    if isinstance(tree, Mapping):
        parts: Any = {key: map_tensors(function, value) for key, value in tree.items()}
        return parts if type(tree) is dict else type(tree)(parts)  # type: ignore[call-arg]  # such as OrderedDict
    if isinstance(tree, tuple | list):
        items = [map_tensors(function, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree


def arrays(tree: Any) -> Iterator[Tensor | NDArray[Any]]:
    """List the tensors and arrays of nested containers, in order.

    Args:
        tree: nested containers.

    Yields:
        Each tensor or array.
    """
    if isinstance(tree, Tensor | np.ndarray):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from arrays(value)
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from arrays(item)


def leading(tree: Any) -> int | None:
    """Find the common leading dimension of the tensors of a batch.

    Args:
        tree: a batch.

    Returns:
        The dimension, or None if there are no tensors or they disagree.
    """
    sizes = {tuple(array.shape[:1]) for array in arrays(tree)}
    return int(next(iter(sizes))[0]) if len(sizes) == 1 and () not in sizes else None


@dataclass(frozen=True)
class Batches:
    """Batches in a fixed order, with their weights.

    Attributes:
        items: the batches, tensors copied to the surface's device and dtype.
        sizes: the common leading dimension of each; None where there is none.
        weights: [M] float64, positive, not normalised.
    """

    items: tuple[Any, ...]
    sizes: tuple[int | None, ...]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, items: Iterable[Any], weight: Weight | None) -> Batches:
        """Weigh batches.

        Args:
            items: the batches.
            weight: batch -> positive number; None for the common leading dimension.

        Returns:
            The batches.

        Raises:
            DataError: there is no batch, a batch is empty, or leading dimensions disagree and no weight is given.
            ArgumentError: a weight is not a positive finite number.
        """
        items = tuple(items)
        if not items:
            raise DataError("data: it is empty; expected at least two examples")
        sizes = tuple(leading(item) for item in items)
        weights = np.empty(len(items))
        for i, (item, size) in enumerate(zip(items, sizes, strict=True)):
            if size == 0:
                raise DataError(f"data: batch {i} is empty; expected at least one example in each batch")
            if weight is None and size is None:
                shapes = [tuple(array.shape) for array in arrays(item)]
                raise DataError(
                    f"data: the tensors of batch {i} have no common leading dimension (shapes {shapes}); "
                    "expected one row an example, or pass weight= to say how much a batch weighs"
                )
            weights[i] = float(weight(item)) if weight is not None else float(size or 0)
            if not (math.isfinite(weights[i]) and weights[i] > 0):
                raise ArgumentError(f"weight: batch {i} weighs {weights[i]}; expected a positive finite number")
        return cls(items, sizes, weights)

    @property
    def examples(self) -> int | None:
        """N; None where a batch has no common leading dimension."""
        known = [size for size in self.sizes if size is not None]
        return sum(known) if len(known) == len(self.sizes) else None

    def joined(self) -> Any:
        """Join all batches into one, in the order of the examples.

        Returns:
            A batch of N examples.
        """
        columns = zip(*(list(arrays(item)) for item in self.items), strict=True)
        leaves = iter([torch.cat([torch.as_tensor(part) for part in column]) for column in columns])
        return map_tensors(lambda _: next(leaves), self.items[0])

    def taken(self, rows: Tensor) -> Any:
        """Take examples out of the batches, without joining all of them.

        Args:
            rows: int64, which examples, in the wanted order; one may come twice.

        Returns:
            A batch of as many examples.
        """
        ends = torch.cumsum(torch.tensor([size or 0 for size in self.sizes]), 0)
        rows = rows.cpu()
        home = torch.searchsorted(ends, rows, right=True)
        parts = [
            (torch.nonzero(home == b).flatten(), self.items[b], int(ends[b]) - (self.sizes[b] or 0))
            for b in torch.unique(home).tolist()
        ]
        columns = zip(*([torch.as_tensor(leaf) for leaf in arrays(item)] for _, item, _ in parts), strict=True)
        leaves = []
        for column in columns:
            out = column[0].new_empty(len(rows), *column[0].shape[1:])
            for (where, _, start), leaf in zip(parts, column, strict=True):
                out[where.to(out.device)] = leaf[(rows[where] - start).to(leaf.device)]
            leaves.append(out)
        following = iter(leaves)
        return map_tensors(lambda _: next(following), parts[0][1])

    def recut(self, size: int, rows: Tensor | None = None) -> Batches:
        """Cut the same examples, or some of them, into other batches; the weights are their numbers of examples.

        Args:
            size: the most examples in a batch.
            rows: int64, which examples; None for all, in their order.

        Returns:
            ceil(N / size) batches.
        """
        whole = self.joined() if rows is None else self.taken(rows)
        n = leading(whole) or 0
        ends = np.linspace(0, n, math.ceil(n / size) + 1).round().astype(int)
        pieces = [map_tensors(lambda t, a=a, b=b: t[a:b], whole) for a, b in pairwise(ends)]  # type: ignore[misc]  # default arguments
        return Batches.of(pieces, None)

    def hash(self) -> str:
        """Hash dtype, shape and bytes of every tensor in order.

        Returns:
            The xxh3-128 digest in hex.
        """
        digest = xxhash.xxh3_128()
        for array in arrays(self.items):
            tensor = torch.as_tensor(array).detach().cpu().contiguous()
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return str(digest.hexdigest())


def is_whole(data: Any) -> bool:
    """Whether the data are one set to be cut into batches: a tensor, or a tuple or mapping of tensors.

    Args:
        data: what the user passed.

    Returns:
        True for a tensor, a tuple of tensors (x, y) and a mapping of tensors; a list is a list of batches.
    """
    if isinstance(data, Tensor):
        return True
    parts = data.values() if isinstance(data, Mapping) else data if isinstance(data, tuple) else ()
    return bool(parts) and all(isinstance(part, Tensor) for part in parts)


def count(data: Any) -> int | None:
    """Count the examples of data that have to be cut into batches.

    Args:
        data: what the user passed.

    Returns:
        N, or None if the data come in batches already.

    Raises:
        DataError: the tensors disagree in their leading dimension, or there are fewer than two examples.
        ArgumentError: the data are of no known kind.
    """
    if is_whole(data):
        n = leading(data)
        if n is None:
            shapes = [tuple(t.shape) for t in arrays(data)]
            raise DataError(
                f"data: the tensors disagree in their leading dimension (shapes {shapes}); expected one row an example"
            )
    elif isinstance(data, DataLoader | list):
        return None
    elif isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise ArgumentError(
            f"data: {type(data).__name__} is not supported; expected a map-style Dataset, a tensor, a tuple or dict of tensors, "
            "a DataLoader or a list of batches"
        )
    else:
        n = len(data)
    at_least_two(n)
    return n


def at_least_two(n: int | None) -> None:
    """Refuse data on which nothing can be measured.

    Args:
        n: examples; None where they cannot be counted.

    Raises:
        DataError: n is below two.
    """
    if n is not None and n < 2:
        raise DataError(f"data: {n or 'no'} example{'s' if n != 1 else ''}; expected at least two, for a mean with an error")


def cut(data: Any, size: int) -> list[Any]:
    """Cut whole data into batches of equal size, or nearly so, in their order.

    Args:
        data: as in `count`.
        size: the most examples in a batch.

    Returns:
        ceil(N / size) batches.
    """
    n = leading(data) if is_whole(data) else len(data)
    ends = np.linspace(0, n or 0, math.ceil((n or 0) / size) + 1).round().astype(int)
    rows = [list(range(a, b)) for a, b in pairwise(ends)]
    if is_whole(data):
        return [map_tensors(lambda t, r=r: t[r[0] : r[-1] + 1], data) for r in rows]  # type: ignore[misc]  # default argument
    dataset: Dataset[Any] = data
    return list(DataLoader(dataset, batch_sampler=rows))


def collect(data: DataLoader[Any] | list[Any]) -> list[Any]:
    """Take the batches of a loader once, leaving the loader's own generators and workers alone.

    The caller saves the global random state.

    Args:
        data: a loader or a list of batches.

    Returns:
        The batches.
    """
    if isinstance(data, list):
        return data
    loader = copy.copy(data)
    loader._iterator = None  # a loader with persistent workers would hand out the user's own iterator
    owners = [data, data.sampler, data.batch_sampler, getattr(data.batch_sampler, "sampler", None)]
    generators = {id(g): g for o in owners if isinstance(g := getattr(o, "generator", None), torch.Generator)}
    states = {key: generator.get_state() for key, generator in generators.items()}
    try:
        return list(loader)
    finally:
        for key, generator in generators.items():
            generator.set_state(states[key])
