"""Rows as users hold them in Python: frames of pandas and polars, tensors, half precision; sparse ones are refused."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from ffjord_kit import FFJORD, ImageFFJORD

TINY = {"schedule": [("flow_matching", 3)], "hidden": (4,), "random_state": 0}
X = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float16).astype(np.float64)
CONTEXT = np.arange(20.0) / 10
PLAIN = FFJORD(**TINY).fit(X).score_samples(X)


class Frame:
    """A frame with the protocol of polars, for an environment without it: columns, to_numpy, frame[[names]]."""

    def __init__(self, **columns):
        self._columns, self.columns = columns, list(columns)
        self.shape = (len(next(iter(columns.values()))), len(columns))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, names):
        return Frame(**{name: self._columns[name] for name in names})

    def to_numpy(self):
        return np.stack(list(self._columns.values()), axis=1)

    def __array__(self, dtype=None, copy=None):
        return self.to_numpy().astype(dtype)


def polars(**columns):
    return pytest.importorskip("polars").DataFrame(columns)


SAME = {
    "a list": X.tolist(),
    "half precision": X.astype(np.float16),
    "a tensor": torch.from_numpy(X),
    "a tensor of half precision": torch.from_numpy(X).half(),
    "a tensor with a gradient": torch.from_numpy(X).requires_grad_(),
    "a frame of pandas": pd.DataFrame(X, columns=["a", "b"]),
    "a frame of nullable columns": pd.DataFrame(X, columns=["a", "b"]).convert_dtypes(),
    "a frame of objects": pd.DataFrame(X, columns=["a", "b"], dtype=object),
    "another frame": Frame(a=X[:, 0], b=X[:, 1]),
}


@pytest.mark.filterwarnings("ignore:X (has|does not have valid) feature names")
@pytest.mark.parametrize("x", SAME.values(), ids=SAME)
def test_rows_of_every_kind_give_the_same_model(x):
    model = FFJORD(**TINY).fit(x)
    for rows in (x, X):
        np.testing.assert_array_equal(model.score_samples(rows), PLAIN)
    np.testing.assert_array_equal(model.model_.score_samples(x), PLAIN)
    np.testing.assert_array_equal(model.model_.split(x)[1], FFJORD(**TINY).fit(X).model_.split(X)[1])


def test_a_frame_of_polars_keeps_its_names_and_its_columns_find_their_order():
    frame, swapped = polars(a=X[:, 0], b=X[:, 1]), polars(b=X[:, 1], a=X[:, 0])
    model = FFJORD(**TINY).fit(frame)
    assert model.feature_names_in_.tolist() == ["a", "b"]
    np.testing.assert_array_equal(model.score_samples(frame), PLAIN)
    np.testing.assert_array_equal(model.model_.score_samples(swapped), PLAIN)


@pytest.mark.parametrize(
    "make", [polars, Frame, lambda **columns: pd.DataFrame(columns)], ids=["polars", "own", "pandas"]
)
def test_contexts_of_every_frame_find_their_order(make):
    first, second = CONTEXT, CONTEXT[::-1].copy()
    model = FFJORD(**TINY).fit(X, context=np.c_[first, second], context_columns=["a", "b"])
    expected = model.score_samples(X, context=np.c_[first, second])
    np.testing.assert_array_equal(model.score_samples(X, context=make(b=second, a=first)), expected)
    np.testing.assert_array_equal(model.score_samples(X, context=torch.from_numpy(np.c_[first, second])), expected)


SPARSE = {
    "scipy": (scipy.sparse.csr_matrix(X), r"X is sparse, and a density needs every cell: pass X\.toarray\(\)"),
    "torch": (torch.from_numpy(X).to_sparse(), r"X is sparse, and a density needs every cell: pass X\.to_dense\(\)"),
}


@pytest.mark.parametrize(("x", "message"), SPARSE.values(), ids=SPARSE)
def test_sparse_rows_are_refused_with_advice(x, message):
    model = FFJORD(**TINY).fit(X)
    for use in (FFJORD(**TINY).fit, model.score_samples, model.model_.score_samples):
        with pytest.raises(ValueError, match=message):
            use(x)
    with pytest.raises(ValueError, match="context is sparse"):
        FFJORD(**TINY).fit(X, context=x)


DAYS = pd.date_range("2020-01-31", periods=20)
OTHER = {
    "names": ([f"name {i}" for i in range(20)], r"column 'b' must hold numbers; got 'name 0' in row 0 .*: drop it"),
    "a word among numbers": ([1.0, 2.0, "red", *range(17)], r"column 'b' must hold numbers; got 'red' in row 2 "),
    "dates": (DAYS, r"column 'b' must hold numbers; got '2020-01-31.*' in row 0 "),
}


@pytest.mark.parametrize(("cells", "message"), OTHER.values(), ids=OTHER)
def test_a_context_of_other_kinds_is_named_with_its_first_row(cells, message):
    frame = pd.DataFrame({"a": X[:, 0], "b": cells})
    with pytest.raises(ValueError, match=f"context: {message}") as caught:
        FFJORD(**TINY).fit(X, context=frame)
    assert "\n" not in str(caught.value)


REFUSED = {
    "a word among numbers": OTHER["a word among numbers"],
    "names": ([f"name {i}" for i in range(20)], r"column 'b' must hold numbers; got 'name 0' in row 0 .*: drop it"),
    "one level": (pd.Categorical(["red"] * 20), r"column 'b' is a category with one level in all rows: drop it"),
}


@pytest.mark.parametrize(("cells", "message"), REFUSED.values(), ids=REFUSED)
def test_a_column_of_names_or_of_a_few_words_is_refused(cells, message):
    with pytest.raises(ValueError, match=message) as caught:
        FFJORD(**TINY).fit(pd.DataFrame({"a": X[:, 0], "b": cells}))
    assert "\n" not in str(caught.value)


def test_a_missing_cell_is_named_by_row_and_column():
    frame = pd.DataFrame({"a": X[:, 0], "b": X[:, 1]}).convert_dtypes()
    frame.loc[3, "b"] = pd.NA
    message = r"X contains NaN or infinity \(first in row 3, column 'b'\): drop or mend such rows"
    with pytest.raises(ValueError, match=message):
        FFJORD(**TINY, subsets=False).fit(frame)
    with pytest.raises(ValueError, match=message):
        FFJORD(**TINY).fit(pd.DataFrame(X, columns=["a", "b"])).score_samples(frame)


def test_images_may_be_tensors():
    images = torch.randint(0, 256, (12, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fields = {"schedule": [("flow_matching", 2)], "hidden": (8,), "random_state": 0}
    model = ImageFFJORD(**fields).fit(images)
    np.testing.assert_array_equal(model.score_samples(images[:2]), model.score_samples(images[:2].numpy()))
