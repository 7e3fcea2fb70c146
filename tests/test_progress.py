"""Progress bars: full at the end of what has ended, and not where it was interrupted."""

import math
import sys
from types import SimpleNamespace

import pytest

from ffjord_kit import progress as bars
from ffjord_kit.progress import progress, training_progress

FULL = "━" * 8


def phases(*names):
    return [SimpleNamespace(objective=SimpleNamespace(name=name), steps=math.inf) for name in names]


def record(phase, share):
    return {
        "phase_index": phase, "phase_step": 3, "phase_share": share, "loss": 1.0, "best_nll": None, "nfe_forward": 0,
        "nfe_backward": 0,
    }  # fmt: skip


@pytest.mark.parametrize("interrupted", [False, True])
def test_phases_that_end_by_time_fill_their_bars_even_without_a_step(capsys, interrupted):
    with training_progress(phases("first", "second")) as bars:
        bars.on_step(record(0, 0.4))
        bars.finish(interrupted)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert [FULL in line for line in lines] == [not interrupted, True]  # a phase to come pulses
    assert ["00:00 left" in line for line in lines] == [not interrupted] * 2


def test_a_fit_without_a_step_shows_no_bar(capsys):
    with training_progress(phases("first")) as bars:
        bars.finish(False)
    assert capsys.readouterr().err == ""


def test_a_loop_that_ends_early_fills_its_bar_and_one_that_fails_does_not(capsys):
    with progress("rows", shown=True) as on_progress:
        on_progress(3, 10)
    assert FULL in capsys.readouterr().err
    with pytest.raises(ValueError, match="stop"), progress("rows", shown=True) as on_progress:
        on_progress(3, 10)
        raise ValueError("stop")
    assert FULL not in capsys.readouterr().err


def test_a_notebook_shows_one_bar_that_is_renewed_and_full_at_the_end(monkeypatch, capsys):
    shown = []

    class Cell:
        def update(self, forms, *, raw):
            shown.append(forms["text/plain"])

    def display(forms, *, raw, display_id):
        Cell().update(forms, raw=raw)
        return Cell()

    monkeypatch.setattr(bars, "_in_notebook", lambda: True)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    with progress("rows") as on_progress:
        on_progress(3, 10)
    assert "--:-- left" in shown[0]
    assert FULL in shown[-1]
    assert "10/10 00:00 left" in shown[-1]
    assert capsys.readouterr().err == ""
