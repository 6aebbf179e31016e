"""The sections on steps: against the sharpest directions, what units do along them, and each update on its own batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from sgdscope import figures
from sgdscope.report.page import figure, fold, missing, number, with_error
from sgdscope.report.points import Array, along, last, percent, point_table, told
from sgdscope.report.reading import Page


def sharpest_section(page: Page) -> str:
    """The step of SGD against the sharpest directions; nothing where it was not measured."""
    data = page.evidence.measured.get("sharpest")
    if data is None or "gradient_share" not in data:
        return ""
    key, title = f"{page.key}-sharpest", "The step against the sharpest directions"
    if data.sizes.get("step", 0) == 0:
        absent = missing("The sharpest directions were looked at at no point: there are no two consecutive snapshots.")
        return fold(key, title, [absent], said="measured at no point.")
    first, *rest = sharpest_words(data)
    parts = [f"<p>{' '.join(rest)}</p>" if rest else "", _sharpest_table(data)]
    caption = (
        "Change of the loss by a step of SGD in single directions, α times its length, mean over mini-batches with 1.96 standard "
        "errors. Below the line the step helps. Triangles: the best α. Each axis holds all steps up to α = 1."
    )
    parts.append(figure(lambda: figures.step_effect(data), caption))
    caption = (
        "The loss along single directions, in mean steps s of SGD. Circles: where it first comes to a multiple of the loss at "
        "the point. The smallest of these distances is the width."
    )
    parts.append(figure(lambda: figures.cross_sections(data), caption))
    caption = "χ: the share of the squared length of gradients and updates that lies in the sharpest directions, and by chance."
    parts.append(figure(lambda: figures.alignment(data), caption))
    return fold(key, title, parts, said=first)


def sharpest_words(data: xr.Dataset) -> list[str]:
    """Alignment, the effect of a step along e_1 and of the whole step, and the critical learning rate, at the last point."""
    return [words for words in (_alignment(data), _effect(data, "e1"), _effect(data, "full"), _critical(data)) if words]


def _alignment(data: xr.Dataset) -> str:
    k = data.sizes["rank"]
    share, cosine = along(data, "batch_share", rank=k), along(data, "mean_alignment")
    if (index := last(share)) is None:
        return "No mini-batches were at hand, so nothing is known of their alignment."
    chance = along(data, "share_chance", "rank")[k - 1]
    moved = along(data, "update_share", rank=k)[index]
    random = float(data["alignment_chance"].values) if "alignment_chance" in data else float("nan")
    said = f"At update {int(data['step'].values[index])}, {share[index]:.0%} of the squared length of a batch gradient"
    said += f" and {moved:.0%} of that of the update" if np.isfinite(moved) else ""
    said += f" lie in the {k} sharpest directions, by chance {100 * chance:.2g} %"
    if np.isfinite(cosine[index]) and random > 0:
        said += (
            f"; the mean |cos| with them is {told(data, 'mean_alignment', index)}, {number(cosine[index] / random)} times chance"
        )
    return said + "."


def _effect(data: xr.Dataset, arm: str) -> str:
    effect, best = along(data, "effect", arm=arm, alpha=1.0), along(data, "alpha_star", arm=arm)
    if (index := last(effect)) is None:
        return ""
    error = along(data, "effect_stderr", arm=arm, alpha=1.0)[index]
    name = "The whole step" if arm == "full" else "A step of SGD along e<sub>1</sub> alone"
    said = f"{name} changes the loss by {percent(effect[index], error)}"
    if np.isfinite(best[index]):
        side = "it goes beyond the lowest point" if best[index] < 1 else "it stops before the lowest point"
        said += f"; {side}, which lies at α* = {told(data, 'alpha_star', index, arm=arm)} of it"
    return said + "."


def _critical(data: xr.Dataset) -> str:
    critical, lr = along(data, "critical_lr"), along(data, "lr")
    if (index := last(critical)) is None:
        return ""
    times = f", {number(critical[index] / lr[index])} times that of the run" if np.isfinite(lr[index]) else ""
    return f"Along the full gradient a step raises the loss from a learning rate of {number(critical[index])} on{times}."


def _sharpest_table(data: xr.Dataset) -> str:
    k = data.sizes["rank"]

    def both(name: str, **at: Any) -> tuple[Array, Array]:
        return along(data, name, **at), along(data, f"{name}_stderr", **at)

    named = {"e1": "ΔL along e<sub>1</sub>, %", "full": "ΔL of the step, %"}
    effects = {label: both("effect", arm=arm, alpha=1.0) for arm, label in named.items()}
    return point_table(
        data,
        {
            f"χ<sub>{k}</sub> batch gradient": both("batch_share", rank=k),
            f"χ<sub>{k}</sub> update": along(data, "update_share", rank=k),
            "mean |cos|": along(data, "mean_alignment"),
            **{label: (100 * value, 100 * error) for label, (value, error) in effects.items()},
            "α* along e<sub>1</sub>": both("alpha_star", arm="e1"),
            "α* of the step": both("alpha_star", arm="full"),
            "critical lr": along(data, "critical_lr"),
        },
    )


def neurons_section(page: Page) -> str:
    """How far the units are saturated, and what changes that; nothing where it was not measured."""
    data = page.evidence.measured.get("neurons")
    if data is None or "saturation" not in data:
        return ""
    key, title = f"{page.key}-neurons", "Saturation of the units"
    if data.sizes.get("step", 0) == 0:
        absent = missing("The units were looked at at no point: there are no two consecutive snapshots.")
        return fold(key, title, [absent], said="measured at no point.")
    columns = {"saturation": "saturation", "inactive": "inactive", "smooth_saturation": "saturation of smooth units"}
    columns |= {"softmax_saturation": "saturation of the softmax", "gauss_newton_top": "λ<sub>1</sub> of G (loss/θ²)"}
    columns |= {"rest_top": "λ<sub>1</sub> of H − G", "rest_bottom": "λ<sub>min</sub> of H − G"}
    first, *rest = neurons_words(data)
    parts = [f"<p>{' '.join(rest)}</p>" if rest else ""]
    parts.append(point_table(data, {label: along(data, name) for name, label in columns.items()}))
    caption = (
        "Change of the saturation from the point, along the sharpest directions, the gradient, and random directions (with 1.96 "
        "standard errors), in mean steps s of SGD."
    )
    parts.append(figure(lambda: figures.saturation_along(data), caption))
    return fold(key, title, parts, said=first)


def neurons_words(data: xr.Dataset) -> list[str]:
    """Saturation at the last point, and its change by one step along e_1 against a random direction."""
    saturation, words = along(data, "saturation"), []
    if (index := last(saturation)) is None:
        return ["No saturation of units is known at any measured point: there is no network, or no activation that is known."]
    first = int(np.flatnonzero(np.isfinite(saturation))[0])
    said = f"At update {int(data['step'].values[index])} the units are saturated to {number(saturation[index])}"
    said += f" (update {int(data['step'].values[first])}: {number(saturation[first])})" if first != index else ""
    words.append(said + ", 0 being nowhere and 1 everywhere.")
    one: dict[str, Any] = {"rank": 1, "position": -1.0}
    sharp, random = (along(data, "saturation_change", arm=arm, **one) for arm in ("sharp", "random"))
    if (index := last(sharp)) is not None and np.isfinite(random[index]):
        error = along(data, "saturation_change_stderr", arm="random", **one)[index]
        other = f"an equally long one in a random direction by {_signed(random[index], error)}"
        words.append(f"One step of SGD along e<sub>1</sub> changes that by {_signed(sharp[index])}, {other}.")
    return words


def _signed(value: float, error: float = float("nan")) -> str:
    return ("+" if value > 0 else "") + with_error(float(value), float(error))


def batch_section(page: Page) -> str:
    """Each update on its own batch; nothing where it was not measured."""
    data = page.evidence.measured.get("batch")
    if data is None or "alpha_star" not in data:
        return ""
    key, title = f"{page.key}-batch", "Each update on its own batch"
    if data.sizes.get("step", 0) == 0:
        absent = missing("No update was held against its own batch: there are no two consecutive snapshots.")
        return fold(key, title, [absent], said="measured at no point.")
    caption = (
        "α* is where the loss of the update's own batch is lowest along it: below 1 the step goes beyond. The noise scale is the "
        "batch size at which noise and signal of the gradient are equal. On the dashed line at 2 the batch sharpness is at the "
        "edge of stability; η·GNI lies there wherever the loss is stationary. Bars are 1.96 standard errors."
    )
    drawn = figure(lambda: figures.batch_walk(data, page.evidence.steps), caption)
    words = batch_words(data, figures.batch_of(page.evidence))
    return fold(key, title, [f"<p>{' '.join(words[1:])}</p>" if words[1:] else "", drawn], said="".join(words[:1]))


def batch_words(data: xr.Dataset, size: str) -> list[str]:
    """Where the updates land on their own batches, and the noise scale and batch sharpness of the last window."""
    alpha, words = along(data, "alpha_star"), []
    known, foreign = alpha[np.isfinite(alpha)], int((along(data, "own_batch") > 0).sum())
    if len(known):
        beyond = float(np.mean((known > 0) & (known < 1)))
        words.append(
            f"On its own batch the median update has its lowest point at α* = {number(float(np.median(known)))}; "
            f"{beyond:.0%} of {len(known)} updates go beyond it."
        )
    if foreign:
        words.append(f"{foreign} of {len(alpha)} updates have no recorded batch, or one that does not give the recorded loss.")
    scale = along(data, "noise_scale", "window")
    if (index := last(scale)) is not None:
        times = f", {number(scale[index] / float(size))} times the batch" if size.isdigit() else ""
        words.append(f"The noise scale of the last window is {told(data, 'noise_scale', index, 'window')} examples{times}.")
    if (index := last(along(data, "batch_sharpness", "window"))) is not None:
        words.append(f"Its batch sharpness is {told(data, 'batch_sharpness', index, 'window')} (1/lr).")
    return words
