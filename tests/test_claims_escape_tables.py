"""Escape claims on a table of one's own: which settings are asked, what the search finds, and what is refused."""

import json

import numpy as np
import pytest

from sgdscope import checks, escapes
from sgdscope.contracts import claims
from sgdscope.errors import ArgumentError, DataError
from sgdscope.evidence import waiting, waiting_runs, waiting_tables
from sgdscope.evidence.waiting_tables import on_table


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(waiting_tables, "SETTLE", 200)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """150 rows of two clouds; one feature is constant, one value is an outlier."""
    random = np.random.default_rng(3)
    x = random.normal(size=(150, 3)) + np.repeat([[0.8], [-0.8]], 75, 0)
    x[4, 1] = 4000.0
    rows = ["a,b,c,flat,class"] + [",".join(map(str, row)) + f",2.5,{'u' if i < 75 else 'v'}" for i, row in enumerate(x)]
    path = tmp_path_factory.mktemp("table") / "own.csv"
    path.write_text("\n".join(rows))
    return str(path)


def written(path, column, labels):
    path.write_text("\n".join(["a,class"] + [f"{column(i)},{labels(i)}" for i in range(40)]))
    return str(path)


def asked(name, preset="quick"):
    return claims[name].experiments[preset](0)


def test_quick_holds_one_bundled_table_and_the_others_none():
    for name in ("X5", "X6", "X7", "X8", "X9", "X10"):
        tables = {
            preset: {d["potential"]["dataset"] for d in asked(name, preset) if d["potential"]["kind"] == "network"}
            for preset in ("quick", "standard", "paper")
        }
        assert tables["quick"] == {"breast_cancer"}
        assert tables["standard"] == tables["paper"] >= {"banknote"}
        assert "breast_cancer" not in tables["standard"]
        assert {"wells", "tang"} < {d["potential"]["kind"] for d in asked(name)}


def test_a_sweep_keeps_its_ratios_on_another_table(table, tmp_path):
    found = on_table(asked("X5"), table, None, "quick")
    assert [d["k"] for d in found] == [0.7, 0.85, 1.0, 1.2] * 5
    assert {d["potential"]["kind"] for d in found} == {"network"}
    assert len({d["name"] for d in found}) == 20
    (search,) = {json.dumps(d["search"]) for d in found}
    search = json.loads(search)
    assert 100 <= search["median"] <= 2000
    assert search["knob"] == "lr"
    assert search["constant"] == ["flat"]
    assert [d["lr"] for d in found] == pytest.approx([search["found"]] * 20)
    assert found[0]["potential"]["clip"] == pytest.approx(5.0)
    rates = on_table(asked("X7"), table, None, "quick")
    ratios = sorted({round(d["lr"] / search["found"], 9) for d in rates})
    assert ratios == pytest.approx([0.7, 0.85, 1.0, 1.2, 4.0])
    assert {d["noise"]["batch_size"] for d in rates if d["lr"] > 3 * search["found"]} == {4, 5, 6}
    evidence = waiting.study(found[2], tmp_path, None)
    assert waiting.stays([evidence])[0].kind == "network own.csv logistic minibatch"
    told = waiting.place([evidence])["search"]
    found_words = f"lr {search['found']:.3g}, at which half have left after {search['median']:g} updates"
    assert told == f"network own.csv logistic minibatch: {found_words}, constant and without effect: flat"
    assert np.log(2) * evidence.extra["tau"] == pytest.approx(search["median"], rel=0.5)


def test_under_white_noise_the_temperature_is_sought(table):
    found = on_table(asked("X10"), table, None, "quick")
    search = found[0]["search"]
    assert (search["knob"], len(found)) == ("diffusion", 20)
    assert 100 <= search["median"] <= 2000
    temperatures = sorted({d["noise"]["diffusion"] for d in found})
    assert temperatures == pytest.approx([search["found"] * d / 28 for d in (25, 28, 32, 37)])
    sharp = waiting.potential_of(found[0]).sharpness()
    assert {d["lr"] for d in found} == {search["lr"]}
    assert search["lr"] * sharp * 2 == pytest.approx(min(0.35, sharp), rel=1e-2)


def test_of_several_tables_one_is_asked_for_each_network(table, monkeypatch):
    sought = {"knob": "lr", "found": 0.2, "lr": 0.2, "median": 400.0, "trials": 3}
    monkeypatch.setattr(waiting_tables, "_sought", lambda *_: sought)
    found = on_table(asked("X6", "standard"), table, None, "standard")
    assert len(found) == 5 * 3 * 2  # seeds, batch sizes, models; three tables before
    assert len(asked("X6", "standard")) == 3 * len(found)
    assert [d["lr"] for d in found] == pytest.approx([0.8] * 30)
    assert "train" not in found[0]["potential"]


def test_the_folder_of_a_table_does_not_change_the_noise():
    base = {"seed": 3, "noise": {"kind": "minibatch", "batch_size": 1}}
    seeds = [
        waiting.generator_of(base | {"potential": {"kind": "network", "dataset": name}}).initial_seed()
        for name in ("/here/own.csv", "there/own.csv", "own.csv", "other.csv")
    ]
    assert seeds[0] == seeds[1] == seeds[2] != seeds[3]


def test_a_long_table_is_cut_in_quick(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("\n".join(["a,class"] + [f"{i % 17},{i % 2}" for i in range(1500)]))
    assert waiting_tables._read(str(path), None, 1000)["train"] == 1000
    assert "train" not in waiting_tables._read(str(path), None, None)
    assert "clip" not in waiting_tables._read(str(path), None, None)


def test_the_bundled_unit_is_what_the_search_finds():
    base = next(d for d in waiting_runs.NETWORK_SHARPNESS if d["potential"]["dataset"] == "breast_cancer")
    potential = waiting.potential_of(base | {"seed": 0})
    median = escapes.median_wait(
        potential, waiting.valley_of(base, potential), escapes.Minibatch(1), lr=base["lr"], generator=waiting.generator_of(base)
    )
    assert 100 <= median <= 2000


def test_what_cannot_be_used_is_told(tmp_path):
    flat = written(tmp_path / "flat.csv", lambda i: 1.0, lambda i: i % 2)
    with pytest.raises(ArgumentError, match=r"every feature of '.*flat.csv' is constant"):
        checks.check("X5", dataset=flat)
    alike = written(tmp_path / "alike.csv", lambda i: i, lambda i: "u")
    with pytest.raises((ArgumentError, DataError), match=r"alike"):
        checks.check("X5", dataset=alike)
    with pytest.raises(ArgumentError, match="X13 brings surfaces or data of its own"):
        checks.check("X13", dataset="wine")


def test_a_network_that_is_never_left_is_told(table, monkeypatch):
    monkeypatch.setattr(escapes, "median_wait", lambda *_, **__: float("inf"))
    potential = on_table_potential(table)
    with pytest.raises(ArgumentError, match=r"lr: at none of \d values do half of the walkers leave.*inf is censored"):
        waiting_tables.sought({"potential": potential, "valley": {"kind": "box", "radius": 0.2}, "noise": {"kind": "minibatch"}})


def on_table_potential(table):
    read = {k: v for k, v in waiting_tables._read(table, None, 1000).items() if k != "constant_features"}
    return {"kind": "network", "model": {"name": "logistic"}, "decay": 1e-3} | read
