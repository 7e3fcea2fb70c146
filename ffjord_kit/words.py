"""The words of every menu, without what they stand for: the command line lists them before PyTorch is loaded.

A menu itself is a dict in the file that its line names; a test compares both.
"""

from __future__ import annotations

ACTIVATIONS = ("silu", "tanh", "softplus", "elu", "gelu")  # nn/activations.py
DYNAMICS = ("residual", "concat_squash", "concat", "potential")  # nn/__init__.py
IMAGE_DYNAMICS = ("convolution", "unet")  # nn/__init__.py

ADJOINTS = ("backprop", "checkpointed", "adjoint", "seminorm", "reversible")
METHODS = (
    "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "scipy_solver",
    "euler", "midpoint", "heun2", "heun3", "rk4", "poly2", "poly3", "fractal2", "fractal3",
    "linear_multistep", "revnet", "asynchronous_leapfrog", "explicit_adams", "implicit_adams", "fixed_adams",
    "dopri5_by_row",
)  # ode/solver.py  # fmt: skip

TRACE_ESTIMATORS = ("exact", "rademacher", "gaussian", "orthogonal")  # trace.py
REGULARIZERS = ("kinetic", "jacobian", "acceleration", "jerk", "hjb")  # regularizers.py
BASES = ("normal", "mixture", "student", "kernels")  # distributions/__init__.py

SCALINGS = ("standardize", "robust", "whiten", "half_whiten", "gaussianize", "none")  # transforms/__init__.py
IMAGE_SCALINGS = ("logit", "plain")  # transforms/bounded.py
ZUKO_TRANSFORMS = ("maf", "nsf", "nice")  # transforms/zuko.py

OBJECTIVES = ("flow_matching", "mle", "transforms", "steps")  # objectives/__init__.py
COUPLINGS = ("independent", "optimal_transport")  # objectives/couplings.py
TIME_DENSITIES = ("uniform", "likelihood")  # objectives/flow_matching.py

OPTIMIZERS = ("adamw", "muon")  # training/optim.py

PRIORS = ("normal", "flow")  # of the first state of a latent ODE
RECOGNITIONS = ("gru", "ode_rnn")  # models/latent_network.py

# tf32: products of 10 bits of fraction on a GPU's tensor cores; bf16: all of the network in numbers of 7 bits.
PRECISIONS = ("float32", "tf32", "bf16")
# Modes of torch.compile; reduce-overhead records CUDA graphs, which need the fixed shapes that batches have.
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
WATCHES = ("spectrum", "condensation", "hessian")  # diagnostics/watch.py
CLOCKS = ("cpu", "wall")  # of limits in seconds; training/runtime.py
DENSITIES = ("continuous", "steps")  # of a fit that has both; estimator/discretize.py
