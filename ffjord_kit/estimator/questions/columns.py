"""Questions of one model: the density of some columns, given others, without the rest; and imputation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ffjord_kit.columns.base import ColumnType
from ffjord_kit.columns.categories import Category, Dated
from ffjord_kit.columns.circles import Circle
from ffjord_kit.columns.frames import presented
from ffjord_kit.columns.rows import inside_support, shortened
from ffjord_kit.estimator.data import refuse_not_finite, seed_from
from ffjord_kit.estimator.sampling import SamplingModel
from ffjord_kit.estimator.tables.names import in_order
from ffjord_kit.estimator.tables.subsets import SubsetDomain
from ffjord_kit.memory import check_fits
from ffjord_kit.rows import frame_of


@dataclass(frozen=True)
class Question:
    """The density of some columns of a fitted model, given the values of others.

    Columns that are neither asked for nor given are integrated out. `FFJORD.given` and `FFJORD.marginal` make it.

    Attributes:
        model: Fitted model.
        columns: Names of the columns that are asked for, in the order of the fit.
        values: Values of the given columns by name, each a number, or one for each row, shape (n,).

    Example:
        >>> from ffjord_kit import FFJORD
        >>> x = np.random.default_rng(0).normal(size=(100, 3))
        >>> fitted = FFJORD(subsets=True, schedule=[("flow_matching", 5)], hidden=(8,), random_state=0).fit(x)
        >>> question = fitted.given({"x1": 0.5})
        >>> question.columns, question.sample(4, random_state=0).shape, question.log_prob(np.zeros((2, 2))).shape
        (('x0', 'x2'), (4, 2), (2,))
        >>> fitted.given({"x1": 0.5}).marginal(["x2"]).log_prob([[0.0], [1.0]]).shape
        (2,)
    """

    model: QuestioningModel
    columns: tuple[str, ...]
    values: Mapping[str, np.ndarray]

    def marginal(self, columns: Iterable[str]) -> Question:
        """Return the question for some of the columns, with the others integrated out.

        Args:
            columns: Names, of those asked for.

        Returns:
            The question.

        Raises:
            ValueError: If a column is not asked for.
        """
        wanted = [columns] if isinstance(columns, str) else [*columns]
        _check_known(wanted, self.columns)
        return replace(self, columns=tuple(name for name in self.columns if name in wanted))

    def given(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> Question:
        """Return the question with more columns given.

        Args:
            values: Values by column.
            **named: The same, for names that are Python's.

        Returns:
            The question.

        Raises:
            ValueError: If a column is not asked for, or none is left, or a value does not suit its column.
        """
        new = {**(values or {}), **named}
        _check_known(new, self.columns)
        left = tuple(name for name in self.columns if name not in new)
        if not left:
            raise ValueError("all columns are given: leave at least one to be modelled")
        return replace(self, columns=left, values={**self.values, **_checked_values(_domain(self.model), new)})

    def log_prob(self, rows: Any) -> np.ndarray:
        """Return the log-density of each row of the columns, by the density that reports.

        Args:
            rows: Values of `columns`, shape (n, k) in their order, or (n,) of a single one; a frame by its names. NaN
                stands for a cell that is integrated out.

        Returns:
            Log-densities, nats, in the units of these columns, shape (n,); minus infinity outside the support.

        Raises:
            ValueError: If the shape does not fit, or a value is infinite.
        """
        asked = np.asarray(in_order(_domain(self.model).coded(rows), self.columns), dtype=np.float64)
        asked = asked[:, None] if asked.ndim == 1 and len(self.columns) == 1 else asked
        if asked.ndim != 2 or asked.shape[1] != len(self.columns):
            raise ValueError(f"expected rows (n, {len(self.columns)}) of {shortened(self.columns)}; got {asked.shape}")
        x, given = self._laid_out(len(asked))
        x[:, self._places] = asked
        return self.model.score_samples(
            x, context=_domain(self.model).question(~np.isnan(x), given, self._values(len(x)))
        )

    def sample(self, n_samples: int = 1, *, random_state: Any = None) -> Any:
        """Draw rows of the columns.

        Args:
            n_samples: Number of draws.
            random_state: Seed, or None.

        Returns:
            Draws, shape (n_samples, k); a frame of pandas where the fit had one, or a column is of texts or of dates.

        Raises:
            ValueError: If there are not as many given values as draws.
        """
        draws = self.model.draw(n_samples, context=self.context(n_samples), random_state=random_state)
        types = {own: kind for own, kind in _domain(self.model).all_types.items() if own[0] in self.columns}
        shown = presented(draws[:, self._places], self.columns, types)
        framed = isinstance(shown, np.ndarray) and self.model.record.get("named")
        return frame_of(dict(zip(self.columns, shown.T, strict=True))) if framed else shown

    def context(self, rows: int) -> np.ndarray:
        """Return the contexts that ask the question, for all columns asked for.

        Args:
            rows: Number of rows n.

        Returns:
            Contexts, shape (n, 3 d).
        """
        _, given = self._laid_out(rows)
        modelled = np.zeros(given.shape, dtype=bool)
        modelled[:, self._places] = True
        return _domain(self.model).question(modelled, given, self._values(rows))

    @property
    def _places(self) -> list[int]:
        return [_domain(self.model).all_columns.index(name) for name in self.columns]

    def _laid_out(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows without any value, and the mask of the given columns, shape (n, d)."""
        names = _domain(self.model).all_columns
        shape = (rows, len(names))
        given = np.zeros(shape, dtype=bool)
        given[:, [names.index(name) for name in self.values]] = True
        return np.full(shape, np.nan), given

    def _values(self, rows: int) -> np.ndarray:
        """Return the given values in their places, shape (n, d)."""
        names = _domain(self.model).all_columns
        result = np.zeros((rows, len(names)))
        for name, values in self.values.items():
            if values.ndim and len(values) not in (1, rows):
                raise ValueError(
                    f"{name!r} is given {len(values)} values for {rows} rows: give one, or one for each row"
                )
            result[:, names.index(name)] = values
        return result


@dataclass(frozen=True, eq=False)
class QuestioningModel(SamplingModel):
    """A fitted flow that answers questions; see `ffjord_kit.estimator.model.DensityModel`."""

    def given(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> Question:
        """Return the density of the other columns, given some; for a model of `subsets=True`.

        Args:
            values: Values by column, e.g. {"x0": 1.0}: a number, or one for each row.
            **named: The same, e.g. age=40.

        Returns:
            The question, with `log_prob`, `sample` and `marginal`.

        Raises:
            ValueError: If a column or value does not suit the model, or it was not fitted for questions.

        Example:
            >>> from ffjord_kit import FFJORD
            >>> x = np.random.default_rng(0).normal(size=(100, 3))
            >>> model = FFJORD(subsets=True, schedule=[("flow_matching", 2)], hidden=(8,), random_state=0)
            >>> model.fit(x, columns=["a", "b", "c"]).given(b=0.5).sample(4, random_state=0).shape  # a and c
            (4, 2)
        """
        return _everything(self).given(values, **named)

    def marginal(self, columns: Sequence[str]) -> Question:
        """Return the density of some columns, with the others integrated out; for a model of `subsets=True`.

        Args:
            columns: Names of the columns.

        Returns:
            The question, with `log_prob`, `sample` and `given`.

        Raises:
            ValueError: If there is no such column, or the model was not fitted for questions.

        Example:
            >>> from ffjord_kit import FFJORD
            >>> x = np.random.default_rng(0).normal(size=(100, 3))
            >>> model = FFJORD(subsets=True, schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(x)
            >>> model.marginal(["x0", "x2"]).log_prob(np.zeros((5, 2))).shape
            (5,)
        """
        return _everything(self).marginal(columns)

    def impute(self, X: Any, *, draws: int = 20, random_state: Any = None) -> Any:
        """Fill missing cells by draws, given the observed cells of their rows; for a model of `subsets=True`.

        Args:
            X: Rows, shape (n, d), NaN where a cell is missing.
            draws: Number of fillings.
            random_state: Seed, or None.

        Returns:
            Fillings, shape (draws, n, d); observed cells are as they came. Where a column is of texts or of dates, a
            list of frames.

        Raises:
            ValueError: If rows do not suit the model, or it was not fitted for questions.

        Example:
            >>> from ffjord_kit import FFJORD
            >>> x = np.random.default_rng(0).normal(size=(100, 3))
            >>> model = FFJORD(subsets=True, schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(x)
            >>> filled = model.impute([[1.0, np.nan, 0.0]], draws=4, random_state=0)
            >>> filled.shape, filled[:, 0, 0].tolist()
            ((4, 1, 3), [1.0, 1.0, 1.0, 1.0])
        """
        tables = [self.domain.presented(each) for each in self.fillings(X, draws, random_state)]
        return np.stack(tables) if isinstance(tables[0], np.ndarray) else tables

    def fillings(self, X: Any, draws: int, random_state: Any = None) -> Iterator[np.ndarray]:
        """Fill missing cells as `impute` does, one filling after another.

        Args:
            X: Rows, shape (n, d), NaN where a cell is missing.
            draws: Number of fillings.
            random_state: Seed, or None.

        Yields:
            Rows without NaN, shape (n, d).

        Raises:
            ValueError: If rows do not suit the model, or it was not fitted for questions.
        """
        domain = _domain(self)
        rows = domain.observed_cells(X)
        if draws < 1:
            raise ValueError(f"draws must be at least 1; got {draws}")
        check_fits(f"{draws} fillings of {rows.shape} cells would take", draws * rows.nbytes, "take fewer draws")
        missing, (_, inside) = np.isnan(rows), domain.rows(rows)
        _check_inside(domain, rows, inside)
        some = np.flatnonzero(missing.any(1))
        contexts = domain.question(missing[some], ~missing[some], rows[some])
        seed = seed_from(random_state)
        for number in range(draws):
            filled = rows.copy()
            if len(some):
                new = self.draw(len(some), context=contexts, random_state=(seed + number) % 2**32)
                filled[some] = np.where(missing[some], new, rows[some])
            yield filled


def _everything(model: QuestioningModel) -> Question:
    """Return the question for all columns of a model."""
    return Question(model, _domain(model).all_columns, {})


def _domain(model: QuestioningModel) -> SubsetDomain:
    if not isinstance(model.domain, SubsetDomain):
        raise ValueError("this model has the density of whole rows alone: fit with subsets=True (--subsets)")
    return model.domain


def _check_known(names: Iterable[str], known: Sequence[str]) -> None:
    unknown = [str(name) for name in names if name not in known]
    if unknown:
        raise ValueError(f"no column {unknown[0]!r} to ask for; there are {shortened(known)}")


def _checked_values(domain: SubsetDomain, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return given values as numbers within the support of their columns, or as an array of the table has levels."""
    checked = {}
    for name, given in values.items():
        if np.ndim(given) > 1:
            raise ValueError(f"{name!r} must be given one value, or one for each row; got shape {np.shape(given)}")
        kind = domain.all_types.get((name,))
        if isinstance(kind, Category):
            checked[name] = _level_numbers(name, kind, given)
            continue
        array = _numbers(name, kind, given)
        refuse_not_finite(np.atleast_1d(array), f"the given {name!r}")
        low, high = domain.bounds[domain.columns.index(name)]
        if not inside_support(np.atleast_1d(array)[:, None], [(low, high)]).all():
            raise ValueError(f"{name!r} is given a value outside its support, {low:g} to {high:g}: give one within")
        checked[name] = kind.wrap(array) if isinstance(kind, Circle) else array
    return checked


def _numbers(name: str, kind: ColumnType | None, given: Any) -> np.ndarray:
    """Return given numbers, or those of given dates."""
    try:
        if isinstance(kind, Dated) and not np.issubdtype(np.asarray(given).dtype, np.number):
            return kind.numbers(np.atleast_1d(np.asarray(given, dtype=object))).reshape(np.shape(given))
        return np.asarray(given, dtype=np.float64)
    except ValueError as error:
        wanted = "a date, e.g. 2020-01-31" if isinstance(kind, Dated) else "a number"
        raise ValueError(f"{name!r} must be given {wanted}; got {given!r:.40}") from error


def _level_numbers(name: str, kind: Category, given: Any) -> np.ndarray:
    """Return what an array of the table holds for given levels."""
    cells = np.atleast_1d(np.asarray(given, dtype=object))
    texts = any(isinstance(cell, (str, bool, np.bool_)) for cell in cells.tolist())
    codes = kind.codes(cells if texts and not kind.is_numeric else _numbers(name, None, cells))
    if not (codes >= 0).all():
        raise ValueError(
            f"{name!r} is given {cells[int((~(codes >= 0)).argmax())]!r}, which is no level of it: "
            f"{shortened([str(level) for level in kind.levels or ()])}"
        )
    return kind.numbers(codes).reshape(np.shape(given))


def _check_inside(domain: SubsetDomain, x: np.ndarray, inside: np.ndarray) -> None:
    """Refuse rows that have no density, by the first column that is to blame."""
    if inside.all():
        return
    row = int((~inside).argmax())
    names = [name for name in domain.all_columns if not domain.rows(_alone(domain, x[row], name))[1].all()]
    raise ValueError(f"row {row} has {names[0]!r} outside its support: mend it, or mark it as missing")


def _alone(domain: SubsetDomain, row: np.ndarray, name: str) -> np.ndarray:
    """Return a row of which one cell alone is observed, shape (1, d)."""
    return np.where([each == name for each in domain.all_columns], row, np.nan)[None]
