"""Figures of image models: images are drawn pixel for pixel, in their places, beneath the right texts."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ffjord_kit import plots
from ffjord_kit.plots.mosaic import CAPTION_SIZE, format_numbers, text_width

SHAPES = {"8 x 8": (8, 8), "28 x 28": (28, 28), "colour": (32, 32, 3), "tall": (30, 12), "large": (200, 180)}
TIMES = np.array([0.0, 0.5, 1.0])


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape)


FIGURES = {
    "strip": lambda shape: plots.image_strip(TIMES, noise(3, 3, *shape)),
    "interpolation": lambda shape: plots.interpolation_strip(noise(3, 4, *shape)),
    "nearest": lambda shape: plots.nearest_images(noise(3, *shape), noise(3, 2, *shape), 1 + noise(3, 2)),
    "extreme": lambda shape: plots.extreme_images(noise(3, *shape), noise(6, *shape), 3 + noise(3), noise(6)),
    "sheet": lambda shape: plots.image_sheet(noise(6, *shape), columns=4, beside=noise(5, *shape)),
    "titled sheet": lambda shape: plots.image_sheet(
        noise(6, *shape), columns=4, titles=list("abcdef"), beside=noise(5, *shape)
    ),
}


@cache
def drawn(name, shape):
    """One figure of FIGURES, drawn once for all tests."""
    return FIGURES[name](shape)


def pages(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def texts(figure):
    """All texts that are not empty."""
    found = [text for axes in figure.axes for text in (axes._left_title, *axes.texts)]
    return [text for text in found if text.get_text()]


def words(figure):
    return [text.get_text() for text in texts(figure)]


def headings(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def boxes(figure):
    figure.draw_without_rendering()
    return [text.get_window_extent() for text in texts(figure)]


def flat(values):
    """Images of one grey each."""
    return np.asarray(values)[..., None, None] * np.ones((4, 4))


def grey(page, rows, columns):
    """The grey in the middle of each image on a page, (rows, columns)."""
    down, right = page.shape[0] / rows, page.shape[1] / columns
    places = np.ix_(((np.arange(rows) + 0.5) * down).astype(int), ((np.arange(columns) + 0.5) * right).astype(int))
    return page[..., 0][places] / 255


# ---- layout


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", FIGURES)
def test_images_are_written_pixel_for_pixel(name, shape, tmp_path):
    figure = drawn(name, shape)
    assert isinstance(figure, Figure)
    with Image.open(plots.save(figure, tmp_path / "a.png")) as image:
        written = np.asarray(image.convert("RGB"))
    high, wide = written.shape[:2]
    for axes, page in zip(figure.axes, pages(figure), strict=True):
        box = axes.get_position()
        top, left = round(high * (1 - box.y1)), round(wide * box.x0)
        height, width = page.shape[:2]
        part = written[top : top + height, left : left + width]
        coloured = (page < 255).any(-1)  # texts stand on the white between images
        np.testing.assert_array_equal(part[coloured], page[coloured])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", FIGURES)
def test_texts_do_not_overlap_and_the_page_has_a_sensible_size(name, shape):
    figure = drawn(name, shape)
    found = boxes(figure)
    width, height = figure.bbox.size
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in found)
    overlaps = [a.overlaps(b) for place, a in enumerate(found) for b in found[:place]]
    assert not any(overlaps)
    assert 1 < min(figure.get_size_inches()) <= max(figure.get_size_inches()) < 12


def test_notebook_displays_images_at_their_written_size(tmp_path):
    figure = drawn("strip", (8, 8))
    assert figure._repr_png_()[16:24] == plots.save(figure, tmp_path / "a.png").read_bytes()[16:24]  # width and height


def test_pixels_of_a_small_image_become_equal_squares():
    (page,) = pages(plots.image_sheet(noise(1, 8, 8)))
    factor = len(page) // 8
    np.testing.assert_array_equal(page, page[::factor, ::factor].repeat(factor, 0).repeat(factor, 1))
    np.testing.assert_array_equal(page[::factor, ::factor, 0], np.rint(255 * noise(1, 8, 8)[0]))


def test_more_columns_make_smaller_images_rather_than_a_wider_page():
    figures = [plots.image_strip(np.linspace(0, 1, count), noise(count, 1, 28, 28)) for count in (5, 15, 30)]
    assert max(figure.get_size_inches()[0] for figure in figures) < 12
    assert [len(pages(figure)[0]) for figure in figures] == [112, 112, 56]


@pytest.mark.parametrize("word", ["t = 0.00", "nearest training images", "1234.5"])
def test_estimated_width_of_a_text_is_not_too_small(word):
    text = Figure(dpi=160).text(0, 0, word, fontsize=CAPTION_SIZE, family="DejaVu Sans")
    text.figure.draw_without_rendering()
    width = text.get_window_extent().width
    assert 0.7 * text_width(word, CAPTION_SIZE) < width <= text_width(word, CAPTION_SIZE)


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
def test_numbers_of_one_figure_have_equal_decimals(values, expected):
    assert format_numbers(np.array(values)) == expected


# ---- sheets


def test_bytes_and_floats_give_the_same_sheet():
    levels = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
    np.testing.assert_array_equal(pages(plots.image_sheet(levels)), pages(plots.image_sheet(levels / 255)))


def test_images_lie_in_rows_in_their_order_and_keep_their_colours():
    colours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float)
    (page,) = pages(plots.image_sheet(np.broadcast_to(colours[:, None, None], (3, 4, 4, 3)), columns=2))
    corners = [page[0, 0], page[0, -1], page[-1, 0], page[-1, -1]]
    np.testing.assert_array_equal(np.array(corners) / 255, [*colours, np.ones(3)])


def test_sheet_has_headings_and_titles():
    assert headings(drawn("sheet", (8, 8))) == ["samples", "data"]
    assert words(drawn("titled sheet", (8, 8))) == ["samples", *"abcdef", "data"]


# ---- strips


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["forward", "backward"])
def test_strip_has_a_row_for_each_sample_and_a_column_for_each_time(order):
    values = np.array([[0.0, 0.2], [0.4, 0.6], [0.8, 1.0]])
    figure = plots.image_strip(TIMES[order], flat(values[order]))
    np.testing.assert_allclose(grey(pages(figure)[0], 2, 3), values.T, atol=1e-2)
    assert words(figure) == ["t = 0.00", "t = 0.50", "t = 1.00"]


def test_labels_of_narrow_columns_are_thinned_out():
    figure = plots.image_strip(np.linspace(0, 1, 31), flat(np.zeros((31, 2))))
    assert 10 <= len(words(figure)) <= 16
    found = boxes(figure)
    assert all(a.x1 < b.x0 for a, b in zip(found[:-1], found[1:], strict=True))


def test_interpolation_has_the_data_at_its_ends():
    values = np.linspace(0, 1, 10).reshape(2, 5)
    figure = plots.interpolation_strip(flat(values))
    assert headings(figure) == ["data", "through the base", "data"]
    found = [grey(page, 2, columns) for page, columns in zip(pages(figure), (1, 3, 1), strict=True)]
    np.testing.assert_allclose(np.concatenate(found, axis=1), values, atol=1e-2)


# ---- neighbours and extremes


def test_each_sample_has_the_row_of_its_neighbours():
    figure = plots.nearest_images(
        flat([0.1, 0.9]), flat([[0.2, 0.3, 0.4], [0.6, 0.7, 0.8]]), [[1, 2, 30.25], [0, 4, 5]]
    )
    left, right = pages(figure)
    assert left.shape[0] == right.shape[0]
    np.testing.assert_allclose(grey(left, 2, 1)[:, 0], [0.1, 0.9], atol=1e-2)
    np.testing.assert_allclose(grey(right, 2, 3), [[0.2, 0.3, 0.4], [0.6, 0.7, 0.8]], atol=1e-2)
    assert headings(figure) == ["sample", "nearest training images"]
    assert [word for word in words(figure) if word[0].isdigit()] == ["1.0", "2.0", "30.2", "0.0", "4.0", "5.0"]


def test_distance_stands_beneath_its_image():
    figure = plots.nearest_images(flat([0.0]), flat([[0.0, 0.0]]), [[1, 2]])
    figure.draw_without_rendering()
    panel = figure.axes[1].get_window_extent()
    for text, share in zip(figure.axes[1].texts, (0.25, 0.75), strict=True):
        box = text.get_window_extent()
        assert (box.x0 + box.x1) / 2 == pytest.approx(panel.x0 + share * panel.width, abs=3)
        assert panel.y0 <= box.y0 and box.y1 < panel.y0 + 0.25 * panel.height


def test_extremes_have_their_bits():
    figure = plots.extreme_images(flat([0.1, 0.2, 0.3]), flat([0.9]), [5.0, 4.5, 4.25], [1.0], columns=2)
    assert headings(figure) == ["least likely (bits/dim)", "most likely (bits/dim)"]
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [["5.00", "4.50", "4.25"], ["1.00"]]


# ---- bad arguments

A, B = noise(4, 8, 8), noise(4, 8, 7)
BAD = {
    "images must have shape (n, h, w); got (8, 8)": lambda: plots.image_sheet(A[0]),
    "images must have shape (n, h, w, 3); got (2, 3, 8, 8)": lambda: plots.image_sheet(np.ones((2, 3, 8, 8))),
    "images must be integers from 0 to 255 or floats from 0 to 1": lambda: plots.image_sheet(255 * A),
    "beside must be as high and wide as images, (8, 8); got (8, 7)": lambda: plots.image_sheet(A, beside=B),
    "titles must be 4 strings, one per image; got 1": lambda: plots.image_sheet(A, titles=["a"]),
    "times must have shape (T,); got ()": lambda: plots.image_strip(0.0, noise(1, 2, 8, 8)),
    "images must have shape (3, n, h, w); got (2, 4, 8, 8)": lambda: plots.image_strip(TIMES, noise(2, 4, 8, 8)),
    "images must have shape (3, n, h, w, 3); got (3, 4, 3, 8, 8)": lambda: plots.image_strip(
        TIMES, noise(3, 4, 3, 8, 8)
    ),
    "images must be integers from 0 to 255 or floats from 0 to 1; got float64 from -3": lambda: plots.image_strip(
        TIMES, -3 * np.ones((3, 4, 8, 8))
    ),
    "images must have shape (rows, steps, h, w); got (4, 8, 8)": lambda: plots.interpolation_strip(A),
    "the number of steps must be at least 3; got 2": lambda: plots.interpolation_strip(noise(4, 2, 8, 8)),
    "neighbours must have shape (4, k, h, w); got (5, 2, 8, 8)": lambda: plots.nearest_images(
        A, noise(5, 2, 8, 8), np.ones((4, 2))
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
}


@pytest.mark.parametrize("message", BAD)
def test_bad_argument_is_rejected_in_one_line(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
