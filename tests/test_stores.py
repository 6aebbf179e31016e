"""Conformance of every store in the catalogue; then what only a store on disk can get wrong."""

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec

from sgdscope import files
from sgdscope.contracts import stores
from sgdscope.errors import OUTCOME_ATTRS, ArgumentError, CorruptRunError, DataError, NotAvailableError, StoreError
from sgdscope.records import Header, Record, Snapshot, StepBlock, pack_batch, unpack_batch
from sgdscope.stores.zarr import ZarrStore
from sgdscope.vector import Layout

WEIGHTS = {"w": torch.zeros(3, 2), "b": torch.zeros(5, dtype=torch.bfloat16)}
BUFFERS = {"mean": torch.zeros(2), "count": torch.zeros((), dtype=torch.int64)}
HEADER = Header(Layout.of(WEIGHTS), Layout.of(BUFFERS), {"seed": 3, "lr": 0.25, "nested": {"words": ["a", "ü"]}})
P, Q = 11, 3


def theta(step: int, size: int = P) -> torch.Tensor:
    return torch.arange(size, dtype=torch.float32) * 0.37 + step * 1.5


def buffers(step: int) -> torch.Tensor:
    return torch.tensor([0.5 * step, -3.25, 2.0**40 + step], dtype=torch.float64)


def snapshot(step: int) -> Snapshot:
    return Snapshot(step, theta(step), buffers(step))


def block(first: int, last: int, *more: str) -> StepBlock:
    steps = np.arange(first, last, dtype=np.int64)
    return StepBlock(steps, {"loss": 2.5 / (1.0 + steps), "lr": np.full(len(steps), 0.3), **dict.fromkeys(more, steps * 1.7)})


class Place:
    """A run of one of the stores: where it is, and how to open it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.cls, self.persistent = stores[name].cls, "persistent" in stores[name].capabilities
        self.run = folder / "run" if self.persistent else None

    def open(self, header: Header = HEADER, **options):
        store = self.cls(self.run, **options)
        store.begin(header)
        self.run = self.run if self.persistent else store
        return store

    def read(self):
        return self.cls.read(self.run)


@pytest.fixture(params=list(stores))
def place(request, tmp_path):
    return Place(request.param, tmp_path)


def test_catalogue_has_both():
    assert {"zarr", "memory"} <= set(stores)


# --- conformance -----------------------------------------------------------------------------------------------------


def test_what_goes_in_comes_out(place):
    store = place.open()
    odd = Snapshot(2, torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, *range(7)]), buffers(2))
    store.write_snapshot(snapshot(0))
    store.write_steps(block(0, 2))
    store.write_snapshot(odd)
    store.write_steps(block(2, 1500, "mine"))
    store.flush()
    assert store.stored_steps == 1500
    store.close()
    store.close()
    trajectory = place.read()
    assert trajectory.settings == HEADER.settings
    assert trajectory.header.layout == HEADER.layout
    assert trajectory.header.buffer_layout == HEADER.buffer_layout
    steps = trajectory.steps
    assert list(steps) == ["loss", "lr", "mine"]
    np.testing.assert_array_equal(steps.step, np.arange(1500))
    np.testing.assert_array_equal(steps.loss, 2.5 / (1.0 + np.arange(1500)))
    np.testing.assert_array_equal(steps.mine, [np.nan, np.nan, *(np.arange(2, 1500) * 1.7)])
    assert steps.loss.attrs["units"] == "loss"
    assert trajectory.snapshot_steps.tolist() == [0, 2]
    assert trajectory.theta(0).numpy().tobytes() == theta(0).numpy().tobytes()
    assert trajectory.theta(2).numpy().tobytes() == odd.theta.numpy().tobytes()
    assert trajectory.buffers(2)["count"].item() == 2**40 + 2
    assert trajectory.buffers(2)["count"].dtype == torch.int64
    assert trajectory.between(1, 5).snapshot_steps.tolist() == [2]


def test_a_run_that_saw_nothing(place):
    place.open().close()
    trajectory = place.read()
    assert trajectory.steps.sizes["step"] == 0
    assert len(trajectory.snapshot_steps) == 0
    with pytest.raises(NotAvailableError, match="step 3"):
        trajectory.theta(3)


def test_readable_before_it_is_closed(place):
    store = place.open()
    store.write_steps(block(0, 70))
    store.write_snapshot(snapshot(4))
    assert place.read().steps.sizes["step"] == 70
    assert torch.equal(place.read().theta(4), theta(4))


def test_steps_must_increase(place):
    store = place.open()
    store.write_steps(block(3, 7))
    with pytest.raises(ArgumentError, match="step 6 does not follow step 6"):
        store.write_steps(block(6, 9))
    with pytest.raises(ArgumentError, match="step 8 does not follow step 8"):
        store.write_steps(StepBlock(np.array([8, 8]), {}))
    store.write_snapshot(snapshot(5))
    with pytest.raises(ArgumentError, match="step 5 does not follow 5"):
        store.write_snapshot(snapshot(5))
    store.write_record(Record("batches", 5, {"x": np.ones(2)}))
    with pytest.raises(ArgumentError, match="step 4 of 'batches' does not follow 5"):
        store.write_record(Record("batches", 4, {}))
    store.write_record(Record("keyframes", 4, {}))
    store.write_steps(block(20, 22))
    assert place.read().steps.step.values.tolist() == [3, 4, 5, 6, 20, 21]


def test_wrong_shapes_are_refused(place):
    store = place.open()
    with pytest.raises(ArgumentError, match=r"'loss' has shape \(3,\), expected \(2,\)"):
        store.write_steps(StepBlock(np.array([0, 1]), {"loss": np.zeros(3)}))
    with pytest.raises(ArgumentError, match="cannot be called 'step'"):
        store.write_steps(StepBlock(np.array([0]), {"step": np.zeros(1)}))
    with pytest.raises(ArgumentError, match="snapshot: theta"):
        store.write_snapshot(Snapshot(0, torch.zeros(P + 1), torch.zeros(Q)))
    with pytest.raises(ArgumentError, match="'x' has dtype object"):
        store.write_record(Record("batches", 0, {"x": np.array([{}])}))
    assert place.read().steps.sizes["step"] == 0


def test_writing_needs_begin_and_ends_with_close(place):
    with pytest.raises(StoreError, match="call begin first"):
        place.cls(place.run).write_steps(block(0, 1))
    store = place.open()
    store.close()
    with pytest.raises(StoreError, match="before close"):
        store.write_snapshot(snapshot(0))


def test_reads_are_copies_and_writes_are_too(place):
    store = place.open()
    mine, scalars, array = theta(0), np.array([0.5]), np.array([7.5])
    store.write_snapshot(Snapshot(0, mine, buffers(0)))
    store.write_steps(StepBlock(np.array([0]), {"loss": scalars}))
    store.write_record(Record("batches", 0, {"x": array}, {"m": [1]}))
    mine.fill_(9)
    scalars.fill(9)
    array.fill(9)
    for _ in range(2):
        trajectory = place.read()
        got, (arrays, meta) = trajectory.theta(0), place.cls.read_record(place.run, "batches", 0)
        assert torch.equal(got, theta(0))
        assert trajectory.steps.loss.values.tolist() == [0.5]
        assert arrays["x"].tolist() == [7.5]
        assert meta == {"m": [1]}
        got.fill_(-1)
        trajectory.read_snapshot(0).theta.fill_(-1)
        trajectory.steps.loss.values[:] = -1
        arrays["x"].fill(-1)
        meta["m"].append(2)
        trajectory.settings["seed"] = -1
    assert place.read().settings["seed"] == 3


def test_append_drops_what_the_killed_job_will_do_again(place):
    store = place.open()
    store.write_steps(block(0, 1100))
    for step in range(0, 1101, 100):
        store.write_snapshot(snapshot(step))
    for step in (10, 700, 1000):
        store.write_record(Record("keyframes", step, {"x": np.full(2, step)}))
    store.close()
    store = place.open(resume="append", start_step=700)
    assert store.stored_steps == 700
    assert place.read().steps.sizes["step"] == 700
    assert place.read().snapshot_steps.tolist() == list(range(0, 700, 100))
    assert place.cls.record_steps(place.run, "keyframes") == [10]
    store.write_snapshot(Snapshot(700, theta(-3), buffers(1)))
    store.write_steps(block(700, 703, "late"))
    store.write_record(Record("keyframes", 700, {"x": np.full(2, 0.5)}))
    store.close()
    trajectory = place.read()
    np.testing.assert_array_equal(trajectory.steps.loss, 2.5 / (1.0 + np.arange(703)))
    assert np.flatnonzero(~np.isnan(trajectory.steps.late)).tolist() == [700, 701, 702]
    assert torch.equal(trajectory.theta(700), theta(-3))
    assert place.cls.read_record(place.run, "keyframes", 700)[0]["x"].tolist() == [0.5, 0.5]


def test_append_without_a_step_goes_on_after_the_last_update(place):
    store = place.open(resume="append")
    store.write_steps(block(0, 5))
    for step in (0, 5, 6):
        store.write_snapshot(snapshot(step))
    store.close()
    store = place.open(resume="append")
    assert store.stored_steps == 5
    store.write_snapshot(snapshot(5))
    store.write_steps(block(5, 6))
    store.close()
    assert place.read().snapshot_steps.tolist() == [0, 5]
    assert place.read().steps.sizes["step"] == 6


def test_append_takes_the_same_model_only(place):
    place.open().close()
    other = Header(Layout.of({"w": torch.zeros(2, 3), "b": WEIGHTS["b"]}), HEADER.buffer_layout, {})
    with pytest.raises(StoreError, match=r"3, 2\).*2, 3\).*the same model"):
        place.open(other, resume="append")
    place.open(resume="append").close()


def test_a_second_run_in_the_same_place_is_refused(place):
    store = place.open()
    with pytest.raises(StoreError, match=r"begin was called already|already holds"):
        store.begin(HEADER)
    store.close()
    if place.persistent:
        with pytest.raises(StoreError, match=r"run: holds a run already; .* resume='append'"):
            place.open()
    with pytest.raises(ArgumentError, match="resume: expected 'error' or 'append', got 'yes'"):
        place.cls(place.run, resume="yes")


def test_batches_come_back_in_their_structure(place):
    store = place.open()
    batch = {"x": torch.randn(2, 3).bfloat16(), "more": [(torch.tensor([1, 2]), None), 2.5, "text", float("inf")], 3: True}
    arrays, spec = pack_batch(batch)
    store.write_record(Record("batches", 4, arrays, {"spec": spec}))
    back = place.read().batch(4)
    assert torch.equal(back["x"], batch["x"])
    assert back["x"].dtype == torch.bfloat16
    assert isinstance(back["more"][0], tuple)
    assert back["more"][0][0].tolist() == [1, 2]
    assert back["more"][0][1:] == (None,)
    assert back["more"][1:] == [2.5, "text", float("inf")]
    assert back[3] is True
    with pytest.raises(NotAvailableError, match="no record 'batches' of step 5"):
        place.read().batch(5)


def test_every_plain_dtype_and_shape(place):
    store = place.open()
    arrays = {name: np.ones((2, 1, 3), name) for name in files.DTYPES}
    arrays |= {"scalar": np.array(2.5), "empty": np.zeros((0, 4)), "a/b: ü%~": np.arange(3), "big": np.arange(5, dtype=">i4")}
    arrays |= {
        "strided": np.arange(12.0).reshape(3, 4)[:, ::2].T,
        ".hidden": np.ones(1),
        "zarr.json": np.ones(2),
        "..": np.ones(3),
    }
    store.write_record(Record("odd kind/..", 0, arrays))
    back, _ = place.cls.read_record(place.run, "odd kind/..", 0)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype or name == "big"
    assert place.cls.record_steps(place.run, "odd kind/..") == [0]
    assert place.cls.record_steps(place.run, "other") == []


def measured(factor: float) -> xr.Dataset:
    data = xr.Dataset(
        {
            "height": ("step", np.array([1.5, np.nan, 2.5]) * factor, {"units": "loss", "error": "exact", "n": np.int64(4)}),
            "height_outcome": ("step", np.array([0, 1, 2], np.int8), OUTCOME_ATTRS),
            "whole": ((), np.float64(factor), {"units": "1"}),
            "norm": (("step", "layer"), np.arange(6.0).reshape(3, 2)),
        },
        coords={"step": [3, 4, 9], "layer": ["fc1.weight", "fc2 ü"], "window_first": ("step", [0, 0, 5])},
        attrs={"surface": {"n": 7}, "options": ["a", 1]},
    )
    return data.transpose("layer", "step")


def test_measurements_are_kept_and_replaced(place):
    store = place.open()
    place.cls.write_measurement(place.run, "valley", measured(2.0))
    place.cls.write_measurement(place.run, "motion", measured(3.0))
    place.cls.write_measurement(place.run, "valley", measured(5.0))
    store.close()
    tree = place.cls.measurements(place.run)
    assert set(tree.children) == {"valley", "motion"}
    for name, factor in (("valley", 5.0), ("motion", 3.0)):
        expected = measured(factor)
        xr.testing.assert_identical(tree[name].to_dataset(), expected)
        assert set(tree[name].coords) == {"step", "layer", "window_first"}
        assert tree[name].height_outcome.dtype == np.int8
    tree["valley"].height[:] = 0
    assert place.cls.measurements(place.run)["valley"].height.values[:1].tolist() == [7.5]


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batches_that_cannot_be_kept():
    with pytest.raises(ArgumentError, match=r"batch\['a'\]\[1\]: a object cannot be kept"):
        pack_batch({"a": [1, object()]})
    with pytest.raises(ArgumentError, match="the key None"):
        pack_batch({None: 1})
    with pytest.raises(ArgumentError, match="dtype object"):
        pack_batch(np.array([None]))
    with pytest.raises(ArgumentError, match="sparse"):
        pack_batch(torch.eye(2).to_sparse())


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"structure": 3},
        {"structure": {"kind": "tensor", "array": "gone", "dtype": "float32"}},
        {"structure": {"kind": "tensor", "array": "a0", "dtype": "load"}},
        {"structure": {"kind": "object", "array": "a0"}},
        {"structure": {"kind": "value", "value": [1]}},
    ],
)
def test_descriptions_that_do_not_fit(spec):
    with pytest.raises(DataError, match="does not fit its arrays"):
        unpack_batch({"a0": np.ones(2)}, spec)


# --- zarr: what others read ------------------------------------------------------------------------------------------


def make_run(path: Path, **options) -> ZarrStore:
    store = ZarrStore(path, **options)
    store.begin(HEADER)
    store.write_steps(block(0, 1000))
    store.write_steps(block(1000, 2100, "mine"))
    for step in range(5):
        store.write_snapshot(snapshot(step))
        store.write_record(Record("batches", step, *pack_of(step)))
    return store


def pack_of(step: int):
    arrays, spec = pack_batch((torch.full((2, 3), 0.5 * step), "label"))
    return arrays, {"spec": spec}


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    make_run(path).close()
    ZarrStore.write_measurement(path, "valley", measured(2.0))
    return path


@pytest.mark.parametrize("dtype", files.DTYPES)
def test_arrays_are_what_zarr_itself_writes(tmp_path, dtype):
    values = (np.arange(10) % 2 if dtype == "bool" else np.arange(10)).astype(dtype)
    theirs = zarr.create_array(
        tmp_path / "a", shape=(10,), chunks=(4,), dtype=dtype, compressors=[Crc32cCodec()], dimension_names=["step"]
    )
    theirs[:] = values
    ours = files.array_node([10], [4], dtype, ["step"], {})
    found = json.loads((tmp_path / "a" / "zarr.json").read_text())
    ignored = {"fill_value"} | ({"codecs"} if np.dtype(dtype).itemsize == 1 else set())
    assert {k: v for k, v in found.items() if k not in ignored} == {k: v for k, v in ours.items() if k not in ignored}
    for k in range(2):
        assert (tmp_path / "a" / "c" / str(k)).read_bytes() == b"".join(files.sealed(values[4 * k : 4 * k + 4]))


def test_the_run_opens_without_us(run):
    tree = xr.open_datatree(run, engine="zarr")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Object at .* is not recognized")  # run.json and its like: no part of a zarr hierarchy
        slow = xr.open_datatree(run, engine="zarr", consolidated=False)
    ours = ZarrStore.read(run)
    for opened in (tree, slow):
        assert opened["snapshots"].theta.dtype == np.float32
        for name in ("loss", "lr", "mine", "step"):
            np.testing.assert_array_equal(opened["steps"][name], ours.steps[name])
        for row, step in enumerate(ours.snapshot_steps):
            np.testing.assert_array_equal(opened["snapshots"].theta[row], ours.theta(step))
            np.testing.assert_array_equal(opened["snapshots"].buffers[row], buffers(step))
        np.testing.assert_array_equal(opened["snapshots"].step, ours.snapshot_steps)
    assert set(tree.children) == {"steps", "snapshots"}
    assert "measurements" in slow.children
    alone = xr.open_dataset(run / "measurements" / "valley", engine="zarr")
    assert alone.layer.values.tolist() == measured(2.0).layer.values.tolist()
    xr.testing.assert_equal(alone.drop_vars("layer"), measured(2.0).drop_vars("layer"))
    assert alone.height_outcome.attrs["flag_meanings"] == OUTCOME_ATTRS["flag_meanings"]


def test_an_unfinished_run_opens_without_us(tmp_path):
    store = make_run(tmp_path / "run")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Object at .* is not recognized")
        tree = xr.open_datatree(tmp_path / "run", engine="zarr", consolidated=False)
    there = tree["steps"].step.values
    assert len(there) == 4096
    np.testing.assert_array_equal(there[:2100], np.arange(2100))
    assert (there[2100:] == -1).all()
    np.testing.assert_array_equal(tree["steps"].loss[:2100], 2.5 / (1.0 + np.arange(2100)))
    store.close()


def test_a_snapshot_in_several_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ELEMENTS", 4)
    make_run(tmp_path / "run").close()
    assert len(list((tmp_path / "run/snapshots/theta/c/0").iterdir())) == 3
    assert torch.equal(ZarrStore.read(tmp_path / "run").theta(3), theta(3))
    whole = zarr.open_array(tmp_path / "run/snapshots/theta", mode="r")[:]
    np.testing.assert_array_equal(whole, torch.stack([theta(step) for step in range(5)]))


def test_float64_and_no_buffers(tmp_path):
    header = Header(Layout.of({"w": torch.zeros(2, dtype=torch.float64)}), Layout.of({}), {})
    with_none = ZarrStore(tmp_path / "run", fsync=True)
    with_none.begin(header)
    with_none.write_snapshot(Snapshot(0, torch.tensor([1 / 3, 1e300], dtype=torch.float64), torch.zeros(0)))
    with_none.write_steps(block(0, 3))
    with_none.write_record(Record("batches", 1, {"x": np.ones(2)}))
    with_none.close()
    trajectory = ZarrStore.read(tmp_path / "run")
    assert trajectory.theta(0).tolist() == [1 / 3, 1e300]
    assert trajectory.buffers(0) == {}


def test_closing_and_opening_tidy_up(tmp_path):
    store = make_run(path := tmp_path / "run")
    (path / "chunk.partial").write_bytes(b"half")
    (path / "record.partial").mkdir()
    (path / "snapshots/theta/c/5").mkdir()
    (path / "snapshots/theta/c/5/0").write_bytes(b"uncommitted")
    store._held.close()
    again = ZarrStore(path, resume="append")
    again.begin(HEADER)
    assert again.stored_steps == 2100
    assert not list(path.glob("*.partial"))
    assert not (path / "snapshots/theta/c/5").exists()
    again.close()
    assert zarr.open_array(path / "steps/step", mode="r").shape == (2100,)
    assert ZarrStore.read(path).snapshot_steps.tolist() == [0, 1, 2, 3, 4]


def test_a_replacement_that_was_killed_leaves_the_old_measurement(run):
    (run / "measurements/valley").rename(run / "measurements/valley.old")
    (run / "measurements/motion.partial").mkdir()
    tree = ZarrStore.measurements(run)
    assert list(tree.children) == ["valley"]
    xr.testing.assert_identical(tree["valley"].to_dataset(), measured(2.0))
    ZarrStore.write_measurement(run, "valley", measured(3.0))
    assert ZarrStore.measurements(run)["valley"].whole.values.tolist() == pytest.approx(3.0)


def test_measurements_of_other_types_are_refused(run):
    with pytest.raises(ArgumentError, match="'when' has dtype datetime64"):
        ZarrStore.write_measurement(run, "x", xr.Dataset({"when": ("t", np.array(["2020-01-01"], "M8[ns]"))}))
    with pytest.raises(ArgumentError, match="attributes of 'a': expected JSON types"):
        ZarrStore.write_measurement(run, "x", xr.Dataset({"a": ("t", np.ones(2), {"f": print})}))
    with pytest.raises(StoreError, match="there is no run here"):
        ZarrStore.write_measurement(run / "steps", "x", measured(1.0))
    assert list(ZarrStore.measurements(run).children) == ["valley"]


def test_a_folder_of_runs_is_no_run_and_its_runs_are_named(tmp_path):
    from sgdscope.files import Run

    for name in ("lr0.6", "lr0.05"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    with pytest.raises(StoreError, match=r"there is no run here \(no run.json\); give one of the runs inside: lr0.05, lr0.6"):
        Run(tmp_path).header()


def test_settings_must_be_json(tmp_path):
    with pytest.raises(ArgumentError, match="settings: expected JSON types only"):
        ZarrStore(tmp_path / "run").begin(Header(HEADER.layout, HEADER.buffer_layout, {"f": print}))
    assert not (tmp_path / "run").exists()


# --- zarr: the directory ---------------------------------------------------------------------------------------------


def test_places_that_cannot_hold_a_run(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for resume in ("error", "append"):
        with pytest.raises(StoreError, match=r"full: holds other files \(thesis.tex\) and no run; choose another path"):
            ZarrStore(tmp_path / "full", resume=resume).begin(HEADER)
        for inside in ("file", "file/run"):
            with pytest.raises(StoreError, match=r"file.*cannot be written: .*(exists|Not a directory).*another path"):
                ZarrStore(tmp_path / inside, resume=resume).begin(HEADER)
    with pytest.raises(StoreError, match="/proc/run: cannot be written"):
        ZarrStore("/proc/run").begin(HEADER)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreError, match="there is no run here"):
        ZarrStore.read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "empty").close()


def test_a_start_that_was_killed_can_be_repeated(tmp_path, monkeypatch):
    written = []

    def die(self, relative, *buffers, real=files.RunFiles.write):
        written.append(relative)
        if relative == "run.json":
            raise KeyboardInterrupt
        real(self, relative, *buffers)

    with monkeypatch.context() as patched:
        patched.setattr(files.RunFiles, "write", die)
        with pytest.raises(KeyboardInterrupt):
            make_run(tmp_path / "run")
    assert written[-1] == "run.json"
    with pytest.raises(StoreError, match="no run here"):
        ZarrStore.read(tmp_path / "run")
    make_run(tmp_path / "run").close()
    assert ZarrStore.read(tmp_path / "run").steps.sizes["step"] == 2100


def test_one_writer_at_a_time(tmp_path):
    first = make_run(tmp_path / "run")
    with pytest.raises(StoreError, match=f"run: is being written by process {os.getpid()}"):
        ZarrStore(tmp_path / "run", resume="append").begin(HEADER)
    first.write_steps(block(2100, 2200))
    first.close()
    second = ZarrStore(tmp_path / "run", resume="append")
    second.begin(HEADER)
    second.close()
    assert ZarrStore.read(tmp_path / "run").steps.sizes["step"] == 2200


WATCHED = """
import sys, numpy as np, torch
from sgdscope.records import Header, Snapshot, StepBlock
from sgdscope.stores.zarr import ZarrStore
from sgdscope.vector import Layout
store = ZarrStore(sys.argv[1])
store.begin(Header(Layout.of({"w": torch.zeros(50_000)}), Layout.of({}), {}))
print("ready", flush=True)
for at in range(0, 3_000, 50):
    steps = np.arange(at, at + 50)
    late = {"late": steps * 3.0} if at >= 2000 else {}
    store.write_steps(StepBlock(steps, {"a": steps * 2.0, "b": steps * 5.0, **late}))
    store.write_snapshot(Snapshot(at, torch.full((50_000,), float(at)), torch.zeros(0)))
store.close()
"""


def test_a_reader_sees_whole_rows_while_another_process_writes(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WATCHED, tmp_path / "run"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"ready\n"
        looks, seen = 0, set()
        while writer.poll() is None:
            trajectory = ZarrStore.read(tmp_path / "run")
            steps = trajectory.steps
            if not steps.sizes["step"]:
                continue  # a run has no columns before its first block
            np.testing.assert_array_equal(steps.a, steps.step * 2.0)
            np.testing.assert_array_equal(steps.b, steps.step * 5.0)
            if "late" in steps:
                np.testing.assert_array_equal(steps.late[steps.step >= 2000], steps.step[steps.step >= 2000] * 3.0)
            for step in trajectory.snapshot_steps[-2:]:
                assert torch.equal(trajectory.theta(step), torch.full((50_000,), float(step)))
            looks, seen = looks + 1, seen | {steps.sizes["step"]}
        assert writer.returncode == 0
    assert looks > 5
    assert len(seen) > 3
    assert ZarrStore.read(tmp_path / "run").steps.sizes["step"] == 3_000


# --- zarr: corruption ------------------------------------------------------------------------------------------------


def read_all(path: Path) -> None:
    trajectory = ZarrStore.read(path)
    trajectory.steps.load()
    for step in trajectory.snapshot_steps:
        trajectory.read_snapshot(int(step))
        trajectory.batch(step)
    ZarrStore.measurements(path)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0x10
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_any_damaged_chunk_is_named(run, damage):
    read_all(run)
    chunks = [p for p in sorted(run.rglob("*")) if p.is_file() and "c" in p.relative_to(run).parts]
    assert len(chunks) > 30
    for chunk in chunks:
        kept = chunk.read_bytes()
        damage(chunk)
        with pytest.raises(CorruptRunError) as caught:
            read_all(run)
        assert str(run) in str(caught.value)
        assert str(chunk.relative_to(run)) in str(caught.value)
        chunk.write_bytes(kept)
    read_all(run)


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_any_damaged_metadata_is_named(run, damage):
    texts = [p for p in sorted(run.rglob("*.json")) if p.parent not in (run / "steps", run / "snapshots", run / "measurements")]
    texts.remove(run / "zarr.json")  # for others only: we do not read it
    assert len(texts) > 15
    for text in texts:
        kept = text.read_bytes()
        damage(text)
        with pytest.raises(StoreError, match=text.relative_to(run).as_posix()):
            read_all(run)
        text.write_bytes(kept)
    read_all(run)


def test_what_is_not_damaged_stays_readable(run):
    flip(run / "snapshots/theta/c/2/0")
    flip(run / "steps/loss/c/1")
    trajectory = ZarrStore.read(run)
    assert torch.equal(trajectory.theta(1), theta(1))
    assert torch.equal(trajectory.theta(3), theta(3))
    with pytest.raises(CorruptRunError, match=r"snapshots/theta/c/2/0 \(step 2\) fails its checksum"):
        trajectory.theta(2)
    with pytest.raises(CorruptRunError, match=r"steps 1024 to 2047: .*steps/loss/c/1 fails its checksum"):
        _ = trajectory.steps
    assert ZarrStore.read_record(run, "batches", 3)[0]["a0"].tolist() == [[1.5] * 3] * 2


# --- zarr: hostile directories ---------------------------------------------------------------------------------------


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("pickle-was-executed",))


def hostile_npy(run: Path) -> None:
    shutil.rmtree(run / "snapshots/theta")
    np.save(run / "snapshots" / "theta", np.array([Bomb()]), allow_pickle=True)
    (run / "snapshots/theta.npy").rename(run / "snapshots/theta")


def hostile_pickle(run: Path) -> None:
    np.save(run / "x.npy", np.array([Bomb()]), allow_pickle=True)
    (run / "x.npy").rename(run / "records/batches/1/a0/c/0/0")


def hostile_header(run: Path, **layout) -> None:
    data = json.loads((run / "run.json").read_text())
    edit(run / "run.json", layout=data["layout"] | layout)


def hostile_fifo(run: Path) -> None:
    (run / "snapshots/theta/c/1/0").unlink()
    os.mkfifo(run / "snapshots/theta/c/1/0")


BIG = 10**15
HOSTILE = {
    "npy for an array": (hostile_npy, "snapshots/theta/zarr.json is missing"),
    "pickle for a chunk": (hostile_pickle, "records/batches/1/a0/c/0/0 has .* bytes, expected 28"),
    "a pipe for a chunk": (hostile_fifo, "theta/c/1/0 .*is not a plain file"),
    "object dtype": (lambda r: edit(r / "steps/loss/zarr.json", data_type="object"), "the data type object"),
    "pickled codec": (lambda r: edit(r / "steps/loss/zarr.json", codecs=[{"name": "pickle"}]), "has codecs = .*pickle"),
    "no checksum": (lambda r: edit(r / "steps/loss/zarr.json", codecs=[{"name": "bytes"}]), "has codecs"),
    "other chunks": (
        lambda r: edit(r / "steps/loss/zarr.json", chunk_grid={"name": "regular", "configuration": {"chunk_shape": [BIG]}}),
        "has chunk_grid",
    ),
    "absurd theta": (lambda r: edit(r / "snapshots/theta/zarr.json", shape=[5, BIG]), "has shape"),
    "absurd rows": (
        lambda r: edit(r / "steps/step/zarr.json", attributes={"committed": BIG, "columns": ["loss"]}),
        "steps/step holds 2100 steps, expected at least 10000",
    ),
    "absurd header": (lambda r: hostile_header(r, shapes=[[BIG], [5]]), "snapshots/theta/zarr.json .*has chunk_grid"),
    "overflowing header": (lambda r: hostile_header(r, shapes=[[2**61, 2**61], [5]]), "run.json is not the header"),
    "negative header": (lambda r: hostile_header(r, shapes=[[-3, -2], [5]]), "run.json is not the header"),
    "header of another size": (lambda r: hostile_header(r, shapes=[[3, 3], [5]]), "has chunk_grid"),
    "no dtype": (lambda r: hostile_header(r, dtypes=["load", "float32"]), "a dtype is unknown"),
    "names for shapes": (lambda r: hostile_header(r, shapes="ab"), "run.json is not the header"),
    "absurd record": (lambda r: edit(r / "records/batches/2/a0/zarr.json", shape=[BIG, 3]), "has chunk_grid"),
    "array of arrays": (lambda r: (r / "run.json").write_text("[" * 100_000), "run.json is not JSON"),
    "list for a header": (lambda r: (r / "run.json").write_text("[]"), "run.json is not a JSON object"),
    "column that climbs": (
        lambda r: edit(r / "steps/step/zarr.json", attributes={"committed": 0, "columns": ["../../out"]}),
        r"steps/%2E%2E%2F%2E%2E%2Fout/zarr.json is missing",
    ),
    "newer schema": (lambda r: edit(r / "run.json", schema_version=99), "schema 99, newer than"),
    "nested batch": (
        lambda r: edit(r / "records/batches/0/meta.json", meta={"spec": {"structure": {"kind": "tensor"}}}),
        "does not describe a batch",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_directories_are_refused(run, name, monkeypatch):
    monkeypatch.chdir(run.parent)
    attack, message = HOSTILE[name]
    attack(run)
    with pytest.raises(StoreError, match=message):
        read_all(run)
    assert not list(run.parent.rglob("pickle-was-executed"))


@pytest.mark.parametrize(
    "inside", ["snapshots/theta/c/1/0", "snapshots/theta", "steps", "records/batches/1", "measurements", "run.json"]
)
def test_links_that_leave_the_run_are_not_followed(run, inside):
    outside = run.parent / "outside"
    (run / inside).rename(outside)
    (run / inside).symlink_to(outside)
    with pytest.raises(StoreError, match="leaves the run directory"):
        read_all(run)
    before = sorted(p.stat().st_mtime_ns for p in outside.rglob("*"))
    with contextlib.suppress(StoreError):  # a link may be cut, but never followed
        store = ZarrStore(run, resume="append", start_step=1)
        store.begin(HEADER)
        store.write_snapshot(snapshot(1))
        store.write_steps(block(1, 5))
        store.close()
    with contextlib.suppress(StoreError):
        ZarrStore.write_measurement(run, "valley", measured(9.0))
    assert sorted(p.stat().st_mtime_ns for p in outside.rglob("*")) == before


def test_strings_that_lie_about_their_length(run):
    chunk = run / "measurements/valley/layer/c/0"
    raw = (2).to_bytes(4, "little") + (2**32 - 1).to_bytes(4, "little") + b"ab"
    chunk.write_bytes(raw + google_crc32c.value(raw).to_bytes(4, "little"))
    with pytest.raises(CorruptRunError, match="valley/layer/c/0 does not hold what its metadata declare"):
        ZarrStore.measurements(run)


# --- zarr: a full disk -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", range(12))
def test_a_full_disk_loses_nothing_acknowledged(tmp_path, monkeypatch, allowed):
    store = make_run(path := tmp_path / "run")
    left = allowed

    def full(target, buffers, fsync, real=files._put):
        nonlocal left
        left -= 1
        if left < 0:
            real(target, [bytes(buffers[0])[:3]], fsync)
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(target, buffers, fsync)

    with monkeypatch.context() as patched:
        patched.setattr(files, "_put", full)
        failures = []
        for write in (
            lambda: store.write_steps(block(2100, 3200, "new")),
            lambda: store.write_snapshot(snapshot(7)),
            lambda: store.write_record(Record("batches", 9, *pack_of(9))),
        ):
            try:
                write()
            except StoreError as error:
                failures.append(str(error))
                said = f"{path}: cannot be written: No space left on device .*; {store.stored_steps} updates and "
                failures[-1] = bool(re.match(said, failures[-1]))
        assert failures
        assert all(failures)
        kept, trajectory = store.stored_steps, ZarrStore.read(path)
        assert trajectory.steps.sizes["step"] >= kept >= 2100
        np.testing.assert_array_equal(trajectory.steps.loss, 2.5 / (1.0 + trajectory.steps.step))
        read_all(path)
        assert not list(path.glob("*.partial"))
    store.write_steps(block(3200, 3300))
    store.write_snapshot(snapshot(8))
    store.close()
    trajectory = ZarrStore.read(path)
    assert trajectory.steps.sizes["step"] == kept + 100
    np.testing.assert_array_equal(trajectory.steps.loss, 2.5 / (1.0 + trajectory.steps.step))
    assert torch.equal(trajectory.theta(8), theta(8))


def fill(store):
    for step in range(10_000):
        store.write_snapshot(snapshot(step))
        store.write_steps(block(step, step + 1))


def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        store = ZarrStore(disk / "run")
        store.begin(HEADER)
        with pytest.raises(StoreError, match=r"No space left on device .* updates and .* snapshots are kept"):
            fill(store)
        trajectory = ZarrStore.read(disk / "run")
        assert trajectory.steps.sizes["step"] >= store.stored_steps > 5
        for step in trajectory.snapshot_steps:
            assert torch.equal(trajectory.theta(step), theta(step))
        store._held.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
