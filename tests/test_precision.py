"""Other floats in the network and compiled networks: results are float32, near enough, and nothing stays behind."""

import pytest
import torch

from ffjord_kit import datasets
from ffjord_kit.estimator import FFJORD
from ffjord_kit.flow import Flow
from ffjord_kit.nn import ConcatSquashDynamics, ResidualDynamics
from ffjord_kit.nn.base import evaluation_methods
from ffjord_kit.nn.unet import UNetDynamics
from ffjord_kit.ode import FixedSolver
from ffjord_kit.precision import COMPILE_MODES, PRECISIONS, compiled, full_precision, reduced_precision
from ffjord_kit.trace import ExactTrace, HutchinsonTrace
from ffjord_kit.transforms import CNF
from ffjord_kit.transforms.cnf import SolveOptions

FIELDS = {"schedule": [("flow_matching", 300), ("mle", 10)], "hidden": (32, 32), "random_state": 0, "batch_size": 256}


def flow():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dynamics = ResidualDynamics((2,), hidden=(16,))
        for parameter in dynamics.parameters():
            torch.nn.init.normal_(parameter, std=0.2)  # an untrained one is at rest
    return Flow([CNF(dynamics, (2,), solver=FixedSolver("euler", 3))])


@pytest.mark.parametrize("trace", [ExactTrace(), HutchinsonTrace()])
def test_the_network_runs_in_bf16_and_all_else_in_float32(trace, generator):
    seen, model = [], flow()
    layer = next(m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 32)
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    x = torch.randn(50, 2, generator=generator)

    def solved():
        return model.evaluate_log_prob(x, options=SolveOptions(trace, generator=torch.Generator().manual_seed(0)))

    with torch.no_grad():
        plain, _ = solved()
        assert set(seen) == {torch.float32}
        seen.clear()
        with reduced_precision(model, "bf16"):
            coarse, moved = solved()
    assert set(seen) == {torch.bfloat16}
    assert {coarse.dtype, moved.x.dtype, moved.log_det.dtype} == {torch.float32}
    assert 0 < (coarse - plain).abs().mean() < 0.05


def test_gradients_are_float32_and_the_field_is_plain_again(generator):
    dynamics = UNetDynamics((1, 4, 4), hidden=(8,))
    model, x = Flow([CNF(dynamics, (1, 4, 4))]), torch.randn(3, 1, 4, 4, generator=generator)
    torch.nn.init.normal_(dynamics.output_layer.weight, generator=generator)
    before = dict(vars(dynamics))
    with reduced_precision(model, "bf16"):
        velocity = dynamics(torch.tensor(0.3), x)
        velocity.square().sum().backward()
    assert velocity.dtype == torch.float32
    assert {p.grad.dtype for p in dynamics.parameters()} == {torch.float32}
    assert vars(dynamics).keys() == before.keys()
    assert (velocity - dynamics(torch.tensor(0.3), x)).abs().max() > 0


def test_a_method_of_the_instance_comes_back():
    model = flow()
    own = model.transforms[0].dynamics.forward
    model.transforms[0].dynamics.forward = own
    with pytest.raises(RuntimeError, match="in between"), reduced_precision(model, "bf16"):
        assert model.transforms[0].dynamics.forward is not own
        raise RuntimeError("in between")
    assert vars(model.transforms[0].dynamics)["forward"] is own
    assert "jvp" not in vars(model.transforms[0].dynamics)


def test_the_settings_of_tensor_cores_are_put_back():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with pytest.raises(RuntimeError, match="in between"), reduced_precision(flow(), "tf32"):
            assert torch.get_float32_matmul_precision() == "high"
            assert torch.backends.cudnn.allow_tf32
            raise RuntimeError("in between")
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (before[0], False)
    finally:
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.slow
def test_training_in_bf16_is_as_good_to_its_error():
    x = datasets.load("moons", rows=2000, seed=0).x
    plain = FFJORD(**FIELDS).fit(x[:1500])
    coarse = FFJORD(**FIELDS, precision="bf16").fit(x[:1500])
    difference = coarse.score_samples(x[1500:]) - plain.score_samples(x[1500:])
    assert 0 < abs(difference.mean()) < 4 * difference.std() / len(difference) ** 0.5 + 0.02
    assert {p.dtype for p in coarse.flow_.parameters()} == {torch.float64}  # as it reports
    assert not {"forward", "jvp", "divergence"} & set(vars(coarse.flow_.transforms[-1].dynamics))


def test_an_unknown_word_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="precision must be one of float32, tf32, bf16; got 'half'"):
        FFJORD(precision="half").fit(datasets.load("moons", rows=80, seed=0).x, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="precision must be one of"), reduced_precision(flow(), "half"):
        pass
    assert PRECISIONS[0] == FFJORD().precision


def test_float32_has_all_its_digits_and_what_was_set_is_left_as_it_was():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    flow = Flow([CNF(ResidualDynamics((2,), hidden=(4,)), (2,))])
    for word, short in (("float32", False), ("tf32", True)):
        with reduced_precision(flow, word):
            assert torch.backends.cudnn.allow_tf32 is short
    with full_precision():
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.fixture
def compilations(monkeypatch):
    """Compile by the plainest backend, which is quick; list what was compiled."""
    requests, real = [], torch.compile

    def plain(function, **options):
        requests.append((function.__name__, options))
        return real(function, backend="eager")

    monkeypatch.setattr(torch, "compile", plain)
    return requests


COMPILED = {"schedule": [("flow_matching", 6), ("mle", 2)], "hidden": (8,), "random_state": 0, "batch_size": 32}


@pytest.mark.slow
def test_compiled_training_is_the_same_and_the_flow_is_plain_again(compilations, tmp_path):
    x = datasets.load("moons", rows=80, seed=0).x
    plain = FFJORD(**COMPILED).fit(x)
    assert compilations == []
    model = FFJORD(**COMPILED, compile="reduce-overhead").fit(x, run=tmp_path / "run")
    assert compilations == [(name, {"mode": "reduce-overhead"}) for name in ("forward", "jvp", "divergence")]
    assert model.score_samples(x[:9]) == pytest.approx(plain.score_samples(x[:9]), abs=1e-4)
    assert not {"forward", "jvp", "divergence"} & set(vars(model.flow_.transforms[-1].dynamics))
    assert FFJORD.load(tmp_path / "run").score_samples(x[:9]) == pytest.approx(model.score_samples(x[:9]), abs=1e-9)


@pytest.mark.parametrize("dynamics", [ConcatSquashDynamics((2,), hidden=(4,)), torch.nn.Identity()], ids=["own", "any"])
def test_a_field_is_plain_again_after_an_error(compilations, dynamics):
    model = Flow([CNF(dynamics, (2,)), CNF(dynamics, (2,))])
    with pytest.raises(RuntimeError, match="in between"), compiled(model, COMPILE_MODES[0]):
        assert set(evaluation_methods(dynamics)) <= set(vars(dynamics))
        raise RuntimeError("in between")
    assert not {"forward", "jvp", "divergence"} & set(vars(dynamics))
    assert len(compilations) == len(evaluation_methods(dynamics))  # two transforms share it


def test_no_mode_compiles_nothing(compilations):
    with compiled(flow(), None):
        pass
    assert compilations == []


def test_an_unknown_mode_is_refused():
    message = "compile must be one of default, reduce-overhead, max-autotune, or None; got 'fast'"
    with pytest.raises(ValueError, match=message):
        FFJORD(**COMPILED, compile="fast").fit(datasets.load("moons", rows=80, seed=0).x)
    with pytest.raises(ValueError, match=message), compiled(flow(), "fast"):
        pass
