"""A surface proves itself once: the loss repeats, moves with theta, and its gradient is that of its values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sgdscope.errors import SgdscopeError, SurfaceError
from sgdscope.surface.data import map_tensors
from sgdscope.surface.private import Mode, PrivateModel
from sgdscope.surface.products import curved, differentiate, kinked, pull_back

SEED = 20180226  # of the proof's own generator; any fixed number serves
EXACT_STEPS = (
    1e-6,
    1e-5,
    1e-7,
    1e-4,
    1e-3,
    1e-2,
)  # of the parameters' size; small first: kinks, large last: float32 inside the model
EXACT_TOLERANCE = 2e-3  # of the slope: an error of 1 % in the gradient fails
COARSE_STEPS = (1e-2, 3e-3, 1e-3, 3e-2)
COARSE_TOLERANCE = 5e-2
PRODUCT_TOLERANCE = (
    5e-3  # of a parameter's part of H v: torch's fused weight_norm is off by 53 %, jvp(jacrev) through LayerNorm by 3 %
)
PRODUCT_STEPS = (1e-8, 1e-7, 1e-9, 1e-6, 1e-5)  # of the parameters' size; so small that a ReLU network seldom crosses a kink


def sizes_of(net: PrivateModel) -> Tensor:
    """How large the parameters are, block by block.

    Args:
        net: the private model.

    Returns:
        [P] float64: the root mean square of each parameter tensor, of all of theta where that is 0, and 1 where this is 0.
    """
    start = net.start.double()
    overall = float(start.square().mean().sqrt()) or 1.0
    sizes = torch.empty_like(start)
    for where in net.layout.slices:
        sizes[where] = float(start[where].square().mean().sqrt()) or overall
    return sizes


def generic_point(net: PrivateModel, distance: float, generator: torch.Generator) -> Tensor:
    """Move off the model's own parameters, where zeros put a network exactly on its kinks.

    Args:
        net: the private model.
        distance: relative to the size of each parameter tensor.
        generator: on the CPU.

    Returns:
        [P] float64: start + distance x size x standard normal.
    """
    noise = torch.randn(net.layout.size, dtype=torch.float64, generator=generator).to(net.device)
    return net.start.double() + distance * sizes_of(net) * noise


def prove(net: PrivateModel, batch: Any, size: int | None, mode: Mode) -> str:
    """Check the loss on one batch; called once, at construction.

    1. Two evaluations at the model's own parameters are equal (bitwise on a CPU).
    2. The loss moves when theta moves and has a gradient g.
    3. For three directions v (one along g in every parameter tensor, two random), at a generic point,
       | (L(theta + h v) - L(theta - h v)) / 2h - g.v | is below 0.2 % of the slope, for one of several steps h,
       on a float64 copy. If the loss does not run in float64: in its own dtype to 5 %.

    A loss that is not finite at the model's own parameters cannot be proved and is let through.
    Cost: a gradient and at least 13 evaluations of one small batch, one temporary float64 copy of the model.

    Args:
        net: the private model.
        batch: a small batch.
        size: its number of examples.
        mode: of the normalisation layers.

    Returns:
        ``"float64"``, another dtype, or ``"not finite"``: in which precision it was proved.

    Raises:
        SurfaceError: a check failed; the message names the module where it can.
    """
    net.set_mode(mode)
    value = _check_repeats(net, batch, size)
    if not torch.isfinite(value).all():
        return "not finite"
    try:
        wide = copy.deepcopy(net)
        wide.module.double()
        if isinstance(wide.loss, nn.Module):
            wide.loss.double()
        doubled = map_tensors(lambda t: t.double() if t.is_floating_point() else t, batch)
        with torch.no_grad():
            wide.write(wide.start)
            _stand(wide, doubled, size)
    except Exception:  # the loss holds tensors of its own dtype, or an operation has no float64 kernel
        _check_gradient(net, batch, size, exact=False)
        return net.layout.dtypes[0]
    _check_gradient(wide, doubled, size, exact=True)
    return "float64"


def lay_out(net: PrivateModel, batch: Any, size: int | None, mode: Mode) -> str:
    """Let 2-D convolutions run channels last on a CPU, if the loss then runs and is the same to rounding.

    Args:
        net: the private model.
        batch: a small batch.
        size: its number of examples.
        mode: of the normalisation layers.

    Returns:
        ``"channels_last"`` or ``"contiguous"``.
    """
    if net.device.type != "cpu":
        return "contiguous"
    net.set_mode(mode)
    net.write(net.start)
    with torch.no_grad():
        plain = _stand(net, batch, size)
        if not net.lay_out(torch.channels_last):
            return "contiguous"
        try:
            if torch.allclose(_stand(net, batch, size), plain, rtol=1e-4, atol=0, equal_nan=True):
                return "channels_last"
        except RuntimeError:  # the model cuts activations by .view, which cannot be done in this layout
            pass
    net.lay_out(torch.contiguous_format)
    return "contiguous"


def _stand(net: PrivateModel, batch: Any, size: int | None) -> Tensor:
    """The loss at the point at which the model stands, with the buffers it had at the start."""
    net.write_buffers(net.start_buffers)
    return net.call(batch, size).double().mean()


def _check_repeats(net: PrivateModel, batch: Any, size: int | None) -> Tensor:
    net.write(net.start)
    with torch.no_grad():
        try:
            values = [_stand(net, batch, size)]
        except SgdscopeError:
            raise
        except Exception as error:
            error.add_note(
                "raised by `loss(model, batch)` on the first batch; a list is taken as a list of batches, a tuple as (x, y)"
            )
            raise
        values.append(_stand(net, batch, size))
        exact = net.device.type == "cpu"
        if torch.allclose(values[0], values[1], rtol=0 if exact else 1e-4, atol=0, equal_nan=True):
            return values[0]
        culprit = _first_to_differ(net, batch, size)
    raise SurfaceError(
        f"loss: it is not deterministic: the same theta and batch gave {float(values[0])!r} and {float(values[1])!r}"
        f"{culprit}. Dropout modules are switched off already; make functional dropout depend on `self.training`, "
        "and draw no random numbers in the loss"
    )


def _first_to_differ(net: PrivateModel, batch: Any, size: int | None) -> str:
    """Name the first module whose output changes from call to call."""
    seen: list[list[tuple[str, Tensor]]] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen[-1].append((name, output.detach().clone()))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in net.module.named_modules()]
    try:
        for _ in range(2):
            seen.append([])
            _stand(net, batch, size)
    finally:
        for handle in handles:
            handle.remove()
    for (name, first), (_, second) in zip(*seen, strict=False):
        if not torch.equal(first, second):
            return f"; the first module whose output changes is '{name}'" if name else "; it happens in the model's own forward"
    return "; it happens outside the modules"


def _slopes(net: PrivateModel, batch: Any, size: int | None, point: Tensor) -> Tensor:
    """The gradient [P] float64; zero where the loss does not depend on a parameter."""
    net.write(point)
    with torch.enable_grad():
        value = _stand(net, batch, size)
        parts = net.gradient(value) if value.requires_grad else (None,) * len(net.parameters)
    gradient = torch.zeros(net.layout.size, dtype=torch.float64, device=net.device)
    for where, part in zip(net.layout.slices, parts, strict=True):
        if part is not None:
            gradient[where] = part.reshape(-1)
    return gradient


def _check_gradient(net: PrivateModel, batch: Any, size: int | None, *, exact: bool) -> None:
    generator = torch.Generator().manual_seed(SEED)
    point = generic_point(net, 1e-3, generator)
    gradient = _slopes(net, batch, size, point)

    @torch.no_grad()
    def value(at: Tensor) -> float:
        net.write(at)
        return float(_stand(net, batch, size))

    here = value(point)
    if not gradient.any():
        moved = any(value(generic_point(net, distance, generator)) != here for distance in (1e-2, 0.1, 1.0))
        raise SurfaceError(
            "loss: its value moves with theta but its gradient is zero; expected a differentiable loss (no argmax, .item(), "
            "torch.no_grad or .detach between the parameters and the loss)"
            if moved
            else "loss: it does not move with theta; does the loss use the model that it is given (and not another one)?"
        )
    sizes = sizes_of(net)
    uphill = torch.cat([_unit(gradient[where]) * sizes[where] for where in net.layout.slices])
    noise = torch.randn(2, net.layout.size, dtype=torch.float64, generator=generator).to(net.device)
    for direction in (uphill, sizes * noise[0], sizes * noise[1]):
        if (found := _mismatch(value, point, direction, gradient, here, exact)) is None:
            continue
        worst = ""
        for name, where in zip(net.layout.names, net.layout.slices, strict=True):
            block = torch.zeros_like(direction)
            block[where] = direction[where]
            if _mismatch(value, point, block, gradient, here, exact) is not None:
                worst = f", and in the parameter '{name}' alone"
                break
        raise SurfaceError(
            f"loss: its gradient is not that of its values: along a test direction the slope is {found:.6g} by differences and "
            f"{float(gradient @ direction):.6g} by autograd{worst}. Look there for .detach(), torch.no_grad, a custom "
            "backward, or reentrant activation checkpointing (pass use_reentrant=False)"
        )


def _unit(block: Tensor) -> Tensor:
    """The block with root mean square 1; zero stays zero."""
    size = float(block.square().mean().sqrt())
    return block / size if size > 0 else block


def _mismatch(
    value: Callable[[Tensor], float], point: Tensor, direction: Tensor, gradient: Tensor, here: float, exact: bool
) -> float | None:
    """The slope by central differences where it disagrees with the gradient at every step; None where it agrees at one."""
    steps, tolerance = (EXACT_STEPS, EXACT_TOLERANCE) if exact else (COARSE_STEPS, COARSE_TOLERANCE)
    rounding = 100 * torch.finfo(torch.float64).eps if exact else 4 * torch.finfo(torch.float32).eps
    slope = float(gradient @ direction)
    scale = max(abs(slope), float((gradient * direction).norm()))
    first = None
    for step in steps:
        found = (value(point + step * direction) - value(point - step * direction)) / (2 * step)
        if abs(found - slope) <= tolerance * scale + rounding * abs(here) / step:
            return None
        first = found if first is None else first
    return first


def prove_products(net: PrivateModel, batch: Any, size: int | None, mode: Mode) -> tuple[str, str]:
    """Check Hessian products on one batch; called once, before the first product.

    At a generic point, for two random directions v and for each parameter tensor, |H v - (g(theta + h v) - g(theta - h v)) / 2h|
    is below 0.5 % of the tensor's part of H v (or 1e-4 of all of it), for one of several steps h, on a float64 copy. A loss
    that does not run in float64 is not proved.

    Args:
        net: the private model.
        batch: a small batch.
        size: its number of examples.
        mode: of the normalisation layers.

    Returns:
        (``"graph"`` or ``"differences"``: how products are had; ``"float64"`` or ``"not proved"``).

    Raises:
        SurfaceError: the products are wrong (the message names the parameter), or do not exist and differences would say little.
    """
    net.set_mode(mode)
    wide, doubled = copy.deepcopy(net), map_tensors(lambda t: t.double() if t.is_floating_point() else t, batch)
    wide.module.double()
    if isinstance(wide.loss, nn.Module):
        wide.loss.double()
    generator = torch.Generator().manual_seed(SEED)
    point = generic_point(net, 1e-3, generator)
    try:
        with torch.no_grad():
            wide.write(wide.start)
            _stand(wide, doubled, size)
    except Exception:  # the loss holds tensors of its own dtype, or an operation has no float64 kernel
        return _way(net, batch, size), "not proved"
    if (way := _way(wide, doubled, size)) == "differences":
        return _way(net, batch, size), "not proved"
    for _ in range(2):
        noise = torch.randn(net.layout.size, dtype=torch.float64, generator=generator).to(net.device)
        _check_product(wide, doubled, size, point, sizes_of(net) * noise)
    return way, "float64"


def _way(net: PrivateModel, batch: Any, size: int | None) -> str:
    """Whether the gradient can be differentiated again; if not, whether differences of it are worth anything."""
    net.write_buffers(net.start_buffers)
    try:
        slots, gradients = curved(differentiate(net, batch, size)[1])
        _check_twice(gradients)
        pull_back(net, gradients, [net.parameters[i].detach() for i in slots], keep=False)
    except SgdscopeError:
        raise
    except RuntimeError as error:
        exact = all(p.dtype == torch.float64 for p in net.parameters)
        if not exact and (kink := kinked(net)) is not None:
            raise SurfaceError(
                f"model: it has no second derivative here ({str(error).splitlines()[0]}), and differences of gradients say "
                f"little in {net.layout.dtypes[0]} where there are kinks, as in {kink}; make the surface with "
                "dtype=torch.float64, or choose smooth activations"
            ) from error
        return "differences"
    return "graph"


def _check_twice(gradients: Sequence[Tensor]) -> None:
    """Raise where the graph holds a function that is differentiable once: autograd would pass it over in silence."""
    waiting, seen = [g.grad_fn for g in gradients], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().endswith(("::Error", "::NotImplemented")):
            raise RuntimeError("a function of the model is marked once_differentiable, or its second derivative is missing")
        waiting += [following for following, _ in node.next_functions]


def _check_product(net: PrivateModel, batch: Any, size: int | None, point: Tensor, direction: Tensor) -> None:
    net.write(point)
    net.write_buffers(net.start_buffers)
    slots, gradients = curved(differentiate(net, batch, size)[1])
    pieces = list(net.layout.unpack(direction).values())
    product = torch.zeros_like(direction)
    for where, part in zip(net.layout.slices, pull_back(net, gradients, [pieces[i] for i in slots], keep=False), strict=True):
        if part is not None:
            product[where] = part.reshape(-1)
    floor, wrong = 1e-4 * float(product.norm()), dict.fromkeys(net.layout.names, 0.0)
    for step in PRODUCT_STEPS:
        ends = [_slopes(net, batch, size, point + sign * step * direction) for sign in (1, -1)]
        found = (ends[0] - ends[1]) / (2 * step)
        rounding = 100 * torch.finfo(torch.float64).eps * float(ends[0].norm()) / step
        for name, where in list(zip(net.layout.names, net.layout.slices, strict=True)):
            scale = max(float(product[where].norm()), float(found[where].norm()))
            gap = float((product[where] - found[where]).norm())
            if name in wrong and gap <= PRODUCT_TOLERANCE * scale + floor + rounding:
                del wrong[name]
            elif name in wrong:
                wrong[name] = gap / scale
        if not wrong:
            return
    name = max(wrong, key=lambda key: wrong[key])
    raise SurfaceError(
        f"model: its Hessian products are wrong: in the parameter '{name}' they differ by {wrong[name]:.1%} from differences of "
        "gradients in float64. Look there for an operation whose second derivative is broken (torch's fused weight_norm: use "
        "torch.nn.utils.parametrizations with a plain norm, or remove the parametrization), or a custom backward"
    )
