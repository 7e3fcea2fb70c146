"""A row of weight w counts as w rows: in every loss, validation, scaling, and in the density that is fitted."""

import json
import warnings

import numpy as np
import pytest
import torch
from commands import call
from oracles import F64, LearntAffine, randn
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from ffjord_kit import CNF, FFJORD, FixedSolver, Flow, ImageFFJORD, MaximumLikelihood, ResidualDynamics
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.columns import DegenerateDataWarning
from ffjord_kit.diagnostics.sample_weight import split_weights
from ffjord_kit.distributions import BASES
from ffjord_kit.objectives import FlowMatching, SteppedLikelihood, TransformsLikelihood, stepped
from ffjord_kit.trace import ExactTrace
from ffjord_kit.training import Phase, TensorData, TrainConfig, Workers, fit_flow
from ffjord_kit.training.discretize import in_steps, rank_steps
from ffjord_kit.training.validation import LikelihoodValidation
from ffjord_kit.transforms import SCALINGS, ConditionalAffine
from ffjord_kit.transforms.cnf import SolveOptions
from ffjord_kit.weights import effective_number, mean_and_error, resampled

QUICK = {"schedule": [("flow_matching", 30)], "hidden": (8,), "random_state": 0}
COPIES = torch.tensor([2, 1, 0, 3, 1, 1])
WEIGHT = COPIES.double() / COPIES.double().mean()
ROWS = randn(6, 3)
REPEATED = ROWS.repeat_interleave(COPIES, 0)


def flow(columns=3, above=()):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = ResidualDynamics((columns,), hidden=(8,))
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=0.4, generator=torch.Generator().manual_seed(1))
    return Flow([*above, CNF(field, (columns,), solver=FixedSolver("rk4", 4))]).double()


def table(n=400, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2)) * [1.0, 2.0]
    return x, np.exp(x[:, 0])


# ---- arithmetic


def test_the_effective_number_and_the_mean_with_its_error_are_those_of_their_formulas():
    values, weight = randn(200), randn(200, seed=1) + 2
    mean, error = mean_and_error(values, weight)
    assert effective_number(weight) == pytest.approx(float(weight.sum() ** 2 / (weight**2).sum()))
    assert mean == pytest.approx(float((weight * values).sum() / weight.sum()))
    equal, plain = mean_and_error(values, torch.full((200,), 7.0)), mean_and_error(values)
    assert equal == pytest.approx((plain[0], plain[1] * (199 / 200) ** 0.5))
    draws = torch.stack([randn(200, seed=s) for s in range(10, 110)])
    means = torch.stack([(weight * each).sum() / weight.sum() for each in draws])
    assert error == pytest.approx(float(means.std()), rel=0.3)


def test_a_batch_takes_its_weights_along():
    batch = Batch(ROWS, ROWS[:, :1], WEIGHT)
    assert batch[1:3].weight.tolist() == WEIGHT[1:3].tolist()
    assert batch.repeat(2).weight.tolist() == [*WEIGHT.tolist()] * 2
    assert batch.to(torch.zeros((), dtype=torch.float32)).weight.dtype is torch.float32
    assert batch.with_x(2 * ROWS).weight is WEIGHT
    assert batch.joined(batch).weight.shape == (12,)
    assert float(batch.mean(ROWS[:, 0])) == pytest.approx(float(REPEATED[:, 0].mean()))
    assert Batch(ROWS).mean(ROWS[:, 0]) == ROWS[:, 0].mean()


def test_rows_are_drawn_in_proportion_to_their_weights():
    x, weight = torch.arange(1000.0, dtype=F64), 0.5 + torch.rand(1000, generator=torch.Generator().manual_seed(0))
    drawn = resampled(x, weight)
    assert len(drawn) == round(effective_number(weight))
    expected = len(drawn) * weight / weight.sum()
    counts = torch.bincount(drawn.long(), minlength=1000)
    assert ((counts - expected).abs() < 1).all()
    assert torch.equal(resampled(x, torch.full((1000,), 3.0)), x)


# ---- integer weights are repeated rows


def test_flow_matching_weighs_rows():
    blank = Flow([CNF(ResidualDynamics((3,)), (3,))]).double()  # a zero field, whose error does not depend on the time
    start, generator = randn(6, 3, seed=2), torch.Generator().manual_seed(0)
    cnfs, objective = list(blank.transforms), FlowMatching()
    weighted = objective.match(cnfs, start, Batch(ROWS, None, WEIGHT), generator).value
    repeated = objective.match(cnfs, start.repeat_interleave(COPIES, 0), Batch(REPEATED), generator).value
    assert weighted.item() == pytest.approx(repeated.item(), rel=1e-12)


def test_maximum_likelihood_and_its_costs_weigh_rows(generator):
    objective = MaximumLikelihood(ExactTrace(), {"kinetic": 0.1})
    assert_same_loss(objective, flow(), generator)


def test_the_likelihood_of_exact_transforms_weighs_rows(generator):
    assert_same_loss(TransformsLikelihood(), flow(above=[LearntAffine(3)]), generator)


@pytest.mark.parametrize("columns", [3, 5], ids=["frames", "two tangents"])
def test_the_likelihood_of_steps_and_their_penalty_weigh_rows(columns, generator, monkeypatch):
    monkeypatch.setattr(stepped, "with_neighbours", lambda batch, *_: batch)  # which are random
    x = randn(6, columns)
    steps = in_steps(flow(columns), "euler", 4)
    objective = SteppedLikelihood(margin=2.0)
    losses = [
        objective.loss(steps, batch, generator)
        for batch in (Batch(x, None, WEIGHT), Batch(x.repeat_interleave(COPIES, 0)))
    ]
    assert losses[0].terms["monotonicity"].item() > 0
    for name in ("nll", "monotonicity"):
        assert losses[0].terms[name].item() == pytest.approx(losses[1].terms[name].item(), rel=1e-12)
    if columns == 3:
        assert_same_gradient(steps, losses)


def test_the_penalty_on_steps_never_rewards_a_fold(generator):
    steps, signed = in_steps(flow(), "euler", 4), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0], dtype=F64)
    loss = SteppedLikelihood(margin=2.0).loss(steps, Batch(ROWS, None, signed), generator)
    assert loss.terms["monotonicity"].item() > 0


def assert_same_loss(objective, model, generator):
    losses = [objective.loss(model, batch, generator) for batch in (Batch(ROWS, None, WEIGHT), Batch(REPEATED))]
    for name, term in losses[0].terms.items():
        assert term.item() == pytest.approx(losses[1].terms[name].item(), rel=1e-12)
    assert_same_gradient(model, losses)


def assert_same_gradient(model, losses):
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(loss.value, parameters, allow_unused=True) for loss in losses]
    for ours, theirs in zip(*gradients, strict=True):
        assert ours is theirs is None or torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_parts_of_a_batch_sum_to_the_loss_of_the_batch(generator):
    batch, objective = Batch(ROWS, None, WEIGHT), MaximumLikelihood(ExactTrace())
    parts = [objective.loss(flow(), part, generator).value for part in batch.split(2)]
    assert sum(parts).item() / 3 == pytest.approx(objective.loss(flow(), batch, generator).value.item(), rel=1e-12)


def test_validation_weighs_rows():
    model, options = flow(), SolveOptions(solver=FixedSolver("rk4", 4))
    shift = randn(6, seed=5)
    weighted, repeated = (
        LikelihoodValidation(model, data, options)(Workers(), 1)
        for data in (
            TensorData(Batch(ROWS, None, 3 * WEIGHT), shift),
            TensorData(Batch(REPEATED), shift.repeat_interleave(COPIES)),
        )
    )
    assert weighted.mean == pytest.approx(repeated.mean, rel=1e-9)
    assert weighted.standard_error > 0


def test_the_choice_of_steps_weighs_rows(monkeypatch):
    monkeypatch.setattr(stepped, "with_neighbours", lambda batch, *_: batch)
    ranked = [rank_steps(flow(), batch, 4, ("euler",)) for batch in (Batch(ROWS, None, 5 * WEIGHT), Batch(REPEATED))]
    for ours, theirs in zip(*ranked, strict=True):
        assert ours.steps == theirs.steps
        assert ours[1:] == pytest.approx(theirs[1:], rel=1e-6)


@pytest.mark.parametrize("word", ["standardize", "whiten", "half_whiten"])
def test_affine_scalings_weigh_rows(word):
    x, copies = randn(50, 3), torch.arange(50) % 4
    make = SCALINGS[word][0]
    ours, theirs = make(x, copies.double()), make(x.repeat_interleave(copies, 0))
    for name, value in ours.state_dict().items():
        if word == "half_whiten" and name == "matrix":
            value, other = value @ value.T, theirs.matrix @ theirs.matrix.T  # axes have no sign
            assert torch.allclose(value, other, rtol=1e-8)
        else:
            assert torch.allclose(value, theirs.state_dict()[name], rtol=1e-8)


@pytest.mark.parametrize("word", ["robust", "gaussianize"])
def test_scalings_by_quantiles_are_fitted_to_rows_drawn_by_weight(word):
    x = randn(8000, 1)
    weight = (x[:, 0] - 0.5).exp()  # of N(0, 1) they make N(1, 1)
    z, _ = SCALINGS[word][0](x, weight).to_base(x + 1)
    assert float(z.mean()) == pytest.approx(0, abs=0.1)
    assert float(z.std()) == pytest.approx(1, abs=0.1)


def test_the_mixture_and_the_location_that_follows_the_context_go_by_weights():
    x = randn(400, 1)
    weight = torch.where(x[:, 0] > 0, 1.0, 0.0).double()
    mixture = BASES["mixture"][0](x, weight)
    assert float((mixture.weights @ mixture.means).squeeze()) == pytest.approx(float(x[x > 0].mean()), abs=0.05)
    context = randn(400, 1, seed=1)
    rows = torch.where(weight[:, None] > 0, 3 * context, -3 * context) + 0.1 * x
    location = ConditionalAffine.of(rows, context, weight).to_base(rows, context)[0]
    assert float(location[weight > 0].std()) < 2 < float(location[weight == 0].std())


# ---- fits


def test_equal_weights_change_nothing_but_rounding():
    x, _ = table()
    plain, weighted = (FFJORD(**QUICK).fit(x, sample_weight=w) for w in (None, np.full(len(x), 3)))
    assert weighted.score_samples(x[:20]) == pytest.approx(plain.score_samples(x[:20]), abs=1e-3)
    assert "effective_rows" not in plain.config_
    assert weighted.config_["effective_rows"] == pytest.approx(len(x))


def test_a_fit_remembers_its_effective_number_and_scores_by_weight(tmp_path):
    x, w = table()
    model = FFJORD(**QUICK).fit(x, sample_weight=w, run=tmp_path / "run")
    assert model.config_["effective_rows"] == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert FFJORD.load(tmp_path / "run").config_["effective_rows"] == model.config_["effective_rows"]
    log_prob = model.score_samples(x)
    assert model.score(x, sample_weight=w) == pytest.approx(np.average(log_prob, weights=w))
    assert model.score(x) == pytest.approx(log_prob.mean())


def test_weights_go_through_a_pipeline():
    x, w = table()
    direct = FFJORD(**QUICK).fit(StandardScaler().fit_transform(x), sample_weight=w)
    pipeline = Pipeline([("scale", StandardScaler()), ("ffjord", FFJORD(**QUICK))]).fit(x, ffjord__sample_weight=w)
    assert pipeline.score_samples(x[:5]) == pytest.approx(direct.score_samples(StandardScaler().fit_transform(x)[:5]))


@pytest.mark.parametrize("kind", [list, torch.tensor, lambda w: w[:, None]], ids=["list", "tensor", "column"])
def test_weights_come_in_any_form(kind):
    x, w = table()
    same = FFJORD(**QUICK).fit(x, sample_weight=kind(w)).score_samples(x[:5])
    assert same == pytest.approx(FFJORD(**QUICK).fit(x, sample_weight=w).score_samples(x[:5]))


def test_the_number_of_rows_goes_by_the_weights():
    x, _ = table(1500)
    w = np.where(np.arange(1500) < 300, 1.0, 1e-9)
    model = FFJORD(max_seconds=0.5, random_state=0, hidden=(8,), scaling="standardize", base="normal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        events = [record.get("event", "") for record in model.fit(x, sample_weight=w).history_.records]
    assert any("folds" in event for event in events)  # as of a small table


@pytest.mark.slow
def test_a_mapped_table_takes_weights(tmp_path):
    x, w = table(1000)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    options = {**QUICK, "schedule": [("flow_matching", 60)], "learning_rate": 0.05, "batch_size": 128}
    streamed, plain = (FFJORD(**options).fit(mapped, sample_weight=each) for each in (w, None))
    assert streamed.score(x, sample_weight=w) > plain.score(x, sample_weight=w) + 0.1


def test_a_weighted_run_resumes_with_its_own_weights(tmp_path):
    x, w = table()
    whole = FFJORD(**QUICK).fit(x, sample_weight=w)

    def stop(record):
        if record["step"] == 12:
            import signal

            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        FFJORD(**QUICK).fit(x, sample_weight=w, run=tmp_path / "run", on_step=stop)
    with pytest.raises(ValueError, match="other data"):
        FFJORD(**QUICK).fit(x, sample_weight=w[::-1], run=tmp_path / "run", resume=True)
    resumed = FFJORD(**QUICK).fit(x, sample_weight=w, run=tmp_path / "run", resume=True)
    assert np.array_equal(resumed.score_samples(x), whole.score_samples(x))


def test_micro_batches_make_the_same_weighted_fit():
    x, weight = ROWS.repeat(4, 1), WEIGHT.repeat(4)
    results = []
    for count in (1, 2):
        model = flow()
        fit_flow(
            model, x, weight=weight, schedule=[Phase(MaximumLikelihood(ExactTrace()), 3, 0.01)],
            config=TrainConfig(batch_size=24, seed=0, micro_batches=count),
        )  # fmt: skip
        results.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.allclose(*results, atol=1e-8)


def test_models_made_from_a_weighted_one_need_its_weights():
    x, w = table()
    model = FFJORD(**QUICK).fit(x, sample_weight=w)
    with pytest.raises(ValueError, match="fitted with weights"):
        model.discretize(x)
    with pytest.raises(ValueError, match="must be the rows of the fit"):
        model.discretize(x, sample_weight=w[::-1])
    assert model.discretize(x, sample_weight=w, max_seconds=0.2).model_.steps is not None


# ---- what is refused, and warned of


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(399), r"sample_weight must have shape \(400,\), a weight for each row; got \(399,\)"),
        (np.ones((400, 2)), r"must have shape \(400,\)"),
        (np.where(np.arange(400) == 7, np.nan, 1.0), "NaN or infinity .first in row 7"),
        (np.where(np.arange(400) == 7, np.inf, 1.0), "NaN or infinity .first in row 7"),
        (np.zeros(400), "zero in every row"),
        (np.full(400, -1.0), "sum to more than 0; got a sum of -400"),
        (["heavy"] * 400, "must be numbers; got .'heavy'."),
        (np.array(["heavy"] * 400, object), "must be numbers; got .'heavy'."),
    ],
)
def test_weights_that_make_no_sense_are_refused_in_one_line(weight, message):
    with pytest.raises(ValueError, match=message) as error:
        FFJORD(**QUICK).fit(table()[0], sample_weight=weight)
    assert "\n" not in str(error.value)


def test_what_weights_do_not_suit_is_refused():
    x, w = table()
    with pytest.raises(ValueError, match="coupling"):
        FFJORD(coupling="optimal_transport", **QUICK).fit(x, sample_weight=w)
    with pytest.raises(ValueError, match="watch"):
        FFJORD(watch="spectrum", **QUICK).fit(x, sample_weight=w)
    with pytest.raises(ValueError, match="sample_weight is for tables"):
        ImageFFJORD(**QUICK).fit(np.zeros((4, 4, 4), np.uint8), sample_weight=np.ones(4))


def test_held_out_rows_whose_weights_cancel_are_refused():
    weight = np.array([1.0, 1.0, -0.5, 0.4])
    with pytest.raises(ValueError, match="held out for validation sum to -0.1"):
        split_weights(weight, np.array([0, 1]), np.array([2, 3]))


def test_negative_weights_are_warned_of():
    x, _ = table()
    w = np.where(np.arange(400) % 4 == 0, -0.5, 1.0)
    with pytest.warns(DegenerateDataWarning, match="100 of 400 rows have negative weights: .* count as 192.3"):
        FFJORD(**QUICK).check(x, sample_weight=w)


# ---- the command line


@pytest.fixture
def run(tmp_path, capsys):
    """A run on a file with a column of weights."""
    x, w = table()
    path = tmp_path / "t.csv"
    np.savetxt(path, np.column_stack([x[:, 0], w, x[:, 1]]), delimiter=",", header="a,w,b", comments="")
    code, out, _ = call(
        capsys, "fit", path, "--out", tmp_path / "run", "--weight", "w", "--schedule", "flow_matching:20",
        "--hidden", "8", "--seed", "0", "--no-verbose",
    )  # fmt: skip
    assert code == 0
    assert "column w; by their weights 400 rows count as" in out
    return tmp_path / "run", path


def test_the_column_of_weights_leaves_the_table(run, capsys, tmp_path):
    path, source = run
    config = json.loads((path / "config.json").read_text())
    assert (config["columns"], config["data"]["weight"]) == (["a", "b"], "w")
    assert "by their weights 400 rows count as" in call(capsys, "info", path)[1]
    code, out, _ = call(capsys, "score", path, source, "--out", tmp_path / "s.csv")
    log_prob = np.loadtxt(tmp_path / "s.csv", skiprows=1)
    shown = next(line for line in out.splitlines() if line.strip().startswith("by weight"))
    assert (code, float(shown.split()[2])) == (0, pytest.approx(np.average(log_prob, weights=table()[1]), abs=1e-4))
    code, out, _ = call(capsys, "sample", path, "-n", "3", "--out", tmp_path / "new.csv")
    assert (tmp_path / "new.csv").read_text().splitlines()[0] == "a,b"
    assert call(capsys, "fit", "--resume", path, "--no-verbose")[0] == 0


def test_a_file_without_weights_is_scored_too(run, capsys, tmp_path):
    np.savetxt(tmp_path / "plain.csv", table()[0], delimiter=",", header="a,b", comments="")
    code, out, _ = call(capsys, "score", run[0], tmp_path / "plain.csv")
    assert code == 0
    assert "by weight" not in out


@pytest.mark.slow
def test_doctor_and_plot_take_rows_drawn_by_weight(run, capsys, tmp_path):
    path, source = run
    assert "rows stand for all, drawn by their weights" in call(capsys, "plot", path, "--out", tmp_path / "p")[2]
    assert call(capsys, "doctor", path, source, "--rows", "50")[0] == 0


def test_doctor_refuses_negative_weights(run, capsys, tmp_path):
    path, source = run
    signed = np.loadtxt(source, delimiter=",", skiprows=1)
    signed[::4, 1] *= -0.1
    np.savetxt(tmp_path / "signed.csv", signed, delimiter=",", header="a,w,b", comments="")
    code, _, err = call(capsys, "doctor", path, tmp_path / "signed.csv")
    assert (code, err.count("\n")) == (1, 1)
    assert "rows of negative weight are none" in err


# ---- statistics


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ffjord_kit.diagnostics.columns.DegenerateDataWarning")  # rows drawn twice
def test_a_weighted_fit_is_that_of_rows_drawn_by_their_weights():
    options = {"schedule": [("flow_matching", 200)], "hidden": (32,), "random_state": 0}
    rng = np.random.default_rng(0)
    test = rng.normal(size=(1000, 2)) + [1.0, 0.0]

    def score(seed, by_weight):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(3000, 2))
        w = np.exp(x[:, 0] - 0.5)  # N(0, 1) becomes N(1, 1) in the first column
        if by_weight:
            return FFJORD(**options).fit(x, sample_weight=w).score(test)
        return FFJORD(**options).fit(x[rng.choice(3000, 1100, p=w / w.sum())]).score(test)

    weighted, drawn = (np.array([score(seed, way) for seed in range(3)]) for way in (True, False))
    error = np.hypot(weighted.std(ddof=1), drawn.std(ddof=1)) / 3**0.5
    truth = -0.5 * ((test - [1.0, 0.0]) ** 2).sum(1).mean() - np.log(2 * np.pi)
    assert weighted.mean() > drawn.mean() - 3 * error
    assert weighted.mean() == pytest.approx(truth, abs=0.05)
    assert FFJORD(**options).fit(np.random.default_rng(0).normal(size=(4000, 2))).score(test) < truth - 0.3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ffjord_kit.diagnostics.columns.DegenerateDataWarning")
def test_signed_weights_recover_a_difference_of_densities():
    """A broad normal distribution less a fifth of a narrow one, whose density is nearly 0 in the middle."""
    share, n, rng = 0.2, 6000, np.random.default_rng(0)
    grid = np.linspace(-12, 12, 2001)

    def normal(s):
        return np.exp(-0.5 * (grid / s) ** 2) / (s * np.sqrt(2 * np.pi))

    truth = (normal(2.0) - share * normal(0.5)) / (1 - share)

    def kl(log_prob):
        there = truth > 1e-12
        return float((truth * (np.log(truth.clip(1e-300)) - log_prob))[there].sum() * (grid[1] - grid[0]))

    x = np.concatenate([rng.normal(0, 2.0, n), rng.normal(0, 0.5, n)])[:, None]
    w = np.repeat([1.0, -share], n)
    model = FFJORD(schedule=[("flow_matching", 400)], hidden=(32, 32), ema_decay=0.99, random_state=0)
    found = kl(model.fit(x, sample_weight=w).score_samples(grid[:, None]))
    assert found < kl(np.log(normal(2.0))) / 4  # without the negative rows


def test_weights_that_cancel_in_a_part_of_the_rows_are_refused():
    x, _ = table(60)
    w = np.tile([1.0, -0.95], 30)
    with (
        pytest.warns(DegenerateDataWarning),
        pytest.raises(ValueError, match="sum to 0 or less|must sum to more than 0"),
    ):
        FFJORD(max_seconds=1, random_state=1, hidden=(8,)).fit(x, sample_weight=w)
