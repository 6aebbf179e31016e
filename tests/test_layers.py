"""Imports point down the rows of the house; files on one row and files of one folder do not import each other."""

import ast
from pathlib import Path

import pytest

ROWS = [
    {"errors"},
    {"ranges"},
    {"vector", "statistics", "curves", "privacy", "notation"},
    {"records", "surface", "spectra", "theory"},
    {
        "contracts",
        "landscapes",
        "datasets",
        "models",
        "files",
        "directions",
        "wrapping",
        "gossip",
        "bodies",
        "replicas",
        "covariance",
    },
    {"stores"},
    {"recorder", "walkers", "ensembles", "quantities"},
    {"experiment", "measure"},
    {"runs", "comparison", "escapes", "chains", "forecast"},
    {"evidence"},
    {"claims"},
    {"checks", "diagnosis", "figures", "integrations"},
    {"report"},
    {"demonstration"},
    {"cli"},
]
ROW = {name: number for number, row in enumerate(ROWS) for name in row}
SAME_ROW = {("surface", "records")}  # records holds the protocol that surface returns
SOURCE = Path(__file__).parents[1] / "src" / "sgdscope"
FILES = [p for p in sorted(SOURCE.rglob("*.py")) if p.parent != SOURCE or p.name not in {"__init__.py", "__main__.py"}]


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> list[tuple[str, ...]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [tuple(a.name.split(".")) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = tuple((node.module or "").split("."))
            found += [(*names, a.name) for a in node.names]
    return [parts[1:] for parts in found if parts[0] == "sgdscope" and len(parts) > 1]


def is_top_folder(path: Path) -> bool:
    """A top file that grew into a folder may import its own parts."""
    return room(path) not in {"stores", "walkers", "ensembles", "quantities", "claims", "integrations"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path):
    own = room(path)
    assert own in ROW, f"{own} has no row in DESIGN"
    for parts in imported(path):
        other = parts[0]
        if other == "__version__" or (other == own and is_top_folder(path)) or (own, other) in SAME_ROW:
            continue
        assert ROW[other] < ROW[own], f"{path.name} (row {ROW[own] + 1}) imports {'.'.join(parts)} (row {ROW[other] + 1})"


def test_something_was_checked():
    assert len(FILES) >= 9
    assert sum(len(imported(p)) for p in FILES) >= 5
