"""The catalogue of data sets: which files they want, how they are split, scaled and hashed."""

# ruff: file-ignore[unused-function-argument] -- every loader takes the request, also one that has nothing to choose

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sklearn.datasets
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.datasets import readers
from sgdscope.errors import ArgumentError, DataError, unknown

Array = NDArray[Any]
SPLIT_SEED, TRAIN_SHARE, TEXT_SHARE = 0, 0.8, 0.9  # ours: where nobody has fixed a split
CONVENTIONS = ("uniform", "different")  # of a label that is drawn anew


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
        x: training inputs, float32 [N, ...], or int64 tokens [N, T].
        y: training labels, int64 [N]; the next tokens [N, T] of a text.
        x_test: test inputs.
        y_test: test labels.
        classes: how many labels there are; symbols of a text.
        name: under which it was loaded.
        fingerprint: xxh3 (128 bits, hex) of dtypes, shapes and bytes of the four tensors.
        noisy: indices [k] int64 of the training labels that were drawn anew, ascending.
        info: JSON types: split and source in words, mean and standard deviation that were taken out, names of the labels.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    name: str
    fingerprint: str
    noisy: Tensor
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """What a loader is asked for.

    Attributes:
        name: as typed, with a path after ``csv:`` or ``text:``.
        folder: the data folder, or None.
        train: training examples wanted; None for all.
        test: test examples wanted; None for all.
        seed: of drawn data.
        context: window length of a text.
        label: label column of a table; None for the last.
    """

    name: str
    folder: Path | None
    train: int | None
    test: int | None
    seed: int
    context: int
    label: str | None

    def find(self, wanted: Sequence[Sequence[str]], folders: Sequence[str] = ("",), hint: str = "") -> list[Path]:
        """Find files in the data folder.

        Args:
            wanted: for each file its possible names.
            folders: subfolders to look in, in this order.
            hint: what else to say where they are missing.

        Returns:
            One path for each file, all from the same subfolder.

        Raises:
            DataError: there is no data folder, or a file is missing.
        """
        listed = ", ".join(" or ".join(options) for options in wanted)
        if self.folder is None:
            raise DataError(f"dataset '{self.name}' needs files: {listed}; give their folder with --data-dir (data_dir=).{hint}")
        for sub in folders:
            found = [next((self.folder / sub / n for n in names if (self.folder / sub / n).is_file()), None) for names in wanted]
            paths = [path for path in found if path is not None]
            if len(paths) == len(wanted):
                return paths
        places = " or ".join(str(self.folder / sub) for sub in folders)
        raise DataError(
            f"dataset '{self.name}': expected {listed} in {places}; not all are there. --data-dir names the folder.{hint}"
        )


@dataclass(frozen=True)
class Raw:
    """What a loader returns: x, y, x_test, y_test, before sizes, scaling and noise."""

    parts: Sequence[Array]
    classes: int
    kind: Literal["image", "table", "tokens"]
    info: dict[str, Any]
    scale: float = 255.0


@dataclass(frozen=True)
class Entry:
    """A data set of the catalogue."""

    read: Callable[[Request], Raw]
    description: str
    needs_folder: bool = False


def _permuted(
    x: Array, y: Array, classes: int, kind: Literal["image", "table"], info: Mapping[str, Any], scale: float = 1.0
) -> Raw:
    """Split where nobody has: the first 80 % of a permutation by numpy's default generator with seed 0, not stratified."""
    if len(x) < 2:
        raise DataError(f"expected at least 2 examples to split, got {len(x)}")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(x))
    cut = min(max(int(TRAIN_SHARE * len(x)), 1), len(x) - 1)
    a, b = order[:cut], order[cut:]
    words = {"split": f"permutation with seed {SPLIT_SEED}, first {cut} of {len(x)} for training, not stratified"}
    return Raw((x[a], y[a], x[b], y[b]), classes, kind, {**info, **words}, scale)


def _digits(request: Request) -> Raw:
    bunch = sklearn.datasets.load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    return _permuted(images, bunch.target.astype(np.int64), 10, "image", {"source": "scikit-learn"}, 16.0)


def _bundled(loader: Callable[[], Any]) -> Callable[[Request], Raw]:
    def read(request: Request) -> Raw:
        bunch = loader()
        info = {
            "source": "scikit-learn",
            "labels": [str(n) for n in bunch.target_names],
            "features": [str(n) for n in bunch.feature_names],
        }
        return _permuted(bunch.data, bunch.target.astype(np.int64), len(bunch.target_names), "table", info)

    return read


def _mnist(request: Request) -> Raw:
    stems = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
    paths = request.find([(stem, f"{stem}.gz") for stem in stems], ("mnist", "", "MNIST/raw"))
    parts: list[Array] = []
    for (image_path, label_path), head in zip((paths[:2], paths[2:]), (request.train, request.test), strict=True):
        images, declared = readers.read_idx(image_path, 3, head)
        labels, count = readers.read_idx(label_path, 1, head)
        parts += [images[:, None], readers.read_labels(label_path, labels, declared, count, 10)]
    return Raw(parts, classes=10, kind="image", info={"source": "idx files", "split": "official, head of each part"})


def _cifar10(request: Request) -> Raw:
    info = {
        "labels": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
        "split": "official, head of each part",
    }
    folders = ("cifar10", "", "cifar-10-batches-bin")
    hint = (
        " Or the official binary version, data_batch_1.bin to data_batch_5.bin and test_batch.bin;"
        " the python version is pickles, which are not read."
    )
    official = [(f"data_batch_{i}.bin",) for i in range(1, 6)] + [("test_batch.bin",)]
    if request.folder is not None and any((request.folder / sub / "data_batch_1.bin").is_file() for sub in folders):
        paths = request.find(official, folders)
        x, y = _checked(paths[0], readers.read_cifar_bin(paths[:5], request.train))
        x_test, y_test = _checked(paths[5], readers.read_cifar_bin(paths[5:], request.test))
        return Raw((x, y, x_test, y_test), 10, "image", info | {"source": "official binary files"})
    wanted = ["x_train_jpeg_20000.npy.xz", "y_train_20000.npy", "x_test_jpeg_4000.npy.xz", "y_test_4000.npy"]
    paths = request.find([(name,) for name in wanted], folders, hint)
    parts: list[Array] = []
    for (image_path, label_path), head in zip((paths[:2], paths[2:]), (request.train, request.test), strict=True):
        parts += _npy_images(image_path, label_path, head)
    return Raw(parts, classes=10, kind="image", info=info | {"source": "npy files, pixels through JPEG: not the original ones"})


def _checked(path: Path, part: tuple[Array, Array]) -> tuple[Array, Array]:
    return part[0], readers.read_labels(path, part[1], len(part[0]), len(part[1]), 10)


def _npy_images(image_path: Path, label_path: Path, head: int | None, more_labels: bool = False) -> list[Array]:
    images, declared = readers.read_npy(image_path, 4, head)
    if images.shape[1:] != (32, 32, 3):
        raise DataError(f"{image_path}: expected images of shape (32, 32, 3), got {images.shape[1:]}")
    labels, count = readers.read_npy(label_path, 1, declared if more_labels else head)
    checked = readers.read_labels(label_path, labels, declared, len(labels) if more_labels else count, 10)
    return [images.transpose(0, 3, 1, 2), checked[: len(images)]]


def _cifar10_lossless(request: Request) -> Raw:
    paths = request.find([("x_train_lossless_4000.npy.xz",), ("y_train_20000.npy",)], ("cifar10", ""))
    x, y = _npy_images(paths[0], paths[1], None, more_labels=True)
    cut = int(TRAIN_SHARE * len(x))
    words = f"official order of the training set, first {cut} of {len(x)} for training, the rest for testing"
    return Raw((x[:cut], y[:cut], x[cut:], y[cut:]), 10, "image", {"source": "npy files, original pixels", "split": words})


def _table_file(path: Path, label: str | None) -> tuple[Array, list[str], dict[str, Any]]:
    x, labels, features = readers.read_table(path, label)
    return x, labels, {"source": path.name, "features": features}


def _table(stem: str) -> Callable[[Request], Raw]:
    def read(request: Request) -> Raw:
        return _one_table(request.find([(f"{stem}.csv", f"{stem}.csv.gz")])[0], request.label)

    return read


def _one_table(path: Path, label: str | None) -> Raw:
    x, labels, info = _table_file(path, label)
    y, classes = readers.encode_labels(path, labels)
    return _permuted(x, y, len(classes), "table", info | {"labels": classes})


def _avila(request: Request) -> Raw:
    paths = request.find([(f"avila_{part}.csv", f"avila_{part}.csv.gz") for part in ("train", "test")])
    (x, labels, info), (x_test, labels_test, _) = (_table_file(path, request.label) for path in paths)
    if x.shape[1] != x_test.shape[1]:
        raise DataError(f"{paths[1]}: expected {x.shape[1]} features as in {paths[0].name}, got {x_test.shape[1]}")
    y, classes = readers.encode_labels(paths[0], labels + labels_test)
    n, words = len(labels), {"labels": classes, "split": "official, head of each part"}
    return Raw((x, y[:n], x_test, y[n:]), len(classes), "table", info | words)


def _given(request: Request, prefix: str) -> Path:
    typed = Path(request.name.removeprefix(prefix)).expanduser()
    places = [typed] if typed.is_absolute() or request.folder is None else [typed, request.folder / typed]
    for path in places:
        if path.is_file():
            return path
    raise DataError(
        f"dataset '{request.name}': there is no file {' nor '.join(map(str, places))}; --data-dir names a folder to look in"
    )


def _csv(request: Request) -> Raw:
    return _one_table(_given(request, "csv:"), request.label)


def _text_file(path: Path, context: int) -> Raw:
    """Windows of `context` characters that follow each other without overlap; the target is the next character."""
    text = readers.read_text(path)
    symbols = sorted(set(text))
    place = {symbol: i for i, symbol in enumerate(symbols)}
    tokens = np.array([place[c] for c in text], np.int64)
    cut = int(TEXT_SHARE * len(tokens))
    if min(cut, len(tokens) - cut) < context + 1:
        raise DataError(f"{path}: {len(tokens)} characters are too few for a training and a test window of context = {context}")
    parts = []
    for part in (tokens[:cut], tokens[cut:]):
        n = (len(part) - 1) // context
        parts += [part[: n * context].reshape(n, context), part[1 : n * context + 1].reshape(n, context)]
    words = (
        f"first {cut} of {len(tokens)} characters for training; windows of {context} without overlap, in the order of the text"
    )
    return Raw(parts, classes=len(symbols), kind="tokens", info={"source": path.name, "labels": symbols, "split": words})


def _shakespeare(request: Request) -> Raw:
    return _text_file(request.find([("tinyshakespeare.txt", "tinyshakespeare.txt.gz")])[0], request.context)


def _text(request: Request) -> Raw:
    return _text_file(_given(request, "text:"), request.context)


def _gaussian_blobs(request: Request) -> Raw:
    """4 classes in 10 dimensions: unit Gaussians whose centres are drawn from a Gaussian of standard deviation 2."""
    centres = 2.0 * np.random.default_rng([request.seed, 0]).standard_normal((4, 10))
    return _drawn(request, 10, 4, lambda x, rng: (x + centres[labels := rng.integers(4, size=len(x))], labels))


def _noisy_linear(request: Request) -> Raw:
    """2 classes in 20 dimensions: y = [w.x + e > 0], |w| = 1, x and 0.5 e standard normal, so that no classifier is perfect."""
    w = np.random.default_rng([request.seed, 0]).standard_normal(20)
    w /= np.linalg.norm(w)
    return _drawn(request, 20, 2, lambda x, rng: (x, (x @ w + 0.5 * rng.standard_normal(len(x)) > 0).astype(np.int64)))


def _drawn(request: Request, size: int, classes: int, make: Callable[[Array, np.random.Generator], tuple[Array, Array]]) -> Raw:
    """Draw both parts from own generators, so that a smaller part is the head of a larger one."""
    parts: list[Array] = []
    for number, n in ((1, request.train or 1000), (2, request.test or 500)):
        x = np.random.default_rng([request.seed, number]).standard_normal((n, size))
        parts += make(x, np.random.default_rng([request.seed, number, 1]))
    words = {"source": f"drawn with seed {request.seed}", "split": "independent draws"}
    return Raw(parts, classes=classes, kind="table", info=words)


_SETS: dict[str, Entry] = {
    "digits": Entry(_digits, "handwritten digits 8x8 of scikit-learn, 1797 images, 10 classes"),
    "breast_cancer": Entry(
        _bundled(sklearn.datasets.load_breast_cancer), "Wisconsin breast cancer, 569 rows, 30 features, 2 classes"
    ),
    "wine": Entry(_bundled(sklearn.datasets.load_wine), "wine recognition, 178 rows, 13 features, 3 classes"),
    "gaussian_blobs": Entry(_gaussian_blobs, "4 Gaussian blobs in 10 dimensions, drawn from a seed"),
    "noisy_linear": Entry(_noisy_linear, "2 classes by a noisy linear rule in 20 dimensions, drawn from a seed"),
    "mnist": Entry(_mnist, "MNIST digits 28x28, idx files", True),
    "cifar10": Entry(_cifar10, "CIFAR-10 32x32, binary version, or the npy files of 20,000 + 4,000 images through JPEG", True),
    "cifar10_lossless": Entry(_cifar10_lossless, "CIFAR-10, the first 4,000 training images, original pixels", True),
    "banknote": Entry(_table("banknote"), "UCI banknote authentication, 4 features, 2 classes", True),
    "avila": Entry(_avila, "UCI Avila, 10 features, 12 very unequal classes, official split", True),
    "sensorless_head": Entry(
        _table("sensorless_head_PARTIAL"), "UCI sensorless drive, only its head: 48 features, 2 of 11 classes", True
    ),
    "tinyshakespeare": Entry(_shakespeare, "tiny Shakespeare, characters in windows", True),
    "csv:<path>": Entry(_csv, "a table of your own: header, numbers, label column last (or named by label=)"),
    "text:<path>": Entry(_text, "a text of your own, characters in windows"),
}


def names() -> list[tuple[str, bool, str]]:
    """List the data sets.

    Returns:
        (name, whether it needs a data folder, description) of each.
    """
    return [(name, entry.needs_folder, entry.description) for name, entry in _SETS.items()]


def catalogue() -> list[dict[str, Any]]:
    """List the data sets with JSON types.

    Returns:
        ``name``, ``description`` and ``needs_data_dir`` of each.
    """
    return [{"name": name, "description": text, "needs_data_dir": needs} for name, needs, text in names()]


def _entry(name: str) -> Entry:
    if name.startswith(("csv:", "text:")):
        return _SETS["csv:<path>" if name.startswith("csv:") else "text:<path>"]
    if name.endswith((".csv", ".csv.gz")):
        return _SETS["csv:<path>"]
    if name not in _SETS or "<" in name:
        error = unknown("dataset", name, _SETS)
        raise error
    return _SETS[name]


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    train: int | None = None,
    test: int | None = None,
    label_noise: float = 0.0,
    label_convention: str = "uniform",
    noise_seed: int = 0,
    standardise: bool = True,
    seed: int = 0,
    context: int = 64,
    label: str | None = None,
    clip: float | None = None,
) -> Dataset:
    """Load a data set.

    Pixels are divided by their largest possible value. Standardised, x -> (x - mean) / std with mean and standard
    deviation (1/N) over the training examples that were taken: of each channel of images, of each feature of a table
    (a constant feature is only centred). A share q of the training labels, round(q N) of them drawn without
    replacement, is replaced by a drawn class: a uniform one, which may be the old one, so that q (1 - 1/C) of the labels are
    wrong (the convention of Jastrzebski et al.'s later code), or a uniform one of the others, so that q of them are.

    Args:
        name: one of `names`, ``csv:<path>`` (a path that ends in .csv or .csv.gz does too) or ``text:<path>``.
        data_dir: folder of the files; the bundled and the drawn sets need none.
        train: training examples, the head of the training part; all if None (1000 of a drawn set).
        test: test examples, the head of the test part; all if None (500 of a drawn set).
        label_noise: q, 0 <= q <= 1.
        label_convention: ``uniform`` over all classes, or ``different`` from the old label.
        noise_seed: of the replaced labels.
        standardise: whether to take mean and standard deviation out.
        seed: of a drawn set.
        context: window length of a text, at least 1.
        label: name of the label column of a table; the last if None.
        clip: standardised features of a table are cut to -clip..clip, so that a gross outlier (Avila has one of 99 standard
            deviations) does not rule the loss; None leaves them. How many were cut is in `info`.

    Returns:
        The data set; `info` has the share of labels that are wrong, and of a table the constant features and the feature with
        the largest value, in standard deviations. Bundled sets and single tables are split by a permutation, seed 0, 80 %.

    Raises:
        ArgumentError: an argument is out of range.
        DataError: a file is missing or not as expected.
        UnknownNameError: an unknown convention.

    Cost: what the parts that were asked for take in memory, as float32; of the image files only the head is read.
    """
    entry = _entry(name)
    for argument, value in (("train", train), ("test", test), ("context", context)):
        if value is not None and value < 1:
            raise ArgumentError(f"{argument}: expected at least 1, got {value}")
    if not 0.0 <= label_noise <= 1.0:
        raise ArgumentError(f"label_noise: expected a share 0 <= label_noise <= 1, got {label_noise}")
    if label_convention not in CONVENTIONS:
        error = unknown("label_convention", label_convention, CONVENTIONS)
        raise error
    folder = None if data_dir is None else Path(data_dir)
    if folder is not None and entry.needs_folder and not folder.is_dir():
        raise DataError(f"data_dir: expected a folder, and {folder} is none; --data-dir names it")
    raw = entry.read(Request(name, folder, train, test, seed, context, label))
    if raw.kind == "tokens" and label_noise:
        raise ArgumentError(f"label_noise: a text has no labels to replace; expected 0, got {label_noise}")
    x, y = _head(name, "train", (raw.parts[0], raw.parts[1]), train)
    x_test, y_test = _head(name, "test", (raw.parts[2], raw.parts[3]), test)
    labels, noisy = _with_noise(y, raw.classes, label_noise, (label_convention, noise_seed))
    x, x_test, constants = _scaled(x, x_test, raw, standardise)
    if clip is not None and (raw.kind != "table" or not standardise or not clip > 0):
        raise ArgumentError(f"clip: expected a number > 0, for the standardised features of a table; got {clip} for '{name}'")
    if raw.kind == "table":
        x, x_test, told = _looked_at(x, x_test, raw.info.get("features"), clip)
        constants |= told
    tensors = [torch.from_numpy(np.ascontiguousarray(part)) for part in (x, labels, x_test, y_test)]
    info = raw.info | constants | {"label_noise": label_noise, "noise_seed": noise_seed, "label_convention": label_convention}
    info["wrong_labels"] = float((labels != y).mean())
    return Dataset(
        tensors[0], tensors[1], tensors[2], tensors[3], raw.classes, name, _hash(tensors), torch.from_numpy(noisy), info
    )


def _head(name: str, part: str, whole: tuple[Array, Array], n: int | None) -> tuple[Array, Array]:
    x, y = whole
    if n is not None and n > len(x):
        raise ArgumentError(f"{part}: the {part} part of '{name}' has {len(x)} examples; expected at most that many, got {n}")
    return x[:n], y[:n].copy()


def _with_noise(y: Array, classes: int, share: float, how: tuple[str, int]) -> tuple[Array, NDArray[np.int64]]:
    """The labels with a share of them drawn anew by (convention, seed), and which they are."""
    if share == 0:
        return y, np.empty(0, np.int64)
    convention, rng = how[0], np.random.default_rng(how[1])
    where = np.sort(rng.choice(len(y), round(share * len(y)), replace=False)).astype(np.int64)
    drawn = y.copy()
    if convention == "uniform":
        drawn[where] = rng.integers(classes, size=len(where))
    else:
        drawn[where] = (y[where] + rng.integers(1, classes, size=len(where))) % classes
    return drawn, where


def _scaled(x: Array, x_test: Array, raw: Raw, standardise: bool) -> tuple[Array, Array, dict[str, Any]]:
    if raw.kind == "tokens":
        return x, x_test, {}
    mean, std = _image_moments(x, raw.scale) if raw.kind == "image" else (x.mean(0), x.std(0))
    std = np.where(std > 0, std, 1.0)
    if not standardise:
        mean, std = np.zeros_like(mean), np.ones_like(std)
    constants = {"mean": mean.tolist(), "std": std.tolist(), "scale": raw.scale if raw.kind == "image" else 1.0}
    if raw.kind == "table":
        return ((x - mean) / std).astype(np.float32), ((x_test - mean) / std).astype(np.float32), constants
    shift, factor = (mean / std).astype(np.float32)[:, None, None], (1 / (raw.scale * std)).astype(np.float32)[:, None, None]
    return x.astype(np.float32) * factor - shift, x_test.astype(np.float32) * factor - shift, constants


def _looked_at(x: Array, x_test: Array, features: Any, clip: float | None) -> tuple[Array, Array, dict[str, Any]]:
    """Constant features and the largest value of the training part, by name; both parts cut to -clip..clip on request."""
    names = [str(n) for n in features] if features is not None else [str(i) for i in range(x.shape[1])]
    row, column = np.unravel_index(int(np.abs(x).argmax()), x.shape)
    told: dict[str, Any] = {
        "constant_features": [n for n, constant in zip(names, np.ptp(x, axis=0) == 0, strict=True) if constant],
        "largest": {"feature": names[column], "value": float(x[row, column]), "row": int(row)},
    }
    if clip is None:
        return x, x_test, told
    cut = int((np.abs(x) > clip).sum())
    bound = np.float32(clip)
    return np.clip(x, -bound, bound), np.clip(x_test, -bound, bound), told | {"clip": clip, "clipped": cut}


def _image_moments(x: Array, scale: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel, exactly, from counts of the 256 values."""
    counts = np.stack([np.bincount(x[:, c].reshape(-1), minlength=256) for c in range(x.shape[1])]) / x[:, 0].size
    values = np.arange(256) / scale
    mean = counts @ values
    return mean, np.sqrt((counts * (values - mean[:, None]) ** 2).sum(1))


def _hash(tensors: Sequence[Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.numpy().view(np.uint8).data)
    return digest.hexdigest()
