"""What a fitted model answers beside log-densities: gradients, the mode, expectations, places at the base."""

import copy
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call
from oracles import LearntAffine, SmoothMLP
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

from ffjord_kit import FFJORD, Circle, Flow, Integer, Positive, Sphere
from ffjord_kit.ode import PerRowSolver
from ffjord_kit.training.discretize import in_steps
from ffjord_kit.transforms import CNF, Whiten

QUICK = {"schedule": [("flow_matching", 5)], "hidden": (8,), "random_state": 0}
STEPPED = {**QUICK, "schedule": [("flow_matching", 20), ("steps", 5)], "density": "steps"}
ROWS = np.random.default_rng(0).normal(size=(60, 2)) * [2.0, 0.5] + [3.0, -1.0]
FINE = PerRowSolver(1e-8, 1e-8)


def with_flow(model, flow, steps=None):
    """A copy of a fitted estimator whose flow is set by hand."""
    fields = replace(model.model_.config.fields, tolerance=1e-8, density="continuous" if steps is None else "steps")
    config = replace(model.model_.config, fields=fields, reporting=replace(model.model_.config.reporting, solver=FINE))
    same = copy.copy(model)
    same.model_ = replace(model.model_, flow=flow, steps=steps, config=config)
    return same


def gaussian(fitted, *, context_dim=0):
    """A model that is a normal law, its mean (d,) at context 0, and its covariance (d, d)."""
    affine, scaling = LearntAffine(2).double(), Whiten.of(torch.from_numpy(ROWS))
    affine.shift.data, affine.log_scale.data = torch.tensor([[0.7, -0.4], [0.3, -0.2]], dtype=torch.float64)
    flow = Flow([affine], preprocess=[scaling], context_dim=context_dim).requires_grad_(False)
    zero = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
    images = flow.to_data(zero, torch.zeros(3, context_dim).double() if context_dim else None)[0].numpy()
    a = (images[1:] - images[0]).T
    return with_flow(fitted, flow), images[0], a @ a.T


@pytest.fixture(scope="module")
def fitted():
    return FFJORD(**QUICK).fit(ROWS)


@pytest.fixture
def normal(fitted):
    return gaussian(fitted)


def smooth():
    """A continuous flow of a small smooth field."""
    return Flow([CNF(SmoothMLP(2), (2,), solver=FINE)], preprocess=[Whiten.of(torch.from_numpy(ROWS))])


def differences(model, x, h=1e-4, **options):
    """Central differences of the log-density by each column."""
    columns = []
    for step in h * np.eye(x.shape[1]):
        ahead, behind = (model.certify(x + sign * step, **options).log_prob for sign in (1, -1))
        columns.append((ahead - behind) / (2 * h))
    return np.stack(columns, axis=1)


def test_the_gradient_of_a_normal_law_is_known(normal):
    model, mean, covariance = normal
    expected = -np.linalg.solve(covariance, (ROWS - mean).T).T
    assert model.grad_log_prob(ROWS) == pytest.approx(expected, abs=1e-6)
    assert model.grad_log_prob(ROWS[:1]).shape == (1, 2)
    assert model.grad_log_prob(pd.DataFrame(ROWS, columns=["a", "b"])) == pytest.approx(expected, abs=1e-6)


def test_the_gradient_of_a_continuous_flow_goes_through_its_solve(fitted):
    model = with_flow(fitted, smooth().requires_grad_(False))
    assert model.grad_log_prob(ROWS[:2]) == pytest.approx(differences(model, ROWS[:2]), abs=1e-5)


@pytest.mark.slow
def test_gradients_on_circles_and_spheres_are_tangent_and_per_radian():
    rng = np.random.default_rng(0)
    x = np.stack([rng.uniform(0, 24, 40), rng.uniform(10, 50, 40), rng.uniform(-60, 60, 40), rng.normal(size=40)], 1)
    types = {"x0": Circle(24), "x1+x2": Sphere("deg")}
    model = FFJORD(**STEPPED, columns=types).fit(x)
    few, got = x[:2], model.grad_log_prob(x[:2])
    slopes = differences(model, few, h=1e-3)
    cosine = np.cos(np.radians(few[:, 2]))
    per_radian = [24 / (2 * math.pi), 180 / math.pi, 180 / math.pi, 1.0]
    expected = slopes * per_radian / np.stack([[1, each, 1, 1] for each in cosine])
    assert got == pytest.approx(expected, abs=1e-4)
    top = model.mode(starts=1)
    assert np.abs(model.grad_log_prob(top.x)).max() < 1e-3
    with pytest.raises(ValueError, match="transform is for real columns, and x0, x1 and x2 is a circle"):
        model.transform(x)


@pytest.mark.slow
def test_columns_without_a_derivative_are_nan_and_the_others_are_at_their_values():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.gamma(3, size=60), "kids": rng.integers(0, 4, 60), "city": ["x", "y", "z"] * 20})
    model = FFJORD(**STEPPED, columns={"a": Positive(), "kids": Integer()}).fit(frame)
    gradient = model.grad_log_prob(frame[:3])
    ahead, behind = (model.certify(frame[:3].assign(a=frame["a"][:3] + h)).log_prob for h in (1e-3, -1e-3))
    assert gradient[:, 0] == pytest.approx((ahead - behind) / 2e-3, abs=1e-3)
    assert np.isnan(gradient[:, 1:]).all()
    with pytest.raises(ValueError, match="mode climbs by derivatives, and column 'kids' is of equal steps"):
        model.mode()
    with pytest.raises(ValueError, match="grad_log_prob takes rows within the support"):
        model.grad_log_prob(frame[:3].assign(a=-1.0))


@pytest.mark.slow
def test_the_mode_climbs_in_bounded_columns_with_categories():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.gamma(3, size=60), "city": ["x", "y", "z"] * 20})
    model = FFJORD(**STEPPED, columns={"a": Positive()}).fit(frame)
    top = model.mode(starts=2)
    assert list(top.x.columns) == ["a", "city"] and top.x["a"][0] > 0
    assert model.grad_log_prob(top.x)[0, 0] == pytest.approx(0.0, abs=1e-4)
    assert top.log_prob == pytest.approx(model.score_samples(top.x)[0], abs=1e-4)
    assert top.log_prob >= model.score_samples(model.sample(200, random_state=1)).max() - 1.5


def test_transform_is_scikit_learns(fitted):
    model = copy.copy(fitted).set_params(tolerance=1e-7)
    model.set_output(transform="pandas")
    frame = model.transform(ROWS)
    assert list(frame.columns) == ["ffjord0", "ffjord1"] == list(model.get_feature_names_out())
    assert model.inverse_transform(frame).to_numpy() == pytest.approx(ROWS, abs=1e-6)
    assert list(model.inverse_transform(frame).columns) == ["x0", "x1"]
    pipeline = make_pipeline(FFJORD(**QUICK), LinearRegression()).fit(ROWS, ROWS.sum(1))
    assert pipeline.predict(ROWS).shape == (60,)


def test_the_mode_of_a_normal_law_is_its_mean(normal):
    model, mean, covariance = normal
    top = model.mode(starts=3)
    height = -math.log(2 * math.pi) - 0.5 * np.linalg.slogdet(covariance)[1]
    assert top.x == pytest.approx(mean[None], abs=1e-6)
    assert top.log_prob == pytest.approx(height, abs=1e-8)
    assert top.reached == pytest.approx(np.full(3, height), abs=1e-8)
    assert top.slope < 1e-6


def test_an_expectation_comes_with_its_standard_error(normal):
    model, mean, covariance = normal
    found = model.expectation(lambda x: x, n=1000, random_state=0)
    assert found.standard_error == pytest.approx(np.sqrt(np.diag(covariance) / 1000), rel=0.2)
    assert (np.abs(found.value - mean) < 4 * found.standard_error).all()
    half = model.expectation(lambda x: x[:, 0] > mean[0], n=1000, random_state=0)
    assert half.standard_error == pytest.approx(0.5 / math.sqrt(1000), rel=0.01)
    assert abs(half.value - 0.5) < 4 * half.standard_error


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: x.mean(), r"a value for each of the 20 draws, shape \(20, \.\.\.\); got shape \(\)"),
        (lambda x: np.where(np.arange(20) == 7, np.nan, 1.0), r"NaN or infinity at 1 of 20 draws \(first: draw 7\)"),
    ],
)
def test_a_function_without_a_mean_is_refused(fitted, f, message):
    with pytest.raises(ValueError, match=message):
        fitted.expectation(f, n=20)


def test_rows_go_to_the_base_and_back(normal):
    model, mean, covariance = normal
    z = model.transform(ROWS)
    distance = ((ROWS - mean) * np.linalg.solve(covariance, (ROWS - mean).T).T).sum(1)
    assert (z**2).sum(1) == pytest.approx(distance, abs=1e-6)
    assert model.inverse_transform(z) == pytest.approx(ROWS, abs=1e-7)


@pytest.fixture(scope="module")
def conditional():
    c = np.random.default_rng(1).normal(size=(60, 1))
    return FFJORD(**QUICK).fit(ROWS, context=pd.DataFrame(c, columns=["age"]))


def test_a_conditional_model_answers_under_its_context(conditional):
    model, mean, _ = gaussian(conditional, context_dim=1)
    shifted = model.mode(context=0.5, starts=2).x
    assert not np.allclose(shifted, mean)
    assert model.grad_log_prob(shifted, context=0.5) == pytest.approx(np.zeros((1, 2)), abs=1e-5)
    assert model.inverse_transform(np.zeros((1, 2)), context=[[0.5]]) == pytest.approx(shifted, abs=1e-6)
    assert model.transform(shifted, context=[0.5]) == pytest.approx(np.zeros((1, 2)), abs=1e-6)
    found = model.expectation(lambda x: x, n=400, context=0.5, random_state=0)
    assert (np.abs(found.value - shifted[0]) < 4 * found.standard_error).all()
    with pytest.raises(ValueError, match="mode takes one context; got 2"):
        model.mode(context=[[0.5], [1.0]])


@pytest.mark.parametrize("end", ["data", pytest.param("base", marks=pytest.mark.slow)])
def test_the_gradient_of_few_steps_goes_through_the_steps(fitted, end):
    flow = smooth()
    steps = in_steps(flow, method="midpoint", steps=3).requires_grad_(False)
    steps.transforms[0].explicit_from = end
    model = with_flow(fitted, flow, steps)
    few = ROWS[:5]
    assert model.grad_log_prob(few) == pytest.approx(differences(model, few), abs=1e-6)
    assert model.inverse_transform(model.transform(few)) == pytest.approx(few, abs=1e-9)
    assert np.abs(model.grad_log_prob(model.mode(starts=2).x)).max() < 1e-5


ALIKE = {
    "a number": 0.5, "a vector": [0.5], "a row": [[0.5]], "a frame": pd.DataFrame({"age": [0.5]}),
    "by name": {"age": 0.5}, "a row each": np.full((60, 1), 0.5),
}  # fmt: skip


@pytest.mark.parametrize("form", ALIKE)
def test_a_context_may_be_given_in_any_form(conditional, form):
    context, each = ALIKE[form], np.full((60, 1), 0.5)
    assert np.array_equal(
        conditional.score_samples(ROWS, context=context), conditional.score_samples(ROWS, context=each)
    )
    expected = conditional.sample(60, context=each, random_state=0, steps=2)
    assert conditional.sample(60, context=context, random_state=0, steps=2) == pytest.approx(expected, abs=1e-6)
    assert conditional.velocity(ROWS, 0.5, context=context).shape == (60, 2)
    assert conditional.transform(ROWS[:2], context=each[:2] if form == "a row each" else context).shape == (2, 2)


def test_a_context_of_other_names_is_refused(conditional):
    with pytest.raises(ValueError, match=r"context must have the columns of the fit, age; got ages"):
        conditional.sample(3, context={"ages": 1.0})
    with pytest.raises(ValueError, match=r"context must give 'age' one number; got \(2,\): pass a frame of rows"):
        conditional.sample(3, context={"age": [1.0, 2.0]})


def test_the_command_line_takes_contexts_in_the_same_forms(conditional, tmp_path, capsys):
    conditional.save(tmp_path / "run")
    pd.DataFrame(ROWS, columns=["x0", "x1"]).to_csv(tmp_path / "rows.csv", index=False)
    pd.DataFrame({"size": [9.0], "age": [0.5]}).to_csv(tmp_path / "age.csv", index=False)
    drawn = []
    for number, text in enumerate(("0.5", "age=0.5", str(tmp_path / "age.csv"))):
        out = tmp_path / f"{number}.npy"
        assert call(capsys, "sample", tmp_path / "run", "-n", 5, "--seed", 0, "--context", text, "--out", out)[0] == 0
        drawn.append(np.load(out))
    assert np.array_equal(drawn[0], drawn[1]) and np.array_equal(drawn[0], drawn[2])
    code, out, _ = call(capsys, "score", tmp_path / "run", tmp_path / "rows.csv", "--context", "age=0.5")
    assert code == 0 and f"{conditional.score(ROWS, context=0.5):.4f}" in out
    code, _, err = call(capsys, "sample", tmp_path / "run", "--context", "kids=1", "--out", tmp_path / "no.npy")
    assert code == 1 and "context must have the columns of the fit, age; got kids" in err
