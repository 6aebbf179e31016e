"""The quantity escape against stays counted by hand."""

import numpy as np
import pytest
import torch

from sgdscope.errors import ArgumentError, Outcome
from sgdscope.landscapes import DoubleWell, NoisyQuadratic, Quadratic, walk
from sgdscope.landscapes.walks import _scalars, _trajectory
from sgdscope.quantities.escape import escape, stays

F64 = torch.float64


def path(points):
    """A recorded walk through given points [T + 1, P]."""
    thetas = torch.tensor(points, dtype=F64).reshape(len(points), -1)
    gradients = -thetas.diff(dim=0)
    n = len(gradients)
    columns = _scalars(thetas, gradients, np.ones(n), np.ones(n), 1)
    return _trajectory(thetas, columns, [], {"schema_version": 1}, None)


def test_boxes_are_centred_anew_where_they_were_left():
    walked = path([[0.0, 5.0], [0.3, 5.1], [0.3, 5.6], [0.7, 5.3], [1.0, 5.2], [0.6, 5.2], [0.6, 5.3]])
    found = escape(walked, radius=0.5, window=10)
    assert found["left"].values.tolist() == [0, 1, 0, 1, 0, 0]  # 5.6 is 0.6 from 5.0; then 1.0 is 0.7 from 0.3
    assert found["extent"].values.tolist() == pytest.approx([0.6, 1.2, 0.8, 1.4, 0.8, 0.8])
    assert [float(found[name][0]) for name in ("at_risk", "escapes", "stays")] == [6, 2, 3]
    assert float(found["escape_rate"][0]) == pytest.approx(2 / 6)
    assert float(found["waiting_time"][0]) == pytest.approx(3.0)
    assert float(found["escape_rate_low"][0]) == pytest.approx(0.48441857 / 12)  # chi2_4 at 2.5 %
    assert float(found["escape_rate_high"][0]) == pytest.approx(14.44937534 / 12)  # chi2_6 at 97.5 %
    assert found["exponential_p_outcome"].values.tolist() == [Outcome.not_applicable]


def test_windows_begin_anew():
    walked = path([[0.4 * t] for t in range(9)])
    assert escape(walked, radius=0.5, window=4)["left"].values.tolist() == [0, 1, 0, 1] * 2
    assert escape(walked, radius=0.5, window=3)["left"].values.tolist() == [0, 1, 0, 0, 1, 0, 0, 1]


def test_a_threshold_counts_only_what_began_inside():
    walked = path([[9.0, x] for x in (-1.0, -0.5, 0.2, 0.4, -0.2, -0.1, 0.3, 0.1)])
    found = escape(walked, valley="threshold", at=0.0, coordinate=1)
    assert found["inside"].values.tolist() == [1, 1, 0, 0, 1, 1, 0]
    assert found["left"].values.tolist() == [0, 1, 0, 0, 0, 1, 0]
    assert float(found["escape_rate"][0]) == pytest.approx(2 / 4)
    other = escape(walked, valley="threshold", at=0.0, coordinate=1, above=True)
    assert (float(other["at_risk"][0]), float(other["escapes"][0])) == (3, 1)
    assert found["extent_outcome"].values.tolist() == [Outcome.not_applicable] * 7
    nowhere = escape(walked, valley="threshold", at=-5.0, coordinate=1)
    assert nowhere["at_risk"].values.tolist() == [0]
    assert nowhere["escape_rate_outcome"].values.tolist() == [Outcome.not_applicable]


def test_a_level_of_the_loss():
    surface = Quadratic([[2.0]], [0.3], 0.1)
    walked = path([[0.5], [1.0], [1.4], [0.6]])  # losses 0.14, 0.59, 1.31, 0.19
    found = escape(walked, surface, valley="loss", level=0.6)
    assert found["inside"].values.tolist() == [1, 1, 0]
    assert found["left"].values.tolist() == [0, 1, 0]
    blind = escape(walked, None, valley="loss", level=0.6)
    assert blind["at_risk_outcome"].values.tolist() == [Outcome.not_applicable]


def test_stays_by_hand():
    lengths, censored = stays(np.array([1, 1, 0, 1, 1, 1.0]), np.array([0, 1, 0, 0, 0, 0.0]))
    assert (lengths.tolist(), censored.tolist()) == ([2, 3], [False, True])
    lengths, censored = stays(np.zeros(3), np.zeros(3))
    assert (len(lengths), len(censored)) == (0, 0)


def test_a_noisy_walk_leaves_its_boxes_at_the_rate_of_its_noise():
    # nearly free diffusion of one coordinate: the mean first exit from a box of r takes (r + 0.583 s)^2 / s^2 updates, s = lr sd
    generator = torch.Generator().manual_seed(3)
    surface = NoisyQuadratic(torch.tensor([[1e-9]], dtype=F64), torch.randn(400, 1, generator=generator, dtype=F64) * 1e9)
    lr = 0.01
    walked = walk(surface, lr=lr, updates=4000, start=torch.zeros(1, dtype=F64), batch_size=1, generator=generator)
    step = float(torch.stack([walked.theta(t) for t in range(4001)]).diff(dim=0).std())
    radius = 3.0 * step
    found = escape(walked, radius=radius, window=4000)
    assert float(found["waiting_time"][0]) == pytest.approx((radius / step + 0.583) ** 2, rel=0.15)


def test_points_that_are_not_finite_are_said():
    found = escape(path([[0.0], [float("nan")], [1.0]]), radius=0.5)
    assert found["escape_rate_outcome"].values.tolist() == [Outcome.not_applicable]
    assert np.isnan(found["left"].values).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0.0}, "radius: expected a finite number > 0"),
        ({"valley": "bowl"}, "valley: expected one of box, threshold, loss"),
        ({"valley": "threshold", "coordinate": 2}, "an index below 2"),
        ({"valley": "threshold", "at": float("nan")}, "expected a finite number"),
        ({"valley": "loss"}, "level: the loss valley needs"),
        ({"valley": "threshold", "coordinate": 1.5}, "coordinate: expected a whole number, got 1.5"),
        ({"radius": "wide"}, "radius: expected a number, got 'wide'"),
        ({"window": 0}, "window: expected a whole number >= 1"),
    ],
)
def test_wrong_use(options, message):
    well = DoubleWell(walls=[1.0])
    walked = walk(well, lr=0.1, updates=3, start=well.theta())
    with pytest.raises(ArgumentError, match=message):
        escape(walked, well, **options)
