"""Figures of data, densities, flows, images and training runs; the only package that uses matplotlib.

Functions take numpy arrays and plain callables, never tensors or models, and return a `matplotlib.figure.Figure`, which
a notebook displays and `save` writes to a file; `density_gif` writes its file itself. matplotlib is imported when a
figure is drawn; pyplot is not used, and the caller's rcParams do not change.
"""

from ffjord_kit.plots.arrays import grid_points, robust_bounds
from ffjord_kit.plots.charts import plane_bounds
from ffjord_kit.plots.columns import column, columns
from ffjord_kit.plots.comparison import samples
from ffjord_kit.plots.condensation import directions_over_training, effective_neurons, similarity_matrices
from ffjord_kit.plots.control import gradients_along_path
from ffjord_kit.plots.corrections import CorrectedRow, corrections
from ffjord_kit.plots.cost import error_against_cost
from ffjord_kit.plots.densities import density, density_contours, density_gif, density_panels, density_strip
from ffjord_kit.plots.diagnosis import diagnosis
from ffjord_kit.plots.figure import save
from ffjord_kit.plots.hessian import spectral_densities
from ffjord_kit.plots.images import extreme_images, image_sheet, image_strip, interpolation_strip, nearest_images
from ffjord_kit.plots.landscape import loss_lines, loss_planes, loss_surface, watched_curvature
from ffjord_kit.plots.outliers import outlier_histograms
from ffjord_kit.plots.pairs import pair_plot
from ffjord_kit.plots.series import PredictedSeries, series_bands
from ffjord_kit.plots.spectrum import SpectrumHistory, spectrum_errors, watched_spectrum
from ffjord_kit.plots.stability import stability_regions
from ffjord_kit.plots.sweep import Sweep, context_sweep
from ffjord_kit.plots.training import training_curves
from ffjord_kit.plots.trajectories import trajectories, vector_field

__all__ = [
    "CorrectedRow",
    "PredictedSeries",
    "SpectrumHistory",
    "Sweep",
    "column",
    "columns",
    "context_sweep",
    "corrections",
    "density",
    "density_contours",
    "density_gif",
    "density_panels",
    "density_strip",
    "diagnosis",
    "directions_over_training",
    "effective_neurons",
    "error_against_cost",
    "extreme_images",
    "gradients_along_path",
    "grid_points",
    "image_sheet",
    "image_strip",
    "interpolation_strip",
    "loss_lines",
    "loss_planes",
    "loss_surface",
    "nearest_images",
    "outlier_histograms",
    "pair_plot",
    "plane_bounds",
    "robust_bounds",
    "samples",
    "save",
    "series_bands",
    "similarity_matrices",
    "spectral_densities",
    "spectrum_errors",
    "stability_regions",
    "training_curves",
    "trajectories",
    "vector_field",
    "watched_curvature",
    "watched_spectrum",
]
