"""The sections on the noise of the gradient and on stays in valleys: what they mean for batch size and learning rate."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgdscope import figures
from sgdscope.errors import Outcome
from sgdscope.report.page import figure, fold, missing, number, safe, with_error, with_interval
from sgdscope.report.points import Array, along, last, point_table, told
from sgdscope.report.reading import Page

SHORT = 10.0  # updates, below which stays are no rare events; chosen here
Z95 = 1.959963984540054


# --- noise ------------------------------------------------------------------------------------------------------------------


def noise_section(page: Page) -> str:
    """The gradient noise of one run; nothing where it was not measured."""
    data = page.evidence.measured.get("noise")
    if data is None or "noise_scale" not in data:
        return ""
    key, title = f"{page.key}-noise", "Gradient noise"
    if data.sizes.get("step", 0) == 0:
        absent = missing("The noise was measured at no point: there are no two consecutive snapshots.")
        return fold(key, title, [absent], said="measured at no point.")
    first, *rest = noise_words(data)
    parts = [f"<p>{' '.join(rest)}</p>" if rest else "", _table(data)]
    steps, valley = page.evidence.steps, page.evidence.measured.get("valley")
    caption = (
        "The batch at which noise and signal of the gradient are equal, with 95 % intervals, and the batch in use. Below the "
        "scales noise dominates and a larger batch saves updates; above them it only costs examples."
    )
    parts.append(figure(lambda: figures.noise_scales(data, steps), caption))
    caption = (
        "Top: how large the signal is beside the noise of one batch; below the line most of a step is noise. Bottom: the "
        "temperature η Tr C / (2BP(1 − β)); a falling one means that the walk spreads less."
    )
    parts.append(figure(lambda: figures.noise_walk(data), caption))
    parts += [*_aligned(data), *_spectrum(data), _height(page, data, valley)]
    if np.isfinite(along(data, "lag_asymmetry", "window")).any():
        caption = (
            "How far the walk of each window circles rather than diffuses, in the sharpest directions. Only what lies above "
            "chance, with a small p, is a current."
        )
        parts.append(figure(lambda: figures.lag_currents(data), caption))
    return fold(key, title, parts, said=first)


def _aligned(data: xr.Dataset) -> list[str]:
    caption = (
        "Each point is a pair of the sharpest directions of the Hessian H. On a line through the origin the covariance C of the "
        "gradient is proportional to H: noise shakes most where the loss is sharpest. C = H only where the model fits its labels "
        "as a likelihood should. Bars are 1.96 standard errors."
    )
    return [figure(lambda: figures.noise_alignment(data), caption)]


def _spectrum(data: xr.Dataset) -> list[str]:
    if "covariance_eigenvalue" not in data:
        return []
    caption = (
        "The largest eigenvalues of C. The steeper they fall, the fewer directions hold the noise. A dashed line is the power "
        "law fitted to all measured ranks, of which only the first are drawn, so it need not pass through them. A straight line "
        "is no evidence of a power law: that takes the test, and a small p speaks against one."
    )
    return [figure(lambda: figures.noise_spectrum(data), caption)]


def _height(page: Page, data: xr.Dataset, valley: xr.Dataset | None) -> str:
    """The height that noise explains beside the measured one; nothing where the valley or the Hessian was not looked at."""
    if valley is None or "mean_height" not in valley or not np.isfinite(along(data, "product_trace")).any():
        return ""
    if figures.walker_of(page.evidence).lower() not in {"", "sgd"}:
        return ""  # the closed forms are those of SGD
    if np.isinf(figures.noise_batch_size(data, finite=True)).all():
        return "<p>The batches hold all examples: none of the measured height is due to noise.</p>"
    words = height_words(data, valley, page.evidence.steps)
    caption = (
        "Predicted from C and H at single points, for a parabola on which the walk has settled. E[L] − L* is the height above "
        "the floor of the whole valley. The height along one update is lower; compare it with what was measured along the "
        "updates. A measured height far above its line is not due to noise."
    )
    drawn = figure(lambda: figures.height_by_noise(data, valley, page.evidence.steps), caption)
    return (f"<p>{' '.join(words)}</p>" if words else "") + drawn


def noise_words(data: xr.Dataset) -> list[str]:
    """The regime at the last point; then what a batch costs, how C lies to H, its spectrum, and the temperature."""
    scale = along(data, "noise_scale")
    if (index := last(scale)) is None:
        reason = safe(data["noise_scale"].attrs.get("reason", ""))
        return [f"The noise scale is known at no measured point{': ' if reason else ''}{reason}."]
    found = (_regime(data, index), _population(data, index), _price(data, index), _alignment(data), _power(data), _heat(data))
    words = [said for said in found if said]
    if along(data, "batchwise")[index] > 0:
        words.append("Single examples have no gradient of their own here, so the covariance comes from the recorded batches.")
    return words


def regime(data: xr.Dataset, index: int) -> str:
    """Which part of a batch's gradient is the larger one at a point, by the 95 % interval of the noise scale.

    Args:
        data: a measurement of the noise.
        index: position along `step`.

    Returns:
        noise-dominated, signal-dominated, neither dominates; empty where it is not known.
    """
    scale, size = along(data, "noise_scale")[index], float(figures.noise_batch_size(data)[index])
    error = along(data, "noise_scale_stderr")[index]
    half = Z95 * error if np.isfinite(error) else 0.0
    if not np.isfinite(scale) or not np.isfinite(size):
        return ""
    return "noise-dominated" if scale - half > size else "signal-dominated" if scale + half < size else "neither dominates"


def _regime(data: xr.Dataset, index: int) -> str:
    scale, size = along(data, "noise_scale")[index], float(figures.noise_batch_size(data)[index])
    said = (
        f"At update {int(data['step'].values[index])} noise and signal of the gradient are equal at a batch of "
        f"{told(data, 'noise_scale', index)} examples (B<sub>simple</sub>)"
    )
    if not np.isfinite(size):
        return f"{said}; the batch size of the run is not known."
    if np.isinf(figures.noise_batch_size(data, finite=True)[index]):
        return f"{said}; the run's batch of {size:.0f} holds all examples: its gradient has no noise."
    more, less, times = ("noise", "signal", scale / size) if scale > size else ("signal", "noise", size / scale)
    return (
        f"{said}, the run has {size:.0f}: {regime(data, index)}, the {more} of a batch being {number(times)} times "
        f"its {less} in squared length."
    )


def _population(data: xr.Dataset, index: int) -> str:
    value = along(data, "population_noise_scale")[index]
    poor = along(data, "population_noise_scale_outcome")[index] == int(Outcome.not_converged)
    if poor:
        return "For the population that the examples are a sample of, |G|² cannot be told from zero: its scale has no upper end."
    if not np.isfinite(value):
        return ""
    ends = (float(along(data, f"population_noise_scale_{end}")[index]) for end in ("low", "high"))
    return f"For the population that the examples are a sample of, it is {with_interval(float(value), *ends)}."


def _price(data: xr.Dataset, index: int) -> str:
    """What progress costs at this batch, 1 + B / B_noise in examples and 1 + B_noise / B in updates."""
    curved, size = along(data, "curved_noise_scale")[index], float(figures.noise_batch_size(data)[index])
    simple, whole = along(data, "noise_scale")[index], np.isinf(figures.noise_batch_size(data, finite=True)[index])
    scale, name = (curved, "noise") if curved > 0 else (simple, "simple")
    said = ""
    if curved > 0:
        said = f"Weighted by the curvature, which progress follows, that batch is {told(data, 'curved_noise_scale', index)}"
        said += f" (B<sub>noise</sub>){', on the other side of the batch' if (curved - size) * (simple - size) < 0 else ''}. "
    if not scale > 0 or not np.isfinite(size):
        return said.strip()
    now, twice, half = 1 + size / scale, 1 + 2 * size / scale, 1 + size / scale / 2
    ratio, changed = (half / now, "half") if whole else (twice / now, "twice")
    return (
        f"{said}By 1 + B/B<sub>{name}</sub>, {changed} the batch would need {number(ratio)} times the examples and "
        f"{number(ratio * 2 if whole else ratio / 2)} times the updates for the same progress."
    )


def _alignment(data: xr.Dataset) -> str:
    if (index := last(along(data, "correlation"))) is None:
        return ""
    k = int(np.isfinite(data["curvature_eigenvalue"].transpose("step", "rank").values[index]).sum())
    said = (
        f"In the {k} sharpest directions C goes with the Hessian at a correlation of {told(data, 'correlation', index)}, with "
        f"slope {told(data, 'slope', index)}"
    )
    if not np.isfinite(along(data, "matrix_cosine")[index]):
        return f"{said}."
    return f"{said}; over all directions the cosine of the two is {_cosine(data, index)}."


def _cosine(data: xr.Dataset, index: int) -> str:
    """The cosine of C and H; where its estimate is above 1, which no cosine is, that is said."""
    beyond = along(data, "matrix_cosine")[index] > 1
    return told(data, "matrix_cosine", index) + (" (an estimate: 1 within its error)" if beyond else "")


def _power(data: xr.Dataset) -> str:
    exponent = along(data, "spectrum_exponent")
    if (index := last(exponent)) is None:
        return ""
    said = f"The eigenvalues of C fall as rank<sup>−{number(exponent[index])}</sup>"
    p, other = (along(data, f"spectrum_{name}")[index] for name in ("p", "isotropic_p"))
    if not np.isfinite(p):
        return f"{said}; whether that is a power law was not tested (resamples=199)."
    verdict = "a power law is refused at 5 %" if p < 0.05 else "a power law is not refused"
    apart = ", and isotropic noise would fall as steeply" if other >= 0.05 else ""
    return f"{said}: {verdict} (p = {number(p)}){apart}."


def _heat(data: xr.Dataset) -> str:
    index = last(along(data, "temperature"))
    if index is None or np.isinf(figures.noise_batch_size(data, finite=True)[index]):
        return ""  # a batch of all examples has none
    return f"The temperature is {told(data, 'temperature', index)} (loss)."


def height_words(data: xr.Dataset, valley: xr.Dataset, steps: xr.Dataset) -> list[str]:
    """The predicted heights at the last point, and the height along its updates beside the measured one.

    Args:
        data: a measurement of the noise.
        valley: a measurement of the valley.
        steps: the scalars of all updates.

    Returns:
        Sentences; none where no height by noise is known.
    """
    heights = figures.predicted_heights(data, steps)
    index = last(np.where(heights.sde > 0, heights.sde, np.nan))
    if index is None:
        return []
    exact, sde, three = (float(values[index]) for values in (heights.exact, heights.sde, heights.three_factors))
    forms = f"{number(sde)} in the limit of small learning rates (by Tr C), {number(three)} by Tr H"
    where = f"At update {int(heights.step[index])}, η λ<sub>1</sub> = {number(float(heights.sharpness[index]))},"
    lead = f"noise alone would hold the loss {number(exact)} above its minimum on a parabola; {forms}"
    if not np.isfinite(exact):
        lead = f"at or beyond the edge no height by noise exists on a parabola; the limits that do not see the edge say {forms}"
    words = [f"{where} {lead}."]
    measured = _measured_height(valley, float(heights.step[index]))
    if np.isfinite(heights.along[index]) and np.isfinite(measured[0]):
        words.append(
            f"Along its updates it predicts a height of at least {number(float(heights.along[index]))}; measured in that window: "
            f"{with_error(*measured)}."
        )
    return words


def _measured_height(valley: xr.Dataset, step: float) -> tuple[float, float]:
    """Mean height and its standard error in the window that a point begins or lies in; NaN where there is none."""
    if "window_first" not in valley or "window_last" not in valley:
        return float("nan"), float("nan")
    first, after = (valley[f"window_{end}"].values for end in ("first", "last"))
    inside = np.flatnonzero((first <= step) & (step <= after))
    if not len(inside):
        return float("nan"), float("nan")
    mean, error = (float(along(valley, name, "window")[inside[-1]]) for name in ("mean_height", "mean_height_stderr"))
    return mean, error


COLUMNS = {
    "gradient_square": "|g|²",
    "trace": "Tr C",
    "noise_scale": "B<sub>simple</sub>",
    "population_noise_scale": "B<sub>population</sub>",
    "curved_noise_scale": "B<sub>noise</sub>",
    "temperature": "temperature",
    "slope": "slope of C on H",
    "correlation": "correlation",
    "matrix_cosine": "cos(C, H)",
    "trace_ratio": "Tr C/Tr H",
    "spectrum_exponent": "power of C",
}


def _table(data: xr.Dataset) -> str:
    """Two tables, each as wide as the page: the sizes of the noise, and how it lies to the Hessian."""
    columns: dict[str, Array | tuple[Array, Array]] = {}
    for name, label in COLUMNS.items():
        columns[label] = (_fine(data, name), along(data, f"{name}_stderr"))
    columns[COLUMNS["temperature"]] = along(data, "temperature")  # its relative error is that of Tr C
    labels = list(columns)
    middle = labels.index(COLUMNS["slope"])
    sizes, shape = ({label: columns[label] for label in part} for part in (labels[:middle], labels[middle:]))
    units = '<p class="soft">|g|² and Tr C are in loss²/θ², scales in examples.</p>'
    return point_table(data, sizes) + units + point_table(data, shape)


def _fine(data: xr.Dataset, name: str) -> Array:
    """A variable over the points, NaN where it did not converge."""
    poor = along(data, f"{name}_outcome") == int(Outcome.not_converged)
    return np.asarray(np.where(poor, np.nan, along(data, name)))


# --- stays ------------------------------------------------------------------------------------------------------------------


def escape_section(page: Page) -> str:
    """How long one walk stays in valleys; nothing where it was not measured."""
    data = page.evidence.measured.get("escape")
    if data is None or "escape_rate" not in data:
        return ""
    key, title = f"{page.key}-escape", "Stays in valleys"
    if data.sizes.get("window", 0) == 0:
        absent = missing("No stay was looked at: there are no two consecutive snapshots.")
        return fold(key, title, [absent], said="measured at no point.")
    rates = "Updates that leave the valley over those that began in it, with 95 % intervals; wide bars are the windows."
    lengths = (
        "How long the walk stays. On the dashed line leaving is equally likely at each update, as over a barrier; a curve that "
        "stays high and falls late is a drift, which takes as long each time. Crosses: cut off by the end of a window."
    )
    drawn = (figure(lambda: figures.escape_rates(data), rates), figure(lambda: figures.dwell_times(data), lengths))
    first, *rest = escape_words(data)
    return fold(key, title, [f"<p>{' '.join(rest)}</p>" if rest else "", *drawn], said=first)


def escape_words(data: xr.Dataset) -> list[str]:
    """Escapes, updates at risk and the mean stay, over all windows; whether stays are exponential."""
    at_risk, left = (along(data, name, "window") for name in ("at_risk", "escapes"))
    risk, count = float(np.nansum(at_risk)), float(np.nansum(left))
    if not risk > 0:
        reason = safe(data["escape_rate"].attrs.get("reason", ""))
        return [f"No update began in a valley, or its points are not finite{': ' if reason else ''}{reason}."]
    if not count:
        least = number(risk / 3)  # exp(-3) = 0.05
        return [f"The walk left the valley at none of {risk:.0f} updates: its mean stay is above {least} updates (95 %)."]
    words = [f"The walk left the valley at {count:.0f} of {risk:.0f} updates: a mean stay of {number(risk / count)} updates."]
    if risk / count < SHORT:
        words.append("Stays this short are steps out of the valley as it was given, no escapes over a barrier.")
    p = along(data, "exponential_p", "window")
    known = p[np.isfinite(p)]
    if len(known):
        refused = int((known < 0.05).sum())
        words.append(
            f"An exponential law of the stays is refused at 5 % in {refused} of {len(known)} windows with enough of them."
        )
    words.append("One walk through a changing landscape has no one rate; many walkers from one start measure a valley.")
    return words


NOISE_GUIDE = (
    (
        "C, B<sub>simple</sub>",
        "The covariance of the gradients of single examples; a batch of B has C/B. Tr C/|g|² is the batch at which noise and "
        "signal have the same squared length: below it the run is noise-dominated, above it signal-dominated (McCandlish et al. "
        "2018). It grows as the gradient shrinks.",
    ),
    (
        "B<sub>noise</sub>",
        "Tr(HC)/g′Hg, the same with directions weighted by the curvature. Progress takes 1 + B/B<sub>noise</sub> times the "
        "examples of the smallest batches and 1 + B<sub>noise</sub>/B times the updates of the full batch, at the best learning "
        "rate of each; at other learning rates it is no promise.",
    ),
    (
        "Height by noise",
        "Where SGD settles on a parabola with Hessian H and covariance C: ½ Tr(HΣ) exactly, η Tr C/(4B(1 − β)) for small "
        "learning rates, and η Tr H/(4B(1 − β)) where Tr C = Tr H. The exact one is taken in the sharpest directions, the limit "
        "in the rest. Flat directions take 1/(ηλ) updates to settle, so a walk may lie lower.",
    ),
    (
        "Height along an update",
        "η²(Tr(HC)/B + g′Hg)/8: a quarter of the second-order term of an update of plain SGD. The measured mean height adds the "
        "spread of α* around ½ and is never less on a parabola.",
    ),
)
