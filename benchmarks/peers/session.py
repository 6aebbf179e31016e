"""The driver's side: one process a tool, rounds in rotated order, rows of ratios."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.environments import ROOT
from benchmarks.peers.works import FOLDER, NETS, Point, points

THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR")
Answer = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One ratio at one point.

    Attributes:
        task: its name.
        net: network.
        stage: of training.
        seed: of training.
        what: what is divided by what.
        ratio: the ratio, or a pure number where `what` says so.
        note: what else one must know to read it.
    """

    task: str
    net: str
    stage: str
    seed: int
    what: str
    ratio: float
    note: str = ""


@dataclass(frozen=True)
class Entrant:
    """A tool with options in a round, which it sits out after so many `repeats`."""

    tool: str
    options: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 100


class Worker:
    """A tool's process.

    Args:
        tool: its name.
        python: of its environment.
    """

    def __init__(self, tool: str, python: Path) -> None:
        pinned = {f"{name}_NUM_THREADS": "1" for name in THREADS}
        paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
        command = [str(python), "-W", "ignore", "-m", f"benchmarks.peers.tools.{tool}"]
        self._log = (FOLDER / f"{tool}.log").open("a")
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | pinned | paths,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.fault = None if self._read().get("ready") else "does not start"

    def _read(self) -> Answer:
        line = self._process.stdout.readline() if self._process.stdout else ""
        return json.loads(line) if line else {"error": f"ended, see {self._log.name}"}

    def ask(self, task: str, point: Point, chunk: int, options: Mapping[str, Any], save: Path | None = None) -> Answer:
        """Have a task done.

        Args:
            task: its name.
            point: where.
            chunk: examples at once; 0 for all.
            options: of the task.
            save: where eigenpairs go.

        Returns:
            The answer; ``error`` where there is none.
        """
        if self.fault or self._process.stdin is None:
            return {"error": self.fault}
        request = {"task": task, "work": str(point.path), "chunk": chunk, "options": dict(options), "save": save and str(save)}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"error": f"ended, see {self._log.name}"}
        return self._read()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._log.close()


class Session:
    """The tools that are there, the points that were asked for, and the rows so far.

    Args:
        pythons: tool -> its Python.
        data_dir: where the data files are.
        nets: those asked for.
        stages: of training.
        seeds: of training.
        repeats: of timed tasks; None for the network's own.
    """

    def __init__(
        self,
        pythons: Mapping[str, Path],
        data_dir: Path | None,
        *,
        nets: Sequence[str],
        stages: Sequence[str],
        seeds: Sequence[int],
        repeats: int | None,
    ) -> None:
        self._pythons, self._data_dir, self._repeats = pythons, data_dir, repeats
        self.nets, self.stages, self.seeds = tuple(nets), tuple(stages), tuple(seeds)
        self._workers: dict[str, Worker] = {}
        self._warm: set[str] = set()
        self._chunks: dict[str, int] = {}
        self.rows: list[Row] = []

    # --- points -----------------------------------------------------------------------------------------------------------

    def points(self, net: str, *, stages: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> list[Point]:
        """The points of a network, of all stages and seeds that were asked for unless told otherwise."""
        return points(net, self._data_dir, stages=tuple(stages or self.stages), seeds=tuple(seeds or self.seeds))

    def chunk(self, point: Point) -> int:
        """How many examples ours takes at once on this network, which the peers are given too."""
        if point.net not in self._chunks:
            self._chunks[point.net] = self.worker("ours").ask("chunk", point, 0, {}).get("chunk", 0)
        return self._chunks[point.net]

    # --- tools ------------------------------------------------------------------------------------------------------------

    def has(self, tool: str) -> bool:
        """Whether a tool is there."""
        return tool in self._pythons

    def worker(self, tool: str) -> Worker:
        """The tool's process, started once."""
        if tool not in self._workers:
            self._workers[tool] = Worker(tool, self._pythons[tool])
        return self._workers[tool]

    @contextmanager
    def fresh(self, tool: str) -> Generator[Worker, None, None]:
        """A process of its own."""
        worker = Worker(tool, self._pythons[tool])
        try:
            yield worker
        finally:
            worker.close()

    def ask(self, task: str, point: Point, entrant: Entrant, save: Path | None = None, **more: Any) -> Answer:
        """Have one task done by a warm process; what fails is said."""
        found = self.worker(entrant.tool).ask(task, point, self.chunk(point), {**entrant.options, **more}, save)
        if "error" in found:
            print(f"  {entrant.tool}, {task} on {point.net} {point.stage}: no answer: {found['error']}", flush=True)
        return found

    def rounds(self, task: str, point: Point, entrants: Mapping[str, Entrant]) -> dict[str, list[Answer]]:
        """Have a task done several times by each, the order rotated, after one to warm up on the smallest network.

        Args:
            task: its name; every entrant takes `seed`, the number of the round.
            point: where.
            entrants: label -> who.

        Returns:
            label -> the answers; those without any answer are left out.
        """
        there = {label: entrant for label, entrant in entrants.items() if self.has(entrant.tool)}
        answers: dict[str, list[Answer]] = {label: [] for label in there}
        for label, entrant in there.items():
            if f"{task} {label}" not in self._warm:
                self._warm.add(f"{task} {label}")
                self.ask(task, self.points("small", stages=("mid",), seeds=(1,))[0], entrant, seed=0)
        labels = list(there)
        for repeat in range(self._repeats or NETS[point.net].repeats):
            for label in labels[repeat % len(labels) :] + labels[: repeat % len(labels)]:
                if repeat < there[label].repeats:
                    answers[label].append(self.ask(task, point, there[label], pairs_of(label), seed=repeat))
        return {label: good for label, found in answers.items() if (good := [a for a in found if "error" not in a])}

    def row(self, task: str, point: Point, what: str, ratio: float, note: str = "") -> None:
        """Add a row."""
        self.rows.append(Row(task, point.net, point.stage, point.seed, what, ratio, note))
        print(f"  {task} {point.net} {point.stage} {point.seed}: {what} = {ratio:.3g}  {note}", flush=True)

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()


def pairs_of(label: str) -> Path:
    """Where the last eigenpairs of an entrant are."""
    return FOLDER / f"pairs {label}.pt"


def middle(answers: Sequence[Answer], name: str = "seconds") -> float:
    """The median of a field."""
    return float(median(answer[name] for answer in answers))
