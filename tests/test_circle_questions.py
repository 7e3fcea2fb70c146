"""Questions of tables with angles: each has a density on the circle, and absent angles are integrated out."""

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call
from scipy import stats

from ffjord_kit import FFJORD, Circle, Sphere
from ffjord_kit.nn.masked import QuestionContext
from ffjord_kit.transforms import Angles
from ffjord_kit.transforms.subsets import Elementwise, SubsetScaling

QUICK = {"subsets": True, "schedule": [("flow_matching", 60)], "hidden": (16,), "random_state": 0}
TURN = np.arange(0.0, 360.0, 2.0)  # degrees, for sums around the circle


def rows(n=300, seed=0):
    """A normal x, an angle near it, and its noisy cosine."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    angle = np.mod(x + rng.vonmises(0, 4.0, n), 2 * np.pi)
    return np.stack([x, np.degrees(angle), np.cos(angle) + 0.3 * rng.normal(size=n)], axis=1)


@pytest.fixture(scope="module")
def fitted():
    x = rows()
    x[::4, 1], x[1::4, 0] = np.nan, np.nan
    return FFJORD(columns={"x1": Circle(360)}, **QUICK).fit(x)


@pytest.mark.parametrize("question", [
    lambda model: model.marginal(["x1"]), lambda model: model.given(x0=2.0).marginal(["x1"]),
    lambda model: model.given(x0=-1.0, x2=0.5),
])  # fmt: skip
def test_the_density_of_an_angle_integrates_to_one_around_the_circle(fitted, question):
    density = np.exp(question(fitted).log_prob(TURN))
    assert np.isclose(2.0 * density.sum(), 1.0, atol=1e-3)
    assert np.isclose(*np.exp(question(fitted).log_prob([1e-9, 360 - 1e-9])), rtol=1e-4)  # no edge


def test_full_turns_change_no_answer(fitted):
    turned = [fitted.given(x1=angle).log_prob(rows(5)[:, [0, 2]]) for angle in (30.0, 390.0, -330.0)]
    assert np.allclose(turned[0], turned[1], atol=1e-9) and np.allclose(turned[0], turned[2], atol=1e-9)


def test_missing_angles_are_integrated_out_and_filled(fitted):
    x = rows(6, seed=1)
    whole, x[:3, 1] = x.copy(), np.nan
    assert np.allclose(fitted.score_samples(x)[:3], fitted.marginal(["x0", "x2"]).log_prob(whole[:3, [0, 2]]))
    filled = fitted.impute(x, draws=3, random_state=0)
    assert ((filled[:, :3, 1] >= 0) & (filled[:, :3, 1] < 360)).all() and np.array_equal(filled[0, 3:], whole[3:])


def test_noise_of_absent_angles_is_uniform():
    scaling = Elementwise([Angles([0], torch.zeros(1).double(), torch.full((1,), 360.0).double(), 2)], 2, [0])
    transform, there = SubsetScaling(scaling), torch.tensor([[0.0, 1.0]]).double()
    context = QuestionContext(0 * there, 0 * there, there).context
    z, log_det = transform.to_base(torch.tensor([[np.nan, 1.5]]).double(), context)
    assert z.tolist() == [[0.0, 1.5]] and np.isclose(log_det.item(), np.log(360.0) - np.log(360 / (2 * np.pi)))
    for noise in (-2.0, 3.0):  # wherever the noise of the angle stands
        back = transform.to_data(torch.tensor([[noise, 1.5]]).double(), context)
        assert np.isclose(back[1].item(), -log_det.item()) and back[0][0, 1] == 1.5


def test_a_sphere_is_refused_and_a_circle_is_asked_on_the_command_line(tmp_path, capsys):
    x = rows(80)
    with pytest.raises(ValueError, match="subsets=True takes no spheres, only circles"):
        FFJORD(columns={("x1", "x2"): Sphere("deg")}, **QUICK).fit(np.stack([x[:, 0], x[:, 1], x[:, 2]], axis=1))
    frame = pd.DataFrame({"x": x[:, 0], "phi": x[:, 1], "kind": np.where(x[:, 2] > 0, "near", "far")})
    frame.loc[::5, "phi"] = np.nan
    frame.to_csv(tmp_path / "t.csv", index=False)
    fit = ["fit", tmp_path / "t.csv", "--columns", "phi=circle:360", "--schedule", "flow_matching:8",
           "--hidden", "8"]  # fmt: skip
    assert call(capsys, *fit, "--out", tmp_path / "run")[0] == 0
    asked = ["--given", "phi=370,kind=near", "--out", tmp_path / "d.csv"]
    assert call(capsys, "sample", tmp_path / "run", "-n", 9, *asked)[0] == 0
    assert list(pd.read_csv(tmp_path / "d.csv").columns) == ["x"]


def test_the_probability_of_a_category_has_no_edge_where_angles_end():
    """Far from 0 degrees a kind is common, near them it is not; the angles' range ends there."""
    rng = np.random.default_rng(0)
    phi = rng.uniform(0, 360, 800)
    near = np.cos(np.radians(phi)) + 0.3 * rng.normal(size=800) > 0
    frame = pd.DataFrame({"phi": phi, "kind": np.where(near, "near", "far")})
    model = FFJORD(columns={"phi": Circle(360)}, **{**QUICK, "schedule": [("flow_matching", 5)]}).fit(frame)

    def log_prob(kind, degrees):
        return model.given(phi=np.array(degrees)).log_prob(pd.DataFrame({"kind": [kind] * len(degrees)}))

    at_end, at_start, opposite = log_prob("near", [359.99, 0.01, 180.0])
    assert abs(at_end - at_start) < 1e-2 and at_end > np.log(0.9) and opposite < np.log(0.1)
    assert np.allclose(np.exp(log_prob("near", [40.0])) + np.exp(log_prob("far", [40.0])), 1.0)


@pytest.mark.slow
def test_conditionals_with_an_angle_come_near_the_truth():
    model = FFJORD(columns={"x1": Circle(360)}, subsets=True, max_seconds=30, random_state=0).fit(rows(4000))
    x, angle, y = rows(1000, seed=1).T
    given_x = stats.vonmises.logpdf(np.radians(angle) - x, 4.0) + np.log(np.pi / 180)
    given_angle = stats.norm.logpdf(y, np.cos(np.radians(angle)), 0.3)
    assert np.mean(given_x - model.given(x0=x).marginal(["x1"]).log_prob(angle)) < 0.15
    assert np.mean(given_angle - model.given(x1=angle).marginal(["x2"]).log_prob(y)) < 0.1
