"""Run each file's `rows()` and print one table; a row is ``{"what", "ratio", "aim", "setting"}``."""

import importlib
import pkgutil
import sys

import torch
from rich.console import Console
from rich.table import Table

import benchmarks


def main(names: list[str]) -> None:
    """Measure and print.

    Args:
        names: of benchmark files; all if empty.
    """
    found = [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_")]
    table = Table(title=f"torch {torch.__version__}; ratios within one run, medians of interleaved repetitions")
    for column in ("benchmark", "what", "ratio", "aim", "setting"):
        table.add_column(column)
    for name in names or found:
        for row in importlib.import_module(f"benchmarks.{name}").rows():
            table.add_row(name, row["what"], f"{row['ratio']:.3g}", row["aim"], row["setting"])
    Console(width=160).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
