"""Claims to verdicts: choosing, one's own run, one's own experiment, a model function, failures, JSON."""

import json

import numpy as np
import pytest
import torch

from sgdscope import checks, landscapes
from sgdscope.contracts import claims
from sgdscope.errors import ArgumentError, UnknownNameError
from sgdscope.evidence.controls import bowl
from sgdscope.evidence.protocols import described, fitted, transfer
from sgdscope.experiment import Experiment


def small(**changed):
    own = {
        "name": "mine",
        "data": {"dataset": "wine"},
        "model": {"name": "mlp", "hidden": [8]},
        "phases": [{"lr": 0.1, "batch_size": 16, "updates": 80}],
    }
    return Experiment(**own | changed)


def a_walk(updates=130):
    surface, generator = bowl(4), torch.Generator().manual_seed(4)
    return surface, landscapes.walk(surface, lr=1.0, updates=updates, start=surface.theta(), batch_size=8, generator=generator)


def test_a_dataset_cannot_take_the_place_of_a_claims_own_surfaces():
    with pytest.raises(ArgumentError, match="dataset: X13 brings surfaces or data of its own, which 'wine' cannot replace"):
        checks.check(["X13"], dataset="wine")
    with pytest.raises(ArgumentError, match="experiment: X10 walk in another way"):
        checks.check(["X10"], experiment=lambda seed: seed)


@pytest.mark.parametrize("claim_id", ["H1", "H5", "WP1", "T1"])
def test_a_dataset_takes_the_place_of_the_presets_wherever_it_is_named(claim_id):
    entry = [claims[claim_id]]
    plain, other = (list(checks._plan(entry, None, "quick", 3, name).values()) for name in (None, "wine"))
    assert len(other) == len(plain)
    told = [json.dumps(description) for description, _ in other]
    named = [text for text in told if '"dataset": "' in text]
    assert len(named) > 4
    assert all('"dataset": "wine"' in text and "breast_cancer" not in text for text in named)
    assert sum(text == json.dumps(description) for text, (description, _) in zip(told, plain, strict=True)) == len(told) - len(
        named
    )


def test_chosen():
    assert checks.chosen(["W3", "W1"]) == ["W3", "W1"]
    found = checks.chosen(None, paper="walk_with_sgd", scope="sweep")
    assert found == sorted(found, key=lambda name: int(name[1:]))
    assert {"W5", "W6", "W10", "W12"} <= set(found)
    assert not {"W1", "S3"} & set(found)
    assert set(checks.chosen(None)) == set(claims)
    with pytest.raises(UnknownNameError, match="no claim is called 'W99'"):
        checks.chosen(["W99"])
    with pytest.raises(UnknownNameError, match="did you mean 'walk_with_sgd'"):
        checks.chosen(None, paper="walk_with_sdg")


def test_ones_own_run_is_judged_and_its_controls_are_told():
    surface, walk = a_walk()
    verdicts = checks.check(["W3", "W1"], run=walk, surface=surface, controls=True)
    assert [(v.claim, v.verdict) for v in verdicts] == [("W3", "supported"), ("W1", "supported")]
    assert verdicts[0].details["controls"] == {
        "positive": "supported",
        "negative": "contradicted",
        "starved": "undecided",
        "foreign": "not in regime",
    }


def test_json_holds_no_nan():
    surface, walk = a_walk(20)
    verdicts = checks.check("W1", run=walk, surface=surface)
    told = checks.to_json(verdicts, checks.control_verdicts(["W1"], seed=1))
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["verdicts"][0]["claim"] == "W1"
    assert told["verdicts"][0]["verdict"] == "undecided"
    assert told["verdicts"][0]["statistic"] is None
    assert [(c["claim"], c["control"], c["verdict"]) for c in told["controls"]] == [
        ("W1", "positive", "supported"),
        ("W1", "negative", "contradicted"),
        ("W1", "starved", "undecided"),
        ("W1", "foreign", "not in regime"),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"claims": ["W1", "W5"], "run": True}, "claims: W5 compare runs of several settings.*pass experiment="),
        ({"claims": ["W1"], "run": True, "experiment": "a.toml"}, "run, experiment: expected one of them"),
        ({"claims": ["W1"], "surface": True}, "surface: it belongs to a recorded run"),
        ({"claims": ["W1"], "preset": "slow"}, "preset: W1 has quick, standard, paper; got 'slow'"),
        ({"claims": ["W1"], "jobs": 0}, "jobs: expected at least 1, got 0"),
        ({"claims": ["W1"], "seed": -1}, "seed: expected a whole number >= 0, got -1"),
        ({"claims": ["W1"], "experiment": 3}, "experiment: expected a TOML file"),
    ],
)
def test_wrong_use(given, message):
    surface, walk = a_walk(3)
    given = given | {k: v for k, v in (("run", walk), ("surface", surface)) if given.get(k) is True}
    with pytest.raises(ArgumentError, match=message):
        checks.check(**given)


def test_a_run_by_hand_needs_its_surface():
    with pytest.raises(ArgumentError, match="surface: the run was recorded by hand"):
        checks.check("W1", run=a_walk(3)[1])


def test_ones_own_experiment_is_run_once_for_all_claims(tmp_path):
    said = []
    asked = {
        "claims": ["W1", "W3", "W11"],
        "experiment": small(),
        "out": tmp_path,
        "jobs": 1,
        "progress": lambda sentence, share: said.append(share),
    }
    verdicts = checks.check(**asked)
    assert [v.claim for v in verdicts] == ["W1", "W3", "W11"]
    assert said == [0.5, 1.0]  # two distinct experiments, shared by the three claims
    assert len(list(tmp_path.iterdir())) == 2
    assert [v.statistic for v in checks.check(**asked)] == pytest.approx([v.statistic for v in verdicts], nan_ok=True)


def model_of(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(300, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + torch.randn(300, generator=generator, dtype=torch.float64)
    model = torch.nn.Linear(3, 1, dtype=torch.float64)
    return model, lambda m, batch: (m(batch[0])[:, 0] - batch[1]) ** 2, (x, y)


def test_a_model_function_is_trained_and_judged():
    first = checks.check(["W1", "W11"], experiment=model_of)
    assert [v.verdict for v in first] == ["supported", "supported"]  # a quadratic: exactly convex, no barrier
    assert first[0].n == 360


def test_a_model_function_is_trained_by_plain_sgd_as_described():
    description = described("quick", 3, 0.05, 64, drop=10.0)
    walk, surface, _ = checks._trained(model_of, description)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, loss, data = model_of(3)
    weights = list(model.parameters())
    generator, seen = torch.Generator().manual_seed(3), []
    for t in range(240):
        if t % 4 == 0:  # 300 examples hold four batches of 64
            order = torch.randperm(300, generator=generator)
        rows = order[64 * (t % 4) : 64 * (t % 4 + 1)]
        gradient = torch.autograd.grad(loss(model, tuple(part[rows] for part in data)).mean(), weights)
        with torch.no_grad():
            for weight, g in zip(weights, gradient, strict=True):
                weight -= (0.05 if t < 180 else 0.005) * g
        seen.append(torch.cat([w.detach().flatten() for w in weights]))
    for step in (180, 181, 240):
        assert torch.allclose(walk.theta(step), seen[step - 1], rtol=1e-10, atol=1e-12)
    assert torch.equal(checks._trained(model_of, description)[0].theta(240), walk.theta(240))
    assert surface.value(walk.theta(240)) == pytest.approx(loss(model, data).mean().item())


def test_of_options_that_claims_ask_for_the_larger_is_measured():
    from dataclasses import replace

    entries = [replace(claims["W1"], quantities={"valley": {"window": n}}) for n in (60, 90, 70)]
    assert checks._quantities(entries) == {"valley": {"window": 90}}


def test_failures_are_told_when_the_others_are_done():
    def broken(seed):
        model, _, data = model_of(seed)
        return model, lambda m, batch: (_ for _ in ()).throw(RuntimeError("no such loss")), data

    with pytest.raises(
        checks.ChecksFailedError, match=r"(?s)2 claim\(s\) could not be checked.*W1: .*RuntimeError: no such loss.*W2"
    ) as e:
        checks.check(["W1", "W2"], experiment=broken)
    assert set(e.value.failures) == {"W1", "W2"}
    assert e.value.verdicts == []


def test_data_of_a_model_function_is_checked():
    with pytest.raises(checks.ChecksFailedError, match="ArgumentError: experiment: its data should be a Dataset or a tuple"):
        checks.check("W1", experiment=lambda seed: (*model_of(seed)[:2], "data"))
    short = torch.zeros(3)
    with pytest.raises(checks.ChecksFailedError, match="share a leading dimension"):
        checks.check("W1", experiment=lambda seed: (*model_of(seed)[:2], (short, torch.zeros(4))))


def test_the_dataset_takes_the_place_of_the_presets():
    plan = checks._plan([claims["W1"]], None, "quick", 0, "breast_cancer")
    assert [d["data"] for d, _ in plan.values()] == [{"dataset": "breast_cancer", "label_noise": 0.3}] * 2


def test_batch_sizes_are_halved_alike_to_fit_a_small_dataset():
    wanted = [claims["W7"], claims["W9"]]
    plan = checks._plan(wanted, None, "quick", 0, "wine")  # 142 examples: 4 x 16 = 64 is the largest that is at most half
    sizes = {phase["batch_size"] for description, _ in plan.values() for phase in description["phases"]}
    assert sizes == {4, 16, 64, "full"}
    unchanged = checks._plan(wanted, None, "quick", 0, "digits")
    assert {p["batch_size"] for d, _ in unchanged.values() for p in d["phases"]} == {16, 64, 256, "full"}


def test_epochs_of_ones_own_experiment_set_the_number_of_updates():
    own = small(phases=[{"lr": 0.1, "batch_size": 16, "epochs": 20.0}])  # wine: 142 examples, 8 whole batches an epoch
    plan = checks._plan([claims["W1"]], own, "quick", 0, None)
    described = [d for d, _ in plan.values()]
    assert [[p["updates"] for p in d["phases"]] for d in described] == [[160], [160]]
    assert not any("epochs" in p for d in described for p in d["phases"])


def test_compat_tells_the_series_of_the_released_protocol():
    found = checks.check(["W1", "W3"], experiment=model_of, compat="xing2018")
    plain = checks.check(["W1", "W3"], experiment=model_of)
    assert [(v.verdict, v.statistic) for v in found] == [(v.verdict, v.statistic) for v in plain]
    first, second = found[0].details["xing2018"]
    assert found[1].details["xing2018"][0] == first
    assert "xing2018" not in plain[0].details
    assert first["alpha"] == pytest.approx([0.1 * i for i in range(10)])
    assert [len(first[name]) for name in ("step", "loss", "cosine", "distance")] == [180] * 4
    walk, _, (model, loss, data) = checks._trained(model_of, claims["W1"].experiments["quick"](0)[0])
    with torch.no_grad():  # the model stands at the end; three batches of 100, divided by two
        torch.nn.utils.vector_to_parameters(walk.theta(first["step"][-1]), model.parameters())
        means = [loss(model, tuple(part[i : i + 100] for part in data)).mean().item() for i in (0, 100, 200)]
    assert first["loss"][-1][0] == pytest.approx(sum(means) / 2)
    assert 0 < first["interior_share"] <= 1
    assert second["mean_cosine"] < 0
    with pytest.raises(UnknownNameError, match="no compat is called 'xing2019'; did you mean 'xing2018'"):
        checks.check("W1", experiment=model_of, compat="xing2019")


def test_compat_of_ones_own_run_takes_the_surface_as_given():
    surface, walk = a_walk(4)
    (found,) = checks.check("W3", run=walk, surface=surface, compat="xing2018")
    (series,) = found.details["xing2018"]
    assert series["gradient_norm_squared"] == pytest.approx(walk.steps["gradient_norm"].values ** 2)
    assert series["cosine"][1:] == pytest.approx(walk.steps["gradient_cosine"].values[1:], rel=1e-6)
    assert series["mean_cosine"] == pytest.approx(np.mean(series["cosine"][1:]))
    json.dumps(checks.to_json([found]), allow_nan=False)


def test_claims_share_experiments():
    wanted = [claims[f"W{i}"] for i in range(1, 12)]
    plan = checks._plan(wanted, None, "quick", 0, None)
    asked = sum(len(entry.experiments["quick"](0)) for entry in wanted)
    assert len(plan) == 45 + 5 + 5 + 2  # the grid, cut twins, full batches, two single runs
    assert asked > 2 * len(plan)


def test_transfer_wraps_the_users_walker_and_keeps_the_end_of_long_runs():
    phase = {"walker": "adam", "lr": 0.01, "batch_size": 10, "updates": 480}
    own = {"name": "mine", "data": {"dataset": "wine"}, "model": {"name": "mlp"}, "phases": [phase]}
    nudged = described("quick", 7, 0.3, 64, at="path", walker="nudged", gamma=0.1, k=5)
    moved = transfer(nudged, own, "quick")
    assert moved["phases"][0] == phase | {"walker": "nudged", "base": "adam", "gamma": 0.1, "k": 5, "lr": 0.02}
    longer = nudged | {"phases": [nudged["phases"][0] | {"updates": 960}]}
    longer["record"] = {"snapshots": {"kind": "bursts", "length": 1, "at": [0, 500, 959]}}
    assert transfer(longer, own, "quick")["record"]["snapshots"]["at"] == [0, 1000, 1918]


def test_transfer_and_fitting_scale_the_batch_of_the_noise_too():
    shaped = described("quick", 7, 0.3, "full", walker="shaped", shape="isotropic", noise_batch_size=64)
    own = described("quick", 0, 0.05, 16)
    moved = transfer(shaped, own, "quick")["phases"][0]
    assert (moved["walker"], moved["batch_size"], moved["noise_batch_size"]) == ("shaped", "full", 16)
    drawn = described("quick", 7, 0.3, 128, replacement=True)
    assert transfer(drawn, own, "quick")["phases"][0]["replacement"] is True
    assert "replacement" not in transfer(described("quick", 7, 0.3, 128), own, "quick")["phases"][0]
    assert [fitted(d, 200, "quick")["phases"][0].get("noise_batch_size") for d in (shaped, drawn)] == [16, None]
    assert [fitted(d, 200, "quick")["phases"][0]["batch_size"] for d in (shaped, drawn)] == ["full", 32]


def test_transfer_keeps_ratios():
    own = small(phases=[{"lr": 0.6, "batch_size": 32, "updates": 480, "momentum": 0.5}]).described()
    moved = transfer(described("quick", 7, 0.0375, 256, drop=10.0), own, "quick")
    first, second = Experiment(**moved).phases
    assert (first.lr, second.lr) == pytest.approx((0.15, 0.015))
    assert (first.batch_size, first.momentum) == (128, 0.5)
    assert (first.updates, second.updates) == (360, 120)
    assert moved["record"]["snapshots"]["at"] == [360]
    assert moved["seed"] == 7
    assert moved["data"] == own["data"]
    assert transfer(described("quick", 7, 0.6, "full"), own, "quick")["phases"][0]["batch_size"] == "full"
    whole = small(phases=[{"lr": 0.6, "batch_size": "full", "updates": 480}]).described()
    with pytest.raises(ArgumentError, match=r"phases\[0\].batch_size: the claims vary it"):
        transfer(described("quick", 7, 0.6, 64), whole, "quick")
