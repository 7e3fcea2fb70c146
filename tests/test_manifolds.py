"""Circles and spheres: fields, steps, base, matching, and runs of both."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from commands import call

from ffjord_kit import FFJORD, Circle, FixedSolver, Flow, Integer, Positive, Sphere
from ffjord_kit.columns.base import ColumnTypeWarning
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.integral import over_turns
from ffjord_kit.distributions import ProductBase, StandardNormal
from ffjord_kit.geometry import Geometry, great_circle, unit, wrap
from ffjord_kit.nn import DYNAMICS, ManifoldDynamics
from ffjord_kit.objectives import ManifoldMatching, SteppedLikelihood
from ffjord_kit.transforms import CNF, Angles, OnColumns, Standardize, Stepped

MIXED = Geometry(6, circles=(3,), spheres=((1, 2, 5),))  # elements 0 and 4 are real
CASES = {
    "circle": Geometry(1, circles=(0,)), "torus": Geometry(2, circles=(0, 1)),
    "sphere": Geometry(3, spheres=((0, 1, 2),)), "all beside real columns": MIXED,
}  # fmt: skip
SHORT = {"schedule": [("flow_matching", 30), ("steps", 10)], "hidden": (16,), "random_state": 0}


def field(geometry: Geometry, word: str = "residual") -> ManifoldDynamics:
    torch.manual_seed(0)
    dynamics = ManifoldDynamics(DYNAMICS[word]((geometry.embedded_size,), hidden=(16, 16)), geometry).double()
    for weight in dynamics.parameters():
        if not bool(weight.any()):  # an untrained field is zero
            torch.nn.init.normal_(weight, std=0.2)
    return dynamics.requires_grad_(False)


def events(geometry: Geometry, n: int = 7) -> torch.Tensor:
    return (
        ProductBase(geometry, StandardNormal((len(geometry.real),)) if geometry.real else None)
        .double()
        .sample(n, torch.Generator().manual_seed(1))
    )


def turned(geometry: Geometry, x: torch.Tensor) -> torch.Tensor:
    """Return the same points in another form: angles turned twice, points at other lengths."""
    real, angles, points = geometry.split(x)
    return geometry.join(real, angles + 4 * math.pi, 1.7 * points)


def sphere_points(n: int) -> np.ndarray:
    """Return longitudes and latitudes of a von Mises-Fisher-like cloud, degrees."""
    v = np.random.default_rng(0).normal(size=(n, 3)) + [2.0, 0.0, 0.5]
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return np.degrees(np.stack([np.arctan2(v[:, 1], v[:, 0]), np.arcsin(v[:, 2])], axis=1))


@pytest.mark.parametrize("case", CASES)
def test_events_are_split_and_joined(case):
    x = events(CASES[case])
    assert torch.equal(CASES[case].join(*CASES[case].split(x)), x)


@pytest.mark.parametrize("word", DYNAMICS)
@pytest.mark.parametrize("case", CASES)
def test_a_field_is_periodic_tangent_and_of_degree_one(case, word):
    geometry, t = CASES[case], torch.tensor(0.3).double()
    dynamics, x = field(geometry, word), events(geometry)
    dx, far = dynamics(t, x), dynamics(t, turned(geometry, x))
    real, angles, points = geometry.split(dx)
    assert torch.allclose(far, geometry.join(real, angles, 1.7 * points), atol=1e-9)
    assert float((points * geometry.split(x)[2]).sum(-1).abs().sum()) < 1e-12
    assert float(dx.abs().max()) > 1e-3


@pytest.mark.parametrize("word", DYNAMICS)
@pytest.mark.parametrize("case", CASES)
def test_a_field_carries_tangents_as_automatic_differentiation_does(case, word):
    geometry, t = CASES[case], torch.tensor(0.3).double()
    dynamics, x = field(geometry, word), turned(geometry, events(geometry))
    tangents = torch.randn(3, len(x), geometry.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    dx, products = dynamics.jvp(t, x, tangents)
    expected = [torch.func.jvp(lambda y: dynamics(t, y), (x,), (v,))[1] for v in tangents]
    assert torch.allclose(dx, dynamics(t, x))
    assert torch.allclose(products, torch.stack(expected), atol=1e-10)


def test_the_trace_in_space_is_the_divergence_on_the_sphere():
    dynamics, x, t = field(CASES["sphere"]), events(CASES["sphere"]), torch.tensor(0.3).double()
    _, trace = dynamics.divergence(t, x)

    def across(angles: torch.Tensor) -> torch.Tensor:
        """Return sin(theta) times the polar component of the field, and its azimuthal one."""
        theta, phi = angles
        u = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()])
        v = dynamics(t, u[None])[0]
        polar = torch.stack([theta.cos() * phi.cos(), theta.cos() * phi.sin(), -theta.sin()])
        return torch.stack([theta.sin() * (v @ polar), v[1] * phi.cos() - v[0] * phi.sin()])

    for point, value in zip(x, trace, strict=True):
        angles = torch.stack([point[2].acos(), torch.atan2(point[1], point[0])])
        slopes = torch.func.jacfwd(across)(angles)
        assert torch.isclose(slopes.diagonal().sum() / angles[0].sin(), value, atol=1e-9)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize("case", CASES)
def test_steps_keep_lengths_carry_tangents_and_have_an_inverse(case, method):
    geometry = CASES[case]
    steps = Stepped(field(geometry), (geometry.size,), method=method, steps=6).double()
    x = turned(geometry, events(geometry))
    for step in steps.walk(x):
        lengths = [geometry.split(each)[2].norm(dim=-1) for each in (step.x, step.y)]
        assert torch.allclose(*lengths, atol=1e-12)
    z, log_det = steps.to_base(x)
    jacobian = torch.stack([torch.func.jacrev(lambda y: steps.to_base(y[None])[0][0])(row) for row in x])
    assert torch.allclose(log_det, torch.linalg.slogdet(jacobian)[1], atol=1e-9)
    assert torch.allclose(steps.to_data(z)[0], x, atol=1e-9)


def test_the_determinant_of_steps_in_space_is_that_of_the_sphere():
    geometry = CASES["sphere"]
    steps = Stepped(field(geometry), (3,), method="euler", steps=6).double()
    flow = Flow([steps], base=ProductBase(geometry, None).double())
    found = over_turns(geometry, lambda points: flow.log_prob(points))
    assert abs(found.value - 1) < 1e-6


@pytest.mark.parametrize("case", ["circle", "torus", "sphere"])
def test_the_density_of_any_field_integrates_to_one(case):
    geometry = CASES[case]
    flow = Flow([CNF(field(geometry), (geometry.size,))], base=ProductBase(geometry, None).double())
    found = over_turns(geometry, lambda points: flow.log_prob(points, solver=FixedSolver("rk4", 8)))
    assert abs(found.value - 1) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_draws_of_the_base_are_uniform_and_its_density_is_constant(case):
    geometry = CASES[case]
    base = ProductBase(geometry, StandardNormal((len(geometry.real),)) if geometry.real else None).double()
    draws = base.sample(20_000, torch.Generator().manual_seed(0))
    _, angles, points = geometry.split(draws)
    error = 5 / math.sqrt(2 * len(draws))
    assert not bool((angles.abs() > math.pi).any())
    for values in (angles.cos(), angles.sin(), (2 * angles).cos(), points):
        assert values.numel() == 0 or float(values.mean(0).abs().max()) < error
    assert torch.allclose(points.norm(dim=-1), torch.ones(()).double())
    assert torch.allclose(base.log_prob(draws), base.log_prob(turned(geometry, draws)))
    constant = -len(geometry.circles) * math.log(2 * math.pi) - len(geometry.spheres) * math.log(4 * math.pi)
    origin = base.log_prob(0 * draws[:1])
    assert math.isclose(float(origin), constant - 0.5 * len(geometry.real) * math.log(2 * math.pi))


def test_great_circles_have_constant_speed_and_end_where_they_should():
    start, end = (unit(torch.randn(50, 3, generator=torch.Generator().manual_seed(i)).double()) for i in (0, 1))
    end[0] = start[0]
    t = torch.rand(50, 1, generator=torch.Generator().manual_seed(2)).double()
    point, velocity = great_circle(start, end, t)
    slope = torch.func.jvp(lambda s: great_circle(start, end, s)[0], (t,), (torch.ones_like(t),))[1]
    assert torch.allclose(velocity, slope, atol=1e-9)
    assert torch.allclose(point.norm(dim=1), torch.ones(50).double())
    assert torch.allclose(great_circle(start, end, torch.ones_like(t))[0], end)
    assert torch.allclose(velocity.norm(dim=1), (start * end).sum(1).clamp(-1, 1).acos(), atol=1e-6)


def test_matching_takes_the_shorter_arc():
    start, end = torch.tensor([[3.0], [0.1]]), torch.tensor([[-3.0], [0.3]])
    _, slope = ManifoldMatching(geometry=CASES["circle"])._line(start, end, torch.full((2, 1), 0.25))
    assert torch.allclose(slope.flatten(), torch.tensor([2 * math.pi - 6, 0.2]), atol=1e-6)


@pytest.mark.parametrize("coupling", ["independent", "optimal_transport"])
def test_couplings_pair_near_angles_across_the_end(coupling):
    geometry, generator = CASES["circle"], torch.Generator().manual_seed(0)
    flow = Flow([CNF(field(geometry).float(), (1,))], base=ProductBase(geometry, None))
    x = wrap(math.pi + 0.1 * torch.randn(64, 1, generator=generator))
    loss = ManifoldMatching(coupling=coupling, geometry=geometry).loss(flow, Batch(x), generator)
    assert math.isfinite(float(loss.value))
    order = ManifoldMatching(coupling=coupling, geometry=geometry)._order(x, x + 2 * math.pi, None)
    assert torch.equal(order, torch.arange(64))


def test_the_penalty_looks_around_rows_on_the_sphere():
    geometry = CASES["sphere"]
    flow = Flow([Stepped(field(geometry).float(), (3,), steps=4)], base=ProductBase(geometry, None))
    loss = SteppedLikelihood().loss(flow, Batch(events(geometry, 64).float()), torch.Generator().manual_seed(0))
    assert math.isfinite(float(loss.value))


def test_angles_become_radians_and_come_back_within_their_range():
    start, period = torch.tensor([-180.0]).double(), torch.tensor([360.0]).double()
    transform, x = Angles([1], start, period, 2), torch.tensor([[5.0, 179.0], [6.0, -180.0]]).double()
    z, log_det = transform.to_base(x)
    assert torch.allclose(log_det, torch.full((2,), math.log(math.pi / 180)).double())
    back, log_slope = transform.to_data(z + torch.tensor([0.0, 6 * math.pi]).double())
    assert torch.allclose(back, x)
    assert torch.allclose(log_slope, -log_det)


def test_a_transform_of_some_columns_leaves_the_others():
    x = torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]).double()
    inner = Standardize.of(x[:, [0, 2]])
    transform = OnColumns(inner, [0, 2], 3)
    z, log_det = transform.to_base(x)
    assert torch.equal(z[:, 1], x[:, 1])
    assert torch.equal(log_det, inner.to_base(x[:, [0, 2]])[1])
    assert torch.allclose(transform.to_data(z)[0], x)


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> tuple[FFJORD, np.ndarray, object]:
    """A run on a table with columns of every type."""
    rng, n = np.random.default_rng(0), 120
    sky = sphere_points(n)
    x = np.stack([
        rng.vonmises(3.0, 2.0, n) * 180 / np.pi, sky[:, 0], rng.poisson(3, n), sky[:, 1], rng.lognormal(size=n)
    ], axis=1)  # fmt: skip
    path = tmp_path_factory.mktemp("manifolds") / "run"
    columns = {"phi": Circle(360), ("ra", "dec"): Sphere("deg"), "kids": Integer(), "income": Positive()}
    model = FFJORD(columns=columns, **SHORT).fit(x, columns=["phi", "ra", "kids", "dec", "income"], run=path)
    return model, x, path


@pytest.mark.slow
def test_a_table_of_every_type_is_fitted_scored_and_drawn(everything):
    model, x, _ = everything
    assert model.n_features_in_ == 5
    assert model.event_shape_ == (6,)
    draws = model.sample(400, random_state=0)
    assert draws.shape == (400, 5)
    assert draws[:, 0].min() >= -180 and draws[:, 0].max() < 180
    assert draws[:, 1].min() >= -180 and draws[:, 1].max() < 180
    assert np.abs(draws[:, 3]).max() <= 90
    assert np.array_equal(draws[:, 2], np.round(draws[:, 2])) and draws[:, 2].min() >= 0
    assert np.isfinite(model.score_samples(x)).all()
    same = x.copy()
    same[:, 0] += 720
    same[:, 1] -= 360
    assert np.allclose(model.score_samples(same), model.score_samples(x), atol=1e-5)
    assert model.trajectory(5, frames=3, random_state=0).x.shape == (3, 5, 5)


@pytest.mark.parametrize("density", ["continuous", "steps"])
def test_a_loaded_run_scores_the_same(everything, density):
    model, x, path = everything
    loaded = FFJORD.load(path).set_params(density=density)
    model.set_params(density=density)
    assert np.array_equal(loaded.score_samples(x[:50]), model.score_samples(x[:50]))
    assert np.array_equal(loaded.sample(5, random_state=1), model.sample(5, random_state=1))
    assert np.allclose(loaded.certify(x[:5]).log_prob, model.score_samples(x[:5]), atol=1e-2)


def test_a_run_goes_on(everything):
    model, x, path = everything
    columns = {"phi": "circle:360", "ra+dec": "sphere:deg", "kids": "integer", "income": "positive"}
    again = FFJORD(columns=columns, **SHORT).fit(
        x, columns=["phi", "ra", "kids", "dec", "income"], run=path, resume=True
    )
    assert np.array_equal(again.score_samples(x[:20]), model.score_samples(x[:20]))


@pytest.mark.slow
def test_every_command_works_on_such_a_run_or_refuses_in_one_line(everything, tmp_path, capsys):
    _, x, path = everything
    table = tmp_path / "t.csv"
    np.savetxt(table, x, delimiter=",", header="phi,ra,kids,dec,income", comments="")
    code, told, _ = call(capsys, "info", path)
    assert code == 0, told
    assert "phi=circle:360:-180, ra+dec=sphere:deg:-180" in told
    assert "steradian of ra and dec" in told
    assert "steradian of ra and dec" in call(capsys, "score", path, table, "--rows", "50")[1]
    assert call(capsys, "sample", path, "-n", "20", "--out", tmp_path / "new.csv")[0] == 0
    assert np.loadtxt(tmp_path / "new.csv", delimiter=",", skiprows=1).shape == (20, 5)
    code, drawn, _ = call(capsys, "plot", path, "--data", table, "--out", tmp_path / "pictures")
    assert code == 0
    assert "pairs.png" in drawn and "density.png" not in drawn
    code, told, error = call(capsys, "explain", path, table, "--rows", "2", "--allow", "phi")
    assert code == 1
    assert "explain changes real columns, and phi is a circle" in error and error.count("\n") == 1
    assert "real columns may change, but not phi, ra and dec" in told


@pytest.mark.slow
def test_doctor_examines_such_a_run(everything, tmp_path, capsys):
    _, x, path = everything
    table = tmp_path / "t.csv"
    np.savetxt(table, x, delimiter=",", header="phi,ra,kids,dec,income", comments="")
    code, told, _ = call(capsys, "doctor", path, table, "--rows", "60")
    assert code == 0
    assert "not computed for circles" in told


@pytest.mark.slow
def test_a_receipt_integrates_over_whole_turns():
    x = np.random.default_rng(0).vonmises(3.0, 4.0, (300, 1))
    model = FFJORD(columns={"x0": Circle(2 * np.pi)}, **SHORT).fit(x)
    receipt = model.model_.receipt(x, rows=50)
    assert receipt.holds
    assert abs(receipt.integral - 1) < 1e-3
    assert receipt.integral_error < 1e-3


@pytest.mark.parametrize("verb", ["reflow", "condense", "attack", "velocity", "interpolate"])
def test_what_is_for_real_columns_is_refused(everything, verb):
    model, x, _ = everything
    arguments = {"attack": (x, 0.1), "velocity": (x, 0.5), "interpolate": (x[:2], x[2:4])}.get(verb, (x,))
    with pytest.raises(ValueError, match=f"{verb} is for real columns"):
        getattr(model, verb)(*arguments)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"transforms": [("maf", 1)]}, "transforms"),
        ({"watch": "spectrum"}, "watch"),
        ({"schedule": [("mle", 5)], "robust": 0.1}, "robust"),
    ],
)
def test_fields_for_real_columns_are_refused_beside_a_circle(fields, name):
    x = np.random.default_rng(0).normal(size=(30, 2))
    with pytest.raises(ValueError, match=f"{name} is for real columns, and x0"):
        FFJORD(columns={"x0": Circle(360)}, **{**SHORT, **fields}).fit(x)


def test_degrees_and_radians_are_told_apart():
    sky = sphere_points(50)
    with pytest.raises(ValueError, match="these look like degrees, type sphere:deg"):
        FFJORD(columns={("x0", "x1"): Sphere("rad")}, **SHORT).fit(sky)
    with pytest.raises(ValueError, match="in this order"):
        FFJORD(columns={("x1", "x0"): Sphere("deg")}, **SHORT).fit(np.stack([sky[:, 0] + 100, sky[:, 1]], axis=1))
    with pytest.warns(ColumnTypeWarning, match="type is sphere:rad"):
        FFJORD(columns={("x0", "x1"): Sphere("deg")}, **SHORT).check(np.radians(sky))
    with pytest.warns(ColumnTypeWarning, match="circle:6.28"):
        FFJORD(columns={"x0": Circle(360)}, **SHORT).check(np.radians(sky))
    with pytest.warns(ColumnTypeWarning, match="many times around"):
        FFJORD(columns={"x0": Circle(2 * np.pi)}, **SHORT).check(sky)


def test_a_latitude_beyond_a_pole_has_no_score(everything):
    model, x, _ = everything
    rows = x[:3].copy()
    rows[1, 3] = 91
    with pytest.raises(ValueError, match="first of 1 other rows: row 1"):
        model.score_samples(rows)


@pytest.mark.parametrize("base", ["normal", "mixture", "student"])
def test_bases_of_the_real_columns_stand_beside_a_circle(base, tmp_path):
    rng = np.random.default_rng(0)
    x = np.stack([rng.vonmises(0, 1, 200), rng.normal(size=200), rng.normal(size=200)], axis=1)
    fields = {**SHORT, "base": base, "schedule": [("flow_matching", 5)]}
    model = FFJORD(columns={"x0": Circle(2 * np.pi)}, **fields).fit(x, run=tmp_path / "run")
    assert np.array_equal(FFJORD.load(tmp_path / "run").score_samples(x[:9]), model.score_samples(x[:9]))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["types"] == {
        "x0": f"circle:{2 * np.pi!r}:{-np.pi!r}"
    }


@pytest.mark.slow
def test_contexts_stand_beside_a_circle(tmp_path):
    rng = np.random.default_rng(0)
    c = rng.normal(size=(200, 1))
    x = np.stack([rng.vonmises(c[:, 0], 2), c[:, 0] + rng.normal(size=200)], axis=1)
    fields = {**SHORT, "schedule": [("flow_matching", 5)]}
    model = FFJORD(columns={"x0": Circle(2 * np.pi)}, **fields).fit(x, context=c, run=tmp_path / "run")
    loaded = FFJORD.load(tmp_path / "run")
    assert np.array_equal(loaded.score_samples(x[:9], context=c[:9]), model.score_samples(x[:9], context=c[:9]))
    only = FFJORD(columns={"x0": Circle(2 * np.pi)}, **fields).fit(x[:, :1], context=c, run=tmp_path / "only")
    loaded = FFJORD.load(tmp_path / "only")
    assert np.array_equal(loaded.score_samples(x[:9, :1], context=c[:9]), only.score_samples(x[:9, :1], context=c[:9]))
