"""Any question of one model: densities of some columns given others, missing cells, and imputation."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call
from torch.distributions import Normal

from ffjord_kit import FFJORD, Flow, ResidualDynamics, datasets
from ffjord_kit.data import Batch
from ffjord_kit.estimator.tables.subsets import question_of, with_all_cells
from ffjord_kit.nn.masked import MaskedField, QuestionContext
from ffjord_kit.objectives import SteppedLikelihood
from ffjord_kit.objectives.subsets import ask, on_questions, random_masks
from ffjord_kit.ode import FixedSolver
from ffjord_kit.run import RunError
from ffjord_kit.training.discretize import in_steps
from ffjord_kit.transforms import CNF, Gaussianize, Logit, Softplus, Standardize
from ffjord_kit.transforms.subsets import Elementwise, QuestionScaling, SubsetScaling

QUICK = {"subsets": True, "schedule": [("flow_matching", 8)], "hidden": (8,), "random_state": 0}
COLUMNS = ["age", "city", "size"]
RNG = np.random.default_rng(0)
GIVEN = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0]])
MODELLED = torch.tensor([[0.0, 1, 0], [1, 0, 0], [1, 1, 1]])


def close(got, expected, atol=1e-8):
    return np.allclose(torch.as_tensor(got).detach(), torch.as_tensor(expected).detach(), rtol=1e-6, atol=atol)


def correlated(rows, seed=0):
    """Rows of three normal columns, each pair correlated by 0.5."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, 1)) + rng.normal(size=(rows, 3))) / np.sqrt(2)


def holed(x, share=0.3, seed=1):
    """Rows with cells missing at random, one of each row at least observed."""
    x, missing = x.copy(), np.random.default_rng(seed).random(x.shape) < share
    missing[missing.all(1), 0] = False
    x[missing] = np.nan
    return x


def lively(seed=0):
    """A field for questions of three columns that is not 0."""
    torch.manual_seed(seed)
    network = ResidualDynamics((3,), context_dim=6, hidden=(16, 16), fourier_features=1).double()
    torch.nn.init.normal_(network.output_layer.weight, std=0.3)
    return MaskedField(network)


def questions():
    values = GIVEN * torch.tensor([0.4, -0.3, 0.8])
    return QuestionContext(GIVEN, values, MODELLED).context.double()


@pytest.fixture(scope="module")
def fitted():
    frame = pd.DataFrame(holed(correlated(300)), columns=COLUMNS)
    return FFJORD(**QUICK).fit(frame)


# ---- the field and the scalings


def test_only_modelled_columns_move_and_the_trace_is_theirs():
    field, x, t = lively(), torch.randn(3, 3, dtype=torch.float64), torch.tensor(0.3).double()
    dx, trace = field.divergence(t, x, questions())
    assert not (dx * (1 - MODELLED)).any() and (dx[MODELLED > 0] != 0).all()
    jacobian = torch.stack([
        torch.autograd.functional.jacobian(lambda row, i=i: field(t, row[None], questions()[i : i + 1])[0], x[i])
        for i in range(3)
    ])  # fmt: skip
    assert close(trace, jacobian.diagonal(dim1=1, dim2=2).sum(1))
    assert close(field.jvp(t, x, torch.eye(3).double()[:, None], questions())[1].permute(1, 2, 0), jacobian)


def test_absent_columns_do_not_matter_and_given_ones_do():
    field, t = lively(), torch.tensor(0.3).double()
    x = torch.randn(1, 3, dtype=torch.float64)
    context = questions()[:1]  # the first column is given, the second modelled, the third absent
    assert close(field(t, x, context), field(t, x + torch.tensor([[5.0, 0, 5.0]]), context))
    other = context.clone()
    other[:, 3] += 1
    assert not close(field(t, x, context), field(t, x, other))


@pytest.mark.parametrize("scalings", [
    lambda x: [Standardize.of(x)],
    lambda x: [Softplus(torch.tensor([-9.0, -torch.inf, -torch.inf]).double()), Standardize.of(x)],
    lambda x: [Logit(*(sign * torch.tensor([9.0, 9.0, torch.inf]).double() for sign in (-1, 1)))],
    lambda x: [Gaussianize.of(x)],
])  # fmt: skip
def test_scalings_count_modelled_columns_alone(scalings):
    x = torch.from_numpy(correlated(500))
    scaling = Elementwise(scalings(x), 3)
    transform, context = SubsetScaling(scaling), questions()
    rows = torch.where(MODELLED > 0, x[:3], torch.nan)
    z, log_det = transform.to_base(rows, context)
    whole, _ = scaling.to_base(x[:3])
    assert close(z, whole * MODELLED)
    point = x[:3].clone().requires_grad_()
    slopes = torch.autograd.grad(scaling.to_base(point)[0].sum(), point)[0].log()
    noise = Normal(0.0, 1.0).log_prob(torch.zeros(3, 3).double())
    assert close(log_det, (MODELLED * slopes - (1 - MODELLED) * noise).sum(1))
    back, inverse = transform.to_data(z, context)
    assert close(back * MODELLED, x[:3] * MODELLED) and close(inverse, -log_det)
    scaled = QuestionContext.of_context(
        QuestionScaling(scaling).to_base(QuestionContext(GIVEN, x[:3] * GIVEN, MODELLED).context)[0]
    )
    assert close(scaled.values, whole * GIVEN)


def test_an_untrained_flow_has_the_marginals_of_its_base():
    x = torch.from_numpy(correlated(500))
    scale = Standardize.of(x)
    scaling = Elementwise([scale], 3)
    field = MaskedField(ResidualDynamics((3,), context_dim=6, hidden=(8,)))
    flow = Flow(
        [CNF(field, (3,))], preprocess=[SubsetScaling(scaling)], context_preprocess=QuestionScaling(scaling),
        context_dim=9,
    ).double()  # fmt: skip
    expected = (MODELLED * Normal(scale.mean, scale.scale).log_prob(x[:3])).sum(1)
    assert close(flow.log_prob(x[:3], questions()), expected)


def test_draws_with_their_densities_are_scored_alike():
    x = torch.from_numpy(correlated(500))
    scaling = Elementwise([Standardize.of(x)], 3)
    flow = Flow(
        [CNF(lively(), (3,), solver=FixedSolver("rk4", 32))], preprocess=[SubsetScaling(scaling)],
        context_preprocess=QuestionScaling(scaling), context_dim=9,
    ).double()  # fmt: skip
    context = questions()
    draws, log_prob = flow.sample_with_log_prob(3, context, generator=torch.Generator().manual_seed(0))
    assert close(flow.log_prob(draws, context), log_prob, atol=1e-4)
    steps = in_steps(flow, "midpoint", 4)
    z, log_det = steps.to_base(draws, context)
    assert not (z * (1 - MODELLED)).any() and close(steps.to_data(z, context)[0] * MODELLED, draws * MODELLED)
    assert close(flow.base.log_prob(z) + log_det, steps.log_prob(draws, context))


# ---- training


def test_questions_are_disjoint_observed_and_of_every_kind(generator):
    observed = torch.rand(4000, 4, generator=generator) < 0.7
    observed[~observed.any(1), 0] = True
    given, modelled = random_masks(observed, generator)
    assert not (given & modelled).any() and not ((given | modelled) & ~observed).any() and modelled.any(1).all()
    joint = (modelled == observed).all(1)
    marginal, mixed = ~given.any(1) & ~joint, given.any(1) & ((given | modelled) != observed).any(1)
    conditional = given.any(1) & ((given | modelled) == observed).all(1)
    assert all(mask.double().mean() > 0.03 for mask in (joint, marginal, mixed, conditional))
    assert 0.2 < joint.double().mean() < 0.8


def test_asked_rows_keep_their_values_where_they_belong(generator):
    x, ones = torch.randn(50, 3, generator=generator), torch.ones(50, 3)
    batch = ask(Batch(x, QuestionContext(0 * ones, 0 * ones, ones).context), generator)
    asked = QuestionContext.of_context(batch.context)
    assert close(batch.x, x * asked.modelled) and close(asked.values, x * asked.given)


def test_every_objective_asks_the_same_questions_of_the_same_noise():
    field = MaskedField(ResidualDynamics((3,), context_dim=6, hidden=(8,)))
    flow = in_steps(Flow([CNF(field, (3,))], context_dim=9), "euler", 2)
    ones = torch.ones(20, 3)
    batch = Batch(torch.randn(20, 3), QuestionContext(0 * ones, 0 * ones, ones).context)
    losses = [
        on_questions(SteppedLikelihood()).loss(flow, batch, torch.Generator().manual_seed(seed)).value.item()
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_missing_cells_stand_for_the_observed_values_of_their_column():
    x = holed(correlated(1000), share=0.5)
    filled = with_all_cells(x)
    assert np.array_equal(filled[~np.isnan(x)], x[~np.isnan(x)])
    assert np.isin(filled, x).all()
    assert np.allclose(
        np.nanquantile(x, [0.1, 0.5, 0.9], axis=0), np.quantile(filled, [0.1, 0.5, 0.9], axis=0), atol=0.05
    )


# ---- the estimator


def test_rows_with_missing_cells_have_the_density_of_the_observed_ones(fitted):
    row = np.array([[0.1, np.nan, -0.2]])
    assert close(fitted.score_samples(row), fitted.marginal(["age", "size"]).log_prob([[0.1, -0.2]]))
    mixed = np.array([[0.1, np.nan, -0.2], [0.1, 0.3, -0.2]])
    assert close(fitted.score_samples(mixed)[1:], fitted.score_samples(mixed[1:]), atol=1e-6)


def test_questions_take_frames_arrays_and_values_for_each_row(fitted):
    question = fitted.given(age=0.5)
    assert question.columns == ("city", "size")
    rows = pd.DataFrame({"size": [0.1, 0.2], "city": [1.0, 2.0]})
    array = rows[["city", "size"]].to_numpy()
    assert close(question.log_prob(rows), question.log_prob(array))
    each = fitted.given({"age": np.array([0.5, 0.7])})
    assert close(each.log_prob(array)[:1], question.log_prob(array[:1]), atol=1e-6)
    holes = array.copy()
    holes[:, 0] = np.nan
    assert close(question.log_prob(holes), question.marginal(["size"]).log_prob(holes[:, 1]))
    draws = question.sample(5, random_state=0)
    assert list(draws.columns) == ["city", "size"] and np.isfinite(draws.to_numpy()).all()
    assert draws.equals(question.sample(5, random_state=0))
    assert fitted.given(age=0.5).given(city=1.0).sample(3).shape == (3, 1)


def test_a_density_of_a_question_integrates_to_one(fitted):
    grid = np.linspace(-8, 8, 401)[:, None]
    for question in (
        fitted.given(age=0.5, city=1.0),
        fitted.marginal(["size"]),
        fitted.given(age=-1.0).marginal("size"),
    ):
        assert abs(np.trapezoid(np.exp(question.log_prob(grid)), grid[:, 0]) - 1) < 1e-3


@pytest.mark.slow
def test_few_exact_steps_answer_questions_too():
    schedule = [("flow_matching", 40), ("steps", 2)]
    model = FFJORD(**{**QUICK, "schedule": schedule}, density="steps").fit(holed(correlated(200)))
    assert model.model_.note.receipt.holds
    grid = np.linspace(-8, 8, 801)[:, None]
    for question in (model.given(x0=0.5, x2=1.0), model.marginal("x1")):
        assert abs(np.trapezoid(np.exp(question.log_prob(grid)), grid[:, 0]) - 1) < 1e-3
    assert np.isfinite(model.impute(holed(correlated(10)), draws=2, random_state=0)).all()


def test_observed_cells_of_an_imputation_are_as_they_came(fitted):
    x = holed(correlated(20, seed=3))
    filled = fitted.impute(x, draws=3, random_state=0)
    assert filled.shape == (3, 20, 3) and np.isfinite(filled).all()
    observed = ~np.isnan(x)
    assert all(np.array_equal(table[observed], x[observed]) for table in filled)
    assert not np.isclose(filled[0], filled[1])[~observed].any()
    assert np.array_equal(filled, fitted.impute(x, draws=3, random_state=0))
    whole = correlated(4)
    assert np.array_equal(fitted.impute(whole, draws=1)[0], whole)


def test_a_run_loads_resumes_and_answers(tmp_path, fitted):
    x = pd.DataFrame(holed(correlated(60)), columns=COLUMNS)
    model = FFJORD(**QUICK).fit(x, run=tmp_path / "run")
    loaded = FFJORD.load(tmp_path / "run")
    assert np.array_equal(loaded.score_samples(x), model.score_samples(x))
    assert close(loaded.given(age=1.0).log_prob([[0.0, 0.0]]), model.given(age=1.0).log_prob([[0.0, 0.0]]))
    FFJORD(**QUICK).fit(x, run=tmp_path / "run", resume=True)
    with pytest.raises(RunError, match="other data"):
        FFJORD(**QUICK).fit(x.fillna(0.0), run=tmp_path / "run", resume=True)


def test_bounded_and_whole_columns_keep_their_kind():
    x = np.column_stack([RNG.gamma(2, size=200), RNG.integers(0, 9, 200), RNG.normal(size=200)])
    fields = {**QUICK, "support": ["positive", "real", "real"], "dequantize": ["x1"]}
    model = FFJORD(**fields).fit(holed(x))
    assert not model.flow_.support.check(torch.tensor([-1.0, 1.0, 0.0])) and model.flow_.support.check(torch.ones(3))
    draws = model.impute(holed(x)[:20], draws=2, random_state=0)
    assert (draws[..., 0] > 0).all() and np.array_equal(draws[..., 1], np.rint(draws[..., 1]))
    assert model.given(x2=0.0).log_prob([[-1.0, 2.0]])[0] == -np.inf
    with pytest.raises(ValueError, match="'x0' is given a value outside its support, 0 to inf"):
        model.given(x0=-1.0)


def test_numbers_mark_missing_cells():
    x = holed(correlated(60))
    marks = np.where(np.isnan(x), -999.0, x)
    model = FFJORD(**QUICK, missing=(-999,)).fit(marks)
    assert np.array_equal(model.score_samples(marks), FFJORD(**QUICK).fit(x).score_samples(x))
    assert not (model.impute(marks, draws=1) == -999).any()
    with pytest.raises(ValueError, match="marks cells that subsets=False refuses"):
        FFJORD(**{**QUICK, "subsets": False}, missing=(-999,)).fit(x)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_words_mark_missing_cells_of_a_frame(library):
    frame = pytest.importorskip(library).DataFrame
    city = RNG.choice(["Oslo", "Rome"], 60).astype(object)
    age = np.round(RNG.normal(40, 9, 60), 1)
    age[::5], city[1::5] = np.nan, None
    marked = {"city": ["?" if c is None else c for c in city], "age": ["-" if a != a else str(a) for a in age]}
    if library == "pandas":  # which holds texts and numbers in one column
        marked["age"] = ["-" if a != a else a for a in age.tolist()]
    else:
        marked["age"] = age
    empty = {"city": city, "age": age}
    model = FFJORD(**QUICK, missing=("?", "-")).fit(frame(marked))
    plain = FFJORD(**QUICK).fit(frame(empty))
    assert model.model_.domain.found == "city: category of 2 levels"
    assert np.array_equal(model.score_samples(frame(marked)), plain.score_samples(frame(empty)))
    assert set(model.impute(frame(marked), draws=1)[0]["city"]) == {"Oslo", "Rome"}


@pytest.mark.parametrize("fields, word", [
    ({"scaling": "whiten"}, "scaling='auto' or 'standardize'"), ({"base": "student"}, "base='auto' or 'normal'"),
    ({"coupling": "minibatch"}, "coupling='auto' or 'independent'"), ({"dynamics": "potential"}, "dynamics="),
])  # fmt: skip
def test_fields_that_mix_columns_are_refused(fields, word):
    with pytest.raises(ValueError, match=f"subsets=True takes {word}"):
        FFJORD(**QUICK, **fields).fit(correlated(50))


def test_what_cannot_be_used_is_one_line(fitted):
    x = correlated(50)
    empty = x.copy()
    empty[3] = np.nan
    for rows, options, message in (
        (empty, {}, r"1 of 50 rows have no value \(first: row 3\)"),
        (np.where([True, False, False], np.nan, x), {}, "column 'x0' has no value"),
        (np.where(x == x[0, 0], np.inf, x), {}, "NaN or infinity"),
        (x, {"context": x[:, :1]}, "takes no context"),
    ):
        with pytest.raises(ValueError, match=message):
            FFJORD(**QUICK).fit(rows, **options)
    plain = FFJORD(**{**QUICK, "subsets": False})
    with pytest.raises(ValueError, match=r"row 3, column 'x0'\).*subsets=True \(--subsets\)"):
        plain.fit(empty)
    with pytest.raises(ValueError, match="fit with subsets=True"):
        plain.fit(x).given(x0=1.0)
    with pytest.raises(ValueError, match="no column 'colour' to ask for; there are age, city, size"):
        fitted.given(colour=1.0)
    with pytest.raises(ValueError, match="all columns are given"):
        fitted.given(age=1.0, city=1.0, size=1.0)
    with pytest.raises(ValueError, match="'age' is given 2 values for 3 rows"):
        fitted.given(age=[1.0, 2.0]).sample(3)
    with pytest.raises(ValueError, match="reflow takes a model of one question"):
        fitted.reflow()
    with pytest.raises(ValueError, match="diagnose takes rows without missing cells"):
        fitted.diagnose(holed(x))


@pytest.mark.slow
def test_a_trained_flow_knows_the_conditionals_and_imputes_by_them():
    """Normal columns with correlations of 0.5: mean and variance of one, given the others, are known."""
    fields = {"subsets": True, "schedule": [("flow_matching", 1500)], "hidden": (64, 64), "random_state": 0}
    model = FFJORD(**fields).fit(holed(correlated(8000)))
    x = correlated(2000, seed=5)
    conditional = Normal(torch.from_numpy(x[:, :2].sum(1) / 3), np.sqrt(2 / 3))
    found = model.given(x0=x[:, 0], x1=x[:, 1]).log_prob(x[:, 2:])
    assert abs((conditional.log_prob(torch.from_numpy(x[:, 2])).numpy() - found).mean()) < 0.05
    hidden = x[:200].copy()
    hidden[:, 2] = np.nan
    draws = model.impute(hidden, draws=50, random_state=0)[..., 2]
    errors = (draws.mean(0) - x[:200, :2].sum(1) / 3) / np.sqrt(2 / 3)
    assert np.sqrt((errors**2).mean()) < 0.25 and abs(errors.mean()) < 0.1  # by chance 0.14 and 0.01
    assert abs(draws.std(0).mean() / np.sqrt(2 / 3) - 1) < 0.1
    by_parts = model.marginal("x0").log_prob(x[:, :1]) + model.given(x0=x[:, 0]).log_prob(x[:, 1:])
    assert abs((by_parts - model.score_samples(x)).mean()) < 0.05


# ---- files and commands

TINY = ["--schedule", "flow_matching:8", "--hidden", "8", "--seed", "0", "--no-verbose"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A file of three columns with empty cells, marks and an empty row."""
    path = tmp_path_factory.mktemp("questions") / "table.csv"
    with path.open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow(COLUMNS)
        for number, row in enumerate(holed(correlated(60))):
            mark = ["", "NA", "-999", "unknown"][number % 4]
            write.writerow([mark if np.isnan(cell) else repr(float(cell)) for cell in row])
        write.writerow(["", "", ""])
    return path


def test_marks_and_empty_cells_of_a_file_are_missing(table):
    read = datasets.load(table, missing=(-999.0, "unknown"))
    x = holed(correlated(60))
    assert np.array_equal(read.x[:60], x, equal_nan=True) and "missing cells" in read.found
    with pytest.raises(ValueError, match="text in 'age'"):
        datasets.load(table)
    with pytest.raises(ValueError, match="text in"):
        datasets.load(table, missing=())
    pd.DataFrame(x, columns=COLUMNS).to_csv(table.parent / "plain.csv", index=False)
    with pytest.raises(ValueError, match="missing values in .*--subsets"):
        datasets.load(table.parent / "plain.csv")


def test_commands_answer_questions(capsys, tmp_path, table):
    run = tmp_path / "run"

    def command(*argv):
        code, out, err = call(capsys, *argv)
        assert code == 0, err
        return out, err

    _, err = command("fit", table, "--subsets", "--missing", "-999,unknown", "--out", run, *TINY)
    assert "1 of 61 rows left out, which have no value" in err
    assert json.loads((run / "config.json").read_text())["estimator"]["missing"] == [-999.0, "unknown"]
    assert "observed        72.2% of the cells; each row's density" in command("score", run, table)[0]
    command("sample", run, "--given", "age=0.5,size=1", "-n", 5, "--out", tmp_path / "draws.csv")
    assert datasets.load(tmp_path / "draws.csv").columns == ("city",)
    out, _ = command("impute", run, table, "--draws", 2, "--out", tmp_path / "filled.csv")
    assert "of 61 rows, filled 2 times" in out
    filled = datasets.load(tmp_path / "filled.csv")
    assert filled.columns == ("draw", "row", *COLUMNS) and len(filled.x) == 122
    command("impute", run, table, "--draws", 1, "--out", tmp_path / "one.npy")
    x = holed(correlated(60))
    one = np.load(tmp_path / "one.npy")
    assert one.shape == (61, 3) and np.array_equal(one[:60][~np.isnan(x)], x[~np.isnan(x)])
    assert "subsets" in command("info", run)[0]
    code, _, err = call(capsys, "sample", run, "--given", "age", "--out", tmp_path / "no.csv")
    assert code == 1 and "--given must read like age=40,city=Oslo" in err


@pytest.mark.slow
def test_commands_that_take_whole_rows_leave_the_others_out(capsys, tmp_path, table):
    run = tmp_path / "run"
    call(capsys, "fit", table, "--subsets", "--missing=-999,unknown", "--out", run, *TINY)
    code, out, err = call(capsys, "doctor", run, table)
    assert code == 0 and "rows left out, which have missing cells" in out, err
    code, out, err = call(capsys, "plot", run, "--data", table, "--out", tmp_path / "pictures")
    assert code == 0 and "rows left out" in out, err
    for verb in ("look", "explain"):
        code, out, err = call(capsys, verb, run, *([table] if verb == "explain" else ["--out", tmp_path / verb]))
        assert code == 0 and "rows left out" in out, err
    for verb in ("reflow", "condense"):
        code, _, err = call(capsys, verb, run, "--out", tmp_path / verb)
        assert code == 1 and f"{verb} takes a model of one question" in err


def test_contexts_of_questions_have_their_layout():
    context = question_of(np.array([[True, False]]), np.array([[False, True]]), np.array([[0.0, 2.0]]))
    assert context.tolist() == [[0, 1, 0, 2, 1, 0]]
