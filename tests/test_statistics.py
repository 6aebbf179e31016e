"""Exact values (scipy, closed forms, enumeration), coverage with stated failure probability, wrong use."""

from itertools import combinations
from math import inf, isnan, log, sqrt

import numpy as np
import pytest
import scipy.stats as st

from sgdscope import statistics as s
from sgdscope.errors import ArgumentError

X = np.array([2.3, -1.1, 4.7, 0.2, 3.9, 8.8, -2.6])
Y = np.array([5.1, 0.4, 3.3, -2.0, 6.1, 9.9, -7.3])


def test_mean_interval_is_students():
    mean, stderr, (low, high) = s.mean_interval(X, 0.9)
    expected = st.ttest_1samp(X, 0).confidence_interval(0.9)
    assert (mean, stderr) == pytest.approx((X.mean(), st.sem(X)), rel=1e-12)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert stderr != pytest.approx(X.std() / sqrt(len(X)), rel=1e-3)  # n for n - 1


def test_one_value_bounds_nothing():
    mean, stderr, interval = s.mean_interval([3.0])
    assert mean == pytest.approx(3.0)
    assert isnan(stderr)
    assert interval == (-inf, inf)
    assert s.block_bootstrap([3.0])[2] == (-inf, inf)


@pytest.mark.parametrize(("n", "length"), [(1, 1), (7, 2), (8, 2), (9, 3), (60, 4), (64, 4), (65, 5), (1000, 10), (1001, 11)])
def test_block_length_is_the_cube_root_rounded_up(n, length):
    assert s.block_length(n) == length


def test_bootstrap_of_independent_values_has_the_plug_in_error():
    # the stderr of 4000 resamples is within 5 standard errors of the exact plug-in value: fails with p < 1e-6 over seeds
    x = np.random.default_rng(3).exponential(2.5, size=40)
    value, stderr, _ = s.block_bootstrap(x, block=1, resamples=4000)
    assert value == x.mean()
    assert stderr == pytest.approx(x.std() / sqrt(40), rel=5 / sqrt(2 * 4000))


def test_bootstrap_blocks_see_dependence():
    # pairs of equal values: the error of the mean is sqrt(2) times that of shuffled values; enumeration of circular blocks
    x = np.repeat(np.random.default_rng(5).normal(1.7, 3.0, size=20), 2)
    means = np.array([np.roll(x, -start)[:4].mean() for start in range(40)])  # the exact distribution of one block's mean
    _, stderr, _ = s.block_bootstrap(x, block=4, resamples=4000)
    assert stderr == pytest.approx(means.std() / sqrt(10), rel=5 / sqrt(2 * 4000))
    assert stderr > 1.15 * s.block_bootstrap(x, block=1, resamples=4000)[1]


def test_bootstrap_is_repeatable_and_keeps_rows_together():
    x = np.column_stack([X, 3 * X])
    ratio = s.block_bootstrap(x, lambda rows: rows[:, 1].sum() / rows[:, 0].sum(), resamples=50)
    assert ratio[0] == pytest.approx(3)
    assert ratio[1] == pytest.approx(0, abs=1e-12)
    assert s.block_bootstrap(X, np.median, seed=4) == s.block_bootstrap(X, np.median, seed=4)
    assert s.block_bootstrap(X, seed=4) != s.block_bootstrap(X, seed=5)


def test_bootstrap_leaves_out_resamples_without_a_finite_statistic():
    x = np.array([0.0, 0.0, 0.0, 2.0])
    value, stderr, (low, high) = s.block_bootstrap(x, lambda r: 1 / r.mean(), block=1)  # some resamples are all zero
    assert value == pytest.approx(2.0)
    assert np.isfinite([stderr, low, high]).all()
    assert {low, high} <= {0.5, 2 / 3, 1.0, 2.0}


def test_bootstrap_covers_the_mean_of_a_dependent_series():
    # AR(1) with 0.5, n = 300: nominal 95 %; at 88 % true coverage, fewer than 150 of 200 happens with p < 1e-6.
    # Without blocks the coverage is 74 %: at least 165 of 200 happens there with p < 0.003, and the seed is fixed.
    def covered(block, generator):
        noise, x = generator.normal(size=330), np.zeros(330)
        for t in range(1, 330):
            x[t] = 0.5 * x[t - 1] + noise[t]
        low, high = s.block_bootstrap(x[30:], resamples=199, block=block)[2]
        return low <= 0 <= high

    generator = np.random.default_rng(11)
    with_blocks = sum(covered(None, generator) for _ in range(200))
    without = sum(covered(1, generator) for _ in range(200))
    assert with_blocks >= 165
    assert without < with_blocks


@pytest.mark.parametrize(("successes", "n"), [(0, 12), (3, 17), (17, 17), (29, 60)])
def test_wilson_is_scipys(successes, n):
    expected = st.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert s.wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_share_of_equal_and_of_mixed_flags():
    share, interval = s.share_interval(np.ones(60))
    assert (share, interval) == (1.0, s.wilson(60, 60))
    assert s.share_interval(np.zeros(60))[1] == s.wilson(0, 60)
    share, (low, high) = s.share_interval(np.arange(90) % 3 == 0)
    assert share == pytest.approx(1 / 3)
    assert low <= share <= high


def test_bootstrap_interval_is_two_sided():
    # near-normal resamples: half-width / stderr = 1.96 (1.64 would be the one-sided level); 4000 resamples know it to 4 %
    x = np.random.default_rng(6).normal(3.0, 2.0, size=400)
    for confidence in (0.95, 0.8):
        _, stderr, (low, high) = s.block_bootstrap(x, block=1, resamples=4000, confidence=confidence)
        assert (high - low) / 2 / stderr == pytest.approx(st.norm.ppf((1 + confidence) / 2), rel=0.06)


def test_share_of_flags_that_stick_together_is_less_certain():
    # runs of 4 equal flags: the error is about twice that of independent flags; Wilson and blocks of one do not see it
    flags = np.repeat(np.random.default_rng(4).random(100) < 0.5, 4)
    low, high = s.share_interval(flags)[1]
    alone = s.wilson(int(flags.sum()), 400)
    assert high - low > 1.4 * (alone.high - alone.low)


def test_share_covers():
    # independent flags with p = 0.3, n = 80: true coverage near 93 %; fewer than 255 of 300 happens with p < 1e-6
    generator = np.random.default_rng(2)
    hits = [low <= 0.3 <= high for low, high in (s.share_interval(generator.random(80) < 0.3)[1] for _ in range(300))]
    assert 255 <= sum(hits) < 300


def test_slope_is_scipys():
    expected = st.linregress(X, Y)
    b, stderr, (low, high), r2 = s.slope(X, Y)
    assert (b, stderr, r2) == pytest.approx((expected.slope, expected.stderr, expected.rvalue**2), rel=1e-12)
    half = st.t.ppf(0.975, 5) * expected.stderr
    assert (low, high) == pytest.approx((b - half, b + half), rel=1e-12)
    assert s.slope([1, 3], [2, 7])[0] == pytest.approx(2.5)
    assert s.slope([1, 3], [2, 7])[2] == (-inf, inf)
    assert isnan(s.slope([1, 2, 4], [5, 5, 5])[3])


def j_of(groups):
    return sum((b > a) + 0.5 * (b == a) for i, g in enumerate(groups) for a in g for h in groups[i + 1 :] for b in h)


def arrangements(values, sizes):
    if not sizes:
        yield []
        return
    for chosen in combinations(range(len(values)), sizes[0]):
        rest = [v for i, v in enumerate(values) if i not in chosen]
        for further in arrangements(rest, sizes[1:]):
            yield [[values[i] for i in chosen], *further]


@pytest.mark.parametrize("sizes", [(3, 3, 3), (2, 4, 3), (1, 2, 1, 3), (5, 4)])
def test_jonckheere_equals_enumeration(sizes):
    values = np.random.default_rng(sum(sizes)).normal(size=sum(sizes)).tolist()
    drawn = [values[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    everything = np.array([j_of(g) for g in arrangements(values, sizes)])
    z, p, smallest = s.jonckheere(drawn)
    assert p == pytest.approx((everything >= j_of(drawn)).mean(), rel=1e-12)
    assert smallest == pytest.approx(1 / len(everything), rel=1e-12)
    assert z == pytest.approx((j_of(drawn) - everything.mean()) / everything.std(), rel=1e-12)


def test_jonckheere_with_ties_has_the_exact_variance():
    drawn = [[1.0, 2.0, 2.0], [2.0, 3.0], [3.0, 5.0, 1.0]]
    everything = np.array([j_of(g) for g in arrangements(np.concatenate(drawn).tolist(), (3, 2, 3))])
    z, p, _ = s.jonckheere(drawn)
    assert z == pytest.approx((j_of(drawn) - everything.mean()) / everything.std(), rel=1e-12)
    assert p == pytest.approx(st.norm.sf(z), rel=1e-12)


def test_jonckheere_of_two_groups_is_mann_whitney():
    expected = st.mannwhitneyu(Y, X[:4] + 0.05, alternative="greater", method="exact").pvalue
    assert s.jonckheere([X[:4] + 0.05, Y])[1] == pytest.approx(expected, rel=1e-12)


def test_jonckheere_direction():
    rising = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]
    assert s.jonckheere(rising)[1:] == pytest.approx((1 / 1680, 1 / 1680))
    assert s.jonckheere(rising[::-1])[1] == pytest.approx(1)


def test_spearman_is_scipys():
    tied = np.array([1.0, 2.0, 2.0, 5.0, 4.0, 4.0, 9.0])
    for y in (Y, tied):
        expected = st.spearmanr(X, y)
        assert s.spearman(X, y) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
    assert s.spearman([1, 2, 3], [4, 5, 9]) == (1.0, 0.0)
    assert all(isnan(v) for v in s.spearman([1, 2, 3], [4, 4, 4]))


def test_paired():
    mean, interval, p, smallest = s.paired(X, Y)
    expected = st.ttest_rel(X, Y)
    ci = expected.confidence_interval(0.95)
    assert mean == pytest.approx((X - Y).mean(), rel=1e-12)
    assert interval == pytest.approx((ci.low, ci.high), rel=1e-12)
    wins = int((X > Y).sum())
    assert p == pytest.approx(st.binomtest(wins, 7, 0.5, alternative="greater").pvalue, rel=1e-12)
    assert smallest == pytest.approx(0.5**7)
    assert s.paired([2, 3, 4, 5, 6], [1, 1, 1, 1, 1])[2:] == (1 / 32, 1 / 32)
    assert s.paired([2, 3, 1, 5, 6], [1, 1, 1, 1, 1])[2] == pytest.approx(1 / 16)  # the equal pair is left out
    assert s.paired([2, 3, 1, 5, 6], [1, 1, 1, 1, 1])[3] == pytest.approx(1 / 32)  # what five pairs could have shown
    assert s.paired([1, 2], [1, 2])[2] == pytest.approx(1.0)


def test_tost():
    x = np.array([0.11, -0.23, 0.31, 0.05, -0.02, 0.17])
    low, high = st.ttest_1samp(x, -0.4, alternative="greater").pvalue, st.ttest_1samp(x, 0.4, alternative="less").pvalue
    assert s.tost(x, 0.4) == pytest.approx(max(low, high), rel=1e-9)
    assert s.tost(x, 0.05) > 0.5
    assert (s.tost([0.3, 0.3], 0.4), s.tost([0.5, 0.5], 0.4)) == (0.0, 1.0)


def test_exponential_rate():
    times, censored = [2.0, 3.5, 0.5, 4.0], [False, True, False, True]
    rate, (low, high) = s.exponential_rate(times, censored)
    assert rate == pytest.approx(0.2)
    assert low == pytest.approx(st.chi2.ppf(0.025, 4) / 20, rel=1e-12)
    assert high == pytest.approx(st.chi2.ppf(0.975, 6) / 20, rel=1e-12)
    _, exact = s.exponential_rate(times, [False] * 4)
    assert exact == pytest.approx((st.chi2.ppf(0.025, 8) / 20, st.chi2.ppf(0.975, 8) / 20), rel=1e-12)
    rate, (low, high) = s.exponential_rate(times, [True] * 4)
    assert (rate, low) == (0, 0)
    assert high == pytest.approx(-log(0.025) / 10, rel=1e-12)


def test_exponential_rate_covers_under_censoring():
    # rate 0.7, observation ends at 2: coverage at least 95 %; fewer than 1850 of 2000 happens with p < 1e-6
    generator = np.random.default_rng(8)
    hits = 0
    for _ in range(2000):
        t = generator.exponential(1 / 0.7, size=12)
        low, high = s.exponential_rate(np.minimum(t, 2), t > 2)[1]
        hits += low <= 0.7 <= high
    assert hits >= 1850


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s.mean_interval([]), "x: expected at least 1"),
        (lambda: s.mean_interval([1, np.nan]), "x: 1 of 2 values"),
        (lambda: s.mean_interval([[1.0, 2.0]]), "x: expected an array of 1"),
        (lambda: s.mean_interval([1, 2], confidence=95), "confidence: expected"),
        (lambda: s.block_bootstrap(X, block=0), "block: expected a length from 1 to 7"),
        (lambda: s.block_bootstrap(X, resamples=1), "resamples: expected"),
        (lambda: s.wilson(3, 2), "successes, n"),
        (lambda: s.share_interval([0.5]), "flags: expected zeros and ones"),
        (lambda: s.slope([1, 1], [2, 3]), "x: all 2 values are 1"),
        (lambda: s.slope([1, 2, 3], [2, 3]), "equal lengths, got 3 and 2"),
        (lambda: s.jonckheere([[1, 2]]), "groups: expected at least two"),
        (lambda: s.jonckheere([[1, 2], []]), r"groups\[1\]: expected at least 1"),
        (lambda: s.paired([1, 2], [1]), "a, b: expected equal lengths"),
        (lambda: s.tost([1, 2], 0), "bound: expected a number > 0"),
        (lambda: s.exponential_rate([0.0, 1], [False, False]), "times: expected positive"),
    ],
)
def test_wrong_use(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
