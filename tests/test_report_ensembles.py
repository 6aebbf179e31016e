"""The page and the commands of an ensemble: members as runs, their average, barriers in words."""

import json
import re
import sys

import pytest

from sgdscope.cli import main
from sgdscope.errors import NotAvailableError
from sgdscope.figures.segments import segments
from sgdscope.report.ensembles import ensemble_section

TOML = """
name = "pair"
seed = 3
data = { dataset = "wine" }
model = { name = "mlp", hidden = [5] }
[[phases]]
lr = 0.2
batch_size = 16
updates = 12
[record]
snapshots = { kind = "every", n = 4 }
[ensemble]
members = 3
workloads = [12, 8, 0]
rate = 0.04
"""


def told(barrier=0.3, **changed):
    members = [
        {"run": "member-0", "updates": 30, "weight": 0.613, "lost": False, "loss": 0.412},
        {"run": "member-1", "updates": 20, "weight": 0.387, "lost": False, "loss": 0.577},
        {"run": "member-2", "updates": 0, "weight": 0.0, "lost": True, "loss": None},
    ]
    line = {"from": 0, "to": 1, "barrier": barrier, "losses": [0.412, 0.577 + barrier, 0.577]}
    base = {"members": members, "sentence": "geometric weights <b>", "loss_average": 0.731, "loss_equal": 0.829}
    return base | {"barrier": barrier, "segments": [line], "alphas": [0, 0.5, 1]} | changed


@pytest.fixture
def sgdscope(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sgdscope", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


def test_run_measure_report_of_an_ensemble(sgdscope, tmp_path):
    (tmp_path / "pair.toml").write_text(TOML)
    code, out, err = sgdscope("run", "pair.toml", "--out", "p", "--jobs", "1", "--json")
    assert code == 0, err
    assert json.loads(out) == {"runs": ["p"]}
    code, out, err = sgdscope("measure", "p", "motion", "--json")
    assert code == 0, err
    measured = json.loads(out)
    assert [m["run"] for m in measured["members"]] == ["p/member-0", "p/member-1"]
    assert all(m["measured"]["motion"] for m in measured["members"])
    assert "p/member-1" in sgdscope("measure", "p", "motion")[1]
    code, out, err = sgdscope("report", "p", "-o", "p.html")
    assert code == 0, err
    page = (tmp_path / "p.html").read_text()
    assert all(f"<h2>{name}</h2>" in page for name in ("member-0", "member-1"))
    assert '<a href="#ensemble-1">p</a>' in page
    assert '<section class="ensemble" id="ensemble-1"><h2>p: members and their average' in page
    assert re.search(r"geometric weights \(rate 0.04\) over 3 of 3 members with 0 to 12 updates", page)


def test_the_ensembles_are_listed(sgdscope):
    code, out, err = sgdscope("list", "ensembles", "--json")
    assert code == 0, err
    assert "weighted_parallel" in {row["name"] for row in json.loads(out)}


@pytest.mark.parametrize(
    ("barrier", "word"),
    [(0.3, "A barrier lies between members"), (0.00578, "A barrier"), (0.00576, "No barrier lies"), (-0.2, "No barrier lies")],
)
def test_the_words_on_barriers(barrier, word):
    page = ensemble_section("pair", told(barrier))
    assert word in page


def test_the_numbers_of_the_section():
    page = ensemble_section("a<b", told())
    assert "a&lt;b: members" in page
    assert "geometric weights &lt;b&gt;" in page
    assert "training loss is 0.731; that of the plain average 0.829, of the members 0.412 to 0.577" in page
    assert "rises by up to 0.3 above" in page
    assert '<tr><td>member-0</td><td class="n">30</td><td class="n">0.613</td><td class="n">0.412</td></tr>' in page
    assert "member-2 (lost)</td>" in page


def test_half_a_file_is_told_on_the_page():
    assert "ensemble.json of x is not whole" in ensemble_section("x", {"members": [{"run": "member-0"}]})
    page = ensemble_section("x", told() | {"barrier": None, "segments": []})
    assert "a segment needs two members" in page
    assert "arrier lies" not in page


def test_the_segments_are_drawn():
    figure = segments(told())
    assert [list(trace.y) for trace in figure.data] == [[0.412, 0.877, 0.577]]
    assert list(figure.data[0].x) == [0, 0.5, 1]
    assert figure.data[0].name == "member 0 to 1"
    with pytest.raises(NotAvailableError, match="two members"):
        segments({"segments": []})
