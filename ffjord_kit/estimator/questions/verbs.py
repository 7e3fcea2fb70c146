"""Methods of an estimator made of those of its fitted model."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from sklearn.utils.validation import check_is_fitted


def of_model(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make an estimator's method of a model's, whose first argument is no data.

    Args:
        method: Method of a fitted model.

    Returns:
        The method, which first checks that the estimator is fitted.
    """

    @wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        check_is_fitted(self, "model_")
        return method(self.model_, *args, **options)

    return call


def of_model_on_data(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make an estimator's method of a model's, whose first argument is data like the fit's.

    Args:
        method: Method of a fitted model.

    Returns:
        The method, which first checks the data by scikit-learn's conventions.
    """

    @wraps(method)
    def call(self: Any, X: Any, *args: Any, **options: Any) -> Any:
        check_is_fitted(self, "model_")
        return method(self.model_, self._checked(X), *args, **options)

    return call
