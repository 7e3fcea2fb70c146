"""Pictures of image models: what is written is on the page dot for dot, in its place, under the right words."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ffjord_kit import plots
from ffjord_kit.plots.mosaic import SMALL, _dots, numbers

SHAPES = {"8 x 8": (8, 8), "28 x 28": (28, 28), "colour": (32, 32, 3), "tall": (30, 12), "large": (200, 180)}
TIMES = np.array([0.0, 0.5, 1.0])


def blobs(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape)


def scores(n=300, m=200, seed=0):
    rng = np.random.default_rng(seed)
    return {"bits": (rng.normal(size=n), 1 + rng.normal(size=m)), "|z|": (rng.normal(size=n), rng.normal(size=m))}


AREAS = {"bits": 0.934, "|z|": 0.5}

PICTURES = {
    "strip": lambda shape: plots.image_strip(TIMES, blobs(3, 3, *shape)),
    "interpolation": lambda shape: plots.interpolation_strip(blobs(3, 4, *shape)),
    "nearest": lambda shape: plots.nearest_images(blobs(3, *shape), blobs(3, 2, *shape), 1 + blobs(3, 2)),
    "extreme": lambda shape: plots.extreme_images(blobs(3, *shape), blobs(6, *shape), 3 + blobs(3), blobs(6)),
    "sheet": lambda shape: plots.image_sheet(blobs(6, *shape), columns=4, beside=blobs(5, *shape)),
}


def pages(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def texts(figure):
    """All that is written, where there is anything."""
    found = [text for axes in figure.axes for text in (axes._left_title, *axes.texts)]
    return [text for text in found if text.get_text()]


def words(figure):
    return [text.get_text() for text in texts(figure)]


def saved(figure, folder):
    with Image.open(plots.save(figure, folder / "a.png")) as image:
        return np.asarray(image.convert("RGB"))


def boxes(figure):
    figure.draw_without_rendering()
    return [text.get_window_extent() for text in texts(figure)]


# ---- mosaics


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PICTURES)
def test_images_are_on_the_page_dot_for_dot(name, shape, tmp_path):
    figure = PICTURES[name](SHAPES[shape])
    assert isinstance(figure, Figure)
    written = saved(figure, tmp_path)
    high, wide = written.shape[:2]
    for axes, page in zip(figure.axes, pages(figure), strict=True):
        box = axes.get_position()
        top, left = round(high * (1 - box.y1)), round(wide * box.x0)
        height, width = page.shape[:2]
        found = written[top : top + height, left : left + width]
        coloured = (page < 255).any(-1)  # on the white between, there are words
        np.testing.assert_array_equal(found[coloured], page[coloured])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PICTURES)
def test_no_words_overlap_or_leave_the_page_which_is_neither_tiny_nor_huge(name, shape):
    figure = PICTURES[name](SHAPES[shape])
    found = boxes(figure)
    width, height = figure.bbox.size
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in found)
    overlaps = [a.overlaps(b) for place, a in enumerate(found) for b in found[:place]]
    assert not any(overlaps)
    assert 1 < min(figure.get_size_inches()) <= max(figure.get_size_inches()) < 12


def test_a_notebook_shows_a_mosaic_as_it_is_written(tmp_path):
    figure = PICTURES["strip"]((8, 8))
    assert figure._repr_png_()[16:24] == plots.save(figure, tmp_path / "a.png").read_bytes()[16:24]  # width and height


def test_pixels_of_a_small_image_become_equal_squares():
    (page,) = pages(plots.image_sheet(blobs(1, 8, 8)))
    times = len(page) // 8
    np.testing.assert_array_equal(page, page[::times, ::times].repeat(times, 0).repeat(times, 1))
    np.testing.assert_array_equal(page[::times, ::times, 0], np.rint(255 * blobs(1, 8, 8)[0]))


def test_more_columns_make_smaller_images_not_an_endless_page():
    sizes = [plots.image_strip(np.linspace(0, 1, count), blobs(count, 1, 28, 28)) for count in (5, 15, 30)]
    widths = [figure.get_size_inches()[0] for figure in sizes]
    assert max(widths) < 12 and [len(page) for page in (pages(figure)[0] for figure in sizes)] == [112, 112, 56]


# ---- strips


def flat(values):
    """Images of one grey each."""
    return np.asarray(values)[..., None, None] * np.ones((4, 4))


def grey(page, rows, columns):
    """The grey in the middle of each image on a page, (rows, columns)."""
    down, right = page.shape[0] / rows, page.shape[1] / columns
    places = np.ix_(((np.arange(rows) + 0.5) * down).astype(int), ((np.arange(columns) + 0.5) * right).astype(int))
    return page[..., 0][places] / 255


def test_a_strip_has_a_row_for_each_sample_and_a_column_for_each_time_in_either_direction():
    values = np.array([[0.0, 0.2], [0.4, 0.6], [0.8, 1.0]])
    for order in (slice(None), slice(None, None, -1)):
        figure = plots.image_strip(TIMES[order], flat(values[order]))
        np.testing.assert_allclose(grey(pages(figure)[0], 2, 3), values.T, atol=1e-2)
        assert words(figure) == ["t = 0.00", "t = 0.50", "t = 1.00"]


def test_headings_of_narrow_columns_are_thinned_out():
    figure = plots.image_strip(np.linspace(0, 1, 31), flat(np.zeros((31, 2))))
    assert 10 <= len(words(figure)) <= 16
    found = boxes(figure)
    assert all(a.x1 < b.x0 for a, b in zip(found[:-1], found[1:], strict=True))


def test_an_interpolation_marks_the_data_at_its_ends():
    values = np.linspace(0, 1, 10).reshape(2, 5)
    figure = plots.interpolation_strip(flat(values))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["data", "through the base", "data"]
    found = [grey(page, 2, columns) for page, columns in zip(pages(figure), (1, 3, 1), strict=True)]
    np.testing.assert_allclose(np.concatenate(found, axis=1), values, atol=1e-2)


# ---- neighbours and extremes


def test_each_sample_stands_in_the_row_of_its_neighbours():
    figure = plots.nearest_images(
        flat([0.1, 0.9]), flat([[0.2, 0.3, 0.4], [0.6, 0.7, 0.8]]), [[1, 2, 30.25], [0, 4, 5]]
    )
    left, right = pages(figure)
    assert left.shape[0] == right.shape[0]
    np.testing.assert_allclose(grey(left, 2, 1)[:, 0], [0.1, 0.9], atol=1e-2)
    np.testing.assert_allclose(grey(right, 2, 3), [[0.2, 0.3, 0.4], [0.6, 0.7, 0.8]], atol=1e-2)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["sample", "nearest training images"]
    assert [word for word in words(figure) if word[0].isdigit()] == ["1.0", "2.0", "30.2", "0.0", "4.0", "5.0"]


def test_a_distance_stands_beneath_its_image():
    figure = plots.nearest_images(flat([0.0]), flat([[0.0, 0.0]]), [[1, 2]])
    figure.draw_without_rendering()
    panel = figure.axes[1].get_window_extent()
    for text, share in zip(figure.axes[1].texts, (0.25, 0.75), strict=True):
        box = text.get_window_extent()
        assert (box.x0 + box.x1) / 2 == pytest.approx(panel.x0 + share * panel.width, abs=3)
        assert panel.y0 <= box.y0 and box.y1 < panel.y0 + 0.25 * panel.height


def test_extremes_carry_their_bits():
    figure = plots.extreme_images(flat([0.1, 0.2, 0.3]), flat([0.9]), [5.0, 4.5, 4.25], [1.0], columns=2)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["least likely (bits/dim)", "most likely (bits/dim)"]
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [["5.00", "4.50", "4.25"], ["1.00"]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0], ["0.00", "0.00"]),
        ([0.01234, 0.5], ["0.012", "0.500"]),
        ([-3.5, 1.0], ["-3.50", "1.00"]),
        ([12345.6, 1.0], ["12346", "1"]),
        ([1e-12], ["0.00000"]),
    ],
)
def test_numbers_of_one_picture_have_the_same_decimals(values, expected):
    assert numbers(np.array(values)) == expected


def test_the_width_of_words_is_not_taken_for_less_than_it_is():
    for word in ("t = 0.00", "nearest training images", "1234.5"):
        text = Figure(dpi=160).text(0, 0, word, fontsize=SMALL, family="DejaVu Sans")
        text.figure.draw_without_rendering()
        width = text.get_window_extent().width
        assert 0.7 * _dots(word, SMALL) < width <= _dots(word, SMALL)


# ---- histograms of scores


def test_histograms_carry_the_areas_and_one_legend():
    figure = plots.outlier_histograms(scores(), AREAS, names=("MNIST", "Fashion-MNIST"))
    assert [panel.get_title() for panel in figure.axes] == ["bits: AUROC 0.93", "|z|: AUROC 0.50"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["MNIST", "Fashion-MNIST"]
    assert all(panel.get_legend() is None for panel in figure.axes)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_histograms_of_any_number_of_scores_are_drawn_without_overlap(count, tmp_path):
    many = {f"score {i}, a long one": scores()["bits"] for i in range(count)}
    figure = plots.outlier_histograms(many, dict.fromkeys(many, 0.75))
    page = saved(figure, tmp_path)
    assert min(edge.min() for edge in (page[:2], page[-2:], page[:, :2], page[:, -2:])) == 255
    figure.draw_without_rendering()
    titles = [panel.title.get_window_extent() for panel in figure.axes[:count]]
    assert not any(a.overlaps(b) for place, a in enumerate(titles) for b in titles[:place])


def test_an_outlier_does_not_press_a_histogram_together():
    inside, outside = scores()["bits"]
    spoiled = {"bits": (np.r_[inside, 1e9], np.r_[outside, -1e9])}
    low, high = plots.outlier_histograms(spoiled, {"bits": 0.9}).axes[0].get_xlim()
    assert -5 < low < high < 6


def test_a_small_set_is_not_lost_beside_a_large_one():
    unequal = {"bits": (np.linspace(0, 1, 50_000), np.linspace(8, 9, 20))}
    low, high = plots.outlier_histograms(unequal, {"bits": 1.0}).axes[0].get_xlim()
    assert low == pytest.approx(0, abs=0.05) and high == pytest.approx(9, abs=0.05)


def test_equal_scores_are_drawn():
    same = {"bits": (np.ones(5), np.ones(3))}
    assert plots.outlier_histograms(same, {"bits": 0.5}).axes[0].get_xlim() == (0.5, 1.5)


# ---- what a user may get wrong

A, B = blobs(4, 8, 8), blobs(4, 8, 7)
BAD = {
    "times must have shape (T,); got ()": lambda: plots.image_strip(0.0, blobs(1, 2, 8, 8)),
    "images must have shape (3, n, h, w); got (2, 4, 8, 8)": lambda: plots.image_strip(TIMES, blobs(2, 4, 8, 8)),
    "images must have shape (3, n, h, w, 3); got (3, 4, 3, 8, 8)": lambda: plots.image_strip(
        TIMES, blobs(3, 4, 3, 8, 8)
    ),
    "images must be integers from 0 to 255 or floats from 0 to 1; got float64 from -3": lambda: plots.image_strip(
        TIMES, -3 * np.ones((3, 4, 8, 8))
    ),
    "images must have shape (rows, steps, h, w); got (4, 8, 8)": lambda: plots.interpolation_strip(A),
    "the number of steps must be at least 3; got 2": lambda: plots.interpolation_strip(blobs(4, 2, 8, 8)),
    "neighbours must have shape (4, k, h, w); got (5, 2, 8, 8)": lambda: plots.nearest_images(
        A, blobs(5, 2, 8, 8), np.ones((4, 2))
    ),
    "neighbours must be as high and wide as samples, (8, 8); got (8, 7)": lambda: plots.nearest_images(
        A, B[:, None], np.ones((4, 1))
    ),
    "distances must have shape (4, 1); got (4,)": lambda: plots.nearest_images(A, A[:, None], np.ones(4)),
    "distances must be finite; got 4 of 4": lambda: plots.nearest_images(A, A[:, None], np.full((4, 1), np.nan)),
    "most must be as high and wide as least, (8, 8); got (8, 7)": lambda: plots.extreme_images(
        A, B, np.ones(4), np.ones(4)
    ),
    "most_bits must have shape (3,); got (4,)": lambda: plots.extreme_images(A, A[:3], np.ones(4), np.ones(4)),
    "least_bits must be above most_bits in the mean; got 1 and 2": lambda: plots.extreme_images(
        A, A, np.ones(4), 2 * np.ones(4)
    ),
    "columns must be at least 1; got 0": lambda: plots.extreme_images(A, A, np.ones(4), np.ones(4), columns=0),
    "scores and aurocs must have the same names, one or more; got ['bits', '|z|'] and ['bits']": lambda: (
        plots.outlier_histograms(scores(), {"bits": 0.5})
    ),
    "got [] and []": lambda: plots.outlier_histograms({}, {}),
    "aurocs must be from 0 to 1; got 0.5 to 93": lambda: plots.outlier_histograms(scores(), {"bits": 93, "|z|": 0.5}),
    "outside of 'bits' must be finite; got 1 of 2": lambda: plots.outlier_histograms(
        {"bits": ([1.0, 2.0], [np.inf, 1.0])}, {"bits": 0.5}
    ),
    "scores['bits'] must be the values of two sets, and names two; got 3": lambda: plots.outlier_histograms(
        {"bits": np.ones((3, 2))}, {"bits": 0.5}
    ),
    "inside of 'bits' must have shape (n,); got (2, 1)": lambda: plots.outlier_histograms(
        {"bits": (np.ones((2, 1)), [1.0])}, {"bits": 0.5}
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_a_mistake_gets_one_line_that_says_what_was_expected_and_what_came(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
