"""Sets of images: by name, from an archive, from a folder of pictures, and fetched once."""

import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests
from PIL import Image
from scipy.io import savemat

from ffjord_kit.datasets import (
    IMAGE_SETS,
    DataWarning,
    describe_images,
    fetched_images,
    fetching,
    is_image_source,
    load,
    load_images,
    locate_images,
)
from ffjord_kit.datasets.fetched_images import ImageOrigin
from ffjord_kit.datasets.pictures import resize

ORIGINS = [fetched_images.MNIST, fetched_images.FASHION_MNIST, fetched_images.CIFAR10, fetched_images.SVHN]
REAL = os.environ.get("FFJORD_KIT_DATA", "")
RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A machine that has no data, and no net: its cache, and the data folder that it names, which holds nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "CHECKOUT", tmp_path / "no checkout")
    monkeypatch.setenv("FFJORD_KIT_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path


# ---- the menu


def test_the_description_is_that_of_the_menu():
    rows = {row.name: row for row in describe_images()}
    assert list(rows) == list(IMAGE_SETS) == ["digits8", "mnist", "fashion_mnist", "cifar10", "svhn"]
    assert (rows["mnist"].shape, rows["mnist"].train, rows["mnist"].test) == ("1 x 28 x 28", 60000, 10000)
    assert (rows["cifar10"].shape, rows["cifar10"].train, rows["cifar10"].test) == ("3 x 32 x 32", 50000, 10000)
    assert (rows["svhn"].train, rows["svhn"].test) == (73257, 26032)
    assert all(row.summary and row.source for row in rows.values())
    assert all(len(spec.classes) == 10 for spec in IMAGE_SETS.values())


def test_digits_are_those_of_the_table_in_the_highest_five_bits():
    for split, rows in (("train", 1437), ("test", 360)):
        digits = load_images(f"digits8:{split}")
        assert digits.images.shape == (rows, 1, 8, 8) and digits.images.dtype == np.uint8 and digits.bits == 5
        table = np.floor(load(f"digits:{split}").x).reshape(-1, 1, 8, 8)
        np.testing.assert_array_equal(digits.images, table * 8)
    np.testing.assert_array_equal(load_images("digits8").images, load_images("digits8:train").images)
    assert digits.labels.dtype == np.int64 and set(digits.labels) == set(range(10)) and digits.classes[3] == "3"


def test_a_subset_is_random_in_order_and_that_of_its_seed():
    whole, some = load_images("digits8"), load_images("digits8", rows=50, seed=3)
    where = [np.flatnonzero((whole.images == image).all((1, 2, 3)))[0] for image in some.images]
    assert where == sorted(where) and len(set(where)) == 50
    np.testing.assert_array_equal(some.labels, whole.labels[where])
    assert not np.array_equal(some.images, load_images("digits8", rows=50, seed=4).images)


@pytest.mark.skipif(not os.path.exists(os.path.join(REAL, "mnist.npz")), reason="needs FFJORD_KIT_DATA")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_real_files_are_those_whose_digests_the_code_holds(name):
    test = load_images(f"{name}:test")
    assert test.images.shape == (10000, 1, 28, 28) and test.labels.max() == 9 and test.bits == 8
    with np.load(os.path.join(REAL, f"{name}.npz")) as arrays:
        halves = arrays["x_test"].reshape(-1, 14, 2, 14, 2).mean((2, 4)).round()
    np.testing.assert_array_equal(load_images(f"{name}:test", size=14).images[:, 0], halves)


# ---- averages


@pytest.mark.parametrize(("side", "size"), [(6, 3), (6, 2), (7, 3), (5, 4), (3, 7), (130, 3)])
def test_smaller_images_are_means_over_areas_rounded_once(side, size):
    images = noise(2, 3, side, side)
    share = [[Fraction(max(0, min((k + 1) * side, (j + 1) * size) - max(k * side, j * size)), side)
              for j in range(side)] for k in range(size)]  # fmt: skip
    rows = [[[[sum(w * int(v) for w, v in zip(share[k], row, strict=True) if w) for k in range(size)]
              for row in channel] for channel in image] for image in images]  # fmt: skip
    result = resize(images, size=size)
    for i, c, k, j in np.ndindex(2, 3, size, size):
        exact = sum(w * row[j] for w, row in zip(share[k], rows[i][c], strict=True) if w)
        assert result[i, c, k, j] == round(exact)  # of a Fraction: exact, half to even


def test_whole_ratios_are_means_over_squares_and_five_bits_stay_five():
    images = noise(5, 1, 12, 12)
    np.testing.assert_array_equal(resize(images, size=4), images.reshape(5, 1, 4, 3, 4, 3).mean((3, 5)).round())
    small = load_images("digits8", size=4).images
    levels = load_images("digits8").images >> 3
    np.testing.assert_array_equal(small, levels.reshape(-1, 1, 4, 2, 4, 2).mean((3, 5)).round().astype(np.uint8) << 3)


def test_grey_is_luma_and_grey_things_stay_as_they_are():
    images = noise(4, 3, 5, 6)
    luma = np.einsum("nchw,c->nhw", images.astype(int), [299, 587, 114]) / 1000
    np.testing.assert_array_equal(resize(images, grey=True)[:, 0], np.rint(luma))
    one = noise(4, 1, 6, 6)
    np.testing.assert_array_equal(resize(np.repeat(one, 3, axis=1), grey=True, size=3), resize(one, size=3))
    assert resize(one, grey=True, size=6) is one


# ---- archives


def archive(path, train=7, test=3, shape=(4, 4), labels=True, classes=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"x_train": noise(train, *shape), "y_train": np.arange(train, dtype=np.uint8) % classes}
    if test:
        arrays |= {"x_test": noise(test, *shape, seed=1), "y_test": np.arange(test, dtype=np.uint8) % classes}
    np.savez_compressed(path, **{key: value for key, value in arrays.items() if labels or key[0] == "x"})
    return arrays


def test_an_archive_of_ones_own_has_splits_and_labels(tmp_path):
    arrays = archive(tmp_path / "own.npz", shape=(4, 5, 3))
    source = str(tmp_path / "own.npz")
    assert is_image_source(source) and is_image_source(f"{source}:test") and not is_image_source(f"{source}:x_train")
    own = load_images(f"{source}:test")
    np.testing.assert_array_equal(own.images, arrays["x_test"].transpose(0, 3, 1, 2))
    assert own.labels.tolist() == [0, 1, 0] and own.classes == ("0", "1")
    np.testing.assert_array_equal(load_images(source).images[:, 1], arrays["x_train"][..., 1])
    archive(tmp_path / "bare.npz", labels=False)
    bare = load_images(f"{tmp_path}/bare.npz")
    assert bare.labels is None and bare.classes == ()


def test_only_the_arrays_of_the_split_are_read_and_they_are_not_copied(tmp_path, monkeypatch):
    archive(tmp_path / "own.npz", shape=(4, 4, 3))
    read, old = [], np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda self, key: read.append((key, old(self, key)))
                        or read[-1][1])  # fmt: skip
    images = load_images(f"{tmp_path}/own.npz:test").images
    assert {key for key, _ in read} == {"x_test", "y_test", "y_train"}
    assert np.shares_memory(images, dict(read)["x_test"])


def test_without_test_images_the_train_ones_are_split_with_a_warning(here):
    arrays = archive(here / "data" / "cifar10_first4000.npz", train=10, test=0, shape=(32, 32, 3))
    with pytest.warns(DataWarning, match="cifar10_first4000.npz: no test images .* its 10 images are split 80/20"):
        train = load_images("cifar10")
    with pytest.warns(DataWarning):
        test = load_images("cifar10:test")
    assert train.images.shape == (8, 3, 32, 32) and test.images.shape == (2, 3, 32, 32)
    order = np.random.default_rng(0).permutation(10)
    np.testing.assert_array_equal(test.images, arrays["x_train"][order[8:]].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(train.labels, arrays["y_train"][order[:8]])


def write(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


BAD_ARCHIVES = [
    ({"x_train": noise(3, 4, 4) / 255}, r"x_train must be uint8 of shape .* got float64 of shape \(3, 4, 4\)"),
    ({"x_train": noise(3, 16)}, r"got uint8 of shape \(3, 16\)"),
    ({"x_train": noise(3, 2, 4, 4)}, r"got uint8 of shape \(3, 2, 4, 4\)"),
    ({"x_train": noise(0, 4, 4)}, r"got uint8 of shape \(0, 4, 4\)"),
    ({"x_train": np.array([None])}, "pickled Python objects, which are never loaded"),
    ({"x_train": noise(3, 4, 4), "y_train": np.arange(2)}, "3 images in x_train, but 2 labels in y_train"),
    ({"x_train": noise(3, 4, 4), "y_train": np.array([0, 1, -1])}, "y_train must be whole numbers from 0"),
    ({"x_train": noise(3, 4, 4), "y_train": np.zeros((3, 1), int)}, r"got int64 of shape \(3, 1\)"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD_ARCHIVES)
def test_what_is_wrong_with_an_archive_is_said(tmp_path, arrays, message):
    path = write(tmp_path / "own.npz", x_test=arrays["x_train"], **arrays)
    with pytest.raises(ValueError, match=message):
        load_images(path)


def test_a_class_that_only_the_test_split_has_and_a_damaged_archive(tmp_path):
    path = write(tmp_path / "own.npz", x_train=noise(2, 4, 4), y_train=np.array([0, 1]), x_test=noise(1, 4, 4),
                 y_test=np.array([2]))  # fmt: skip
    with pytest.raises(ValueError, match="y_test has the class 2, which y_train lacks"):
        load_images(f"{path}:test")
    whole = (tmp_path / "own.npz").read_bytes()
    (tmp_path / "own.npz").write_bytes(whole[:150] + bytes([whole[150] ^ 255]) + whole[151:])
    with pytest.raises(ValueError, match="own.npz:x_train: damaged"):
        load_images(path)


# ---- named sets, found or fetched

COUNTS = {"train": (2, 1, 3), "test": (1, 1, 0)}


def digest(images, labels):
    return hashlib.sha256(np.ascontiguousarray(images).tobytes() + labels.tobytes()).hexdigest()


def idx(array):
    """A compressed IDX file of unsigned bytes."""
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    return gzip.compress(head + array.astype(np.uint8).tobytes())


def small(monkeypatch, *, digests=None, **changed):
    """A set `mnist` of eight images of three classes; its original files by name, its images and its labels."""
    images, labels = noise(8, 4, 4), np.array([1, 0, 2, 2, 0, 2, 0, 1], dtype=np.uint8)
    arrays = {"a.gz": images[:6], "b.gz": labels[:6], "c.gz": images[6:], "d.gz": labels[6:]}
    files = {name: idx(changed.get(name[0], array)) for name, array in arrays.items()}
    hashes = {f"http://example.org/set/{name}": hashlib.sha256(content).hexdigest() for name, content in files.items()}
    origin = ImageOrigin("mnist", hashes, fetched_images.read_idx_files, (1, 4, 4), COUNTS, digests or {})
    read = partial(fetched_images.read_fetched, origin)
    monkeypatch.setitem(IMAGE_SETS, "mnist", replace(IMAGE_SETS["mnist"], read=read, classes=("a", "b", "c")))
    return files, images, labels


def online(monkeypatch, answer):
    """A net that has these files, or raises the error; the URLs that it was asked for."""
    calls = []

    def download(downloader, url, output_file, *_, **__):
        calls.append(url)
        Path(output_file).write_bytes(b"half of it")
        if isinstance(answer, Exception):
            raise answer
        Path(output_file).write_bytes(answer[url.rpartition("/")[2]])

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)
    monkeypatch.setattr(fetching, "RETRIES", 0)
    return calls


def test_a_set_is_downloaded_once_and_then_read_from_the_cache(here, monkeypatch, capfd):
    files, images, labels = small(monkeypatch)
    calls = online(monkeypatch, files)
    train, test = load_images("mnist"), load_images("mnist:test")
    np.testing.assert_array_equal(np.concatenate([train.images, test.images])[:, 0], images)
    assert train.labels.tolist() == labels[:6].tolist() and test.labels.tolist() == labels[6:].tolist()
    assert train.classes == ("a", "b", "c") and (train.name, test.name) == ("mnist", "mnist:test")
    assert calls == [f"http://example.org/set/{name}" for name in files]
    assert os.listdir(here / "cache" / "ffjord_kit") == ["mnist.npz"]
    output = capfd.readouterr()
    assert output.err.count("\n") == 1 and "fetching mnist from example.org, once, into" in output.err
    assert not output.out


def test_a_download_that_arrives_damaged_is_tried_again(here, monkeypatch):
    files, _, _ = small(monkeypatch)
    calls = []

    def download(downloader, url, output_file, *_):
        calls.append(url)
        Path(output_file).write_bytes(files[url.rpartition("/")[2]] if calls.count(url) > 1 else b"half of it")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    assert len(load_images("mnist").images) == 6 and len(calls) == 2 * len(files)


def test_the_formats_of_cifar_and_svhn_are_read(tmp_path):
    images, labels = noise(12, 3, 32, 32), np.arange(12, dtype=np.uint8) % 10
    records = np.concatenate([labels[:, None], images.reshape(12, -1)], axis=1)
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as tar:
        for i, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
            content = records[2 * i : 2 * i + 2].tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    for split, rows in (("train", slice(0, 2)), ("test", slice(2, 12))):
        ten = np.where(labels == 0, 10, labels)[rows, None]  # the class of the digit 0
        savemat(tmp_path / f"{split}.mat", {"X": images[rows].transpose(2, 3, 1, 0), "y": ten})
    cifar = fetched_images.read_cifar_files([tmp_path / "cifar.tar.gz"])
    svhn = fetched_images.read_svhn_files([tmp_path / "train.mat", tmp_path / "test.mat"])
    for splits, cut in ((cifar, 10), (svhn, 2)):
        both = [np.concatenate([splits["train"][i], splits["test"][i]]) for i in range(2)]
        np.testing.assert_array_equal(both[0].transpose(0, 3, 1, 2), images)
        np.testing.assert_array_equal(both[1], labels)
        assert len(splits["train"].x) == cut and both[0].dtype == both[1].dtype == np.uint8


@pytest.mark.parametrize("origin", ORIGINS, ids=lambda origin: origin.name)
def test_every_original_file_has_a_checksum_and_every_split_its_counts(origin):
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in (*origin.files.values(), *origin.digests.values()))
    assert len({url.rpartition("/")[2] for url in origin.files}) == len(origin.files)
    assert IMAGE_SETS[origin.name].rows == origin.rows and IMAGE_SETS[origin.name].shape == origin.shape


def test_the_data_folder_goes_before_the_cache_and_both_before_the_net(here, monkeypatch):
    small(monkeypatch)
    calls = online(monkeypatch, OSError("never asked"))
    cached = archive(here / "cache" / "ffjord_kit" / "mnist.npz", classes=3)
    np.testing.assert_array_equal(load_images("mnist").images[:, 0], cached["x_train"])
    named = archive(here / "data" / "mnist.npz", train=5, classes=3)
    np.testing.assert_array_equal(load_images("mnist").images[:, 0], named["x_train"])
    assert calls == []


def test_the_cache_is_the_data_folder_of_a_checkout_or_that_of_the_user(here, monkeypatch):
    assert fetching.cache_folder() == here / "cache" / "ffjord_kit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(here / "home"))
    assert fetching.cache_folder() == here / "home" / ".cache" / "ffjord_kit"
    (here / "data" / "README.md").write_text("# Data\n")
    (here / "setup.cfg").write_text("")
    monkeypatch.setattr(fetching, "CHECKOUT", here)
    assert fetching.cache_folder() == here / "data"


ABSENT = [requests.exceptions.ConnectionError("Name or service not known"), TimeoutError("timed out\nagain"),
          requests.exceptions.ReadTimeout()]  # fmt: skip


@pytest.mark.parametrize("error", ABSENT, ids=lambda error: type(error).__name__)
def test_without_a_net_one_line_says_what_to_do_and_nothing_is_left(here, monkeypatch, error):
    small(monkeypatch)
    online(monkeypatch, error)
    expected = "mnist is not on this machine and cannot be fetched .*: go on line, or set FFJORD_KIT_DATA to a folder"
    with pytest.raises(ValueError, match=expected) as raised:
        load_images("mnist")
    assert "\n" not in str(raised.value) and os.listdir(here / "cache" / "ffjord_kit") == []


SPOILT = [
    ({"a": noise(6, 5, 5)}, r"images of mnist have shape \(1, 4, 4\); got \(1, 5, 5\)"),
    (
        {"b": np.array([1, 1, 0, 2, 2, 0])},
        r"not the standard train split: images of each class \(2, 2, 2\); expected \(2, 1, 3\)",
    ),
    ({"d": np.array([0, 3])}, "not the standard test split"),
]


@pytest.mark.parametrize(("changed", "message"), SPOILT)
def test_a_download_that_is_not_what_it_should_be_is_not_kept(here, monkeypatch, changed, message):
    online(monkeypatch, small(monkeypatch, **changed)[0])
    with pytest.raises(ValueError, match=f"mnist of example.org: {message}"):
        load_images("mnist")
    assert os.listdir(here / "cache" / "ffjord_kit") == []


def test_checksums_hold_when_a_set_is_downloaded_and_whenever_it_is_read(here, monkeypatch):
    _, images, labels = small(monkeypatch)
    digests = {"train": digest(images[:6], labels[:6]), "test": digest(images[6:], labels[6:])}
    files, _, _ = small(monkeypatch, digests=digests)
    online(monkeypatch, files)
    assert len(load_images("mnist").images) == 6 and len(load_images("mnist:test").images) == 2
    np.savez(here / "data" / "mnist.npz", x_train=images[:6] ^ 1, y_train=labels[:6], x_test=images[6:],
             y_test=labels[6:].astype(np.int64))  # fmt: skip
    with pytest.raises(ValueError, match=f"mnist.npz: SHA-256 of .* expected {digests['train']}, got .*remove it"):
        load_images("mnist")
    assert len(load_images("mnist:test").images) == 2  # of its own digest, whatever the type of the labels
    (here / "data" / "mnist.npz").unlink()
    (here / "cache" / "ffjord_kit" / "mnist.npz").unlink()
    online(monkeypatch, {**files, "a.gz": files["a.gz"] + b"0"})
    with pytest.raises(ValueError, match="mnist is not on this machine and cannot be fetched .*hash of.*a.gz"):
        load_images("mnist")
    files, _, _ = small(monkeypatch, digests=digests, a=images[:6] ^ 1)
    online(monkeypatch, files)
    with pytest.raises(ValueError, match="mnist of example.org: SHA-256 of x_train and y_train"):
        load_images("mnist")


def test_a_crash_while_the_file_is_written_leaves_none(here, monkeypatch):
    online(monkeypatch, small(monkeypatch)[0])
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        load_images("mnist")
    assert os.listdir(here / "cache" / "ffjord_kit") == []


def test_a_file_of_another_shape_or_without_labels_is_refused(here, monkeypatch):
    small(monkeypatch)
    archive(here / "data" / "mnist.npz", shape=(5, 5))
    with pytest.raises(ValueError, match=r"images of mnist have shape \(1, 4, 4\); got \(1, 5, 5\)"):
        load_images("mnist")
    archive(here / "data" / "mnist.npz", labels=False)
    with pytest.raises(ValueError, match=r"mnist needs labels 0 .. 2"):
        load_images("mnist")
    monkeypatch.setenv("FFJORD_KIT_DATA", str(here / "dta"))
    with pytest.raises(ValueError, match="FFJORD_KIT_DATA must name a folder; got '.*dta'"):
        load_images("mnist")


# ---- folders


def test_a_folder_without_sub_folders_is_read_in_order_without_labels(tmp_path):
    pixels = noise(3, 4, 6, 3)
    for name, picture in zip(("b.png", "C.PNG", "a.bmp"), pixels, strict=True):
        save(tmp_path / name, picture)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._b.png").write_bytes(b"left by an archive of another system")
    found = load_images(str(tmp_path))
    np.testing.assert_array_equal(found.images, pixels[[1, 2, 0]].transpose(0, 3, 1, 2))
    assert found.labels is None and found.classes == () and found.bits == 8
    assert is_image_source(str(tmp_path)) and locate_images(str(tmp_path)) == str(tmp_path)
    assert load_images(str(tmp_path), grey=True).images.shape == (3, 1, 4, 6)


def test_sub_folders_are_classes_and_a_mixture_is_refused(tmp_path):
    for place in ("dog/1.png", "cat/deep/3.png", "cat/2.png"):
        save(tmp_path / place, noise(2, 2, 3))
    (tmp_path / "empty").mkdir()
    found = load_images(str(tmp_path))
    assert found.classes == ("cat", "dog") and found.labels.tolist() == [0, 0, 1] and found.labels.dtype == np.int64
    some = load_images(str(tmp_path), rows=2, seed=1)
    assert some.images.shape == (2, 3, 2, 2) and len(some.labels) == 2 and some.classes == ("cat", "dog")
    with pytest.raises(ValueError, match="has 3 rows; got rows=4"):
        load_images(str(tmp_path), rows=4)
    save(tmp_path / "stray.png", noise(2, 2, 3))
    with pytest.raises(ValueError, match="1 pictures lie in it and 3 in sub-folders; sub-folders are classes"):
        load_images(str(tmp_path))


def test_train_and_test_are_the_splits_of_a_folder(tmp_path):
    for place in ("train/cat/1.png", "train/dog/2.png", "train/dog/3.png", "test/dog/4.png"):
        save(tmp_path / place, noise(2, 2, 3))
    train, test = load_images(str(tmp_path)), load_images(f"{tmp_path}:test")
    assert train.labels.tolist() == [0, 1, 1] == load_images(f"{tmp_path}:train").labels.tolist()
    assert test.labels.tolist() == [1] and test.classes == train.classes == ("cat", "dog")
    assert locate_images(f"{tmp_path}:test") == f"{tmp_path}:test" and is_image_source(f"{tmp_path}:test")
    save(tmp_path / "test" / "cow" / "5.png", noise(2, 2, 3))
    with pytest.raises(ValueError, match="test has classes that .*train lacks: cow"):
        load_images(f"{tmp_path}:test")
    with pytest.raises(ValueError, match="train has no splits, sub-folders train and test; give the folder alone"):
        load_images(f"{tmp_path}/train:test")


def test_a_size_averages_the_square_in_the_middle_or_draws_it_larger(tmp_path):
    wide = np.zeros((4, 8, 3), dtype=np.uint8)
    wide[:, :2], wide[:, 6:], wide[:, 2:4] = 77, 77, 200
    save(tmp_path / "a.png", wide)
    small = load_images(str(tmp_path), size=2).images
    np.testing.assert_array_equal(small, np.broadcast_to([200, 0], (1, 3, 2, 2)))
    np.testing.assert_array_equal(load_images(str(tmp_path), size=1).images.ravel(), [100, 100, 100])
    np.testing.assert_array_equal(load_images(str(tmp_path), size=8).images, small.repeat(4, 2).repeat(4, 3))
    save(tmp_path / "b.png", noise(9, 5, 3))
    assert load_images(str(tmp_path), size=3).images.shape == (2, 3, 3, 3)
    with pytest.raises(ValueError, match=r"b.png has 5 x 9 pixels, but .*a.png has 8 x 4: give a size .*--size"):
        load_images(str(tmp_path))


def test_a_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row of the file is the right column of the picture
    pixels = np.array([[RED, BLACK, WHITE], [WHITE, WHITE, BLACK]], dtype=np.uint8)
    save(tmp_path / "a.png", pixels, exif=exif)
    np.testing.assert_array_equal(load_images(str(tmp_path)).images[0].transpose(1, 2, 0), np.rot90(pixels, -1))


def picture(mode, colour, **options):
    return lambda path: Image.new(mode, (2, 2), colour).save(path, **options)


KINDS = {
    "clear is white": (picture("RGBA", (0, 0, 0, 0)), WHITE),
    "half clear is halfway": (picture("RGBA", (255, 0, 0, 128)), (255, 127, 127)),
    "grey and clear": (picture("LA", (0, 0)), WHITE),
    "grey": (picture("L", 90), (90, 90, 90)),
    "black and white": (picture("1", 1), WHITE),
    "a palette": (picture("P", 0), BLACK),
    "a palette with a clear colour": (picture("P", 0, transparency=0), WHITE),
}


@pytest.mark.parametrize(("make", "colour"), KINDS.values(), ids=KINDS)
def test_every_kind_of_picture_becomes_red_green_and_blue(tmp_path, make, colour):
    make(tmp_path / "a.png")
    assert {tuple(pixel) for pixel in load_images(str(tmp_path)).images[0].reshape(3, -1).T.tolist()} == {colour}


def bomb(path):
    header = io.BytesIO()
    Image.new("1", (8, 8)).save(header, "PNG")
    raw = bytearray(header.getvalue())
    raw[16:24] = (100_000).to_bytes(4, "big") * 2
    raw[29:33] = zlib.crc32(bytes(raw[12:29])).to_bytes(4, "big")
    path.write_bytes(raw)


UNREADABLE = {
    "text": (lambda path: path.write_text("no picture"), "not a picture that can be read"),
    "nothing": (lambda path: path.write_bytes(b""), "not a picture that can be read"),
    "cut short": (lambda path: path.write_bytes(save(path, noise(40, 40, 3)).read_bytes()[:900]), "not a picture"),
    "a bomb": (bomb, "decompression bomb"),
    "sixteen bits": (lambda path: save(path, noise(4, 4).astype(np.uint16) * 257), "more than 8 bits a colour"),
}


@pytest.mark.parametrize(("spoil", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_picture_that_cannot_be_read_is_named(tmp_path, spoil, message):
    save(tmp_path / "a.png", noise(4, 4, 3))
    spoil(tmp_path / "b.png")
    with pytest.raises(ValueError, match=f"b.png: .*{message}") as raised:
        load_images(str(tmp_path), size=4)
    assert "\n" not in str(raised.value)


def test_a_folder_of_the_data_folder_is_found_from_anywhere(here, monkeypatch):
    save(here / "data" / "photos" / "a.png", noise(2, 2, 3))
    monkeypatch.chdir(here)
    assert is_image_source("photos") and load_images("photos").images.shape == (1, 3, 2, 2)
    assert locate_images("photos:train") == f"{here}/data/photos:train" and locate_images("mnist:test") == "mnist:test"


# ---- what is no set of images


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mnits", r"no set of images and no folder 'mnits' \(did you mean 'mnist'\?\); the sets are digits8, mnist"),
        ("mnist:tset", "'mnist:tset': the splits of mnist are train and test; got 'tset'"),
        ("checkerboard", "no set of images and no folder 'checkerboard'; the sets are"),
        ("no/such/folder", "no set of images and no folder"),
        ("", "no set of images and no folder"),
    ],
)
def test_an_unknown_source_is_refused_with_what_there_is(here, monkeypatch, source, message):
    monkeypatch.delenv("FFJORD_KIT_DATA")
    with pytest.raises(ValueError, match=message):
        load_images(source)


def test_a_folder_without_pictures_is_refused_and_is_no_source(tmp_path):
    (tmp_path / "t.csv").write_text("1,2\n")
    assert not is_image_source(str(tmp_path)) and not is_image_source(str(tmp_path / "t.csv"))
    assert not is_image_source("moons") and is_image_source("mnist:tset")
    with pytest.raises(ValueError, match="holds no pictures"):
        load_images(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "rows must be at least 1; got 0"),
        ({"rows": 361}, "digits8:test has 360 rows; got rows=361"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"size": 0}, "size must be at least 1; got 0"),
        ({"size": 9}, "size must be at most 8, the side of digits8:test; got 9"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load_images("digits8:test", **options)


@pytest.mark.parametrize("word", ["mnist", "digits8:test", "svhn:tset"])
def test_tables_say_which_words_are_images(word):
    with pytest.raises(ValueError, match="is a set of images, not a table: load it with load_images"):
        load(word)


def test_a_word_that_is_nearly_a_set_of_images_is_taken_for_it():
    with pytest.raises(ValueError, match=r"'mnsit' \(did you mean 'mnist'\?\); .*; of images digits8, mnist"):
        load("mnsit")
