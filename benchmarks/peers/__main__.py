"""Run ours and the peers on the same work and print ratios: medians over repeats, then over training seeds."""

import argparse
import dataclasses
import json
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.peers import RESULTS
from benchmarks.peers.environments import interpreters
from benchmarks.peers.session import Row, Session
from benchmarks.peers.tasks import density, eigenpairs, live, trace, tracking
from benchmarks.peers.works import FOLDER, MAIN, SEEDS, STAGES

TASKS = {
    "eigenpairs": eigenpairs.run,
    "memory": eigenpairs.memory,
    "trace": trace.run,
    "density": density.run,
    "tracking": tracking.run,
    "live": live.run,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--task", action="append", choices=TASKS, help="only this task (may be repeated)")
    parser.add_argument("--net", action="append", choices=MAIN, help="only this network (may be repeated)")
    parser.add_argument("--stage", action="append", choices=STAGES, help="only this stage of training (may be repeated)")
    parser.add_argument("--seed", action="append", type=int, choices=SEEDS, help="only this training seed (may be repeated)")
    parser.add_argument("--repeats", type=int, help="of timed tasks; 8 on the MLP, 1 or 2 on the others")
    parser.add_argument("--updates", type=int, help="of a tracked burst; 100")
    parser.add_argument("--quick", action="store_true", help="the MLP in mid training, one seed, 2 repeats, bursts of 10")
    parser.add_argument("--data-dir", type=Path, help="folder of the data files; without it only the MLP")
    return parser.parse_args()


def _summary(rows: list[Row]) -> list[dict[str, object]]:
    """Median and range over training seeds."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.net, row.stage, row.what), []).append(row)
    table = []
    for (task, net, stage, what), found in groups.items():
        ratios = [row.ratio for row in found]
        spread = {"ratio": median(ratios), "low": min(ratios), "high": max(ratios), "points": len(ratios)}
        table.append({"task": task, "net": net, "stage": stage, "what": what, **spread, "note": found[0].note})
    return table


def _show(table: list[dict[str, object]]) -> None:
    shown = Table(
        title=f"ours / peer, torch {torch.__version__}, 1 thread; processor time with set-up; [range over training seeds]"
    )
    for column in ("task", "network", "what", "ratio", "range", "n"):
        shown.add_column(column)
    for row in table:
        span = f"[{row['low']:.3g}..{row['high']:.3g}]"
        where = f"{row['net']} {row['stage']}"
        shown.add_row(str(row["task"]), where, str(row["what"]), f"{row['ratio']:.3g}", span, str(row["points"]))
    Console(width=150).print(shown)


def main() -> None:
    """Measure, print the table and write it to `RESULTS`."""
    asked = _arguments()
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    session = Session(
        interpreters(),
        asked.data_dir,
        nets=asked.net or (("mlp",) if asked.quick else MAIN),
        stages=asked.stage or (("mid",) if asked.quick else STAGES),
        seeds=asked.seed or (SEEDS[:1] if asked.quick else SEEDS),
        repeats=asked.repeats or (2 if asked.quick else None),
    )
    try:
        for name in asked.task or TASKS:
            print(f"{name}:", flush=True)
            if name == "tracking":
                tracking.run(session, asked.updates or (10 if asked.quick else None))
            else:
                TASKS[name](session)
    finally:
        session.close()
        table = _summary(session.rows)
        RESULTS.write_text(json.dumps({"table": table, "rows": [dataclasses.asdict(row) for row in session.rows]}, indent=1))
        _show(table)


if __name__ == "__main__":
    main()
