"""Narrower flows: neurons that others can stand in for go without a loss, and the loss of others is measured."""

import numpy as np
import pytest
import torch
from commands import call
from torch import nn

from ffjord_kit import CNF, FFJORD, DensityModel, Flow, ResidualDynamics
from ffjord_kit.data import Batch
from ffjord_kit.nn import ConcatDynamics, ConcatSquashDynamics
from ffjord_kit.nn.neurons import duplicate_neuron, hidden_neurons
from ffjord_kit.training.condense import FieldPoints, condense_flow, merge_to, narrowest, path_points

FLOW = Flow([CNF(ConcatDynamics((2,), hidden=(4,)), (2,))]).double()
ROWS = np.random.default_rng(0).normal(size=(200, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]])


def points(n=300, contexts=0):
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(n, contexts, generator=generator, dtype=torch.float64) if contexts else None
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return FieldPoints(torch.rand(n, generator=generator, dtype=torch.float64), Batch(x, context))


def drawn(network):
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network.double()


def doubled(network):
    """A network with two of each neuron, which share what reads them."""
    for layer in range(len(hidden_neurons(network))):
        for number in range(hidden_neurons(network)[layer].count):
            network = duplicate_neuron(network, hidden_neurons(network)[layer], number, 0.3)
    return network


@pytest.mark.parametrize("kind", [ResidualDynamics, ConcatSquashDynamics, ConcatDynamics])
@pytest.mark.parametrize("hidden", [(5, 5), (6, 4)])
def test_a_network_of_twins_loses_one_of_each_and_nothing_else(kind, hidden):
    network, at = drawn(kind((2,), hidden=hidden)), points()
    narrow = merge_to(doubled(network), at, 0.5)
    assert [neurons.count for neurons in hidden_neurons(narrow)] == [n.count for n in hidden_neurons(network)]
    expected, found = (each(at.t, at.batch.x).detach() for each in (network, narrow))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


def test_points_lie_on_the_paths_of_the_rows():
    flow = Flow([CNF(drawn(ConcatDynamics((2,), hidden=(4,))), (2,), end_time=2.0)])
    (found,) = path_points(flow, Batch(torch.as_tensor(ROWS)), 0)
    assert (float(found.t.min()), float(found.t.max())) == (0.0, 2.0)
    ends = found.batch.x[found.t == 2.0]
    assert torch.equal(ends.sort(0).values, torch.as_tensor(ROWS).sort(0).values)


def fitted(steps, **fields):
    options = {"schedule": [("flow_matching", steps)], "hidden": (16, 16), "scaling": "standardize", "base": "normal"}
    return FFJORD(**options, **fields, random_state=0).fit(ROWS)


@pytest.mark.slow
def test_a_fit_is_condensed_saved_and_loaded(tmp_path):
    model = fitted(60)
    narrow = model.condense(ROWS, loss=0.05, steps=60)
    assert max(narrow.hidden) < 16 == max(model.hidden)
    note = narrow.config_["condensed"]
    assert note["hidden"] == [16, 16]
    assert note["loss"] <= 0.05
    change = model.score_samples(ROWS).mean() - narrow.score_samples(ROWS).mean()
    assert abs(change) < 0.15
    assert "condensed to" in narrow.history_.records[-1]["event"]
    narrow.save(tmp_path / "run")
    again = DensityModel.load(tmp_path / "run")
    np.testing.assert_allclose(again.score_samples(ROWS[:5]), narrow.score_samples(ROWS[:5]), rtol=1e-6)


def test_a_loss_that_cannot_be_kept_is_told():
    flow = drawn(FLOW)
    with torch.no_grad():
        rows = Batch(flow.sample(50, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match=r"no narrower network keeps a loss of -9 nats; the best one loses"):
        narrowest(flow, rows, rows, -9.0, shares=(0.25,), steps=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: condense_flow(FLOW, Batch(torch.zeros(2, 2)), 1.0), r"share must be in \(0, 1\)"),
        (lambda: merge_to(nn.Linear(2, 2), points(), 0.5), "fully connected fields .*; got Linear"),
        (lambda: fitted(1, dynamics="potential").condense(ROWS), "got PotentialDynamics"),
        (lambda: fitted(1).condense(ROWS[:100]), "X and context must be the rows of the fit"),
        (lambda: fitted(1).condense(ROWS, loss=0.0), "loss must be positive; got 0.0"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_command_condenses_a_run_and_compares_both(tmp_path, capsys):
    np.savetxt(tmp_path / "rows.csv", ROWS, delimiter=",", header="a,b", comments="")
    fields = ["--hidden", "8,8", "--schedule", "flow_matching:20", "--base", "normal", "--scaling", "standardize"]
    run, narrow = str(tmp_path / "run"), str(tmp_path / "narrow")
    assert call(capsys, "fit", str(tmp_path / "rows.csv"), "--out", run, "--seed", "0", "--no-verbose", *fields)[0] == 0
    code, out, _ = call(capsys, "condense", run, "--out", narrow, "--loss", "1", "--steps", "20")
    assert code == 0
    assert "widths" in out
    assert "8,8" in out
    code, _, err = call(capsys, "condense", run, "--out", narrow)
    assert code == 1
    assert len(err.strip().splitlines()) == 1
