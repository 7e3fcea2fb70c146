"""Rows of a mapped file are trained on where they lie, and the fit is that of the same rows in memory."""

import subprocess
import sys
from textwrap import dedent

import numpy as np
import pytest
import torch

from ffjord_kit import FFJORD, datasets
from ffjord_kit.data import StreamedRows
from ffjord_kit.datasets import arrays

QUICK = {"schedule": [("flow_matching", 40)], "hidden": (16,), "batch_size": 64, "random_state": 0}


@pytest.fixture
def mapped(tmp_path):
    """A mapped table, float32."""
    path, rng = tmp_path / "x.npy", np.random.default_rng(0)
    np.save(path, rng.normal(size=(5000, 3)).astype(np.float32) * [1, 10, 0.1] + [0, 5, 0])
    table = np.load(path).astype(np.float32)
    np.save(path, table)
    return np.load(path, mmap_mode="r")


def test_streamed_rows_are_all_but_those_left_out():
    table, left_out = torch.arange(20.0)[:, None], torch.tensor([0, 1, 7, 19])
    rows = StreamedRows(table, left_out)
    expected = [i for i in range(20) if i not in left_out.tolist()]
    assert rows.shape == (16, 1)
    assert rows.fetch(slice(None)).flatten().tolist() == expected
    some = torch.tensor([15, 0, 5], dtype=torch.int32)
    assert rows.fetch(some).flatten().tolist() == [expected[i] for i in some]
    assert rows.fetch(slice(2)).dtype is torch.float64


@pytest.mark.slow
def test_a_mapped_table_is_learned_as_one_in_memory(mapped, tmp_path):
    test = np.random.default_rng(1).normal(size=(200, 3)) * [1, 10, 0.1] + [0, 5, 0]
    streamed, held = (
        FFJORD(**{**QUICK, "schedule": [("flow_matching", 300)]}).fit(x) for x in (mapped, np.array(mapped))
    )
    assert streamed.score(test) == pytest.approx(held.score(test), abs=0.1)
    streamed.save(tmp_path / "run")
    assert FFJORD.load(tmp_path / "run").score(test) == streamed.score(test)


def test_a_mapped_run_resumes_where_it_was(mapped, tmp_path):
    whole = FFJORD(**QUICK).fit(mapped)
    stop = iter(range(10**6))

    def interrupt(record):
        if next(stop) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FFJORD(validate_every=10, **QUICK).fit(mapped, run=tmp_path / "run", on_step=interrupt)
    again = FFJORD(validate_every=10, **QUICK).fit(mapped, run=tmp_path / "run", resume=True)
    assert again.history_.step == whole.history_.step


@pytest.mark.slow
def test_auto_context_and_bounds_work_on_a_mapped_table(mapped):
    context = np.arange(len(mapped))[:, None] % 3.0
    model = FFJORD(max_seconds=2.0, support=("bounded", -1000, 1000), hidden=(16,), random_state=0)
    assert np.isfinite(model.fit(mapped, context=context).score_samples(mapped[:50], context=context[:50])).all()
    with pytest.raises(ValueError, match=r"column 'x1' has \d+ of 5000 rows outside its support, -1 to 1"):
        FFJORD(support=[("bounded", -20, 20), ("bounded", -1, 1), "real"], **QUICK).fit(mapped)


def test_rows_that_are_not_finite_are_refused(mapped, tmp_path):
    table = np.array(mapped)
    table[4000, 1] = np.nan
    np.save(tmp_path / "bad.npy", table)
    with pytest.raises(ValueError, match="NaN"):
        FFJORD(**QUICK).fit(np.load(tmp_path / "bad.npy", mmap_mode="r"))


def test_a_large_file_is_mapped_and_a_small_one_read(mapped, tmp_path, monkeypatch):
    assert not isinstance(datasets.load(tmp_path / "x.npy").x, np.memmap)
    monkeypatch.setattr(arrays, "STREAMED_BYTES", 1000)
    assert isinstance(datasets.load(tmp_path / "x.npy").x, np.memmap)
    np.save(tmp_path / "whole.npy", np.arange(600).reshape(300, 2) ** 2)
    assert datasets.load(tmp_path / "whole.npy").x.dtype == np.float64


PROGRAM = """
    import sys, threading, time
    import numpy as np, torch
    from ffjord_kit import FFJORD
    torch.set_num_threads(1)
    x, peak = np.load(sys.argv[1], mmap_mode="r"), [0]
    model = FFJORD(schedule=[("flow_matching", 30)], hidden=(8,), random_state=0)

    def private():
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

    def watch():
        while True:
            peak[0] = max(peak[0], private())
            time.sleep(0.01)

    model.fit(x[:1000])
    before = private()
    threading.Thread(target=watch, daemon=True).start()
    model.fit(x)
    print(peak[0] - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_table_is_never_copied(tmp_path):
    rows = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(1_000_000, 50))
    for start in range(0, len(rows), 100_000):
        rows[start : start + 100_000] = np.random.default_rng(start).normal(size=(100_000, 50))
    rows.flush()
    ran = subprocess.run(
        [sys.executable, "-c", dedent(PROGRAM), tmp_path / "x.npy"], capture_output=True, text=True, check=True
    )
    assert float(ran.stdout) < 0.75 * (tmp_path / "x.npy").stat().st_size / 1024
