"""Files -> numpy arrays, each file checked: magic, dimensions, byte counts, cells. No pickle is ever read."""

from __future__ import annotations

import csv
import gzip
import lzma
import struct
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from io import BytesIO, TextIOWrapper
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sgdscope.errors import ArgumentError, DataError

CIFAR_ROW = 1 + 3 * 32 * 32


@contextmanager
def opened(path: Path) -> Generator[IO[bytes]]:
    """Open a plain, .gz or .xz file for reading; a damaged one is an error that names it.

    Args:
        path: of the file.

    Yields:
        The stream of its bytes.

    Raises:
        DataError: the file cannot be read or decompressed.
    """
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        with openers.get(path.suffix, Path.open)(path, "rb") as stream:
            yield stream
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected a whole file, fetch it again") from error


def _body(path: Path, stream: IO[bytes], shape: Sequence[int], head: int | None) -> NDArray[np.uint8]:
    """The bytes of an array of that shape, or its first `head` rows; the count must be right."""
    rows = shape[0] if head is None else min(head, shape[0])
    wanted = rows * prod(shape[1:])
    body = stream.read(wanted + (rows == shape[0]))
    if len(body) != wanted:
        got = f"{len(body)}" if len(body) < wanted else f"more than {wanted}"
        raise DataError(f"{path}: expected {wanted} bytes after the header for shape {tuple(shape)}, got {got}; fetch it again")
    return np.frombuffer(body, np.uint8).reshape(rows, *shape[1:])


def read_idx(path: Path, dimensions: int, head: int | None = None) -> tuple[NDArray[np.uint8], int]:
    """Read an idx file of unsigned bytes.

    Args:
        path: plain or .gz.
        dimensions: that the file must have.
        head: how many rows to read; all if None.

    Returns:
        The array and the number of rows that the file declares.

    Raises:
        DataError: magic, dimensions or byte count are not as expected.
    """
    with opened(path) as stream:
        magic = stream.read(4)
        if magic != bytes([0, 0, 8, dimensions]):
            wanted = f"0x0000080{dimensions} (idx, unsigned bytes, {dimensions} dimensions)"
            raise DataError(f"{path}: expected the magic number {wanted}, got 0x{magic.hex()}")
        sizes = stream.read(4 * dimensions)
        if len(sizes) != 4 * dimensions:
            raise DataError(f"{path}: expected {4 * dimensions} bytes of dimensions, got {len(sizes)}")
        shape = struct.unpack(f">{dimensions}I", sizes)
        if min(shape) < 1:
            raise DataError(f"{path}: expected dimensions of at least 1, got {shape}")
        return _body(path, stream, shape, head), shape[0]


def read_npy(path: Path, dimensions: int, head: int | None = None) -> tuple[NDArray[np.uint8], int]:
    """Read a .npy file of unsigned bytes.

    Args:
        path: plain, .gz or .xz.
        dimensions: that the file must have.
        head: how many rows to read; all if None.

    Returns:
        The array and the number of rows that the file declares.

    Raises:
        DataError: header, dtype, dimensions or byte count are not as expected.
    """
    with opened(path) as stream:
        start = stream.read(8)
        if start[:8] != b"\x93NUMPY\x01\x00":
            raise DataError(f"{path}: expected a .npy file of version 1.0, got a file that starts with 0x{start.hex()}")
        length = stream.read(2)
        try:
            text = length + stream.read(int.from_bytes(length, "little"))
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(BytesIO(text))
        except ValueError as error:
            raise DataError(f"{path}: the .npy header cannot be read ({error})") from error
        if dtype != np.uint8 or fortran or len(shape) != dimensions or min(shape) < 1:
            raise DataError(f"{path}: expected uint8 with {dimensions} dimensions in C order, got {dtype} {shape}")
        return _body(path, stream, shape, head), shape[0]


def read_cifar_bin(paths: Sequence[Path], head: int | None = None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read CIFAR-10 in its official binary version: rows of one label byte and 3 x 32 x 32 bytes.

    Args:
        paths: the batch files, in order.
        head: how many rows to read; all if None.

    Returns:
        Images [N, 3, 32, 32] and labels [N].

    Raises:
        DataError: a file is empty or not a whole number of rows long.
    """
    parts: list[NDArray[np.uint8]] = []
    for path in paths:
        with opened(path) as stream:
            body = stream.read()
        if not body or len(body) % CIFAR_ROW:
            wanted = f"a whole number of rows of {CIFAR_ROW} bytes ({10000 * CIFAR_ROW} bytes in the official files)"
            raise DataError(f"{path}: expected {wanted}, got {len(body)} bytes; fetch it again")
        parts.append(np.frombuffer(body, np.uint8).reshape(-1, CIFAR_ROW))
        if head is not None and sum(map(len, parts)) >= head:
            break
    rows = np.concatenate(parts)[:head]
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def read_labels(path: Path, labels: NDArray[np.uint8], images: int, declared: int, classes: int) -> NDArray[np.int64]:
    """Hold labels against the images and the number of classes.

    Args:
        path: of the labels, for the message.
        labels: [N].
        images: how many images their file declares.
        declared: how many labels the file declares.
        classes: labels must be below it.

    Returns:
        The labels as int64.

    Raises:
        DataError: the counts differ or a label is out of range.
    """
    if declared != images:
        raise DataError(f"{path}: {declared} labels for {images} images; expected as many labels as images")
    if labels.size and labels.max() >= classes:
        at = int(np.argmax(labels >= classes))
        raise DataError(f"{path}: label {labels[at]} at position {at}; expected 0 to {classes - 1}")
    return labels.astype(np.int64)


def read_text(path: Path) -> str:
    """Read a text file.

    Args:
        path: plain, .gz or .xz, UTF-8.

    Returns:
        The text, line ends as they are.

    Raises:
        DataError: the file is not UTF-8.
    """
    with opened(path) as stream:
        body = stream.read()
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, got byte 0x{body[error.start]:02x} at position {error.start}") from error


def read_table(path: Path, label: str | None = None) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """Read a CSV table with a header, numeric features and one label column.

    Args:
        path: plain or .gz, UTF-8.
        label: name of the label column; the last one if None.

    Returns:
        Features [N, D], the labels as text [N] and the names of the features.

    Raises:
        DataError: a row is ragged, or a cell is empty, no number or not finite; row (the header is row 1) and column are named.
        ArgumentError: there is no column of that name.
    """
    with opened(path) as stream:
        reader = csv.reader(TextIOWrapper(stream, "utf-8-sig", newline=""))
        try:
            rows = [(reader.line_num, row) for row in reader if row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(
                f"{path}: expected a CSV table in UTF-8; row {reader.line_num + 1} cannot be read ({error})"
            ) from error
    if len(rows) < 2 or len(rows[0][1]) < 2:
        raise DataError(f"{path}: expected a header of at least 2 columns and at least one row, got {len(rows)} rows")
    names = [name.strip() for name in rows[0][1]]
    if label is not None and label not in names:
        raise ArgumentError(f"label: {path} has no column '{label}'; its columns are {', '.join(names)}")
    at = len(names) - 1 if label is None else names.index(label)
    features = np.empty((len(rows) - 1, len(names) - 1))
    labels = []
    for i, (line, row) in enumerate(rows[1:]):
        if len(row) != len(names):
            raise DataError(f"{path}, row {line}: expected {len(names)} cells as in the header, got {len(row)}")
        labels.append(row.pop(at).strip())
        if not labels[-1] or labels[-1].lower() in {"nan", "na", "null"}:
            raise DataError(f"{path}, row {line}, column '{names[at]}': expected a class, got '{labels[-1]}'")
        features[i] = _numbers(path, line, row, names[:at] + names[at + 1 :])
    return features, labels, names[:at] + names[at + 1 :]


def _numbers(path: Path, line: int, cells: Sequence[str], names: Sequence[str]) -> list[float]:
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        values = []
    if values and np.isfinite(values).all():
        return values
    for name, cell in zip(names, cells, strict=True):
        try:
            finite = bool(np.isfinite(float(cell)))
        except ValueError:
            finite = False
        if not finite:
            raise DataError(f"{path}, row {line}, column '{name}': expected a finite number, got '{cell.strip()}'")
    return values


def encode_labels(path: Path, labels: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Number the classes of a label column: whole numbers in their order, anything else in alphabetical order.

    Args:
        path: for the message.
        labels: as text.

    Returns:
        Class numbers [N] from 0, and the classes as text.

    Raises:
        DataError: there is only one class, or the labels are numbers with fractions.
    """
    distinct = sorted(set(labels))
    try:
        numbers = {name: float(name) for name in distinct}
    except ValueError:
        numbers = {}
    if numbers:
        broken = next((name for name, value in numbers.items() if not value.is_integer()), None)
        if broken is not None:
            raise DataError(f"{path}: the label column holds '{broken}'; expected classes, as whole numbers or as words")
        distinct = sorted(distinct, key=numbers.__getitem__)
    values = sorted(set(numbers.values())) or distinct
    if len(values) < 2:
        raise DataError(f"{path}: expected at least 2 classes in the label column, got only '{distinct[0]}'")
    place = {value: i for i, value in enumerate(values)}
    codes = [place[numbers[name] if numbers else name] for name in labels]
    return np.array(codes, np.int64), [f"{value:.0f}" if isinstance(value, float) else str(value) for value in values]
