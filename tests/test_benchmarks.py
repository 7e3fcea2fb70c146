"""The benchmarks: fair data, exact judges, rows that are merged one by one, and a tiny race."""

import math
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ffjord_kit import FFJORD, AdaptiveSolver, FixedSolver

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import column_types  # noqa: E402
import command  # noqa: E402
import deconvolution  # noqa: E402
import earth  # noqa: E402
import fitting  # noqa: E402
import memory  # noqa: E402
import mixed_table  # noqa: E402
import peers  # noqa: E402
import questions  # noqa: E402
import race  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
import schemes  # noqa: E402
import sets  # noqa: E402
import solves  # noqa: E402
import stability  # noqa: E402
import step_cost  # noqa: E402
import tables  # noqa: E402
import toys  # noqa: E402
import workers  # noqa: E402
from clock import Clock  # noqa: E402


@pytest.fixture
def zuko():
    return pytest.importorskip("zuko", reason="zuko is not installed: pip install ffjord-kit[benchmarks]")


@pytest.fixture
def small(monkeypatch):
    """A table and a toy of a few rows, under names of their own."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 3)) * [1.0, 2.0, 3.0] + 5
    truth = lambda x: -0.5 * np.square(x).sum(1) - math.log(2 * math.pi)  # noqa: E731
    plane = rng.standard_normal((700, 2))
    monkeypatch.setitem(sets.SETS, "table", lambda: sets._standardized(rows[:300], rows[300:350], rows[350:]))
    monkeypatch.setitem(sets.SETS, "plane", lambda: sets.Split(plane[:400], plane[400:500], plane[500:], truth))


def asked(**changes):
    common = {"sets": ("table",), "only": ("mixture",), "budgets": (0.1,), "asked": True, "seed": 0, "json": None}
    return Namespace(**{**common, "again": False, "device": "cpu", **changes})


def test_the_cnf_of_zuko_is_judged_by_its_own_exact_likelihood(zuko):
    """With a smooth activation: the slope of zuko's own has a kink, which no solver gets past cheaply."""
    torch.manual_seed(0)
    model = zuko.flows.CNF(3, atol=1e-9, rtol=1e-9, activation=torch.nn.Tanh).double().requires_grad_(False).eval()
    x = torch.randn(5, 3, dtype=torch.float64)
    tight = peers.as_flow(model, AdaptiveSolver("dopri5", 1e-9, 1e-9)).log_prob(x)
    torch.testing.assert_close(
        tight, model().log_prob(x), rtol=0, atol=1e-6
    )  # zuko holds its trace a hundredth as well
    torch.testing.assert_close(peers.as_flow(model).log_prob(x), tight, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_peers_and_baselines_race_on_a_table_and_on_a_toy(zuko, small, tmp_path, capsys):
    file = str(tmp_path / "rows.json")
    given = asked(only=("zuko NSF", "zuko MAF", "zuko CNF", "mixture", "KDE"), json=file)
    rows = race.race("tables", given, {}, tables.judge)
    assert [row["budget"] for row in rows] == [0.1, 0.1, 0.1, None, None]
    assert all(math.isfinite(row["mean"]) and row["test_rows"] == 50 for row in rows)
    assert rows[0]["log_likelihood_in_data_units"] == pytest.approx(sets.load("table").shift - rows[0]["mean"])
    again = race.race("tables", given, {}, tables.judge)
    assert again == rows  # nothing is done twice
    assert len(capsys.readouterr().out.splitlines()) == 5
    both = race.race(
        "toys", asked(sets=("plane",), only=("paper FFJORD",), budgets=(0.1, 0.2), json=file), {}, toys.judge
    )
    assert [row["budget"] for row in both[5:]] == [0.1, 0.2]
    assert both[6]["steps"] >= both[5]["steps"] >= 1
    assert report.table(both, "toys").count("paper FFJORD") == 1
    assert report.table(both, "tables").splitlines()[2].startswith("| table | 0.1 | ")


@pytest.mark.parametrize(("word", "schedule"), [("auto", "auto"), ("mle", [("mle", "0.5s")])])
def test_our_estimator_races_with_the_seconds_that_it_is_given(small, monkeypatch, word, schedule):
    class Standin(FFJORD):
        def __init__(self, **fields):
            seen.update(fields)
            super().__init__(schedule=[("flow_matching", 3)], random_state=0)

    seen = {"schedule": "auto"}
    monkeypatch.setattr(peers, "FFJORD", Standin)
    (row,) = race.race("tables", asked(only=(word,), budgets=(0.5,)), {}, tables.judge)
    assert (row["budget"], row["steps"]) == (0.5, 3)
    assert (seen["schedule"], seen.get("max_seconds")) == (schedule, 0.5 if word == "auto" else None)
    assert math.isfinite(row["mean"])
    assert row["log"][0] == "flow_matching ended (all its steps made)"


def test_parameters_given_observations_race(zuko, monkeypatch):
    monkeypatch.setattr(sets, "SIMULATIONS_ROWS", 400)
    monkeypatch.setattr(sets, "MOST_TEST_ROWS", 100)
    monkeypatch.setattr(peers, "FFJORD", lambda **_: FFJORD(schedule=[("flow_matching", 3)], random_state=0))
    given = asked(sets=("quadratic", "slcp"), only=("auto", "zuko NSF"), budgets=(0.1,))
    rows = race.race("conditional", given, {}, tables.judge)
    assert all(math.isfinite(row["mean"]) and row["test_rows"] == 100 for row in rows)
    assert len(rows) == 4
    assert report.table(rows, "conditional").splitlines()[2].startswith("| quadratic | 0.1 | ")


def test_a_conditional_density_of_a_peer_integrates_to_one(zuko, monkeypatch):
    monkeypatch.setattr(sets, "SIMULATIONS_ROWS", 200)
    split = sets.load("slcp")
    x, context = split.parts(np.concatenate([split.train, split.validation]))
    assert (x.shape, context.shape, split.contexts) == ((200, 5), (200, 8), 8)
    narrow = split._replace(train=split.train[:, 4:], validation=split.validation[:, 4:])
    (fitted,) = peers.METHODS["zuko NSF"].fit(narrow, [0.1], 0, "cpu")
    grid = np.linspace(-8, 8, 2001)[:, None]
    density = np.exp(fitted.score(np.concatenate([grid, np.repeat(context[:1], len(grid), axis=0)], axis=1)))
    assert np.trapezoid(density, grid[:, 0]) == pytest.approx(1, abs=1e-3)


def test_a_method_that_fails_says_so_in_its_row(small, monkeypatch):
    def fit(*_):
        raise ArithmeticError("the loss is nan")
        yield

    monkeypatch.setitem(peers.METHODS, "mixture", peers.Method("mixture", fit))
    (row,) = race.race("tables", asked(), {}, tables.judge)
    assert (row["mean"], row["note"]) == (None, "failed: the loss is nan")
    assert "failed: the loss is nan" in report.table([row], "tables")


def test_a_score_that_is_no_number_becomes_a_word():
    assert race.numbers(math.nan, math.nan) == {"mean": None, "standard_error": None, "note": "the score is nan"}


def test_training_keeps_the_best_weights_and_stops_at_a_loss_that_is_no_number():
    w = torch.nn.Parameter(torch.tensor(1.0))
    losses = iter([1.0, 1.0, math.nan])
    recipe = fitting.Recipe(batch=2, validate=None)
    states = fitting.train(
        lambda x: w * next(losses), [w], torch.zeros(4, 1), torch.zeros(2, 1),
        marks=[60.0], recipe=recipe, clock=Clock(), seed=0,
    )  # fmt: skip
    ((mark, progress),) = states
    assert (mark, progress.steps) == (60.0, 2)
    assert progress.note == "stopped: loss nan at step 3"


def test_the_rate_warms_up_and_falls_to_zero_with_the_budget_or_stays():
    rates = [fitting.Recipe().rate_at(share) for share in (0.0, 0.02, 0.5, 1.0)]
    assert rates[0] < rates[1] > rates[2] > rates[3] == 0
    assert fitting.Recipe(cosine=False).rate_at(0.9) == 1e-3


def test_what_is_done_while_the_clock_is_paused_does_not_count():
    clock = Clock()
    with clock.paused():
        while clock.seconds() < 0.05:
            pass
    assert clock.seconds() < 0.04


def test_columns_with_ties_or_twins_are_dropped():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 3))
    tied, twin = np.round(x[:, 1]), x[:, 0] + 0.01 * rng.standard_normal(1000)
    np.testing.assert_array_equal(sets.suited(np.column_stack([x, tied, twin])), x)


def test_patches_are_centred_and_portraits_are_turned_back():
    image = np.arange(8)[:, None] * 10 + np.zeros((8, 8), np.uint8)  # rows differ, columns do not
    images = np.stack([image, image]).astype(np.uint8)
    cut = partial(sets._cut, images, count=20)
    upright, lying = (
        cut(np.array([1, 1]), rng=np.random.default_rng(0)),
        cut(np.array([-1, -1]), rng=np.random.default_rng(0)),
    )
    assert upright.shape == (20, 63)
    steps = np.diff(np.column_stack([upright, -upright.sum(1)]).reshape(20, 8, 8), axis=1) * 256  # a patch sums to 0
    assert np.all(np.abs(steps - 10) <= 1)
    assert np.all(np.abs(np.diff(lying[:, :8], axis=1) * 256 - 10) <= 1)


def test_toys_are_split_and_know_their_truth():
    split = sets.load("8gaussians")
    assert [len(part) for part in split[:3]] == [38_000, 2_000, 10_000]
    assert np.isfinite(split.log_prob(split.test)).all()


def test_a_table_without_its_folder_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.delenv(sets.FOLDER, raising=False)
    with pytest.raises(ValueError, match="set FFJORD_KIT_DATA to the folder that holds uci_regression.npz"):
        sets.load("protein")
    monkeypatch.setenv(sets.FOLDER, str(tmp_path))
    with pytest.raises(ValueError, match="uci_regression.npz: no such file"):
        sets.load("protein")
    with pytest.raises(ValueError, match="no set 'proteins'"):
        sets.load("proteins")


def test_rows_are_merged_by_their_key(tmp_path):
    store, row = results.Store(str(tmp_path / "a.json")), {"set": "moons", "method": "auto", "budget": 15.0, "seed": 0}
    for new in ({**row, "mean": 1.0}, {**row, "seed": 1, "mean": 2.0}, {**row, "mean": 3.0}):
        store.add(new)
    assert [kept["mean"] for kept in store.rows()] == [3.0, 2.0]
    assert store.has(**row)
    assert not store.has(**{**row, "budget": 60.0})
    with pytest.raises(ValueError, match="no such folder"):
        results.Store(str(tmp_path / "none" / "a.json"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sets", "moon"], "--sets: expected some of moons; got 'moon'"),
        (["--budgets", "0"], "--budgets: expected seconds such as 15,60; got '0'"),
        pytest.param(["--device", "cuda"], "torch finds no GPU on this machine",
                     marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["toys.py", *words])
    with pytest.raises(SystemExit):
        command.options("text", sets=("moons",), methods=("auto",), budgets=(15.0,))
    assert said in capsys.readouterr().err


def test_seconds_at_equal_error_are_read_between_the_points():
    rows = [{"error": 10.0**-k, "seconds": 2.0**k, "setting": 10.0**-k} for k in range(1, 4)]
    assert report.seconds_at(10**-1.5, rows) == pytest.approx(2**1.5)
    assert report.seconds_at(0.5, rows) == pytest.approx(2)  # the cheapest is better than asked
    assert report.seconds_at(1e-4, rows) is None
    steps = [{"error": 10.0**-k, "seconds": 2.0 ** (k - 2), "setting": f"rk4:{k}"} for k in (1, 2)]
    assert report.seconds_at(10**-1.5, steps) == pytest.approx(1)  # nothing lies between one step and two
    assert report.seconds_at(10**-1.5, rows + steps) == pytest.approx(1)


def test_the_error_of_samples_is_a_distance_and_of_densities_a_mean():
    assert solves.error(np.array([1.0, 2.0, 9.0]), np.array([0.0, 0.0])) == 1.5
    assert solves.error(np.array([[3.0, 4.0]]), np.zeros((1, 2))) == 5


def test_when_auto_is_as_low_as_the_paper():
    common = {"benchmark": "toys", "set": "moons", "device": "cpu", "standard_error": 0.1}
    rows = [
        {**common, "method": method, "budget": seconds, "seconds": seconds, "mean": mean}
        for method, seconds, mean in (("paper FFJORD", 600.0, 0.2), ("auto", 6.0, 0.3), ("auto", 12.0, 0.1))
    ]
    assert "| moons | 0.200 at 600 s | 12.0 | 50 |" in report.sooner(rows)


def test_curves_are_drawn(tmp_path):
    common = {"benchmark": "tables", "set": "wine", "device": "cpu", "standard_error": 0.1}
    rows = [{**common, "method": "auto", "budget": b, "seconds": b, "mean": 1 / b} for b in (15.0, 60.0)]
    rows += [{**common, "method": "mixture", "budget": None, "seconds": 1.0, "mean": 0.5}]
    assert report.curves(rows, "tables", tmp_path).read_bytes().startswith(b"\x89PNG")
    assert "**0.017 ± 0.100** | 0.500 ± 0.100 |" in report.table(rows, "tables")


@pytest.mark.parametrize("name", memory.ADJOINTS)
def test_every_gradient_method_takes_memory_and_runs(name):
    assert memory.peak(name, 2, "cpu") >= 0


def test_measured_stability_is_that_of_the_polynomial():
    z = np.array([-0.5 + 0.5j, -1.9, 0.1 + 0.2j])
    assert stability.growth("euler", "backprop", z) == pytest.approx(np.abs(1 + z), rel=1e-9)
    z[1] = -7.9  # the Chebyshev polynomial of degree 2 is stable up to -8
    assert stability.growth("fractal2", "backprop", z) == pytest.approx(np.abs(2 * (1 + z / 4) ** 2 - 1), rel=1e-9)
    assert float(stability.growth("euler", "backprop", np.array([-7.9]))[0]) > stability.GROWTH
    assert stability.reach(stability.growth("euler", "backprop", -stability.AXIS)) == pytest.approx(2)
    assert stability.reach(stability.growth("revnet", "backprop", -stability.AXIS)) == 0


def test_a_scheme_is_trained_and_scored_by_itself_by_the_field_and_by_its_exact_steps(small):
    for method in ("poly2", "revnet"):
        row = schemes.measured(sets.load("plane"), method, 0.5, 0, guard=0.0)
        assert row["nfe"] == 12
        assert ("steps" in row) == ("holds" in row) == (method == "poly2")
        row |= {"set": "plane", "method": method}
        assert f"| {method} | 12 |" in schemes.table([row], ("plane",))


def test_a_scheme_is_scored_by_the_steps_that_the_guard_has_reached():
    records = [{"step": 10, "solver_steps": 4, "grading": 1.0}, {"step": 20, "solver_steps": 6, "grading": 2.0}]
    history = SimpleNamespace(records=[*records, {"step": 21, "loss": 0.0}])
    assert schemes.guarded_solver(history, FixedSolver("euler", 1)) == FixedSolver("euler", 6, grading=2.0)
    assert schemes.guarded_solver(SimpleNamespace(records=[]), FixedSolver("euler", 1)) == FixedSolver("euler", 1)


def test_steps_that_are_no_density_are_not_quoted():
    rows = [{"set": "plane", "method": "rk4", "seed": n, "steps": 2.0, "holds": n > 0, "field": n} for n in range(2)]
    assert schemes.stepped_table(rows, ("plane",)).splitlines()[-1] == "| rk4 | no density (1 of 2) |"
    assert schemes.stepped_table(rows[1:], ("plane",)).splitlines()[-1] == "| rk4 | 2.000 |"
    assert schemes.spread(rows) == "Seeds differ by 1.000 in the median, 1.000 at most."


def test_rows_a_second_are_told_beside_those_of_one_process(monkeypatch):
    monkeypatch.setattr(workers, "STEPS", {"table": 4})
    assert workers.rows_a_second("table", "cpu") > 0
    rows = [{"set": "table", "device": "cpu", "method": str(n), "rows_a_second": 100.0 * n} for n in (1, 2)]
    assert workers.table(rows).splitlines()[-1] == "| table | cpu | 2 | 200 | 2.00 |"


@pytest.mark.parametrize("name", column_types.SETS)
def test_the_truths_of_column_types_integrate_to_one_and_are_those_of_their_draws(name):
    truth = column_types.SETS[name]()
    density = np.exp(truth.log_prob(truth.nodes))
    assert math.isclose(float((density * truth.weights).sum()), 1, abs_tol=1e-4)
    drawn = truth.log_prob(truth.draw(20_000, np.random.default_rng(0)))
    entropy = -float((density * np.log(density) * truth.weights).sum())
    assert abs(drawn.mean() + entropy) < 5 * drawn.std() / math.sqrt(len(drawn))


def test_the_truth_of_the_mixed_table_is_that_of_its_draws():
    rng = np.random.default_rng(0)
    train, rows = mixed_table.draw(3000, rng), mixed_table.draw(3000, rng)
    gap = mixed_table.Gaussians(train).log_prob(rows) - mixed_table.log_prob(rows)
    assert 0.85 < float(np.exp(gap).mean()) < 1.05  # the integral of a density that covers nearly the same rows
    assert gap.mean() < 0


def test_places_on_the_earth_are_asked_for_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("FFJORD_KIT_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"earth\.npz is not there: set FFJORD_KIT_DATA"):
        earth.places("flood")
    np.savez(tmp_path / "earth.npz", flood=np.array([[10.0, 170.0]], np.float32))
    assert earth.places("flood").tolist() == [[170.0, 10.0]]


def test_the_mixture_of_questions_knows_its_conditionals_and_their_moments():
    mixture, row = questions.Mixture.drawn(3), np.array([[0.3, 0.0, -0.5]])
    grid = np.linspace(-12, 12, 2401)
    rows = np.repeat(row, len(grid), axis=0)
    rows[:, 1] = grid
    density = np.exp(mixture.conditional(rows, [1], [0, 2]))
    assert abs(np.trapezoid(density, grid) - 1) < 1e-6
    mean = np.trapezoid(grid * density, grid)
    deviation = np.sqrt(np.trapezoid((grid - mean) ** 2 * density, grid))
    found = mixture.moments(row[0], [0, 2], [1])
    assert np.allclose(np.ravel(found), [mean, deviation])
    draws = mixture.sample(4000, np.random.default_rng(0))
    assert np.allclose(draws.mean(0), mixture.means.mean(0), atol=0.15)


def test_the_cost_of_steps_counts_the_evaluations_that_a_fit_has():
    assert step_cost._row(2, compiled=False).startswith("| 2 | 1365 | 0.5 |")


def test_the_normals_of_deconvolution_are_drawn_from_the_density_that_judges():
    x, test, log_prob = deconvolution.truth("normals", 0)
    axis = np.linspace(-5, 5, 201)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    assert np.exp(log_prob(grid)).sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-3)
    assert log_prob(x).mean() == pytest.approx(log_prob(test).mean(), abs=0.05)
