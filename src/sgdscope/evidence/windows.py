"""From measured runs to what a claim needs: windows, their regime, settings, and the decision that an interval allows.

Shared by the claims of all papers. A window is a stretch of at least `UPDATES` consecutive recorded updates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sgdscope import statistics
from sgdscope.contracts import Answer, Evidence, Verdict
from sgdscope.measure import measure
from sgdscope.records import Surface, Trajectory

UPDATES = 60  # A Walk with SGD specification, section 5: statistics on windows of at least 60 consecutive updates
NOISE = 3.0  # section 11: not in regime below 3 x the noise floor of the evaluation
LOSS_SHARE = 0.05  # section 11 asks for a set share of the initial loss; 5 % chosen before any run (digits start at 2.3)


@dataclass(frozen=True)
class Window:
    """Consecutive updates of one run, and where they lie on the map.

    Attributes:
        run: the evidence.
        first: first update.
        last: one past the last update.
        index: of the window in the run.
        loss: mean training loss over the updates.
        share: that over the run's initial loss; NaN where a loss is not positive.
        height: mean height h = (h0 + h1) / 2.
        noise_floor: of the evaluation.
        eta_gni: learning rate x gradient-noise interaction, from the interpolation.
        eta_batch_sharpness: learning rate x batch sharpness, from the steps' own batches; NaN where they are not at hand.
    """

    run: Evidence
    first: int
    last: int
    index: int
    loss: float
    share: float
    height: float
    noise_floor: float
    eta_gni: float
    eta_batch_sharpness: float

    @property
    def length(self) -> int:
        """Number of updates."""
        return self.last - self.first

    @property
    def lost(self) -> bool:
        """The training loss has vanished: it is below `LOSS_SHARE` of its initial value."""
        return self.share < LOSS_SHARE

    @property
    def flat(self) -> bool:
        """The height drowns in the evaluation noise: it is below `NOISE` noise floors."""
        return self.height < NOISE * self.noise_floor

    def of(self, name: str, group: str = "valley") -> NDArray[np.float64]:
        """The values of a variable over this window's updates, in order (NaN kept).

        Args:
            name: of a variable over `step` or `step_curve`.
            group: its quantity; ``"steps"`` for the scalars.

        Returns:
            [n]; empty if it was not measured.
        """
        data = self.run.steps if group == "steps" else self.run.measured.get(group)
        if data is None or name not in data:
            return np.zeros(0)
        variable = data[name]
        dim = str(variable.dims[0])
        steps = np.asarray(data[dim].values)
        return np.asarray(variable.values[(steps >= self.first) & (steps < self.last)], np.float64)

    @property
    def crossed(self) -> NDArray[np.float64]:
        """For each update with a curve: 1 where it rises above both ends by more than its error and `NOISE` noise floors."""
        barrier, error = self.of("barrier"), self.of("curve_error")
        known = np.isfinite(barrier)
        return np.asarray(barrier[known] > NOISE * self.noise_floor + error[known], np.float64)

    def at(self, name: str, group: str = "valley") -> float:
        """The value of a variable over windows for this one.

        Args:
            name: of a variable over `window`.
            group: its quantity.

        Returns:
            The value; NaN if it was not measured.
        """
        data = self.run.measured.get(group)
        if data is None or name not in data or self.index >= data.sizes["window"]:
            return nan
        return float(data[name].values[self.index])


def finite(found: Sequence[Window], name: str, group: str = "valley") -> NDArray[np.float64]:
    """The finite values of a variable over the updates of several windows, joined.

    Args:
        found: the windows.
        name: of the variable.
        group: its quantity; ``"steps"`` for the scalars.

    Returns:
        [n].
    """
    values = np.concatenate([np.zeros(0), *(w.of(name, group) for w in found)])
    return np.asarray(values[np.isfinite(values)], np.float64)


def windows_of(run: Evidence) -> list[Window]:
    """The windows of a run that have at least `UPDATES` updates.

    Args:
        run: with the quantity valley.

    Returns:
        In the order of time.
    """
    valley = run.measured.get("valley")
    if valley is None or "window_first" not in valley:
        return []
    ends = zip(np.atleast_1d(valley["window_first"].values), np.atleast_1d(valley["window_last"].values), strict=True)
    initial = initial_loss(run)
    return [_window(run, valley, i, int(a), int(b), initial) for i, (a, b) in enumerate(ends) if b - a >= UPDATES]


def _window(run: Evidence, valley: xr.Dataset, index: int, first: int, last: int, initial: float) -> Window:
    inside = (valley["step"].values >= first) & (valley["step"].values < last)
    losses = valley["loss_start"].values[inside]
    loss = float(np.nanmean(losses)) if np.isfinite(losses).any() else nan

    def of(name: str) -> float:
        return float(valley[name].values[index]) if name in valley else nan

    share = loss / initial if initial > 0 and loss >= 0 else nan
    return Window(
        run=run,
        first=first,
        last=last,
        index=index,
        loss=loss,
        share=share,
        height=of("mean_height"),
        noise_floor=np.nan_to_num(of("noise_floor")),
        eta_gni=of("eta_gni"),
        eta_batch_sharpness=of("eta_batch_sharpness"),
    )


def initial_loss(run: Evidence) -> float:
    """The first finite training loss of the run, or the first measured one if the loop gave none.

    Args:
        run: the evidence.

    Returns:
        The loss; NaN if there is none.
    """
    valley = run.measured.get("valley", xr.Dataset())
    for data, name in ((run.steps, "loss"), (valley, "loss_start")):
        if name in data:
            values = np.asarray(data[name].values, np.float64)
            if (finite := values[np.isfinite(values)]).size:
                return float(finite[0])
    return nan


def fingerprint(run: Evidence) -> Mapping[str, Any]:
    """What the run was measured on, as its surface said.

    Args:
        run: the evidence.

    Returns:
        The surface's fingerprint; empty if it is not known.
    """
    for data in run.measured.values():
        try:
            told = json.loads(str(data.attrs.get("surface", "{}")))
        except json.JSONDecodeError:
            continue
        if isinstance(told, dict) and told:
            return told
    return {}


def full_batch(run: Evidence) -> bool:
    """Whether each update saw all the data: plain gradient descent.

    Args:
        run: the evidence.

    Returns:
        True if the settings say ``"full"``, or the batches are as large as the training set (as the surface's, if unknown).
    """
    told = run.settings.get("batch_size")
    if isinstance(told, str):
        return told == "full"
    examples = run.settings.get("examples") or fingerprint(run).get("examples") or fingerprint(run).get("n")
    sizes = np.asarray(run.steps["batch_size"].values, np.float64) if "batch_size" in run.steps else np.zeros(0)
    return examples is not None and bool(np.isfinite(sizes).any()) and bool(np.nanmin(sizes) >= float(examples))


def regime(windows: Sequence[Window]) -> dict[str, float | str]:
    """Where runs lie on the map: means over windows, and how BatchNorm was evaluated.

    Args:
        windows: of all runs.

    Returns:
        eta_gni, eta_batch_sharpness, training_loss, loss_share, height_over_noise; batchnorm, a mode or "none".
    """
    names = {"eta_gni": "eta_gni", "eta_batch_sharpness": "eta_batch_sharpness", "training_loss": "loss", "loss_share": "share"}
    told: dict[str, float | str] = {
        name: mean_finite([getattr(w, attribute) for w in windows]) for name, attribute in names.items()
    }
    told["height_over_noise"] = mean_finite([w.height / w.noise_floor if w.noise_floor > 0 else nan for w in windows])
    mode = str(fingerprint(windows[0].run).get("batchnorm", "none")) if windows else "none"
    return told | {"batchnorm": mode}


def mean_finite(values: Sequence[float]) -> float:
    """The mean of those that are finite; NaN if none is."""
    finite = [v for v in values if isfinite(v)]
    return float(np.mean(finite)) if finite else nan


def decide(interval: tuple[float, float], threshold: float, *, above: bool = True) -> Answer:
    """Hold an interval against a threshold.

    Args:
        interval: of the statistic.
        threshold: fixed beforehand.
        above: whether the claim says "above".

    Returns:
        Supported or contradicted if the whole interval lies on one side, else undecided.
    """
    low, high = interval
    if low > threshold:
        return "supported" if above else "contradicted"
    if high < threshold:
        return "contradicted" if above else "supported"
    return "undecided"


def weakest(answers: Iterable[Answer]) -> Answer:
    """The verdict on a claim of several parts, all of which must hold.

    Args:
        answers: of the parts.

    Returns:
        Contradicted if a part is, else undecided if a part is, else supported.
    """
    order: tuple[Answer, ...] = ("supported", "not in regime", "undecided", "contradicted")
    return max(answers, key=order.index)


def without(claim: str, verdict: Answer, threshold: float, reason: str, windows: Sequence[Window] = ()) -> Verdict:
    """A verdict that rests on no statistic: undecided for want of data, or not in regime.

    Args:
        claim: its id.
        verdict: which of the two.
        threshold: that would have been used.
        reason: in one sentence.
        windows: that were looked at.

    Returns:
        The verdict, with a NaN statistic.
    """
    return Verdict(claim, verdict, nan, (nan, nan), len(windows), threshold, reason, regime(windows))


def applicable(
    claim: str, runs: Sequence[Evidence], threshold: float, *, height: bool = True, edge: float = 0.0
) -> tuple[list[Window], Verdict | None]:
    """Choose the windows in which a claim about windows applies.

    Args:
        claim: its id.
        runs: the evidence.
        threshold: of the claim.
        height: whether a height below the noise floor puts a window outside.
        edge: full-batch runs apply only from this eta x GNI on.

    Returns:
        (windows, None), or (all windows, the verdict that says why there are none).
    """
    every = [w for run in runs for w in windows_of(run)]
    if not every:
        return [], without(claim, "undecided", threshold, f"no window of {UPDATES} consecutive measured updates is at hand")
    lost, flat = [w for w in every if w.lost], [w for w in every if height and w.flat]
    calm = [w for w in every if edge and full_batch(w.run) and not w.eta_gni >= edge]
    kept = [w for w in every if not any(w is out for out in (*lost, *flat, *calm))]
    if kept:
        return kept, None
    reason = (
        f"of {len(every)} windows the training loss is below {LOSS_SHARE:.0%} of its initial value in {len(lost)}, the height "
        f"below {NOISE:g} noise floors in {len(flat)}, and full-batch descent below eta x GNI = {edge:g} in {len(calm)}"
    )
    return every, without(claim, "not in regime", threshold, reason, every)


def left_out(runs: Sequence[Evidence], kept: Sequence[Window]) -> str:
    """Say how many windows a verdict leaves out, with a semicolon before it; empty if none.

    Args:
        runs: the evidence.
        kept: the windows in which the claim applies.

    Returns:
        A clause.
    """
    total = sum(len(windows_of(run)) for run in runs)
    return f"; {total - len(kept)} of {total} windows are out of regime and left out" if total > len(kept) else ""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, by its settings, with its last whole window."""

    lr: float
    batch_size: float
    seed: int
    window: Window

    @property
    def _distances(self) -> NDArray[np.float64]:
        return np.asarray(self.window.run.steps["distance"].values, np.float64)

    @property
    def updates(self) -> int:
        """The last update whose distance from theta_0 is known."""
        return int(np.flatnonzero(np.isfinite(self._distances))[-1])

    def distance(self, end: float) -> float:
        """|theta_t - theta_0| at the last known update t <= end."""
        known = np.flatnonzero(np.isfinite(self._distances))
        return float(self._distances[known[known <= end][-1]])

    def typical_distance(self, end: float) -> float:
        """Root mean square distance over the last `UPDATES` updates up to `end`: an oscillation has no single one."""
        late = self._distances[: int(end) + 1][-UPDATES:]
        return float(np.sqrt(np.nanmean(late**2)))


def cells(runs: Sequence[Evidence]) -> list[Cell]:
    """Order the runs of a sweep by learning rate, batch size and seed (a full batch counts as infinite).

    Args:
        runs: with `lr`, `batch_size` and `seed` in their settings.

    Returns:
        One cell a run that has a whole window.
    """
    found = []
    for run in runs:
        if late := windows_of(run)[-1:]:
            batch = np.inf if full_batch(run) else float(run.settings.get("batch_size", nan))
            found.append(Cell(float(run.settings.get("lr", nan)), batch, int(run.settings.get("seed", 0)), late[0]))
    return sorted(found, key=lambda c: (c.lr, c.batch_size, c.seed))


def balanced(claim_id: str, runs: Sequence[Evidence], seeds: int, *, height: bool = True) -> tuple[list[Cell], Verdict | None]:
    """Choose the runs of a sweep to which a claim applies; a seed of which one run is out of regime is left out, for balance.

    Args:
        claim_id: its id.
        runs: the evidence.
        seeds: how many are needed.
        height: whether a height below the noise floor puts a run outside.

    Returns:
        (cells, None), or (all cells, the verdict that says why too few are left).
    """
    every = cells(runs)
    out = {c.seed for c in every if c.window.lost or (height and c.window.flat)}
    kept = [c for c in every if c.seed not in out]
    if len({c.seed for c in every}) < seeds:
        reason = f"{len({c.seed for c in every})} seeds with a whole window are at hand, at least {seeds} are needed"
        return every, without(claim_id, "undecided", 0.0, reason, [c.window for c in every])
    if len({c.seed for c in kept}) < seeds:
        reason = f"in {len(out)} seeds a run's training loss has vanished or its height lies below the noise floor"
        return every, without(claim_id, "not in regime", 0.0, reason, [c.window for c in every])
    return kept, None


@dataclass(frozen=True)
class Trend:
    """How a number follows a setting: the slope of logs within each seed, and the rank test over settings."""

    slope: float
    interval: statistics.Interval
    p_rising: float
    p_falling: float
    smallest_p: float
    seeds: int

    @property
    def answer(self) -> Answer:
        """Supported if it rises, contradicted if it falls: by the interval and by the rank test at 5 %."""
        by_slope = decide(self.interval, 0.0)
        p = {"supported": self.p_rising, "contradicted": self.p_falling}.get(by_slope, 1.0)
        return by_slope if p < 0.05 else "undecided"


def trend(values: Mapping[tuple[float, float, int], float]) -> Trend | None:
    """Test an ordered trend over a setting, with a second setting held fixed and seeds as the independent units.

    Within each seed: log of the value against log of the setting, centred within the fixed setting; its slope is that
    seed's. The rank test (Jonckheere) runs over settings with one value a seed: the mean log over the fixed setting.

    Args:
        values: (setting, fixed setting, seed) -> positive number.

    Returns:
        The trend; None with fewer than 3 settings, or than 3 seeds that have all of them.
    """
    table = {key: float(np.log(v)) for key, v in values.items() if isfinite(v) and v > 0}
    settings, fixed = sorted({k[0] for k in values}), sorted({k[1] for k in values})
    whole = [s for s in sorted({k[2] for k in values}) if all((a, b, s) in table for a in settings for b in fixed)]
    if len(settings) < 3 or len(whole) < 3:
        return None
    x = np.log(np.asarray(settings))
    rows = np.array([[np.mean([table[a, b, s] for b in fixed]) for a in settings] for s in whole])
    mean, _, interval = statistics.mean_interval([statistics.slope(x, row)[0] for row in rows])
    _, rising, smallest = statistics.jonckheere(list(rows.T))
    _, falling, _ = statistics.jonckheere(list(rows.T[::-1]))
    return Trend(mean, interval, rising, falling, smallest, len(whole))


def gather(
    trajectory: Trajectory,
    surface: Surface | None,
    quantities: Mapping[str, Mapping[str, Any]],
    *,
    settings: Mapping[str, Any] | None = None,
    observe: Mapping[str, Callable[[Trajectory, Surface, Any], Mapping[str, Any]]] | None = None,
    data_dir: Any = None,
) -> Evidence:
    """Measure a run for the claims.

    Args:
        trajectory: the walk.
        surface: the loss surface; may be None if no quantity needs one and nothing is observed.
        quantities: name -> options.
        settings: in place of the trajectory's own.
        observe: claim -> what it measures beside the quantities; its results are merged into `extra`.
        data_dir: folder of the real data files, handed to `observe`.

    Returns:
        The evidence, held in memory.
    """
    measured = {}
    for name, options in quantities.items():
        measured[name] = measure(trajectory, surface, [name], reuse=True, **{name: dict(options)})[name].to_dataset().load()
    extra: dict[str, Any] = {}
    for look in dict.fromkeys((observe or {}).values()):
        if surface is not None:
            extra |= look(trajectory, surface, data_dir)
    told = dict(trajectory.settings) if settings is None else dict(settings)
    return Evidence(told, trajectory.steps.load(), measured, extra)
