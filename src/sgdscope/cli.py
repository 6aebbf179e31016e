"""The command line: demo, run, measure, compare, check, report, diagnose, list.

Every command takes ``--json``. Results go to stdout, progress and errors to stderr. Exit 0 done, 1 failed, 2 wrong use.
Nothing heavy is imported before a command needs it: ``sgdscope --help`` does not import torch.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgdscope.errors import ArgumentError, DataError, SgdscopeError, UnknownNameError

if TYPE_CHECKING:
    from sgdscope.contracts import Verdict
    from sgdscope.records import Surface, Trajectory

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="A microscope for SGD.")

INTERRUPTED = 130  # with which typer leaves on Ctrl-C, without a word
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, for machines.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder with MNIST, CIFAR-10, tables, text.")]
SurfacePath = Annotated[str | None, typer.Option("--surface", help="pkg.module:function that returns a LossSurface.")]
Run = Annotated[Path, typer.Argument(help="A run directory.")]
Jobs = Annotated[int | None, typer.Option(help="Worker processes; default: one a core.")]


class Preset(StrEnum):
    """How much is spent on a claim."""

    quick = "quick"
    standard = "standard"
    paper = "paper"


class Engine(StrEnum):
    """Backend of joblib for sweeps."""

    loky = "loky"
    ray = "ray"
    dask = "dask"


class Catalogue(StrEnum):
    """What can be listed."""

    quantities = "quantities"
    walkers = "walkers"
    ensembles = "ensembles"
    claims = "claims"
    datasets = "datasets"
    models = "models"
    stores = "stores"


def main() -> None:
    """Run the command line and turn errors of ours into one line and an exit code."""
    try:
        app()
    except (ArgumentError, DataError, UnknownNameError) as error:
        _say(f"sgdscope: {error}")
        raise SystemExit(2) from None
    except SgdscopeError as error:
        _say(f"sgdscope: {error}")
        raise SystemExit(1) from None
    except SystemExit as stop:
        if stop.code != INTERRUPTED:
            raise
        _say("sgdscope: interrupted; what was recorded is kept, the same command goes on from there")
        raise SystemExit(1) from None


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the report.")] = Path("demo"),
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Train on bundled real data, record, measure, judge, write the report; say what was seen in five lines."""
    from sgdscope.demonstration import demonstrate

    with _progress("demo") as progress:
        seen = demonstrate(out, jobs=jobs, progress=progress)
    _print(seen.to_json(), "\n".join([*seen.lines, f"Report: {seen.page}"]), as_json)


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="A TOML file that describes the experiment.")],
    out: Annotated[Path | None, typer.Option(help="Run directory (of a sweep: its parent); default runs/NAME.")] = None,
    data_dir: DataDir = None,
    jobs: Jobs = None,
    engine: Engine = Engine.loky,
    as_json: AsJson = False,
) -> None:
    """Make a recorded run, or each run of a grid; a run that was killed goes on where it was."""
    from sgdscope import experiment as experiments

    described = experiments.load_toml(experiment)
    target = out or Path("runs") / described.name
    expanded = described.expand()
    with _progress(described.name) as progress:
        if described.ensemble is not None:
            folders = [target] if len(expanded) == 1 else [target / one.name for one in expanded]
            paths = [
                experiments.run_ensemble(one, path, data_dir=data_dir, jobs=jobs, engine=engine.value, progress=progress)
                for one, path in zip(expanded, folders, strict=True)
            ]
        elif len(expanded) == 1:
            paths = [experiments.run(expanded[0], target, data_dir=data_dir, progress=progress)]
        else:
            paths = experiments.sweep(expanded, target, jobs=jobs, engine=engine.value, data_dir=data_dir)
    _print({"runs": [str(p) for p in paths]}, "\n".join(str(p) for p in paths), as_json)


@app.command()
def measure(
    run: Run,
    quantity: Annotated[list[str] | None, typer.Argument(help="Quantities; default: all that can be measured.")] = None,
    surface: SurfacePath = None,
    data_dir: DataDir = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also a line for each variable.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure quantities over a recorded run, or over each member of an ensemble, and keep them with it."""
    from sgdscope.contracts import Evidence, quantities
    from sgdscope.experiment import read_ensemble
    from sgdscope.measure import measure as measure_run
    from sgdscope.report.words import findings

    names = quantity or list(quantities)
    told = read_ensemble(run)
    runs = [run] if told is None else [path for member in told["members"] if (path := run / member["run"]).is_dir()]
    found: list[dict[str, Any]] = []
    tables: list[str] = []
    for path in runs:
        trajectory = _trajectory(path, data_dir)
        measured = measure_run(trajectory, _surface(trajectory, surface, data_dir), names)
        data = {name: measured[name].to_dataset() for name in names}
        found.append({"run": str(path), "measured": {name: _summary(own) for name, own in data.items()}})
        told_lines = findings(Evidence(trajectory.settings, trajectory.steps, data))
        lines = [f"{name:<9} {said}" for name, said in told_lines.items()] + (
            [_table_of(found[-1]["measured"])] if verbose else []
        )
        tables.append("\n".join(lines))
    whole = tables[0] if told is None else "\n".join(f"{one['run']}\n{table}" for one, table in zip(found, tables, strict=True))
    whole += "" if verbose else "\n(a ± b: standard error; [a, b]: 95 % interval; --verbose lists every variable)"
    _print(found[0] if told is None else {"run": str(run), "members": found}, whole, as_json)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="A run directory.")],
    run_b: Annotated[Path, typer.Argument(help="Another one, of the same network and data.")],
    lr: Annotated[float | None, typer.Option(help="Of the SGD that is asked about; default: run A's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Likewise.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Likewise.")] = None,
    k: Annotated[int, typer.Option(help="Eigenvalues at each point.")] = 10,
    damping: Annotated[float, typer.Option(help="Eigenvalues up to it are left out of the width.")] = 0.0,
    surface: SurfacePath = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Hold the last points of two runs against each other: height, width, barrier, and which of them SGD's noise prefers."""
    from sgdscope import comparison

    a, b = (_trajectory(path, data_dir) for path in (run_a, run_b))
    _check_alike(a, b, surface)
    ends = [(run.theta(last).double(), run.buffers(last)) for run in (a, b) for last in [int(run.snapshot_steps[-1])]]
    found = comparison.compare(
        _surface(a, surface, data_dir),
        *ends,
        lr=float(_asked(a, "lr", lr)),
        batch_size=int(_asked(a, "batch_size", batch_size)),
        momentum=float(a.settings.get("momentum") or 0.0) if momentum is None else momentum,
        k=k,
        damping=damping,
    )
    _print(
        {"a": str(run_a), "b": str(run_b), "comparison": found.to_json()}, f"a = {run_a}, b = {run_b}: {found.sentence}", as_json
    )


@app.command()
def check(
    claim: Annotated[list[str] | None, typer.Argument(help="Claims such as W1; default: all that can be asked.")] = None,
    paper: Annotated[str | None, typer.Option(help="All claims of a paper, such as walk_with_sgd.")] = None,
    preset: Annotated[Preset, typer.Option(help="How much is spent.")] = Preset.quick,
    run: Annotated[Path | None, typer.Option(help="Judge this recorded run.")] = None,
    surface: SurfacePath = None,
    experiment: Annotated[str | None, typer.Option(help="TOML file, or pkg.module:function.")] = None,
    dataset: Annotated[str | None, typer.Option(help="A name, or FILE.csv, for the claims' experiments.")] = None,
    data_dir: DataDir = None,
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    controls: Annotated[bool, typer.Option("--controls", help="Also judge runs on which the answer is known.")] = False,
    compat: Annotated[str | None, typer.Option(help="xing2018: also what the released code would have printed.")] = None,
    engine: Engine = Engine.loky,
    jobs: Jobs = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the experiments' runs; default: a temporary one.")] = None,
    page: Annotated[Path | None, typer.Option(help="Also write a page of verdicts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Test claims; exit 0 whatever the verdicts, 1 if a check could not run."""
    from sgdscope import checks

    wanted = checks.chosen(claim, paper=paper, scope="run" if run else None)
    trajectory = _trajectory(run, data_dir) if run else None
    with _progress("check") as progress:
        verdicts = checks.check(
            wanted,
            run=trajectory,
            surface=_surface(trajectory, surface, data_dir) if trajectory else None,
            experiment=_experiment(experiment),
            preset=preset.value,
            seed=seed,
            dataset=dataset,
            data_dir=data_dir,
            compat=compat,
            engine=engine.value,
            jobs=jobs,
            out=out,
            progress=progress,
        )
        known = checks.control_verdicts(wanted, seed) if controls else []
    told = checks.to_json(verdicts, known)
    if page:
        from sgdscope.report import page_of_verdicts

        page_of_verdicts(verdicts, told["controls"], page)
    _print(told, _verdict_lines(verdicts, known), as_json)


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(help="One or more run directories.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page.")] = Path("report.html"),
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page."""
    from sgdscope.report import report as write_page

    older = out.exists()
    page = write_page(run, out)
    replaced = " (an older one was replaced)" if older else ""
    _print({"report": str(page), "replaced": older}, f"Report: {page}{replaced}", as_json)


@app.command()
def diagnose(
    run: Run,
    surface: Annotated[
        str | None, typer.Option("--surface", help="pkg.module:function that returns a LossSurface, or (train, held-out).")
    ] = None,
    data_dir: DataDir = None,
    budget: Annotated[list[float] | None, typer.Option(help="Updates of the decay over updates so far; may be repeated.")] = None,
    shape: Annotated[str, typer.Option(help="Of the decay: linear, cosine, sqrt, hold.")] = "linear",
    floor: Annotated[float, typer.Option(help="Share of the learning rate that is left in the end.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Give advice with its evidence: learning rate, noise, batch size, and what loss annealing now would give."""
    from sgdscope import diagnosis
    from sgdscope.experiment import Experiment

    trajectory = _trajectory(run, data_dir)
    if not trajectory.steps.sizes.get("step", 0):
        raise ArgumentError(f"RUN: expected a run with updates, {run} has none; give one that took some, or let it train first")
    described = trajectory.settings.get("experiment")
    if surface is None and described is not None:
        found: Any = diagnosis.surfaces(Experiment.model_validate(described), data_dir)
    else:
        found = _surface(trajectory, surface, data_dir)
    train, held_out = found if isinstance(found, tuple) else (found, None)
    told = diagnosis.diagnose(trajectory, train, held_out=held_out, budgets=budget or (0.1, 0.2), shape=shape, floor=floor)
    _print(
        {"run": str(run)} | told.to_json(), "\n".join([f"At update {told.step} ([a, b]: 95 % intervals):", *told.lines]), as_json
    )


@app.command("list")
def list_catalogue(what: Annotated[Catalogue, typer.Argument(help="Which catalogue.")], as_json: AsJson = False) -> None:
    """List what there is."""
    rows = _rows(what)
    width = max((len(str(r.get("id", r.get("name")))) for r in rows), default=0)
    _print(rows, "\n".join(f"{r.get('id', r.get('name')):<{width}}  {r['description']}" for r in rows), as_json)


def _rows(what: Catalogue) -> list[dict[str, Any]]:
    if what in {Catalogue.datasets, Catalogue.models}:
        module = importlib.import_module(f"sgdscope.{what.value}")
        return [dict(row) for row in module.catalogue()]
    contracts = importlib.import_module("sgdscope.contracts")
    entries = getattr(contracts, what.value)
    if what is Catalogue.claims:
        return [
            {"id": e.id, "paper": e.paper, "scope": e.scope, "description": e.sentence, "statistic": e.statistic}
            | {"threshold": e.threshold, "source": str(e.source)}
            for e in sorted(entries.values(), key=_in_the_paper)
        ]
    return [{"name": name, "description": _first_sentence(entry)} for name, entry in entries.items()]


def _in_the_paper(claim: Any) -> tuple[str, int]:
    """Where a claim stands in a list: by the letters of its id, then by its number (W2 before W10)."""
    letters = claim.id.rstrip("0123456789")
    return letters, int(claim.id[len(letters) :] or 0)


def _first_sentence(entry: Any) -> str:
    thing = getattr(entry, "cls", None) or entry.measure
    return (thing.__doc__ or "").strip().split("\n", 1)[0]


def _trajectory(run: Path, data_dir: Path | None) -> Trajectory:
    from sgdscope.runs import open_trajectory

    return open_trajectory(run, data_dir=data_dir)


def _surface(trajectory: Trajectory, path: str | None, data_dir: Path | None) -> Surface:
    """The surface named on the command line, or that of the experiment that made the run."""
    if path is not None:
        made: Surface = _imported(path, "--surface")()
        return made
    from sgdscope.experiment import Experiment, surface_of

    described = trajectory.settings.get("experiment")
    if described is None:
        _refuse_average(trajectory.path)
        raise ArgumentError(
            "--surface: this run was not made by 'sgdscope run', so its model and data are not known; "
            "expected pkg.module:function that returns a sgdscope.LossSurface of them"
        )
    return surface_of(Experiment.model_validate(described), data_dir)


def _refuse_average(run: Path | None) -> None:
    """Say of the average of an ensemble that it is a point, and which runs walk."""
    from sgdscope.experiment import read_ensemble

    told = None if run is None else read_ensemble(run.parent)
    if run is not None and told is not None and run.name not in {member["run"] for member in told["members"]}:
        raise ArgumentError(
            f"RUN: {run} is the average of an ensemble, points that no walk joins; give one of its members, such as "
            f"{run.parent / told['members'][0]['run']}, or name --surface to look at the average's points"
        )


def _check_alike(a: Trajectory, b: Trajectory, surface: str | None) -> None:
    """Refuse two runs whose points are not of one loss."""
    if a.header.layout != b.header.layout:
        raise ArgumentError("RUN_B: expected a run with the parameters of RUN_A, got others; compare two runs of one network")
    if surface is not None:
        return
    made = [run.settings.get("experiment") or {} for run in (a, b)]
    data = [(run.settings.get("fingerprint") or {}).get("data") for run in (a, b)]
    if data[0] != data[1] or any(made[0].get(key) != made[1].get(key) for key in ("model", "loss")):
        raise ArgumentError(
            "RUN_B: expected a run of RUN_A's network, loss and data, got another; --surface names a loss for both"
        )


def _asked(run: Trajectory, name: str, given: float | None) -> float:
    """What was given, or the run's own number."""
    if given is not None:
        return given
    try:
        return float(run.settings[name])
    except (KeyError, TypeError, ValueError):
        option = f"--{name.replace('_', '-')}"
        raise ArgumentError(f"{option}: RUN_A does not say it ({run.settings.get(name)!r}); expected a number") from None


def _experiment(given: str | None) -> Any:
    if given is None or Path(given).suffix == ".toml":
        return None if given is None else Path(given)
    return _imported(given, "--experiment")


def _imported(path: str, option: str) -> Callable[..., Any]:
    """Import what the user named on the command line; the working directory is searched first."""
    module, colon, name = path.partition(":")
    if not colon or not name:
        raise ArgumentError(f"{option}: expected pkg.module:function, got '{path}'")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            raise ArgumentError(f"{option}: there is no module '{error.name}' here ({Path.cwd()})") from None
        raise
    except AttributeError:
        raise ArgumentError(f"{option}: module '{module}' has no function '{name}'") from None
    finally:
        sys.path.pop(0)
    return found


def _summary(measured: Any) -> dict[str, dict[str, Any]]:
    """Mean over the finite values of each variable, with its unit and how many there were."""
    import numpy as np

    summary = {}
    for name, variable in measured.data_vars.items():
        if variable.dtype.kind != "f" or name.endswith(("_stderr", "_outcome")):
            continue
        finite = variable.values[np.isfinite(variable.values)]
        mean = float(finite.mean()) if finite.size else None
        summary[str(name)] = {"mean": mean, "n": int(finite.size), "units": variable.attrs.get("units", "1")}
    return summary


def _table_of(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = [(q, name, row) for q, variables in summary.items() for name, row in variables.items()]
    mean = [("-" if row["mean"] is None else f"{row['mean']:.6g}") for _, _, row in rows]
    return "\n".join(f"{q:<8} {n:<28} {m:>14} {r['units']:<12} n={r['n']}" for (q, n, r), m in zip(rows, mean, strict=True))


def _verdict_lines(verdicts: list[Verdict], controls: list[tuple[str, str, Verdict]]) -> str:
    lines = [f"{v.claim:<4} {v.verdict:<13} {v.reason}" for v in verdicts]
    return "\n".join(lines + [f"{c:<4} control {kind:<9} {v.verdict:<13} {v.reason}" for c, kind, v in controls])


def _print(data: Any, text: str, as_json: bool) -> None:
    typer.echo(json.dumps(data, indent=1, allow_nan=False) if as_json else text)


def _say(text: str) -> None:
    typer.echo(text, err=True)


@contextmanager
def _progress(title: str) -> Generator[Callable[[str, float], None]]:
    """A bar on stderr; what is passed down is called with a sentence and the share that is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=1.0)

        def advance(sentence: str, share: float) -> None:
            bar.update(task, description=sentence, completed=share)

        yield advance
