"""Sums of every iterate: against plain means of all points, merged, cut, kept, gone on with; the recorder that feeds them."""

import itertools

import pytest
import torch
from torch import nn

from sgdscope import contracts
from sgdscope.errors import ArgumentError, NotAvailableError
from sgdscope.experiment import Experiment, run
from sgdscope.experiment.loop import Loop
from sgdscope.experiment.running import KEY_FRAMES
from sgdscope.measure import live
from sgdscope.quantities.averages import KIND, Averages, Block, average, blocks_of, merged
from sgdscope.recorder import Recorder, every
from sgdscope.records import Iterates, Record, Sink

SIZE = 37


def points(count, dtype=torch.float64, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count + 1, SIZE, dtype=dtype, generator=generator).cumsum(0) + 5.0


def summed(walk, **options):
    averages = Averages(**options)
    records = [averages.write_iterate(step, walk[step]) for step in range(1, len(walk))]
    return averages, [record for record in records if record is not None]


def records_of(store, path):
    return [Record(KIND, step, *store.read_record(path, KIND, step)) for step in store.record_steps(path, KIND)]


def test_it_is_a_sink_that_takes_iterates():
    averages: Sink = live("averages", blocks=14)
    assert isinstance(averages, Averages)
    assert isinstance(averages, Iterates)
    with pytest.raises(ArgumentError, match="no option of averages is called 'block'; did you mean 'blocks'"):
        live("averages", block=14)


@pytest.mark.parametrize(("count", "width", "held"), [(100, 8, 13), (128, 8, 8), (517, 3, 11), (700, 8, 22)])
def test_blocks_are_the_means_of_their_iterates(count, width, held):
    walk = points(count)
    averages, _ = summed(walk, blocks=16 if count != 700 else 22, width=width)
    blocks = averages.blocks
    assert len(blocks) == held
    assert blocks[0].first == 1
    assert blocks[-1].last == count
    assert all(b.first == a.last + 1 for a, b in itertools.pairwise(blocks))
    assert len({block.count for block in blocks[:-1]}) == 1
    for block in blocks:
        assert block.count == block.last - block.first + 1
        assert torch.allclose(block.mean, walk[block.first : block.last + 1].mean(0), rtol=0, atol=1e-12)


def test_a_window_between_ends_of_blocks_is_exact_and_a_cut_block_gives_its_share():
    walk = points(640)
    averages, _ = summed(walk, blocks=64, width=8)  # 64 blocks of 8 became 32 of 16
    assert {block.count for block in averages.blocks} == {16}
    mean, seen = average(averages.blocks, 640 - 160, 640)
    assert seen == pytest.approx(1, abs=1e-12)
    assert torch.allclose(mean, walk[481:641].mean(0), rtol=0, atol=1e-12)
    cut, _ = average(averages.blocks, 484, 640)
    shares = (12 * walk[481:497].mean(0) + walk[497:641].sum(0)) / 156
    assert torch.allclose(cut, shares, rtol=0, atol=1e-12)
    assert (cut - walk[485:641].mean(0)).norm() < 0.1 * (mean - walk[485:641].mean(0)).norm() + 0.2


def test_single_precision_is_summed_to_its_own_rounding():
    walk = points(1000, torch.float32)
    averages, _ = summed(walk, blocks=12, width=100)
    mean, _ = average(averages.blocks, 0, 1000)
    assert (mean - walk[1:].double().mean(0)).abs().max() < 2e-6 * walk.abs().max()
    assert averages.blocks[0].mean.dtype == torch.float32


@pytest.mark.parametrize("last", [57, 64, 90, 131, 300])
def test_records_give_the_same_blocks_and_go_on_bit_for_bit(last):
    walk = points(400, torch.float32)
    whole, _ = summed(walk, blocks=12, width=8)
    part, records = summed(walk[: last + 1], blocks=12, width=8)
    closing = part.last_record()
    assert part.last_record() is None
    kept = [*records, *([closing] if closing else [])]
    assert [r.step for r in kept] == sorted({r.step for r in kept})
    read = blocks_of(kept, 12)
    again = Averages(blocks=12, width=8)
    again.go_on(kept)
    assert again.last_record() is None  # nothing new to be kept
    for mine, theirs in zip(read, part.blocks, strict=True):
        assert (mine.first, mine.last, mine.count) == (theirs.first, theirs.last, theirs.count)
        assert torch.equal(mine.mean, theirs.mean)
    more = [again.write_iterate(step, walk[step]) for step in range(last + 1, 401)]
    for mine, theirs in zip(again.blocks, whole.blocks, strict=True):
        assert (mine.first, mine.last) == (theirs.first, theirs.last)
        assert torch.allclose(mine.mean, theirs.mean, rtol=1e-6, atol=1e-6)
    later = [r for r in more if r is not None]
    assert [(b.first, b.last) for b in blocks_of([*kept, *later], 12)] == [(b.first, b.last) for b in whole.blocks][:-1]


def test_a_gap_is_told_as_a_share_that_was_not_seen():
    walk = points(400)
    averages, _ = summed(walk[:101], blocks=12, width=20)
    for step in range(151, 401):
        averages.write_iterate(step, walk[step])
    assert [(b.first, b.last, b.count) for b in averages.blocks[1:4]] == [(41, 80, 40), (81, 170, 40), (171, 210, 40)]
    mean, seen = average(averages.blocks, 40, 210)
    assert seen == pytest.approx(120 / 170)
    assert torch.allclose(mean, torch.cat([walk[41:101], walk[151:211]]).mean(0), rtol=0, atol=1e-12)
    with pytest.raises(NotAvailableError, match="no iterate of the steps 401 to 500 was summed"):
        average(averages.blocks, 400, 500)


def test_blocks_of_unequal_counts_are_weighted_when_they_are_joined():
    one, other = Block(1, 3, 3, torch.tensor([2.0])), Block(4, 8, 5, torch.tensor([7.0]))
    assert merged(one, other).mean.item() == pytest.approx(41 / 8)
    assert (merged(one, other).first, merged(one, other).last, merged(one, other).count) == (1, 8, 8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Averages(blocks=13), "blocks: expected an even number of at least 12, got 13"),
        (lambda: Averages(blocks=10), "blocks: expected an even number of at least 12, got 10"),
        (lambda: Averages(width=0), "width: expected an integer of at least 1, got 0"),
        (lambda: average([], 3.0, 3.0), r"after, last: expected a window .* got \(3.0, 3.0\]"),
        (lambda: blocks_of(summed(points(50), blocks=12)[1], 14), "blocks: the run that is gone on with has 12, got 14"),
    ],
)
def test_wrong_use_is_refused(wrong, message):
    with pytest.raises(ArgumentError, match=message):
        wrong()


# --- fed by a recorder -----------------------------------------------------------------------------------------------


def linear_walk(path, store, updates, averages, *, model=None, resume="error", start=None):
    torch.manual_seed(4)
    model = model or nn.Linear(5, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.7)
    recorder = Recorder(path, model, optimizer, snapshots=every(1), live=[averages], store=store, resume=resume, start_step=start)
    x = torch.randn(updates, 8, 5)
    with recorder:
        for one in x:
            optimizer.zero_grad()
            (model(one) ** 2).mean().backward()
            optimizer.step()
    return recorder, model


@pytest.mark.parametrize("store", ["memory", "zarr"])
def test_every_point_to_which_an_update_led_is_summed_and_kept(store, tmp_path):
    averages = Averages(blocks=12, width=5)
    recorder, _ = linear_walk(tmp_path / "run", store, 93, averages)
    kind = contracts.stores[store].cls
    place = recorder.store if store == "memory" else tmp_path / "run"
    trajectory = kind.read(place)
    assert [b.last for b in averages.blocks] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 93]
    for block in averages.blocks:
        walk = torch.stack([trajectory.theta(step).double() for step in range(block.first, block.last + 1)])
        assert torch.allclose(block.mean.double(), walk.mean(0), rtol=0, atol=1e-7)
    read = blocks_of(records_of(kind, place), 12)
    assert [b.last for b in read] == [b.last for b in averages.blocks]
    assert all(torch.equal(a.mean, b.mean) for a, b in zip(read, averages.blocks, strict=True))


@pytest.mark.parametrize("start", [None, 61, 43])
def test_a_run_that_is_gone_on_with_goes_on_summing(start, tmp_path):
    _, model = linear_walk(tmp_path / "run", "zarr", 61, Averages(blocks=12, width=5))
    averages = Averages(blocks=12, width=5)
    if start == 43:
        kind = contracts.stores["zarr"].cls
        torch.nn.utils.vector_to_parameters(kind.read(tmp_path / "run").theta(43), model.parameters())
    linear_walk(tmp_path / "run", "zarr", 30, averages, model=model, resume="append", start=start)
    trajectory = contracts.stores["zarr"].cls.read(tmp_path / "run")
    last = 43 + 30 if start == 43 else 91
    assert averages.blocks[-1].last == last == trajectory.snapshot_steps[-1]
    _, seen = average(averages.blocks, 0, last)
    missing = 3 if start == 43 else 0  # the block of 41..43 was cut and nobody kept its sum
    assert seen == pytest.approx(1 - missing / last)
    for block in averages.blocks:
        steps = [s for s in range(block.first, block.last + 1) if not (missing and 41 <= s <= 43)]
        if len(steps) != block.count:
            continue
        walk = torch.stack([trajectory.theta(step).double() for step in steps])
        assert torch.allclose(block.mean.double(), walk.mean(0), rtol=0, atol=1e-7)
    assert len(blocks_of(records_of(contracts.stores["zarr"].cls, tmp_path / "run"), 12)) == len(averages.blocks)


def experiment(updates=90):
    return Experiment(
        data={"dataset": "digits"},
        model={"name": "mlp", "hidden": [12]},
        phases=[{"walker": "sgd", "lr": 0.1, "momentum": 0.5, "batch_size": 32, "updates": updates}],
        record={"mode": "replay", "keyframes": 25, "averages": 12},
    )


class Stopped(Exception):
    pass


@pytest.mark.parametrize("moment", [26, 75, 76, 83])
def test_an_experiment_that_was_interrupted_has_the_same_sums_bit_for_bit(moment, tmp_path):
    def stop(sentence, share):
        if sentence == f"update {moment} of 90":
            raise Stopped("here")

    kind = contracts.stores["zarr"].cls
    with pytest.raises(Stopped, match="here"):
        run(experiment(), tmp_path / "stopped", progress=stop)
    assert max(kind.record_steps(tmp_path / "stopped", KEY_FRAMES)) == (25 if moment == 26 else 50 if moment == 75 else 75)
    run(experiment(), tmp_path / "stopped")
    run(experiment(), tmp_path / "whole")
    mine, theirs = (blocks_of(records_of(kind, tmp_path / name), 12) for name in ("stopped", "whole"))
    assert [b.last for b in theirs] == [8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 90]
    assert [(b.first, b.last, b.count) for b in mine] == [(b.first, b.last, b.count) for b in theirs]
    assert all(torch.equal(a.mean, b.mean) for a, b in zip(mine, theirs, strict=True))
    loop = Loop(experiment())
    with loop.random.installed(1):
        walk = [loop.snapshot().theta.double()]
        while loop.step < 90:
            loop.advance()
            walk.append(loop.snapshot().theta.double())
    for block in theirs:
        assert torch.allclose(block.mean.double(), torch.stack(walk[block.first : block.last + 1]).mean(0), rtol=0, atol=1e-7)
