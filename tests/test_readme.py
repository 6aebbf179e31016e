"""What the README says works as written."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_code_of_the_readme_runs(monkeypatch, tmp_path, reduction):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    generator = torch.Generator().manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    x, y = torch.randn(120, 4, generator=generator), torch.randint(0, 3, (120,), generator=generator)
    data = torch.utils.data.TensorDataset(x, y)
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.3),
        "loader": torch.utils.data.DataLoader(data, batch_size=20, shuffle=True, generator=generator),
        "data": data,
        "loss": lambda m, batch: torch.nn.functional.cross_entropy(m(batch[0]), batch[1], reduction=reduction),
    }
    for block in blocks:
        exec(block, names)
    assert names["measured"]["curvature"]["edge"].sizes["step"] == 1
    assert names["measured"]["sharpest"].sizes["rank"] == 5
    assert [v.claim for v in names["verdicts"]] == ["W1", "W2", "W3", "W4"]
    assert "alpha" in (tmp_path / "walk.html").read_text()
    assert float(names["noise"]["trace"][-1]) > 0
    assert len(names["advice"].lines) >= 4
    assert names["said"].sentence.startswith("a is higher by")


def test_every_name_in_the_table_of_numbers_is_measured():
    from sgdscope.landscapes import Quadratic, walk
    from sgdscope.measure import measure

    hessian = torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64))
    surface = Quadratic(hessian, torch.tensor([1.0, -3.0], dtype=torch.float64))
    walked = walk(surface, lr=0.7, updates=12, start=torch.tensor([2.0, 1.0], dtype=torch.float64))
    tree = measure(walked, surface, ["valley", "motion", "curvature", "sharpest", "batch", "noise"])
    measured = {name for group in tree.children.values() for name in group.data_vars}
    table = README.split("## What the numbers mean")[1].split("## Limits")[0]
    named = {n for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for n in re.findall(r"`(\w+)`", row)}
    assert len(named) >= 7
    assert named <= measured


def test_files_that_the_readme_points_to_exist():
    targets = [t for t in re.findall(r"\]\(([^)#:]+)\)", README) if not t.startswith("http")]
    assert len(targets) >= 3
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_examples_are_valid_experiments():
    from sgdscope.experiment import load_toml

    files = sorted((ROOT / "examples").glob("*.toml"))
    assert {f.stem for f in files} >= {"mnist_mlp", "digits_mlp"}
    assert all(load_toml(f).expand() for f in files)
