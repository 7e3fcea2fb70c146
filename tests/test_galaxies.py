"""A table that is downloaded: read as bytes, never unpickled; found, checked and kept as sets of images are."""

import hashlib
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests
from commands import call

from ffjord_kit.datasets import describe, fetched_tables, fetching, load
from ffjord_kit.datasets.fetched_tables import Block
from ffjord_kit.datasets.fetching import Origin

X = np.random.default_rng(0).normal(size=(10, 3))


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return os.abort, ()


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A machine without data, and a net that has ten galaxies behind a trap; the URLs that it was asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FFJORD_KIT_DATA", str(tmp_path))
    monkeypatch.setattr(fetching, "CHECKOUT", tmp_path / "no checkout")
    monkeypatch.setattr(fetching, "RETRIES", 0)
    head, buffer = pickle.dumps(Trap()), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/b.pkl", head + X.T.tobytes() + b"and after")
    content, asked = buffer.getvalue(), []
    digest = hashlib.sha256(X.tobytes()).hexdigest()
    monkeypatch.setattr(fetched_tables, "GALAXIES", Block("a/b.pkl", len(head), 10, ("redshift", "u", "g"), digest))
    files = {"http://example.org/set/c.whl": hashlib.sha256(content).hexdigest()}
    monkeypatch.setattr(fetched_tables, "_PZFLOW", Origin("galaxies", files))

    def download(downloader, url, output_file, *_, **__):
        asked.append(url)
        Path(output_file).write_bytes(content)

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)
    return asked


def test_the_numbers_are_read_without_the_pickle_around_them_and_kept(calls, tmp_path, capfd):
    table = load("galaxies")
    np.testing.assert_array_equal(table.x, X)
    assert table.columns == ("redshift", "u", "g") and table.x.dtype == np.float64
    train, test = load("galaxies:train"), load("galaxies:test")
    assert (len(train.x), len(test.x)) == (8, 2) and len(calls) == 1
    assert os.listdir(tmp_path / "cache" / "ffjord_kit") == ["galaxies.npz"]
    assert capfd.readouterr().err.startswith("fetching galaxies from example.org, once, into ")


def test_a_file_of_the_data_folder_goes_before_the_net_if_it_is_the_table(calls, tmp_path):
    np.savez(tmp_path / "galaxies.npz", x=X)
    np.testing.assert_array_equal(load("galaxies").x, X)
    for damaged in ({"x": X[:5]}, {"y": X}):
        np.savez(tmp_path / "galaxies.npz", **damaged)
        with pytest.raises(ValueError, match=r"galaxies.npz.*(another file of that name|an NPZ file with the array x)"):
            load("galaxies")
    (tmp_path / "galaxies.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="an NPZ file with the array x"):
        load("galaxies")
    assert calls == []


def test_without_a_net_one_line_says_what_to_do_and_nothing_is_left(calls, tmp_path, monkeypatch, capsys):
    def download(*_, **__):
        raise requests.exceptions.ConnectionError("Name or service not known")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)
    code, _, err = call(capsys, "fit", "galaxies", "--out", tmp_path / "run")
    said = "galaxies is not on this machine and cannot be fetched (Name or service not known): go on line"
    assert code == 1 and said in err and "Traceback" not in err
    assert os.listdir(tmp_path / "cache" / "ffjord_kit") == [] and not (tmp_path / "run").exists()


def test_another_archive_than_the_expected_one_is_not_kept(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(fetched_tables, "GALAXIES", fetched_tables.GALAXIES._replace(digest="0" * 64))
    with pytest.raises(ValueError, match="b.pkl of c.whl: SHA-256 of x: expected 000"):
        load("galaxies")
    assert os.listdir(tmp_path / "cache" / "ffjord_kit") == []


def test_a_list_of_data_reads_nothing(calls):
    found = {description.name: description for description in describe()}["galaxies"]
    assert (found.rows, found.dimensions) == (100_000, 7) and calls == []
