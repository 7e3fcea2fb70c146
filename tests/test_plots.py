"""Figures of tables, densities, flows, training and scores, checked by their pixels and their texts."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ffjord_kit import plots
from ffjord_kit.plots.arrays import mass_levels, smooth_histogram

BOUNDS = ((-2.0, 3.0), (-2.0, 2.0))
TIMES = np.linspace(0, 1, 6)
ANGLES = np.pi * (np.arange(12) + 0.5) / 12
MEANS = np.concatenate(
    [np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1), np.stack([1 - np.cos(ANGLES), 0.5 - np.sin(ANGLES)], 1)]
)


def mixture(x, scale=0.15, mean=1.0):
    """Log-density of two moons as a Gaussian mixture, on the straight path from one Gaussian where mean < 1."""
    power = -((x[:, None] - mean * MEANS) ** 2).sum(-1) / (2 * scale**2)
    return np.logaddexp.reduce(power, axis=1) - np.log(len(MEANS) * 2 * np.pi * scale**2)


def moons(n, seed=0):
    rng = np.random.default_rng(seed)
    return MEANS[rng.integers(len(MEANS), size=n)] + 0.15 * rng.normal(size=(n, 2))


def wide(x):
    return mixture(x, scale=0.2)


def turn(t, x):
    return (1 + t) * x @ np.array([[0.0, 1.0], [-1.0, 0.0]])


def flow_path(n=50):
    """Points on straight lines from a Gaussian to the moons, with their log-densities: (T, n, 2), (T, n)."""
    ends = moons(n)
    path = np.stack([t * ends + (1 - t) * np.random.default_rng(1).normal(size=(n, 2)) for t in TIMES])
    return path, np.stack([mixture(x, 0.15 * t + 1 - t, t) for t, x in zip(TIMES, path, strict=True)])


def examined(**other):
    """Arguments of a diagnosis."""
    rng, curve = np.random.default_rng(0), (4 * 2.0 ** np.arange(5), 0.1 ** np.arange(1, 6))
    errors = {"adaptive": curve, "rk4, graded steps": (curve[0], 2 * curve[1])}
    return {
        "errors": errors, "at_base": rng.normal(size=(200, 2)), "base_draws": rng.normal(size=(200, 2)),
        "log_densities": rng.normal(size=200), "drawn_log_densities": rng.normal(size=200),
        "steps": rng.integers(12, 30, 200), "spectrum": (TIMES, TIMES, 1 + TIMES), **other,
    }  # fmt: skip


def field(times=TIMES, size=32):
    grid = plots.grid_points(BOUNDS, size)
    return np.stack([mixture(grid, 0.15 * t + 1 - t, t).reshape(size, size) for t in times])


def records(n=120):
    """A run of two phases, with a validation every tenth step that is best at step 90."""
    rows = []
    for step in range(n):
        solved = step >= n // 2
        row = {"step": step, "phase": "mle" if solved else "flow_matching", "loss": 3.0 / (1 + step) + 0.1 * (step % 3)}
        row |= {"learning_rate": 1e-3, "nfe_forward": 40 * solved, "nfe_backward": 60 * solved, "seconds": 0.1 * step}
        rows.append(row | ({"validation_nll": 2.0 + abs(step - 90) / 50} if step % 10 == 0 else {}))
    return rows


def stability(order):
    """Growth of |x| in a step of a Taylor polynomial."""
    real, imaginary = np.meshgrid(np.linspace(-3, 1, 41), np.linspace(-2, 2, 41))
    z = real + 1j * imaginary
    return np.abs(1 + z + (z**2 / 2 if order == 2 else 0))


def scores(n=300, m=200, seed=0):
    rng = np.random.default_rng(seed)
    return {"bits": (rng.normal(size=n), 1 + rng.normal(size=m)), "|z|": (rng.normal(size=n), rng.normal(size=m))}


def many_scores(count):
    return {f"score {i}, a long one": scores()["bits"] for i in range(count)}


TABLE = np.random.default_rng(2).normal(size=(200, 8))
NAMES = ["a", "b", "under_score", "$dollar_$", "a name that is far too long for its panel", "f", "g", "h"]
AREAS = {"bits": 0.934, "|z|": 0.5}

FIGURES = {
    "density": lambda: plots.density(moons(400), wide, truth=mixture, size=40),
    "diagnosis": lambda: plots.diagnosis(**examined()),
    "empty diagnosis": lambda: plots.diagnosis(**examined(errors={}, spectrum=None, steps=np.full(9, 3))),
    "samples": lambda: plots.samples(moons(300), moons(200, seed=1)),
    "trajectories": lambda: plots.trajectories(TIMES, *flow_path()),
    "vector field": lambda: plots.vector_field(turn, [0.0, 1.0], BOUNDS, size=8),
    "vector field at rest": lambda: plots.vector_field(lambda t, x: 0 * x, [0.0], BOUNDS, size=5),
    "density strip": lambda: plots.density_strip(TIMES, field(), BOUNDS),
    "density panels": lambda: plots.density_panels([("a", np.exp(field()[-1])), ("b", np.eye(9))], BOUNDS, per_row=2),
    "stability": lambda: plots.stability_regions({"euler": stability(1), "taylor": stability(2)}, ((-3, 1), (-2, 2))),
    "error against cost": lambda: plots.error_against_cost(
        {"ode": [[26, 0.03, 0.02, 0.04], [8, 0.1, 0.08, 0.12]], "resnet": [[6, 0.02, 0.015, 0.025]]}
    ),
    "gradients along the path": lambda: plots.gradients_along_path(
        times=TIMES,
        costate=1 + np.ones((6, 3)) * TIMES[:, None],
        largest=np.ones((6, 3)),
        smallest=np.full((6, 3), 0.1),
    ),
    "training curves": lambda: plots.training_curves(records()),
    "pair plot": lambda: plots.pair_plot(TABLE, TABLE[:90] + 0.1, NAMES, most=3),
    "pair plot of equal points": lambda: plots.pair_plot(np.ones((5, 2)), np.ones((5, 2)) + 1e9, ["a", "b"]),
    "pair plot of two points": lambda: plots.pair_plot(np.eye(2), np.eye(2) + 1e9, ["a", "b"]),
    "outlier histograms": lambda: plots.outlier_histograms(scores(), AREAS, names=("MNIST", "Fashion-MNIST")),
} | {
    f"histograms of {count} scores": lambda count=count: plots.outlier_histograms(
        many_scores(count), dict.fromkeys(many_scores(count), 0.75)
    )
    for count in (1, 3, 5)
}


@cache
def drawn(name):
    """One figure of FIGURES, drawn once for all tests."""
    return FIGURES[name]()


def texts(figure):
    """All texts on a figure."""
    found = figure.findobj(lambda artist: isinstance(artist, matplotlib.text.Text))
    return " | ".join(text.get_text() for text in found if text.get_text())


def titles(figure, loc="center"):
    return [panel.get_title(loc=loc) for panel in figure.axes]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# ---- all figures


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_its_size_and_colours_and_a_white_edge(name, tmp_path):
    figure = drawn(name)
    assert isinstance(figure, Figure)
    page = pixels(plots.save(figure, tmp_path / "figure.png"))
    assert page.shape[1::-1] == pytest.approx(160 * figure.get_size_inches(), abs=1)
    assert np.ptp(page) > 0
    edges = [page[:2], page[-2:], page[:, :2], page[:, -2:]]
    assert min(edge.min() for edge in edges) == 255, "something is cut off"


def test_settings_of_the_caller_neither_change_nor_matter(tmp_path):
    with matplotlib.rc_context({"font.size": 23.0, "xtick.direction": "in"}):
        before = dict(matplotlib.rcParams)
        plots.save(plots.samples(moons(20), moons(20)), tmp_path / "a.png")
        assert dict(matplotlib.rcParams) == before
    plots.save(plots.samples(moons(20), moons(20)), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_notebook_displays_a_figure():
    assert drawn("samples")._repr_png_().startswith(b"\x89PNG")


def test_matplotlib_is_imported_when_a_figure_is_drawn_and_pyplot_never():
    code = """if True:
        import sys, ffjord_kit.plots
        print('matplotlib' in sys.modules)
        ffjord_kit.plots.samples([[0, 0], [1, 1]], [[0, 0], [1, 1]])
        print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split() == ["False", "True", "False"]


# ---- files


@pytest.mark.parametrize("suffix", ["JPG", "pdf", "svg"])
def test_files_of_equal_figures_are_equal(suffix, tmp_path):
    first, second = (plots.save(plots.samples(moons(9), moons(9)), tmp_path / f"{i}.{suffix}") for i in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_saving_creates_the_folder_and_no_other_file(tmp_path):
    path = plots.save(drawn("samples"), tmp_path / "new" / "folder" / "a.png")
    assert list(path.parent.iterdir()) == [path]


def test_failed_saving_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_text("old")
    figure = drawn("samples")

    def fail(temporary, **_):
        Path(temporary).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save(figure, path)
    assert [one.read_text() for one in tmp_path.iterdir()] == ["old"]


# ---- densities


def test_density_takes_a_title():
    figure = plots.density(moons(50), wide, truth=mixture, size=9, title="over other points")
    assert figure.get_suptitle() == "over other points"
    assert plots.density(moons(50), wide, size=9).get_suptitle() == ""


def test_density_title_states_the_divergence_on_the_data():
    gaps = mixture(moons(400)) - wide(moons(400))
    mean, error = map(float, re.findall(r"-?\d+\.\d+", drawn("density").get_suptitle()))
    assert mean == pytest.approx(gaps.mean(), abs=1e-3)
    assert error == pytest.approx(gaps.std(ddof=1) / 20, abs=1e-3)


def test_density_panels_share_their_axes_and_one_colour_scale():
    panels = drawn("density").axes[:3]
    images = [panel.images[0] for panel in panels]
    assert len({image.get_clim() for image in images}) == 1
    assert len({tuple(image.get_extent()) for image in images}) == 1
    assert [panel.get_title() for panel in panels[1:]] == ["learned density", "true density"]


def test_peak_is_drawn_in_its_place():
    def peak(x):
        return -50 * ((x - [2.0, -1.0]) ** 2).sum(-1)

    image = plots.density(moons(50), peak, bounds=BOUNDS, size=50).axes[1].images[0]
    row, column = np.unravel_index(np.argmax(image.get_array()), (50, 50))
    assert (column + 0.5) / 50 * 5 - 2 == pytest.approx(2.0, abs=0.06)
    assert (row + 0.5) / 50 * 4 - 2 == pytest.approx(-1.0, abs=0.05)
    assert image.origin == "lower"


def test_smooth_histogram_is_normalized():
    values = smooth_histogram(moons(300), ((-4.0, 5.0), (-4.0, 4.0)), 40, smooth=(0.02, 0.02))
    assert values.sum() * 9 * 8 / 40**2 == pytest.approx(1.0)


def test_levels_enclose_their_fraction_of_the_mass():
    grid = plots.grid_points(((-4, 4), (-4, 4)), 200)
    heights = np.exp(-0.5 * (grid**2).sum(-1))
    # a Gaussian holds 1 - h / peak above h
    assert mass_levels(heights, (0.9, 0.5)) == pytest.approx([0.1, 0.5], rel=0.02)


def test_outlier_does_not_move_the_bounds():
    x = moons(1000)
    with_outlier = plots.robust_bounds(np.concatenate([x, [[900.0, -900.0]]]))
    np.testing.assert_allclose(with_outlier, plots.robust_bounds(x), atol=0.1)


def test_bounds_of_equal_points_have_a_size():
    assert plots.robust_bounds(np.ones((3, 2)), margin=0.5) == ((0.5, 1.5), (0.5, 1.5))


# ---- motion


def test_gif_has_a_frame_per_time_and_a_pause_at_the_end(tmp_path):
    times = np.linspace(0, 1, 60)
    path = plots.density_gif(tmp_path / "flow.gif", times, field(times, size=24), BOUNDS, seconds=3)
    assert path.stat().st_size < 2_000_000
    with Image.open(path) as movie:
        durations = []
        for frame in range(movie.n_frames):
            movie.seek(frame)
            movie.load()
            durations.append(movie.info["duration"])
        assert movie.size == (256, 235)
        assert len(movie.convert("RGB").getcolors(10**6)) > 20
    assert len(durations) == 60
    assert sum(durations) == 3000 + 1500
    assert durations[-1] > 1500
    assert list(tmp_path.iterdir()) == [path]


def test_gif_of_noise_stays_small(tmp_path):
    noise = np.random.default_rng(0).normal(size=(60, 100, 100))
    path = plots.density_gif(tmp_path / "a.gif", np.arange(60), noise, BOUNDS)
    assert path.stat().st_size < 2_000_000


def test_gif_shows_a_peak_in_its_place_and_the_base_first(tmp_path):
    left, right = (-20 * ((plots.grid_points(BOUNDS, 40) - at) ** 2).sum(-1) for at in ([-1, 1], [2, -1]))
    frames = np.stack([right, left]).reshape(2, 40, 40)
    path = plots.density_gif(tmp_path / "a.gif", [1.0, 0.0], frames, BOUNDS)
    brightest = []
    with Image.open(path) as movie:
        for frame in range(2):
            movie.seek(frame)
            page = np.asarray(movie.convert("RGB")).astype(int).sum(-1)[:200]
            brightest.append(np.divmod(np.argmax(page), 256)[::-1])
    np.testing.assert_allclose(brightest, [(51, 51), (205, 154)], atol=8)


def test_trajectories_do_not_depend_on_the_order_of_times(tmp_path):
    path, values = flow_path()
    first = plots.save(plots.trajectories(TIMES, path, values), tmp_path / "a.png")
    second = plots.save(plots.trajectories(TIMES[::-1], path[::-1], values[::-1]), tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()


def test_trajectories_are_limited_in_number():
    assert "7 paths from base to data" in texts(plots.trajectories(TIMES, *flow_path(), most=7))


def test_velocity_is_called_with_a_float_and_points():
    calls = []

    def velocity(t, x):
        calls.append((type(t), x.shape))
        return x

    plots.vector_field(velocity, np.array([0.0]), BOUNDS, size=3)
    assert calls == [(float, (9, 2))]


# ---- tables and training


def test_stable_points_are_shaded_and_no_others(tmp_path):
    figure = plots.stability_regions({"euler": stability(1)}, ((-3, 1), (-2, 2)))
    image = pixels(plots.save(figure, tmp_path / "stability.png"))
    panel = figure.axes[0]

    def colour(x, y):
        column, row = panel.transData.transform((x, y)) * image.shape[1] / figure.bbox.width
        return image[round(image.shape[0] - row), round(column)]

    assert (colour(-1.5, 0.5) != 255).any()
    assert (colour(-2.5, 0.5) == 255).all()
    assert (colour(0.5, 0.5) == 255).all()


def test_pair_plot_states_its_number_of_columns():
    assert "3 of 8 columns" in texts(drawn("pair plot"))


def test_samples_state_the_number_outside():
    far = np.concatenate([moons(48, seed=3) * 0.5, [[50.0, 50.0], [0.0, -70.0]]])
    assert "samples (50, 2 outside)" in texts(plots.samples(moons(200), far))


def test_training_curves_mark_the_best_validation_and_separate_the_phases():
    expected = ["loss, flow matching", "loss, maximum likelihood", "validation NLL", "NFE", "learning rate"]
    assert titles(drawn("training curves"), "left") == expected
    assert "best 2 at 90" in texts(drawn("training curves"))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"loss": 1.0}], ["loss"]),
        ([{"loss": 1.0}, {"loss": None}, {"loss": float("nan")}], ["loss"]),
        ([{"step": i, "loss": 1e4 / (1 + i)} for i in range(99)], ["loss"]),
        ([{"step": 5, "validation_nll": -3.0}, {"step": 2, "validation_nll": -4.0}], ["validation NLL"]),
        ([{"loss": 1.0, "nfe_forward": 0, "nfe_backward": 0}] * 3, ["loss"]),
        ([{"loss": 1.0, "nfe_forward": 9 + i % 2} for i in range(99)], ["loss", "NFE"]),
        ([{"phase": "a", "loss": 1.0}, {"validation_nll": 2.0}, {"phase": "b"}], ["loss, a", "validation NLL"]),
    ],
)
def test_training_curves_need_few_keys(rows, expected):
    figure = plots.training_curves(rows)
    assert titles(figure, "left") == expected
    figure.draw_without_rendering()


def test_limits_hold_all_curves_of_a_panel():
    rows = [{"nfe_forward": 100, "nfe_backward": 10} for _ in range(100)]
    assert plots.training_curves(rows).axes[0].get_ylim()[1] > 100


def test_diagnosis_draws_what_there_is():
    figure = drawn("diagnosis")
    assert titles(figure)[:3] == ["error of the solve", "rows at the base", "regions of highest density"]
    assert len(figure.axes[0].lines) == 3  # two curves, and the line of 0.01 nats
    assert texts(drawn("empty diagnosis")).count("nothing to show") == 2


# ---- outlier scores


def test_histograms_have_the_areas_and_one_legend():
    figure = drawn("outlier histograms")
    assert titles(figure) == ["bits: AUROC 0.93", "|z|: AUROC 0.50"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["MNIST", "Fashion-MNIST"]
    assert all(panel.get_legend() is None for panel in figure.axes)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_titles_of_histograms_do_not_overlap(count):
    figure = drawn(f"histograms of {count} scores")
    figure.draw_without_rendering()
    boxes = [panel.title.get_window_extent() for panel in figure.axes[:count]]
    assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])


def limits(inside, outside):
    """Horizontal limits of the histograms of one score."""
    return plots.outlier_histograms({"bits": (inside, outside)}, {"bits": 0.5}).axes[0].get_xlim()


def test_outlier_does_not_stretch_a_histogram():
    inside, outside = scores()["bits"]
    low, high = limits(np.r_[inside, 1e9], np.r_[outside, -1e9])
    assert -5 < low < high < 6


def test_small_set_has_the_weight_of_a_large_one():
    assert limits(np.linspace(0, 1, 50_000), np.linspace(8, 9, 20)) == pytest.approx((0, 9), abs=0.05)


def test_equal_scores_are_drawn():
    assert limits(np.ones(5), np.ones(3)) == (0.5, 1.5)


# ---- bad arguments

BAD = {
    "x must have shape (n, 2); got (5, 3)": lambda: plots.density(np.ones((5, 3)), wide),
    "x must have shape (n, 2); got (0, 2)": lambda: plots.robust_bounds(np.ones((0, 2))),
    "x must be finite; got 1 of 4 values that": lambda: plots.samples([[0, 1], [np.nan, 1]], moons(3)),
    "the result of log_prob must have shape (16,); got ()": lambda: plots.density(moons(9), lambda x: 0.0, size=4),
    "the result of truth must be finite; got 16 of 16": lambda: plots.density(
        moons(9), wide, truth=lambda x: np.full(len(x), np.nan), size=4
    ),
    "bounds must be ((x0, x1), (y0, y1)) with x0 < x1": lambda: plots.grid_points(((1, 0), (0, 1))),
    "bounds must have shape (2, 2); got (4,)": lambda: plots.vector_field(turn, [0.0], (0, 1, 0, 1)),
    "size must be at least 2; got 1": lambda: plots.vector_field(turn, [0.0], BOUNDS, size=1),
    "the result of velocity must have shape (9, 2); got (9,)": lambda: plots.vector_field(
        lambda t, x: x[:, 0], [0.0], BOUNDS, size=3
    ),
    "path must have shape (6, n, 2); got (5, 3, 2)": lambda: plots.trajectories(TIMES, np.ones((5, 3, 2)), TIMES),
    "log_density must have shape (6, 3); got (3, 6)": lambda: plots.trajectories(
        TIMES, np.ones((6, 3, 2)), np.ones((3, 6))
    ),
    "the number of times must be at least 2; got 1": lambda: plots.trajectories([0.0], np.ones((1, 3, 2)), np.ones(3)),
    "times must have shape (T,); got ()": lambda: plots.density_strip(0.0, field(), BOUNDS),
    "log_densities must have shape (6, 4, 4); got (6, 3, 4)": lambda: plots.density_strip(
        TIMES, np.ones((6, 3, 4)), BOUNDS
    ),
    "densities must have one panel or more; got none": lambda: plots.density_panels([], BOUNDS, per_row=2),
    "costate must have shape (6, n); got (3, 6)": lambda: plots.gradients_along_path(
        times=TIMES, costate=np.ones((3, 6)), largest=np.ones((6, 3)), smallest=np.ones((6, 3))
    ),
    "curves must have one model or more; got none": lambda: plots.error_against_cost({}),
    "ode must have shape (k, 4); got (3,)": lambda: plots.error_against_cost({"ode": np.ones(3)}),
    "growths must have one method or more; got none": lambda: plots.stability_regions({}, BOUNDS),
    "euler must have shape (n, m); got (3,)": lambda: plots.stability_regions({"euler": np.ones(3)}, BOUNDS),
    "seconds must be positive; got 0": lambda: plots.density_gif("a.gif", TIMES, field(), BOUNDS, seconds=0),
    "path must end in .gif; got 'a.png'": lambda: plots.density_gif("a.png", TIMES, field(), BOUNDS),
    "path must end in .png or .jpg or .pdf or .svg; got 'a'": lambda: plots.save(Figure(), "a"),
    "records must hold numbers under 'loss'": lambda: plots.training_curves([{"step": 1}]),
    "records must be a list of dicts, one per logged step; got a float": lambda: plots.training_curves([1.0]),
    "sampled must have shape (m, 8); got (200, 7)": lambda: plots.pair_plot(TABLE, TABLE[:, 1:], NAMES),
    "columns must be 8 names; got 1": lambda: plots.pair_plot(TABLE, TABLE, ["a"]),
    "most must be at least 1; got 0": lambda: plots.pair_plot(TABLE, TABLE, NAMES, most=0),
    "scores and aurocs must have the same names, one or more; got ['bits', '|z|'] and ['bits']": lambda: (
        plots.outlier_histograms(scores(), {"bits": 0.5})
    ),
    "got [] and []": lambda: plots.outlier_histograms({}, {}),
    "aurocs must be from 0 to 1; got 0.5 to 93": lambda: plots.outlier_histograms(scores(), {"bits": 93, "|z|": 0.5}),
    "outside of 'bits' must be finite; got 1 of 2": lambda: limits([1.0, 2.0], [np.inf, 1.0]),
    "scores['bits'] and names must each have two elements; got 3 and 2": lambda: plots.outlier_histograms(
        {"bits": np.ones((3, 2))}, {"bits": 0.5}
    ),
    "inside of 'bits' must have shape (n,); got (2, 1)": lambda: limits(np.ones((2, 1)), [1.0]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_argument_is_rejected_in_one_line(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
