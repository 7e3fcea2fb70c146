"""Contract of every vector field of DYNAMICS: shape, dtype, gradients, time as a number or one for each row."""

import pytest
import torch
from oracles import F64, SmoothMLP, close, jacobian, randn

from ffjord_kit.flow import Flow
from ffjord_kit.nn import ACTIVATIONS, DYNAMICS, IMAGE_DYNAMICS, ResidualDynamics
from ffjord_kit.nn.mlp import set_reach
from ffjord_kit.ode import AdaptiveSolver, FixedSolver, make_solver
from ffjord_kit.trace import ExactTrace, HutchinsonTrace
from ffjord_kit.transforms import CNF

HIDDEN = [(8,), (8, 16, 4)]
EVENTS = [(1,), (3,), (2, 2, 2)]
CONTRACT = [
    pytest.param(word, dim, hidden, id=f"{word}-context{dim}-{'x'.join(map(str, hidden))}")
    for word in DYNAMICS
    for dim in (0, 3)
    for hidden in HIDDEN
]


def build(word, dim=0, hidden=(8,), event=(3,), scale=0.5, **options):
    """The dynamics with every parameter moved off its initial value (an output may start at zero)."""
    field = DYNAMICS[word](event, context_dim=dim, hidden=hidden, **options).double()
    with torch.no_grad():
        for seed, parameter in enumerate(field.parameters()):
            parameter.copy_(scale * randn(*parameter.shape, seed=seed))
    return field


def inputs(dim, event=(3,), rows=4):
    return randn(rows, *event), randn(rows, dim, seed=1) if dim else None


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize(("word", "dim", "hidden"), CONTRACT)
def test_the_velocity_has_the_shape_and_dtype_of_the_state(word, dim, hidden, event):
    x, context = inputs(dim, event)
    field, time = build(word, dim, hidden, event), torch.tensor(0.3, dtype=F64)
    assert field(time, x, context).shape == x.shape
    assert field(time, x, context).dtype == F64
    single = field.float()(time.float(), x.float(), None if context is None else context.float())
    assert single.shape == x.shape
    assert single.dtype == torch.float32


@pytest.mark.parametrize(("word", "dim", "hidden"), CONTRACT)
def test_the_gradient_reaches_every_element_of_every_parameter_and_input(word, dim, hidden):
    x, context = inputs(dim, rows=16)
    field, time = build(word, dim, hidden), torch.linspace(0.1, 0.9, 16, dtype=F64).requires_grad_()
    leaves = [time, x.requires_grad_(), *([] if context is None else [context.requires_grad_()])]
    loss = (field(time, x, context) * randn(16, 3, seed=2)).sum()
    names = [name for name, _ in field.named_parameters()] + ["t", "x", "context"][: len(leaves)]
    gradients = torch.autograd.grad(loss, [*field.parameters(), *leaves])
    assert [name for name, g in zip(names, gradients, strict=True) if bool((g == 0).any())] == []


@pytest.mark.parametrize(("word", "dim", "hidden"), CONTRACT)
def test_rows_do_not_mix(word, dim, hidden):
    x, context = inputs(dim)
    field, time = build(word, dim, hidden), torch.linspace(0.1, 0.9, 4, dtype=F64)
    arguments = (time, x) if context is None else (time, x, context)
    for matrix in torch.autograd.functional.jacobian(field, arguments):
        by_rows = matrix.reshape(4, 3, 4, -1).abs().sum((1, 3))
        close(by_rows, by_rows.diagonal().diag(), 0.0)
        assert bool((by_rows.diagonal() > 0).all())


@pytest.mark.parametrize(("word", "dim", "hidden"), CONTRACT)
def test_one_time_for_all_is_the_same_as_one_for_each_row(word, dim, hidden):
    x, context = inputs(dim)
    field, time = build(word, dim, hidden), torch.tensor(0.37, dtype=F64)
    close(field(time.expand(4), x, context), field(time, x, context), 1e-13)


@pytest.mark.parametrize(("word", "dim", "hidden"), CONTRACT)
def test_derivatives_are_those_of_finite_differences_to_the_second_order(word, dim, hidden):
    x, context = inputs(dim, rows=2)
    field, time = build(word, dim, hidden), torch.tensor([0.3, 0.8], dtype=F64)
    arguments = tuple(v.requires_grad_() for v in ((time, x) if context is None else (time, x, context)))
    assert torch.autograd.gradcheck(field, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(field, arguments, fast_mode=True, gen_non_contig_grad_outputs=False)


ACTIVATED = [(word, a) for word in DYNAMICS for a in (("tanh",) if word == "potential" else ACTIVATIONS)]


@pytest.mark.parametrize(("word", "activation"), ACTIVATED)
def test_every_activation_gives_a_jacobian_that_varies_with_the_state(word, activation):
    field, time = build(word, activation=activation), torch.tensor(0.3, dtype=F64)
    first, second = jacobian(lambda y: field(time, y), randn(2, 3))
    assert float((first - second).abs().max()) > 1e-6


def test_sinusoids_of_the_state_level_off_far_from_the_data():
    field, time = build("residual", fourier_features=6), torch.tensor(0.3, dtype=F64)
    x = torch.tensor([[4.9, -5.1, 5.8], [-5.5, 6.2, 1e5], [0.3, -1e5, -5.0]], dtype=F64)
    columns = field.jvp(time, x, torch.eye(3, dtype=F64)[:, None])[1]
    close(columns.permute(1, 2, 0), jacobian(lambda y: field(time, y), x), 1e-9)
    sinusoids = field._fourier_features(torch.tensor([[40.0, 1e3, 1e8]], dtype=F64), None)[0][:, 3:].reshape(2, 3, 6)
    close(sinusoids[:, :1].expand(-1, 3, -1), sinusoids, 1e-12)


@pytest.mark.parametrize("hidden", [(8,), (8, 8)])
@pytest.mark.parametrize("rows", [[[0.3, -4.9, 5.0]], [[0.3, -4.9, 7.0], [1e3, -30.0, 5.1]]])
def test_the_trace_is_exact_near_and_far_from_the_data(hidden, rows):
    field, time, x = build("residual", hidden=hidden), torch.tensor(0.3, dtype=F64), torch.tensor(rows, dtype=F64)
    set_reach(field, torch.tensor([[1.0, 2.0, -6.0]]))
    traces = jacobian(lambda y: field(time, y), x).diagonal(dim1=1, dim2=2).sum(1)
    close(field.divergence(time, x)[1], traces, 1e-10)


def test_the_velocity_grows_as_a_logarithm_far_from_the_data():
    field, time, x = build("residual"), torch.tensor(0.3, dtype=F64), randn(1, 3)
    assert float(jacobian(lambda y: field(time, y), 1e6 * x).abs().max()) > 0.1  # it does not know how far data reach
    set_reach(field, torch.tensor([[1.0, 2.0, -6.0]]))
    assert field.reach.tolist() == [5.0, 5.0, 6.0]
    far = jacobian(lambda y: field(time, y), 1e6 * x)
    assert float(far.abs().max()) < 1e-4
    speeds = [float(field(time, 10.0**power * x).detach().norm()) for power in (4, 6, 8)]
    assert speeds[2] - speeds[1] == pytest.approx(speeds[1] - speeds[0], rel=0.01)
    inside = randn(50, 3).clamp(-5, 5)
    close(field._fourier_features(inside, None)[0], inside, 0.0)


@pytest.mark.parametrize("dim", [0, 3])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_residual_dynamics_start_as_the_identity_flow(dim, hidden):
    field = ResidualDynamics((3,), context_dim=dim, hidden=hidden).double()
    x, context = inputs(dim)
    close(field(torch.tensor(0.3, dtype=F64), x, context), torch.zeros_like(x), 0.0)
    flow = Flow([CNF(field, (3,))], context_dim=dim).double()
    close(flow.log_prob(x, context), flow.base.log_prob(x), 1e-14)


@pytest.mark.parametrize("word", DYNAMICS)
def test_a_network_is_reproduced_by_its_state(word):
    x, context = inputs(3)
    field, fresh = build(word, 3), DYNAMICS[word]((3,), context_dim=3, hidden=(8,)).double()
    fresh.load_state_dict(field.state_dict())
    close(*(f(torch.tensor(0.3, dtype=F64), x, context) for f in (fresh, field)), 0.0)


@pytest.mark.parametrize("method", ["dopri5", "dopri5_by_row"])
@pytest.mark.parametrize("word", DYNAMICS)
def test_a_density_in_single_precision_is_that_in_double(word, method):
    x, context = inputs(3)
    field = build(word, 3, scale=0.2)
    flow = Flow([CNF(field, (3,), solver=make_solver(method))], context_dim=3).double()
    with torch.no_grad():
        exact = flow.log_prob(x, context, solver=AdaptiveSolver(rtol=1e-9, atol=1e-9))
        single = flow.float().log_prob(x.float(), context.float(), solver=make_solver(method, tolerance=1e-6))
    assert single.dtype == torch.float32
    close(single.double(), exact, 2e-4)


@pytest.mark.parametrize("word", ACTIVATIONS)
def test_the_slope_of_an_activation_is_that_of_automatic_differentiation(word):
    u = torch.linspace(-30, 30, 2001, dtype=F64).requires_grad_()
    y, slope = ACTIVATIONS[word](u, torch.ones_like(u))
    close(slope, torch.autograd.grad(y.sum(), u)[0], 1e-12)
    for got, expected in zip(ACTIVATIONS[word].with_slope(u), (y, slope), strict=True):
        close(got, expected, 0.0)


def moved(field):
    """Return the field in float64 with every parameter moved off its initial value."""
    with torch.no_grad():
        for seed, parameter in enumerate(field.double().parameters()):
            parameter.copy_(0.3 * randn(*parameter.shape, seed=seed))
    return field


FIELDS = {
    **{word: (lambda word=word: build(word, 2, scale=0.3), (3,)) for word in DYNAMICS},
    "plain module": (lambda: SmoothMLP(3, context_dim=2), (3,)),
    "convolution": (lambda: moved(IMAGE_DYNAMICS["convolution"]((1, 2, 2), context_dim=2, hidden=(3,))), (1, 2, 2)),
    "unet": (lambda: moved(IMAGE_DYNAMICS["unet"]((1, 2, 2), context_dim=2, hidden=(8,))), (1, 2, 2)),
}


@pytest.mark.parametrize(
    ("trace", "learn_end_time"),
    [(ExactTrace(), False), (HutchinsonTrace(2), True)],
    ids=["exact", "hutchinson-learned end time"],
)
@pytest.mark.parametrize(("make", "event"), FIELDS.values(), ids=FIELDS)
def test_transforms_of_torch_func_through_a_density_are_those_of_autograd(make, event, trace, learn_end_time):
    cnf = CNF(make(), event, solver=FixedSolver("midpoint", 1), learn_end_time=learn_end_time)
    flow, (x, context) = Flow([cnf], context_dim=2).double(), inputs(2, event, rows=2)
    direction = randn(*event, seed=9)

    def log_prob(row, c):
        generator = torch.Generator().manual_seed(0)
        return flow.log_prob(row[None], c[None], trace=trace, generator=generator)[0]

    def expected(derivative):
        return torch.stack([derivative(lambda y, c=c: log_prob(y, c), row) for row, c in zip(x, context, strict=True)])

    functional = torch.autograd.functional
    hessian = torch.func.jacfwd(torch.func.jacrev(log_prob), randomness="same")
    values = expected(lambda f, row: f(row))
    gradients = expected(functional.jacobian)
    hessians = expected(functional.hessian)
    close(torch.func.vmap(log_prob, randomness="same")(x, context), values, 1e-10)
    close(torch.func.vmap(torch.func.grad(log_prob), randomness="same")(x, context), gradients, 1e-10)
    close(torch.func.vmap(hessian, randomness="same")(x, context), hessians, 1e-10)
    for row, c, gradient in zip(x, context, gradients, strict=True):
        _, slope = torch.func.jvp(lambda y, c=c: log_prob(y, c), (row,), (direction,))
        close(slope, (gradient * direction).sum(), 1e-10)
