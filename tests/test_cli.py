"""The command line: exit codes, JSON, messages; the demo as a newcomer types it."""

import json
import subprocess
import sys

import pytest
import torch

from sgdscope.cli import main
from sgdscope.recorder import Recorder

TINY = """
name = "tiny"
seed = 4

[data]
dataset = "wine"

[model]
name = "mlp"
hidden = [6]

[[phases]]
walker = "sgd"
lr = 0.2
batch_size = 16
updates = 12

[record]
snapshots = { kind = "every", n = 1 }
"""


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


def test_help_does_not_import_torch():
    code = "import sys; import sgdscope.cli; assert not {'torch', 'numpy', 'zarr'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert subprocess.run([sys.executable, "-c", "import torch; " + code], capture_output=True).returncode == 1


@pytest.mark.parametrize("what", ["quantities", "walkers", "ensembles", "claims", "datasets", "models", "stores"])
def test_every_catalogue_is_listed(sgdscope, what):
    code, out, _ = sgdscope("list", what, "--json")
    rows = json.loads(out)
    assert code == 0
    assert isinstance(rows, list)
    assert all(row.get("id") or row.get("name") for row in rows)
    assert all(row["description"] for row in rows)
    expected = {
        "quantities": "valley",
        "claims": "W11",
        "datasets": "digits",
        "models": "mlp",
        "stores": "zarr",
        "walkers": "sgd",
    }
    assert what == "ensembles" or expected[what] in {row.get("id") or row.get("name") for row in rows}


def test_run_measure_check_report(sgdscope, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    code, out, err = sgdscope("run", "tiny.toml", "--out", "a", "--json")
    assert code == 0, err
    assert json.loads(out) == {"runs": ["a"]}
    code, out, err = sgdscope("measure", "a", "valley", "motion", "--json")
    assert code == 0, err
    measured = json.loads(out)["measured"]
    assert measured["valley"]["loss_start"]["n"] == 12
    assert measured["valley"]["height"]["units"] == "loss"
    code, out, err = sgdscope("check", "W1", "--run", "a", "--json")
    assert code == 0, err
    verdict = json.loads(out)["verdicts"][0]
    assert verdict["claim"] == "W1"
    assert verdict["verdict"] in {"supported", "contradicted", "undecided", "not in regime"}
    code, out, err = sgdscope("report", "a", "-o", "a.html")
    assert code == 0, err
    assert (tmp_path / "a.html").stat().st_size > 1e6


def test_wrong_use_exits_with_two_and_says_what_to_do(sgdscope, tmp_path):
    code, _, err = sgdscope("measure", "nowhere")
    assert code in {1, 2}
    assert "nowhere" in err
    code, _, err = sgdscope("check", "W99")
    assert (code, "no claim is called 'W99'" in err) == (2, True)
    (tmp_path / "bad.toml").write_text(TINY.replace("lr = 0.2", "lr = -0.2"))
    code, _, err = sgdscope("run", "bad.toml")
    assert (code, "lr" in err, "-0.2" in err) == (2, True, True)
    broken = TINY + "\nname = = 3\n"
    (tmp_path / "broken.toml").write_text(broken)
    code, _, err = sgdscope("run", "broken.toml")
    line = broken.split("\n").index("name = = 3") + 1
    assert (code, f"line {line}," in err) == (2, True), err
    code, _, err = sgdscope("check", "W1", "--run", "a", "--surface", "json")
    assert code in {1, 2}
    assert "--surface" in err or "a" in err
    assert sgdscope("fly")[0] == 2


def test_controls_are_listed_beside_the_verdicts(sgdscope, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    assert sgdscope("run", "tiny.toml", "--out", "a")[0] == 0
    code, out, err = sgdscope("check", "W1", "--run", "a", "--controls", "--json")
    assert code == 0, err
    controls = {(c["claim"], c["control"]): c["verdict"] for c in json.loads(out)["controls"]}
    assert controls["W1", "positive"] == "supported"
    assert controls["W1", "negative"] == "contradicted"


@pytest.mark.timeout(600)
def test_demo_says_what_it_saw_in_five_lines(sgdscope, tmp_path):
    code, out, err = sgdscope("demo", "--out", "shown", "--json")
    assert code == 0, err
    seen = json.loads(out)
    assert len(seen["lines"]) == 5
    assert all(any(c.isdigit() for c in line[2:]) for line in seen["lines"])
    assert (tmp_path / "shown" / "report.html").exists()
    assert len(seen["runs"]) == 3
    assert {v["claim"] for v in seen["verdicts"]} >= {"W1", "W2", "W3", "W4", "W11"}
    page = (tmp_path / "shown" / "report.html").read_text()
    assert all(f"lr{lr}" in page for lr in ("0.6", "0.05"))


def test_claims_are_listed_in_the_order_of_their_papers(sgdscope):
    ids = [row["id"] for row in json.loads(sgdscope("list", "claims", "--json")[1])]
    assert [i for i in ids if i.startswith("X")] == [f"X{n}" for n in range(1, 14) if f"X{n}" in ids]
    assert ids.index("W2") < ids.index("W10") < ids.index("WP1")
    assert ids.index("F1") < ids.index("S1") < ids.index("W1")


def test_an_interrupted_command_says_what_is_kept(sgdscope, monkeypatch):
    def interrupt(_what):
        raise KeyboardInterrupt

    monkeypatch.setattr("sgdscope.cli._rows", interrupt)
    code, out, err = sgdscope("list", "claims")
    assert (code, out) == (1, "")
    assert "interrupted; what was recorded is kept" in err


@pytest.fixture
def tiny(sgdscope, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    assert sgdscope("run", "tiny.toml", "--out", "a")[0] == 0
    return tmp_path / "a"


def test_measure_tells_one_line_a_quantity_and_every_variable_when_asked(sgdscope, tiny):
    code, out, err = sgdscope("measure", "a", "valley", "motion")
    lines = out.strip().split("\n")
    assert (code, len(lines)) == (0, 3), err
    assert lines[0].startswith("valley    In the last window (updates 0 to 11) the lowest point lies")
    assert lines[1].startswith("motion    Cosine of consecutive gradients in the last window")
    assert "[a, b]: 95 % interval" in lines[2]
    assert not {"<", "&"} & set(out)
    assert "valley   loss_start" in sgdscope("measure", "a", "valley", "--verbose")[1]


def test_report_says_that_an_older_page_was_replaced(sgdscope, tiny):
    assert sgdscope("report", "a")[1] == "Report: report.html\n"
    assert sgdscope("report", "a")[1] == "Report: report.html (an older one was replaced)\n"
    assert json.loads(sgdscope("report", "a", "--json")[1]) == {"report": "report.html", "replaced": True}


def test_the_folder_of_a_sweep_is_reported_as_its_runs(sgdscope, tiny, tmp_path):
    (tmp_path / "sweep").mkdir()
    tiny.rename(tmp_path / "sweep" / "inner")
    assert sgdscope("report", "sweep")[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert "The walk with SGD: inner" in page
    assert "No update is on record" not in page


def test_the_average_of_an_ensemble_names_a_member_to_give_instead(sgdscope, tiny, tmp_path):
    (tmp_path / "whole").mkdir()
    tiny.rename(tmp_path / "whole" / "average")
    header = json.loads((tmp_path / "whole" / "average" / "run.json").read_text())
    del header["settings"]["experiment"]
    (tmp_path / "whole" / "average" / "run.json").write_text(json.dumps(header))
    told = {"members": [{"run": "member-0"}, {"run": "member-1"}]}
    (tmp_path / "whole" / "ensemble.json").write_text(json.dumps(told))
    for command in ("diagnose", "measure"):
        code, _, err = sgdscope(command, "whole/average")
        assert (code, "is the average of an ensemble" in err, "whole/member-0" in err) == (2, True, True), err


def test_averages_are_a_number_of_blocks(sgdscope, tmp_path):
    (tmp_path / "bad.toml").write_text(TINY + "averages = true\n")
    code, _, err = sgdscope("run", "bad.toml")
    assert code == 2
    assert "record.averages: expected a valid integer, the number of blocks" in err
    assert "64" in err


def test_runs_are_shown_in_a_few_short_lines(tiny):
    from sgdscope.runs import open_trajectory

    shown = repr(open_trajectory(tiny))
    assert len(shown) < 300
    assert "a': " in shown
    assert "13 points of updates 0 to 12, walker sgd, lr 0.2, batch_size 16" in shown


def test_a_run_without_updates_cannot_be_diagnosed(sgdscope):
    model = torch.nn.Linear(2, 1)
    Recorder("still", model, torch.optim.SGD(model.parameters(), lr=0.1)).close()
    code, out, err = sgdscope("diagnose", "still", "--surface", "json:loads")
    assert (code, out, "expected a run with updates, still has none" in err) == (2, "", True), err


def test_the_package_is_a_command_too():
    shown = subprocess.run([sys.executable, "-m", "sgdscope", "--help"], capture_output=True, text=True, check=True)
    assert "A microscope for SGD" in shown.stdout
