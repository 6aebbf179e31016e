"""The forecast of annealing against copies that were really annealed; settings and rules written down before the first run.

Registered settings: `SETTINGS`, none of them in the specification of the method; `PILOT` holds three of the specification's own,
on which the width of the interval was looked at before. Rules, fixed with the settings:

* A run is made at a constant learning rate up to T = `UPDATES`, recorded with live averages; the forecast is
  `forecast.annealing(..., budgets=BUDGETS, held_out=..., quiet_steps=True)` with its defaults, from the recorded run alone.
* Truth: from theta_T, optimizer state kept, fresh data orders, linear decay to 0 over budget x T updates; mean of 2 copies.
* Losses: on all training examples of the run and all its held-out ones, statistics of BatchNorm estimated anew on the former.
* Score |predicted - real| / real of the drop, over rows with real > max(0.2 % of the loss, 1e-4, 3 sd of the truth), sd the
  half-difference of the two copies; the others are counted. Rows for which the forecast says "cannot tell" are scored too,
  and once more left out.
* Sign of the held-out change: over all rows whose |real| is above 3 sd of the truth.
* Cover: share of all rows whose truth lies in the 90 % interval, a setting at a time.
* Rival: the drop that a decay branch of 2 % of T really gives (mean of 2), as it is, and times the median of real / branch over
  the other settings at the same budget.
* Aims: train median <= 10 %, p90 <= 25 % at budgets 0.1 and 0.2, no setting's median above 30 %; held-out median <= 25 %, sign
  right in 90 %; cover >= 80 % in each setting; three times better than the 2 % branch.

``python -m benchmarks.annealing SETTING SEED [SEED ...] --data-dir DIR`` makes runs and adds their rows to ``annealing.json``;
``python -m benchmarks annealing`` prints the table.
"""

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sgdscope.experiment import Experiment
from sgdscope.experiment.loop import LOSSES, Loop
from sgdscope.experiment.running import FirstAndLast
from sgdscope.forecast import annealing
from sgdscope.forecast.windows import losses_at
from sgdscope.quantities.averages import Averages
from sgdscope.recorder import Recorder
from sgdscope.records import Record, Trajectory
from sgdscope.surface import LossSurface

UPDATES = 2400
BUDGETS = (0.05, 0.1, 0.2)
BRANCH = 0.02
COPIES = 2
RESULTS = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Setting:
    """What is trained, and how, up to T."""

    data: dict[str, Any]
    model: dict[str, Any]
    phase: dict[str, Any]


def _mlp(*hidden: int) -> dict[str, Any]:
    return {"name": "mlp", "hidden": list(hidden)}


_CIFAR = {"dataset": "cifar10", "train": 4000, "test": 2000}
_TEXT = {"dataset": "tinyshakespeare", "context": 32, "train": 8000, "test": 2000}
SETTINGS = {
    "digits-sgd": Setting(
        {"dataset": "digits", "label_noise": 0.15}, _mlp(64, 64), {"walker": "sgd", "lr": 0.2, "batch_size": 32}
    ),
    "digits-momentum": Setting(
        {"dataset": "digits", "label_noise": 0.45}, _mlp(96), {"walker": "sgd", "lr": 0.02, "momentum": 0.9, "batch_size": 64}
    ),
    "digits-adamw": Setting(
        {"dataset": "digits", "label_noise": 0.2}, _mlp(48, 48), {"walker": "adamw", "lr": 2e-3, "batch_size": 16}
    ),
    "mnist-momentum": Setting(
        {"dataset": "mnist", "train": 6000, "test": 4000, "label_noise": 0.1},
        _mlp(128, 64),
        {"walker": "sgd", "lr": 0.02, "momentum": 0.9, "batch_size": 32},
    ),
    "mnist-adamw": Setting(
        {"dataset": "mnist", "train": 6000, "test": 4000}, _mlp(128, 64), {"walker": "adamw", "lr": 1e-3, "batch_size": 32}
    ),
    "cifar-momentum": Setting(
        _CIFAR, {"name": "resnet", "depth": 8, "width": 8}, {"walker": "sgd", "lr": 0.05, "momentum": 0.9, "batch_size": 32}
    ),
    "cifar-adamw": Setting(_CIFAR, {"name": "vgg11", "width": 0.125}, {"walker": "adamw", "lr": 1e-3, "batch_size": 32}),
    "text-adamw": Setting(_TEXT, {"name": "gpt", "width": 48, "layers": 2}, {"walker": "adamw", "lr": 2e-3, "batch_size": 16}),
    "text-momentum": Setting(
        _TEXT, {"name": "gpt", "width": 48, "layers": 2}, {"walker": "sgd", "lr": 0.1, "momentum": 0.9, "batch_size": 16}
    ),
}
SEEDS = (0, 1, 2, 3, 4)
PILOT = {
    "pilot-sgd": Setting({"dataset": "digits", "label_noise": 0.3}, _mlp(64, 64), {"walker": "sgd", "lr": 0.1, "batch_size": 16}),
    "pilot-momentum": Setting(
        {"dataset": "digits", "label_noise": 0.3}, _mlp(64, 64), {"walker": "sgd", "lr": 0.02, "momentum": 0.9, "batch_size": 32}
    ),
    "pilot-clean": Setting(
        {"dataset": "digits"}, _mlp(64, 64), {"walker": "sgd", "lr": 0.005, "momentum": 0.9, "batch_size": 32}
    ),
}


def _experiment(setting: Setting, seed: int) -> Experiment:
    """The run, then every decay as a phase of its own, so that each has its own order of the data."""
    decays = [share for share in (*BUDGETS, BRANCH) for _ in range(COPIES)]
    schedule = {"kind": "decay", "shape": "linear"}
    phases = [setting.phase | {"updates": round(share * UPDATES), "schedule": schedule} for share in decays]
    return Experiment(seed=seed, data=setting.data, model=setting.model, phases=[setting.phase | {"updates": UPDATES}, *phases])


def _preconditioner(loop: Loop) -> torch.Tensor:
    parts = []
    for group in loop.optimizer.param_groups:
        for parameter in group["params"]:
            state = loop.optimizer.state[parameter]
            unbiased = state["exp_avg_sq"].double() / (1 - group["betas"][1] ** float(state["step"]))
            parts.append((unbiased.sqrt() + group["eps"]).reshape(-1))
    return torch.cat(parts)


def _recorded(loop: Loop) -> tuple[Trajectory, Averages]:
    averages = Averages()
    settings = {"walker": loop.experiment.phases[0].walker}
    recorder = Recorder(
        None,
        loop.model,
        loop.optimizer,
        loss=loop.loss,
        snapshots=FirstAndLast(),
        live=[averages],
        store="memory",
        settings=settings,
    )
    with recorder:
        while loop.step < UPDATES:
            batch = loop.prepare()
            loop.optimizer.zero_grad()
            torch.autograd.backward(recorder.loss(loop.model, batch))
            loop.optimizer.step()
            loop.step += 1
    return recorder.store.trajectory(), averages  # type: ignore[union-attr]


def _annealed(loop: Loop, frame: Record, phase: int) -> torch.Tensor:
    """Theta at the end of a decay from the key frame."""
    loop.restore(UPDATES, frame.arrays, frame.meta)
    loop.step = sum(loop.lengths[:phase])
    end = loop.step + loop.lengths[phase]
    while loop.step < end:
        loop.advance()
    return loop.snapshot().theta


def one(name: str, seed: int, data_dir: Path) -> list[dict[str, Any]]:
    """Make a run, its forecast and its really annealed copies.

    Args:
        name: of the setting.
        seed: of the run.
        data_dir: folder of the data files.

    Returns:
        A row for each set of data and budget.
    """
    began, setting = time.perf_counter(), (SETTINGS | PILOT)[name]
    loop = Loop(_experiment(setting, seed), data_dir)
    data = loop.data
    with loop.random.installed(1):
        trajectory, averages = _recorded(loop)
        frame = loop.key_frame()
        if setting.phase["walker"] == "adamw":
            scale = _preconditioner(loop)
            trajectory = replace(trajectory, read_preconditioner=lambda _: scale)
    trained = time.perf_counter() - began
    train, held = (
        LossSurface(loop.model, LOSSES["cross_entropy"], pair) for pair in ((data.x, data.y), (data.x_test, data.y_test))
    )
    told = annealing(trajectory, train, held_out=held, budgets=BUDGETS, averages=averages, quiet_steps=True)
    asked = time.perf_counter() - began - trained
    with loop.random.installed(1):
        ends = [_annealed(loop, frame, phase) for phase in range(1, len(loop.lengths))]
    found = losses_at([train, held], ((theta, trajectory.buffers(UPDATES) or None) for theta in ends))
    rows = []
    for d, which in enumerate(("train", "held_out")):
        real = found[d].values.reshape(-1, COPIES)
        for b, budget in enumerate(BUDGETS):
            cell = told.isel(data=d, budget=b)
            row: dict[str, Any] = {"setting": name, "seed": seed, "data": which, "budget": budget}
            row |= {"real": real[b].tolist(), "branch": real[-1].tolist(), "reason": cell["reason"].item()}
            row |= {
                str(k): v.values.tolist()
                for k, v in cell.data_vars.items()
                if v.dtype.kind == "f" and not str(k).endswith("stderr")
            }
            rows.append(row | {"drop_stderr": cell["drop_stderr"].item(), "seconds": [trained, asked]})
    return rows


def cost(name: str, data_dir: Path, *, updates: int = 10_000, examples: int = 2048) -> dict[str, float]:
    """What a forecast costs beside a run of 10^4 updates: averaging in the loop, and the evaluations afterwards.

    Args:
        name: of the setting.
        data_dir: folder of the data files.
        updates: of the run; the loop is timed on 600 of them, and averaging on the same points, in chunks of 50.
        examples: of each surface, at most.

    Returns:
        Shares of the run's time.
    """
    setting, seconds = (SETTINGS | PILOT)[name], {"bare": 0.0, "averaged": 0.0}
    experiment = Experiment(data=setting.data, model=setting.model, phases=[setting.phase | {"updates": 600}])
    loop, averages = Loop(experiment, data_dir), Averages()
    with loop.random.installed(1):
        for chunk in range(12):
            began = time.perf_counter()
            for _ in range(50):
                loop.advance()
            seconds["bare"] += time.perf_counter() - began
            points = [loop.layout.pack(loop.parameters) for _ in range(50)]  # the recorder has this copy anyway
            began = time.perf_counter()
            for k, point in enumerate(points):
                averages.write_iterate(50 * chunk + k + 1, point)
            seconds["averaged"] += time.perf_counter() - began
    data, (x, y) = loop.data, (loop.data.x[:examples], loop.data.y[:examples])
    train, held = (
        LossSurface(loop.model, LOSSES["cross_entropy"], p) for p in ((x, y), (data.x_test[:examples], data.y_test[:examples]))
    )
    theta = loop.snapshot().theta
    began = time.perf_counter()
    losses_at([train, held], [(theta, None)] * 4)
    asked = time.perf_counter() - began
    return {"averaging": seconds["averaged"] / seconds["bare"], "asking": asked / (seconds["bare"] / 600 * updates)}


def main() -> None:
    """Make the runs that are named and keep their rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("setting", choices=[*SETTINGS, *PILOT])
    parser.add_argument("seeds", type=int, nargs="*", help="none: what a forecast costs")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.seeds:
        print(given.setting, cost(given.setting, given.data_dir))
    for seed in given.seeds:
        rows = one(given.setting, seed, given.data_dir)
        kept = json.loads(given.out.read_text()) if given.out.exists() else []
        kept = [row for row in kept if (row["setting"], row["seed"]) != (given.setting, seed)]
        given.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in [*kept, *rows]) + "\n]\n")
        print(given.setting, seed, [round(x, 1) for x in rows[0]["seconds"]])


# --- the table ---------------------------------------------------------------------------------------------------------


def scored(rows: Iterable[dict[str, Any]]) -> list[dict[str, float | str | bool]]:
    """Real and predicted drops of each row, and whether it counts, by the rules above."""
    result: list[dict[str, float | str | bool]] = []
    for row in rows:
        real, now = float(np.mean(row["real"])), row["loss_now"]
        noise = abs(row["real"][0] - row["real"][1]) / 2
        drop = now - real
        result.append(
            {key: row[key] for key in ("setting", "seed", "data", "budget")}
            | {"told": not row["reason"], "real": drop, "predicted": row["drop"], "branch": now - float(np.mean(row["branch"]))}
            | {"counts": drop > max(0.002 * now, 1e-4, 3 * noise), "signed": abs(drop) > 3 * noise}
            | {"windows": now - row["by_windows"], "average": row["height"]}
            | {"covered": row["annealed_low"] <= real <= row["annealed_high"]}
            | {"half_width": (row["annealed_high"] - row["annealed_low"]) / 2, "noise": noise}
        )
    return result


def rows() -> list[dict[str, object]]:
    """Summarise what was measured.

    Returns:
        For each set of data and budget: errors of the forecast and of its rivals, sign and cover.
    """
    kept = [row for row in scored(json.loads(RESULTS.read_text())) if row["setting"] in SETTINGS] if RESULTS.exists() else []
    result: list[dict[str, object]] = []
    for which in ("train", "held_out"):
        for budget in BUDGETS:
            chosen = [row for row in kept if row["data"] == which and row["budget"] == budget]
            result += _lines(chosen, f"{which}, budget {budget:g}") if chosen else []
    return result


def _lines(chosen: list[dict[str, Any]], where: str) -> list[dict[str, object]]:
    counted = [row for row in chosen if row["counts"]]
    settings = sorted({row["setting"] for row in counted})
    error = np.array([abs(row["predicted"] - row["real"]) / row["real"] for row in counted])
    branch = np.array([abs(row["branch"] - row["real"]) / row["real"] for row in counted])
    ratio = {s: np.median([r["real"] / r["branch"] for r in counted if r["setting"] != s]) for s in settings}
    fitted = np.array([abs(row["branch"] * ratio[row["setting"]] - row["real"]) / row["real"] for row in counted])
    own = {s: np.median([e for e, row in zip(error, counted, strict=True) if row["setting"] == s]) for s in settings}
    cover = {s: np.mean([row["covered"] for row in chosen if row["setting"] == s]) for s in {row["setting"] for row in chosen}}
    sure = np.array([row["told"] for row in counted])
    signed = [np.sign(row["predicted"]) == np.sign(row["real"]) for row in chosen if row["signed"]]
    sured = [np.sign(row["predicted"]) == np.sign(row["real"]) for row in chosen if row["signed"] and row["told"]]
    worst, least = max(own, key=lambda s: own[s]), min(cover, key=lambda s: cover[s])
    held = where.startswith("held")
    size = f"{len(counted)} of {len(chosen)} rows count"
    table = [
        ("error of the drop, median", np.median(error), "<= 0.25" if held else "<= 0.10", size),
        ("error of the drop, p90", np.quantile(error, 0.9), "" if held else "<= 0.25", size),
        ("median of the worst setting", own[worst], "" if held else "<= 0.30", worst),
        ("median, rows it says it can tell", np.median(error[sure]) if sure.any() else np.nan, "", f"{sure.sum()} rows"),
        ("sign right", np.mean(signed), ">= 0.90", f"{len(signed)} rows"),
        ("sign right, rows it says it can tell", np.mean(sured) if sured else np.nan, "", f"{len(sured)} rows"),
        ("cover, all settings", np.mean([row["covered"] for row in chosen]), "0.90", f"{len(chosen)} rows"),
        ("cover, least setting", cover[least], ">= 0.80", least),
        ("2 % branch as it is, median", np.median(branch), "", size),
        ("2 % branch x fitted constant, median", np.median(fitted), "", "constant of the other settings"),
    ]
    return [{"what": what, "ratio": float(value), "aim": aim, "setting": f"{where}: {told}"} for what, value, aim, told in table]


if __name__ == "__main__":
    main()
