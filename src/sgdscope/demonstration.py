"""The main job on bundled real data: three walks from one start, measured, judged and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
import xarray as xr

from sgdscope.checks import check, to_json
from sgdscope.contracts import Verdict, claims
from sgdscope.experiment import Experiment, surface_of, sweep
from sgdscope.measure import measure
from sgdscope.notation import number, with_interval
from sgdscope.report import report
from sgdscope.runs import open_trajectory

UPDATES, LENGTH = 480, 60
BURSTS = (0, 180, UPDATES - LENGTH)
CURVATURE = {"k": 5, "points": 5}
NOISE = {"k": 5, "examples": 256}
ARMS: tuple[tuple[str, float, int | str], ...] = (
    ("sgd-lr0.6-batch64", 0.6, 64),
    ("sgd-lr0.05-batch64", 0.05, 64),
    ("gd-lr0.6-full-batch", 0.6, "full"),
)


@dataclass(frozen=True)
class Seen:
    """What the demonstration saw.

    Attributes:
        lines: five lines of plain words with numbers.
        page: the report.
        runs: the recorded runs.
        verdicts: of the claims that these runs can answer, each with the run it was asked of.
    """

    lines: list[str]
    page: Path
    runs: list[Path]
    verdicts: list[Verdict]

    def to_json(self) -> dict[str, Any]:
        """Describe what was seen with JSON types."""
        own = {"lines": self.lines, "report": str(self.page), "runs": [str(p) for p in self.runs]}
        return own | {"verdicts": to_json(self.verdicts, [])["verdicts"]}


def experiments() -> list[Experiment]:
    """Describe the three walks: 64-100-100-10 MLP, digits with 30 % random labels, one start.

    Returns:
        SGD at two learning rates and full-batch gradient descent at the larger one.
    """
    return [Experiment.model_validate(_description(name, lr, batch_size)) for name, lr, batch_size in ARMS]


def _description(name: str, lr: float, batch_size: int | str) -> dict[str, Any]:
    return {
        "name": name,
        "seed": 0,
        "data": {"dataset": "digits", "label_noise": 0.3},
        "model": {"name": "mlp", "hidden": [100, 100]},
        "phases": [{"walker": "sgd", "lr": lr, "batch_size": batch_size, "updates": UPDATES}],
        "record": {"snapshots": {"kind": "bursts", "length": LENGTH, "at": list(BURSTS)}},
    }


def demonstrate(out: Path, *, jobs: int | None = None, progress: Callable[[str, float], None] | None = None) -> Seen:
    """Train, record, measure, judge and write the report.

    Args:
        out: folder for the runs and the page; runs that are already there are used.
        jobs: worker processes; one a core if None.
        progress: called with a sentence and the share that is done.

    Returns:
        What was seen.

    Cost: 3 x 480 updates of a 17 000-parameter network and 4 passes over 1 500 digits for each of 540 updates; 30 Hessian
        products at each of 45 points; 256 gradients and 50 products at each of 9.
    """
    say = progress or (lambda _sentence, _share: None)
    say("training three networks", 0.05)
    described = experiments()
    runs = sweep(described, out / "runs", jobs=jobs)
    say("measuring and judging", 0.3)
    pool = joblib.Parallel(n_jobs=jobs or -1)
    looked = pool(joblib.delayed(_look)(experiment, path) for experiment, path in zip(described, runs, strict=True))
    verdicts = [verdict for _, judged in looked for verdict in judged]
    say("writing the report", 0.95)
    page = report(runs, out / "report.html", verdicts=verdicts, title="SGD between the walls of a valley")
    return Seen(tell([last for last, _ in looked], verdicts), page, runs, verdicts)


def _look(experiment: Experiment, path: Path) -> tuple[dict[str, float], list[Verdict]]:
    """Measure and judge one run, on one thread: the processes share the cores."""
    torch.set_num_threads(1)
    trajectory, surface = open_trajectory(path), surface_of(experiment)
    names, options = ["valley", "motion", "curvature", "noise"], {"curvature": CURVATURE, "noise": NOISE}
    measured = measure(trajectory, surface, names, reuse=True, **options)
    asked = [name for name, claim in claims.items() if claim.scope == "run"]
    judged = check(asked, run=trajectory, surface=surface)
    told = [replace(v, details={**v.details, "run": experiment.name}) for v in judged]
    return _last_burst({name: group.to_dataset() for name, group in measured.children.items()}, trajectory.steps), told


def _last_burst(measured: Mapping[str, xr.Dataset], steps: xr.Dataset) -> dict[str, float]:
    valley, motion, curvature, noise = (measured[name] for name in ("valley", "motion", "curvature", "noise"))
    late = valley.sel(step=valley["step"] >= BURSTS[-1])
    return {
        "interior": float(late["interior"].mean()),
        "alpha": float(np.nanmedian(late["alpha_star"])),
        "height": float(valley["mean_height"][-1]),
        "loss": float(late["loss_start"].mean()),
        "cosine": float(motion["gradient_cosine"][-1]),
        "edge": float(np.nanmedian(curvature["edge"].values[curvature["step"].values >= BURSTS[-1]])),
        "distance": float(steps["distance"][-1]),
        "scale": float(noise["noise_scale"][-1]),
        "scale_error": float(noise["noise_scale_stderr"][-1]),
        "curved": float(noise["curved_noise_scale"][-1]),
    }


def tell(last: Sequence[Mapping[str, float]], verdicts: Sequence[Verdict]) -> list[str]:
    """Say in five lines what was seen.

    Args:
        last: numbers of the last burst of SGD at the large and at the small learning rate, and of full-batch descent.
        verdicts: on the claims.

    Returns:
        Five lines.
    """
    fast, slow, full = last
    answers = ("supported", "contradicted", "undecided", "not in regime")
    counts = {answer: sum(v.verdict == answer for v in verdicts) for answer in answers}
    walls = "mostly jumps from wall to wall" if fast["interior"] > 0.5 else "mostly stays on one wall"
    sense = "against each other" if fast["cosine"] < 0 else "the same way"
    return [
        f"1. Walls: at lr 0.6 SGD {walls}: the floor lay inside {fast['interior']:.0%} of the last {LENGTH} updates, "
        f"at alpha* = {fast['alpha']:.2f} of the step.",
        f"2. Height: it travels {fast['height']:.4f} above that floor (loss {fast['loss']:.2f}), at lr 0.05 "
        f"{slow['height']:.4f}: {fast['height'] / slow['height']:.1f} times the height.",
        f"3. Direction: consecutive gradients point {sense} on average, cosine {fast['cosine']:+.2f} for SGD; "
        f"{full['cosine']:+.2f} for full-batch descent at the same lr.{_noise(fast, slow)}",
        f"4. Distance: after {UPDATES} updates {fast['distance']:.1f} from the start at lr 0.6, "
        f"{slow['distance']:.1f} at lr 0.05, {full['distance']:.1f} with the full batch. In the last burst "
        f"the largest eigenvalue is {fast['edge']:.2f}, {slow['edge']:.2f} and {full['edge']:.2f} times the edge 2/lr (medians).",
        "5. Claims: "
        + ", ".join(f"{n} {answer}" for answer, n in counts.items() if n)
        + " ([a, b] and verdicts: 95 % intervals; reasons in the report).",
    ]


def _noise(fast: Mapping[str, float], slow: Mapping[str, float]) -> str:
    """What the noise scale says about the batch size, with its 95 % interval; nothing where it is not known."""
    scale, half, batch = fast["scale"], 1.96 * fast["scale_error"], ARMS[0][2]
    if not np.isfinite([scale, half, slow["scale"]]).all() or not isinstance(batch, int):
        return ""
    above, below = "above it, signal dominates", "below it, noise dominates"
    side = below if batch < scale - half else above if batch > scale + half else "near it"
    curved = f", {fast['curved']:.0f} weighted by the curvature" if np.isfinite(fast["curved"]) else ""
    return (
        f" Noise: a gradient is half noise at a batch of {with_interval(scale, scale - half, scale + half)} examples{curved}; "
        f"{batch} lies {side}. "
        f"At lr 0.05 that batch is {number(slow['scale'])}."
    )
