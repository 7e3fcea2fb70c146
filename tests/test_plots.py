"""Every picture is drawn from synthetic arrays, written, opened again and looked at by its pixels or its words."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ffjord_kit import plots
from ffjord_kit.plots.arrays import histogram, levels

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
    """The numbers of a diagnosis."""
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


TABLE = np.random.default_rng(2).normal(size=(200, 8))
NAMES = ["a", "b", "under_score", "$dollar_$", "a name that is far too long for its panel", "f", "g", "h"]
DIGITS = np.linspace(0, 1, 7 * 8 * 8).reshape(7, 8, 8)

PICTURES = {
    "density": lambda: plots.density(moons(500), wide, truth=mixture, size=40),
    "diagnosis": lambda: plots.diagnosis(**examined()),
    "samples": lambda: plots.samples(moons(300), moons(200, seed=1)),
    "trajectories": lambda: plots.trajectories(TIMES, *flow_path()),
    "vector field": lambda: plots.vector_field(turn, [0.0, 1.0], BOUNDS, size=8),
    "vector field at rest": lambda: plots.vector_field(lambda t, x: 0 * x, [0.0], BOUNDS, size=5),
    "density strip": lambda: plots.density_strip(TIMES, field(), BOUNDS),
    "training curves": lambda: plots.training_curves(records()),
    "pair plot": lambda: plots.pair_plot(TABLE, TABLE[:90] + 0.1, NAMES, most=3),
    "image sheet": lambda: plots.image_sheet(DIGITS, columns=3, titles=list("abcdefg"), beside=DIGITS[:4]),
}


def words(figure):
    """All that is written on a figure."""
    drawn = figure.findobj(lambda artist: isinstance(artist, matplotlib.text.Text))
    return " | ".join(text.get_text() for text in drawn if text.get_text())


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def in_a_new_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_saves_at_its_size_in_more_than_one_colour_and_touches_no_edge(name, tmp_path):
    figure = PICTURES[name]()
    assert isinstance(figure, Figure)
    page = pixels(plots.save(figure, tmp_path / "picture.png"))
    assert page.shape[1::-1] == pytest.approx(160 * figure.get_size_inches(), abs=1)
    assert len(set(map(bytes, page.reshape(-1, 3)))) > 1
    edges = [page[:2], page[-2:], page[:, :2], page[:, -2:]]
    assert min(edge.min() for edge in edges) == 255, "something is cut off"


def test_pictures_leave_no_pyplot_state_and_the_callers_settings_as_they_were(tmp_path):
    with matplotlib.rc_context({"font.size": 23.0, "xtick.direction": "in"}):
        before = dict(matplotlib.rcParams)
        plots.save(plots.samples(moons(20), moons(20)), tmp_path / "a.png")
        assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
    plots.save(plots.samples(moons(20), moons(20)), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_notebook_shows_a_figure_by_itself():
    assert plots.samples(moons(20), moons(20))._repr_png_().startswith(b"\x89PNG")


def test_importing_plots_does_not_import_matplotlib():
    assert in_a_new_process("import sys, ffjord_kit.plots; print('matplotlib' in sys.modules)").split() == ["False"]


# ---- files


@pytest.mark.parametrize("ending", ["JPG", "pdf", "svg"])
def test_two_writings_of_one_picture_are_equal(ending, tmp_path):
    first, second = (plots.save(plots.samples(moons(9), moons(9)), tmp_path / f"{i}.{ending}") for i in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_saving_makes_the_folder_and_leaves_no_other_file(tmp_path):
    path = plots.save(plots.image_sheet(DIGITS), tmp_path / "new" / "folder" / "a.png")
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_text("old")
    figure = plots.samples(moons(9), moons(9))

    def fail(temporary, **_):
        Path(temporary).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save(figure, path)
    assert [one.read_text() for one in tmp_path.iterdir()] == ["old"]


# ---- densities


@pytest.fixture(scope="module")
def compared():
    return plots.density(moons(400), wide, truth=mixture, size=20)


def test_the_title_carries_the_divergence_on_the_given_data(compared):
    gaps = mixture(moons(400)) - wide(moons(400))
    mean, error = map(float, re.findall(r"-?\d+\.\d+", compared.get_suptitle()))
    assert mean == pytest.approx(gaps.mean(), abs=1e-3)
    assert error == pytest.approx(gaps.std(ddof=1) / 20, abs=1e-3)


def test_density_panels_share_their_axes_and_one_colour_scale(compared):
    images = [axes.images[0] for axes in compared.axes[:3]]
    assert len({image.get_clim() for image in images}) == 1
    assert len({tuple(image.get_extent()) for image in images}) == 1
    assert [axes.get_title() for axes in compared.axes[1:3]] == ["learned density", "true density"]


def test_a_peak_is_drawn_where_it_is():
    def peak(x):
        return -50 * ((x - [2.0, -1.0]) ** 2).sum(-1)

    image = plots.density(moons(50), peak, bounds=BOUNDS, size=50).axes[1].images[0]
    row, column = np.unravel_index(np.argmax(image.get_array()), (50, 50))
    assert (column + 0.5) / 50 * 5 - 2 == pytest.approx(2.0, abs=0.06)
    assert (row + 0.5) / 50 * 4 - 2 == pytest.approx(-1.0, abs=0.05)
    assert image.origin == "lower"


def test_the_smooth_histogram_is_a_density():
    wide_bounds = ((-4.0, 5.0), (-4.0, 4.0))
    values = histogram(moons(300), wide_bounds, 40, smooth=(0.02, 0.02))
    assert values.sum() * 9 * 8 / 40**2 == pytest.approx(1.0)


def test_levels_enclose_their_share_of_the_mass():
    grid = plots.grid_points(((-4, 4), (-4, 4)), 200)
    heights = np.exp(-0.5 * (grid**2).sum(-1))
    assert levels(heights, (0.9, 0.5)) == pytest.approx([0.1, 0.5], rel=0.02)  # a Gaussian holds 1 - h / peak above h


def test_bounds_are_not_moved_by_an_outlier():
    x = moons(1000)
    with_outlier = plots.robust_bounds(np.concatenate([x, [[900.0, -900.0]]]))
    np.testing.assert_allclose(with_outlier, plots.robust_bounds(x), atol=0.1)


def test_bounds_of_equal_points_have_a_size():
    assert plots.robust_bounds(np.ones((3, 2)), margin=0.5) == ((0.5, 1.5), (0.5, 1.5))


# ---- motion


def test_the_gif_has_a_frame_per_time_a_pause_at_the_end_and_is_small(tmp_path):
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


def test_the_gif_stays_small_for_noise(tmp_path):
    noise = np.random.default_rng(0).normal(size=(60, 100, 100))
    path = plots.density_gif(tmp_path / "a.gif", np.arange(60), noise, BOUNDS)
    assert path.stat().st_size < 2_000_000


def test_the_gif_shows_a_peak_where_it_is_and_the_base_first(tmp_path):
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


def test_trajectories_run_from_base_to_data_in_whichever_order_they_come(tmp_path):
    path, values = flow_path()
    first = plots.save(plots.trajectories(TIMES, path, values), tmp_path / "a.png")
    second = plots.save(plots.trajectories(TIMES[::-1], path[::-1], values[::-1]), tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()


def test_trajectories_draw_at_most_so_many():
    assert "7 paths from base to data" in words(plots.trajectories(TIMES, *flow_path(), most=7))


def test_the_velocity_is_asked_with_a_float_and_points():
    asked = []

    def velocity(t, x):
        asked.append((type(t), x.shape))
        return x

    plots.vector_field(velocity, np.array([0.0]), BOUNDS, size=3)
    assert asked == [(float, (9, 2))]


# ---- tables, training, images


def test_the_pair_plot_says_how_many_columns_it_shows():
    assert "2 of 8 columns" in words(plots.pair_plot(TABLE, TABLE, NAMES, most=2))


def test_samples_say_how_many_lie_outside():
    far = np.concatenate([moons(48, seed=3) * 0.5, [[50.0, 50.0], [0.0, -70.0]]])
    assert "samples (50, 2 outside)" in words(plots.samples(moons(200), far))


@pytest.mark.parametrize("x", [np.ones((5, 2)), np.eye(2)])
def test_a_pair_plot_of_hardly_any_data_is_drawn(x, tmp_path):
    plots.save(plots.pair_plot(x, x + 1e9, ["a", "b"]), tmp_path / "a.png")


def test_training_curves_mark_the_best_validation_and_part_the_phases():
    figure = plots.training_curves(records())
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "loss, flow matching",
        "loss, maximum likelihood",
        "validation NLL",
        "NFE",
        "learning rate",
    ]
    assert "best 2 at 90" in words(figure)


@pytest.mark.parametrize(
    ("rows", "titles"),
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
def test_training_curves_work_with_few_or_missing_keys(rows, titles, tmp_path):
    figure = plots.training_curves(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes] == titles
    figure.savefig(tmp_path / "a.png", dpi=40)


def test_neither_curve_of_a_panel_is_cut_by_the_limits_of_the_other():
    rows = [{"nfe_forward": 100, "nfe_backward": 10} for _ in range(100)]
    assert plots.training_curves(rows).axes[0].get_ylim()[1] > 100


def test_images_of_bytes_and_of_floats_are_one_sheet(tmp_path):
    bytes_ = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
    first = plots.save(plots.image_sheet(bytes_), tmp_path / "a.png")
    second = plots.save(plots.image_sheet(bytes_ / 255), tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()


def test_images_lie_in_rows_in_their_order_and_keep_their_colours():
    colours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float)
    page = plots.image_sheet(np.broadcast_to(colours[:, None, None], (3, 4, 4, 3)), columns=2).axes[0].images[0]
    page = np.asarray(page.get_array()) / 255
    np.testing.assert_array_equal([page[0, 0], page[0, -1], page[-1, 0], page[-1, -1]], [*colours, np.ones(3)])


def test_blocks_of_images_are_headed():
    figure = plots.image_sheet(DIGITS, beside=DIGITS[:2])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["samples", "data"]


# ---- what a user may get wrong

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
    "seconds must be positive; got 0": lambda: plots.density_gif("a.gif", TIMES, field(), BOUNDS, seconds=0),
    "path must end in .gif; got 'a.png'": lambda: plots.density_gif("a.png", TIMES, field(), BOUNDS),
    "path must end in .png or .jpg or .pdf or .svg; got 'a'": lambda: plots.save(Figure(), "a"),
    "records must hold numbers under 'loss'": lambda: plots.training_curves([{"step": 1}]),
    "records must be a list of dicts": lambda: plots.training_curves([1.0]),
    "sampled must have shape (m, 8); got (200, 7)": lambda: plots.pair_plot(TABLE, TABLE[:, 1:], NAMES),
    "columns must be 8 names; got 1": lambda: plots.pair_plot(TABLE, TABLE, ["a"]),
    "most must be at least 1; got 0": lambda: plots.pair_plot(TABLE, TABLE, NAMES, most=0),
    "images must have shape (n, h, w); got (8, 8)": lambda: plots.image_sheet(DIGITS[0]),
    "images must have shape (n, h, w, 3); got (2, 3, 8, 8)": lambda: plots.image_sheet(np.ones((2, 3, 8, 8))),
    "images must be integers from 0 to 255 or floats from 0 to 1": lambda: plots.image_sheet(255 * DIGITS),
    "beside must be as high and wide as images, (8, 8); got (8, 7)": lambda: plots.image_sheet(
        DIGITS, beside=DIGITS[..., 1:]
    ),
    "titles must be 7 words, one per image; got 1": lambda: plots.image_sheet(DIGITS, titles=["a"]),
}


@pytest.mark.parametrize("message", BAD)
def test_a_mistake_gets_one_line_that_says_what_was_expected_and_what_came(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_diagnosis_draws_what_there_is():
    panels = plots.diagnosis(**examined()).axes
    assert [panel.get_title() for panel in panels][:3] == [
        "error of the solve",
        "rows at the base",
        panels[2].get_title(),
    ]
    assert len(panels[0].lines) == 3  # two curves, and the line of 0.01 nats
    without = plots.diagnosis(**examined(errors={}, spectrum=None, steps=np.full(9, 3)))
    assert words(without).count("nothing to show") == 2
