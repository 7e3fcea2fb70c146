"""The readers and writers of a user's files, and one line about everything that can be wrong with them."""

import os
import pickle
import sys
import time
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ffjord_kit.datasets import (
    Dataset,
    DataWarning,
    check_disk,
    check_writable,
    load,
    split_columns,
    write,
    write_chunks,
)
from ffjord_kit.datasets.validation import check_distinct_names

TEXTS = {
    "commas and a header": "a,b\n1,2\n3,4.5\n",
    "no header": "1,2\n3,4.5\n",
    "semicolons": "a;b\n1;2\n3;4.5\n",
    "tabs": "a\tb\n1\t2\n3\t4.5\n",
    "runs of white space": "  a   b\n 1 2 \n 3    4.5\n",
    "quotes and white space": 'a b\n"1" 2\n3 "4.5"\n',
    "quotes": '"a","b"\n"1",2\n3,"4.5"\n',
    "Windows line ends and a byte order mark": "\ufeffa,b\r\n1,2\r\n3,4.5\r\n",
    "blank lines and comments": "# made by hand\n\na,b\n\n1,2\n# more\n3,4.5\n\n",
    "the header that numpy.savetxt writes": "# a b\n1.0e+00 2.0e+00\n3.0e+00 4.5e+00\n",
    "no line end": "a,b\n1,2\n3,4.5",
    "a comment with an odd quote": 'a,b\n# 5" long\n1,2\n# 6" long\n3,4.5\n',
    "a line of white space": "a,b\n1,2\n  \n3,4.5\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_is_read_however_it_is_delimited(tmp_path, text):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
    dataset = load(str(tmp_path / "t.csv"))
    np.testing.assert_array_equal(dataset.x, [[1, 2], [3, 4.5]])
    assert dataset.columns == (("a", "b") if "a" in text.split("hand")[-1] else ("x0", "x1"))


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".npy", ".npz", ".parquet"])
def test_what_is_written_is_read_back_exactly(tmp_path, extension):
    x = np.random.default_rng(0).standard_normal((20, 3)) * [1e-300, 1.0, 1e300]
    names = ("a, quoted", 'b "c"', "d")
    write(tmp_path / f"t{extension}", x, names)
    dataset = load(str(tmp_path / f"t{extension}"))
    np.testing.assert_array_equal(dataset.x, x)
    assert dataset.columns == (("x0", "x1", "x2") if extension == ".npy" else names)
    assert os.listdir(tmp_path) == [f"t{extension}"]


def test_numbers_are_read_as_python_reads_them(tmp_path):
    cells = ["5e-324", "2.2250738585072011e-308", "0.1000000000000000055511151231257827", "+.5", "9007199254740993"]
    (tmp_path / "t.csv").write_text("\n".join(["a,b", *(f"{cell},1E5" for cell in cells)]))
    assert load(str(tmp_path / "t.csv")).x[:, 0].tolist() == [float(cell) for cell in cells]


def test_a_bad_cell_far_down_a_large_file_is_named_by_its_line(tmp_path):
    lines = ["a,b"] + ["# again" if i % 1000 == 7 else f"{i},{i}.5" for i in range(30_000)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    x = load(str(tmp_path / "t.csv")).x
    assert x.shape == (29_970, 2) and x.flags.c_contiguous and x[-1].tolist() == [29_999, 29_999.5]
    lines[25_001] = "25000,?"
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"missing values in 'b' \(1 of 29970 rows, first '\?' on line 25002\)"):
        load(str(tmp_path / "t.csv"))


def test_many_columns_are_checked_quickly(tmp_path):
    names = [f"c{i}" for i in range(5000)]
    with pytest.raises(ValueError, match="two columns are called 'c0'"):
        write(tmp_path / "t.csv", np.zeros((1, 10_000)), names * 2)
    started = time.perf_counter()
    with pytest.raises(ValueError, match="two columns are called 'c0'"):
        check_distinct_names("t.csv", names * 2)
    dataset = Dataset("wide", np.zeros((1, 5000)), tuple(names))
    assert split_columns(dataset, names[1:]).columns == ("c0",)
    assert time.perf_counter() - started < 0.5


def test_whole_numbers_and_truth_values_are_written_as_numbers(tmp_path):
    write(tmp_path / "a.csv", np.array([[1, 2**53 + 1]]), ("a", "b"))
    write(tmp_path / "b.csv", np.array([[True], [False]]), ("a",))
    write(tmp_path / "c.csv", np.array([[np.nan, np.inf]]), ("a", "b"))
    texts = [(tmp_path / f"{name}.csv").read_text() for name in "abc"]
    assert texts == ["a,b\n1,9007199254740993\n", "a\n1.0\n0.0\n", "a,b\nnan,inf\n"]


def test_names_that_are_numbers_do_not_become_a_row(tmp_path):
    write(tmp_path / "t.csv", np.eye(2), ("0", "1"))
    np.testing.assert_array_equal(load(str(tmp_path / "t.csv")).x, np.eye(2))


def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write(tmp_path / "t.csv", np.eye(2), ("a", "b"))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "t.csv", np.zeros((2, 2)), ("a", "b"))
    np.testing.assert_array_equal(load(str(tmp_path / "t.csv")).x, np.eye(2))
    assert os.listdir(tmp_path) == ["t.csv"]


def test_pictures_in_an_array_are_flattened_and_one_of_several_arrays_can_be_named(tmp_path):
    pictures = np.random.default_rng(0).random((4, 2, 3))
    np.savez(tmp_path / "t.npz", train=pictures, x=np.eye(3), labels=np.arange(4))
    dataset = load(f"{tmp_path}/t.npz:train")
    assert dataset.image_shape == (2, 3) and dataset.columns[5] == "pixel_1_2"
    np.testing.assert_array_equal(dataset.x, pictures.reshape(4, 6))
    np.testing.assert_array_equal(load(f"{tmp_path}/t.npz").x, np.eye(3))
    assert load(f"{tmp_path}/t.npz", rows=2).x.shape == (2, 3)


def test_odd_headers_are_warned_of(tmp_path):
    (tmp_path / "index.csv").write_text(",a\n0,1.5\n1,2.5\n")
    with pytest.warns(DataWarning, match="line 1 is read as the header.* index"):
        load(str(tmp_path / "index.csv"))


def pickled(path):
    path.write_bytes(pickle.dumps({"a": 1}))


def saved(array):
    return lambda path: np.save(path, array, allow_pickle=True)


def zipped(cut=None, **arrays):
    def make(path):
        np.savez(path, **arrays)
        path.write_bytes(path.read_bytes()[:cut])

    return make


def parquet(**columns):
    def make(path):
        pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), path)

    return make


BAD_FILES = [
    ("t.csv", "", "the file is empty"),
    ("t.csv", "# only\n# comments\n", "the file is empty"),
    ("t.csv", "a,b\n", r"no rows, only a header \(a, b\)"),
    ("t.csv", "a,b\n1,2\n,4\n5,NA\n?,8\n", r"missing values in 'a' \(2 of 4 rows, first on line 3\), 'b' \(1 of 4"),
    ("t.csv", "a,b\n1,2\n\n3,nan\n", r"missing values in 'b' \(1 of 2 rows, first 'nan' on line 4\); fill"),
    ("t.csv", "a,b\n1,x\n2,y\n", r"text in 'b' \(2 of 2 rows, first 'x' on line 2\); drop"),
    ("t.csv", "1,2\n3,oops\n", r"text in 'x1' \(1 of 2 rows, first 'oops' on line 2\)"),
    ("t.csv", "a;b\n1,5;2\n2.5;3\n", r"text in 'a' \(1 of 2 rows, first '1,5' on line 2\).* one decimal mark"),
    ("t.csv", "a;b\n1.000,5;2\n", r"text in 'a' \(1 of 1 rows, first '1.000,5' on line 2\).* no mark of thousands"),
    ("t.csv", "a,b\n1,2\n3,1_000\n", "text in 'b'"),
    ("t.csv", "a,b\n1,True\n3,False\n", r"text in 'b' \(2 of 2 rows, first 'True' on line 2\)"),
    ("t.csv", 'a;b\n";4\n5;6\n7";8\n', r"text in 'a' .1 of 1 rows, first ';4"),
    ("t.txt", 'a b\n1 "TRUE"\n3 "FALSE"\n', "text in 'b' .2 of 2 rows"),
    ("t.csv", "a,b\n1,2\n3,4 # note\n", r"text in 'b' \(1 of 2 rows, first '4 # note' on line 3\)"),
    ("t.csv", "a,b\n1,2\n3,1\x00x\n", "text in 'b'|not a table of text"),
    ("t.csv", 'a,b\n1,2\n3,"4\n5,6\n', r"text in 'b' \(1 of 2 rows"),
    ("t.csv", "a,b\n1,2\n3,4,\n", "line 3 has 3 cells; expected 2, as on line 1"),
    ("t.txt", "a b\n1 2\n3 4 5\n", "line 3 has 3 cells; expected 2, as on line 1"),
    ("t.csv", "a,b\n1,2\n3\n", "line 3 has 1 cells; expected 2, as on line 1"),
    ("t.tsv", "1\t2\n3\t4\t5\n", "line 2 has 3 cells; expected 2, as on line 1"),
    ("t.csv", "a,b\n1,2\n#N/A,4\n", "missing values in 'a'"),
    ("t.csv", "a,b\n1,inf\n3,-1e999\n", r"infinite values in 'b' \(2 of 2 rows, first 'inf' on line 2\)"),
    ("t.csv", "a,a\n1,2\n", "two columns are called 'a'"),
    ("t.csv", b"a,b\n\xff\xfe\x00,2\n", "not text in UTF-8 .byte 4., nor in another encoding"),
    ("t.csv", "a,b\n1,2\n".encode("utf-16")[:-1], "not text in UTF-16 .byte "),
    ("t.csv", b"a,b\n\xff\xfe,2\n", "text in 'a' .1 of 1 rows, first 'ÿþ' on line 2"),
    ("t.npy", saved(np.arange(3.0)), r"shape \(3,\); expected .rows, columns.*x\[:, None\]"),
    ("t.npy", saved(np.zeros((2, 2, 2, 2))), r"shape \(2, 2, 2, 2\); expected"),
    ("t.npy", saved(np.zeros((0, 2))), "holds no numbers"),
    ("t.npy", saved(np.array([[1, None]], dtype=object)), "pickled Python objects, which are never loaded"),
    ("t.npy", saved(np.array([[1j]])), "complex numbers .complex128.; expected real numbers"),
    ("t.npy", saved(np.array([["a"]])), "text .<U1.; expected real numbers"),
    ("t.npy", saved(np.array([[1, 2], [np.nan, 3]])), r"missing values in 'x0' \(1 of 2 rows, first row 1 .counted"),
    ("t.npy", saved(np.array([[1, 2], [1, np.inf]])), "infinite values in 'x1'"),
    ("t.npy", pickled, "damaged, or not a NumPy file"),
    ("t.npz", pickled, "damaged, or not an NPZ file"),
    ("t.npz", zipped(cut=200, x=np.eye(9)), "damaged, or not an NPZ file"),
    ("t.npz", zipped(a=np.eye(2), b=np.eye(2)), "holds a, b; name the one to read"),
    ("t.npz:trian", zipped(train=np.eye(2)), r"no table 'trian' \(did you mean 'train'\?\); it holds train"),
    ("t.npz:x", zipped(x=np.array([None])), "t.npz:x: pickled Python objects"),
    ("t.csv:x", "a,b\n1,2\n", "only a file of several tables, .npz, .*, takes a name after the colon; got 'x'"),
    ("t.xls", "a", "unknown extension '.xls'; Excel's old form is not read: save it as .xlsx"),
    ("t.parquet", "nothing", "damaged, or not a Parquet file"),
    ("t.parquet", parquet(a=["x", "y"]), r"text in 'a' \(2 of 2 rows, first 'x' in row 0 \(counted from 0\)\)"),
    ("t.parquet", parquet(a=[True, None]), r"missing values in 'a' \(1 of 2 rows, first row 1"),
    ("t.parquet", parquet(a=[1, 2], b=[0.5, None]), r"missing values in 'b' \(1 of 2 rows, first row 1"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_that_says_why(tmp_path, name, content, message):
    path = tmp_path / name.partition(":")[0]
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        load(str(tmp_path / name))
    assert "\n" not in str(caught.value)


BAD_CALLS = {
    "an unknown word": (lambda folder: load("mooons"), r"no file 'mooons' \(did you mean 'moons'\?\); .*digits"),
    "an unknown split": (lambda folder: load("moons:valid"), "splits of moons are train and test; got 'valid'"),
    "a missing file": (lambda folder: load(f"{folder}/a.cvs"), r"no such file \(did you mean 'a.csv'\?\)"),
    "a folder": (lambda folder: load(str(folder)), r"a folder; give a file in it \(a.csv, sub.npz\)"),
    "a missing picture": (lambda folder: load("image:none.png"), "none.png: no such file"),
    "no picture": (lambda folder: load(f"image:{folder}/a.csv"), "not a picture that can be read"),
    "a black picture": (lambda folder: load(f"image:{folder}/sub/black.png"), "not 0 everywhere"),
    "no rows": (lambda folder: load("moons", rows=0), "rows must be at least 1; got 0"),
    "too many rows": (lambda folder: load("iris:test", rows=31), "iris:test has 30 rows; got rows=31"),
    "a bad seed": (lambda folder: load("moons", seed=-1), "seed must be at least 0; got -1"),
    "an unknown column": (lambda folder: split_columns(load("diabetes"), ["sx"]), r"'sx' \(did you mean 'sex'"),
    "an index too high": (lambda folder: split_columns(load("iris"), ["4"]), "no column '4'"),
    "a column twice": (lambda folder: split_columns(load("diabetes"), ["sex", "1"]), "'sex' is named twice"),
    "nothing left": (lambda folder: split_columns(load("moons"), ["x0", "x1"]), "leave at least one"),
    "an unknown format": (lambda folder: check_writable(folder / "a.xls"), "extension '.xls'; known: .csv, .tsv"),
    "no such folder": (lambda folder: check_writable(folder / "no" / "a.csv"), "make it first"),
    "a folder's name": (lambda folder: check_writable(folder / "sub.npz"), "a folder; give the name of a file"),
    "a wrong shape": (lambda folder: write(folder / "b.csv", np.eye(3), ("a", "b")), r"shape \(rows, 2\).*\(3, 3\)"),
    "text to write": (lambda folder: write(folder / "b.csv", np.array([["u"]]), ("a",)), "real numbers; got <U1"),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_bad_call_is_refused_in_one_line_that_says_why(tmp_path, call, message):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub.npz").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "sub" / "black.png")
    with pytest.raises(ValueError, match=message) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("use", [lambda path: load(path), check_writable], ids=["reading", "writing"])
def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch, use):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"needs pyarrow: pip install pyarrow, or ffjord-kit\[tables\]"):
        use(str(tmp_path / "t.parquet"))


def test_parquet_keeps_whole_and_decimal_numbers_and_takes_no_column_from_its_folder(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"a": [1, 2], "b": [Decimal("1.5"), Decimal("2.5")], "c": [True, False]}, index=[7, 9])
    (tmp_path / "year=1999").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pandas(frame), tmp_path / "year=1999" / "t.parquet")
    dataset = load(str(tmp_path / "year=1999" / "t.parquet"))
    assert dataset.columns == ("a", "b", "c") and dataset.x.dtype == np.float64
    np.testing.assert_array_equal(dataset.x, [[1, 1.5, 1], [2, 2.5, 0]])


@pytest.mark.parametrize("suffix", ["csv", "tsv", "npy", "npz", "parquet"])
def test_a_table_written_chunk_by_chunk_is_the_same_file(tmp_path, suffix):
    x = np.random.default_rng(0).normal(size=(10, 3))
    write(tmp_path / f"whole.{suffix}", x, ["a", "b", "c"])
    write_chunks(tmp_path / f"parts.{suffix}", (x[i : i + 4] for i in (0, 4, 8)), ["a", "b", "c"], rows=10)
    parts = load(tmp_path / f"parts.{suffix}")
    assert np.array_equal(parts.x, x)
    assert parts.columns == load(tmp_path / f"whole.{suffix}").columns
    if suffix in ("csv", "tsv", "npy"):
        assert (tmp_path / f"parts.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()


def test_whole_numbers_are_written_without_a_point_where_they_are_said_to_be(tmp_path):
    x = np.array([[1.0, 2.0], [3.0, 4.5], [1e300, 5.0]])
    write_chunks(tmp_path / "x.csv", [x[:2], x[2:]], ["a", "b"], rows=3, whole=["a"])
    assert (tmp_path / "x.csv").read_text() == "a,b\n1,2.0\n3,4.5\n1e+300,5.0\n"


def test_rows_that_stop_coming_leave_no_file(tmp_path):
    def chunks():
        yield np.zeros((4, 1))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_chunks(tmp_path / "x.csv", chunks(), ["a"], rows=8)
    assert list(tmp_path.iterdir()) == []


def test_a_table_larger_than_the_disk_is_refused_with_its_size(tmp_path):
    check_disk(tmp_path / "x.csv", 1000, [18, 18])
    with pytest.raises(ValueError, match=r"x\.csv: 1000000000000000 rows take about 36 PB, and its disk has .* left"):
        check_disk(tmp_path / "x.csv", 10**15, [18, 18])
    with pytest.raises(ValueError, match=r"x\.npy: 1000000000000000 rows take about 16 PB"):
        check_disk(tmp_path / "x.npy", 10**15, [18, 18])


def test_a_file_that_is_not_here_is_looked_for_in_the_folder_of_larger_sets(tmp_path, monkeypatch):
    np.savez(tmp_path / "large.npz", some=np.eye(3), other=np.ones((2, 2)))
    monkeypatch.setenv("FFJORD_KIT_DATA", str(tmp_path))
    assert np.array_equal(load("large.npz:some").x, np.eye(3))
