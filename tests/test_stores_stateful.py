"""Random operations on each store that keeps runs on disk, held against the plain store in memory."""

import tempfile
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sgdscope import files
from sgdscope.contracts import stores
from sgdscope.records import Header, Record, Snapshot, StepBlock
from sgdscope.stores.memory import MemoryStore
from sgdscope.vector import Layout

HEADER = Header(Layout.of({"w": torch.zeros(2, 3), "b": torch.zeros(3)}), Layout.of({"m": torch.zeros(2)}), {"seed": 4})
NAMES = st.sampled_from(["loss", "lr", "lr_1", "flags", "val/acc", "ü %", "zarr.json", "..", "x.partial"])
KINDS = st.sampled_from(["batches", "keyframes"])
NUMBERS = st.floats(width=32)
GAPS = st.sampled_from([1, 1, 1, 2, 17])


class Stores(RuleBasedStateMachine):
    """Both stores get the same calls; whatever is read must agree, at any time."""

    cls = None

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "run"
        self.width, files.ELEMENTS = files.ELEMENTS, 4  # a snapshot is three chunks
        self.ours, self.plain = self.cls(self.path), MemoryStore()
        self.open, self.step, self.point, self.frames = True, 0, 0, {"batches": 0, "keyframes": 0}

    def teardown(self):
        files.ELEMENTS = self.width
        self.kill()
        self.folder.cleanup()

    def kill(self):
        """Let go of the lock, and do nothing else; a store without one is closed."""
        getattr(self.ours, "_held", self.ours).close()

    def both(self, call, *arguments):
        for store in (self.ours, self.plain):
            getattr(store, call)(*arguments)

    @initialize()
    def begin(self):
        self.both("begin", HEADER)

    @precondition(lambda self: self.open)
    @rule(length=st.sampled_from([1, 2, 64, 700, 1024, 2500, 5000]), names=st.sets(NAMES), gap=GAPS, value=NUMBERS)
    def write_steps(self, length, names, gap, value):
        steps = self.step + np.arange(length, dtype=np.int64) * gap
        columns = {name: value + steps * 0.5 + len(name) for name in sorted(names) if name != "flags"}
        columns |= {"flags": steps % 16.0} if "flags" in names else {}
        self.both("write_steps", StepBlock(steps, columns))
        self.step = int(steps[-1]) + 1

    @precondition(lambda self: self.open)
    @rule(gap=GAPS, values=st.lists(NUMBERS, min_size=11, max_size=11))
    def write_snapshot(self, gap, values):
        self.point += gap
        self.both("write_snapshot", Snapshot(self.point, torch.tensor(values[:9]), torch.tensor(values[9:])))

    @precondition(lambda self: self.open)
    @rule(gap=GAPS, kind=KINDS, names=st.sets(NAMES), value=NUMBERS)
    def write_record(self, gap, kind, names, value):
        self.frames[kind] += gap
        arrays = {name: np.full((2, len(name)), value) for name in sorted(names)}
        self.both("write_record", Record(kind, self.frames[kind], arrays, {"names": sorted(names)}))

    @rule(name=st.sampled_from(["valley", "motion", "a.b"]), value=NUMBERS, length=st.integers(0, 3))
    def measure(self, name, value, length):
        data = xr.Dataset({"x": ("step", np.full(length, value), {"units": "1"})}, coords={"step": np.arange(length)})
        self.cls.write_measurement(self.path, name, data)
        MemoryStore.write_measurement(self.plain, name, data)

    @precondition(lambda self: self.open)
    @rule(killed=st.booleans(), back=st.sampled_from([None, 0, 1, 5, 700, 3000]))
    def close_and_go_on(self, killed, back):
        self.kill() if killed else self.ours.close()
        self.plain.close()
        last = self.ours.read(self.path).steps.step.values
        start = None if back is None else max(0, self.step - back)
        self.ours = self.cls(self.path, resume="append", start_step=start)
        self.plain = MemoryStore(self.plain, resume="append", start_step=start)
        self.both("begin", HEADER)
        if start is None:
            points = self.ours.read(self.path).snapshot_steps
            start = int(last[-1]) + 1 if len(last) else int(points[-1]) + 1 if len(points) else 0
        self.step = self.point = start
        self.frames = dict.fromkeys(self.frames, start)

    @precondition(lambda self: self.open)
    @rule()
    def close(self):
        self.both("close")
        self.open = False

    @invariant()
    def agree(self):
        if self.plain._header is None:
            return
        ours, plain = self.cls.read(self.path), self.plain.trajectory()
        assert self.ours.stored_steps == self.plain.stored_steps
        assert ours.header == plain.header
        assert list(ours.steps) == list(plain.steps)
        xr.testing.assert_identical(ours.steps, plain.steps)
        np.testing.assert_array_equal(ours.snapshot_steps, plain.snapshot_steps)
        for step in ours.snapshot_steps:
            assert ours.theta(step).numpy().tobytes() == plain.theta(step).numpy().tobytes()
            assert ours.buffers(step)["m"].numpy().tobytes() == plain.buffers(step)["m"].numpy().tobytes()
        for kind in self.frames:
            assert self.cls.record_steps(self.path, kind) == MemoryStore.record_steps(self.plain, kind)
            for step in self.cls.record_steps(self.path, kind)[-2:]:
                (a, about), (b, also) = (
                    self.cls.read_record(self.path, kind, step),
                    MemoryStore.read_record(self.plain, kind, step),
                )
                assert about == also
                assert list(a) == list(b)
                assert all(a[name].tobytes() == b[name].tobytes() for name in a)
        xr.testing.assert_identical(self.cls.measurements(self.path), MemoryStore.measurements(self.plain))


def machine(store):
    found = type(f"{store.__name__}Operations", (Stores,), {"cls": store}).TestCase
    found.settings = settings(
        max_examples=15, stateful_step_count=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    return found


globals().update(
    (f"test_random_operations_on_{name}_agree_with_the_plain_store", machine(entry.cls))
    for name, entry in stores.items()
    if "persistent" in entry.capabilities
)
