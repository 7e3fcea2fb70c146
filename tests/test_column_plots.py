"""Pictures that suit the types of columns: their axes, names and heights, checked against the table itself."""

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call
from matplotlib.figure import Figure

from ffjord_kit import FFJORD, plots
from ffjord_kit.columns import Circle, Sphere
from ffjord_kit.plots.charts import PlaneChart, read_plane
from ffjord_kit.plots.sphere import SphereChart

LEVELS = ["Bergen", "Oslo", "Rome"]
TYPES = {"wind": "circle:360", "income": "positive", "share": "bounded:0:1"}


def people(n, seed):
    rng = np.random.default_rng(seed)
    city = rng.choice(LEVELS, n, p=[0.2, 0.5, 0.3])
    return pd.DataFrame({
        "city": city, "kids": rng.poisson(1.5, n).astype(float), "wind": np.degrees(rng.vonmises(0, 2, n)) % 360,
        "income": rng.lognormal(10, 0.5, n), "share": rng.beta(0.5, 3, n), "owner": rng.random(n) < 0.3,
        "born": pd.Timestamp("1990-01-01") + pd.to_timedelta(rng.integers(0, 4000, n), "D"),
    })  # fmt: skip


DATA, DRAWS = people(400, 0), people(300, 1)


def fisher(angles, concentration=10.0, middle=(350.0, 20.0)):
    """Log-density of von Mises and Fisher, per steradian."""
    sphere = Sphere("deg", 0)
    at, mean = sphere.to_points(np.asarray(angles)), sphere.to_points(np.array([middle]))[0]
    norm = np.log(concentration / (2 * np.pi * -np.expm1(-2 * concentration)))
    return norm + concentration * (at @ mean - 1)


def ticks(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


# ---- one column


def test_each_column_has_the_picture_of_its_type_and_its_name():
    figure = plots.columns(DATA, DRAWS, types=TYPES)
    assert [panel.name for panel in figure.axes] == ["rectilinear"] * 2 + ["polar"] + ["rectilinear"] * 4
    names = [panel.get_title() if panel.name == "polar" else panel.get_xlabel() for panel in figure.axes]
    assert names == list(DATA.columns)
    figure.draw_without_rendering()
    assert ticks(figure.axes[0].xaxis) == LEVELS
    assert ticks(figure.axes[5].xaxis) == ["false", "true"]
    assert "1990" in ticks(figure.axes[6].xaxis)
    assert figure.axes[4].get_xlim()[0] == 0.0  # the support's end


@pytest.mark.parametrize(("name", "place"), [("city", 0), ("kids", 1)])
def test_bars_are_the_shares_of_the_table(name, place):
    panel = plots.columns(DATA, DRAWS, types=TYPES).axes[place]
    heights = [bar.get_height() for bar in panel.patches]
    levels = LEVELS if name == "city" else range(int(max(DATA.kids.max(), DRAWS.kids.max())) + 1)
    expected = [(table[name] == level).mean() for table in (DATA, DRAWS) for level in levels]
    np.testing.assert_allclose(heights, expected, rtol=0, atol=1e-12)


def test_sectors_of_a_circle_have_the_areas_of_its_shares():
    panel = plots.column(DATA.wind, DRAWS.wind, "wind", Circle(360, 0)).axes[0]
    areas = [bar.get_height() ** 2 * bar.get_width() / 2 for bar in panel.patches]
    expected = [DATA.wind.between(15 * k, 15 * (k + 1), inclusive="left").mean() for k in range(24)]
    np.testing.assert_allclose(areas, expected, rtol=0, atol=1e-12)
    assert ticks(panel.xaxis)[:3] == ["0", "45", "90"]
    from_minus = plots.column(DATA.wind - 180, DRAWS.wind - 180, "wind", Circle(360, -180)).axes[0]
    assert ticks(from_minus.xaxis)[4:] == ["-180", "-135", "-90", "-45"]


def test_rare_levels_share_a_bar():
    codes = np.repeat(np.arange(15.0), np.arange(15, 0, -1))
    panel = plots.columns(codes[:, None], codes[:, None], ["word"], {"word": "category"}).axes[0]
    assert ticks(panel.xaxis)[-1] == "4 others"
    assert panel.patches[11].get_height() == pytest.approx((4 + 3 + 2 + 1) / 120)


# ---- pairs


def test_pairs_name_their_columns_and_levels_and_areas_are_shares():
    own = ["city", "owner", "wind", "income"]
    figure = plots.pair_plot(DATA[own], DRAWS[own], types={key: TYPES[key] for key in ("wind", "income")})
    axes = np.reshape(figure.axes, (4, 4))
    assert [panel.get_xlabel() for panel in axes[3]] == own
    assert ticks(axes[1, 0].yaxis) == ["false", "true"]
    assert ticks(axes[3, 0].xaxis) == LEVELS
    assert axes[3, 2].get_xlim() == (0.0, 360.0) and axes[3, 2].get_ylim()[0] == 0.0
    circles, rings = (each.get_sizes() for each in axes[1, 0].collections)
    shares = np.array([((DATA.city == city) & (DATA.owner == owner)).mean() for city in LEVELS for owner in (0, 1)])
    drawn = np.array([((DRAWS.city == city) & (DRAWS.owner == owner)).mean() for city in LEVELS for owner in (0, 1)])
    np.testing.assert_allclose(circles / circles.sum(), shares, atol=1e-12)
    np.testing.assert_allclose(rings / circles.sum(), drawn, atol=1e-12)


# ---- spheres, tori, supports


def test_a_sphere_is_a_map_of_equal_areas_with_its_density_in_its_place():
    chart = SphereChart(Sphere("deg", 0), ("ra", "dec"))
    points = chart.points(40)
    assert np.exp(fisher(points)).mean() * 4 * np.pi == pytest.approx(1, abs=1e-3)
    sky = points[
        np.random.default_rng(0).choice(len(points), 500, p=np.exp(fisher(points)) / np.exp(fisher(points)).sum())
    ]
    assert chart.smoothed(sky, 40).mean() * 4 * np.pi == pytest.approx(1, abs=1e-2)
    figure = plots.density(sky, fisher, columns=["ra", "dec"], types={"ra+dec": "sphere:deg"}, size=40)
    data, learned, bar = figure.axes
    assert (data.name, learned.name, bar.get_ylabel()) == ("mollweide", "mollweide", "density per steradian")
    assert (data.get_xlabel(), data.get_ylabel()) == ("ra", "dec")
    highest = points[int(learned.collections[0].get_array().argmax())]
    np.testing.assert_allclose(highest, [350, 20], atol=6)
    assert ticks(learned.xaxis) == ["60°", "120°", "180°", "240°", "300°"]
    two = plots.samples(sky, sky, ["ra", "dec"], {"ra+dec": "sphere:deg"})
    assert [panel.name for panel in two.axes] == ["mollweide"] * 2


def test_a_torus_spans_one_period_and_its_ends_are_the_same():
    x = np.random.default_rng(0).normal(size=(400, 2)) * 8 % 360  # about the corner
    chart, read, _ = read_plane(x, columns=["phi", "psi"], types={"phi": "circle:360", "psi": "circle:360"})
    assert isinstance(chart, PlaneChart) and chart.bounds == ((0.0, 360.0), (0.0, 360.0))
    smoothed = chart.smoothed(read, 60)
    assert smoothed.sum() * 6**2 == pytest.approx(1)
    np.testing.assert_allclose(smoothed[0], smoothed[-1], rtol=0.3, atol=0.05 * smoothed.max())
    assert chart.outside(read + 360) == 0


def test_contours_stay_inside_the_support():
    x = np.random.default_rng(0).exponential(size=(300, 2))
    figure = plots.density_contours(
        x, lambda x: -x.sum(1), columns=["a", "b"], types={"a": "positive", "b": "positive"}, size=30
    )
    panel = figure.axes[0]
    assert (panel.get_xlim()[0], panel.get_ylim()[0]) == (0.0, 0.0)
    vertices = np.concatenate([path.vertices for path in panel.collections[-1].get_paths()])
    assert vertices.min() > 0
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("a", "b")


# ---- axes of the caller, sweeps, files


PATHS = np.random.default_rng(0).normal(size=(2, 5, 2))
ONE_PANEL = {
    "column": lambda ax: plots.column([1.0, 2.5], [1.0, 2.0], "dose", ax=ax),
    "contours": lambda ax: plots.density_contours(PATHS[0], lambda x: -(x**2).sum(1), size=9, ax=ax),
    "trajectories": lambda ax: plots.trajectories([0, 1], PATHS, np.zeros((2, 5)), columns=["dose", "b"], ax=ax),
    "vector field": lambda ax: plots.vector_field(lambda t, x: -x, [0.0], ((-1, 1), (-1, 1)), size=5, ax=ax),
    "lines": lambda ax: plots.loss_lines([0, 1], {"loss": [1, 0]}, ax=ax),
    "spectral densities": lambda ax: plots.spectral_densities({"a": ([0, 1], [1, 0.1], [0.1, 0.1])}, ax=ax),
    "cost": lambda ax: plots.error_against_cost({"a": [[1, 0.5, 0.4, 0.6]]}, ax=ax),
    "neurons": lambda ax: plots.effective_neurons([{"step": 1, "condensation": {"a": [8, 8]}}], ax=ax),
    "curvature": lambda ax: plots.watched_curvature(
        [{"step": 1, "hessian": {"loss": "mle", "top": 9.0, "error": 0.1}}], ax=ax
    ),
}


@pytest.mark.parametrize("name", ONE_PANEL)
def test_a_picture_of_one_panel_is_drawn_on_the_axes_that_are_passed(name):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert ONE_PANEL[name](right) is figure
    assert right.has_data() and not left.has_data()


def test_axes_that_do_not_suit_are_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"this picture needs ax with projection 'polar'; got 'rectilinear': make it by"
    ):
        plots.column([1.0], [2.0], "phi", "circle:360:0", ax=Figure().subplots())
    with pytest.raises(ValueError, match="ax takes the field at one time; got 2 times"):
        plots.vector_field(lambda t, x: x, [0, 1], ((0, 1), (0, 1)), ax=Figure().subplots())
    with pytest.raises(
        ValueError, match=r"two columns of numbers; got city \(category\), kids \(real\): draw a table by"
    ):
        plots.samples(DATA[["city", "kids"]], DRAWS[["city", "kids"]])
    with pytest.raises(ValueError, match="longitude before latitude; got dec, ra: swap the columns"):
        plots.samples(np.eye(2), np.eye(2), ["dec", "ra"], {("ra", "dec"): "sphere:deg:0"})


def test_a_sweep_has_the_quantiles_of_its_draws_and_the_shares_of_levels():
    draws = np.random.default_rng(0).normal(size=(4, 200, 2))
    draws[..., 1] = np.random.default_rng(1).integers(0, 2, (4, 200))
    rows = np.column_stack([np.linspace(-1, 1, 50), np.arange(50) % 2])
    types = {"owner": 'category:["no", "yes"]'}
    figure = plots.context_sweep([plots.Sweep("age", [20, 30, 40, 50], draws, np.linspace(20, 50, 50))], rows,
                                 ["dose", "owner"], types)  # fmt: skip
    dose, owner = figure.axes
    assert [panel.get_xlabel() for panel in figure.axes] == ["age", "age"]
    assert (dose.get_ylabel(), owner.get_ylabel()) == ("dose", "share of owner")
    np.testing.assert_allclose(dose.lines[0].get_ydata(), np.median(draws[..., 0], axis=1))
    assert {text.get_text() for text in owner.texts} == {"no", "yes"}


def test_vector_graphics_hold_text_as_text(tmp_path):
    path = plots.save(plots.columns(DATA[["city", "wind"]], DRAWS[["city", "wind"]], types={"wind": "circle:360"}),
                      tmp_path / "columns.svg")  # fmt: skip
    assert path.read_text(encoding="utf-8").startswith("<?xml")


# ---- fitted models and the command line


@pytest.fixture(scope="module")
def fitted():
    own = ["city", "income", "wind"]
    options = {"schedule": [("flow_matching", 20), ("steps", 3)], "hidden": (8,), "density": "steps", "random_state": 0}
    return FFJORD(columns={"wind": "circle:360", "income": "positive"}, **options).fit(DATA[own][:150])


@pytest.mark.slow
def test_explain_changes_numbers_and_keeps_levels_and_angles(fitted):
    far = pd.DataFrame({"city": ["Rome"], "income": [1e6], "wind": [10.0]})
    known = DATA[["city", "income", "wind"]][:100]
    found = fitted.explain(far, reference=known, draws=100)
    assert found[0].names == ("income",) and found[0].found
    assert found.rows[0, [0, 2]].tolist() == [2.0, 10.0] and found.rows[0, 1] < 1e6
    mended = far.assign(income=found.rows[:, 1])
    assert fitted.score_samples(mended)[0] >= found.threshold
    for allow in (["city"], ["wind"], [0]):
        with pytest.raises(
            ValueError, match="explain changes real columns, and (city|wind) is a circle, of a sphere or"
        ):
            fitted.explain(far, reference=known, allow=allow)


def test_the_support_is_known_beside_angles(fitted):
    inside = fitted.flow_.support.check(torch.tensor([[1.0, 10.0], [-1.0, 10.0]]))
    assert inside.tolist() == [True, False]


@pytest.mark.slow
def test_the_command_draws_a_table_with_categories_in_a_format(tmp_path, capsys):
    DATA[["city", "income", "wind"]].to_csv(tmp_path / "t.csv", index=False)
    options = ("--columns", "wind=circle:360,income=positive", "--schedule", "flow_matching:5", "--hidden", "8")
    assert call(capsys, "fit", tmp_path / "t.csv", "--out", tmp_path / "run", "--no-verbose", *options)[0] == 0
    code, _, err = call(capsys, "plot", tmp_path / "run", "--out", tmp_path / "p", "--format", "svg")
    assert code == 0, err
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"training.svg", "columns.svg", "pairs.svg"}
