"""Conditional densities follow their contexts, whatever the scale, order, shape and reach of these."""

import copy
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call
from oracles import close

from ffjord_kit import FFJORD, ImageFFJORD, ResidualDynamics
from ffjord_kit.diagnostics.columns import DegenerateDataWarning, check_columns, check_contexts
from ffjord_kit.flow import Flow
from ffjord_kit.nn import ConcatSquashDynamics
from ffjord_kit.ode import FixedSolver, SolveError
from ffjord_kit.transforms import CNF, ConditionalAffine, ContextScaling, Standardize

LEARNT = {"schedule": [("flow_matching", 300)], "hidden": (32, 32), "batch_size": 256, "random_state": 0}
NOISE, ROWS = 0.3, 1000
RNG = np.random.default_rng(0)
EVEN = RNG.uniform(-1, 1, size=(ROWS, 1))
EXPONENT = RNG.uniform(-3, 3, size=(ROWS, 1))
SIGNS = np.sign(RNG.normal(size=(ROWS, 1)))
YEARS = RNG.integers(1990, 2020, size=(ROWS, 1)).astype(float)
UNEVEN = {  # contexts, and what the rows follow
    "a stray value": (np.r_[[[1e6]], EVEN[1:]], 2 * EVEN),
    "a sentinel": (np.r_[[[-9999.0]], YEARS[1:]], (YEARS - 2005) / 10),
    "decades": (10**EXPONENT, EXPONENT),
    "decades of both signs": (SIGNS * 10**EXPONENT, EXPONENT),
}
ORDINARY = {
    "uniform": EVEN, "normal": RNG.normal(size=(ROWS, 1)), "exponential": RNG.exponential(size=(ROWS, 1)),
    "rare": (RNG.random((ROWS, 1)) < 0.01) * 1.0, "count": RNG.poisson(0.7, (ROWS, 1)) * 1.0, "years": YEARS,
    "far from zero": 1.7e9 + 1e5 * EVEN, "constant": np.ones((ROWS, 1)),
}  # fmt: skip


def rows_about(mean, seed=1):
    return mean + NOISE * np.random.default_rng(seed).normal(size=mean.shape)


def divergence(model, mean, context):
    """Mean over contexts of the Kullback-Leibler divergence, estimated by new rows, nats."""
    y = rows_about(mean, seed=2)
    truth = -0.5 * ((y - mean) / NOISE) ** 2 - np.log(NOISE * np.sqrt(2 * np.pi))
    return float((truth[:, 0] - model.score_samples(y, context=context)).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", UNEVEN)
def test_rows_follow_a_context_of_uneven_scale_and_its_column_is_told(name):
    context, mean = UNEVEN[name]
    with pytest.warns(DegenerateDataWarning, match="context column 'c0' goes over orders of magnitude"):
        model = FFJORD(**LEARNT).fit(rows_about(mean), context=context)
    assert divergence(model, mean[1:], context[1:]) < 0.1


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_context_is_standardised_in_silence(name):
    context = ORDINARY[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_contexts(context, ["age"])
    scaling, c = ContextScaling.of(torch.from_numpy(context)), torch.from_numpy(context)
    expected = torch.zeros_like(c) if scaling.constant else (c - c.mean()) / c.std(correction=0)
    inside = expected.abs() <= scaling.edge
    assert torch.allclose(scaling(c)[inside], expected[inside])


def test_a_context_whose_squares_overflow_is_refused_by_name():
    with pytest.raises(ValueError, match=r"context column 'dose' goes from -1e\+200 to .* change its unit"):
        check_contexts(1e200 * np.array([[-1.0], [1.0]]), ["dose"])


def test_contexts_are_held_near_those_of_the_fit_and_keep_their_order():
    scaling = ContextScaling.of(torch.from_numpy(EVEN))
    far = torch.tensor([[-1e300], [-1e8], [-1.0], [0.5], [1.0], [3.0], [1e8], [1e300]], dtype=torch.float64)
    held = scaling(far)
    assert bool((held.diff(dim=0) >= 0).all())
    assert float(held.abs().max()) <= float(scaling.edge) + 1


QUICK = {"schedule": [("flow_matching", 20)], "hidden": (8,), "random_state": 0}
TABLE = pd.DataFrame({"age": EVEN[:60, 0], "dose": RNG.normal(size=60)})
Y = TABLE.to_numpy()[:, :1] + RNG.normal(size=(60, 1))


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A model of a frame of contexts, and the same from a folder."""
    model, path = FFJORD(**QUICK).fit(Y, context=TABLE), tmp_path_factory.mktemp("runs") / "run"
    model.save(path)
    return model, FFJORD.load(path)


def test_a_frame_of_contexts_is_taken_by_name(named):
    for model in named:
        expected = model.score_samples(Y, context=TABLE.to_numpy())
        assert np.array_equal(model.score_samples(Y, context=TABLE), expected)
        assert np.array_equal(model.score_samples(Y, context=TABLE[["dose", "age"]]), expected)
        draws = [model.sample(60, context=c, random_state=0) for c in (TABLE, TABLE[["dose", "age"]])]
        assert np.array_equal(*draws)


def test_an_explained_row_has_its_score_under_contexts_by_name(named):
    model, rows, around = named[0], Y[:1], {"reference": Y, "reference_context": TABLE, "draws": 20}
    expected = model.score_samples(rows, context=TABLE[:1])
    for context in (TABLE[:1], TABLE[["dose", "age"]][:1], dict(TABLE.iloc[0])):
        threshold = float(expected[0]) - 1
        found = model.explain(rows, context=context, threshold=threshold, **around)
        error = found.threshold - threshold  # that of the solver, which is added to the threshold
        assert 0 < error < 0.05 and abs(found[0].before + found.threshold - expected[0]) <= error


@pytest.mark.parametrize("names", [["age"], ["age", "size"], ["age", "dose", "size"]], ids=str)
def test_a_frame_of_other_contexts_is_refused(named, names):
    frame = TABLE.assign(size=1.0)[names]
    with pytest.raises(
        ValueError, match=f"context must have the columns of the fit, age, dose; got {', '.join(names)}"
    ):
        named[0].score_samples(Y, context=frame)


def test_a_warning_names_the_column_of_a_frame_or_the_given_name():
    table = TABLE.assign(dose=10 ** np.linspace(-3, 3, 60))
    with pytest.warns(DegenerateDataWarning, match="context column 'dose' goes"):
        FFJORD(**QUICK).fit(Y, context=table)
    with pytest.warns(DegenerateDataWarning, match="context column 'mg' goes"):
        FFJORD(**QUICK).fit(Y, context=table.to_numpy(), context_columns=["age", "mg"])


@pytest.mark.parametrize("names", [["a"], ["a", "a"]], ids=str)
def test_names_that_do_not_suit_the_contexts_are_refused(names):
    with pytest.raises(ValueError, match="context needs 2 different names of its columns; got a"):
        FFJORD(**QUICK).fit(Y, context=TABLE.to_numpy(), context_columns=names)


@pytest.mark.parametrize("shape", [(2,), (1, 2)], ids=str)
def test_one_context_serves_all_rows_and_draws(named, shape):
    model, one = named[0], np.array([0.2, -1.0])
    each = np.tile(one, (5, 1))
    one = one.reshape(shape)
    assert np.array_equal(model.sample(5, context=one, random_state=0), model.sample(5, context=each, random_state=0))
    for method in (model.score_samples, model.draft, lambda x, context: model.certify(x, context=context).log_prob):
        assert np.array_equal(method(Y[:5], context=one), method(Y[:5], context=each))
    assert model.score(Y[:5], context=one) == model.score(Y[:5], context=each)
    assert model.solver_error(Y[:5], context=one) == model.solver_error(Y[:5], context=each)
    ways = [model.trajectory(5, frames=2, context=context, random_state=0) for context in (one, each)]
    assert np.array_equal(ways[0].log_prob, ways[1].log_prob)


def test_a_single_row_is_scored_under_each_of_several_contexts(named):
    model, contexts = named[0], TABLE.to_numpy()[:7]
    expected = model.score_samples(np.tile(Y[:1], (7, 1)), context=contexts)
    assert np.array_equal(model.score_samples(Y[:1], context=contexts), expected)
    assert np.array_equal(model.score_samples(Y[:1], context=TABLE[:7]), expected)
    assert model.score_samples(Y[:1], context=contexts, return_error=True)[1].shape == (7,)
    assert model.evaluate(Y[:1], context=contexts).log_prob.shape == (7,)
    assert model.velocity(Y[:1], 0.5, context=contexts).shape == (7, 1)


def test_several_contexts_and_another_number_of_rows_are_refused(named):
    with pytest.raises(ValueError, match=r"context must have shape \(3, c\), a row for each row .* got \(5, 2\)"):
        named[0].score_samples(Y[:3], context=TABLE.to_numpy()[:5])
    with pytest.raises(ValueError, match=r"context must have shape \(4, c\), a row for each row .* got \(5, 2\)"):
        named[0].sample(4, context=TABLE.to_numpy()[:5])
    with pytest.raises(ValueError, match=r"context must have shape \(60, c\), a row for each row .* got \(1, 2\)"):
        FFJORD(**QUICK).fit(Y, context=TABLE.to_numpy()[:1])


def test_a_single_row_outside_the_support_is_impossible_under_all_contexts():
    model = FFJORD(**QUICK, support="positive").fit(np.exp(Y), context=TABLE)
    assert np.array_equal(model.score_samples([[-1.0]], context=TABLE[:3]), [-np.inf] * 3)


def test_one_image_is_scored_under_each_of_several_labels():
    images = np.random.default_rng(0).integers(0, 256, size=(12, 4, 4), dtype=np.uint8)
    model = ImageFFJORD(schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(images, context=[0, 1, 2] * 4)
    each = [float(model.score_samples(images[:1], context=label)[0]) for label in range(3)]
    assert model.score_samples(images[:1], context=[0, 1, 2]) == pytest.approx(each, abs=0.5)


FAR = [1e3, 1e4, 1e6, 1e8, -1e8, 1e300]


@pytest.fixture(scope="module")
def learnt():
    return FFJORD(**LEARNT).fit(rows_about(2 * EVEN), context=EVEN)


def test_a_row_with_a_far_context_neither_ends_the_scoring_of_others_nor_changes_them(learnt):
    y, context = np.linspace(-2, 2, 10)[:, None], np.linspace(-1, 1, 10)[:, None]
    expected = learnt.score_samples(y, context=context)
    for far in FAR:
        found = learnt.score_samples(np.r_[y, [[0.0]]], context=np.r_[context, [[far]]])
        assert np.array_equal(found[:-1], expected)
        assert np.isfinite(found[-1])
    calls = [learnt.evaluate([[0.0]], context=[c]).nfe for c in (1.0, 1e8)]
    assert calls[1] < 10 * calls[0]
    assert np.isfinite(learnt.sample(6, context=np.array(FAR)[:, None], random_state=0)).all()


def test_the_error_of_a_solve_names_the_farthest_context(learnt):
    strict = copy.deepcopy(learnt).set_params(max_nfe=7)
    y, context = np.zeros((3, 1)), np.array([[0.0], [1e6], [0.5]])
    for verb in (strict.score_samples, strict.certify, lambda y, context: strict.sample(3, context=context)):
        with pytest.raises(SolveError, match=r"max_nfe=7 .*\. The farthest context among these rows is c0 = 1e\+06"):
            verb(y, context=context)


def test_a_context_that_was_constant_in_the_fit_is_told_when_it_varies():
    context = np.c_[EVEN[:60], np.full(60, 3.0)]
    model = FFJORD(**QUICK).fit(Y, context=context, context_columns=["age", "dose"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = model.score_samples(Y, context=context)
    context[7, 1] = 4.0
    told = pytest.warns(DegenerateDataWarning, match="context column 'dose' was 3 in all rows of the fit and has other")
    with told:
        assert np.array_equal(model.score_samples(Y, context=context), expected)
    with told:
        model.sample(4, context=[0.0, 5.0])


WIDTHS = RNG.uniform(-3, 1, size=(2000, 1))


@pytest.mark.slow
def test_widths_over_decades_are_followed():
    """Rows x ~ N(c, 10^c): in units of all rows, the narrow end was lost by two nats, and drawn 270 times too wide."""
    rng = np.random.default_rng(3)
    model = FFJORD(**LEARNT).fit(WIDTHS + 10**WIDTHS * rng.normal(size=WIDTHS.shape), context=WIDTHS)
    assert not model.flow_.preprocess.transforms[0].is_identity
    for c in (-2.9, -2.0, -1.0, 0.0):
        x = c + 10**c * rng.normal(size=(400, 1))
        truth = -0.5 * ((x - c) / 10**c) ** 2 - np.log(10**c * np.sqrt(2 * np.pi))
        assert truth.mean() - model.score(x, context=[c]) < 0.25
        assert 0.6 < model.sample(400, context=[c], random_state=0).std() / 10**c < 1.6


def test_location_and_scale_are_left_alone_where_the_context_says_nothing():
    rng = np.random.default_rng(4)
    x, c = (torch.from_numpy(rng.normal(size=(500, d))) for d in (3, 2))
    transform = ConditionalAffine.of(x, c)
    assert transform.is_identity
    z, log_det = transform.to_base(x, c)
    assert torch.equal(z, x) and not bool(log_det.any())
    assert ConditionalAffine.of(x[:30], c[:30]).is_identity


def a_conditional_transform():
    c = torch.from_numpy(EVEN)
    x = torch.cat([2 * c, c.square()], 1) + c.exp() * torch.from_numpy(RNG.normal(size=(ROWS, 2)))
    return ConditionalAffine.of(x, c), x[:9], c[:9]


def test_the_maps_of_location_and_scale_are_inverse_and_their_log_determinants_exact():
    transform, x, c = a_conditional_transform()
    z, down = transform.to_base(x, c)
    back, up = transform.to_data(z, c)
    close(back, x, 1e-12)
    close(up, -down, 1e-12)
    for i in range(9):
        row = torch.autograd.functional.jacobian(lambda y, i=i: transform.to_base(y[None], c[i : i + 1])[0][0], x[i])
        close(down[i], torch.linalg.slogdet(row)[1], 1e-12)
    with pytest.raises(ValueError, match="need their contexts; got None"):
        transform.to_base(x)


def test_a_flow_behind_a_conditional_transform_agrees_with_itself():
    transform, x, c = a_conditional_transform()
    field = ConcatSquashDynamics((2,), hidden=(8,), context_dim=1)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    cnf = CNF(field.double(), (2,), solver=FixedSolver("rk4", 20))
    flow = Flow([cnf], preprocess=[transform, Standardize.of(x)], context_dim=1)
    z, log_det = flow.to_base(x, c)
    close(flow.to_data(z, c)[0], x, 1e-6)
    close(flow.log_prob(x, c), flow.base.log_prob(z) + log_det, 1e-12)
    way = flow.trajectory(x, [1.0, 0.5, 0.0], c)
    close(way.log_prob[0], flow.log_prob(x, c), 1e-12)
    close(way.log_prob[1], flow.log_prob(way.x[1], c, time=0.5), 1e-6)
    near = flow.trajectory(x, [1.0, 0.999], c).x[1]
    close((x - near) / 0.001, flow.velocity(x, 1.0, c), 1e-2)
    slope = c.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(flow.log_prob(x, slope).sum(), slope)
    shifted = [flow.log_prob(x, c + shift) for shift in (1e-5, -1e-5)]
    close(gradient[:, 0], (shifted[0] - shifted[1]).detach() / 2e-5, 1e-5)


@pytest.mark.slow
def test_a_context_beside_x_is_learnt_sooner_than_one_that_gates():
    rng = np.random.default_rng(0)

    def rows(n):
        c = rng.normal(size=(n, 4))
        return np.sin(2 * c[:, :1]) + c[:, 1:2] * c[:, 2:3] + 0.02 * rng.normal(size=(n, 1)), c

    (x, c), (x_new, c_new), log_prob = rows(3000), rows(1000), []
    for gated in (False, True):
        field = ResidualDynamics((1,), context_dim=4, hidden=(32, 32), gated_by_context=gated)
        model = FFJORD(dynamics=field, schedule=[("flow_matching", 500)], random_state=0).fit(x, context=c)
        log_prob.append(model.score_samples(x_new, context=c_new).mean())
    assert log_prob[0] > log_prob[1] + 0.1


def test_a_context_enters_or_gates_and_either_way_has_its_tangents():
    t, x, c = torch.tensor(0.3), torch.randn(5, 2), torch.randn(5, 3)
    for gated in (False, True):
        field = ResidualDynamics((2,), context_dim=3, hidden=(8, 8), gated_by_context=gated)
        torch.nn.init.normal_(field.output_layer.weight)
        assert (field(t, x, c) != field(t, x, c.flip(0))).any()
        tangents = torch.randn(4, 5, 2)
        _, products = field.jvp(t, x, tangents, c)
        expected = [torch.func.jvp(lambda x: field(t, x, c), (x,), (tangent,))[1] for tangent in tangents]  # noqa: B023
        assert torch.allclose(products, torch.stack(expected), atol=1e-5)


def test_equal_rows_under_other_contexts_are_no_copies():
    x = np.repeat(np.random.default_rng(0).normal(size=(50, 2)), 2, axis=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_columns(x, ["a", "b"], context=np.arange(100.0)[:, None])
    assert not [each for each in caught if "more than once" in str(each.message)]
    with pytest.warns(DegenerateDataWarning, match="100% of the rows occur more than once.*drop the copies$"):
        check_columns(x, ["a", "b"], context=np.repeat(np.arange(50.0), 2)[:, None])


def test_rows_without_any_modelled_value_are_left_out_of_a_conditional_fit_and_its_scores(tmp_path, capsys):
    table = pd.DataFrame({"dose": Y[:, 0], "age": np.arange(len(Y)) % 7})
    table.loc[3, "dose"] = np.nan
    table.to_csv(tmp_path / "t.csv", index=False)
    options = ["--schedule", "flow_matching:5", "--hidden", "8", "--context", "age", "--out", tmp_path / "run"]
    said = f"1 of {len(Y)} rows left out, which have no value"
    code, _, err = call(capsys, "fit", tmp_path / "t.csv", *options)
    assert code == 0 and said in err
    for one_context in ([], ["--context", "3"]):
        code, _, err = call(capsys, "score", tmp_path / "run", tmp_path / "t.csv", *one_context)
        assert code == 0 and said in err
    table.loc[5, "age"] = np.nan
    table.to_csv(tmp_path / "t.csv", index=False)
    code, _, err = call(capsys, "score", tmp_path / "run", tmp_path / "t.csv")
    assert code == 1 and "context contains NaN" in err and "Traceback" not in err
