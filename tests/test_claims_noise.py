"""Judges of the claims X1-X4 and X12 on evidence whose numbers are known, and what they observe against slow routes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sgdscope import landscapes
from sgdscope.claims.diffusion_theory import noise as judges
from sgdscope.evidence.gradient_noise import at_end, batches_and_steps, made, power

F64 = torch.float64
DELTAS = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])  # sd 0.0158; Student's half-width over 5 is 2.776 x 0.00707 = 0.01963


def with_noise(name, values, where=-1):
    """Runs with one number of the quantity noise written down."""
    runs = []
    for run, value in zip(made(3), values, strict=True):
        data = run.measured["noise"].copy(deep=True)
        data[name].values[where] = value
        runs.append(replace(run, measured={"noise": data}))
    return runs


def with_seen(**columns):
    return [
        replace(run, extra={"gradient_noise": dict(run.extra["gradient_noise"]) | {n: v[i] for n, v in columns.items()}})
        for i, run in enumerate(made(3))
    ]


@pytest.mark.parametrize(("mean", "answer"), [(0.93, "supported"), (0.91, "undecided"), (0.87, "contradicted")])
def test_x1_holds_the_mean_correlation_against_its_threshold(mean, answer):
    verdict = judges.covariance_is_hessian(with_noise("correlation", mean + DELTAS))
    assert verdict.verdict == answer
    assert verdict.statistic == pytest.approx(mean, rel=1e-12)
    assert verdict.interval == pytest.approx((mean - 0.01963, mean + 0.01963), abs=1e-5)


def test_x1_leaves_out_runs_that_are_not_near_a_minimum():
    runs = with_noise("noise_scale", [9.0, 9.0, 11.0, 11.0, 11.0])
    assert judges.covariance_is_hessian(runs).n == 3
    assert judges.covariance_is_hessian(with_noise("noise_scale", [9.0] * 5)).verdict == "not in regime"
    assert judges.covariance_is_hessian(with_noise("noise_scale", [9.0, 9.0, 9.0, 11.0, 11.0])).verdict == "undecided"


POWERS = [(-1.0, "supported"), (-1.07, "supported"), (-1.13, "contradicted"), (-0.87, "contradicted")]


@pytest.mark.parametrize(("exponent", "answer"), POWERS)
def test_x2_takes_the_factor_without_replacement_off(exponent, answer):
    sizes = np.array([4, 16, 64, 256])
    traces = [c * sizes**exponent * (1437 - sizes) / 1436 for c in (1.0, 2.0, 3.0, 4.0, 5.0)]
    noisy = [t * np.exp(0.01 * d * np.log(sizes)) for t, d in zip(traces, 100 * DELTAS, strict=True)]
    verdict = judges.inverse_to_batch_size(with_seen(trace=noisy))
    assert verdict.verdict == answer
    assert verdict.statistic == pytest.approx(exponent, rel=1e-9)
    assert verdict.details["power_without_the_factor"] == pytest.approx(power(sizes, traces[0]), rel=1e-9)
    assert abs(verdict.details["power_without_the_factor"] - exponent) > 0.02


def test_x3_needs_both_parts():
    runs = with_noise("correlation", 0.75 + DELTAS, where=0)
    ends = np.array([at_end(run, "correlation") for run in runs])
    verdict = judges.at_initialisation_too(runs)
    assert verdict.verdict == "supported"
    assert verdict.details["parts"]["end minus start"]["mean"] == pytest.approx((ends - 0.75 - DELTAS).mean(), rel=1e-12)
    assert judges.at_initialisation_too(with_noise("correlation", 0.66 + DELTAS, where=0)).verdict == "contradicted"
    assert judges.at_initialisation_too(with_noise("correlation", 0.995 + DELTAS / 10, where=0)).verdict == "contradicted"
    assert judges.at_initialisation_too(runs[:4]).verdict == "undecided"


def test_x4_holds_three_parts():
    calm = [[15.0, 6.0, 3.8, 3.3 + d] for d in DELTAS]
    verdict = judges.gaussian_over_batches(with_seen(kurtosis=calm))
    assert verdict.verdict == "supported"
    parts = verdict.details["parts"]
    assert parts["excess kurtosis over batches"]["mean"] == pytest.approx(0.3, rel=1e-9)
    assert parts["log of its fall"]["mean"] == pytest.approx(np.mean([np.log(12 / (0.3 + d)) for d in DELTAS]), rel=1e-9)
    assert judges.gaussian_over_batches(with_seen(kurtosis=[[15.0, 6.0, 3.8, 3.6 + d] for d in DELTAS])).verdict == "contradicted"
    assert judges.gaussian_over_batches(with_seen(kurtosis=[[3.2 + d, 3.3, 3.3, 3.4] for d in DELTAS])).verdict == "contradicted"
    light = with_seen(kurtosis=calm, parameter_tail_index=5 + DELTAS)
    assert judges.gaussian_over_batches(light).verdict == "contradicted"


def test_x12_needs_the_share_and_the_power():
    values = 10.0 ** np.linspace(1, -0.5, 10)

    def runs(exponent, share):
        variances = [(values ** (exponent + d)).tolist() for d in DELTAS]
        return with_seen(eigenvalue=[values.tolist()] * 5, variance=variances, share=share + DELTAS)

    verdict = judges.confined_to_the_top(runs(1.2, 0.7))
    assert verdict.verdict == "supported"
    assert verdict.details["parts"]["power of the eigenvalue, from below"]["mean"] == pytest.approx(1.2, rel=1e-9)
    assert judges.confined_to_the_top(runs(1.2, 0.45)).verdict == "contradicted"
    assert judges.confined_to_the_top(runs(0.4, 0.7)).verdict == "contradicted"
    assert judges.confined_to_the_top(runs(1.6, 0.7)).verdict == "contradicted"
    assert judges.confined_to_the_top(runs(-1.0, 0.7)).verdict == "contradicted"


def test_what_is_observed_follows_from_the_walk_and_the_surface():
    g = torch.Generator().manual_seed(4)
    spectrum = torch.linspace(0.2, 3.0, 12, dtype=F64)
    surface = landscapes.NoisyQuadratic.with_noise(torch.diag(spectrum), torch.diag(spectrum), examples=600, generator=g)
    walk = landscapes.walk(surface, lr=0.02, updates=60, start=surface.theta(), batch_size=8, generator=g)
    seen = batches_and_steps(walk, surface)["gradient_noise"]
    assert seen["batch_size"] == [4, 16, 64, 256]
    total = float(spectrum.sum())
    for b, trace in zip(seen["batch_size"], seen["trace"], strict=True):
        assert trace == pytest.approx(total * (600 - b) / (b * 599), rel=0.35)  # 48 batches, 12 directions: 8 %
    steps = torch.stack([walk.theta(t) for t in range(61)]).diff(dim=0)
    variance = steps.var(dim=0)
    np.testing.assert_allclose(seen["eigenvalue"], spectrum.flip(0)[:10], rtol=1e-6)
    np.testing.assert_allclose(seen["variance"], variance.flip(0)[:10], rtol=1e-6)
    assert seen["share"] == pytest.approx(float(variance[2:].sum() / variance.sum()), rel=1e-6)
    np.testing.assert_allclose(np.array(seen["kurtosis"]), 3.0, atol=0.5)  # nearly Gaussian examples
    assert seen["parameters"] == 12
