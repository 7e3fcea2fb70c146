"""Pictures of what training does: spectra over training, directions of neurons, their likeness and number."""

import numpy as np
import pytest

from ffjord_kit import plots
from ffjord_kit.cli.plot import _training_pictures

RECORDS = [
    {
        "step": step, "phase": "mle", "loss": 1.0, "condensation": {"layer": [8, 8 - step]},
        "hessian": {"loss": "mle", "top": 10.0 * step, "error": 0.1},
        "spectrum": {"frequencies": [1.0, 2.0], "errors": [0.1 / step, None]},
    }
    for step in (1, 2, 3)
]  # fmt: skip


def test_the_log_of_a_watched_run_is_drawn(tmp_path):
    pictures = _training_pictures(RECORDS)
    assert set(pictures) == {"training", "spectrum", "condensation", "curvature"}
    for name, draw in pictures.items():
        draw(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert set(_training_pictures([{"step": 1, "loss": 1.0}])) == {"training"}


def test_gaps_stay_gaps():
    history = plots.watched_spectrum(RECORDS)
    assert np.isnan(history.errors[:, 1]).all()
    assert plots.watched_spectrum([{"step": 1}]) is None


def test_each_network_has_a_row_and_each_step_a_panel():
    neurons = ([0.0, 1.0], [1.0, 0.0])
    figure = plots.directions_over_training({"a": {0: neurons, 9: neurons}, "b": {0: neurons, 7: neurons}})
    assert [panel.get_title() for panel in figure.axes] == ["step 0", "step 9", "step 0", "step 7"]
    assert len(plots.similarity_matrices({"a": np.eye(3), "b": np.eye(2)}).axes) == 3  # with the colour bar


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.spectrum_errors({}), "one entry or more"),
        (
            lambda: plots.spectrum_errors({"a": plots.SpectrumHistory([1], [1.0], np.ones((2, 1)))}),
            "must be of shape",
        ),
        (lambda: plots.similarity_matrices({}), "one entry or more"),
        (lambda: plots.directions_over_training({}), "same number of steps"),
        (lambda: plots.effective_neurons([{"step": 1}]), "watch='condensation'"),
        (lambda: plots.watched_curvature([{"step": 1}]), "watch='hessian'"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
