"""The files of a run directory: written whole or not at all, read only if they are what this package would have written.

Arrays are zarr v3: raw little-endian chunks followed by their crc32c. They are written and read by hand, through a
temporary file and a rename, because zarr's own calls cost more than the bytes, and because so nothing hostile in a run
directory reaches a decoder: metadata are compared with what would have been written, before a byte is allocated.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import stat
import struct
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import ceil, prod
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import google_crc32c
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.errors import ArgumentError, CorruptRunError, SgdscopeError, StoreError
from sgdscope.records import SCHEMA_VERSION, Header, Snapshot
from sgdscope.vector import Layout

ROWS = 1024  # rows a chunk of a scalar: DESIGN, "Store"
ELEMENTS = 16 * 2**20  # largest chunk of a snapshot: DESIGN, "Store"
JSON_LIMIT = 2**28  # bytes: far above any header, far below what hurts
REAL = ("float16", "float32", "float64")
DTYPES = ("bool", *(f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)), *REAL, "complex64", "complex128")
GROUP: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
Array = tuple[NDArray[Any], Sequence[str] | None, Mapping[str, Any]]  # values, dimension names, attributes


def escape(name: str) -> str:
    """A file name that means the same name to everybody: percent-encoded where it is not plain."""
    safe = quote(name, safe="").replace("~", "%7E")
    if safe.startswith(".") or safe.endswith((".json", ".partial", ".old")):
        safe = safe.replace(".", "%2E")
    if not 0 < len(safe) <= 200:
        raise ArgumentError(f"name: '{name}' cannot be a file name; expected 1 to 200 characters")
    return safe


def to_json(data: Any, what: str) -> bytes:
    """JSON text of plain data; `what` names it in the error where it is not plain."""

    def listed(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        raise TypeError(f"{type(value).__name__} is not a JSON type")

    try:
        return json.dumps(data, default=listed).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{what}: expected JSON types only (numbers, strings, lists, dicts): {error}") from error


def plain(value: Any) -> Any:
    """The same data as strict JSON has them: texts for keys, lists, None for NaN and infinity.

    Args:
        value: mappings, lists, numbers, arrays and tensors, nested as they may be.

    Returns:
        The plain data; what is none of these comes back as it is.

    Example:
        >>> plain({1: (np.float32(0.5), np.array([2.0, np.nan])), "p": float("inf")})
        {'1': [0.5, [2.0, None]], 'p': None}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.generic | np.ndarray | Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def array_node(
    shape: Sequence[int], chunks: Sequence[int], dtype: str, dims: Sequence[str] | None, attrs: Mapping[str, Any]
) -> dict[str, Any]:
    """The ``zarr.json`` of an array: what is written, and what is accepted."""
    kind = "string" if dtype == "string" else np.dtype(dtype).kind
    fill: Any = {"string": "", "b": False, "i": -1, "u": 0, "f": "NaN", "c": ["NaN", "NaN"]}[kind]
    codec: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [{"name": "vlen-utf8"} if kind == "string" else codec, {"name": "crc32c"}],
        "attributes": dict(attrs),
        "storage_transformers": [],
    } | ({} if dims is None else {"dimension_names": list(dims)})


def sealed(values: NDArray[Any]) -> tuple[Any, bytes]:
    """The bytes of an array and their checksum."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    raw = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
    return raw.data, google_crc32c.value(cast(bytes, raw)).to_bytes(4, "little")


def _strings(values: NDArray[Any]) -> NDArray[np.uint8]:
    texts = [str(text).encode() for text in values.reshape(-1)]
    parts = [struct.pack("<I", len(texts)), *(struct.pack("<I", len(text)) + text for text in texts)]
    return np.frombuffer(b"".join(parts), np.uint8)


def _texts(raw: bytes, count: int) -> NDArray[Any]:
    if struct.unpack_from("<I", raw)[0] != count:
        raise ValueError("the number of strings is another one")
    texts, at = [], 4
    for _ in range(count):
        (length,) = struct.unpack_from("<I", raw, at)
        texts.append(raw[at + 4 : at + 4 + length].decode())
        at += 4 + length
    if at != len(raw):
        raise ValueError("the strings end elsewhere")
    return np.array(texts, dtype=str)


def _put(path: Path, buffers: Iterable[Any], fsync: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(path, "wb", opener=lambda p, _: os.open(p, flags, 0o666)) as file:
        for buffer in buffers:
            file.write(buffer)
        if fsync:
            file.flush()
            os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, *, wait: bool) -> Generator[None]:
    """Hold a lock file; the system releases it when the process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            owner = os.read(descriptor, 20).decode(errors="replace") or "unknown"
            raise StoreError(f"{path.parent}: is being written by process {owner}; close that writer first") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


class RunFiles:
    """The files of one run directory; relative names have forward slashes.

    Args:
        root: the run directory, which need not exist yet.
        fsync: make what is written survive a power loss too.
        partial: name of the temporary file; one writer at a time may use it.
    """

    def __init__(self, root: Path, *, fsync: bool = False, partial: str = "chunk.partial") -> None:
        self.root, self.real, self.fsync = root, root.resolve(), fsync
        self.partial = self.real / partial

    def inside(self, relative: str) -> Path:
        """Where a file lies, all links followed; an error if that is outside of the run directory."""
        full = (self.real / relative).resolve()
        if not full.is_relative_to(self.real):
            raise CorruptRunError(f"run {self.root}: {relative} leaves the run directory (a link or '..'); it is not followed")
        return full

    def corrupt(self, relative: str, what: str, step: int | None = None) -> CorruptRunError:
        """The error that names run, file and step."""
        where = "" if step is None else f" (step {step})"
        return CorruptRunError(f"run {self.root}: file {relative}{where} {what}; what lies in other files can still be read")

    def listing(self, relative: str) -> list[str]:
        """Names in a folder, sorted; none where there is no folder."""
        try:
            return sorted(entry.name for entry in self.inside(relative).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError as error:
            raise StoreError(f"run {self.root}: {relative} cannot be read: {error.strerror}; check the permissions") from error

    # --- writing -----------------------------------------------------------------------------------------------------

    def write(self, relative: str, *buffers: Any) -> None:
        """Write a file whole: a reader sees the old one or the new one."""
        target, partial = self.inside(relative), self.partial
        try:
            _put(partial, buffers, self.fsync)
            try:
                partial.replace(target)
            except FileNotFoundError:
                target.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(target)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise
        if self.fsync:
            _sync_folder(target.parent)

    def write_folder(self, relative: str, arrays: Mapping[str, Array], attrs: Mapping[str, Any], meta: Mapping[str, Any]) -> Path:
        """Write arrays of one chunk each as a zarr group, to be put in its place by `move`."""
        self.remove(relative)
        folder, nodes = self.inside(relative), {}
        try:
            for name, (values, dims, own) in arrays.items():
                text = values.dtype.kind not in "biufc"
                dtype = "string" if text else values.dtype.newbyteorder("=").name
                nodes[escape(name)] = node = array_node(values.shape, [max(n, 1) for n in values.shape], dtype, dims, own)
                chunk = folder.joinpath(escape(name), "c", *["0"] * values.ndim)
                chunk.parent.mkdir(parents=True)
                if values.size:
                    _put(chunk, sealed(_strings(values) if text else values), self.fsync)
                _put(folder / escape(name) / "zarr.json", [to_json(node, f"attributes of '{name}'")], self.fsync)
            folder.mkdir(parents=True, exist_ok=True)
            inline = {"kind": "inline", "must_understand": False, "metadata": nodes}
            group = GROUP | {"attributes": dict(attrs), "consolidated_metadata": inline}
            _put(folder / "zarr.json", [to_json(group, "attributes")], self.fsync)
            _put(folder / "meta.json", [to_json({"arrays": list(arrays), "meta": dict(meta)}, "meta")], self.fsync)
        except (OSError, SgdscopeError):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for inner, _, _ in os.walk(folder) if self.fsync else ():
            _sync_folder(Path(inner))
        return folder

    def move(self, relative: str, to: str) -> None:
        """Rename within the run directory: the moment at which a folder is there."""
        target = self.inside(to)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.inside(relative).rename(target)
        if self.fsync:
            _sync_folder(target.parent)

    def remove(self, relative: str) -> None:
        """Delete a file, a folder or a link (not what it points to), if it is there."""
        parent, _, name = relative.rpartition("/")
        path = self.inside(parent) / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    # --- reading -----------------------------------------------------------------------------------------------------

    def read(self, relative: str, size: int | None = None, step: int | None = None) -> NDArray[np.uint8]:
        """Read a file, after its kind and its size have been held against what they should be."""
        try:
            with open(self.inside(relative), "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise self.corrupt(relative, "is not a plain file", step)
                if found.st_size > JSON_LIMIT if size is None else found.st_size != size:
                    raise self.corrupt(relative, f"has {found.st_size} bytes, expected {size or f'at most {JSON_LIMIT}'}", step)
                data = np.empty(found.st_size, np.uint8)
                if file.readinto(data.data) != found.st_size:
                    raise self.corrupt(relative, "became shorter while it was read", step)
                return data
        except CorruptRunError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self.corrupt(relative, "is missing", step) from error
        except PermissionError as error:
            raise StoreError(f"run {self.root}: {relative} cannot be read: {error.strerror}; check the permissions") from error
        except OSError as error:
            raise self.corrupt(relative, f"cannot be read ({error.strerror})", step) from error

    def unseal(self, relative: str, size: int | None, step: int | None = None) -> NDArray[np.uint8]:
        """Read a chunk of so many bytes and check its checksum."""
        data = self.read(relative, None if size is None else size + 4, step)
        if len(data) < 4 or google_crc32c.value(cast(bytes, data[:-4])).to_bytes(4, "little") != data[-4:].tobytes():
            raise self.corrupt(relative, "fails its checksum", step)
        return data[:-4]

    def read_json(self, relative: str) -> dict[str, Any]:
        """Read a JSON object."""
        try:
            data = json.loads(self.read(relative).tobytes())
        except (ValueError, RecursionError) as error:
            raise self.corrupt(relative, f"is not JSON ({type(error).__name__})") from error
        if not isinstance(data, dict):
            raise self.corrupt(relative, "is not a JSON object")
        return data

    def node(self, relative: str, dtypes: Sequence[str], chunks: Sequence[int] | None = None) -> dict[str, Any]:
        """The metadata of an array, if they are what this store writes; `chunks` None means one chunk."""
        file = f"{relative}/zarr.json"
        found = self.read_json(file)
        shape, dtype, attrs = found.get("shape"), found.get("data_type"), found.get("attributes")
        if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**62 for n in shape) or len(shape) > 32:
            raise self.corrupt(file, f"declares the shape {str(shape)[:80]}")
        if dtype not in dtypes or not isinstance(dtype, str):
            raise self.corrupt(file, f"declares the data type {str(dtype)[:80]}, expected {' or '.join(dtypes)}")
        dims = found.get("dimension_names")
        if not isinstance(attrs, dict) or (
            dims is not None and not (isinstance(dims, list) and len(set(map(str, dims))) == len(shape) == len(dims))
        ):
            raise self.corrupt(file, "has no proper attributes or dimension names")
        expected = array_node(shape, [max(n, 1) for n in shape] if chunks is None else chunks, dtype, dims, attrs)
        for key, value in expected.items():
            if key != "fill_value" and found.get(key) != value:
                raise self.corrupt(file, f"has {key} = {str(found.get(key))[:120]}, expected {value}")
        return expected

    def folder(self, relative: str) -> tuple[dict[str, Array], dict[str, Any], dict[str, Any]]:
        """Read what `write_folder` wrote: arrays, attributes, meta."""
        about, attrs = self.read_json(f"{relative}/meta.json"), self.read_json(f"{relative}/zarr.json").get("attributes")
        names, meta, arrays = about.get("arrays"), about.get("meta"), {}
        if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
            raise self.corrupt(f"{relative}/meta.json", "does not list its arrays")
        if not isinstance(meta, dict) or not isinstance(attrs, dict):
            raise self.corrupt(f"{relative}/meta.json", "has no proper meta and attributes")
        for name in names:
            node = self.node(path := f"{relative}/{escape(name)}", [*DTYPES, "string"])
            shape, dtype, chunk = node["shape"], node["data_type"], f"{path}/" + "/".join(["c", *["0"] * len(node["shape"])])
            try:
                if not prod(shape):
                    values = np.empty(shape, str if dtype == "string" else dtype)
                elif dtype == "string":
                    values = _texts(self.unseal(chunk, None).tobytes(), prod(shape)).reshape(shape)
                else:
                    values = self.unseal(chunk, prod(shape) * np.dtype(dtype).itemsize).view(dtype).reshape(shape)
            except (ValueError, struct.error, MemoryError) as error:
                raise self.corrupt(chunk, f"does not hold what its metadata declare ({error})") from error
            arrays[name] = (values, node.get("dimension_names"), node["attributes"])
        return arrays, attrs, meta


def chunk_width(size: int) -> int:
    """Elements a chunk of a vector: equal parts of at most `ELEMENTS`."""
    return ceil(size / ceil(size / ELEMENTS))


def stored_dtype(layout: Layout) -> str:
    """Name of the dtype in which vectors of a layout are kept."""
    return str(layout.storage_dtype).removeprefix("torch.")


def _layout(data: Any) -> Layout:
    """A layout from a file, if it is possible."""
    layout = Layout.from_json(data)
    if not len(layout.names) == len(layout.shapes) == len(layout.dtypes) == len(set(layout.names)):
        raise ValueError("names, shapes and dtypes differ in number, or a name is there twice")
    if not all(type(n) is int and 0 <= n < 2**62 for shape in layout.shapes for n in shape) or layout.size >= 2**62:
        raise ValueError("a shape is impossible")
    if not all(isinstance(getattr(torch, str(name), None), torch.dtype) for name in layout.dtypes):
        raise ValueError("a dtype is unknown")
    stored_dtype(layout)  # an error where the dtypes cannot be kept together
    return layout


class Run(RunFiles):
    """A run directory as it is read: the header, and rows that were committed."""

    def header(self) -> Header:
        """Read ``run.json``."""
        if "run.json" not in self.listing(""):
            inside = sorted(path.parent.name for path in self.root.glob("*/run.json"))
            which = f"one of the runs inside: {', '.join(inside[:6])}" if inside else "the directory that a Recorder wrote"
            raise StoreError(f"{self.root}: there is no run here (no run.json); give {which}")
        data = self.read_json("run.json")
        if isinstance(version := data.get("schema_version"), int) and version > SCHEMA_VERSION:
            raise StoreError(f"{self.root}: was written in schema {version}, newer than {SCHEMA_VERSION}; update sgdscope")
        try:
            if not isinstance(data["settings"], dict):
                raise TypeError("settings is not an object")
            return Header(_layout(data["layout"]), _layout(data["buffer_layout"]), data["settings"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self.corrupt("run.json", f"is not the header of a run ({error!r})") from error

    def committed(self, group: str) -> tuple[NDArray[np.int64], list[str]]:
        """The steps that are there, and the names of the columns."""
        relative = f"{group}/step"
        node = self.node(relative, ["int64"], [ROWS])
        floor, columns = node["attributes"].get("committed"), node["attributes"].get("columns")
        if type(floor) is not int or not isinstance(columns, list) or not all(isinstance(c, str) and c for c in columns):
            raise self.corrupt(f"{relative}/zarr.json", "does not say what is committed")
        parts: list[NDArray[Any]] = [np.empty(0, np.int64)]
        last = max((int(k) for k in self.listing(f"{relative}/c") if k.isdecimal()), default=-1)
        for k in range(max(last + 1, ceil(floor / ROWS))):
            parts.append(self.unseal(f"{relative}/c/{k}", ROWS * 8).view("<i8"))
            if parts[-1][-1] < 0:
                break
        steps = np.concatenate(parts)[: node["shape"][0]]
        steps = steps[: int(np.argmax(steps < 0))] if (steps < 0).any() else steps
        if len(steps) < floor or (np.diff(steps) <= 0).any():
            raise self.corrupt(relative, f"holds {len(steps)} steps, expected at least {floor} in ascending order")
        return steps, columns

    def column(self, name: str, steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """A column at the committed steps."""
        relative, parts = f"steps/{escape(name)}", [np.empty(0)]
        node = self.node(relative, ["float64"], [ROWS])
        if len(node["shape"]) != 1 or node["shape"][0] < len(steps):
            raise self.corrupt(f"{relative}/zarr.json", f"has shape {node['shape']}, but {len(steps)} steps are committed")
        for first in range(0, len(steps), ROWS):
            try:
                parts.append(self.unseal(f"{relative}/c/{first // ROWS}", ROWS * 8).view("<f8"))
            except CorruptRunError as error:
                covered = steps[first : first + ROWS]
                raise CorruptRunError(f"steps {covered[0]} to {covered[-1]}: {error}") from error
        return np.concatenate(parts)[: len(steps)]

    def vector(self, name: str, layout: Layout, row: int, step: int) -> Tensor:
        """A row of ``snapshots``; sizes of files are checked before anything is allocated."""
        size, relative = layout.size, f"snapshots/{name}"
        if not size:
            return torch.zeros(0, dtype=layout.storage_dtype)
        width, dtype = chunk_width(size), np.dtype(stored_dtype(layout))
        node = self.node(relative, [dtype.name], [1, width])
        if node["shape"][1:] != [size] or node["shape"][0] <= row:
            raise self.corrupt(f"{relative}/zarr.json", f"has shape {node['shape']}, expected [at least {row + 1}, {size}]", step)
        count = ceil(size / width)
        parts = [self.unseal(f"{relative}/c/{row}/{k}", width * dtype.itemsize, step).view(dtype) for k in range(count)]
        return torch.from_numpy((parts[0] if count == 1 else np.concatenate(parts))[:size])

    def snapshot(self, header: Header, row: int, step: int) -> Snapshot:
        """Theta and buffers of a row."""
        theta = self.vector("theta", header.layout, row, step)
        return Snapshot(step, theta, self.vector("buffers", header.buffer_layout, row, step))

    def record_steps(self, kind: str) -> list[int]:
        """The steps of a kind, ascending."""
        return sorted(int(name) for name in self.listing(f"records/{escape(kind)}") if name.isdecimal())

    def measurement(self, name: str) -> xr.Dataset:
        """Read a measurement; when it is swapped at this moment, its old or its new form."""
        for attempt in range(3):
            there = self.inside(f"measurements/{name}").exists()
            try:
                arrays, attrs, _ = self.folder(f"measurements/{name}{'' if there else '.old'}")
                break
            except CorruptRunError:
                if attempt == 2:
                    raise
        extra = str(attrs.pop("coordinates", "")).split()
        try:
            variables = {key: xr.Variable(dims or (), values, dict(own)) for key, (values, dims, own) in arrays.items()}
            coords = {key: v for key, v in variables.items() if key in v.dims or key in extra}
            return xr.Dataset({key: v for key, v in variables.items() if key not in coords}, coords, attrs)
        except ValueError as error:
            raise self.corrupt(f"measurements/{name}", f"is not a dataset ({error})") from error
