"""Models of the neural-ODE family other than densities."""

from ffjord_kit.models.odenet import ODENetClassifier, ODENetRegressor

__all__ = ["ODENetClassifier", "ODENetRegressor"]
