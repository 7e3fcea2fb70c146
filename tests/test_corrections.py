"""Corrections against closed forms: half-spaces, discs and an exhaustive search; boxes that pass; words; bad input."""

import itertools

import numpy as np
import pytest
import torch
from oracles import F64

from ffjord_kit.diagnostics.boxes import Certificate, cut
from ffjord_kit.diagnostics.corrections import class_judge, correct
from ffjord_kit.diagnostics.judgment import Allowed, Judgment
from ffjord_kit.diagnostics.minimal_change import linear_step

REFERENCE = np.random.default_rng(0).normal(size=(200, 2))


def plain(names, reach=9.0, scale=1.0):
    """Columns of a common scale, all between -reach and reach."""
    k = len(names)
    return Allowed(tuple(names), torch.arange(k), *(torch.full((k,), v, dtype=F64) for v in (scale, -reach, reach)))


def disc(points, row):
    return 4 - points.square().sum(1)


@pytest.mark.parametrize("stable", [0.0, 0.2])
@pytest.mark.parametrize("k", [2, 8])
def test_a_half_space_has_its_closed_form(k, stable):
    """Only the steepest column moves: by (b - w x + e |w|_1) / max |w|."""
    w = torch.linspace(0.5, 2.0, k, dtype=F64) * (-1.0) ** torch.arange(k)
    rows = np.zeros((3, k))
    rows[:, 0] = [0.0, -1.0, 4.0]
    found = correct(lambda x, row: x @ w - 3, rows, plain([f"c{i}" for i in range(k)]), np.zeros((5, k)), stable=stable)
    for item, row in zip(found, rows, strict=True):
        expected = (3 - row @ w.numpy() + stable * w.abs().sum().item()) / w.abs().max().item()
        assert item.found and item.size == pytest.approx(expected, abs=1e-3)
        moved = np.flatnonzero(np.abs(item.corrected - item.original) > 1e-9)
        assert moved.tolist() == [k - 1]


@pytest.mark.parametrize("stable", [0.0, 0.05])
def test_a_disc_has_its_closed_form(stable):
    """One column moves where it is the farther one to the end; else both move to equal values."""
    found = correct(disc, np.array([[5.0, 1.0], [5.0, 4.0]]), plain("ab"), REFERENCE, stable=stable)
    one = 5 + stable - np.sqrt(4 - (1 + stable) ** 2)
    assert [item.size for item in found] == pytest.approx([one, 9 + 2 * stable - 2 * np.sqrt(2)], rel=1e-3)
    assert found[0].corrected[1] == 1.0


def test_the_smallest_of_several_regions_is_found():
    """Against a fine grid, with the worst point of each box of half-width e, in four wells of different depth."""
    wells = torch.tensor([[2.0, 2.0], [-2.5, 2.0], [2.0, -3.0], [-2.0, -2.2]], dtype=F64)
    widths = torch.tensor([0.5, 0.9, 0.6, 0.4], dtype=F64)

    def judge(points, row):
        return (widths**2 - (points[:, None] - wells).square().sum(2)).amax(1)

    rows = np.random.default_rng(1).uniform(-4, 4, size=(20, 2))
    found = correct(judge, rows, plain("ab", 5.0), REFERENCE * 3, stable=0.1)
    axis = torch.linspace(-5, 5, 501, dtype=F64)  # steps of 0.02, so that e is five of them
    margin = judge(torch.cartesian_prod(axis, axis), None).reshape(1, 1, 501, 501)
    worst = -torch.nn.functional.max_pool2d(-margin, 11, stride=1, padding=5)[0, 0].numpy()
    for item, row in zip(found, rows, strict=True):
        if not item.passed:
            sizes = np.abs(axis.numpy()[:, None] - row[0]) + np.abs(axis.numpy() - row[1])
            assert item.found and item.size < 1.01 * sizes[worst >= 0].min() + 0.02


def test_a_box_of_eight_columns_grows_too():
    names = [f"c{i}" for i in range(8)]
    found = correct(lambda x, row: 9 - x.square().sum(1), np.full((1, 8), 2.0), plain(names), np.zeros((9, 8)))[0]
    assert found.found and found.certificate.failures == 0 and found.certificate.share < 1e-3
    assert (found.upper - found.lower).max() > 0.2  # the changes within e fill a box of width 0.1


@pytest.mark.parametrize(("bend", "thin", "rows"), [(0.3, 20, [1, 5]), (1.0, 10, [2, 22])])
def test_changes_onto_a_thin_curved_ridge_are_found(bend, thin, rows):
    """The corners of a box fail in turn there, and its worst one need not be where gradients lead.

    Where the ridge bends much, a change may lie on its other arm: found, and larger than the least.
    """

    def judge(points, row):
        x, y = points.unbind(1)
        return 5 - (thin * (y - bend * x**2)) ** 2 - (0.7 * x) ** 2

    starts = np.random.default_rng(0).uniform(-4, 4, size=(40, 2))[rows]
    found = correct(judge, starts, plain("ab", 5.0), REFERENCE, stable=0.05, draws=1000)
    axis = torch.linspace(-5, 5, 801, dtype=F64)
    margin = judge(torch.cartesian_prod(axis, axis), None).reshape(1, 1, 801, 801)
    worst = -torch.nn.functional.max_pool2d(-margin, 9, stride=1, padding=4)[0, 0].numpy()
    for item, row in zip(found, starts, strict=True):
        sizes = np.abs(axis.numpy()[:, None] - row[0]) + np.abs(axis.numpy() - row[1])
        assert item.found and (bend > 0.5 or item.size < 1.02 * sizes[worst >= 0].min())


def test_every_point_of_the_boxes_passes_and_no_side_can_go_far():
    found = correct(disc, np.array([[5.0, 4.0], [0.0, 6.0]]), plain("ab"), REFERENCE, stable=0.05)
    rng = np.random.default_rng(3)
    for item in found:
        near = item.corrected + rng.uniform(-0.05, 0.05, size=(10_000, 2))
        inside = rng.uniform(item.lower, item.upper, size=(10_000, 2))
        assert (disc(torch.as_tensor(near), None) >= 0).double().mean() >= 0.999
        assert (disc(torch.as_tensor(inside), None) >= 0).double().mean() >= 0.999
        assert item.certificate.failures == item.stability.failures == 0
        for side, sign in itertools.product((0, 1), (-1, 1)):
            corners = np.array(list(itertools.product(*zip(item.lower, item.upper, strict=True))))
            end = (item.lower, item.upper)[sign > 0][side]
            corners[corners[:, side] == end, side] += sign * 0.3
            assert (disc(torch.as_tensor(corners), None) < 0).any()


def test_a_dent_that_no_gradient_shows_is_found_by_draws():
    """It lies within the box of the nearest change, beside its centre and corners: the search goes on without it."""

    def judge(points, row):
        x, y = points.unbind(1)
        return 1 - x - 0.3 * torch.exp(-(((x - 0.86) / 0.015) ** 2) - ((y - 0.03) / 0.04) ** 2)

    found = correct(judge, np.array([[3.0, 0.0]]), plain("ab"), REFERENCE, stable=0.1)
    points = found.rows[0] + np.random.default_rng(0).uniform(-0.1, 0.1, size=(10_000, 2))
    assert found[0].found and found[0].size > 2.11  # without the dent it would be 2.1
    assert (judge(torch.as_tensor(points), None) >= 0).double().mean() >= 0.999


def test_only_allowed_columns_change_and_stay_within_their_bounds():
    allowed = Allowed.of(REFERENCE, ["a", "b"], ["b"], {"b": (-1.0, 1.5)})
    found = correct(disc, np.array([[1.5, 5.0], [3.0, 5.0]]), allowed, REFERENCE, stable=0.0)
    assert found[0].found and found.rows[0, 0] == 1.5 and found.rows[0, 1] == pytest.approx(np.sqrt(1.75), abs=1e-3)
    assert not found[1].found and found.rows[1].tolist() == [3.0, 5.0]
    assert found[1].missing == pytest.approx(5.0, abs=1e-2)  # 4 - 9 at best, with b = 0
    assert found[1].in_words() == "no change within the bounds suffices: the best found misses by 5"


def test_from_one_class_to_another():
    """Three classes by their nearest centre: the wall between the first two is x = 2."""
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 9.0]], dtype=F64)
    judge = class_judge(lambda x: -(torch.cdist(x, centres) ** 2), torch.tensor([1, 1]))
    found = correct(judge, np.array([[0.5, 0.0], [3.0, 0.0]]), plain("ab"), REFERENCE, stable=0.1)
    assert found[0].size == pytest.approx(1.6, abs=1e-3) and found[0].in_words().startswith("raise a to at least 2.0")
    assert found[1].passed and found[1].in_words() == "passes as it is"


def test_words_have_names_and_units_and_round_into_the_box():
    found = correct(disc, np.array([[5.0, 1.0]]), plain(["dose", "age"]), REFERENCE, stable=0.05)[0]
    words = found.in_words({"dose": "mg", "age": "years"})
    assert words.startswith("lower dose to ") and " mg, keep age within " in words and words.endswith(" years")
    first, last = map(float, words.split("dose to ")[1].split(" mg")[0].split(".."))
    assert found.lower[0] <= first < last <= found.upper[0]


def test_the_table_has_a_line_for_each_row():
    rows = np.array([[5.0, 1.0], [0.0, 0.0]])
    table = correct(disc, rows, plain("ab"), REFERENCE, threshold=-3.0).table()
    assert list(table) == [
        "row", "before", "after", "missing", "size", "failing_share", "a", "a from", "a to", "b", "b from", "b to"
    ]  # fmt: skip
    assert table["before"].tolist() == [-25.0, 1.0] and all(len(column) == 2 for column in table.values())


def test_a_linear_step_solves_its_linear_program():
    """Against scipy, with s' = p - q, p and q >= 0."""
    from scipy.optimize import linprog

    rng = np.random.default_rng(0)
    for _ in range(50):
        s, g = rng.normal(size=4), rng.normal(size=4)
        lower, upper, lacking = s - rng.uniform(0, 2, 4), s + rng.uniform(0, 2, 4), rng.normal()
        exact = linprog(
            np.ones(8), A_ub=np.vstack([np.r_[-g, g], np.c_[np.eye(4), -np.eye(4)], np.c_[-np.eye(4), np.eye(4)]]),
            b_ub=np.r_[-lacking - g @ s, upper, -lower],
        )  # fmt: skip
        tensors = [torch.as_tensor(v)[None] for v in (s, g, np.array(lacking), lower, upper)]
        moved = linear_step(*tensors)[0][0].numpy()
        assert (moved >= lower - 1e-12).all() and (moved <= upper + 1e-12).all()
        if exact.success:
            assert np.abs(moved).sum() == pytest.approx(exact.fun, abs=1e-9) and g @ (moved - s) >= lacking - 1e-9


def test_a_certificate_counts_its_tries_and_failures():
    assert Certificate(7000, 0, 0.99).share == pytest.approx(1 - (0.01 / 8) ** (1 / 7000), rel=1e-9)
    assert Certificate(7000, 5, 0.99).share > 5 / 7000
    assert Certificate(0, 0, 0.99).share == 1.0


def test_a_cut_leaves_the_core_and_loses_the_least():
    low, high = torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)
    lower, upper = cut((low, high), (low + 0.4, high - 0.4), torch.tensor([[0.1, 0.8], [0.5, 0.5]], dtype=F64))
    assert lower.tolist() == pytest.approx([0.25, 0.0]) and upper.tolist() == [1.0, 1.0]


def test_undefined_scores_fail_without_ending_the_search():
    """A score by a logarithm is undefined below 0, where the row begins."""
    found = correct(lambda x, row: x[:, 0].log(), np.array([[-2.0, 0.0]]), plain("ab"), REFERENCE, stable=0.1)
    assert found[0].found and found[0].size == pytest.approx(3.1, abs=1e-2)


@pytest.mark.parametrize(
    ("allow", "bounds", "message"),
    [
        (["c"], None, "no column 'c'; the columns are a, b"),
        ([7], None, "no column 7"),
        (["a", 0], None, "each once; got a, 0"),
        ([], None, "allow must name one column or more"),
        (["a"], {"a": (2.0, 1.0)}, "bounds of a must be LOW <= HIGH"),
        (["a"], {"b": (1.0, 2.0)}, "a column that may change"),
    ],
)
def test_columns_that_cannot_change_are_refused(allow, bounds, message):
    with pytest.raises(ValueError, match=message):
        Allowed.of(REFERENCE, ["a", "b"], allow, bounds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stable": -0.1}, "stable must be a distance of at least 0"),
        ({"stable": float("nan")}, "stable must be"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"confidence": 1.0}, "confidence between 0 and 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        correct(disc, np.ones((1, 2)), plain("ab"), REFERENCE, **options)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="expected 1 row or more"):
        correct(disc, np.ones((0, 2)), plain("ab"), REFERENCE)


def test_the_scale_is_a_deviation_whatever_the_tails():
    reference = np.random.default_rng(0).normal(size=(20_000, 2)) * [1.0, 10.0]
    reference[:100, 0] = 1e6
    assert Allowed.of(reference, ["a", "b"]).scale.tolist() == pytest.approx([1.0, 10.0], rel=0.03)
    assert Allowed.of(np.ones((5, 1)), ["a"]).scale.tolist() == [1.0]


def test_a_judgment_bounds_changes_and_keeps_the_row_where_it_is():
    """A row outside the bounds may stay there, or move into them."""
    judgment = Judgment(disc, torch.tensor([[5.0, 0.0]], dtype=F64), plain("ab", 2.0, 0.5))
    assert judgment.lower.tolist() == [[-14.0, -4.0]] and judgment.upper.tolist() == [[0.0, 4.0]]
