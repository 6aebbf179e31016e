"""The claim T8 on evidence made by hand, and the accuracies on corrupted labels against a network asked one example at a time."""

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
import torch
import xarray as xr

from sgdscope.contracts import Evidence, claims
from sgdscope.evidence.memorisation import (
    BATCHES,
    GRIDS,
    grid,
    held_out_at,
    memorised,
    noise_of,
    order,
    peak_and_onset,
    slopes,
)
from sgdscope.experiment import Experiment, parts, run
from sgdscope.landscapes import Ravine, walk
from sgdscope.runs import open_trajectory

STEPS = list(range(0, 110, 10))
LEVELS = [round(0.1 * i, 1) for i in range(11)]  # memorised at the points of `STEPS`


def ran(lr, batch=10, seed=0, *, momentum=0.0, test=0.5, corrupted=None, share=0.25):
    told = {"step": STEPS, "corrupted": LEVELS if corrupted is None else corrupted, "clean": [1.0] * 11}
    told |= {"test": np.broadcast_to(test, 11).tolist(), "convention": "different", "wrong": share}
    settings = {"lr": lr, "batch_size": batch, "momentum": momentum, "seed": seed, "label_noise": share}
    return Evidence(settings, xr.Dataset(), {}, {"memorised": told})


def sweep(gain, seeds=4, *, shares=(0.25, 0.5), tilt=0.0):
    """Accuracy 0.9 - 0.3 m + gain log lr, with gains that differ between seeds by 0.002."""
    m = np.array(LEVELS)
    runs = []
    for share in shares:
        for s in range(seeds):
            for lr in (0.1, 0.2, 0.4, 0.8):
                own = gain[share] if isinstance(gain, dict) else gain
                test = 0.9 - 0.3 * m + (own + 0.002 * (s - (seeds - 1) / 2) + tilt * (m - 0.55)) * log(lr)
                runs.append(ran(lr, seed=s, test=test, share=share))
    return runs


def judged(runs):
    return claims["T8"].judge(list(runs))


def test_noise_counts_momentum():
    assert exp(noise_of(ran(0.02, 50, momentum=0.9))) == pytest.approx(0.004)
    assert exp(noise_of(ran(0.2, 50))) == pytest.approx(0.004)
    assert np.isnan(noise_of(ran(0.2, "full")))


def test_accuracy_is_read_where_a_level_is_first_reached():
    found = ran(0.1, corrupted=[0.1, 0.3, 0.2, 0.6, *[0.5] * 7], test=[0.0, 0.4, 0.9, 0.1, *[0.0] * 7])
    assert held_out_at(found, 0.2) == pytest.approx(0.2)
    assert held_out_at(found, 0.5) == pytest.approx(0.9 - 0.8 * 0.75)
    assert np.isnan(held_out_at(found, 0.7))
    assert np.isnan(held_out_at(found, 0.05))
    assert peak_and_onset(found) == (20.0, 10.0)
    assert np.isnan(peak_and_onset(ran(0.1, corrupted=[0.1] * 11))[1])


def test_peaks_before_onset_are_counted():
    early = ran(0.1, corrupted=[0.1] * 4 + [0.5] * 7, test=[0, 0.5, 0.9, *[0.6] * 8])  # peak 20, onset 40
    late = ran(0.1, corrupted=[0.1] * 5 + [0.5] * 6, test=[0] * 8 + [0.9] * 3)  # peak 80, onset 50
    never = ran(0.1, corrupted=[0.1] * 11)
    assert order([early, late, never]) == (0.5, pytest.approx(1))
    assert np.isnan(order([early, never])[0])


def test_slopes_need_four_noises_at_a_level():
    runs = [ran(lr, test=0.1 * log(lr) + 0.9) for lr in (0.1, 0.2, 0.4)]
    assert slopes(runs) == {}
    slow = ran(0.8, test=0.1 * log(0.8) + 0.9, corrupted=[0.1, 0.35, *[0.4] * 9])
    found = slopes([*runs, slow])
    assert list(found) == [0.2, 0.3, 0.4]
    assert list(found.values()) == pytest.approx([0.1] * 3)
    assert slopes([*runs, ran(0.02, 10, momentum=0.8, test=0.5)]) == {}  # the noise of lr = 0.1


def test_t8_asks_for_a_rising_accuracy_at_each_share():
    found = judged(sweep(0.01))
    assert found.verdict == "supported"
    assert found.statistic == pytest.approx(0.01)
    assert (found.n, found.smallest_p) == (4, 1 / 16)
    assert found.details["by_share"]["0.25"]["slope_at_level"] == pytest.approx({f"{level:g}": 0.01 for level in LEVELS[2:10]})
    half = 3.1824 * 0.002 * np.std([-1.5, -0.5, 0.5, 1.5], ddof=1) / 2  # t of 3 at 97.5 %
    assert found.interval == pytest.approx((0.01 - half, 0.01 + half), rel=1e-3)
    assert "convention 'different'" in found.reason
    assert judged(sweep(-0.01)).verdict == "contradicted"
    assert judged(sweep({0.25: 0.01, 0.5: -0.01})).verdict == "contradicted"
    assert judged(sweep({0.25: 0.01, 0.5: 0.003})).verdict == "undecided"
    tilted = judged(sweep(0.01, tilt=0.02))
    assert tilted.statistic == pytest.approx(0.01)
    assert tilted.details["by_share"]["0.5"]["slope_at_level"]["0.9"] == pytest.approx(0.01 + 0.02 * 0.35)


def test_t8_needs_seeds_memorisation_and_corrupted_labels():
    assert judged(sweep(0.01, seeds=3)).verdict == "supported"
    assert judged(sweep(0.01, seeds=2)).verdict == "undecided"
    forgetful = [replace(r, extra={"memorised": r.extra["memorised"] | {"corrupted": [0.1] * 11}}) for r in sweep(0.01)]
    assert judged(forgetful).verdict == "undecided"
    clean = [replace(r, extra={"memorised": r.extra["memorised"] | {"corrupted": [np.nan] * 11}}) for r in sweep(0.01)]
    assert judged(clean).verdict == "not in regime"


def test_the_grid_keeps_the_momentum_of_the_paper():
    for preset, runs in grid(2).items():
        described = [Experiment(**d) for d in runs(1)]
        momenta = {(p.lr, p.momentum) for d in described for p in d.phases}
        assert {lr for lr, mu in momenta if mu} <= {0.01, 0.02}
        assert {d.data.label_noise for d in described} == {0.25, 0.5}
        seen = {sum(p.updates for p in d.phases) * d.phases[0].batch_size / GRIDS[preset].examples for d in described}
        assert max(seen) == pytest.approx(GRIDS[preset].epochs)
        assert min(seen) > 0.92 * GRIDS[preset].epochs  # a last incomplete batch is left out
        assert {d.phases[0].batch_size for d in described} == set(BATCHES[preset])


def test_accuracies_are_those_of_the_examples_one_by_one(tmp_path):
    described = Experiment(
        data={"dataset": "digits", "train": 60, "test": 30, "label_noise": 0.4, "label_convention": "different", "noise_seed": 3},
        model={"name": "mlp", "hidden": [8]},
        phases=[{"lr": 0.3, "batch_size": 20, "updates": 40}],
        record={"snapshots": {"kind": "bursts", "length": 1, "at": [9, 30]}},
    )
    trajectory = open_trajectory(run(described, tmp_path / "a"))
    found = memorised(trajectory, None)["memorised"]
    assert found["step"] == [0, 9, 30, 40]
    assert (found["convention"], found["wrong"]) == ("different", pytest.approx(0.4))
    model, _, data = parts(described)
    with torch.no_grad():
        for value, p in zip(trajectory.header.layout.restore(trajectory.theta(30)).values(), model.parameters(), strict=True):
            p.copy_(value)
        right = [int(model(x[None])[0].argmax()) == int(y) for x, y in zip(data.x, data.y, strict=True)]
        test = [int(model(x[None])[0].argmax()) == int(y) for x, y in zip(data.x_test, data.y_test, strict=True)]
    drawn = set(data.noisy.tolist())
    assert len(drawn) == 24
    assert found["corrupted"][2] == pytest.approx(np.mean([right[i] for i in drawn]))
    assert found["clean"][2] == pytest.approx(np.mean([right[i] for i in range(60) if i not in drawn]))
    assert found["test"][2] == pytest.approx(np.mean(test))
    assert 0 < found["corrupted"][2] < 1
    assert found["corrupted"][2] != pytest.approx(found["clean"][2])
    assert memorised(walk(Ravine(2.0, 1.0), lr=0.1, updates=2, start=Ravine(2.0, 1.0).theta()), None) == {}
