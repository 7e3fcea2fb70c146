"""Images: dynamics made of convolutions, multi-scale flows, dequantisation, bits per dimension, and classes."""

from ffjord_kit.images.bits import BitsPerDim, bits_per_dim
from ffjord_kit.images.classes import DropContext, Guided, class_log_probs, guided, one_hot
from ffjord_kit.images.convolutions import ConvolutionDynamics
from ffjord_kit.images.dequantizer import Dequantizer, UniformDequantizer, VariationalDequantizer
from ffjord_kit.images.fit_dequantizer import fit_dequantizer
from ffjord_kit.images.multiscale import Part, multi_scale
from ffjord_kit.images.pixels import IMAGE_SCALINGS, Chosen, Pixels, logit_layer, scale_layer
from ffjord_kit.images.squeeze import Squeeze, squeeze, unsqueeze
from ffjord_kit.images.unet import UNetDynamics

IMAGE_DYNAMICS = {"convolution": ConvolutionDynamics, "unet": UNetDynamics}

__all__ = [
    "IMAGE_DYNAMICS",
    "IMAGE_SCALINGS",
    "BitsPerDim",
    "Chosen",
    "ConvolutionDynamics",
    "Dequantizer",
    "DropContext",
    "Guided",
    "Part",
    "Pixels",
    "Squeeze",
    "UNetDynamics",
    "UniformDequantizer",
    "VariationalDequantizer",
    "bits_per_dim",
    "class_log_probs",
    "fit_dequantizer",
    "guided",
    "logit_layer",
    "multi_scale",
    "one_hot",
    "scale_layer",
    "squeeze",
    "unsqueeze",
]
