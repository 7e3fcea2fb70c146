"""Tables of every kind of file: what is found in them is told, and what is wrong with them is one line."""

import bz2
import datetime
import gzip
import importlib
import json
import lzma
import sys
import zipfile

import numpy as np
import pytest

from ffjord_kit.datasets import DataWarning, load
from ffjord_kit.datasets.cells import number
from ffjord_kit.datasets.files import read_frame
from ffjord_kit.datasets.writing import write

X = [[1, 2], [3, 4.5]]
TEXTS = {
    "separator ','": "a,b\n1,2\n3,4.5\n",
    "separator ';'; decimal ','": "a;b\n1;2\n3;4,5\n",
    "separator tab; decimal ','": "a\tb\n1\t2\n3\t4,5\n",
    "separator '|'": "a|b\n1 | 2\n3|4.5\n",
    "separator '|'; decimal ','": "a|b\n1|2\n3|4,5\n",
    "separator white space; decimal ','": "a  b\n1  2\n3  4,5\n",
    "separator white space": "% a b\na b\n1 2\n3 4.5\n",
    "separator ';'": "sep=;\na;b\n1;2\n3;4.5\n",
    "separator ','; no header": "// of 2020\n1,2\n3,4.5\n",
    "separator ','; units kg, m": "# made by hand\na,b\nkg,m\n1,2\n3,4.5\n",
    "separator ';'; decimal ',', units [kg], ": "a;b\n[kg];\n1;2\n3;4,5\n",
}


@pytest.mark.parametrize(("found", "text"), TEXTS.items(), ids=TEXTS)
def test_the_layout_of_text_is_found_and_told(tmp_path, found, text):
    (tmp_path / "t.txt").write_text(text, newline="")
    dataset = load(tmp_path / "t.txt")
    np.testing.assert_array_equal(dataset.x, X)
    assert dataset.columns == (("x0", "x1") if "no header" in found else ("a", "b"))
    assert dataset.found == f"2 rows, 2 columns; {found}"


ENCODED = {
    "utf-8": "", "utf-8-sig": "", "utf-16": "; UTF-16", "utf-16-le": "; UTF-16", "utf-16-be": "; UTF-16",
    "utf-32": "; UTF-32", "latin-1": "; Latin-1",
}  # fmt: skip


@pytest.mark.parametrize(("encoding", "told"), ENCODED.items(), ids=ENCODED)
def test_the_encoding_is_found_and_told(tmp_path, encoding, told):
    (tmp_path / "t.csv").write_bytes("größe,b\n1,2\n3,4.5\n".encode(encoding))
    dataset = load(tmp_path / "t.csv")
    np.testing.assert_array_equal(dataset.x, X)
    assert dataset.columns == ("größe", "b")
    assert dataset.found == f"2 rows, 2 columns; separator ','{told}"


def test_the_marks_of_windows_are_no_control_characters(tmp_path):
    (tmp_path / "t.csv").write_bytes("price in €,b\n1,2\n".encode("cp1252"))
    dataset = load(tmp_path / "t.csv")
    assert dataset.columns == ("price in €", "b") and dataset.found.endswith("Windows-1252")


def test_an_encoding_that_shows_late_in_the_file_is_found(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,b\n" + b"1,2\n" * 300_000 + "3,4\n# größer\n".encode("latin-1"))
    assert load(tmp_path / "t.csv").found == "300,001 rows, 2 columns; separator ','; Latin-1"


def test_a_decimal_comma_that_comes_late_is_found(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\n" + "1;2\n" * 5000 + "1,5;2\n")
    dataset = load(tmp_path / "t.csv")
    assert dataset.x[-1].tolist() == [1.5, 2] and dataset.found.endswith("; separator ';'; decimal ','")


def test_a_table_of_one_column_has_decimal_commas_where_its_header_has_no_comma(tmp_path):
    (tmp_path / "t.csv").write_text("a\n1,5\n2,5\n")
    assert load(tmp_path / "t.csv").x.tolist() == [[1.5], [2.5]]
    (tmp_path / "two.csv").write_text("1,5\n2,5\n")
    assert load(tmp_path / "two.csv").x.tolist() == [[1, 5], [2, 5]]


def test_words_below_a_header_are_units_only_above_columns_of_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("city,mass\nOslo,1\nRome,2\n")
    (tmp_path / "u.csv").write_text("city,mass\n,kg\nOslo,1\nRome,2\n")
    plain, units = read_frame(str(tmp_path / "t.csv")), read_frame(str(tmp_path / "u.csv"))
    assert plain.kinds == units.kinds == ("text", "numbers")
    assert plain.cells[0].tolist() == units.cells[0].tolist() == ["Oslo", "Rome"]
    assert "units" not in plain.found and units.found.endswith("units , kg")


def test_commas_that_may_mark_thousands_are_warned_of(tmp_path, recwarn):
    (tmp_path / "t.csv").write_text("a;b\n1,500;2\n12,250;4\n")
    with pytest.warns(DataWarning, match="the comma of '1,500' is read as a decimal one; if it marks thousands, write"):
        assert load(tmp_path / "t.csv").x.tolist() == [[1.5, 2], [12.25, 4]]
    (tmp_path / "t.csv").write_text("a;b\n1,500;2\n0,250;4\n")
    assert load(tmp_path / "t.csv").x.tolist() == [[1.5, 2], [0.25, 4]] and not recwarn.list


def test_a_title_above_the_header_is_told_by_its_line(tmp_path):
    (tmp_path / "t.csv").write_text("Report of 2020\na,b\n1,2\n3,4\n")
    with pytest.raises(ValueError, match="line 2 has 2 cells; expected 1, as on line 1"):
        load(tmp_path / "t.csv")


def test_a_separator_within_text_does_not_mislead(tmp_path):
    (tmp_path / "t.csv").write_text('name,price\n"a; b, c",1.5\n"Model 3 type 4",2\n')
    frame = read_frame(str(tmp_path / "t.csv"))
    assert frame.columns == ("name", "price") and frame.cells[0].tolist() == ["a; b, c", "Model 3 type 4"]


def test_numbers_have_one_decimal_mark_and_no_other_marks():
    assert (number("1.5"), number("1,5", ","), number("-1e3")) == (1.5, 1.5, -1000)
    assert all(np.isnan([number("1,5"), number("1.5", ","), number("1_0"), number("1.000,5", ","), number("x")]))


def packed(path, content):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("__MACOSX/._t.csv", "junk")
            archive.writestr("inner/t.csv", content)
    else:
        path.write_bytes({".gz": gzip, ".bz2": bz2, ".xz": lzma}[path.suffix].compress(content))
    return path


PACKED = ["t.csv.gz", "t.tsv.bz2", "t.txt.xz", "t.csv.zip", "t.zip", "T.CSV.GZ"]


@pytest.mark.parametrize("name", PACKED)
def test_compressed_text_is_read(tmp_path, name):
    rows = "a;b\n" + "1;2,5\n" * 5000
    path = packed(tmp_path / name.lower(), rows.encode("latin-1")).rename(tmp_path / name)
    dataset = load(path)
    assert dataset.x.shape == (5000, 2) and dataset.x[-1].tolist() == [1, 2.5]
    assert dataset.found.endswith(f"decimal ',', unpacked from {path.suffix.lower()}")


@pytest.mark.parametrize("name", PACKED[:4])
def test_a_compressed_file_cut_short_is_told_in_one_line(tmp_path, name):
    content = packed(tmp_path / name, np.random.default_rng(0).bytes(4000).hex().encode()).read_bytes()
    for part in (content[: len(content) // 2], content[:12], b"a,b\n1,2\n", b""):
        (tmp_path / name).write_bytes(part)
        if part == b"":
            expected = "damaged, or cut short|the file is empty"
        else:
            expected = r"damaged, or cut short: it cannot be unpacked as \."
        with pytest.raises(ValueError, match=expected) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_compressed_file_is_known_by_its_first_bytes(tmp_path):
    packed(tmp_path / "t.csv.gz", b"a,b\n1,2\n3,4.5\n").rename(tmp_path / "t.csv")
    assert load(tmp_path / "t.csv").x.tolist() == X


def test_a_file_that_would_unpack_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    packed(tmp_path / "t.csv.gz", b"a,b\n" + b"1,2\n" * 2_000_000)
    monkeypatch.setattr("ffjord_kit.memory.total_memory", lambda: 2e6)
    with pytest.raises(ValueError, match=r"t\.csv\.gz: it would unpack to at least 1.05 MB, more than 50% of this"):
        load(tmp_path / "t.csv.gz")


def two(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", "a\n1\n")
        archive.writestr("b.csv", "b\n1\n")


def excel(path, *sheets):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for i, rows in enumerate(sheets, start=1):
        sheet = book.create_sheet(f"Sheet{i}")
        for row in rows:
            sheet.append(row)
    book.save(path)


def hdf5(path, **items):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, values in items.items():
            file[name] = values


def fits(path, **tables):
    pytest.importorskip("astropy")
    from astropy.table import Table

    io = importlib.import_module("astropy.io.fits")
    hdus = [io.BinTableHDU(Table(columns), name=name) for name, columns in tables.items()]
    io.HDUList([io.PrimaryHDU(), *hdus]).writeto(path)


def feather(path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    importlib.import_module("pyarrow.feather").write_feather(pyarrow.table(columns), path)


def parquet(path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.table(columns), path)


A, B = np.array([1, 3]), np.array([2, 4.5])
RECORDS = [{"a": 1, "b": 2}, {"a": 3, "b": 4.5}]
MADE = {
    "t.xlsx": lambda path: excel(path, [["a", "b"], [1, 2], [3, 4.5]]),
    "margins.xlsx": lambda path: excel(path, [], [[], [None, "a", "b"], [], [None, 1, 2], [None, "3", 4.5]]),
    "units.xlsx": lambda path: excel(path, [["a", "b"], ["kg", None], [1, 2], [3, 4.5]]),
    "t.feather": lambda path: feather(path, a=A, b=B),
    "t.parquet": lambda path: parquet(path, a=A, b=B),
    "columns.h5": lambda path: hdf5(path, a=A, b=B.astype(">f4")),
    "array.hdf5": lambda path: hdf5(path, **{"group/x": np.c_[A, B], "group/columns": ["a", "b"]}),
    "fields.h5": lambda path: hdf5(path, table=np.rec.fromarrays([A, B], names="a,b")),
    "t.fits": lambda path: fits(path, data={"a": A, "b": B}),
    "t.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, RECORDS)) + "\n\n"),
    "rows.json": lambda path: path.write_text(json.dumps(RECORDS, indent=2)),
    "columns.json": lambda path: path.write_text(json.dumps({"a": [1, 3], "b": [2, "4.5"]})),
    "lines.ndjson.gz": lambda path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, RECORDS)).encode())),
    "fields.npy": lambda path: np.save(path, np.rec.fromarrays([A, B], names="a,b")),
}


@pytest.mark.parametrize(("name", "make"), MADE.items(), ids=MADE)
def test_every_kind_of_file_is_read_with_its_names(tmp_path, name, make):
    make(tmp_path / name)
    dataset = load(tmp_path / name)
    assert dataset.x.dtype == np.float64
    np.testing.assert_array_equal(dataset.x, X)
    assert dataset.columns == ("a", "b")
    assert dataset.found.startswith("2 rows, 2 columns")


def test_numbers_of_half_precision_and_of_two_fields_are_read(tmp_path):
    np.save(tmp_path / "half.npy", np.array(X, dtype=np.float16))
    assert load(tmp_path / "half.npy").x.tolist() == X
    fits(tmp_path / "t.fits", data={"v": np.array(X)})
    assert load(tmp_path / "t.fits").columns == ("v0", "v1")


@pytest.mark.parametrize("name", ["t.xlsx", "t.h5", "t.fits"])
def test_one_table_of_several_is_named_after_a_colon(tmp_path, name):
    path = tmp_path / name
    if name == "t.xlsx":
        excel(path, [["a", "b"], *X], [["c"], [5]])
        keys = ["Sheet1", "Sheet2"]
    elif name == "t.h5":
        hdf5(path, **{"one/a": A, "one/b": B, "two/c": np.array([[5]])})
        keys = ["one", "two/c"]
    else:
        fits(path, ONE={"a": A, "b": B}, TWO={"c": [5]})
        keys = ["ONE", "TWO"]
    assert load(f"{path}:{keys[0]}").x.tolist() == X
    assert load(f"{path}:{keys[1]}").x.tolist() == [[5]]
    with pytest.raises(ValueError, match=f"holds {', '.join(keys)}; name the one to read, as in .*{name}:KEY"):
        load(path)
    with pytest.raises(ValueError, match=f"{name}: no table 'three'; it holds {', '.join(keys)}"):
        load(f"{path}:three")


def test_what_is_missing_in_a_table_of_fits_is_told(tmp_path):
    pytest.importorskip("astropy")
    from astropy.table import MaskedColumn, Table

    Table([MaskedColumn([1, 2], mask=[False, True], name="a"), [1.0, 2.0]], names=["a", "b"]).write(tmp_path / "t.fits")
    with pytest.raises(ValueError, match=r"missing values in 'a' \(1 of 2 rows, first row 1 \(counted"):
        load(tmp_path / "t.fits")


def test_the_tables_that_pandas_writes_to_hdf5_are_read_and_nothing_is_unpickled(tmp_path):
    """The layout of PyTables, written by h5py alone: blocks of one type each, and an attribute that is a pickle."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "t.h5", "w") as file:
        group = file.create_group("df")
        group.attrs["values_kind"] = np.void(b"cos\nsystem\n(S'exit 1'\ntR.")
        group["axis0"], group["axis1"] = [b"a", b"b"], [0, 1]
        group["block0_items"], group["block0_values"] = [b"b"], B[:, None]
        group["block1_items"], group["block1_values"] = [b"a"], A[:, None]
        table = file.create_group("long")
        table.attrs["pandas_type"] = "frame_table"
        table["table"] = np.rec.fromarrays([[0, 1], A, B], names="index,a,b")
    for key in ("df", "long"):
        dataset = load(f"{tmp_path}/t.h5:{key}")
        assert dataset.columns == ("a", "b") and dataset.x.tolist() == X


def text_in(words):
    return rf"text in 'b' \(1 of 2 rows, first 'red' {words}"


def dates_in(words):
    return rf"dates in 'b' \(2 of 2 rows, first '2020-01-31.*' {words}.*; drop those columns, or write them as numbers"


RED, DAYS = ["red", 2], [datetime.date(2020, 1, 31), datetime.date(2020, 2, 1)]
BAD = {
    "text in Excel": ("t.xlsx", lambda p: excel(p, [["a", "b"], [1, 2], [3, "red"]]), text_in(r"in cell B3\)")),
    "a gap in Excel": ("t.xlsx", lambda p: excel(p, [["a", "b"], [1], [3, 4]]), r"missing values in 'b' .*cell B2\)"),
    "dates in Excel": ("t.xlsx", lambda p: excel(p, [[*"ab"], *zip("12", DAYS, strict=True)]), dates_in("in cell B2")),
    "an empty sheet": ("t.xlsx", lambda p: excel(p, []), "the sheet is empty; expected a row for each observation"),
    "a header in Excel": ("t.xlsx", lambda p: excel(p, [["a", "b"]]), r"no rows, only a header \(a, b\)"),
    "text for Excel": ("t.xlsx", b"a,b\n1,2\n", "damaged, or not an Excel file"),
    "Excel for text": ("t.csv", lambda p: excel(p.with_suffix(".xlsx"), [[1]]) or p.with_suffix(".xlsx").rename(p),
                       "t.csv: an Excel file by its content, not text: rename it to end in .xlsx"),
    "text in Parquet": ("t.parquet", lambda p: parquet(p, a=[1, 2], b=["2", "red"]), text_in(r"in row 1 \(counted")),
    "dates in Parquet": ("t.parquet", lambda p: parquet(p, b=DAYS), dates_in("in row 0")),
    "times in Feather": ("t.feather", lambda p: feather(p, b=np.array(DAYS, "datetime64[ns]")), dates_in("in row 0")),
    "text for Feather": ("t.feather", b"a,b\n", "damaged, or not a Feather file"),
    "Parquet for Feather": ("t.feather", lambda p: parquet(p, a=A), "a Parquet file by its content, not a Feather"),
    "text in HDF5": ("t.h5", lambda p: hdf5(p, a=A, b=["2", "red"]), text_in("in row 1")),
    "an empty HDF5": ("t.h5", lambda p: hdf5(p), "t.h5: holds no table; name the one"),
    "text for HDF5": ("t.h5", b"a,b\n1,2\n", "damaged, or not an HDF5 file"),
    "a group in HDF5 that is no table": ("t.h5", lambda p: hdf5(p, a=A, b=[1, 2, 3]), "holds no table"),
    "text in FITS": ("t.fits", lambda p: fits(p, data={"a": A, "b": ["2", "red"]}), text_in("in row 1")),
    "no table in FITS": ("t.fits", lambda p: fits(p), "holds no table"),
    "text for FITS": ("t.fits", b"a,b\n1,2\n", "damaged, or not a FITS file"),
    "text in JSON": ("t.jsonl", b'{"a": 1, "b": 2}\n\n{"a": 3, "b": "red"}\n', text_in(r"on line 3\)")),
    "a gap in JSON": ("t.jsonl", b'{"a":1,"b":2}\n{"a":3}\n', r"missing values in 'b' .1 of 2 rows, first on line 2"),
    "values within values": ("t.jsonl", b'{"b":{"c":1}}\n{"b":2}\n', r"text in 'b' \(1 of 2 rows, first .* on line 1"),
    "a line that is not JSON": ("t.jsonl", b'{"a": 1}\n{"a": 1\n', r"line 2 is not JSON \(.*\): mend or drop it"),
    "a number in JSON": ("t.json", b"3", "expected an object of columns and values"),
    "rows of two kinds": ("t.jsonl", b'{"a": 1}\n[2]\n', r"as in the first row; got '\[2\]' on line 2"),
    "columns of two lengths": ("t.json", b'{"a": [1], "b": [1, 2]}', r"different lengths \(a 1, b 2\): give each"),
    "no JSON": ("t.json", b"", "the file is empty"),
    "a sparse matrix": ("t.npz", lambda p: np.savez(p, indices=[0], format=b"csr", shape=(1, 2), data=[1.0]),
                        r"a sparse matrix; a density needs every cell: save x.toarray\(\)"),
    "complex fields": ("t.npy", lambda p: np.save(p, np.rec.fromarrays([A, A * 1j], names="a,b")),
                       "column 'b' holds complex128; expected real numbers"),
    "a pickle": ("t.pkl", b"cos\n", "unknown extension '.pkl'; pickled Python objects are never loaded"),
    "an archive of two": ("t.zip", two, r"expected one file in the archive; got 2 \(a.csv, b.csv\): unpack"),
    "a compressed array": ("t.npy.gz", b"\x1f\x8b", "a NumPy file is not read in compressed form: unpack it first"),
    "bytes": ("t.csv", bytes(range(256)), "not text in UTF-8 .byte 128., nor in another encoding"),
    "zeros": ("t.csv", bytes(100), "not text, but bytes of another kind"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_of_any_kind_is_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize("name", [name for name in MADE if not name.endswith((".jsonl", ".json", ".gz", ".npy"))])
def test_a_file_cut_anywhere_is_refused_in_one_line(tmp_path, name):
    MADE[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for part in np.linspace(20, len(whole) - 20, 12).astype(int):
        (tmp_path / name).write_bytes(whole[:part])
        try:
            load(tmp_path / name)
        except ValueError as error:
            assert "\n" not in str(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MADE)
def test_a_file_with_some_bytes_changed_is_read_or_refused_in_one_line(tmp_path, name):
    MADE[name](tmp_path / name)
    whole, rng = (tmp_path / name).read_bytes(), np.random.default_rng(0)
    for _ in range(15):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            changed[place] = rng.integers(256)
        (tmp_path / name).write_bytes(changed)
        try:
            load(tmp_path / name)
        except ValueError as error:
            assert "\n" not in str(error)


LIBRARIES = {"t.xlsx": "openpyxl", "t.feather": "pyarrow", "t.h5": "h5py", "t.fits": "astropy"}


@pytest.mark.parametrize(("name", "library"), LIBRARIES.items())
def test_a_library_that_is_missing_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, name, library):
    (tmp_path / name).write_bytes(b"")
    for module in [library, *(module for module in sys.modules if module.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    expected = rf"a \.{name[2:]} file needs {library}: pip install {library}, or ffjord-kit\[tables\]"
    with pytest.raises(ImportError, match=expected):
        load(tmp_path / name)


def test_text_and_arrays_are_read_and_written_without_pandas(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for name in ("t.csv", "t.tsv", "t.npy", "t.npz", "t.json"):
        if name == "t.json":
            MADE["rows.json"](tmp_path / name)
        else:
            write(tmp_path / name, np.array(X), ["a", "b"])
        assert load(tmp_path / name).x.tolist() == X


@pytest.mark.parametrize(("extension", "library"), [(".feather", "pyarrow"), (".xlsx", "openpyxl")])
def test_what_is_written_to_tables_of_other_programs_is_read_back(tmp_path, extension, library):
    pytest.importorskip(library)
    x = np.random.default_rng(0).standard_normal((20, 3)) * [1e-300, 1.0, 1e300]
    write(tmp_path / f"t{extension}", x, ["a, quoted", 'b "c"', "d"])
    dataset = load(tmp_path / f"t{extension}")
    np.testing.assert_allclose(dataset.x, x, rtol=0 if extension == ".feather" else 1e-15)
    assert dataset.columns == ("a, quoted", 'b "c"', "d")


def test_an_excel_sheet_keeps_infinite_numbers_and_refuses_too_many_rows(tmp_path):
    pytest.importorskip("openpyxl")
    write(tmp_path / "t.xlsx", np.array([[1.0, -np.inf], [2.0, 3.0]]), ["a", "b"])
    assert read_frame(str(tmp_path / "t.xlsx")).numbers.tolist() == [[1, -np.inf], [2, 3]]
    with pytest.raises(ValueError, match=r"an Excel sheet has 1,048,575 rows below its header; got 1,048,576: write"):
        write(tmp_path / "u.xlsx", np.zeros((1 << 20, 1)), ["a"])


def test_the_kinds_of_columns_are_kept_with_their_cells(tmp_path):
    (tmp_path / "t.csv").write_text("city;age;born\nOslo;1,5;2020-01-31\n;NA;\n007;2;2021-01-01\n")
    frame = read_frame(str(tmp_path / "t.csv"))
    assert frame.kinds == ("text", "numbers", "text")
    assert frame.cells[0].tolist() == ["Oslo", "", "007"]
    np.testing.assert_array_equal(frame.numbers[:, 1], [1.5, np.nan, 2])
    parquet(tmp_path / "t.parquet", a=["x", None], b=DAYS, c=[True, False], d=[1, None])
    frame = read_frame(str(tmp_path / "t.parquet"))
    assert frame.kinds == ("text", "dates", "truth values", "numbers")
