"""A diagnosis passes sound flows and finds each fault where it is; gradients are checked; outliers are scored."""

import copy
import math

import pytest
import torch
from oracles import LinearDynamics, close, linear, randn
from torch import nn

from ffjord_kit import CNF, Flow, FlowMatching, MaximumLikelihood, Phase, Standardize, Transform, fit_flow
from ffjord_kit.data import Batch
from ffjord_kit.datasets import load
from ffjord_kit.diagnostics import VERDICTS, check_gradients, check_training, diagnose, gradient_table, integral
from ffjord_kit.diagnostics.examination import Examination
from ffjord_kit.diagnostics.gradients import GradientCheck
from ffjord_kit.diagnostics.outliers import GRADIENT_SOLVER, SCORES, outlier_scores
from ffjord_kit.nn import DYNAMICS, ResidualDynamics
from ffjord_kit.ode import ADJOINTS, AdaptiveSolver, FixedSolver, PerRowSolver
from ffjord_kit.trace import HutchinsonTrace, PerRowTrace
from ffjord_kit.training import TrainConfig
from ffjord_kit.transforms import Logit
from ffjord_kit.transforms.cnf import SolveOptions

SOLVERS = (AdaptiveSolver("dopri5", 1e-6, 1e-6), FixedSolver("rk4", steps=12))
FIT_CHECKS = ("base, each coordinate", "samples, MMD", "coverage")
SOUND_CHECKS = ("integral", "determinant", "round trip", "cheapest solve")
REPORTS = {"of reports": PerRowSolver(1e-5, 1e-5)}


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Take grids and importance samples of fewer points: enough for flows as smooth as these."""
    monkeypatch.setattr(integral, "GRIDS", {1: 400, 2: 60, 3: 24})
    monkeypatch.setattr(integral, "MAX_SAMPLES", 2500)
    monkeypatch.setattr(integral, "COMPONENTS", (1, 4))


def fitted(objective, steps, learning_rate=2e-3, **options):
    """Return a flow that was trained on moons."""
    config = {"batch_size": 256, "ema_decay": 0.99, **options}
    torch.manual_seed(0)
    x = torch.as_tensor(load("moons:train", rows=3000, seed=0).x)
    flow = Flow([CNF(ResidualDynamics((2,), hidden=(32, 32)), (2,))], preprocess=[Standardize.of(x)])
    fit_flow(flow, x, schedule=[Phase(objective, steps, learning_rate)], config=TrainConfig(**config))
    return flow


@pytest.fixture(scope="module")
def trained():
    return fitted(FlowMatching(), 800, 5e-3)


@pytest.fixture(scope="module")
def held_out():
    return torch.as_tensor(load("moons:test", rows=400, seed=0).x)


def verdicts(diagnosis, names):
    return [diagnosis[name].verdict for name in names]


@pytest.mark.slow
def test_a_well_trained_flow_passes(trained, held_out):
    names = []
    diagnosis = diagnose(trained, held_out, solvers=REPORTS, on_progress=names.append)
    assert verdicts(diagnosis, SOUND_CHECKS) == ["good"] * 4
    assert "bad" not in {finding.verdict for finding in diagnosis.findings}
    assert diagnosis["solver, of reports"].verdict == "good"
    assert diagnosis.verdict in ("good", "fair")
    assert names[0] == "rows"
    assert len(str(diagnosis).splitlines()) >= len(diagnosis.findings) == 18
    assert {finding.verdict for finding in diagnosis.findings} <= set(VERDICTS)


@pytest.mark.slow
def test_an_undertrained_flow_is_a_density_but_not_that_of_the_data(held_out):
    diagnosis = diagnose(fitted(FlowMatching(), 20), held_out, solvers=REPORTS)
    assert verdicts(diagnosis, SOUND_CHECKS) == ["good"] * 4
    assert verdicts(diagnosis, ("samples, classifier", "coverage")) == ["bad"] * 2
    assert "train longer" in str(diagnosis)


@pytest.mark.slow
def test_too_few_steps_in_training_are_found(held_out):
    euler = FixedSolver("euler", steps=2)
    flow = fitted(MaximumLikelihood(solver=euler), 80, guard=0.0)
    diagnosis = diagnose(flow, held_out, solvers={**REPORTS, "in training": euler})
    assert diagnosis["solver, in training"].verdict == "bad"
    assert "2 euler steps" in diagnosis["solver, in training"].measured
    assert diagnosis["solver, of reports"].verdict == "good"
    assert verdicts(diagnosis, SOUND_CHECKS) == ["good"] * 4


@pytest.mark.slow
def test_data_in_other_units_are_found(trained, held_out):
    flow = copy.deepcopy(trained)
    flow.preprocess.transforms[0].scale.mul_(1.5)
    diagnosis = diagnose(flow, held_out, rows=300)
    assert verdicts(diagnosis, ("integral", "determinant")) == ["good"] * 2  # it is a density, but of other data
    assert verdicts(diagnosis, FIT_CHECKS) == ["bad"] * 3
    assert "their units" in diagnosis["location"].advice


def test_the_column_of_a_shift_has_its_name():
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flow, shifted = Flow([Standardize.of(x)]), x + torch.tensor([0.0, 0.7])
    assert "deviations, column 1;" in diagnose(flow, shifted)["location"].measured
    assert "deviations, column age;" in diagnose(flow, shifted, columns=("height", "age"))["location"].measured


@pytest.mark.slow
def test_a_shift_is_named(trained, held_out):
    diagnosis = diagnose(trained, held_out + torch.tensor([0.4, 0.0]), rows=300)
    assert diagnosis["location"].verdict == "bad"
    assert "column 0" in diagnosis["location"].measured
    assert diagnosis["spread"].verdict == "good"


def test_modes_that_the_flow_misses_are_named():
    x = torch.cat([randn(200, 2), randn(100, 2, seed=1) + 20])
    diagnosis = diagnose(Flow([Standardize.of(randn(200, 2))]), x)
    assert diagnosis["tails"].verdict == "bad"
    assert "misses modes" in diagnosis["tails"].remedy


def test_a_flow_that_is_too_wide_is_named():
    diagnosis = diagnose(Flow([Standardize.of(2 * randn(300, 2))]), randn(300, 2))
    assert (diagnosis["spread"].verdict, diagnosis["tails"].verdict) == ("bad", "good")
    assert "too wide" in diagnosis["spread"].remedy


@pytest.mark.slow
def test_overfitting_is_told_from_other_data(held_out):
    few = torch.as_tensor(load("moons:train", rows=60, seed=0).x)
    flow = Flow([CNF(ResidualDynamics((2,), hidden=(64, 64)), (2,))], preprocess=[Standardize.of(few)])
    fit_flow(flow, few, schedule=[Phase(FlowMatching(), 1500, 5e-3)], config=TrainConfig(batch_size=60))
    found = [diagnose(flow, x, trained_on=Batch(few), rows=200) for x in (held_out, held_out + 1)]
    assert [diagnosis["generalization"].verdict for diagnosis in found] == ["bad", "bad"]
    assert "overfitted" in found[0]["generalization"].remedy
    assert "distributed otherwise" in found[1]["generalization"].remedy


def test_training_that_ended_while_it_still_improved_is_named():
    falling = check_training([(10, 3.0), (20, 2.9), (30, 2.8), (40, 2.7)], 2)
    level = check_training([(10, 3.0), (20, 2.7), (30, 2.7), (40, 2.69)], 2)
    assert (falling.verdict, level.verdict, check_training([(10, 3.0)], 2)) == ("fair", "good", None)
    assert "fell by 0.200 nats in the last 50% of 40 steps" in falling.measured
    assert "too short" in falling.remedy


@pytest.mark.slow
def test_preprocessing_gives_what_a_first_transform_gives():
    field, units = linear(2), Standardize.of(3 + 2 * randn(80, 2))
    flows = Flow([units, CNF(field, (2,))]).double(), Flow([CNF(field, (2,))], preprocess=[units]).double()
    x = flows[0].sample(80, solver=PerRowSolver(), generator=torch.Generator().manual_seed(3))
    first, second = (diagnose(flow, x, rows=60) for flow in flows)
    assert verdicts(first, SOUND_CHECKS) == verdicts(second, SOUND_CHECKS) == ["good"] * 4
    for name in ("at_base", "log_densities", "drawn_log_densities"):
        close(getattr(first, name), getattr(second, name), 1e-9)
    close(first.spectrum.modulus, second.spectrum.modulus, 1e-9)


def test_samples_that_do_not_depend_on_their_context_are_found():
    context, noise = randn(600, 2).split(1, dim=1)
    blind = Flow([Standardize(torch.zeros(1).double(), torch.full((1,), 2**0.5).double())], context_dim=1)
    diagnosis = diagnose(blind, context + noise, context)
    assert verdicts(diagnosis, ("base, each coordinate", "coverage")) == ["good"] * 2
    assert diagnosis["samples, energy distance"].verdict != "good"
    assert diagnosis["samples, classifier"].verdict == "bad"


class Stretched(Transform):
    """A transform that doubles, and claims to leave volumes as they are."""

    event_shape = (2,)

    def to_base(self, x, context=None):
        return 2 * x, torch.zeros(len(x), dtype=x.dtype)

    def to_data(self, z, context=None):
        return z / 2, torch.zeros(len(z), dtype=z.dtype)


def test_a_wrong_log_determinant_is_found_twice():
    diagnosis = diagnose(Flow([Stretched()]), 0.5 * randn(100, 2))
    assert diagnosis["integral"].verdict == diagnosis["determinant"].verdict == "bad"
    assert float(diagnosis["integral"].measured.split()[0]) == pytest.approx(0.25, abs=5e-3)
    assert diagnosis["stiffness"].measured == "no continuous transform"
    assert diagnosis.verdict == "bad"


@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_the_tails_beyond_the_samples_belong_to_the_integral_of_one_column(sigma, monkeypatch):
    """A box around 200 draws leaves out a thousandth of a log-normal law or more."""
    monkeypatch.setattr(integral, "GRIDS", {1: 4000})
    law = torch.distributions.LogNormal(torch.zeros((), dtype=torch.float64), sigma)
    samples = (sigma * randn(200, 1)).exp()
    found = integral.by_grid(samples, lambda x: torch.where(x > 0, law.log_prob(x.clamp(min=1e-300)), -math.inf)[:, 0])
    assert float(1 - law.cdf(integral._box(samples)[1])) > 3e-4
    assert abs(found.value - 1) < 3 * found.error < 0.03


def test_the_error_of_a_box_of_two_columns_tells_of_the_mass_outside():
    law = torch.distributions.StudentT(torch.tensor(1.5, dtype=torch.float64))
    torch.manual_seed(3)
    samples = law.sample((2000, 2))
    found = integral.by_grid(samples / samples.abs().amax(0), lambda x: x.new_full((len(x),), -math.inf))
    assert found.value == 0
    assert 1e-3 < found.error < 0.02  # 1.4 of 1,000 points lie outside the box of 1,000 others, by theory
    normal = integral.by_grid(randn(2000, 2), lambda x: -0.5 * x.square().sum(1) - math.log(2 * math.pi))
    assert normal.value == pytest.approx(1, abs=1e-3)
    assert normal.error < 2e-3


def test_columns_with_bounds_are_integrated_without_them():
    """By a few thousand points, all of them in the support: a grid of three columns took minutes."""
    zeros = torch.zeros(3, dtype=torch.float64)
    flow = Flow([Logit(zeros, zeros + 1)])
    exam = Examination.begin(flow, Batch(randn(200, 3).sigmoid()), rows=200, seed=0)
    found = integral.check_integral(exam)
    assert found.verdict == "good"
    assert "importance sampling" in found.measured
    value, error = (float(part) for part in found.measured.split(" by ")[0].split(" ± "))
    assert abs(value - 1) < 3 * error < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 3, 5])
def test_a_flow_and_its_own_samples_agree_in_any_dimension(columns):
    torch.manual_seed(0)
    flow = Flow([CNF(ResidualDynamics((columns,), context_dim=1, hidden=(8,)), (columns,))], context_dim=1)
    for parameter in flow.parameters():
        nn.init.normal_(parameter, 0.0, 0.2)
    flow, context = flow.double(), randn(300, 1)
    x = flow.sample(300, context, solver=PerRowSolver(), generator=torch.Generator().manual_seed(3))
    before = copy.deepcopy(flow.state_dict())
    diagnosis = diagnose(flow, x, context, rows=200)
    assert "bad" not in {finding.verdict for finding in diagnosis.findings}
    assert diagnosis["integral"].verdict == "good"
    assert ("importance" in diagnosis["integral"].measured) == (columns > 2)
    assert ("standard error" in diagnosis["probes"].measured) == (columns > 2)
    assert diagnosis.at_base.shape == (200, columns)
    assert all(torch.equal(before[name], value) for name, value in flow.state_dict().items())


def test_the_spectrum_is_that_of_a_linear_field():
    field = LinearDynamics(torch.tensor([[-6.0, 0.0], [0.0, 2.0]], dtype=torch.float64))
    flow = Flow([CNF(field, (2,), end_time=0.5)]).double()
    diagnosis = diagnose(flow, flow.sample(50, generator=torch.Generator().manual_seed(0)))
    close(diagnosis.spectrum.modulus, torch.full((17,), 3.0).double())
    close(diagnosis.spectrum.real, torch.full((17,), 1.0).double())
    close(diagnosis.spectrum.times[[0, -1]], torch.tensor([1.0, 0.0]).double())


def test_too_few_rows_leave_checks_undecided(held_out):
    diagnosis = diagnose(Flow([Standardize.of(held_out)]), held_out, rows=20)
    assert verdicts(diagnosis, ("base", "samples", "coverage")) == ["unsure"] * 3
    with pytest.raises(KeyError, match="no finding 'health'; there are integral"):
        diagnosis["health"]


class Wall(nn.Module):
    """Dynamics that are not a number beyond a wall."""

    def forward(self, t, x, context=None):
        return torch.where(x.abs().sum(1, keepdim=True) < 3, 0.1 * x, torch.nan)


def test_rows_that_cannot_be_solved_are_counted_and_the_others_examined():
    x = torch.cat([0.3 * randn(60, 2), torch.full((2, 2), 9.0, dtype=torch.float64)])
    diagnosis = diagnose(Flow([CNF(Wall(), (2,))]), x[2:])
    assert diagnosis["rows"].verdict == diagnosis["draws"].verdict == "bad"
    assert "2 of 60 rows cannot be solved" in diagnosis["rows"].measured
    assert len(diagnosis.at_base) < 58
    with pytest.raises(ValueError, match="none of 2 rows, or of as many draws, can be solved"):
        diagnose(Flow([CNF(Wall(), (2,))]), x[60:])


def flow_of(dynamics, **options):
    torch.manual_seed(0)
    flow = Flow([CNF(dynamics, (2,))], **options)
    for p in flow.parameters():
        nn.init.normal_(p, 0.0, 0.1)
    return flow


@pytest.mark.slow
@pytest.mark.parametrize("word", DYNAMICS)
def test_every_dynamics_has_right_gradients_by_every_adjoint(word):
    flow = flow_of(DYNAMICS[word]((2,), context_dim=1, hidden=(8,)), context_dim=1)
    checks = check_gradients(flow, randn(6, 2).float(), randn(6, 1), solvers=SOLVERS, directions=2)
    refused = checks.pop(len(ADJOINTS) - 1)
    assert refused.failure.startswith("reversible: adjoint 'reversible' walks back by fixed one-step schemes")
    ways = [(s.method, a) for s in SOLVERS for a in ADJOINTS]
    assert [(c.solver.method, c.solver.adjoint) for c in checks] == [w for w in ways if w != ("dopri5", "reversible")]
    for check in checks:
        assert check.failure == ""
        through_fixed_steps = isinstance(check.solver, FixedSolver) and not check.solver.uses_adjoint_equation
        assert check.error < (1e-7 if through_fixed_steps else 1e-3)
        assert check.seconds > 0
    assert next(flow.parameters()).dtype is torch.float32  # as it was


def test_a_stochastic_trace_is_checked_with_its_own_noise():
    flow = flow_of(DYNAMICS["concat"]((2,), hidden=(8,)))
    for check in check_gradients(flow, randn(5, 2), trace=HutchinsonTrace(1), solvers=SOLVERS[1:]):
        assert check.error < 1e-3


def test_checkpoints_save_less_than_backprop():
    flow = flow_of(DYNAMICS["residual"]((2,), hidden=(16, 16)))
    saved = {c.solver.adjoint: c.saved_bytes for c in check_gradients(flow, randn(50, 2), solvers=SOLVERS[1:])}
    assert saved["checkpointed"] < saved["backprop"] / 10
    assert saved["adjoint"] < saved["backprop"] / 10
    assert saved["reversible"] < saved["backprop"] / 10


class Cut(nn.Module):
    """Dynamics that lose half of their gradient."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2))

    def forward(self, t, x, context=None):
        return torch.tanh(x @ self.weight) + (x @ self.weight).detach()


def test_what_a_checkpoint_keeps_is_counted():
    flow, rows, steps = flow_of(DYNAMICS["residual"]((2,), hidden=(8,))), 50, (10, 100)
    solvers = [FixedSolver("euler", steps=count) for count in steps]
    checks = check_gradients(flow, randn(rows, 2), solvers=solvers, directions=1)
    kept = {c.solver.steps: c.saved_bytes for c in checks if c.solver.adjoint == "checkpointed"}
    assert kept[100] - kept[10] >= 90 * rows * 3 * 8  # the state and the log-density of each step, in float64
    constant = {c.saved_bytes for c in checks if c.solver.adjoint == "reversible"}
    assert len(constant) == 1


def test_names_of_methods_do_not_run_into_those_of_adjoints():
    check = GradientCheck(FixedSolver("asynchronous_leapfrog", steps=100), error=1e-9)
    assert "asynchronous_leapfrog x 100 backprop " in gradient_table([check])


def test_a_wrong_gradient_is_found():
    checks = check_gradients(flow_of(Cut()), randn(8, 2), solvers=SOLVERS[1:])
    assert not any(check.good for check in checks)
    assert "no gradient is right to 0.01" in gradient_table(checks)


def test_the_table_names_the_adjoint_for_speed_and_for_memory():
    flow = flow_of(DYNAMICS["concat_squash"]((2,), hidden=(8,)))
    solvers = (FixedSolver("rk4", steps=4), PerRowSolver(1e-5, 1e-5))
    text = gradient_table(check_gradients(flow, randn(6, 2), solvers=solvers, directions=1))
    assert "rk4 x 4" in text
    assert "dopri5_by_row   adjoint: method 'dopri5_by_row' has no adjoint" in text
    assert "for speed, " in text.splitlines()[-1]
    assert "for memory" in text.splitlines()[-1]


def test_a_flow_with_nothing_to_differentiate_is_refused():
    with pytest.raises(ValueError, match="no parameters, so there are no gradients to check"):
        check_gradients(Flow([Standardize.of(randn(5, 2))]), randn(5, 2))
    with pytest.raises(ValueError, match=r"expected events of shape \(batch >= 1, 2\)"):
        check_gradients(flow_of(Cut()), randn(5, 3))


def test_outlier_scores_agree_with_their_definitions():
    x = randn(20, 2) * torch.tensor([1.0, 3.0]) + 5
    units = Standardize.of(x)
    flow, progress = Flow([CNF(linear(2, context_dim=1), (2,))], preprocess=[units], context_dim=1), []
    batch = Batch(torch.cat([x[:6], 40 * torch.ones(1, 2)]), randn(7, 1))
    fine = SolveOptions(solver=PerRowSolver(1e-9, 1e-9))
    scores = outlier_scores(
        flow, batch, reference=-3.0, options=fine, rows=3, on_progress=lambda *counts: progress.append(counts)
    )
    log_prob = flow.log_prob(batch.x, batch.context, solver=fine.solver)
    close(scores["likelihood"], -log_prob)
    close(scores["typicality"], (log_prob + 3.0).abs())
    slope = flow.score(batch.x, batch.context, solver=fine.solver) * units.scale
    close(scores["gradient"], slope.norm(dim=1), 1e-4)
    assert scores["gradient"].argmax() == scores["likelihood"].argmax() == 6
    assert progress == [(3, 7), (6, 7), (7, 7)]
    assert tuple(scores) == SCORES
    assert GRADIENT_SOLVER.adjoint == "checkpointed"


def test_an_outlier_score_by_probes_does_not_depend_on_the_other_rows():
    flow, options = Flow([CNF(linear(3), (3,))]), SolveOptions(PerRowTrace(2), PerRowSolver(1e-6, 1e-6))
    batch = Batch(randn(5, 3))
    whole, alone = (outlier_scores(flow, rows, reference=0.0, options=options) for rows in (batch, batch[2:3]))
    for name in SCORES:
        close(whole[name][2:3], alone[name], 1e-9)
