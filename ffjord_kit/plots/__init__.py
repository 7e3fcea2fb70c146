"""Every picture of the package, and the only place that knows matplotlib.

A leaf: it takes numpy arrays and plain callables, never a tensor or a model. matplotlib is imported when a picture is
drawn and not before; no pyplot, no global state, the caller's rcParams stay as they are. Each function returns a
`matplotlib.figure.Figure`, which a notebook shows by itself and `save` writes to a file; `density_gif` writes its file.
"""

from ffjord_kit.plots.animation import density_gif
from ffjord_kit.plots.arrays import grid_points, robust_bounds
from ffjord_kit.plots.canvas import save
from ffjord_kit.plots.comparison import pair_plot, samples
from ffjord_kit.plots.densities import density, density_strip
from ffjord_kit.plots.diagnosis import diagnosis
from ffjord_kit.plots.images import image_sheet
from ffjord_kit.plots.motion import trajectories, vector_field
from ffjord_kit.plots.neighbours import nearest_images
from ffjord_kit.plots.outliers import extreme_images, outlier_histograms
from ffjord_kit.plots.strips import image_strip, interpolation_strip
from ffjord_kit.plots.training import training_curves

__all__ = [
    "density",
    "density_gif",
    "density_strip",
    "diagnosis",
    "extreme_images",
    "grid_points",
    "image_sheet",
    "image_strip",
    "interpolation_strip",
    "nearest_images",
    "outlier_histograms",
    "pair_plot",
    "robust_bounds",
    "samples",
    "save",
    "training_curves",
    "trajectories",
    "vector_field",
]
