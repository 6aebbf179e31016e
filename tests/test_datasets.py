"""Data sets: real files against what is known of them, broken files against their messages."""

import gzip
import json
import lzma
import struct

import numpy as np
import pytest
import sklearn.datasets
import torch

from sgdscope import datasets
from sgdscope.datasets import readers
from sgdscope.errors import ArgumentError, DataError, UnknownNameError
from sgdscope.experiment import Experiment

FREE = [name for name, needs, _ in datasets.names() if not needs and "<" not in name]
SHAPES = {  # training shape, test examples, classes
    "digits": ((1437, 1, 8, 8), 360, 10),
    "breast_cancer": ((455, 30), 114, 2),
    "wine": ((142, 13), 36, 3),
    "gaussian_blobs": ((1000, 10), 500, 4),
    "noisy_linear": ((1000, 20), 500, 2),
    "mnist": ((60000, 1, 28, 28), 10000, 10),
    "banknote": ((1097, 4), 275, 2),
    "avila": ((10430, 10), 10437, 12),
    "sensorless_head": ((4598, 48), 1150, 2),
    "cifar10_lossless": ((3200, 3, 32, 32), 800, 10),
    "tinyshakespeare": ((15685, 64), 1742, 65),
}


def check(data, name):
    shape, test, classes = SHAPES[name]
    assert tuple(data.x.shape) == shape
    assert data.x_test.shape[1:] == data.x.shape[1:]
    assert len(data.x_test) == len(data.y_test) == test
    assert data.classes == classes
    assert data.y.dtype == data.y_test.dtype == torch.int64
    assert set(data.y.unique().tolist()) == set(range(classes)) or name == "tinyshakespeare"
    assert json.loads(json.dumps(data.info)) == data.info
    if name != "tinyshakespeare":
        assert data.x.dtype == torch.float32
        dims = [d for d in range(data.x.ndim) if d != 1]
        assert float(data.x.double().mean(dims).abs().max()) < 1e-5
        assert float((data.x.double().std(dims, correction=0) - 1).abs().max()) < 1e-4


@pytest.mark.parametrize("name", FREE)
def test_free_sets(name):
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # ruff: ignore[numpy-legacy-random] -- watched, not used
    data = datasets.load(name)
    check(data, name)
    assert datasets.load(name).fingerprint == data.fingerprint
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # ruff: ignore[numpy-legacy-random] -- the same
    assert torch.equal(torch.get_rng_state(), before[1])
    small = datasets.load(name, train=50, test=20, standardise=False)
    assert (len(small.x), len(small.x_test)) == (50, 20)
    assert torch.equal(small.y, data.y[:50])
    assert small.fingerprint != data.fingerprint


def test_digits_are_those_of_scikit_learn_split_without_loss():
    data, bunch = datasets.load("digits", standardise=False), sklearn.datasets.load_digits()
    rows = torch.cat([data.x, data.x_test]).reshape(1797, 64).numpy() * 16
    labels = torch.cat([data.y, data.y_test]).numpy()

    def multiset(x, y):
        return sorted(zip(map(bytes, x.round().astype(np.uint8)), y.tolist(), strict=True))

    assert multiset(rows, labels) == multiset(bunch.data, bunch.target)
    order = np.random.default_rng(0).permutation(1797)
    np.testing.assert_array_equal(labels, bunch.target[order])
    assert float(data.x.max()) == pytest.approx(1.0)


def test_standardising_uses_the_training_part_only():
    data, raw = datasets.load("wine"), datasets.load("wine", standardise=False)
    mean, std = raw.x.double().mean(0), raw.x.double().std(0, correction=0)
    torch.testing.assert_close(data.x_test.double(), (raw.x_test.double() - mean) / std, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(data.info["mean"], mean, rtol=1e-6)
    assert abs(float(data.x_test.double().mean(0).abs().max())) > 0.01
    image, raw_image = datasets.load("digits", train=300), datasets.load("digits", train=300, standardise=False)
    mean, std = float(raw_image.x.double().mean()), float(raw_image.x.double().std(correction=0))
    torch.testing.assert_close(image.x_test, (raw_image.x_test - mean) / std, rtol=1e-5, atol=1e-5)
    assert image.info["mean"] == pytest.approx([mean], rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_label_noise(share):
    clean, noisy = datasets.load("digits"), datasets.load("digits", label_noise=share, noise_seed=4)
    assert len(noisy.noisy) == round(share * 1437) == len(noisy.noisy.unique())
    changed = (clean.y != noisy.y).nonzero()[:, 0]
    assert set(changed.tolist()) <= set(noisy.noisy.tolist())
    assert torch.equal(clean.y_test, noisy.y_test)
    assert torch.equal(clean.x, noisy.x)
    if share:
        # 9 in 10 of the new labels differ; five standard deviations of a binomial share
        assert len(changed) / len(noisy.noisy) == pytest.approx(0.9, abs=5 * (0.09 / len(noisy.noisy)) ** 0.5)
        other = datasets.load("digits", label_noise=share, noise_seed=5)
        assert not torch.equal(other.y, noisy.y)
        assert torch.equal(datasets.load("digits", label_noise=share, noise_seed=4).y, noisy.y)
        assert noisy.fingerprint != clean.fingerprint


def test_label_conventions():
    clean, told = datasets.load("wine"), {"label_noise": 0.5, "noise_seed": 4}
    uniform, different = datasets.load("wine", **told), datasets.load("wine", **told, label_convention="different")
    rng = np.random.default_rng(4)  # the draws that recorded runs rest on
    where = np.sort(rng.choice(142, 71, replace=False))
    expected = clean.y.clone()
    expected[where] = torch.from_numpy(rng.integers(3, size=71))
    assert torch.equal(uniform.y, expected)
    assert uniform.noisy.tolist() == different.noisy.tolist() == where.tolist()
    assert (clean.y != different.y).nonzero()[:, 0].tolist() == where.tolist()
    shifts = (different.y - clean.y)[where] % 3
    assert sorted(shifts.unique().tolist()) == [1, 2]
    assert float((shifts == 1).float().mean()) == pytest.approx(0.5, abs=5 * 0.5 / 71**0.5)  # five standard deviations
    assert different.info["wrong_labels"] == pytest.approx(71 / 142)
    assert uniform.info["wrong_labels"] == pytest.approx(float((clean.y != uniform.y).double().mean()))
    assert (uniform.info["label_convention"], different.info["label_convention"]) == ("uniform", "different")
    with pytest.raises(UnknownNameError, match="no label_convention is called 'other'"):
        datasets.load("wine", **told, label_convention="other")


def test_the_convention_of_an_experiment_is_left_out_where_it_is_the_old_one():
    told = {"model": {"name": "mlp"}, "phases": [{"lr": 0.1, "batch_size": 8, "updates": 1}]}
    assert "label_convention" not in Experiment(data={"dataset": "wine"}, **told).described()["data"]
    chosen = Experiment(data={"dataset": "wine", "label_noise": 0.5, "label_convention": "different"}, **told)
    assert datasets.load("wine", **chosen.data.options).info["label_convention"] == "different"
    with pytest.raises(ArgumentError, match=r"data\.label_convention: expected 'uniform' or 'different'; got 'other'"):
        Experiment(data={"dataset": "wine", "label_convention": "other"}, **told)


def test_drawn_sets_follow_their_seed_and_their_law():
    first, second = datasets.load("noisy_linear", train=4000, seed=1), datasets.load("noisy_linear", train=4000, seed=2)
    assert not torch.equal(first.x, second.x)
    assert torch.equal(datasets.load("noisy_linear", train=30, seed=1).y, first.y[:30])
    w = np.random.default_rng([1, 0]).standard_normal(20)
    raw = datasets.load("noisy_linear", train=4000, seed=1, standardise=False)
    right = float(((raw.x.double().numpy() @ w > 0) == raw.y.numpy().astype(bool)).mean())
    # P(right) = 1 - arctan(0.5) / pi = 0.852; five standard deviations
    assert right == pytest.approx(1 - np.arctan(0.5) / np.pi, abs=5 * (0.852 * 0.148 / 4000) ** 0.5)


# --- real files ------------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("name", ["banknote", "avila", "sensorless_head", "cifar10_lossless", "tinyshakespeare"])
def test_files_of_the_folder(name, data_dir):
    check(datasets.load(name, data_dir), name)


@pytest.mark.data
def test_mnist(data_dir):
    data = datasets.load("mnist", data_dir)
    check(data, "mnist")
    assert data.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.y.bincount().tolist()[:3] == [5923, 6742, 5958]
    assert data.info["mean"] == pytest.approx([0.1307], abs=1e-4)
    assert data.info["std"] == pytest.approx([0.3081], abs=1e-4)
    head = datasets.load("mnist", data_dir, train=100, test=10, standardise=False)
    constants = data.info["mean"][0], data.info["std"][0]
    torch.testing.assert_close((head.x - constants[0]) / constants[1], data.x[:100], rtol=1e-4, atol=1e-5)
    with pytest.raises(ArgumentError, match="train: the train part of 'mnist' has 60000 examples"):
        datasets.load("mnist", data_dir, train=60001, test=1)


@pytest.mark.data
def test_cifar10(data_dir):
    data = datasets.load("cifar10", data_dir, train=20000, test=1000)
    assert data.info["mean"] == pytest.approx([0.4926, 0.4829, 0.4470], abs=1e-4)
    assert data.info["std"] == pytest.approx([0.2456, 0.2434, 0.2611], abs=1e-4)
    assert data.y[:5].tolist() == [6, 9, 9, 4, 1]
    counts = data.y.bincount()
    assert (len(data.y), int(counts.min()), int(counts.max())) == (20000, 1925, 2042)
    assert "JPEG" in data.info["source"]
    lossless = datasets.load("cifar10_lossless", data_dir, standardise=False)
    jpeg = datasets.load("cifar10", data_dir, train=3200, test=1, standardise=False)
    assert torch.equal(lossless.y, jpeg.y)
    error = float((lossless.x - jpeg.x).double().square().mean().sqrt()) * 255
    assert error == pytest.approx(8.1, abs=0.2)


@pytest.mark.data
def test_tables_and_text(data_dir):
    banknote = datasets.load("banknote", data_dir)
    assert torch.cat([banknote.y, banknote.y_test]).bincount().tolist() == [762, 610]
    assert banknote.info["features"][2] == "curtosis"
    avila = datasets.load("avila", data_dir)
    assert avila.info["labels"] == list("ABCDEFGHIWXY")
    assert avila.y.bincount()[:2].tolist() == [4286, 5]
    same = datasets.load(f"csv:{data_dir / 'banknote.csv.gz'}")
    assert same.fingerprint == banknote.fingerprint == datasets.load("csv:banknote.csv.gz", data_dir).fingerprint
    text = datasets.load("tinyshakespeare", data_dir, context=40, train=3)
    symbols = text.info["labels"]
    assert "".join(symbols[i] for i in text.x[0]) == "First Citizen:\nBefore we proceed any fur"
    assert torch.equal(text.x[0, 1:], text.y[0, :-1])
    assert torch.equal(text.x[1, 0], text.y[0, -1])


# --- files made here -------------------------------------------------------------------------------------------------


def idx(shape, body=None, magic=None):
    body = bytes(range(256)) * 99 if body is None else body
    count = int(np.prod(shape))
    return (magic or bytes([0, 0, 8, len(shape)])) + struct.pack(f">{len(shape)}I", *shape) + body[:count]


def write_mnist(folder, **replaced):
    files = {
        "train-images-idx3-ubyte": idx((6, 28, 28)),
        "train-labels-idx1-ubyte": idx((6,), bytes([3, 1, 4, 1, 5, 9])),
        "t10k-images-idx3-ubyte": idx((2, 28, 28)),
        "t10k-labels-idx1-ubyte": idx((2,), bytes([2, 7])),
    } | {name.replace("_", "-"): body for name, body in replaced.items()}
    for name, body in files.items():
        (folder / name).write_bytes(body)


def test_plain_idx_files(tmp_path):
    write_mnist(tmp_path)
    data = datasets.load("mnist", tmp_path, standardise=False)
    assert data.y.tolist() == [3, 1, 4, 1, 5, 9]
    np.testing.assert_allclose(data.x[0, 0, 3].numpy() * 255, np.arange(84, 112) % 256, rtol=1e-6)
    (tmp_path / "mnist").mkdir()
    for path in list(tmp_path.glob("*ubyte")):
        (tmp_path / "mnist" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert datasets.load("mnist", tmp_path, standardise=False).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"train_images_idx3_ubyte": idx((6, 28, 28))[:-10]}, "train-images-idx3-ubyte: expected 4704 bytes .* got 4694"),
        ({"train_images_idx3_ubyte": idx((6, 28, 28)) + b"x"}, "got more than 4704"),
        ({"train_images_idx3_ubyte": idx((6, 28))}, r"expected the magic number 0x00000803 .* got 0x00000802"),
        ({"train_images_idx3_ubyte": b""}, "expected the magic number"),
        ({"train_images_idx3_ubyte": bytes([0, 0, 8, 3, 0, 0])}, "expected 12 bytes of dimensions, got 2"),
        ({"train_images_idx3_ubyte": idx((0, 28, 28))}, "dimensions of at least 1"),
        ({"train_labels_idx1_ubyte": idx((5,))}, "train-labels-idx1-ubyte: 5 labels for 6 images"),
        (
            {"t10k_labels_idx1_ubyte": idx((2,), bytes([2, 10]))},
            "t10k-labels-idx1-ubyte: label 10 at position 1; expected 0 to 9",
        ),
    ],
)
def test_broken_idx_files_are_named(tmp_path, replaced, message):
    write_mnist(tmp_path, **replaced)
    with pytest.raises(DataError, match=message):
        datasets.load("mnist", tmp_path)


def test_damaged_compression_is_named(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    whole = gzip.compress(path.read_bytes())
    for broken in (whole[:-20], b"\x1f\x8b" + whole[20:], b"no gzip at all"):
        path.with_suffix(".gz").write_bytes(broken)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
            readers.read_idx(path.with_suffix(".gz"), 3)


def npy(array):
    from io import BytesIO

    stream = BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_npy_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    path = tmp_path / "a.npy.xz"
    path.write_bytes(lzma.compress(npy(images)))
    np.testing.assert_array_equal(readers.read_npy(path, 4)[0], images)
    part, declared = readers.read_npy(path, 4, 2)
    np.testing.assert_array_equal(part, images[:2])
    assert declared == 5
    for body, message in [
        (npy(images)[:-7], "expected 15360 bytes .* got 15353"),
        (npy(images.astype(np.int64)), "expected uint8 with 4 dimensions in C order, got int64"),
        (npy(np.asfortranarray(images)), "in C order"),
        (npy(np.array([{"a": 1}], dtype=object)), "expected uint8 .* got object"),
        (b"\x80\x04pickle", r"expected a \.npy file"),
        (npy(images)[:8] + b"\x10\x00not a header at ", "header cannot be read"),
    ]:
        path.write_bytes(lzma.compress(body))
        with pytest.raises(DataError, match=message):
            readers.read_npy(path, 4)
    path.write_bytes(lzma.compress(npy(images))[:-30])
    with pytest.raises(DataError, match=r"a\.npy\.xz: cannot be read"):
        readers.read_npy(path, 4)


def test_cifar_in_its_official_binary_version(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (12, 3073)).astype(np.uint8)
    rows[:, 0] = np.arange(12) % 10
    (tmp_path / "cifar-10-batches-bin").mkdir()
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for i, name in enumerate(names):
        (tmp_path / "cifar-10-batches-bin" / name).write_bytes(rows[2 * i : 2 * i + 2].tobytes())
    data = datasets.load("cifar10", tmp_path, standardise=False)
    assert data.y.tolist() == [*range(10)]
    assert data.y_test.tolist() == [0, 1]
    np.testing.assert_allclose(data.x[7].numpy() * 255, rows[7, 1:].reshape(3, 32, 32), rtol=1e-6)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin").write_bytes(rows[:2].tobytes()[:-5])
    with pytest.raises(DataError, match=r"data_batch_2\.bin: expected a whole number of rows of 3073 bytes .* got 6141 bytes"):
        datasets.load("cifar10", tmp_path)


def table(folder, text, name="t.csv"):
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return f"csv:{folder / name}"


def test_tables_of_ones_own(tmp_path):
    rows = "\n".join(f"{i},{i * i - 3.5},{'no' if i % 3 else 'yes'}" for i in range(20))
    data = datasets.load(table(tmp_path, "\ufeffa, b ,answer\n" + rows + "\n"), standardise=False)
    assert data.info["labels"] == ["no", "yes"]
    assert data.info["features"] == ["a", "b"]
    assert (len(data.x), len(data.x_test)) == (16, 4)
    assert all(
        int(y) == (int(x[0]) % 3 == 0) and float(x[1]) == pytest.approx(float(x[0]) ** 2 - 3.5)
        for x, y in zip(data.x, data.y, strict=True)
    )
    zipped = datasets.load(table(tmp_path, "a,b,answer\n" + rows, "t.csv.gz")[4:], standardise=False)
    assert zipped.fingerprint == data.fingerprint
    first = "\n".join(f"{[10, 9, 2][i % 3]},{i}" for i in range(9))
    numbers = datasets.load(table(tmp_path, "class,x\n" + first), label="class", standardise=False)
    assert numbers.info["labels"] == ["2", "9", "10"]
    assert all([2, 1, 0][int(x[0]) % 3] == int(y) for x, y in zip(numbers.x, numbers.y, strict=True))
    constant = datasets.load(table(tmp_path, "a,b,y\n" + "\n".join(f"7,{i},{i % 2}" for i in range(10))))
    assert bool((constant.x[:, 0] == 0).all())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,y\n1,2,0\n1,2\n", r"t\.csv, row 3: expected 3 cells as in the header, got 2"),
        ("a,b,y\n1,2,0\n1,oops,1\n", r"row 3, column 'b': expected a finite number, got 'oops'"),
        ("a,b,y\n1,2,0\nnan,2,1\n", r"row 3, column 'a': expected a finite number, got 'nan'"),
        ("a,b,y\n1,inf,0\n1,2,1\n", r"row 2, column 'b': expected a finite number, got 'inf'"),
        ("a,b,y\n1,,0\n1,2,1\n", r"row 2, column 'b': expected a finite number, got ''"),
        ("a,b,y\n1,2,\n1,2,1\n", r"row 2, column 'y': expected a class, got ''"),
        ("a,b,y\n1,2,0.5\n1,2,1\n", r"label column holds '0.5'"),
        ("a,b,y\n1,2,1\n1,2,1\n", r"at least 2 classes in the label column, got only '1'"),
        ("a,b,y\n", "at least one row"),
        ("", "expected a header"),
        ("a,b,y\n1,2,\udce9\n", "expected a CSV table in UTF-8"),
    ],
)
def test_broken_tables_name_row_and_column(tmp_path, text, message):
    (tmp_path / "t.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        datasets.load(f"csv:{tmp_path / 't.csv'}")


def test_texts_of_ones_own(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefghij" * 12)
    data = datasets.load(f"text:{tmp_path / 'a.txt'}", context=7)
    assert data.classes == 10
    assert tuple(data.x.shape) == (15, 7)
    assert tuple(data.x_test.shape) == (1, 7)
    assert torch.equal((data.x + 1) % 10, data.y)
    assert data.x.dtype == torch.int64
    with pytest.raises(DataError, match=r"120 characters are too few .* context = 64"):
        datasets.load(f"text:{tmp_path / 'a.txt'}")
    with pytest.raises(ArgumentError, match="label_noise: a text has no labels"):
        datasets.load(f"text:{tmp_path / 'a.txt'}", context=7, label_noise=0.1)
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match=r"a\.txt: expected UTF-8 text, got byte 0xff at position 3"):
        datasets.load(f"text:{tmp_path / 'a.txt'}")


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(UnknownNameError, match="no dataset is called 'minst'; did you mean 'mnist'"):
        datasets.load("minst")
    with pytest.raises(UnknownNameError, match="no dataset is called 'csv<path>'"):
        datasets.load("csv<path>")
    with pytest.raises(DataError, match=r"'mnist' needs files: train-images-idx3-ubyte or .*--data-dir"):
        datasets.load("mnist")
    with pytest.raises(DataError, match=r"'mnist': expected train-images-idx3-ubyte or .* not all are there"):
        datasets.load("mnist", tmp_path)
    with pytest.raises(DataError, match="the python version is pickles, which are not read"):
        datasets.load("cifar10", tmp_path)
    with pytest.raises(DataError, match="data_dir: expected a folder"):
        datasets.load("banknote", tmp_path / "nothing")
    with pytest.raises(DataError, match=r"there is no file .*none\.csv"):
        datasets.load("csv:none.csv", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0}, "train: expected at least 1, got 0"),
        ({"test": -3}, "test: expected at least 1, got -3"),
        ({"train": 1438}, "train: the train part of 'digits' has 1437 examples; .* got 1438"),
        ({"test": 361}, "test: the test part of 'digits' has 360 examples"),
        ({"label_noise": 1.5}, "label_noise: expected a share"),
        ({"context": 0}, "context: expected at least 1"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ArgumentError, match=message):
        datasets.load("digits", **options)


def test_unknown_label_column(tmp_path):
    name = table(tmp_path, "a,b,y\n1,2,0\n3,4,1\n")
    with pytest.raises(ArgumentError, match="no column 'z'; its columns are a, b, y"):
        datasets.load(name, label="z")


def test_the_catalogue_is_json():
    rows = datasets.catalogue()
    assert json.loads(json.dumps(rows)) == rows
    assert [row["name"] for row in rows] == [name for name, _, _ in datasets.names()]
    assert {row["name"] for row in rows if row["needs_data_dir"]} >= {"mnist", "cifar10"}
